"""Batches of messages: many events in one payload, a list; each in exactly one, whatever happens at the same time."""

import json
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest

from duepost import client
from tests.app_harness import Harness
from tests.integration.messages.support import error_of, while_it_waits
from tests.integration.test_batches import is_due_in, items, pass_time, remove
from tests.postgres import Connection, run


def add(connection: Connection, item: object = 1, batch: str = "b", **more: Any) -> int:
    with connection.cursor() as cursor:
        return client.add_to_batch(cursor, batch, item, **{"kind": "events", "endpoint": "webhook", **more})


def claim(connection: Connection, message_id: int) -> object:
    """Claims a message as a worker does, once it is due; gives its payload."""
    run(connection, "UPDATE duepost.item SET due_at = now() WHERE id = %s", message_id)
    rows = run(connection, "SELECT payload FROM duepost.claim_messages_v1(ARRAY[%s]::bigint[], 1)", message_id)
    return json.loads(str(rows[0][0])) if rows else None


def leftovers(connection: Connection) -> list[tuple[object, ...]]:
    return run(
        connection,
        "SELECT (SELECT count(*) FROM duepost.batch), (SELECT count(*) FROM duepost.batch_item),"
        " (SELECT count(*) FROM duepost.item), (SELECT count(*) FROM duepost.message),"
        " (SELECT count(*) FROM duepost.scheduled_email_user)",
    )


@pytest.mark.parametrize("endpoint", ["webhook", "function"])
def test_the_payload_is_the_items_in_the_order_of_joining(application: Connection, endpoint: str) -> None:
    message_id = add(application, {"who": "Bob"}, endpoint=endpoint)
    assert add(application, "text", endpoint=endpoint) == add(application, [3.5, None], endpoint=endpoint) == message_id
    assert claim(application, message_id) == [{"who": "Bob"}, "text", [3.5, None]]
    assert leftovers(application) == [(0, 0, 1, 1, 0)], "the items are the message's own now"


def test_the_first_item_schedules_a_message_and_each_moves_it_up_to_the_longest_wait(application: Connection) -> None:
    add(application, 1, wait="1 hour", longest_wait="2 hours")
    assert is_due_in(application, "1 hour")
    pass_time(application, "50 min")
    add(application, 2, wait="1 hour")
    assert is_due_in(application, "1 hour")
    pass_time(application, "50 min")
    add(application, 3, wait="1 hour")
    assert is_due_in(application, "20 min")


def test_an_item_with_a_known_key_takes_the_place_of_the_earlier_one(application: Connection) -> None:
    message_id = add(application, "a", item_key="1")
    add(application, "b", item_key="2")
    add(application, "A", item_key="1")
    assert claim(application, message_id) == ["A", "b"]


def test_what_comes_after_the_claim_is_in_another_message(application: Connection) -> None:
    first = add(application, "a", item_key="1")
    assert claim(application, first) == ["a"]
    assert remove(application, "1") == "too_late"
    run(application, "DELETE FROM duepost.in_hand")
    second = add(application, "A", item_key="1")
    assert second != first
    assert (claim(application, second), claim(application, first)) == (["A"], ["a"]), "the same at a second attempt"


def test_an_item_that_is_removed_is_in_no_message_and_with_the_last_one_that_is_cleared(
    application: Connection,
) -> None:
    message_id = add(application, "a", item_key="1", users=["ann"])
    add(application, "b", item_key="2", users=["ann"])
    assert remove(application, "1") == "removed"
    assert items(application, message_id) == ["b"]
    assert remove(application, "2") == "cleared"
    assert leftovers(application) == [(0, 0, 0, 0, 0)]
    assert run(application, "SELECT email_id, channel, outcome, user_id FROM duepost.delivery") == [
        (message_id, "message", "cleared", "ann")
    ]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT duepost.clear_scheduled_message(%s)",
        "SELECT duepost.clear_scheduled(ARRAY['ann']) WHERE %s > 0",
        "SELECT duepost.finish(%s, 'expired', NULL)",
        "SELECT duepost.remove_endpoint('webhook') WHERE %s > 0",
    ],
)
def test_a_message_that_ends_unsent_takes_its_items_along(application: Connection, statement: str) -> None:
    message_id = add(application, 1, users=["ann"])
    run(application, statement, message_id)
    assert leftovers(application) == [(0, 0, 0, 0, 0)]


def test_an_edit_stands_for_all_items_and_what_is_added_then_is_in_another_message(application: Connection) -> None:
    first = add(application, "a", item_key="1")
    assert run(application, "SELECT duepost.edit_message(%s, '{\"n\": 2}')", first) == [("edited",)]
    assert remove(application, "1") == "too_late"
    second = add(application, "b")
    assert second != first
    assert (claim(application, first), claim(application, second)) == ({"n": 2}, ["b"])


def test_a_batch_that_was_moved_is_moved_again_by_the_next_item(application: Connection) -> None:
    message_id = add(application)
    run(application, "SELECT duepost.reschedule_message(%s, now() + interval '3 days')", message_id)
    assert is_due_in(application, "3 days")
    assert add(application, 2, wait="1 hour") == message_id
    assert is_due_in(application, "1 hour")


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("endpoint => 'nobody'", "endpoint: there is none called nobody"),
        ("endpoint => 'slack'", "endpoint: slack takes no list of items"),
        ("endpoint => 'mattermost'", "endpoint: mattermost takes no list"),
        ("endpoint => 'zulip'", "endpoint: zulip takes no list"),
        ("endpoint => 'matrix'", "endpoint: matrix takes no list"),
        ("address => 'ann@example.com', endpoint => 'webhook'", "address: give either address or endpoint"),
        ("template => 't', endpoint => 'webhook'", "template: is for emails"),
        ("context => '{\"a\": 1}', endpoint => 'webhook'", "context: is for emails"),
        ("sender => 'a@example.com', endpoint => 'webhook'", "sender: is for emails"),
        ("reply_to => 'a@example.com', endpoint => 'webhook'", "reply_to: is for emails"),
        ("headers => '{}', endpoint => 'webhook'", "headers: is for emails"),
        ("users => ARRAY[NULL], endpoint => 'webhook'", "users: "),
        ("wait => NULL, endpoint => 'webhook'", "wait: must not be NULL"),
        ("item => 'null', endpoint => 'webhook'", "item: must be a JSON value"),
        ("item => to_jsonb(repeat('x', 65536)), endpoint => 'webhook'", "item: must be at most 65536 bytes"),
        ("kind => '', endpoint => 'webhook'", "kind: must not be empty"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named_and_nothing_is_stored(application: Connection, given: str, said: str) -> None:
    rest = {"batch": "'c'", "item": "'1'", "kind": "'events'"}
    named = ", ".join(f"{name} => {value}" for name, value in rest.items() if f"{name} => " not in given)
    assert error_of(application, f"SELECT duepost.add_to_batch({named}, {given})").startswith(said)
    assert leftovers(application) == [(0, 0, 0, 0, 0)]


def test_a_disabled_endpoint_takes_no_item(application: Connection) -> None:
    add(application)
    run(application, "SELECT duepost.disable_endpoint('webhook', 'moved')")
    statement = "SELECT duepost.add_to_batch('b', '2', 'events', endpoint => 'webhook')"
    assert error_of(application, statement) == "endpoint: is disabled (moved)"


@pytest.mark.parametrize(
    ("argument", "more"),
    [
        ("kind", {"kind": "another"}),
        ("endpoint", {"endpoint": "function"}),
        ("endpoint", {"endpoint": None, "address": "ann@example.com", "template": "t"}),
        ("users", {"users": ["ann"]}),
    ],
)
def test_an_item_for_another_endpoint_or_of_another_sort_does_not_join(
    application: Connection, argument: str, more: dict[str, Any]
) -> None:
    add(application, 1)
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=rf"^{argument}: must be .* of the message which"):
        add(application, 2, **more)


def test_a_message_does_not_join_an_email(application: Connection) -> None:
    add(application, endpoint=None, address="ann@example.com", template="t", kind="events")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^endpoint: must be that of the email which"):
        add(application)


def test_the_payload_with_all_items_is_at_most_what_a_payload_may_be(application: Connection) -> None:
    message_id = add(application, "x" * 65_000, item_key="0")
    for number in range(1, 4):
        add(application, "x" * 65_000, item_key=str(number))
    rest = 262_144 - 4 * 65_002 - 2 * 5 - 2
    run(application, "SAVEPOINT before")
    with pytest.raises(
        psycopg2.errors.InvalidParameterValue,
        match=r"^item: the payload with all items must be at most 262144 bytes, would be 262145",
    ):
        add(application, "x" * (rest + 1))
    run(application, "ROLLBACK TO before")
    add(application, "x" * rest)
    assert remove(application, "3") == "removed"
    add(application, "x" * 65_000)
    claim(application, message_id)
    assert run(application, "SELECT octet_length(payload::text) FROM duepost.message") == [(262_144,)]


# Races ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(sessions: Callable[[], Connection]) -> tuple[Connection, Connection, Connection]:
    """Two sessions with transactions, and one that watches."""
    watcher = sessions()
    watcher.autocommit = True
    return sessions(), sessions(), watcher


def test_an_item_that_meets_the_claim_is_in_the_next_message(pair: tuple[Connection, ...]) -> None:
    first, second, watcher = pair
    message_id = add(first, "a")
    first.commit()
    assert claim(first, message_id) == ["a"]
    assert while_it_waits(second, lambda: add(second, "b"), watcher, first.commit) != message_id
    second.commit()
    assert run(watcher, "SELECT payload FROM duepost.message WHERE item_id = %s", message_id) == [(["a"],)]


def test_an_item_that_meets_a_claim_that_comes_to_nothing_joins(pair: tuple[Connection, ...]) -> None:
    first, second, watcher = pair
    message_id = add(first, "a")
    first.commit()
    claim(first, message_id)
    assert while_it_waits(second, lambda: add(second, "b"), watcher, first.rollback) == message_id
    assert items(second, message_id) == ["a", "b"]


def test_a_message_that_an_item_is_joining_is_passed_over_by_the_claim(pair: tuple[Connection, ...]) -> None:
    first, second, watcher = pair
    message_id = add(first, "a")
    first.commit()
    run(watcher, "UPDATE duepost.item SET due_at = now()")
    add(first, "b", wait="0")
    claimed = "SELECT payload FROM duepost.claim_messages_v1(ARRAY[%s]::bigint[], 1)"
    assert run(second, claimed, message_id) == []
    second.rollback()
    first.commit()
    assert run(second, claimed, message_id) == [('["a", "b"]',)]


def test_what_has_joined_since_the_claims_snapshot_is_in_the_message(pair: tuple[Connection, ...]) -> None:
    first, second, watcher = pair
    message_id = add(first, "a")
    first.commit()
    run(first, "SELECT pg_advisory_xact_lock(7)")
    add(first, "b")
    content = "SELECT (duepost.message_content(%s)).payload FROM (SELECT pg_advisory_xact_lock(7) OFFSET 0) AS stopped"
    payload = while_it_waits(second, lambda: run(second, content, message_id), watcher, first.commit)
    assert payload == [('["a", "b"]',)]


def test_two_that_open_a_batch_at_once_share_one_message(pair: tuple[Connection, ...]) -> None:
    first, second, watcher = pair
    message_id = add(first, "a", users=["ann"])
    joined = while_it_waits(second, lambda: add(second, "b", users=["ann"]), watcher, first.commit)
    assert joined == message_id
    second.commit()
    assert leftovers(watcher) == [(1, 2, 1, 1, 1)], "nothing is left of the message that the slower one had begun"


def test_a_removal_that_meets_the_claim_is_too_late(pair: tuple[Connection, ...]) -> None:
    first, second, watcher = pair
    message_id = add(first, "a", item_key="1")
    first.commit()
    claim(first, message_id)
    assert while_it_waits(second, lambda: remove(second, "1"), watcher, first.commit) == "too_late"


# Delivered -----------------------------------------------------------------------------------------------------------


def test_a_function_takes_the_list(harness: Harness) -> None:
    harness.query(
        "CREATE SCHEMA app; CREATE TABLE app.posts (message_id bigint, payload jsonb);"
        " CREATE FUNCTION app.post(bigint, jsonb) RETURNS void LANGUAGE sql AS"
        " $f$ INSERT INTO app.posts VALUES ($1, $2) $f$;"
        " SELECT duepost.set_endpoint('posts', 'function', function => 'app.post')"
    )
    with harness.application.transaction() as cursor:
        for number in (1, 2, 3):
            message_id = client.add_to_batch(cursor, "b", {"n": number}, kind="events", endpoint="posts")
    harness.query("UPDATE duepost.item SET due_at = now()")
    harness.enqueue()
    harness.send()
    assert harness.ledger(message_id) == ["sent"]
    assert harness.query("SELECT message_id, payload FROM app.posts") == [(message_id, [{"n": 1}, {"n": 2}, {"n": 3}])]

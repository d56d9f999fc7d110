"""Batches: many events in one email, each in exactly one, whatever happens at the same time."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import psycopg2
import pytest

from actors.ruling import Phase
from duepost import client
from tests.app_harness import Harness
from tests.postgres import Connection, run
from tests.relays import ScriptedRelay, close, reply
from tests.waiting import wait_until

T = TypeVar("T")


def add(connection: Connection, item: object = 1, batch: str = "b", **more: Any) -> int:
    given = {
        "kind": "digest",
        "template": "digest",
        **({} if "users" in more else {"address": "ann@example.com"}),
        **more,
    }
    with connection.cursor() as cursor:
        return client.add_to_batch(cursor, batch, item, **given)


def remove(connection: Connection, item_key: str, batch: str = "b") -> str:
    with connection.cursor() as cursor:
        return client.remove_from_batch(cursor, batch, item_key)


def pass_time(connection: Connection, span: str) -> None:
    """As if all that was done had been done so much earlier."""
    run(
        connection,
        f"UPDATE duepost.batch SET opened_at = opened_at - interval '{span}',"
        f" latest_at = latest_at - interval '{span}'",
    )
    run(
        connection,
        f"UPDATE duepost.item SET scheduled_at = scheduled_at - interval '{span}', due_at = due_at - interval '{span}',"
        f" expires_at = expires_at - interval '{span}'",
    )


def is_due_in(connection: Connection, span: str) -> bool:
    """Whether the one email is due so much later than now, give or take five minutes."""
    [(right, same)] = run(
        connection,
        f"SELECT abs(extract(epoch FROM due_at - clock_timestamp() - interval '{span}')) < 300, due_at = scheduled_at"
        " FROM duepost.item",
    )
    assert same, "it is scheduled for when it is due"
    return bool(right)


def claim(connection: Connection, email_id: int) -> object:
    """Claims an email as a worker does, once it is due; gives its context."""
    run(connection, "UPDATE duepost.item SET due_at = now() WHERE id = %s", email_id)
    rows = run(connection, "SELECT context FROM duepost.claim_emails_v3(ARRAY[%s]::bigint[], 1, 'default')", email_id)
    return json.loads(str(rows[0][0])) if rows else None


def items(connection: Connection, email_id: int) -> list[object]:
    """What is gathered so far."""
    return [
        item
        for (item,) in run(
            connection, "SELECT item FROM duepost.batch_item WHERE email_id = %s ORDER BY place", email_id
        )
    ]


def leftovers(connection: Connection) -> list[tuple[object, ...]]:
    return run(
        connection,
        "SELECT (SELECT count(*) FROM duepost.batch), (SELECT count(*) FROM duepost.batch_item),"
        " (SELECT count(*) FROM duepost.item), (SELECT count(*) FROM duepost.email)",
    )


# The window ----------------------------------------------------------------------------------------------------------


def test_the_first_item_schedules_an_email_after_the_wait(application: Connection) -> None:
    add(application, wait="1 hour")
    assert is_due_in(application, "1 hour")


def test_two_minutes_are_waited_where_nothing_is_said(application: Connection) -> None:
    add(application)
    run(
        application,
        "UPDATE duepost.item SET scheduled_at = scheduled_at + interval '58 min', due_at = due_at + interval '58 min'",
    )
    assert is_due_in(application, "1 hour")


def test_a_further_item_joins_and_moves_the_email_by_the_wait_again(application: Connection) -> None:
    email_id = add(application, 1, wait=timedelta(hours=1))
    pass_time(application, "40 min")
    assert is_due_in(application, "20 min")
    assert add(application, 2, wait=timedelta(hours=1)) == email_id
    assert is_due_in(application, "1 hour")
    assert run(application, "SELECT expires_at FROM duepost.item") == [(None,)]
    assert items(application, email_id) == [1, 2]


def test_no_item_moves_it_beyond_the_longest_wait_after_the_first(application: Connection) -> None:
    add(application, 1, wait="1 hour", longest_wait="2 hours")
    pass_time(application, "50 min")
    add(application, 2, wait="1 hour", longest_wait="2 hours")
    assert is_due_in(application, "1 hour")
    pass_time(application, "50 min")
    add(application, 3, wait="1 hour", longest_wait="2 hours")
    assert is_due_in(application, "20 min")
    # A call that says nothing of it, or more, is bound by what was said before.
    add(application, 4, wait="1 hour")
    assert is_due_in(application, "20 min")
    add(application, 5, wait="1 hour", longest_wait="10 days")
    assert is_due_in(application, "20 min")
    pass_time(application, "30 min")
    add(application, 6, wait="1 hour")
    assert run(application, "SELECT due_at < clock_timestamp() FROM duepost.item") == [(True,)]


def test_a_later_call_may_bring_the_longest_wait_forward(application: Connection) -> None:
    add(application, 1, wait="1 hour")
    pass_time(application, "50 min")
    add(application, 2, wait="1 hour", longest_wait="80 min")
    assert is_due_in(application, "30 min")


def test_an_item_that_does_not_wait_sends_all_that_is_gathered(application: Connection) -> None:
    email_id = add(application, 1, wait="1 day")
    assert add(application, 2, wait="0") == email_id
    assert run(application, "SELECT due_at <= clock_timestamp() FROM duepost.item") == [(True,)]


def test_the_time_to_live_of_its_kind_goes_along(application: Connection) -> None:
    run(application, "INSERT INTO duepost.kind (kind, expire_after) VALUES ('digest', '90 min')")
    email_id = add(application, 1, wait="1 hour")
    pass_time(application, "50 min")
    add(application, 2, wait="1 hour")
    assert run(application, "SELECT expires_at - scheduled_at FROM duepost.item WHERE id = %s", email_id) == [
        (timedelta(minutes=90),)
    ]


def test_an_email_that_is_queued_is_taken_out_of_the_queue(application: Connection) -> None:
    email_id = add(application, 1)
    run(
        application,
        "INSERT INTO dramatiq.queue (message_id, queue_name, state, message, key)"
        " VALUES (gen_random_uuid(), 'q', 'queued', '{}', %s)",
        email_id,
    )
    assert add(application, 2, wait="1 hour") == email_id
    assert run(application, "SELECT state FROM duepost.scheduled_email") == [("scheduled",)]
    assert is_due_in(application, "1 hour")


def test_a_batch_email_that_was_moved_is_moved_again_by_the_next_item(application: Connection) -> None:
    email_id = add(application, 1)
    run(application, "SELECT duepost.reschedule_email(%s, now() + interval '3 days')", email_id)
    assert is_due_in(application, "3 days")
    assert add(application, 2, wait="1 hour") == email_id
    assert is_due_in(application, "1 hour")


# Items ---------------------------------------------------------------------------------------------------------------


def test_the_claim_gives_the_items_in_the_order_of_joining(application: Connection) -> None:
    email_id = add(application, {"who": "Bob"}, context={"name": "Ann", "count": 1})
    add(application, "text", context={"count": 2})
    add(application, [3.5, None, True])
    assert claim(application, email_id) == {
        "name": "Ann",
        "count": 2,
        "items": [{"who": "Bob"}, "text", [3.5, None, True]],
    }
    assert leftovers(application) == [(0, 0, 1, 1)], "the items are the email's own now"


def test_an_item_with_a_known_key_takes_the_place_of_the_earlier_one(application: Connection) -> None:
    email_id = add(application, "a", item_key="1")
    add(application, "b", item_key="2")
    pass_time(application, "1 min")
    assert add(application, "A", item_key="1", wait="1 hour") == email_id
    add(application, "no key")
    add(application, "no key")
    assert claim(application, email_id) == {"items": ["A", "b", "no key", "no key"]}


def test_an_item_that_takes_the_place_of_another_moves_the_email_too(application: Connection) -> None:
    add(application, "a", item_key="1", wait="1 hour")
    pass_time(application, "50 min")
    add(application, "A", item_key="1", wait="1 hour")
    assert is_due_in(application, "1 hour")


def test_batches_have_keys_and_emails_of_their_own(application: Connection) -> None:
    first = add(application, "a", "one", item_key="1")
    second = add(application, "b", "two", item_key="1", address="bob@example.com")
    assert first != second
    assert (items(application, first), items(application, second)) == (["a"], ["b"])


def test_what_comes_after_the_claim_is_in_another_email(application: Connection) -> None:
    first = add(application, "a", item_key="1")
    assert claim(application, first) == {"items": ["a"]}
    second = add(application, "A", item_key="1")
    assert second != first
    assert (claim(application, second), claim(application, first)) == ({"items": ["A"]}, None)


def test_a_thousand_items_fit_into_one_email(application: Connection) -> None:
    [(ids,)] = run(
        application,
        "SELECT array_agg(DISTINCT duepost.add_to_batch('b', jsonb_build_object('n', n, 'text', repeat('x', 200)),"
        " kind => 'digest', address => 'ann@example.com', template => 'digest')) FROM generate_series(1, 1000) AS n",
    )
    assert isinstance(ids, list)
    [email_id] = ids
    context = claim(application, email_id)
    assert isinstance(context, dict)
    assert [item["n"] for item in context["items"]] == list(range(1, 1001))


# Taking items out ----------------------------------------------------------------------------------------------------


def test_an_item_that_is_removed_is_in_no_email(application: Connection) -> None:
    email_id = add(application, "a", item_key="1")
    add(application, "b", item_key="2")
    add(application, "c", item_key="3")
    due = run(application, "SELECT due_at FROM duepost.item")
    assert remove(application, "2") == "removed"
    assert run(application, "SELECT due_at FROM duepost.item") == due, "that moves nothing"
    assert remove(application, "2") == "too_late"
    add(application, "B", item_key="2")
    assert claim(application, email_id) == {"items": ["a", "c", "B"]}


@pytest.mark.parametrize("whom", [{"address": "ann@example.com"}, {"users": ["ann", "bob"]}], ids=["address", "users"])
def test_with_its_last_item_the_email_is_cleared(application: Connection, whom: dict[str, Any]) -> None:
    email_id = add(application, item_key="1", **whom)
    assert remove(application, "1") == "cleared"
    assert leftovers(application) == [(0, 0, 0, 0)]
    assert run(application, "SELECT email_id, outcome FROM duepost.delivery") == [(email_id, "cleared")]
    assert add(application, item_key="1", **whom) != email_id


def test_what_was_claimed_or_never_there_is_too_late_to_remove(application: Connection) -> None:
    email_id = add(application, item_key="1")
    assert remove(application, "2") == "too_late"
    assert remove(application, "1", "another") == "too_late"
    claim(application, email_id)
    assert remove(application, "1") == "too_late"


def test_an_email_between_retries_takes_no_item_and_gives_none(application: Connection) -> None:
    email_id = add(application, "a", item_key="1")
    claim(application, email_id)
    run(application, "DELETE FROM duepost.in_hand")
    assert remove(application, "1") == "too_late"
    assert add(application, "b") != email_id
    assert claim(application, email_id) == {"items": ["a"]}, "the same as at the first attempt"


# With the other functions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT duepost.clear_scheduled_email(%s)",
        "SELECT duepost.clear_scheduled_emails_to('ann@example.com') WHERE %s > 0",
        "DELETE FROM duepost.scheduled_email WHERE id = %s",
        "SELECT duepost.finish(%s, 'expired', NULL)",
    ],
)
def test_an_email_that_is_cleared_takes_its_items_along(application: Connection, statement: str) -> None:
    email_id = add(application, 1)
    add(application, 2)
    run(application, statement, email_id)
    assert leftovers(application) == [(0, 0, 0, 0)]
    assert items(application, add(application, 3)) == [3]


def test_items_of_an_email_that_was_deleted_by_hand_are_in_nobodys_way(application: Connection) -> None:
    email_id = add(application, 1, item_key="1")
    run(application, "DELETE FROM duepost.item; DELETE FROM duepost.email")
    assert remove(application, "1") == "too_late"
    second = add(application, 2)
    assert second != email_id
    assert items(application, second) == [2]


def test_items_join_although_one_of_the_users_was_taken_off(application: Connection) -> None:
    email_id = add(application, 1, users=["ann", "bob"])
    run(application, "SELECT duepost.clear_scheduled_emails(ARRAY['ann'])")
    assert add(application, 2, users=["bob", "ann", "bob"]) == email_id
    assert run(application, "SELECT user_id FROM duepost.scheduled_email_user") == [("bob",)]


def test_the_same_mailbox_in_another_spelling_is_the_same_recipient(application: Connection) -> None:
    assert add(application, 1) == add(application, 2, address="Ann@EXAMPLE.com")


# Bad input -----------------------------------------------------------------------------------------------------------

DEEP = "'" + "[" * 100 + "]" * 100 + "'"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batch", "NULL"), ("batch", "''"), ("batch", "repeat('b', 513)"), ("batch", "E'a\\nb'"),
        ("item", "NULL"), ("item", "'null'"), ("item", "to_jsonb(repeat('x', 65536))"), ("item", DEEP),
        ("item", "'1e309'"), ("item", "'[{\"a\": -1e400}]'"),
        ("kind", "NULL"), ("kind", "''"), ("kind", "repeat('k', 101)"),
        ("address", "'nobody'"), ("address", "NULL"), ("address", "E'a@example.com\\nb'"),
        ("users", "ARRAY['']"), ("users", "'{}'"), ("users", "ARRAY[NULL]::text[]"),
        ("template", "NULL"), ("template", "'../x'"),
        ("context", "'[]'"), ("context", "'null'"), ("context", "'{\"items\": []}'"), ("context", "'{\"n\": 1e309}'"),
        ("context", "jsonb_build_object('a', repeat('x', 262144))"),
        ("item_key", "''"), ("item_key", "repeat('k', 513)"), ("item_key", "E'\\t'"),
        ("wait", "NULL"), ("wait", "'-1 s'"), ("wait", "'367 days'"), ("wait", "'178000000 years'"),
        ("longest_wait", "'-1 s'"), ("longest_wait", "'1 min'"), ("longest_wait", "'367 days'"),
        ("sender", "'nobody'"), ("reply_to", "E'a@example.com\\n'"), ("headers", "'{\"Subject\": \"x\"}'"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named_and_nothing_is_stored(application: Connection, argument: str, value: str) -> None:
    add(application, "there")
    before = leftovers(application)
    given = {"batch": "'b'", "item": "'1'", "kind": "'digest'", "template": "'digest'", "address": "'ann@example.com'"}
    if argument == "users":
        del given["address"]
    given[argument] = value
    run(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=rf"^{argument}: "):
        run(application, f"SELECT duepost.add_to_batch({', '.join(f'{name} => {sql}' for name, sql in given.items())})")
    run(application, "ROLLBACK TO before")
    assert leftovers(application) == before


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("kind", {"kind": "another"}),
        ("address", {"address": "bob@example.com"}),
        ("address", {"users": ["ann"]}),
        ("template", {"template": "another"}),
    ],
)
def test_an_item_for_another_recipient_or_of_another_sort_does_not_join(
    application: Connection, argument: str, value: dict[str, Any]
) -> None:
    add(application, 1)
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=rf"^{argument}: must be "):
        add(application, 2, **value)


@pytest.mark.parametrize("value", [{"users": ["ann"]}, {"users": ["ann", "eve"]}, {"address": "ann@example.com"}])
def test_an_item_for_other_users_does_not_join(application: Connection, value: dict[str, Any]) -> None:
    add(application, 1, users=["ann", "bob"])
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^users: must be those"):
        add(application, 2, **value)


@pytest.mark.parametrize("arguments", ["NULL, '1'", "'', '1'", "'b', NULL", "'b', ''"])
def test_nothing_can_be_removed_without_its_names(application: Connection, arguments: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^(batch|item_key): must not be empty"):
        run(application, f"SELECT duepost.remove_from_batch({arguments})")


def test_an_email_takes_ten_thousand_items_and_no_more(application: Connection) -> None:
    email_id = add(application, 1, item_key="1")
    run(application, "UPDATE duepost.batch SET items = 9999")
    add(application, 2)
    run(application, "SAVEPOINT before")
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^item: the batch has 10000 items already"):
        add(application, 3)
    run(application, "ROLLBACK TO before")
    add(application, "replaced", item_key="1")
    assert items(application, email_id) == ["replaced", 2]


def test_the_context_with_all_items_has_at_most_a_mebibyte(application: Connection) -> None:
    email_id = add(application, "x" * 65_000, item_key="0")
    for number in range(1, 16):
        add(application, "x" * 65_000, item_key=str(number))
    run(application, "SAVEPOINT before")
    with pytest.raises(
        psycopg2.errors.InvalidParameterValue, match=r"^item: the context with all items must be at most"
    ):
        add(application, "x" * 65_000)
    run(application, "ROLLBACK TO before")
    assert remove(application, "3") == "removed"
    add(application, "x" * 65_000, item_key="3")
    add(application, "small", item_key="7")
    assert run(
        application,
        "SELECT bytes = (SELECT sum(octet_length(item::text)) FROM duepost.batch_item), items FROM duepost.batch",
    ) == [(True, 16)]
    claim(application, email_id)
    assert run(application, "SELECT octet_length(context::text) < 1048576 FROM duepost.email") == [(True,)]


def test_the_client_names_what_is_no_json(application: Connection) -> None:
    with pytest.raises(TypeError, match=r"^item: when: not JSON serializable"):
        add(application, {"when": timedelta(1)})
    with pytest.raises(TypeError, match=r"^users: "):
        add(application, 1, users="ann")


# Races ---------------------------------------------------------------------------------------------------------------


def while_it_waits(connection: Connection, call: Callable[[], T], watcher: Connection, go_on: Callable[[], None]) -> T:
    """Calls in another thread, waits until the call waits for a lock, goes on, and gives what the call gave."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[T] = pool.submit(call)
        waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = %s"
        wait_until(lambda: future.done() or run(watcher, waiting, connection.info.backend_pid) == [(True,)])
        assert not future.done(), "it did not wait"
        go_on()
        return future.result(timeout=60)


@pytest.fixture
def sessions(connect: Callable[[], Connection]) -> tuple[Connection, Connection, Connection]:
    """Two sessions with transactions, and one that watches."""
    watcher = connect()
    watcher.autocommit = True
    return connect(), connect(), watcher


def test_an_item_that_meets_the_claim_is_in_the_next_email(sessions: tuple[Connection, ...]) -> None:
    first, second, watcher = sessions
    email_id = add(first, "a")
    first.commit()
    assert claim(first, email_id) == {"items": ["a"]}
    assert while_it_waits(second, lambda: add(second, "b"), watcher, first.commit) != email_id
    second.commit()
    assert run(watcher, "SELECT context FROM duepost.email WHERE item_id = %s", email_id) == [({"items": ["a"]},)]


def test_an_item_that_meets_a_claim_that_comes_to_nothing_joins(sessions: tuple[Connection, ...]) -> None:
    first, second, watcher = sessions
    email_id = add(first, "a")
    first.commit()
    claim(first, email_id)
    assert while_it_waits(second, lambda: add(second, "b"), watcher, first.rollback) == email_id
    assert items(second, email_id) == ["a", "b"]


def test_an_email_that_an_item_is_joining_is_passed_over_by_the_claim(sessions: tuple[Connection, ...]) -> None:
    first, second, watcher = sessions
    email_id = add(first, "a")
    first.commit()
    run(watcher, "UPDATE duepost.item SET due_at = now()")
    add(first, "b", wait="0")
    claimed = "SELECT context FROM duepost.claim_emails_v3(ARRAY[%s]::bigint[], 1, 'default')"
    assert run(second, claimed, email_id) == []
    second.rollback()
    first.commit()
    assert run(second, claimed, email_id) == [('{"items": ["a", "b"]}',)]


def test_what_has_joined_since_the_claims_snapshot_is_in_the_email(sessions: tuple[Connection, ...]) -> None:
    first, second, watcher = sessions
    email_id = add(first, "a")
    first.commit()
    run(first, "SELECT pg_advisory_xact_lock(7)")
    add(first, "b")
    closed = "SELECT duepost.close_batch(%s) FROM (SELECT pg_advisory_xact_lock(7) OFFSET 0) AS stopped"
    context = while_it_waits(second, lambda: run(second, closed, email_id), watcher, first.commit)
    assert context == [('{"items": ["a", "b"]}',)]


def test_a_batch_that_is_closed_already_is_not_emptied_by_a_claim_with_an_older_snapshot(
    application: Connection,
) -> None:
    email_id = add(application, "a")
    again = "SELECT duepost.close_batch(%s)"
    assert run(application, again, email_id) == run(application, again, email_id) == [('{"items": ["a"]}',)]


def test_two_that_open_a_batch_at_once_share_one_email(sessions: tuple[Connection, ...]) -> None:
    first, second, watcher = sessions
    email_id = add(first, "a")
    assert while_it_waits(second, lambda: add(second, "b"), watcher, first.commit) == email_id
    second.commit()
    assert items(watcher, email_id) == ["a", "b"]
    assert leftovers(watcher) == [(1, 2, 1, 1)], "nothing is left of the email that the slower one had begun"


def test_the_slower_of_two_that_open_a_batch_goes_on_alone_if_the_other_rolls_back(
    sessions: tuple[Connection, ...],
) -> None:
    first, second, watcher = sessions
    add(first, "a")
    email_id = while_it_waits(second, lambda: add(second, "b"), watcher, first.rollback)
    second.commit()
    assert items(watcher, email_id) == ["b"]


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_item_that_meets_a_clear_is_in_another_email_if_that_is_kept(
    sessions: tuple[Connection, ...], end: str
) -> None:
    first, second, watcher = sessions
    email_id = add(first, "a", item_key="1")
    first.commit()
    assert remove(first, "1") == "cleared"
    joined = while_it_waits(second, lambda: add(second, "b"), watcher, getattr(first, end))
    assert (joined == email_id) == (end == "rollback")
    assert items(second, joined) == (["b"] if end == "commit" else ["a", "b"])


def test_a_removal_that_meets_the_claim_is_too_late(sessions: tuple[Connection, ...]) -> None:
    first, second, watcher = sessions
    email_id = add(first, "a", item_key="1")
    first.commit()
    claim(first, email_id)
    assert while_it_waits(second, lambda: remove(second, "1"), watcher, first.commit) == "too_late"


@pytest.mark.parametrize("call", [lambda connection: add(connection, "b"), lambda connection: remove(connection, "1")])
def test_a_transaction_with_one_snapshot_fails_where_the_email_was_claimed_since(
    sessions: tuple[Connection, ...], call: Callable[[Connection], object]
) -> None:
    first, second, _ = sessions
    email_id = add(first, "a", item_key="1")
    first.commit()
    run(second, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM duepost.item")
    # Without a change to the item's own row.
    run(first, "SELECT FROM duepost.item FOR NO KEY UPDATE; SELECT duepost.close_batch(%s)", email_id)
    first.commit()
    with pytest.raises(psycopg2.errors.SerializationFailure):
        call(second)


def test_transactions_with_several_batches_in_one_order_wait_and_do_not_deadlock(
    sessions: tuple[Connection, ...],
) -> None:
    first, second, watcher = sessions
    ids = [add(first, 1, batch) for batch in ("a", "b")]
    first.commit()
    add(first, 2, "a")

    def go_on() -> None:
        add(first, 2, "b")
        first.commit()

    while_it_waits(second, lambda: add(second, 3, "a"), watcher, go_on)
    add(second, 3, "b")
    second.commit()
    assert [items(watcher, email_id) for email_id in ids] == [[1, 2, 3], [1, 2, 3]]


def test_of_two_transactions_with_two_batches_in_opposite_orders_one_can_be_run_again(
    sessions: tuple[Connection, ...],
) -> None:
    first, second, watcher = sessions
    add(first, 1, "a")
    add(second, 1, "b")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(add, second, 2, "a")
        waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = %s"
        wait_until(lambda: run(watcher, waiting, second.info.backend_pid) == [(True,)])
        try:
            add(first, 2, "b")
            failed = None
        except psycopg2.errors.DeadlockDetected:
            failed = first
        if failed:
            first.rollback()
            other.result(timeout=60)
            second.commit()
            again = first
        else:
            first.commit()
            with pytest.raises(psycopg2.errors.DeadlockDetected):
                other.result(timeout=60)
            second.rollback()
            again = second
    add(again, 3, "a")
    add(again, 3, "b")
    again.commit()
    assert run(watcher, "SELECT batch, items FROM duepost.batch ORDER BY batch") == [("a", 2), ("b", 2)]


# Delivered -----------------------------------------------------------------------------------------------------------

TEXT = "{% for item in items %}{{ item.who }} wrote {{ item.what }}\n{% endfor %}"


def deliver(harness: Harness, *events: tuple[str, str], **more: Any) -> int:
    """Gathers these, lets them be due, and has them sent."""
    harness.template("digest", subject="{{ items | length }} comments", text=TEXT)
    with harness.application.transaction() as cursor:
        for who, what in events:
            email_id = client.add_to_batch(
                cursor, "b", {"who": who, "what": what}, kind="digest", template="digest",
                **{"address": "ann@example.com", **more},
            )  # fmt: skip
    harness.make_due()
    harness.deliver()
    return email_id


def test_a_template_shows_the_items(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = deliver(harness, ("Bob", "hello"), ("Eve", "well"))
    assert harness.ledger(email_id) == ["sent"]
    [message] = relay.messages
    assert b"Subject: 2 comments" in message.content
    assert b"Bob wrote hello\r\nEve wrote well\r\n" in message.content
    assert harness.query("SELECT count(*) FROM duepost.batch_item") == [(0,)]


def test_each_user_of_a_batch_gets_all_items(harness: Harness, relay: ScriptedRelay) -> None:
    for user in ("ann", "bob"):
        harness.recipient(user, f"{user}@example.com")
    email_id = deliver(harness, ("Bob", "hello"), ("Eve", "well"), users=["ann", "bob"], address=None)
    assert harness.ledger(email_id) == ["sent", "sent"]
    assert [b"Eve wrote well" in message.content for message in relay.messages] == [True, True]


def test_a_second_attempt_is_the_same_email(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, reply("451 4.3.0 later"), times=1)
    email_id = deliver(harness, ("Bob", "hello"))
    assert harness.row(email_id)["attempts"] == 1
    with harness.application.transaction() as cursor:
        assert client.remove_from_batch(cursor, "b", "1") == "too_late"
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert b"Bob wrote hello" in relay.messages[-1].content


def test_an_undeliverable_batch_can_be_reopened_with_its_items(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 unknown"), times=1)
    email_id = deliver(harness, ("Bob", "hello"), ("Eve", "well"))
    assert harness.ledger(email_id) == ["undeliverable"]
    assert harness.query("SELECT duepost.reopen_email(%(id)s)", id=email_id) == [("reopened",)]
    with harness.application.transaction() as cursor:
        assert client.add_to_batch(
            cursor, "b", {}, kind="digest", template="digest", address="ann@example.com", wait="1 day"
        ) != email_id  # fmt: skip
    harness.deliver()
    assert harness.ledger(email_id) == ["undeliverable", "sent"]
    assert b"Bob wrote hello\r\nEve wrote well\r\n" in relay.messages[-1].content


def test_what_may_have_arrived_keeps_its_items(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, close(), times=1)
    email_id = deliver(harness, ("Bob", "hello"))
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert b"Bob wrote hello" in relay.messages[-1].content

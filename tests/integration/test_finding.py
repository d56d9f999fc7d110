"""What operators look for is found: one list, one person, causes."""

from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from actors.ruling import Phase
from duepost import operations
from duepost.operations import Filter, Found, Outcome, Place, State
from tests.app_harness import Harness
from tests.relays import ScriptedRelay, reply


def all_pages(harness: Harness, wanted: Filter, limit: int) -> list[Found]:
    """Every row, page by page."""
    found: list[Found] = []
    after: Place | None = None
    while True:
        page = operations.find_items(harness.database, wanted, after, limit)
        found += page.items
        if page.next is None:
            return found
        after = Place.parse(str(page.next))


def test_pending_items_and_the_ledger_are_one_list_with_what_waits_for_a_person_first(harness: Harness) -> None:
    done = harness.schedule(address="done@example.com")
    harness.deliver()
    later = harness.schedule(scheduled_at=datetime.now(UTC) + timedelta(days=1), key="later")
    held = harness.schedule(kind="invoice")
    harness.query("UPDATE duepost.item SET is_held = true, last_error = 'dot: no reply' WHERE id = %(id)s", id=held)
    found = all_pages(harness, Filter(), 1)
    assert [(each.id, each.state, dict(each.outcomes)) for each in found] == [
        (held, State.UNKNOWN, {}),
        (later, State.SCHEDULED, {}),
        (done, None, {"sent": 1}),
    ]
    assert [each.route for each in found] == ["default"] * 3


def test_rows_of_one_moment_are_each_found_once_while_others_arrive(harness: Harness) -> None:
    moment = datetime.now(UTC) + timedelta(days=1)
    ids = [harness.schedule(scheduled_at=moment) for _ in range(50)]
    first = operations.find_items(harness.database, Filter(), limit=20)
    arrived = [harness.schedule(scheduled_at=moment) for _ in range(5)]
    after, found = first.next, list(first.items)
    while after is not None:
        page = operations.find_items(harness.database, Filter(), after, 20)
        found += page.items
        after = page.next
    assert [each.id for each in found] == ids + arrived
    harness.query("SELECT duepost.clear_scheduled_email(id) FROM duepost.item ORDER BY id")
    harness.query("UPDATE duepost.delivery SET finished_at = '2026-01-01T00:00Z'")
    assert [each.id for each in all_pages(harness, Filter(), 7)] == list(reversed(ids + arrived))


def test_an_item_is_found_by_each_thing_that_is_known_of_it(harness: Harness) -> None:
    harness.recipient("ann", "Ann@Example.com")
    harness.recipient("bob", "bob@example.com")
    sent = harness.schedule(users=["ann", "bob"], kind="digest", key="digest-1")
    harness.deliver()
    pending = harness.schedule(address="ann@example.com", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    harness.schedule(address="eve@example.com", kind="other", scheduled_at=datetime.now(UTC) + timedelta(hours=1))
    both = [pending, sent]
    soon, now = datetime.now(UTC) + timedelta(minutes=30), datetime.now(UTC)
    for wanted, ids in (
        (Filter(ids=(sent, pending)), both),
        (Filter(key="digest-1"), [sent]),
        (Filter(key="nobody's"), []),
        (Filter(user="ann"), [sent]),
        (Filter(address="ANN@example.com"), both),
        (Filter(address="ann@example.com", state=State.SCHEDULED), [pending]),
        (Filter(kind="digest"), [sent]),
        (Filter(kind="digest", outcome=Outcome.SENT), [sent]),
        (Filter(outcome=Outcome.UNDELIVERABLE), []),
        (Filter(kind="welcome", route="default"), [pending]),
        (Filter(route="marketing"), []),
        (Filter(since=soon, kind="welcome"), [pending]),
        (Filter(until=now + timedelta(seconds=5), user="bob"), [sent]),
        (Filter(channel="message"), []),
    ):
        assert [each.id for each in all_pages(harness, wanted, 1)] == ids, wanted
    [found] = operations.find_items(harness.database, Filter(user="bob")).items
    assert (found.recipients, found.users, dict(found.outcomes)) == (2, ("ann", "bob"), {"sent": 2})


def test_messages_are_in_the_list_too(harness: Harness) -> None:
    harness.query("SELECT duepost.set_endpoint('team', 'slack', 'https://hooks.example.com/T')")
    [(message,)] = harness.query(
        "SELECT duepost.schedule_message('news', 'team', '{\"text\": \"Hello\"}', now() + interval '1 h', ARRAY['ann'])"
    )
    [found] = operations.find_items(harness.database, Filter(route="endpoint:team")).items
    assert (found.id, found.channel, found.endpoint, found.users) == (message, "message", "team", ("ann",))
    told = operations.item(harness.database, int(str(message)))
    assert told is not None
    assert told.content is not None
    assert told.content.payload == {"text": "Hello"}


def test_an_items_attempts_and_endings_are_told_with_each_reply(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"), when=lambda line: "bob@" in line)
    harness.recipient("ann", "ann@example.com")
    harness.recipient("bob", "bob@example.com")
    email = harness.schedule(users=["ann", "bob"])
    before = operations.item(harness.database, email)
    assert before is not None
    assert before.content is not None
    assert before.content.subject == "Hello"
    assert [each.user_id for each in before.users] == ["ann", "bob"]
    harness.deliver()
    after = operations.item(harness.database, email)
    assert after is not None
    assert after.content is None, "what was sent is kept by nobody"
    assert {(each.user_id, each.outcome) for each in after.endings} == {("ann", "sent"), ("bob", "undeliverable")}
    assert {each.verdict for each in after.tries} == {"sent", "undeliverable"}
    assert "no such user" in str(after.found.words)
    assert operations.item(harness.database, 999) is None


def test_a_person_is_found_by_address_user_or_key_with_all_that_is_planned_and_past(harness: Harness) -> None:
    harness.recipient("ann", "Ann@Example.com", "Ann")
    sent = harness.schedule(users=["ann"])
    harness.deliver()
    planned = harness.schedule(users=["ann"], key="k1", scheduled_at=datetime.now(UTC) + timedelta(days=1))
    to_address = harness.schedule(address="ann@example.com", scheduled_at=datetime.now(UTC) + timedelta(days=2))
    for found in (
        operations.person(harness.database, user="ann"),
        operations.person(harness.database, address="ann@EXAMPLE.com"),
        operations.person(harness.database, key="k1"),
    ):
        assert [each.id for each in found.planned] == [planned, to_address]
        assert [each.id for each in found.past] == [sent]
        assert [each.name for each in found.recipients] == ["Ann"]
        assert not found.is_view_unread
    nobody = operations.person(harness.database, user="nobody")
    assert (nobody.planned, nobody.past) == ((), ())


def test_a_view_of_users_that_fails_hides_nobodys_emails(harness: Harness) -> None:
    sent = harness.schedule(address="ann@example.com")
    harness.deliver()
    harness.query("DROP TABLE duepost.recipient")
    found = operations.person(harness.database, address="ann@example.com")
    assert [each.id for each in found.past] == [sent]
    assert found.is_view_unread


def test_failures_are_grouped_by_cause(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"), when=lambda line: "<a" in line)
    relay.on(Phase.RCPT, reply("451 4.7.1 try later"), when=lambda line: "slow@" in line)
    for i in range(3):
        harness.schedule(address=f"a{i}@example.com")
    slow = harness.schedule(address="slow@example.com")
    harness.deliver()
    first, second = operations.failures(harness.database)
    assert (first.state, first.items, first.kind) == ("undeliverable", 3, "welcome")
    assert "no such user" in first.words
    assert (second.state, second.items, second.example_id) == ("retrying", 1, slow)
    assert [each.id for each in operations.find_items(harness.database, second.filter).items] == [slow]


def test_a_count_beyond_ten_thousand_says_that_it_is_an_estimate(harness: Harness) -> None:
    for number, expected in ((10_000, "10,000"), (1, "about ")):
        harness.query(
            "INSERT INTO duepost.item (id, kind, scheduled_at, due_at)"
            " SELECT nextval('duepost.scheduled_email_id_seq'), 'k', now(), now() FROM generate_series(1, %(n)s)",
            n=number,
        )
        assert str(operations.count_pending(harness.database)).startswith(expected)
    assert operations.count_pending(harness.database, Filter(kind="k")).is_estimate
    assert str(operations.count_pending(harness.database, Filter(kind="other"))) == "0"


def test_after_an_outage_lines_are_worked_off_in_order_and_what_is_too_late_is_named(harness: Harness) -> None:
    harness.query(
        "INSERT INTO duepost.kind (kind, priority) VALUES ('digest', 'bulk'), ('reset', 'urgent');"
        " INSERT INTO duepost.kind (kind, late_after, catch_up) VALUES ('alarm', '1 h', 'expire')"
    )
    for kind, number in (("digest", 4), ("reset", 1), ("alarm", 2), ("news", 7)):
        for _ in range(number):
            harness.schedule(kind=kind)
    soon = datetime.now(UTC) + timedelta(hours=3)
    harness.schedule(kind="news", scheduled_at=soon)
    harness.schedule(kind="news", expires_at=datetime.now(UTC) + timedelta(hours=1))
    found = operations.after_outage(harness.database, 2 * 3600.0, rate=1.0)
    assert {(each.priority.word, each.kind, each.items, each.too_late) for each in found.waiting} == {
        ("urgent", "reset", 1, 0), ("normal", "alarm", 0, 2), ("normal", "news", 7, 1), ("bulk", "digest", 4, 0),
    }  # fmt: skip
    # Of eight that leave while both wait, one is bulk.
    assert {line.word: round(after) for line, after in found.done_after.items()} == {
        "urgent": 1,
        "normal": 9,
        "bulk": 12,
    }
    assert operations.after_outage(harness.database, 0.0).rate is None
    harness.deliver()
    assert operations.after_outage(harness.database, 0.0).rate == pytest.approx(15 / 60)


def test_the_forecast_counts_the_next_day_by_hour_and_kind(harness: Harness) -> None:
    moment = datetime.now(UTC).replace(minute=5, second=0, microsecond=0) + timedelta(hours=3)
    harness.schedule(scheduled_at=moment)
    harness.schedule(scheduled_at=moment + timedelta(minutes=1))
    harness.schedule(scheduled_at=moment + timedelta(days=3))
    [only] = operations.forecast(harness.database)
    assert (only.hour, only.kind, only.items) == (moment.replace(minute=0), "welcome", 2)


@pytest.mark.parametrize("text", ["", "due", "due~x~1", "due~2026-01-01T00:00~1", "nowhere~~1", "due~~-1"])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Place.parse(text)


def test_a_viewer_reads_all_of_it_and_writes_nothing(harness: Harness) -> None:
    harness.schedule(users=["ann"])
    with psycopg2.connect(harness.database.url) as viewer, viewer.cursor() as cursor:
        cursor.execute("SET ROLE duepost_viewer")
        for table in ("item", "email", "delivery", "attempt", "suppression", "operator_action", "control", "kind"):
            cursor.execute(f"SELECT count(*) FROM duepost.{table}")
        cursor.execute(
            "SELECT c.relname FROM pg_class AS c WHERE c.relnamespace IN"
            " ('duepost'::regnamespace, 'dramatiq'::regnamespace) AND c.relkind IN ('r', 'p', 'v')"
            " AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')"
        )
        assert cursor.fetchall() == []
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("SELECT * FROM duepost.endpoint")

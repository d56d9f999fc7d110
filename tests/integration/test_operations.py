"""What operators do: to one, several or all that fit, told with reasons, one row of the journal for each action."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg2
import pytest

from actors.delivery.due_line import DueLine
from actors.ruling import Phase
from duepost import operations
from duepost.operations import Doing, Filter, Order, State
from models import emails
from models import operations as orders
from tests.app_harness import Harness
from tests.postgres import Connection
from tests.relays import ScriptedRelay, reply

ORDER = Order("ann", "command", "because")
LATER = datetime.now(UTC) + timedelta(days=1)


@pytest.fixture
def other(harness: Harness) -> Iterator[Connection]:
    """Somebody else's session."""
    with closing(psycopg2.connect(harness.database.url)) as connection:
        yield connection


def insert(harness: Harness, number: int, kind: str = "digest") -> list[int]:
    """Emails that have failed once, in one statement."""
    rows = harness.query(
        "SELECT duepost.schedule_email(kind => %(kind)s, address => 'a' || i || '@example.com', subject => 's',"
        " body_text => 'b', scheduled_at => now() + interval '1 h') FROM generate_series(1, %(number)s) AS i",
        kind=kind,
        number=number,
    )
    harness.query(
        "UPDATE duepost.item SET last_error = 'rcpt: 451 later', attempts = 1 WHERE kind = %(kind)s", kind=kind
    )
    return [int(str(row[0])) for row in rows]


def test_of_300_that_fit_20_finish_and_5_arrive_meanwhile(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = insert(harness, 300)
    seen = operations.preview(harness.database, Doing.CLEAR, Filter(kind="digest"))
    assert str(seen.number) == "300"
    act = orders.act
    arrived: list[int] = []

    def meanwhile(*arguments: object) -> dict[int, str]:
        if not arrived:
            harness.query(
                "SELECT duepost.clear_scheduled_email(id) FROM unnest(%(ids)s::bigint[]) AS id", ids=ids[-20:]
            )
            arrived.extend(insert(harness, 5))
        return act(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(orders, "act", meanwhile)
    report = operations.act(harness.database, Doing.CLEAR, Filter(kind="digest"), ORDER, seen=seen)
    assert (report.done, dict(report.skipped)) == (280, {"finished": 20})
    assert report.examples == {"finished": tuple(ids[-20:-15])}
    left = operations.find_items(harness.database, Filter(kind="digest", state=State.SCHEDULED)).items
    assert [each.id for each in left] == arrived
    [entry] = operations.journal(harness.database)
    assert (entry.action, entry.by, entry.via, entry.reason) == ("clear", "ann", "command", "because")
    assert (entry.done, dict(entry.skipped), entry.asked["kind"]) == (280, {"finished": 20}, "digest")
    assert entry.ended_at is not None


def test_what_fitted_when_it_was_shown_and_fits_no_more_is_counted(harness: Harness) -> None:
    ids = insert(harness, 10)
    seen = operations.preview(harness.database, Doing.CLEAR, Filter(kind="digest"))
    harness.query("SELECT duepost.clear_scheduled_email(%(id)s)", id=ids[0])
    insert(harness, 2)
    report = operations.act(harness.database, Doing.CLEAR, Filter(kind="digest"), ORDER, seen=seen)
    assert (report.done, dict(report.skipped)) == (9, {"changed_since": 1})


def test_an_order_that_is_sent_twice_is_carried_out_once(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("451 4.3.0 later"))
    email = harness.schedule()
    harness.deliver()
    order = Order("ann", "console", token="form-1")
    first = operations.act(harness.database, Doing.RETRY, Filter(ids=(email,)), order)
    harness.deliver()
    again = operations.act(harness.database, Doing.RETRY, Filter(ids=(email,)), order)
    harness.deliver()
    assert (first.done, first.is_repeat, again.done, again.is_repeat) == (1, False, 1, True)
    assert len(harness.attempts(email)) == 2
    assert len(operations.journal(harness.database)) == 1


def test_of_two_who_saw_the_same_only_the_first_ones_retry_makes_an_attempt(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.RCPT, reply("451 4.3.0 later"))
    email = harness.schedule()
    harness.deliver()
    seen = operations.preview(harness.database, Doing.RETRY, Filter(ids=(email,)))
    operations.act(harness.database, Doing.RETRY, Filter(ids=(email,)), ORDER, seen=seen)
    harness.deliver()
    second = operations.act(harness.database, Doing.RETRY, Filter(ids=(email,)), ORDER, seen=seen)
    harness.deliver()
    assert dict(second.skipped) == {"tried_since": 1}
    assert len(harness.attempts(email)) == 2


def test_each_action_says_why_it_left_an_item_alone(harness: Harness, other: Connection) -> None:
    held, scheduled, queued, done = (harness.schedule() for _ in range(4))
    harness.query("SELECT duepost.clear_scheduled_email(%(id)s)", id=done)
    harness.query("UPDATE duepost.item SET is_held = true WHERE id = %(id)s", id=held)
    harness.query("UPDATE duepost.item SET due_at = now() + interval '1 h' WHERE id = %(id)s", id=scheduled)
    harness.enqueue()
    ids = (held, scheduled, queued, done, 999)

    def acted(doing: Doing) -> dict[int, str]:
        action_id, _ = orders.begin(harness.database, doing, ORDER, {})
        with other.cursor() as cursor:
            cursor.execute(orders.SQL["act"], {"action_id": action_id, "ids": list(ids)})
            found = {int(row[0]): str(row[1]) for row in cursor.fetchall()}
        other.rollback()
        return found

    for doing, receipts in (
        (Doing.RETRY, ("unknown", "done", "queued", "finished", "not_found")),
        (Doing.RESOLVE_SENT, ("done", "scheduled", "queued", "finished", "not_found")),
        (Doing.RESOLVE_RESEND, ("done", "scheduled", "queued", "finished", "not_found")),
        (Doing.RESOLVE_DROP, ("done", "scheduled", "queued", "finished", "not_found")),
        (Doing.CLEAR, ("unknown", "done", "done", "finished", "not_found")),
        (Doing.REOPEN, ("not_undeliverable",) * 5),
    ):
        assert tuple(acted(doing)[each] for each in ids) == receipts, doing


def test_one_item_that_is_refused_keeps_no_other_from_being_moved(harness: Harness) -> None:
    soon = harness.schedule(scheduled_at=LATER, expires_at=LATER + timedelta(hours=1))
    free = harness.schedule(scheduled_at=LATER)
    report = operations.act(
        harness.database, Doing.RESCHEDULE, Filter(ids=(soon, free)), ORDER, at=LATER + timedelta(days=9)
    )
    assert (report.done_ids, report.examples) == ((free,), {"refused": (soon,)})


def test_an_item_that_somebody_holds_is_left_and_named(harness: Harness, other: Connection) -> None:
    first, second = harness.schedule(), harness.schedule()
    with other.cursor() as cursor:
        cursor.execute("SELECT FROM duepost.item WHERE id = %s FOR UPDATE", (first,))
        report = operations.act(harness.database, Doing.CLEAR, Filter(ids=(first, second)), ORDER)
    other.rollback()
    assert (report.done_ids, report.examples) == ((second,), {"locked": (first,)})


def test_what_was_undeliverable_is_reopened_by_route_and_words(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.6.0 content denied"), times=2)
    emails = [harness.schedule(address=f"{name}@example.com") for name in ("ann", "bob")]
    harness.deliver()
    for wanted in (Filter(route="marketing"), Filter(reply="no such user"), Filter(address="eve@example.com")):
        assert operations.preview(harness.database, Doing.REOPEN, wanted).number.number == 0
    report = operations.act(harness.database, Doing.REOPEN, Filter(reply="Content Denied", route="default"), ORDER)
    assert report.done_ids == tuple(emails)
    harness.deliver()
    assert [harness.ledger(each) for each in emails] == [["undeliverable", "sent"]] * 2


def test_a_paused_kind_stops_what_is_due_and_what_is_queued_and_no_other(harness: Harness) -> None:
    queued = harness.schedule(kind="digest")
    harness.enqueue()
    assert operations.pause(harness.database, ORDER, kind="digest")
    assert not operations.pause(harness.database, ORDER, kind="digest")
    due, other_kind = harness.schedule(kind="digest"), harness.schedule(kind="receipt")
    for _ in range(3):
        harness.deliver()
    assert [harness.ledger(each) for each in (queued, due, other_kind)] == [[], [], ["sent"]]
    assert harness.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]
    [stop] = operations.paused_kinds(harness.database)
    assert (stop.name, stop.by, stop.reason) == ("digest", "ann", "because")
    [first, _] = operations.find_items(harness.database, Filter(kind="digest", route="default")).items
    assert (first.is_kind_paused, first.route, first.state) == (True, "default", State.SCHEDULED)
    assert operations.resume(harness.database, ORDER, kind="digest")
    harness.deliver()
    assert [harness.ledger(each) for each in (queued, due)] == [["sent"]] * 2
    assert [each.action for each in operations.journal(harness.database)] == ["resume", "pause", "pause"]


def test_what_is_due_of_a_paused_kind_is_out_of_the_schedulers_way(harness: Harness) -> None:
    insert(harness, 50)
    harness.make_due()
    operations.pause(harness.database, ORDER, kind="digest")
    harness.enqueue()
    assert harness.query("SELECT DISTINCT route FROM duepost.item") == [("paused:default",)]
    with harness.database.transaction() as cursor:
        cursor.execute("SELECT duepost.clear_scheduled_emails_to('a1@example.com')")
    assert str(operations.count_pending(harness.database, Filter(kind="digest", route="default"))) == "49"


def test_messages_of_a_paused_kind_wait_too(harness: Harness) -> None:
    harness.query("SELECT duepost.set_endpoint('team', 'slack', 'https://127.0.0.1:1/T', allow_private => true)")
    harness.query("SELECT duepost.schedule_message('news', 'team', '{\"text\": \"Hello\"}')")
    operations.pause(harness.database, ORDER, kind="news")
    harness.deliver()
    harness.deliver()
    assert harness.query("SELECT attempts, route FROM duepost.item") == [(0, "paused:endpoint:team")]
    operations.resume(harness.database, ORDER, kind="news")
    assert harness.query("SELECT route FROM duepost.item") == [("endpoint:team",)]


def test_nothing_leaves_by_a_paused_route_not_even_what_is_queued(harness: Harness) -> None:
    queued = harness.schedule()
    harness.enqueue()
    assert operations.pause(harness.database, ORDER, route="default")
    due = harness.schedule()
    harness.deliver()
    assert [harness.ledger(each) for each in (queued, due)] == [[], []]
    assert [each.name for each in operations.stopped_routes(harness.database)] == ["default"]
    assert operations.resume(harness.database, ORDER, route="default")
    harness.deliver()
    assert [harness.ledger(each) for each in (queued, due)] == [["sent"]] * 2
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="no such route"):
        operations.pause(harness.database, ORDER, route="nowhere")


def test_an_operators_login_acts_through_functions_and_touches_no_table(harness: Harness) -> None:
    email = harness.schedule()
    with closing(psycopg2.connect(harness.database.url)) as operator, operator.cursor() as cursor:
        cursor.execute("SET ROLE duepost_operator")
        cursor.execute("SELECT id FROM duepost.begin_action('clear', 'eve', 'sql')")
        [(action,)] = cursor.fetchall()
        cursor.execute("SELECT receipt FROM duepost.act_on_items(%s, ARRAY[%s]::bigint[])", (action, email))
        assert cursor.fetchall() == [("done",)]
        for statement in (
            "UPDATE duepost.operator_action SET by_whom = 'mallory'",
            "DELETE FROM duepost.operator_action",
            "SELECT duepost.act_on_item(1, 'clear', '{}')",
            "SELECT duepost.resolve_item(1, 'sent')",
        ):
            cursor.execute("SAVEPOINT here")
            with pytest.raises(psycopg2.errors.InsufficientPrivilege):
                cursor.execute(statement)
            cursor.execute("ROLLBACK TO here")


@pytest.mark.parametrize(
    "arguments",
    ["'sing', 'ann', 'sql'", "'clear', ' ', 'sql'", "'clear', E'a\\nb', 'sql'", "'clear', 'ann', 'sql', NULL, '[]'"],
)
def test_an_action_without_a_name_or_of_no_kind_is_refused(harness: Harness, arguments: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue):
        harness.query(f"SELECT duepost.begin_action({arguments})")


def test_senders_that_claim_a_long_line_leave_a_paused_kind_where_it_is(harness: Harness) -> None:
    paused, others = insert(harness, 40), insert(harness, 3, kind="receipt")
    harness.make_due()
    harness.query("UPDATE duepost.item SET due_at = now() - interval '1 min' WHERE kind = 'digest'")
    operations.pause(harness.database, ORDER, kind="digest")
    worker = harness.worker_session.worker_id
    claimed, line = [], DueLine()
    for _ in range(4):
        claim = line.claim(32, lambda at, _: emails.claim_due(harness.database, 32, worker, "default", at))
        claimed += [each.id for each in claim.emails]
    assert claimed == others
    assert len(operations.find_items(harness.database, Filter(kind="digest", route="default")).items) == len(paused)


def test_what_was_parked_of_a_kind_whose_row_is_deleted_comes_back(harness: Harness) -> None:
    operations.pause(harness.database, ORDER, kind="digest")
    email = harness.schedule(kind="digest")
    harness.enqueue()
    assert harness.query("SELECT route FROM duepost.item") == [("paused:default",)]
    harness.query("DELETE FROM duepost.kind")
    harness.query("UPDATE duepost.control SET maintained_at = NULL")
    harness.app.scheduler.keep_house()
    harness.deliver()
    assert harness.ledger(email) == ["sent"]

"""A line of due emails is claimed by the senders themselves, without messages; the scheduler leaves it to them."""

from collections.abc import Iterator
from contextlib import ExitStack
from unittest.mock import Mock

import dramatiq
import pytest

from actors.delivery.attempt import EmailAttempt
from actors.delivery.due_line import DueLine
from actors.lookout import Lookout
from models import emails
from models.database.connections import Database, Row
from models.errors import DatabaseUnreachable
from models.words import Priority
from tests.app_harness import Harness
from tests.integration.test_costs import spent
from tests.waiting import wait_until

#: More than a process claims at once.
LINE = 150


def schedule_line(harness: Harness, count: int = LINE, kind: str = "digest") -> list[int]:
    """Emails that are due now, in one transaction; gives their ids in due order."""
    rows = harness.query(
        "SELECT duepost.schedule_email(kind => %(kind)s, address => 'a' || i || '@example.com', subject => 's',"
        " body_text => repeat('All work and no play. ', 90)) FROM generate_series(1, %(count)s) AS i",
        kind=kind,
        count=count,
    )
    return [int(str(email_id)) for (email_id,) in rows]


def claim(harness: Harness, size: int, **arguments: object) -> emails.DueClaim:
    """Claims what is due as a worker does; this process then knows nothing of it."""
    worker_id = harness.worker_session.worker_id
    return emails.claim_due(harness.database, size, worker_id, "default", **arguments)  # type: ignore[arg-type]


def ids(found: emails.DueClaim) -> list[int]:
    return [email.id for email in found.emails]


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of an exception that a test has raised."""
    return [each.getMessage() for each in caplog.records if each.exc_info and each.exc_info[0] is ZeroDivisionError]


def is_marked(harness: Harness) -> bool:
    return harness.query("SELECT duepost.claimed_directly_until('default', 'default') IS NOT NULL") == [(True,)]


def queued(harness: Harness) -> int:
    [(count,)] = harness.query("SELECT count(*) FROM dramatiq.queue WHERE key IS NOT NULL")
    return int(str(count))


@pytest.fixture
def worker(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[dramatiq.Worker]:
    """A worker in this process that looks for nothing by itself."""
    monkeypatch.setattr(Lookout, "start", lambda _: None)
    harness.worker_session.stop()
    worker = dramatiq.Worker(harness.app.broker, worker_threads=3, worker_timeout=50)
    worker.start()
    wait_until(lambda: harness.app.broker.is_reading("duepost_send"), what="the worker to read its queues")
    yield worker
    worker.stop()


def hand_over(harness: Harness, email_id: int) -> None:
    """One email by a message that is stored nowhere, as the lookout does it: a thread begins."""
    harness.app.lookout._hand_over("default", [(email_id, Priority.NORMAL)], 0.0)  # type: ignore[union-attr]


def wait_for(harness: Harness, count: int) -> None:
    """Waits until that many emails are in the ledger."""

    def finished() -> list[Row]:
        return harness.query("SELECT count(*) FROM duepost.delivery")

    wait_until(lambda: finished() == [(count,)], what=f"{count} emails to be finished", state=finished)


def test_the_oldest_are_claimed_first_and_the_next_claim_goes_on_from_there(harness: Harness) -> None:
    email_ids = schedule_line(harness, 5)
    first = claim(harness, 2)
    assert (ids(first), first.found) == (email_ids[:2], 2)
    assert first.places[1] is not None
    assert (first.places[1].id, first.places[0], first.places[2]) == (email_ids[1], None, None)
    second = claim(harness, 9, places=emails.Places(normal=first.places[1]))
    assert (ids(second), second.found) == (email_ids[2:], 3)
    assert {str(harness.row(email_id)["state"]) for email_id in email_ids} == {"sending"}
    assert claim(harness, 9) == emails.NOTHING_DUE


def test_what_is_before_the_place_is_found_by_going_back(harness: Harness) -> None:
    [late] = schedule_line(harness, 1)
    harness.query("UPDATE duepost.item SET due_at = due_at - interval '0.5 s'")
    [now] = harness.query("SELECT now()::text")
    places = emails.Places(normal=emails.Place(str(now[0]), 0))
    assert ids(claim(harness, 1, places=places)) == []
    assert ids(claim(harness, 1, places=places, overlap=1.0)) == [late]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE duepost.item SET due_at = now() + interval '1 min'",
        "UPDATE duepost.item SET is_held = true",
        "UPDATE duepost.item SET route = 'other'",
        "UPDATE duepost.control SET paused = true, paused_at = now()",
        "UPDATE duepost.route SET circuit_open = true, probe_at = now(), circuit_opened_at = now()",
        "UPDATE duepost.route SET paused_until = now() + interval '3 s', pause = 3",
    ],
    ids=["later", "held", "another route", "paused", "circuit open", "route slowed"],
)
def test_nothing_is_claimed_that_is_not_to_be_sent_now(harness: Harness, change: str) -> None:
    schedule_line(harness, 2)
    harness.query(change)
    assert claim(harness, 2).emails == []
    assert harness.query("SELECT count(*) FROM duepost.in_hand") == [(0,)]


def test_what_is_enqueued_is_left_to_its_message(harness: Harness) -> None:
    schedule_line(harness, 2)
    harness.enqueue()
    assert claim(harness, 2).emails == []


def test_what_is_past_its_time_goes_to_the_ledger(harness: Harness) -> None:
    harness.query("INSERT INTO duepost.kind (kind, catch_up, late_after) VALUES ('chat', 'expire', interval '1 min')")
    expired, [late], [good] = schedule_line(harness, 1), schedule_line(harness, 1, "chat"), schedule_line(harness, 1)
    harness.query(
        "UPDATE duepost.item SET scheduled_at = now() - interval '2 h', due_at = now() - interval '1 h',"
        " expires_at = CASE WHEN kind = 'digest' THEN now() - interval '1 min' END WHERE id <= %(late)s",
        late=late,
    )
    found = claim(harness, 3)
    assert (ids(found), found.found) == ([good], 3)
    assert (harness.ledger(expired[0]), harness.ledger(late)) == (["expired"], ["expired"])


def test_two_that_claim_at_once_get_different_ones_and_neither_waits(harness: Harness) -> None:
    email_ids = schedule_line(harness, 4)
    with harness.application.transaction() as cursor:
        other = (
            "SELECT c.id FROM (VALUES (timestamptz '-infinity')) AS p (g),"
            " duepost.claim_due_emails_v2('default', 2, 7, ARRAY[g, g, g], '{0,0,0}') AS c WHERE c.id IS NOT NULL"
        )
        cursor.execute(other)
        others = [row[0] for row in cursor.fetchall()]
        assert ids(claim(harness, 2)) == email_ids[2:]
    assert others == email_ids[:2]


def test_a_row_that_a_clear_holds_is_passed_over_and_what_is_cleared_is_not_sent(harness: Harness) -> None:
    cleared, other = schedule_line(harness, 2)
    with harness.application.transaction() as cursor:
        cursor.execute("SELECT duepost.clear_scheduled_email(%(id)s)", {"id": cleared})
        assert cursor.fetchone() == ("cleared",)
        assert ids(claim(harness, 2)) == [other]
    assert harness.ledger(cleared) == ["cleared"]


def test_while_there_is_more_than_was_asked_for_the_scheduler_leaves_the_line_to_the_senders(harness: Harness) -> None:
    schedule_line(harness, 4)
    claim(harness, 2)
    assert is_marked(harness)
    harness.enqueue()
    assert queued(harness) == 0
    seconds = emails.seconds_until_due(harness.database)
    assert seconds is not None
    assert 0 < seconds <= 3
    harness.query("UPDATE duepost.route SET claimed_directly_until = now()")
    harness.enqueue()
    assert queued(harness) == 2


def test_the_end_of_a_line_marks_nothing(harness: Harness) -> None:
    schedule_line(harness, 2)
    claim(harness, 3)
    assert not is_marked(harness)


def test_a_mark_from_before_the_clock_was_set_back_counts_as_past(harness: Harness) -> None:
    schedule_line(harness, 1)
    harness.query("UPDATE duepost.route SET claimed_directly_until = now() + interval '1 h'")
    assert not is_marked(harness)
    harness.enqueue()
    assert queued(harness) == 1


def test_what_falls_back_to_a_route_with_a_long_line_is_enqueued_all_the_same(harness: Harness) -> None:
    harness.query(
        "INSERT INTO duepost.route (name, fallback, circuit_open, probe_at) VALUES ('broken', 'default', true, now())"
    )
    [email_id] = schedule_line(harness, 1)
    harness.query("UPDATE duepost.item SET route = 'broken'")
    harness.query("UPDATE duepost.route SET claimed_directly_until = now() + interval '2 s' WHERE name = 'default'")
    harness.query("UPDATE duepost.route SET probe_at = now() + interval '1 s', probe_pause = 5 WHERE name = 'broken'")
    harness.enqueue()
    assert queued(harness) == 1
    assert harness.row(email_id)["state"] == "queued"


def test_a_claim_whose_answer_never_arrived_is_returned_as_never_sent_and_nothing_else(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness.app.broker, "is_reading", lambda _: True)
    work, claim_due = harness.app.routes["default"].email_work, emails.claim_due
    [forgotten] = schedule_line(harness, 1)
    [known] = work.claim_due(1)
    # What a conclusion failed for is not sent again: nobody knows what came of it.
    harness.app.in_flight.drop(known.attempt.item.claim)
    [lost] = schedule_line(harness, 1)

    def unheard(*given: object, **named: object) -> emails.DueClaim:
        claim_due(*given, **named)  # type: ignore[arg-type]
        raise DatabaseUnreachable("the network is cut")

    with monkeypatch.context() as patch:
        patch.setattr(emails, "claim_due", unheard)
        assert work.claim_due(5) == []
    [later] = schedule_line(harness, 1)
    [learnt] = work.claim_due(5)
    harness.app.in_flight.drop(learnt.attempt.item.claim)
    harness.app.rescuer.return_orphaned()
    states = {email_id: harness.row(email_id)["state"] for email_id in (forgotten, lost, later)}
    assert states == {forgotten: "sending", lost: "scheduled", later: "sending"}
    assert harness.row(lost)["attempts"] == 0


def test_a_long_line_is_delivered_without_one_message(harness: Harness, worker: dramatiq.Worker) -> None:
    first, *_ = schedule_line(harness)
    hand_over(harness, first)
    wait_for(harness, LINE)
    assert harness.query("SELECT outcome, count(*) FROM duepost.delivery GROUP BY 1") == [("sent", LINE)]
    assert harness.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]


def test_an_email_of_a_long_line_costs_no_more_than_it_should(harness: Harness, worker: dramatiq.Worker) -> None:
    first, *_ = schedule_line(harness)
    harness.query("CHECKPOINT")
    before, wal_before = spent(harness)
    hand_over(harness, first)
    wait_for(harness, LINE)
    after, wal_after = spent(harness)
    assert (after - before) / LINE <= 0.6
    assert (wal_after - wal_before) / LINE <= 2_900


def test_one_that_the_database_refuses_to_claim_is_taken_apart_and_all_others_are_sent(
    harness: Harness, worker: dramatiq.Worker
) -> None:
    first, *others = schedule_line(harness)
    poisoned = others[40]
    harness.query(
        "CREATE FUNCTION duepost.refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN RAISE EXCEPTION 'no'; END$$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON duepost.in_hand FOR EACH ROW"
        f" WHEN (NEW.item_id = {poisoned}) EXECUTE FUNCTION duepost.refuse()"
    )
    hand_over(harness, first)
    wait_for(harness, LINE - 1)
    assert harness.ledger(poisoned) == []


def test_an_exception_of_one_is_told_with_its_id_and_touches_no_other(
    harness: Harness, worker: dramatiq.Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = schedule_line(harness)
    advance = EmailAttempt.advance

    def fail_one(attempt: EmailAttempt) -> object:
        if attempt.item.id == others[-1]:
            raise ZeroDivisionError
        return advance(attempt)

    monkeypatch.setattr(EmailAttempt, "advance", fail_one)
    hand_over(harness, first)
    wait_for(harness, LINE - 1)
    assert harness.row(others[-1])["state"] == "sending"
    wait_until(lambda: failures(caplog), what="the failure to be told")
    assert [f"send_email({others[-1]})" in each for each in failures(caplog)] == [True]


def test_a_worker_that_stops_claims_nothing_more_and_ends(harness: Harness, worker: dramatiq.Worker) -> None:
    schedule_line(harness, 3)
    harness.app.broker.stop_reading(worker)
    assert not harness.app.routes["default"].email_work.may_claim_due


def test_beside_a_long_line_what_has_only_just_fallen_due_goes_ahead(
    harness: Harness, worker: dramatiq.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule_line(harness)
    harness.query("UPDATE duepost.item SET due_at = now() - interval '1 h', scheduled_at = now() - interval '1 h'")
    [urgent] = schedule_line(harness, 1, "password_reset")
    line = DueLine()
    line.is_long = True
    lookout = harness.app.lookout
    assert lookout is not None
    lookout._routes["default"] = lookout._routes["default"]._replace(due_line=line)
    hand_over = Mock(return_value=True)
    monkeypatch.setattr(harness.app.broker, "hand_over", hand_over)
    lookout.look()
    assert [each.args[0].args for each in hand_over.call_args_list] == [(urgent,)]


def test_of_many_that_fall_due_at_one_moment_no_kind_waits_for_another(
    harness: Harness, worker: dramatiq.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emails, "ON_TIME", 60.0)
    schedule_line(harness, 1_000)
    few = schedule_line(harness, 10, "reminder")
    schedule_line(harness, 1_000)
    harness.query("UPDATE duepost.item SET due_at = now()")
    line = DueLine()
    line.is_long = True
    lookout = harness.app.lookout
    assert lookout is not None
    lookout._routes["default"] = lookout._routes["default"]._replace(due_line=line, connections=30)
    hand_over = Mock(return_value=True)
    monkeypatch.setattr(harness.app.broker, "hand_over", hand_over)
    lookout.look()
    assert set(few) <= {call.args[0].args[0] for call in hand_over.call_args_list}


def test_a_claim_reads_no_more_of_a_line_that_was_just_filled_than_it_takes(harness: Harness) -> None:
    schedule_line(harness, 3_000)
    fetched = "SELECT coalesce(sum(idx_tup_fetch), 0)::integer FROM pg_stat_xact_user_tables WHERE relname = 'item'"
    with harness.application.transaction() as cursor:
        cursor.execute("SELECT count(*) FROM duepost.lock_due('default', 32, '-infinity', 0)")
        assert cursor.fetchone() == (32,)
        cursor.execute(fetched)
        [count] = cursor.fetchone() or (0,)
    assert isinstance(count, int)
    assert 32 <= count <= 96


def test_no_statement_of_it_waits_for_a_lock(harness: Harness) -> None:
    email_ids = schedule_line(harness, 3)
    with ExitStack() as stack:
        for statement in (
            "SELECT FROM duepost.item ORDER BY id LIMIT 1 FOR UPDATE",
            "SELECT FROM duepost.route WHERE name = 'default' FOR UPDATE",
        ):
            stack.enter_context(Database(harness.database.url).transaction()).execute(statement)
        assert ids(claim(harness, 2)) == email_ids[1:]

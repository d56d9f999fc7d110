"""What dead workers leave behind, and what a worker that comes back may not do."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from actors.delivery.decision import Decision
from actors.delivery.in_flight import LostClaim
from actors.liveness.process import has_ended, started_at_tick, this_process
from actors.ruling import Phase
from models import control, emails, workers
from models.database.connections import Database
from models.errors import DatabaseUnreachable
from models.workers import Process
from tests import operators
from tests.app_harness import Harness
from tests.postgres import Connection
from tests.relays import ScriptedRelay, close, reply
from tests.waiting import wait_until


def claim_as_a_worker_that_dies(harness: Harness, email_id: int) -> None:
    """Claims a row for another worker, whose session then ends."""
    other = Database(harness.database.url)
    connection = other.connect()
    worker_id = workers.register(connection, workers.Process("elsewhere", 1))
    assert len(emails.claim_unread(harness.application, [email_id], worker_id)) == 1
    connection.close()


def look_until_seen(harness: Harness, email_id: int) -> None:
    def seen() -> bool:
        workers.reap_dead(harness.database, grace=0)
        harness.app.rescuer.rescue()
        return not harness.query(
            "SELECT 1 FROM duepost.scheduled_email WHERE id = %(id)s AND state = 'sending'", id=email_id
        )

    wait_until(seen, what="the death to be seen")


def test_what_a_dead_worker_was_sending_is_unknown_and_resent_once(harness: Harness, relay: ScriptedRelay) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    claim_as_a_worker_that_dies(harness, email_id)
    look_until_seen(harness, email_id)
    row = harness.row(email_id)
    assert (row["state"], row["unknowns"], row["attempts"]) == ("scheduled", 1, 1)
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert [each["verdict"] for each in harness.attempts(email_id)] == ["unknown", "sent"]


def keep_from_ending(harness: Harness, email_id: int) -> None:
    """Somebody's trigger, or a damaged row: whatever ends this claim fails."""
    harness.query(
        "CREATE FUNCTION public.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF OLD.item_id = {email_id} THEN RAISE EXCEPTION 'no'; END IF; RETURN OLD; END $$"
    )
    harness.query("CREATE TRIGGER fail BEFORE DELETE ON duepost.in_hand FOR EACH ROW EXECUTE FUNCTION public.fail()")


def test_a_claim_that_cannot_be_ended_keeps_no_other_from_being_rescued(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [harness.schedule() for _ in range(3)]
    harness.enqueue()
    for email_id in ids:
        claim_as_a_worker_that_dies(harness, email_id)
    keep_from_ending(harness, ids[0])
    for email_id in ids[1:]:
        look_until_seen(harness, email_id)
    assert [harness.row(each)["unknowns"] for each in ids] == [0, 1, 1]
    assert f"Email {ids[0]} of a dead worker cannot be ended: RaiseException." in caplog.messages
    harness.query("DROP TRIGGER fail ON duepost.in_hand")
    look_until_seen(harness, ids[0])
    assert harness.row(ids[0])["unknowns"] == 1


def test_what_one_of_our_own_claims_fails_of_keeps_no_other_from_being_taken_back(
    harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [harness.schedule() for _ in range(3)]
    harness.enqueue()
    for email_id in ids:
        assert harness.claim(email_id) is not None
    keep_from_ending(harness, ids[0])
    harness.query("UPDATE duepost.in_hand SET claimed_at = now() - interval '10 min'")
    harness.app.rescuer.rescue_forgotten()
    assert [harness.row(each)["unknowns"] for each in ids] == [0, 1, 1]
    assert f"Email {ids[0]} of this worker cannot be ended: RaiseException." in caplog.messages
    assert harness.row(ids[1])["last_error"] == "the worker could not store what came of it"


def test_the_rescuers_thread_outlives_a_look_that_fails(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def fail() -> None:
        looks.append(1)
        raise ValueError("whatever")

    monkeypatch.setattr(harness.app.rescuer, "return_orphaned", fail)
    harness.app.rescuer.start()
    wait_until(lambda: len(looks) > 1, what="another look")
    harness.app.rescuer.stop()


def test_the_long_pass_of_a_dead_worker_is_in_nobodys_way(harness: Harness) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    claim_as_a_worker_that_dies(harness, email_id)
    assert control.begin_long_pass(harness.database)
    assert not control.begin_long_pass(harness.database)
    look_until_seen(harness, email_id)
    assert control.begin_long_pass(harness.database)


def test_a_clock_that_goes_back_does_not_keep_a_dead_worker_alive(harness: Harness) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    claim_as_a_worker_that_dies(harness, email_id)
    wait_until(lambda: workers.reap_dead(harness.database, grace=3600) == [] and missing(harness))
    harness.query("UPDATE duepost.worker SET missing_since = now() + interval '1 h' WHERE missing_since IS NOT NULL")
    look_until_seen(harness, email_id)
    assert harness.row(email_id)["unknowns"] == 1


@pytest.fixture
def child() -> Iterator[Process]:
    """A process of this machine, which lives."""
    with subprocess.Popen(["sleep", "600"]) as process:
        tick = started_at_tick(process.pid)
        yield this_process()._replace(pid=process.pid, started_at_tick=tick)
        process.kill()


def lose_session(harness: Harness, process: Process) -> int:
    """A worker whose session has ended with the server, so that the long grace is due to it."""
    connection = Database(harness.database.url).connect()
    worker_id = workers.register(connection, process)
    connection.close()
    wait_until(lambda: not harness.query("SELECT FROM pg_locks WHERE objid = %(id)s", id=worker_id))
    harness.query(
        "UPDATE duepost.worker SET server_started_at = server_started_at - interval '1 h' WHERE id = %(id)s",
        id=worker_id,
    )
    return worker_id


def test_a_dead_process_of_this_machine_is_gone_at_once_even_after_a_restart(harness: Harness, child: Process) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    worker_id = lose_session(harness, child)
    assert workers.reap_dead(harness.database, has_ended) == [worker_id]


def test_a_process_id_that_was_used_again_is_not_the_process_that_had_it(harness: Harness, child: Process) -> None:
    assert child.started_at_tick is not None
    worker_id = lose_session(harness, child._replace(started_at_tick=child.started_at_tick - 1))
    assert workers.reap_dead(harness.database, has_ended) == [worker_id]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_process_that_lives_has_its_grace(harness: Harness, child: Process, is_stopped: bool) -> None:
    if is_stopped:
        os.kill(child.pid, signal.SIGSTOP)
    lose_session(harness, child)
    assert workers.reap_dead(harness.database, has_ended) == []


@pytest.mark.parametrize("machine", ["another machine", None])
def test_a_process_that_is_not_of_this_machine_has_its_grace(
    harness: Harness, child: Process, machine: str | None
) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    lose_session(harness, child._replace(machine=machine))
    assert workers.reap_dead(harness.database, has_ended) == []


def test_a_dead_process_keeps_what_is_its_own_while_its_session_lives(harness: Harness, child: Process) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    connection = Database(harness.database.url).connect()
    workers.register(connection, child)
    assert workers.reap_dead(harness.database, has_ended, grace=0) == []
    connection.close()


def missing(harness: Harness) -> bool:
    return bool(harness.query("SELECT id FROM duepost.worker WHERE missing_since IS NOT NULL"))


def test_what_a_dead_worker_was_sending_is_held_where_the_kind_says_so(harness: Harness) -> None:
    harness.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('invoice', 'hold')")
    email_id = harness.schedule(kind="invoice")
    harness.enqueue()
    claim_as_a_worker_that_dies(harness, email_id)
    look_until_seen(harness, email_id)
    assert harness.row(email_id)["state"] == "unknown"


def test_a_living_worker_keeps_what_it_holds_however_long(harness: Harness) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    assert harness.claim(email_id) is not None
    harness.query("UPDATE duepost.scheduled_email SET claimed_at = now() - interval '10 min'")
    for _ in range(3):
        harness.app.rescuer.rescue()
    assert harness.row(email_id)["state"] == "sending"


def test_a_claim_that_its_own_worker_has_forgotten_is_taken_back(harness: Harness) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    assert harness.claim(email_id) is not None
    harness.app.rescuer.rescue_forgotten()
    assert harness.row(email_id)["state"] == "sending", "it may be about to be worked on"
    harness.query("UPDATE duepost.scheduled_email SET claimed_at = now() - interval '10 min'")
    harness.app.rescuer.rescue_forgotten()
    assert harness.row(email_id)["unknowns"] == 1


def claim_without_hearing_of_it(harness: Harness, email_id: int) -> None:
    """The claim is carried out, and its answer never arrives."""
    carried_out = emails.claim_unread

    def unheard(*given: object) -> None:
        carried_out(*given)  # type: ignore[arg-type]
        raise DatabaseUnreachable("the network is cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emails, "claim_unread", unheard)
        with pytest.raises(DatabaseUnreachable):
            harness.app.routes["default"].email_work._claim([email_id], harness.worker_session.worker_id)


def test_what_was_claimed_in_an_answer_that_never_arrived_is_returned_at_once_as_never_sent(
    harness: Harness,
) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    claim_without_hearing_of_it(harness, email_id)
    assert harness.row(email_id)["state"] == "sending"
    harness.app.rescuer.return_orphaned()
    row = harness.row(email_id)
    assert (row["state"], row["attempts"], row["unknowns"]) == ("scheduled", 0, 0)
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_a_row_that_somebody_holds_keeps_no_other_from_being_returned(harness: Harness) -> None:
    held, free = harness.schedule(), harness.schedule()
    harness.enqueue()
    for email_id in (held, free):
        claim_without_hearing_of_it(harness, email_id)
    with harness.application.transaction() as cursor:
        cursor.execute("SELECT FROM duepost.scheduled_email WHERE id = %(id)s FOR UPDATE", {"id": held})
        harness.app.rescuer.return_orphaned()
        cursor.execute("SELECT state FROM duepost.scheduled_email WHERE id = %(id)s", {"id": free})
        assert cursor.fetchone() == ("scheduled",)
    harness.app.rescuer.return_orphaned()
    assert harness.row(held)["state"] == "scheduled"


def test_what_is_being_worked_on_is_not_returned_although_an_earlier_claim_of_it_was_in_doubt(
    harness: Harness,
) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    claim_without_hearing_of_it(harness, email_id)
    harness.app.rescuer.return_orphaned()
    harness.enqueue()
    [email] = harness.app.routes["default"].email_work._claim([email_id], harness.worker_session.worker_id)
    harness.app.rescuer.return_orphaned()
    assert harness.row(email_id)["state"] == "sending"
    harness.app.in_flight.drop(email.claim)


def test_a_worker_whose_claim_was_taken_over_concludes_nothing(harness: Harness) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    email = harness.claim(email_id)
    assert email is not None
    harness.app.rescuer.mark_lost(emails.Lost(email.id, email.claim, email.kind, 0, "default"))
    harness.query("UPDATE duepost.scheduled_email SET attempts = 0")
    with pytest.raises(LostClaim):
        harness.conclude(email, list(harness.deliveries(email)))
    assert harness.ledger(email_id) == []
    assert harness.row(email_id)["state"] == "scheduled"


def test_a_commit_whose_answer_was_lost_is_not_concluded_twice(harness: Harness) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    email = harness.claim(email_id)
    assert email is not None
    judged = list(harness.deliveries(email))
    harness.conclude(email, judged)
    harness.conclude(email, judged)
    assert harness.ledger(email_id) == ["sent"]


def test_a_row_that_somebody_holds_keeps_nobody_else_from_concluding(
    harness: Harness, relay: ScriptedRelay, connect: Callable[[], Connection]
) -> None:
    relay.on(Phase.DOT, reply("250 2.0.0 taken"))
    ids = [harness.schedule(address=f"a{number}@example.com") for number in range(3)]
    harness.enqueue()
    claimed = [harness.claim(email_id) for email_id in ids]
    plain = [
        (Decision.of(email, [(each.recipient, each.ruling) for each in harness.deliveries(email)]), None)
        for email in claimed
        if email is not None
    ]
    application = connect()
    with application.cursor() as cursor:
        cursor.execute("SELECT duepost.clear_scheduled_emails_to('a1@example.com')")
        cursor.execute("SELECT FROM duepost.scheduled_email WHERE id = %s FOR UPDATE", (ids[1],))
        assert harness.app.routes["default"].conclusions.conclude_together(plain) == {ids[0], ids[2]}
        assert [harness.ledger(each) for each in ids] == [["sent"], [], ["sent"]]
    application.rollback()
    assert harness.app.routes["default"].conclusions.conclude_together(plain) == {ids[1]}
    assert [harness.ledger(each) for each in ids] == [["sent"]] * 3


def test_claim_numbers_only_grow(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("450 4.2.0 busy"))
    email_id = harness.schedule()
    for _ in range(3):
        harness.make_due()
        harness.deliver()
        harness.query("UPDATE duepost.scheduled_email SET attempts = 0")
    numbers = [int(str(each["claim"])) for each in harness.attempts(email_id)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 3


def test_a_copy_that_is_out_is_not_sent_again_when_the_worker_dies_between_copies(
    harness: Harness, relay: ScriptedRelay
) -> None:
    for user in ("ann", "bob", "cleo"):
        harness.recipient(user, f"{user}@example.com")
    email_id = harness.schedule(users=["ann", "bob", "cleo"])
    harness.enqueue()
    email = harness.claim(email_id)
    assert email is not None
    copies = harness.deliveries(email)
    next(copies)
    harness.app.rescuer.mark_lost(emails.Lost(email.id, email.claim, email.kind, 0, "default"))
    harness.deliver()
    assert [message.recipients[0] for message in relay.messages].count("ann@example.com") == 1
    assert harness.ledger(email_id) == ["sent", "sent", "sent"]


def test_resolve_sent_moves_an_unknown_email_to_the_ledger(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, close())
    email_id = harness.schedule()
    harness.deliver()
    harness.deliver()
    with harness.application.transaction() as cursor:
        assert operators.resolve_sent(cursor, email_id)
    assert harness.ledger(email_id) == ["sent"]


def test_resolve_resend_sends_it_again(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, close(), times=2)
    email_id = harness.schedule()
    harness.deliver()
    harness.deliver()
    with harness.application.transaction() as cursor:
        assert operators.resolve_resend(cursor, email_id)
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_a_resend_that_waits_can_be_called_off(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, close())
    email_id = harness.schedule()
    harness.deliver()
    assert harness.row(email_id)["state"] == "scheduled"
    with harness.application.transaction() as cursor:
        assert operators.resolve_sent(cursor, email_id)
    assert harness.ledger(email_id) == ["sent"]
    harness.deliver()
    assert relay.messages == []


def test_what_never_was_unknown_cannot_be_resolved(harness: Harness) -> None:
    email_id = harness.schedule()
    with harness.application.transaction() as cursor:
        assert not operators.resolve_sent(cursor, email_id)
        assert not operators.resolve_resend(cursor, email_id)


def claim_apart(harness: Harness, email_id: int) -> emails.ClaimedEmail:
    """As what a kind's guard has let through is claimed: beside all other claims."""

    def claim(hold: Callable[[int], None]) -> emails.ClaimedEmail:
        with harness.database.transaction() as cursor:
            email = emails.claim_apart(cursor, email_id, harness.worker_session.worker_id, "default")
            assert email is not None
            hold(email.claim)
        return email

    return harness.app.in_flight.claim_apart(harness.database, claim)


@pytest.mark.parametrize("is_over", [False, True], ids=["at work", "its conclusion failed"])
@pytest.mark.parametrize("moment", ["before", "between", "after"])
def test_what_is_claimed_apart_while_a_claim_is_in_doubt_is_not_returned_as_never_sent(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, moment: str, is_over: bool
) -> None:
    guarded, lost = harness.schedule(), harness.schedule()
    harness.enqueue()
    claimed_since = emails.claimed_since

    def claim() -> None:
        email = claim_apart(harness, guarded)
        if is_over:
            # Nobody knows what came of it: that is for the journal, or for a person.
            harness.app.in_flight.drop(email.claim)

    def racing(*given: object) -> list[emails.HeldItem]:
        # Known is already what is asked with, and not yet what is committed now.
        if moment == "between":
            claim()
        return claimed_since(*given)  # type: ignore[arg-type]

    if moment == "before":
        claim()
    claim_without_hearing_of_it(harness, lost)
    if moment == "after":
        claim()
    with monkeypatch.context() as patch:
        patch.setattr(emails, "claimed_since", racing)
        harness.app.rescuer.return_orphaned()
    assert harness.row(guarded)["state"] == "sending"
    assert harness.row(lost)["state"] == "scheduled"


def test_of_what_is_claimed_apart_the_one_without_an_answer_is_returned_and_no_other(harness: Harness) -> None:
    before, lost, after = harness.schedule(), harness.schedule(), harness.schedule()
    harness.enqueue()
    commit = harness.database.transaction

    def claim(hold: Callable[[int], None]) -> None:
        with commit() as cursor:
            email = emails.claim_apart(cursor, lost, harness.worker_session.worker_id, "default")
            assert email is not None
            hold(email.claim)
        raise DatabaseUnreachable("the network is cut")

    for email_id in (before, after):
        if email_id == after:
            with pytest.raises(DatabaseUnreachable):
                harness.app.in_flight.claim_apart(harness.database, claim)
        harness.app.in_flight.drop(claim_apart(harness, email_id).claim)
    harness.app.rescuer.return_orphaned()
    states = [harness.row(email_id)["state"] for email_id in (before, lost, after)]
    assert states == ["sending", "scheduled", "sending"]


def test_what_is_claimed_apart_is_not_read_by_a_claim_whose_answer_could_not_be(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded, unread = harness.schedule(), harness.schedule()
    harness.enqueue()
    claim_unread, claimed_since = emails.claim_unread, emails.claimed_since

    def unreadable(*given: object) -> None:
        claim_unread(*given)  # type: ignore[arg-type]
        raise ValueError("a value that no Python type holds")

    def racing(*given: object) -> list[emails.HeldItem]:
        claim_apart(harness, guarded)
        return claimed_since(*given)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(emails, "claim_unread", unreadable)
        patch.setattr(emails, "claimed_since", racing)
        claimed = harness.app.routes["default"].email_work._claim([unread], harness.worker_session.worker_id)
    assert [email.id for email in claimed] == [unread]


def test_what_a_claim_in_doubt_has_taken_is_not_read_by_a_later_one_that_did_not_ask_for_it(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost, unread = harness.schedule(), harness.schedule()
    harness.enqueue()
    claim_unread = emails.claim_unread
    work, worker_id = harness.app.routes["default"].email_work, harness.worker_session.worker_id

    def unreadable(*given: object) -> None:
        # The earlier one is carried out late.
        claim_unread(*given)  # type: ignore[arg-type]
        claim_unread(harness.database, [lost], *given[2:])  # type: ignore[arg-type]
        raise ValueError("a value that no Python type holds")

    def unreachable(*_: object) -> None:
        raise DatabaseUnreachable("the network is cut")

    with monkeypatch.context() as patch:
        patch.setattr(emails, "claim_unread", unreachable)
        with pytest.raises(DatabaseUnreachable):
            work._claim([lost], worker_id)
    with monkeypatch.context() as patch:
        patch.setattr(emails, "claim_unread", unreadable)
        assert [email.id for email in work._claim([unread], worker_id)] == [unread]
    harness.app.rescuer.return_orphaned()
    assert [harness.row(each)["state"] for each in (lost, unread)] == ["scheduled", "sending"]

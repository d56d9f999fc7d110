"""What dead workers leave behind, and what a worker that comes back may not do."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from actors import recovery, sender
from actors.conclusion import Conclusion
from actors.delivery import LostClaim
from actors.process import has_ended, started_at_tick, this_process
from actors.sender import claim, conclude, conclude_each, holdings
from actors.smtp.verdicts import Phase
from models import control, emails, workers
from models.database import Database
from models.errors import DatabaseUnreachable
from models.workers import Process
from tests.postgres import Connection
from tests.postroom import Postroom, deliveries
from tests.relays import ScriptedRelay, close, reply
from tests.waiting import wait_until


def claim_as_a_worker_that_dies(postroom: Postroom, email_id: int) -> None:
    """Claims a row for another worker, whose session then ends."""
    other = Database(postroom.database.url)
    connection = other.connect()
    worker_id = workers.enrol(connection, workers.Process("elsewhere", 1))
    assert len(emails.claim(postroom.application, [email_id], worker_id)) == 1
    connection.close()


def look_until_seen(postroom: Postroom, email_id: int) -> None:
    def seen() -> bool:
        workers.bury_the_dead(postroom.database, grace=0)
        recovery.take_back()
        return not postroom.query(
            "SELECT 1 FROM duepost.scheduled_email WHERE id = %(id)s AND state = 'sending'", id=email_id
        )

    wait_until(seen, what="the death to be seen")


def test_what_a_dead_worker_was_sending_is_unknown_and_resent_once(postroom: Postroom, relay: ScriptedRelay) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    claim_as_a_worker_that_dies(postroom, email_id)
    look_until_seen(postroom, email_id)
    row = postroom.row(email_id)
    assert (row["state"], row["unknowns"], row["attempts"]) == ("scheduled", 1, 1)
    postroom.deliver()
    assert postroom.ledger(email_id) == ["sent"]
    assert [each["verdict"] for each in postroom.attempts(email_id)] == ["unknown", "sent"]


def test_the_long_pass_of_a_dead_worker_is_in_nobodys_way(postroom: Postroom) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    claim_as_a_worker_that_dies(postroom, email_id)
    assert control.begin_long_pass(postroom.database)
    assert not control.begin_long_pass(postroom.database)
    look_until_seen(postroom, email_id)
    assert control.begin_long_pass(postroom.database)


def test_a_clock_that_goes_back_does_not_keep_a_dead_worker_alive(postroom: Postroom) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    claim_as_a_worker_that_dies(postroom, email_id)
    wait_until(lambda: workers.bury_the_dead(postroom.database, grace=3600) == [] and missing(postroom))
    postroom.query("UPDATE duepost.worker SET missing_since = now() + interval '1 h' WHERE missing_since IS NOT NULL")
    look_until_seen(postroom, email_id)
    assert postroom.row(email_id)["unknowns"] == 1


@pytest.fixture
def child() -> Iterator[Process]:
    """A process of this machine, which lives."""
    with subprocess.Popen(["sleep", "600"]) as process:
        tick = started_at_tick(process.pid)
        yield this_process()._replace(pid=process.pid, started_at_tick=tick)
        process.kill()


def lose_session(postroom: Postroom, process: Process) -> int:
    """A worker whose session has ended with the server, so that the long grace is due to it."""
    connection = Database(postroom.database.url).connect()
    worker_id = workers.enrol(connection, process)
    connection.close()
    wait_until(lambda: not postroom.query("SELECT FROM pg_locks WHERE objid = %(id)s", id=worker_id))
    postroom.query(
        "UPDATE duepost.worker SET server_started_at = server_started_at - interval '1 h' WHERE id = %(id)s",
        id=worker_id,
    )
    return worker_id


def test_a_dead_process_of_this_machine_is_gone_at_once_even_after_a_restart(
    postroom: Postroom, child: Process
) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    worker_id = lose_session(postroom, child)
    assert workers.bury_the_dead(postroom.database, has_ended) == [worker_id]


def test_a_process_id_that_was_given_anew_is_not_the_process_that_had_it(postroom: Postroom, child: Process) -> None:
    assert child.started_at_tick is not None
    worker_id = lose_session(postroom, child._replace(started_at_tick=child.started_at_tick - 1))
    assert workers.bury_the_dead(postroom.database, has_ended) == [worker_id]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_process_that_lives_has_its_grace(postroom: Postroom, child: Process, is_stopped: bool) -> None:
    if is_stopped:
        os.kill(child.pid, signal.SIGSTOP)
    lose_session(postroom, child)
    assert workers.bury_the_dead(postroom.database, has_ended) == []


@pytest.mark.parametrize("machine", ["another machine", None])
def test_a_process_that_is_not_of_this_machine_has_its_grace(
    postroom: Postroom, child: Process, machine: str | None
) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    lose_session(postroom, child._replace(machine=machine))
    assert workers.bury_the_dead(postroom.database, has_ended) == []


def test_a_dead_process_keeps_what_is_its_own_while_its_session_lives(postroom: Postroom, child: Process) -> None:
    os.kill(child.pid, signal.SIGKILL)
    os.waitpid(child.pid, 0)
    connection = Database(postroom.database.url).connect()
    workers.enrol(connection, child)
    assert workers.bury_the_dead(postroom.database, has_ended, grace=0) == []
    connection.close()


def missing(postroom: Postroom) -> bool:
    return bool(postroom.query("SELECT id FROM duepost.worker WHERE missing_since IS NOT NULL"))


def test_what_a_dead_worker_was_sending_is_held_where_the_kind_says_so(postroom: Postroom) -> None:
    postroom.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('invoice', 'hold')")
    email_id = postroom.schedule(kind="invoice")
    postroom.enqueue()
    claim_as_a_worker_that_dies(postroom, email_id)
    look_until_seen(postroom, email_id)
    assert postroom.row(email_id)["state"] == "unknown"


def test_a_living_worker_keeps_what_it_holds_however_long(postroom: Postroom) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    assert claim(email_id) is not None
    postroom.query("UPDATE duepost.scheduled_email SET claimed_at = now() - interval '10 min'")
    for _ in range(3):
        recovery.take_back()
    assert postroom.row(email_id)["state"] == "sending"


def test_a_claim_that_its_own_worker_has_forgotten_is_taken_back(postroom: Postroom) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    assert claim(email_id) is not None
    recovery.take_back_forgotten()
    assert postroom.row(email_id)["state"] == "sending", "it may be about to be worked on"
    postroom.query("UPDATE duepost.scheduled_email SET claimed_at = now() - interval '10 min'")
    recovery.take_back_forgotten()
    assert postroom.row(email_id)["unknowns"] == 1


def claim_without_hearing_of_it(postroom: Postroom, email_id: int) -> None:
    """The claim is carried out, and its answer never arrives."""
    carried_out = emails.claim_unread

    def unheard(*given: object) -> None:
        carried_out(*given)  # type: ignore[arg-type]
        raise DatabaseUnreachable("the network is cut")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emails, "claim_unread", unheard)
        with pytest.raises(DatabaseUnreachable):
            holdings.claim(postroom.database, [email_id], postroom.attendance.worker_id)


def test_what_was_claimed_in_an_answer_that_never_arrived_is_given_back_at_once_as_never_sent(
    postroom: Postroom,
) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    claim_without_hearing_of_it(postroom, email_id)
    assert postroom.row(email_id)["state"] == "sending"
    recovery.give_back_strays()
    row = postroom.row(email_id)
    assert (row["state"], row["attempts"], row["unknowns"]) == ("scheduled", 0, 0)
    postroom.deliver()
    assert postroom.ledger(email_id) == ["sent"]


def test_a_row_that_somebody_holds_keeps_no_other_stray(postroom: Postroom) -> None:
    held, free = postroom.schedule(), postroom.schedule()
    postroom.enqueue()
    for email_id in (held, free):
        claim_without_hearing_of_it(postroom, email_id)
    with postroom.application.transaction() as cursor:
        cursor.execute("SELECT FROM duepost.scheduled_email WHERE id = %(id)s FOR UPDATE", {"id": held})
        recovery.give_back_strays()
        cursor.execute("SELECT state FROM duepost.scheduled_email WHERE id = %(id)s", {"id": free})
        assert cursor.fetchone() == ("scheduled",)
    recovery.give_back_strays()
    assert postroom.row(held)["state"] == "scheduled"


def test_what_is_being_worked_on_is_not_given_back_although_an_earlier_claim_of_it_was_in_doubt(
    postroom: Postroom,
) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    claim_without_hearing_of_it(postroom, email_id)
    recovery.give_back_strays()
    postroom.enqueue()
    [email] = holdings.claim(postroom.database, [email_id], postroom.attendance.worker_id)
    recovery.give_back_strays()
    assert postroom.row(email_id)["state"] == "sending"
    holdings.drop(email.claim)


def test_a_worker_whose_claim_was_taken_over_concludes_nothing(postroom: Postroom) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    email = claim(email_id)
    assert email is not None
    sender.lost(emails.Lost(email.id, email.claim, email.kind))
    postroom.query("UPDATE duepost.scheduled_email SET attempts = 0")
    with pytest.raises(LostClaim):
        conclude(email, list(deliveries(email)))
    assert postroom.ledger(email_id) == []
    assert postroom.row(email_id)["state"] == "scheduled"


def test_a_commit_whose_answer_was_lost_is_not_concluded_twice(postroom: Postroom) -> None:
    email_id = postroom.schedule()
    postroom.enqueue()
    email = claim(email_id)
    assert email is not None
    judged = list(deliveries(email))
    conclude(email, judged)
    conclude(email, judged)
    assert postroom.ledger(email_id) == ["sent"]


def test_a_row_that_somebody_holds_keeps_nobody_else_from_concluding(
    postroom: Postroom, relay: ScriptedRelay, connect: Callable[[], Connection]
) -> None:
    relay.on(Phase.DOT, reply("250 2.0.0 taken"))
    ids = [postroom.schedule(address=f"a{number}@example.com") for number in range(3)]
    postroom.enqueue()
    claimed = [claim(email_id) for email_id in ids]
    plain = [
        (Conclusion.of(email, [(each.recipient, each.ruling) for each in deliveries(email)]), None)
        for email in claimed
        if email is not None
    ]
    application = connect()
    with application.cursor() as cursor:
        cursor.execute("SELECT duepost.clear_scheduled_emails_to('a1@example.com')")
        cursor.execute("SELECT FROM duepost.scheduled_email WHERE id = %s FOR UPDATE", (ids[1],))
        assert conclude_each(plain) == {ids[0], ids[2]}
        assert [postroom.ledger(each) for each in ids] == [["sent"], [], ["sent"]]
    application.rollback()
    assert conclude_each(plain) == {ids[1]}
    assert [postroom.ledger(each) for each in ids] == [["sent"]] * 3


def test_claim_numbers_only_grow(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("450 4.2.0 busy"))
    email_id = postroom.schedule()
    for _ in range(3):
        postroom.make_due()
        postroom.deliver()
        postroom.query("UPDATE duepost.scheduled_email SET attempts = 0")
    numbers = [int(str(each["claim"])) for each in postroom.attempts(email_id)]
    assert numbers == sorted(set(numbers))
    assert len(numbers) == 3


def test_a_copy_that_is_out_is_not_sent_again_when_the_worker_dies_between_copies(
    postroom: Postroom, relay: ScriptedRelay
) -> None:
    for user in ("ann", "bob", "cleo"):
        postroom.recipient(user, f"{user}@example.com")
    email_id = postroom.schedule(users=["ann", "bob", "cleo"])
    postroom.enqueue()
    email = claim(email_id)
    assert email is not None
    copies = deliveries(email)
    next(copies)
    sender.lost(emails.Lost(email.id, email.claim, email.kind))
    postroom.deliver()
    assert [message.recipients[0] for message in relay.messages].count("ann@example.com") == 1
    assert postroom.ledger(email_id) == ["sent", "sent", "sent"]


def test_resolve_sent_moves_an_unknown_email_to_the_ledger(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, close())
    email_id = postroom.schedule()
    postroom.deliver()
    postroom.deliver()
    with postroom.application.transaction() as cursor:
        assert emails.resolve_sent(cursor, email_id)
    assert postroom.ledger(email_id) == ["sent"]


def test_resolve_resend_sends_it_again(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, close(), times=2)
    email_id = postroom.schedule()
    postroom.deliver()
    postroom.deliver()
    with postroom.application.transaction() as cursor:
        assert emails.resolve_resend(cursor, email_id)
    postroom.deliver()
    assert postroom.ledger(email_id) == ["sent"]


def test_a_resend_that_waits_can_be_called_off(postroom: Postroom, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, close())
    email_id = postroom.schedule()
    postroom.deliver()
    assert postroom.row(email_id)["state"] == "scheduled"
    with postroom.application.transaction() as cursor:
        assert emails.resolve_sent(cursor, email_id)
    assert postroom.ledger(email_id) == ["sent"]
    postroom.deliver()
    assert relay.messages == []


def test_what_never_was_unknown_cannot_be_resolved(postroom: Postroom) -> None:
    email_id = postroom.schedule()
    with postroom.application.transaction() as cursor:
        assert not emails.resolve_sent(cursor, email_id)
        assert not emails.resolve_resend(cursor, email_id)

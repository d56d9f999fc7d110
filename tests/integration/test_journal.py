"""What a dead worker's journal names is concluded from there; the rest is unknown, as it is without a journal."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from actors.delivery.composer import EmailPayload
from actors.delivery.in_flight import LostClaim
from actors.delivery.item_work import Work, decision_on
from actors.delivery.job import OwnJob
from actors.delivery.journal import header
from actors.delivery.lanes import Blocking
from actors.ruling import Phase
from models import circuits
from models.database.connections import Database
from models.emails import ClaimedEmail
from tests.app_harness import Harness
from tests.postgres import PostgresServer
from tests.relays import ScriptedRelay, reply
from tests.smtp_client import ChannelClient


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state folder of all workers."""
    return tmp_path / "state"


@pytest.fixture
def harness(harness: Harness, state: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """With a journal."""
    monkeypatch.setenv("DUEPOST_STATE_DIR", str(state))
    harness.restart()
    return harness


@pytest.fixture
def another(harness: Harness) -> Iterator[Harness]:
    """One more worker, for the same database and folder."""
    another = Harness(harness.application.url, harness.templates)
    yield another
    another.close()


def take_replies(harness: Harness, email_id: int, copies: int = 1) -> Work[ClaimedEmail, EmailPayload]:
    """A worker claims an email, and takes the relay's replies to that many copies: all but the conclusion."""
    harness.enqueue()
    [work] = harness.app.routes["default"].email_work.claim([(email_id, OwnJob())])
    if work.is_unread:
        harness.app.routes["default"].email_work.read([work])
    client = ChannelClient(harness.app.routes["default"].channel)
    while copies and (step := harness.app.routes["default"].email_work.advance(work)) is not None:
        if isinstance(step, Blocking):
            step.work()
        else:
            harness.app.routes["default"].email_work.take(work, client.deliver(step))
            copies -= 1
    client.close()
    return work


def die(harness: Harness) -> None:
    """All workers so far are called gone."""
    harness.query("UPDATE duepost.worker SET gone_at = now(), missing_since = now() WHERE gone_at IS NULL")


def journal_of(state: Path) -> Path:
    """The only file there."""
    [path] = (state / "journal").iterdir()
    return path


def test_what_a_dead_worker_had_a_250_for_is_sent_and_never_sent_again(
    harness: Harness, another: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("250 2.0.0 queued as 4711"))
    email_id = harness.schedule()
    take_replies(harness, email_id)
    die(harness)
    another.app.rescuer.rescue()
    assert harness.ledger(email_id) == ["sent"]
    [row] = harness.query(
        "SELECT address, code, enhanced_code, reply, attempts, unknowns FROM duepost.delivery WHERE email_id = %(id)s",
        id=email_id,
    )
    assert row == ("ann@example.com", 250, "2.0.0", "2.0.0 queued as 4711", 1, 0)
    [attempt] = harness.attempts(email_id)
    assert (attempt["verdict"], attempt["phase"], attempt["code"]) == ("sent", "dot", 250)
    another.deliver()
    assert len(relay.messages) == 1


@pytest.mark.parametrize("is_own", [False, True], ids=["of a dead worker", "of its own worker"])
def test_what_was_taken_is_never_sent_again_because_that_could_not_be_stored(
    harness: Harness, another: Harness, relay: ScriptedRelay, is_own: bool
) -> None:
    relay.on(Phase.DOT, reply("250 2.0.0 taken"))
    harness.query(
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;"
        "CREATE TRIGGER refuse BEFORE INSERT ON duepost.delivery FOR EACH ROW EXECUTE FUNCTION public.refuse()"
    )
    email_id = harness.schedule()
    work = take_replies(harness, email_id)
    if is_own:
        harness.app.in_flight.drop(work.attempt.item.claim)
        harness.query("UPDATE duepost.in_hand SET claimed_at = now() - interval '10 min'")
    else:
        die(harness)
    rescue = harness.app.rescuer.rescue_forgotten if is_own else another.app.rescuer.rescue
    for _ in range(2):
        rescue()
    row = harness.row(email_id)
    assert (row["state"], row["unknowns"]) == ("sending", 0)
    harness.query("DROP TRIGGER refuse ON duepost.delivery")
    rescue()
    assert harness.ledger(email_id) == ["sent"]
    another.deliver()
    assert len(relay.messages) == 1


def test_its_broker_message_goes_with_it(harness: Harness, another: Harness) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    consumer = harness.app.broker.consume("duepost_send", prefetch=1, timeout=1)
    message = next(consumer)
    assert message is not None
    harness.app.broker.emit_before("process_message", message)
    take_replies(harness, email_id)
    die(harness)
    another.app.rescuer.rescue()
    assert harness.ledger(email_id) == ["sent"]
    assert harness.query("SELECT count(*) FROM dramatiq.queue WHERE queue_name = 'duepost_send'") == [(0,)]
    consumer.close()


def test_whom_a_relay_has_refused_is_undeliverable_and_kept(
    harness: Harness, another: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    email_id = harness.schedule()
    take_replies(harness, email_id)
    die(harness)
    another.app.rescuer.rescue()
    assert harness.ledger(email_id) == ["undeliverable"]
    assert harness.query("SELECT address FROM duepost.suppression") == [("ann@example.com",)]
    assert harness.query("SELECT id FROM duepost.undeliverable_email") == [(email_id,)]


def test_what_is_to_be_tried_later_is_due_later_and_no_unknown(
    harness: Harness, another: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("451 4.3.0 later"))
    email_id = harness.schedule()
    take_replies(harness, email_id)
    die(harness)
    another.app.rescuer.rescue()
    row = harness.row(email_id)
    assert (row["state"], row["unknowns"], row["attempts"]) == ("scheduled", 0, 1)
    assert harness.due_in(email_id) > 5
    assert "451" in str(row["last_error"])


def test_a_relay_that_has_refused_us_opens_the_circuit(
    harness: Harness, another: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.MAIL, reply("550 5.7.1 sender refused"))
    email_id = harness.schedule()
    take_replies(harness, email_id)
    die(harness)
    another.app.rescuer.rescue()
    assert harness.row(email_id)["state"] == "scheduled"
    assert harness.query("SELECT circuit_open FROM duepost.route") == [(True,)]
    assert circuits.close_circuit(harness.database, "default")


def test_of_several_users_those_who_have_their_copy_get_no_other(
    harness: Harness, another: Harness, relay: ScriptedRelay
) -> None:
    users = ["ann", "bob", "cem"]
    for user in users:
        harness.recipient(user, f"{user}@example.com")
    email_id = harness.schedule(users=users)
    # The first is noted before the second goes out; the second is in the journal alone; the third was never begun.
    take_replies(harness, email_id, copies=2)
    die(harness)
    another.app.rescuer.rescue()
    row = harness.row(email_id)
    assert (row["state"], row["unknowns"]) == ("scheduled", 1)
    another.deliver()
    assert harness.ledger(email_id) == ["sent", "sent", "sent"]
    assert sorted(message.recipients for message in relay.messages) == [(f"{user}@example.com",) for user in users]


def test_whom_the_database_has_taken_away_meanwhile_is_still_sent(
    harness: Harness, another: Harness, relay: ScriptedRelay
) -> None:
    harness.recipient("ann", "ann@example.com")
    email_id = harness.schedule(users=["ann"])
    take_replies(harness, email_id)
    harness.query("DELETE FROM duepost.recipient")
    die(harness)
    another.app.rescuer.rescue()
    assert harness.ledger(email_id) == ["sent"]
    assert len(relay.messages) == 1


def test_what_the_journal_does_not_name_is_unknown(harness: Harness, another: Harness, relay: ScriptedRelay) -> None:
    taken, not_taken = harness.schedule(), harness.schedule()
    take_replies(harness, taken)
    take_replies(harness, not_taken, copies=0)
    die(harness)
    another.app.rescuer.rescue()
    assert harness.ledger(taken) == ["sent"]
    row = harness.row(not_taken)
    assert (row["state"], row["unknowns"]) == ("scheduled", 1)
    another.deliver()
    assert len(relay.messages) == 2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def belong_to_another(path: Path) -> None:
    path.write_bytes(header("f" * 32, 1) + path.read_bytes().partition(b"\n")[2])


def be_empty(path: Path) -> None:
    path.write_bytes(b"")


def be_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [cut, damage, belong_to_another, be_empty, be_a_folder])
def test_a_journal_that_is_of_no_use_does_no_harm(
    harness: Harness, another: Harness, state: Path, spoil: Callable[[Path], None]
) -> None:
    email_id = harness.schedule()
    take_replies(harness, email_id)
    spoil(journal_of(state))
    die(harness)
    another.app.rescuer.rescue()
    row = harness.row(email_id)
    assert (row["state"], row["unknowns"]) == ("scheduled", 1)
    another.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_a_journal_that_names_a_claim_of_another_email_is_not_believed(harness: Harness, another: Harness) -> None:
    email_id, other = harness.schedule(), harness.schedule()
    work = take_replies(harness, email_id, copies=0)
    sent = take_replies(harness, other)
    harness.app.journal.append(
        other, work.attempt.item.claim, None, {each.recipient.user_id: each.ruling for each in sent.attempt.judged}
    )
    die(harness)
    another.app.rescuer.rescue()
    assert harness.ledger(other) == ["sent"]
    assert harness.row(email_id)["unknowns"] == 1


def test_where_no_journal_can_be_kept_all_is_as_without(
    harness: Harness, another: Harness, relay: ScriptedRelay, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state.write_text("no folder")
    email_id = harness.schedule()
    take_replies(harness, email_id)
    assert harness.query("SELECT count(*) FROM duepost.worker WHERE journal IS NOT NULL") == [(0,)]
    die(harness)
    another.app.rescuer.rescue()
    assert harness.row(email_id)["unknowns"] == 1
    another.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert len(relay.messages) == 2
    assert len([each for each in caplog.records if each.name.endswith("journal")]) == 2, "a line for each worker"


def test_another_machine_leaves_claims_to_the_machine_of_the_journal_and_not_for_ever(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    email_id = harness.schedule()
    take_replies(harness, email_id)
    die(harness)
    monkeypatch.setenv("DUEPOST_STATE_DIR", str(tmp_path / "of another machine"))
    elsewhere = Harness(harness.application.url, harness.templates)
    elsewhere.app.rescuer.rescue()
    assert harness.row(email_id)["state"] == "sending"
    harness.query("UPDATE duepost.worker SET gone_at = now() - interval '14 s' WHERE gone_at IS NOT NULL")
    elsewhere.app.rescuer.rescue()
    assert harness.row(email_id)["state"] == "sending"
    harness.query("UPDATE duepost.worker SET gone_at = now() - interval '16 s' WHERE gone_at IS NOT NULL")
    elsewhere.app.rescuer.rescue()
    assert harness.row(email_id)["unknowns"] == 1
    elsewhere.close()


def test_a_worker_without_a_journal_is_waited_for_by_nobody(harness: Harness, another: Harness) -> None:
    email_id = harness.schedule()
    take_replies(harness, email_id)
    harness.query("UPDATE duepost.worker SET journal = NULL")
    die(harness)
    another.app.rescuer.rescue()
    assert harness.row(email_id)["unknowns"] == 1


def test_rescuers_that_race_conclude_each_email_once(harness: Harness, another: Harness, relay: ScriptedRelay) -> None:
    ids = [harness.schedule() for _ in range(12)]
    for email_id in ids:
        take_replies(harness, email_id)
    die(harness)
    third = Harness(harness.application.url, harness.templates)
    together = threading.Barrier(2)

    def rescue(one: Harness) -> None:
        together.wait()
        one.app.rescuer.rescue()

    racers = [threading.Thread(target=rescue, args=(one,)) for one in (another, third)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [harness.ledger(email_id) for email_id in ids] == [["sent"]] * len(ids)
    assert [len(harness.attempts(email_id)) for email_id in ids] == [1] * len(ids)
    assert harness.query("SELECT count(*) FROM duepost.delivery WHERE unknowns > 0") == [(0,)]
    assert len(relay.messages) == len(ids)
    third.close()


def test_a_worker_that_comes_back_concludes_nothing_of_what_was_concluded_from_its_journal(
    harness: Harness, another: Harness
) -> None:
    email_id = harness.schedule()
    work = take_replies(harness, email_id)
    die(harness)
    another.app.rescuer.rescue()
    before = harness.query("SELECT to_jsonb(d) FROM duepost.delivery AS d")
    harness.app.routes["default"].conclusions.conclude(decision_on(work.attempt))
    assert harness.query("SELECT to_jsonb(d) FROM duepost.delivery AS d") == before
    assert len(harness.attempts(email_id)) == 1


def test_a_worker_whose_email_was_tried_again_since_loses_its_claim(
    harness: Harness, another: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("451 4.3.0 later"), times=1)
    email_id = harness.schedule()
    work = take_replies(harness, email_id)
    relay.forget()
    harness.query("UPDATE duepost.worker SET journal = NULL")
    die(harness)
    another.app.rescuer.rescue()
    with pytest.raises(LostClaim):
        harness.app.routes["default"].conclusions.conclude(decision_on(work.attempt))


def test_databases_that_share_a_folder_do_not_read_each_others_journals(
    harness: Harness, server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.fresh_database() as url:
        monkeypatch.setenv("DUEPOST_DATABASE_URL", url)
        other = Harness(url, harness.templates)
        # The same numbers in both databases: email 1, claim 1, worker 1 or 2.
        mine, theirs = harness.schedule(), other.schedule()
        take_replies(harness, mine)
        take_replies(other, theirs, copies=0)
        die(harness)
        die(other)
        other.restart()
        other.app.rescuer.rescue()
        assert other.row(theirs)["unknowns"] == 1
        other.app.rescuer.delete_journals()
        harness.app.rescuer.rescue()
        assert harness.ledger(mine) == ["sent"]
        other.close()


def test_a_conclusion_that_failed_for_good_is_made_from_this_processs_own_journal(
    harness: Harness, relay: ScriptedRelay
) -> None:
    email_id = harness.schedule()
    work = take_replies(harness, email_id)
    harness.app.routes["default"].email_work.fail(work, RuntimeError("the conclusion failed"))
    harness.query("UPDATE duepost.scheduled_email SET claimed_at = now() - interval '2 min'")
    harness.app.rescuer.rescue_forgotten()
    assert harness.ledger(email_id) == ["sent"]
    assert len(relay.messages) == 1


def test_a_journals_word_that_the_database_cannot_hold_makes_the_email_unknown(
    harness: Harness, another: Harness
) -> None:
    email_id = harness.schedule()
    take_replies(harness, email_id)
    harness.query("ALTER TABLE duepost.delivery ALTER COLUMN reply TYPE varchar(1)")
    die(harness)
    another.app.rescuer.rescue()
    assert harness.row(email_id)["unknowns"] == 1


def test_journals_of_the_dead_are_deleted_once_nothing_is_left_to_conclude(
    harness: Harness, another: Harness, state: Path
) -> None:
    take_replies(harness, harness.schedule())
    take_replies(another, harness.schedule(), copies=0)
    another.app.rescuer.delete_journals()
    assert len(list((state / "journal").iterdir())) == 2, "their workers live"
    die(harness)
    harness.app.rescuer.delete_journals()
    assert len(list((state / "journal").iterdir())) == 2, "their claims are not ended"
    harness.app.rescuer.rescue()
    another.restart()
    another.app.rescuer.delete_journals()
    assert list((state / "journal").iterdir()) == []


def test_an_answer_that_the_worker_itself_concludes_is_forgotten(harness: Harness, state: Path) -> None:
    email_id = harness.schedule()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert journal_of(state).stat().st_size > 0
    harness.app.journal.close()
    assert list((state / "journal").iterdir()) == []


def test_a_journal_holds_no_address_name_subject_or_body(harness: Harness, state: Path) -> None:
    harness.recipient("u-1", "secret-address@example.com", "Secret Name")
    email_id = harness.schedule(users=["u-1"], subject="Secret subject", body_text="Secret body")
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    content = journal_of(state).read_bytes().lower()
    assert b"u-1" in content
    assert b"secret" not in content


def test_a_role_of_workers_may_keep_a_journal(harness: Harness) -> None:
    harness.query("CREATE ROLE journal_keeper LOGIN IN ROLE duepost_worker")
    try:
        url = harness.application.url.replace("postgres@", "journal_keeper@", 1)
        keeper = Database(url)
        [(worker_id,)] = harness.query("SELECT max(id) FROM duepost.worker")
        keeper.execute("UPDATE duepost.worker SET journal = 'x' WHERE id = %(id)s", {"id": worker_id})
        keeper.close()
    finally:
        harness.query("DROP ROLE journal_keeper")

"""What is due now leaves now: workers look for themselves, without a tick, a pass, or a stored message."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest.mock import Mock

import dramatiq
import pytest

from actors.lookout import COUNT_INTERVAL, Lookout
from actors.queue.broker import PostgresBroker
from actors.ruling import Phase
from actors.tick import SCHEDULER, tick
from duepost.commands import trigger
from duepost.commands.trigger import Watch
from models import emails, messages, workers
from models.database.connections import Cursor, Database
from models.items import Kept
from tests.app_harness import Harness
from tests.relays import ScriptedRelay, hang
from tests.waiting import wait_until

#: Of the worker.
THREADS = 2


@dataclass
class Hand:
    """A worker of this process, whose lookout looks when a test says so."""

    harness: Harness
    worker: dramatiq.Worker
    #: By its own clock, which only `look` moves.
    seconds: float = 0.0
    lookout: Lookout = field(init=False)

    def __post_init__(self) -> None:
        app = self.harness.app
        self.lookout = Lookout(
            app.database,
            app.broker,
            [each.served for each in app.routes.values()],
            app.scheduler,
            app.messages.tidy,
            app.messages.return_places,
            clock=lambda: self.seconds,
        )

    def look(self) -> float:
        """Looks once, and moves the clock to the next look; gives the seconds until then."""
        pause = self.lookout.look()
        self.seconds += pause
        return pause

    def look_at_what_is_due_now(self) -> None:
        """The same, of what has not fallen due before this moment, however long the machine has taken until now."""
        self.harness.query("UPDATE duepost.item SET due_at = now()")
        self.look()

    def finish(self, count: int) -> None:
        """Waits until that many emails are in the ledger."""
        wait_until(lambda: len(self.ledger()) == count, what=f"{count} emails to be finished", state=self.ledger)

    def ledger(self) -> list[str]:
        return [str(outcome) for (outcome,) in self.harness.query("SELECT outcome FROM duepost.delivery")]

    def wait_until_idle(self) -> None:
        """Waits until nothing is in hand."""
        consumer = self.harness.app.broker.consumers["duepost_send"]
        wait_until(lambda: not consumer.in_hand, what="what is in hand to end")


@pytest.fixture
def hand(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    monkeypatch.setattr(Lookout, "start", lambda _: None)
    yield from hands(harness, THREADS)


@pytest.fixture
def single_hand(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    """The same where a relay that hangs keeps the only thread."""
    monkeypatch.setattr(Lookout, "start", lambda _: None)
    yield from hands(harness, 1)


def hands(harness: Harness, threads: int) -> Iterator[Hand]:
    harness.worker_session.stop()
    worker = dramatiq.Worker(harness.app.broker, worker_threads=threads, worker_timeout=50)
    worker.start()
    wait_until(lambda: harness.app.broker.is_reading("duepost_send"), what="the worker to read its queues")
    yield Hand(harness, worker)
    worker.stop()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each statement that any thread of this process sends."""
    found: list[str] = []
    execute = Cursor.execute

    def noted(cursor: Cursor, query: str, vars: object = None) -> None:  # noqa: A002 - the driver's name
        found.append(query)
        execute(cursor, query, vars)

    monkeypatch.setattr(Cursor, "execute", noted)
    return found


def test_an_email_that_is_due_is_delivered_by_one_look_a_claim_and_a_conclusion(hand: Hand, sent: list[str]) -> None:
    email_id = hand.harness.schedule()
    hand.harness.query("SELECT 1")
    sent.clear()
    hand.look_at_what_is_due_now()
    hand.finish(1)
    assert hand.harness.ledger(email_id) == ["sent"]
    assert [sent.count(emails.SQL[name]) for name in ("due_now", "claim", "conclude_finished")] == [1, 1, 1]
    assert [sent.count(emails.SQL[name]) for name in ("due_page", "enqueue")] == [0, 0]
    assert [sent.count(messages.SQL[name]) for name in ("insert", "acknowledge", "reject")] == [0, 0, 0]


def test_no_message_is_stored_for_it(hand: Hand) -> None:
    hand.harness.schedule()
    hand.look_at_what_is_due_now()
    hand.finish(1)
    hand.wait_until_idle()
    assert hand.harness.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]


def test_an_idle_second_costs_twenty_looks_of_all_workers_together(hand: Hand, sent: list[str]) -> None:
    hand.look()
    sent.clear()
    begun = hand.seconds
    while hand.seconds < begun + 1.0:
        hand.look()
    assert sent.count(emails.SQL["due_now"]) <= 21
    assert sent.count(workers.SQL["count"]) <= 1


def test_what_has_been_due_for_long_is_begun_without_a_tick(hand: Hand) -> None:
    first, second = hand.harness.schedule(), hand.harness.schedule()
    hand.harness.query("UPDATE duepost.item SET due_at = now() - interval '1 h', scheduled_at = now() - interval '1 h'")
    hand.look()
    hand.finish(2)
    assert hand.harness.ledger(first) == hand.harness.ledger(second) == ["sent"]
    assert hand.harness.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]


@pytest.mark.parametrize(
    "change",
    ["UPDATE duepost.control SET paused = true", "UPDATE duepost.route SET circuit_open = true, probe_at = now()"],
)
def test_but_not_where_nothing_may_be_sent(hand: Hand, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    handed = Mock(return_value=True)
    monkeypatch.setattr(PostgresBroker, "hand_over", handed)
    hand.harness.schedule()
    hand.harness.query("UPDATE duepost.item SET due_at = now() - interval '1 h', scheduled_at = now() - interval '1 h'")
    hand.harness.query(change)
    hand.look()
    assert not handed.mock_calls


def test_two_workers_look_half_as_often_each(hand: Hand) -> None:
    alone = hand.look()
    hand.harness.query("INSERT INTO duepost.worker (host, pid) VALUES ('elsewhere', 1)")
    hand.seconds += 60
    assert hand.look() == pytest.approx(2 * alone)


def test_a_relay_that_hangs_keeps_no_pass_waiting_for_however_long_it_has_the_only_thread(
    single_hand: Hand, relay: ScriptedRelay
) -> None:
    hand, app = single_hand, single_hand.harness.app
    relay.on(Phase.DOT, hang(), times=2)
    for _ in range(2):
        hand.harness.schedule()
    hand.look_at_what_is_due_now()
    wait_until(lambda: relay.transcript.count("C: .") == 2, what="the relay to hang")
    late = hand.harness.schedule(scheduled_at="2001-01-01T00:00:00Z")
    assert tick(app.broker)
    wait_until(lambda: app.broker.has_more(SCHEDULER), what="the pass that nobody is free for")
    hand.look()
    hand.finish(1)
    assert hand.harness.ledger(late) == ["sent"]
    assert hand.harness.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]
    relay.release()


def test_only_what_is_urgent_is_looked_for_while_emails_wait_in_memory_and_a_pass_is_read_at_once(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PostgresBroker, "has_more", lambda *_: True)
    handed = Mock(return_value=True)
    monkeypatch.setattr(PostgresBroker, "hand_over", handed)
    looked_soon = Mock()
    monkeypatch.setattr(PostgresBroker, "look_soon", looked_soon)
    hand.harness.schedule()
    urgent = hand.harness.schedule(priority="urgent")
    hand.look()
    assert [(call.args[0].args[0], call.args[1]) for call in handed.mock_calls] == [(urgent, emails.URGENT_PRIORITY)]
    looked_soon.assert_called_once_with("duepost_scheduler")


def test_of_a_line_it_takes_what_there_are_connections_for_and_the_sender_looks_for_the_rest(
    hand: Hand, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, handed = Mock(return_value=True), Mock(return_value=True)
    monkeypatch.setattr(PostgresBroker, "enqueue_unless_one_waits", asked)
    monkeypatch.setattr(PostgresBroker, "hand_over", handed)
    ids = [hand.harness.schedule() for _ in range(20)]
    line = hand.harness.app.routes["default"].served.due_line
    assert line is not None
    line.claim(1, lambda *_: emails.NOTHING_DUE)
    hand.look_at_what_is_due_now()
    assert [call.args[0].args[0] for call in handed.mock_calls] == ids[: hand.harness.app.settings.smtp_connections]
    # The sender goes on with the rest by itself.
    assert not asked.mock_calls
    assert line.is_look_due


@pytest.mark.parametrize(
    "what",
    [
        "UPDATE duepost.control SET paused = true",
        "UPDATE duepost.route SET circuit_open = true, probe_at = now() + interval '1 min', probe_pause = 60",
        "UPDATE duepost.route SET paused_until = now() + interval '5 s', pause = 5",
        "UPDATE duepost.item SET expires_at = now(), scheduled_at = now() - interval '1 s'",
        "UPDATE duepost.item SET due_at = now() + interval '1 s'",
        "UPDATE duepost.item SET due_at = now() - interval '2 s'",
    ],
)
def test_what_may_not_be_sent_or_is_the_schedulers_is_left_alone(hand: Hand, what: str) -> None:
    hand.harness.schedule()
    hand.harness.query(what)
    assert emails.due_now(hand.harness.app.database, ["default"]) == {}


def test_what_another_transaction_holds_is_handed_over_once_and_then_left_to_a_pass(
    hand: Hand, sent: list[str]
) -> None:
    email_id = hand.harness.schedule()
    hand.harness.query("UPDATE duepost.item SET due_at = now()")
    other = Database(hand.harness.app.database.url)
    with other.transaction() as cursor:
        cursor.execute("SELECT FROM duepost.item WHERE id = %(id)s FOR UPDATE", {"id": email_id})
        sent.clear()
        hand.look()
        hand.wait_until_idle()
        hand.look()
        assert sent.count(emails.SQL["claim"]) == 1
    other.close()
    assert hand.harness.ledger(email_id) == []
    hand.harness.app.scheduler.enqueue_due_emails()
    hand.finish(1)


def test_a_disabled_worker_looks_for_nothing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUEPOST_DISABLED", "1")
    harness.restart()
    assert harness.app.lookout is None


def test_a_worker_that_stops_takes_nothing_more(hand: Hand) -> None:
    hand.harness.app.broker.stop_reading(hand.worker)
    email_id = hand.harness.schedule()
    hand.look()
    assert hand.harness.row(email_id)["state"] == "scheduled"


def test_what_fails_here_is_nobody_elses_and_leaves_no_message(hand: Hand, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = hand.harness.schedule(address="fails@example.com")
    claim = emails.claim_unread

    def fail(database: Database, ids: list[int], worker_id: int, way: str, keep: Callable[[Kept], None]) -> object:
        if failing in ids:
            raise RuntimeError("broken")
        return claim(database, ids, worker_id, way, keep)

    monkeypatch.setattr(emails, "claim_unread", fail)
    monkeypatch.setattr(emails, "claim_due", Mock(return_value=emails.NOTHING_DUE))
    hand.look_at_what_is_due_now()
    hand.wait_until_idle()
    hand.harness.schedule()
    hand.look_at_what_is_due_now()
    hand.finish(1)
    assert hand.harness.row(failing)["state"] == "scheduled"
    assert hand.harness.query("SELECT count(*) FROM dramatiq.queue") == [(0,)]


@pytest.mark.parametrize(
    ("since", "is_left"), [("2 s", False), ("-1 s", True), ("1 h", True)], ids=["marked", "over", "clock set back"]
)
def test_a_long_line_that_no_sender_goes_on_with_is_told_once(
    hand: Hand, monkeypatch: pytest.MonkeyPatch, since: str, *, is_left: bool
) -> None:
    hand.look()
    asked = Mock(return_value=True)
    monkeypatch.setattr(PostgresBroker, "enqueue_unless_one_waits", asked)
    hand.harness.query("UPDATE duepost.route SET claimed_directly_until = now() + %(since)s::interval", since=since)
    for _ in range(2):
        hand.seconds += COUNT_INTERVAL
        hand.look()
        assert [call.args[0].actor_name for call in asked.mock_calls] == [SCHEDULER] * is_left


# The watch.


@pytest.fixture
def watch(harness: Harness) -> Watch:
    watch = Watch(harness.database, Database(harness.database.url))
    # A watch that has just ticked.
    watch._look()
    harness.query("DELETE FROM dramatiq.queue")
    return watch


def passes(harness: Harness) -> int:
    [(count,)] = harness.query("SELECT count(*) FROM dramatiq.queue WHERE queue_name = 'duepost_scheduler'")
    return int(str(count))


def test_the_watch_leaves_what_has_just_fallen_due_to_the_workers(
    harness: Harness, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trigger, "GRACE", 60.0)
    harness.schedule()
    assert watch._look() == trigger.LOOK_INTERVAL
    assert passes(harness) == 0


def test_the_watch_asks_for_a_pass_for_what_the_workers_leave(harness: Harness, watch: Watch) -> None:
    email_id = harness.schedule()
    harness.query("UPDATE duepost.item SET due_at = now() - interval '1 s' WHERE id = %(id)s", id=email_id)
    watch._look()
    assert passes(harness) == 1


def test_an_idle_second_of_a_watch_is_five_looks(harness: Harness, watch: Watch, sent: list[str]) -> None:
    sent.clear()
    seconds = 0.0
    while seconds < 1.0:
        seconds += watch._look()
    assert len(sent) <= 6


def test_a_look_that_fails_of_whatever_is_not_the_last(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Database) -> int:
        raise ValueError("a row that cannot be read")

    monkeypatch.setattr(workers, "count", fail)
    lookout = Lookout(harness.app.database, harness.app.broker, [], harness.app.scheduler, lambda: None, lambda: None)
    lookout.start()
    wait_until(lambda: any("could not be looked for: ValueError" in said for said in caplog.messages))
    lookout.stop()

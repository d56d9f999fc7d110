"""What something else carries is in the table too, and is read there where it was lost: the row is the truth."""

from collections.abc import Iterator, Sequence

import pytest

from actors.delivery.fairness import TokenBuckets
from actors.lookout import FLOOD, Lookout
from actors.queue.encoding import Message
from models import emails
from models.emails import LATE_PRIORITY, PRIORITY
from models.messages import CARRIED_FOR
from tests.app_harness import Harness
from tests.integration.test_lookout import THREADS, Hand, hands
from tests.waiting import wait_until


class Recorder:
    """Takes messages and keeps them, or is away."""

    def __init__(self) -> None:
        self.is_there = True
        self.carried: list[tuple[Message, int]] = []

    def takes(self, queue_name: str) -> bool:
        return self.is_there and queue_name == emails.QUEUE

    def carry(self, messages: Sequence[tuple[Message, int]]) -> None:
        self.carried += messages


@pytest.fixture
def carrier(harness: Harness) -> Recorder:
    carrier = Recorder()
    harness.app.broker.carrier = carrier
    return carrier


@pytest.fixture
def hand(harness: Harness, carrier: Recorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hand]:
    """A worker whose messages it carries, and nobody reads."""
    monkeypatch.setattr(Lookout, "start", lambda _: None)
    yield from hands(harness, THREADS)


def waiting(harness: Harness) -> list[tuple[object, ...]]:
    """Of each message of an item: its id, and the seconds until it is read from the table."""
    return harness.query(
        "SELECT message_id::text, round(extract(epoch FROM eta - now()))::integer FROM dramatiq.queue"
        " WHERE key IS NOT NULL"
    )


def pass_time(harness: Harness) -> None:
    harness.query("UPDATE dramatiq.queue SET eta = eta - make_interval(secs => %(s)s)", s=CARRIED_FOR)


def test_a_message_is_carried_once_it_is_stored_and_is_read_from_the_table_later(
    harness: Harness, carrier: Recorder
) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    [(message, _)] = carrier.carried
    assert message.args == (email_id,)
    [(message_id, seconds)] = waiting(harness)
    assert message_id == message.message_id
    assert CARRIED_FOR - 3 <= int(str(seconds)) <= CARRIED_FOR
    harness.send()
    assert harness.query("SELECT count(*) FROM duepost.delivery") == [(0,)]


def test_what_was_lost_on_its_way_is_delivered_from_the_table(harness: Harness, carrier: Recorder) -> None:
    harness.schedule()
    harness.enqueue()
    pass_time(harness)
    harness.send()
    assert harness.query("SELECT outcome FROM duepost.delivery") == [("sent",)]
    assert waiting(harness) == []


def test_no_pass_enqueues_it_again_meanwhile(harness: Harness, carrier: Recorder) -> None:
    harness.schedule()
    harness.enqueue()
    harness.enqueue()
    assert len(carrier.carried) == 1


def test_what_nobody_carries_just_now_is_read_from_the_table_at_once(harness: Harness, carrier: Recorder) -> None:
    carrier.is_there = False
    harness.schedule()
    harness.deliver()
    assert carrier.carried == []
    assert harness.query("SELECT outcome FROM duepost.delivery") == [("sent",)]


def test_what_is_on_time_is_carried_ahead_of_what_is_late(
    harness: Harness, carrier: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emails, "ON_TIME", 600.0)
    late = harness.schedule()
    harness.query("UPDATE duepost.item SET due_at = now() - interval '1 h'")
    harness.schedule()
    harness.enqueue()
    assert sorted((priority, message.args == (late,)) for message, priority in carrier.carried) == [
        (PRIORITY, False), (LATE_PRIORITY, True),
    ]  # fmt: skip


def test_a_copy_that_comes_after_the_end_changes_nothing(harness: Harness, carrier: Recorder) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    pass_time(harness)
    harness.send()
    assert harness.claim(email_id) is None


def test_a_clear_deletes_the_message_too(harness: Harness, carrier: Recorder) -> None:
    email_id = harness.schedule()
    harness.enqueue()
    harness.query("SELECT duepost.clear_scheduled_email(%(id)s)", id=email_id)
    assert waiting(harness) == []


def test_what_is_carried_counts_as_waiting(harness: Harness, carrier: Recorder) -> None:
    harness.schedule()
    harness.enqueue()
    harness.query(
        "INSERT INTO dramatiq.queue (message_id, queue_name, state, mtime, message, eta, priority)"
        " SELECT gen_random_uuid(), %(q)s, 'queued', now(), '{}', now() + interval '9 s', %(p)s"
        " FROM generate_series(1, %(n)s)",
        q=emails.QUEUE, p=PRIORITY, n=emails.ENOUGH_WAITING,
    )  # fmt: skip
    assert emails.are_enough_waiting(harness.database)


def test_what_falls_due_is_carried_and_nothing_is_handed_over_or_claimed_directly(
    hand: Hand, carrier: Recorder
) -> None:
    ids = {hand.harness.schedule() for _ in range(3)}
    hand.look_at_what_is_due_now()
    assert {message.args[0] for message, _ in carrier.carried} == ids
    assert {priority for _, priority in carrier.carried} == {PRIORITY}
    assert len(waiting(hand.harness)) == len(ids)
    assert not hand.harness.app.routes["default"].email_work.may_claim_due
    carrier.is_there = False
    assert hand.harness.app.routes["default"].email_work.may_claim_due
    pass_time(hand.harness)
    hand.finish(3)
    assert waiting(hand.harness) == []


def test_what_nobody_carries_any_more_leaves_without_a_message(hand: Hand, carrier: Recorder) -> None:
    carrier.is_there = False
    hand.harness.schedule()
    hand.look_at_what_is_due_now()
    hand.finish(1)
    assert carrier.carried == []


def test_what_has_been_due_for_long_is_carried_without_a_tick(hand: Hand, carrier: Recorder) -> None:
    hand.harness.schedule()
    hand.harness.query("UPDATE duepost.item SET due_at = now() - interval '1 h', scheduled_at = now() - interval '1 h'")
    hand.look()
    wait_until(lambda: [priority for _, priority in carrier.carried] == [LATE_PRIORITY], what="a pass")


def test_of_a_flood_each_kinds_token_bucket_says_what_goes_ahead_and_a_pass_takes_the_rest(
    hand: Hand, carrier: Recorder
) -> None:
    hand.lookout._token_buckets = TokenBuckets(rate=5.0)
    hand.harness.app.scheduler.token_buckets = TokenBuckets(rate=0.0)
    for _ in range(FLOOD + 5):
        hand.harness.schedule()
    hand.look_at_what_is_due_now()
    wait_until(lambda: len(carrier.carried) == FLOOD + 5, what="a pass")
    assert len({message.args for message, _ in carrier.carried}) == FLOOD + 5
    assert [priority for _, priority in carrier.carried].count(PRIORITY) == 5


def test_what_cannot_be_enqueued_keeps_nothing_else_from_being_carried(hand: Hand, carrier: Recorder) -> None:
    bad, good = hand.harness.schedule(), hand.harness.schedule()
    hand.harness.query(f"ALTER TABLE dramatiq.queue ADD CHECK (key IS DISTINCT FROM {bad})")
    hand.look_at_what_is_due_now()
    assert [message.args for message, _ in carrier.carried] == [(good,)]

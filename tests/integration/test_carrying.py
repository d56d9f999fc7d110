"""What something else carries is in the table too, and is read there where it was lost: the row is the truth."""

from collections.abc import Sequence

import pytest

from actors.queue.encoding import Message
from models import emails
from models.emails import LATE_PRIORITY, PRIORITY
from models.messages import CARRIED_FOR
from tests.app_harness import Harness


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

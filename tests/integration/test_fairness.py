"""Who goes first: what is on time goes ahead of what is late, and a flood of one kind delays no other."""

from math import inf

import dramatiq
import pytest

from actors import scheduler
from actors.delivery.fairness import TokenBuckets
from actors.queue.consumer import LEAST_URGENT_TURN
from models.emails import LATE_PRIORITY, PRIORITY
from tests.app_harness import Harness


@pytest.fixture(autouse=True)
def few_go_ahead(harness: Harness) -> None:
    harness.app.scheduler.token_buckets = TokenBuckets(rate=3)


def in_line(harness: Harness) -> list[tuple[object, ...]]:
    """Kind and priority, as they will be read."""
    return harness.query(
        "SELECT email.kind, message.priority FROM dramatiq.queue AS message"
        " JOIN duepost.scheduled_email AS email ON email.message_id = message.message_id"
        " ORDER BY message.priority, message.eta, email.id"
    )


def make_late(harness: Harness, email_id: int) -> None:
    harness.query(
        "UPDATE duepost.scheduled_email SET due_at = due_at - interval '1 min' WHERE id = %(id)s", id=email_id
    )


def test_a_flood_of_one_kind_leaves_the_way_free_for_another(harness: Harness) -> None:
    for _ in range(10):
        harness.schedule(kind="digest")
    harness.schedule(kind="sign_in")
    harness.enqueue()
    assert in_line(harness) == ([("digest", PRIORITY)] * 3 + [("sign_in", PRIORITY)] + [("digest", LATE_PRIORITY)] * 7)


def test_what_is_on_time_goes_ahead_of_what_is_late(harness: Harness) -> None:
    for _ in range(3):
        make_late(harness, harness.schedule(kind="late"))
    harness.schedule(kind="on_time")
    harness.enqueue()
    assert in_line(harness) == [("on_time", PRIORITY), *[("late", LATE_PRIORITY)] * 3]


def test_a_long_pass_looks_for_the_newest_between_its_pages(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PAGE", 5)
    for _ in range(12):
        make_late(harness, harness.schedule(kind="late"))
    pages = harness.app.scheduler.due_pages([])
    way, first = next(pages)
    newest = harness.schedule(kind="on_time")
    harness.app.scheduler.enqueue_each(first, way)
    taken = []
    for way, page in pages:
        harness.app.scheduler.enqueue_each(page, way)
        taken.append([each.id for each in page])
    assert taken[0] == [newest]
    assert [len(page) for page in taken[1:]] == [5, 2]


def test_a_pass_beside_a_long_one_leaves_it_all_to_that_and_comes_again(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PAGE", 5)
    for _ in range(7):
        harness.schedule()
    pages = harness.app.scheduler.due_pages([])
    next(pages)
    with pytest.raises(dramatiq.errors.Retry) as beside:
        harness.app.scheduler.enqueue_due_emails()
    assert in_line(harness) == []
    assert beside.value.delay == scheduler.BESIDE_ANOTHER
    harness.query("UPDATE duepost.control SET passing_until = passing_until - interval '2 s'")
    harness.app.scheduler.enqueue_due_emails()
    assert len(in_line(harness)) == 7


def test_a_long_pass_that_is_over_is_in_nobodys_way(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PAGE", 5)
    for _ in range(2):
        for _ in range(7):
            harness.schedule()
        harness.app.scheduler.enqueue_due_emails()
    assert len(in_line(harness)) == 14


def test_the_message_says_nothing_of_it(harness: Harness) -> None:
    make_late(harness, email_id := harness.schedule())
    harness.enqueue()
    [(content,)] = harness.query("SELECT message - 'message_id' - 'message_timestamp' FROM dramatiq.queue")
    assert content == {
        "queue_name": "duepost_send", "actor_name": "send_email", "args": [email_id], "kwargs": {}, "options": {},
    }  # fmt: skip


def test_what_is_late_is_delayed_but_not_for_ever(harness: Harness) -> None:
    for _ in range(20):
        make_late(harness, harness.schedule(kind="late"))
        harness.schedule(kind="on_time")
    harness.app.scheduler.token_buckets = TokenBuckets(rate=1000)
    harness.enqueue()
    consumer = harness.app.broker.consume("duepost_send", prefetch=1, timeout=1)
    # Without the batches that senders take.
    consumer._prefetch = 2
    kinds = []
    for _ in range(2 * LEAST_URGENT_TURN):
        while (message := next(consumer)) is None:
            pass
        kinds.append(harness.row(message.args[0])["kind"])
        consumer.ack(message)
    consumer.close()
    assert "late" in kinds
    assert kinds.count("on_time") > kinds.count("late")


def test_what_a_worker_stores_it_reads_without_waiting(harness: Harness) -> None:
    consumer = harness.app.broker.consume("duepost_send", prefetch=10, timeout=1)
    assert next(consumer) is None
    # It would never look again by itself.
    consumer._poll.due_at = inf
    email_id = harness.schedule()
    harness.enqueue()
    message = next(consumer)
    assert message is not None
    assert message.args == (email_id,)
    consumer.close()

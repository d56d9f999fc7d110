"""Who goes first: what is on time goes ahead of what is late, and a flood of one kind delays no other."""

from collections.abc import Iterator
from math import inf

import dramatiq
import pytest

from actors import scheduler
from actors.consumer import LEAST_URGENT_TURN
from actors.sender import LATE_PRIORITY, PRIORITY
from tests.postroom import Postroom


@pytest.fixture(autouse=True)
def few_go_ahead() -> Iterator[None]:
    scheduler.allowance.__init__(rate=3)  # type: ignore[misc]  # the scheduler holds this very object
    yield
    scheduler.allowance.__init__()  # type: ignore[misc]


def in_line(postroom: Postroom) -> list[tuple[object, ...]]:
    """Kind and priority, as they will be read."""
    return postroom.query(
        "SELECT email.kind, message.priority FROM dramatiq.queue AS message"
        " JOIN duepost.scheduled_email AS email ON email.message_id = message.message_id"
        " ORDER BY message.priority, message.eta, email.id"
    )


def make_late(postroom: Postroom, email_id: int) -> None:
    postroom.query(
        "UPDATE duepost.scheduled_email SET due_at = due_at - interval '1 min' WHERE id = %(id)s", id=email_id
    )


def test_a_flood_of_one_kind_leaves_the_way_free_for_another(postroom: Postroom) -> None:
    for _ in range(10):
        postroom.schedule(kind="digest")
    postroom.schedule(kind="sign_in")
    postroom.enqueue()
    assert in_line(postroom) == ([("digest", PRIORITY)] * 3 + [("sign_in", PRIORITY)] + [("digest", LATE_PRIORITY)] * 7)


def test_what_is_on_time_goes_ahead_of_what_is_late(postroom: Postroom) -> None:
    for _ in range(3):
        make_late(postroom, postroom.schedule(kind="late"))
    postroom.schedule(kind="on_time")
    postroom.enqueue()
    assert in_line(postroom) == [("on_time", PRIORITY), *[("late", LATE_PRIORITY)] * 3]


def test_a_long_pass_looks_for_the_newest_between_its_pages(
    postroom: Postroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PAGE", 5)
    for _ in range(12):
        make_late(postroom, postroom.schedule(kind="late"))
    pages = scheduler.due_pages()
    first = next(pages)
    newest = postroom.schedule(kind="on_time")
    scheduler.enqueue_each(first)
    taken = []
    for page in pages:
        scheduler.enqueue_each(page)
        taken.append([each.id for each in page])
    assert taken[0] == [newest]
    assert [len(page) for page in taken[1:]] == [5, 2]


def test_a_pass_beside_a_long_one_leaves_it_all_to_that_and_comes_again(
    postroom: Postroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "PAGE", 5)
    for _ in range(7):
        postroom.schedule()
    pages = scheduler.due_pages()
    next(pages)
    with pytest.raises(dramatiq.errors.Retry) as beside:
        scheduler.enqueue_due_emails()
    assert in_line(postroom) == []
    assert beside.value.delay == scheduler.BESIDE_ANOTHER
    postroom.query("UPDATE duepost.control SET passing_until = passing_until - interval '2 s'")
    scheduler.enqueue_due_emails()
    assert len(in_line(postroom)) == 7


def test_a_long_pass_that_is_over_is_in_nobodys_way(postroom: Postroom, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "PAGE", 5)
    for _ in range(2):
        for _ in range(7):
            postroom.schedule()
        scheduler.enqueue_due_emails()
    assert len(in_line(postroom)) == 14


def test_the_message_says_nothing_of_it(postroom: Postroom) -> None:
    make_late(postroom, email_id := postroom.schedule())
    postroom.enqueue()
    [(content,)] = postroom.query("SELECT message - 'message_id' - 'message_timestamp' FROM dramatiq.queue")
    assert content == {
        "queue_name": "duepost_send", "actor_name": "send_email", "args": [email_id], "kwargs": {}, "options": {},
    }  # fmt: skip


def test_what_is_late_is_delayed_but_not_for_ever(postroom: Postroom) -> None:
    for _ in range(20):
        make_late(postroom, postroom.schedule(kind="late"))
        postroom.schedule(kind="on_time")
    scheduler.allowance.__init__(rate=1000)  # type: ignore[misc]  # the scheduler holds this very object
    postroom.enqueue()
    consumer = postroom.runtime.broker.consume("duepost_send", prefetch=1, timeout=1)
    # Without the company that senders have.
    consumer._prefetch = 2
    kinds = []
    for _ in range(2 * LEAST_URGENT_TURN):
        while (message := next(consumer)) is None:
            pass
        kinds.append(postroom.row(message.args[0])["kind"])
        consumer.ack(message)
    consumer.close()
    assert "late" in kinds
    assert kinds.count("on_time") > kinds.count("late")


def test_what_a_worker_stores_it_reads_without_waiting(postroom: Postroom) -> None:
    consumer = postroom.runtime.broker.consume("duepost_send", prefetch=10, timeout=1)
    assert next(consumer) is None
    # It would never look again by itself.
    consumer._poll.due_at = inf
    email_id = postroom.schedule()
    postroom.enqueue()
    message = next(consumer)
    assert message is not None
    assert message.args == (email_id,)
    consumer.close()

import sys
import threading

from actors.delivery.fairness import KINDS, TokenBuckets
from tests.clock import Clock


def test_a_kind_may_send_its_number_ahead_at_once_and_no_more() -> None:
    token_buckets = TokenBuckets(rate=3, clock=Clock())
    assert [token_buckets.take("digest") for _ in range(5)] == [True, True, True, False, False]


def test_a_flood_of_one_kind_takes_nothing_from_another() -> None:
    token_buckets = TokenBuckets(rate=3, clock=Clock())
    for _ in range(100):
        token_buckets.take("digest")
    assert token_buckets.take("sign_in")


def test_what_was_taken_comes_back_with_time_and_never_more_than_it_was() -> None:
    clock = Clock()
    token_buckets = TokenBuckets(rate=2, clock=clock)
    assert [token_buckets.take("digest") for _ in range(3)] == [True, True, False]
    clock.now += 0.5
    assert [token_buckets.take("digest") for _ in range(2)] == [True, False]
    clock.now += 1000
    assert [token_buckets.take("digest") for _ in range(3)] == [True, True, False]


def test_kinds_beyond_counting_are_forgotten_once_they_rest() -> None:
    clock = Clock()
    token_buckets = TokenBuckets(rate=1, clock=clock)
    for number in range(KINDS):
        token_buckets.take(f"kind-{number}")
    clock.now += 2
    assert token_buckets.take("one more")
    assert not token_buckets.take("one more")


def test_any_number_of_threads_may_ask() -> None:
    token_buckets = TokenBuckets(rate=1e9)
    failures: list[BaseException] = []

    def ask(thread: int) -> None:
        try:
            for number in range(KINDS * 2):
                token_buckets.take(f"{thread}-{number}")
        except RuntimeError as failure:
            failures.append(failure)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert failures == []

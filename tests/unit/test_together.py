"""What threads do together is done once for each, in few turns, and fails for each on its own."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import psycopg2
import pytest

from actors.together import Together
from models.errors import DatabaseUnreachable
from tests.waiting import wait_until


class Squares:
    """Work that can be held up, and that refuses negative numbers."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.is_away = False

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        assert self.may_go_on.wait(30)
        if self.is_away:
            raise DatabaseUnreachable("gone")
        if min(numbers) < 0:
            raise psycopg2.DataError("negative")
        return [number * number for number in numbers]


@pytest.fixture
def squares() -> Squares:
    return Squares()


def test_one_thread_is_done_at_once(squares: Squares) -> None:
    squares.may_go_on.set()
    together: Together[int, int] = Together(squares)
    assert [together.do(number) for number in (2, 3)] == [4, 9]
    assert squares.batches == [[2], [3]]


def all_at_once(squares: Squares, numbers: Sequence[int], most: int = 50) -> list[int | str]:
    """The first holds up the others, which then share what follows."""
    together: Together[int, int] = Together(squares, most)

    def do(number: int) -> int | str:
        try:
            return together.do(number)
        except (psycopg2.Error, DatabaseUnreachable) as error:
            return str(error)

    with ThreadPoolExecutor(len(numbers)) as pool:
        first = pool.submit(do, numbers[0])
        wait_until(lambda: squares.batches == [[numbers[0]]])
        rest = [pool.submit(do, number) for number in numbers[1:]]
        wait_until(lambda: len(together._waiting) == len(numbers) - 1)
        squares.may_go_on.set()
        return [first.result(30), *(each.result(30) for each in rest)]


def test_those_that_come_meanwhile_share_the_next_turn(squares: Squares) -> None:
    assert all_at_once(squares, [1, 2, 3, 4]) == [1, 4, 9, 16]
    assert [sorted(batch) for batch in squares.batches] == [[1], [2, 3, 4]]


def test_a_turn_is_not_wider_than_it_may_be(squares: Squares) -> None:
    assert all_at_once(squares, [1, 2, 3, 4, 5, 6], most=2) == [1, 4, 9, 16, 25, 36]
    assert [len(batch) for batch in squares.batches] == [1, 2, 2, 1]


def test_a_refusal_is_taken_apart_and_is_nobody_elses(squares: Squares) -> None:
    assert all_at_once(squares, [1, 2, -3, 4]) == [1, 4, "negative", 16]


def test_a_database_that_is_away_is_away_for_all(squares: Squares) -> None:
    squares.is_away = True
    assert all_at_once(squares, [1, 2, 3]) == ["gone"] * 3
    assert len(squares.batches) == 2, "nobody is tried alone"


def test_thousands_of_wishes_of_many_threads_are_each_done_once() -> None:
    done: list[int] = []

    def work(numbers: Sequence[int]) -> list[int]:
        done.extend(numbers)
        return [-number for number in numbers]

    together: Together[int, int] = Together(work, most=7)
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(together.do, range(5000))) == [-number for number in range(5000)]
    assert sorted(done) == list(range(5000))

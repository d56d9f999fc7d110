"""Who waits for an answer too long is told that the server is gone; the thread that looks lives no longer than that."""

import socket
import threading
from collections.abc import Iterator

import pytest

from models.database import deadlines
from models.database.deadlines import Deadlines
from tests.waiting import wait_until


@pytest.fixture
def connection() -> Iterator[socket.socket]:
    """A socket whose other end says nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "LOOK_INTERVAL", 0.001)


def watchers(before: set[threading.Thread]) -> set[threading.Thread]:
    return {each for each in set(threading.enumerate()) - before if each.name == "duepost-deadlines"}


def test_one_that_is_overdue_is_hung_up_on(connection: socket.socket) -> None:
    Deadlines().begin(connection.fileno(), 0.01)
    connection.settimeout(30)
    assert connection.recv(1) == b""


def test_one_that_has_its_answer_is_left_alone(connection: socket.socket) -> None:
    its = Deadlines()
    its.begin(connection.fileno(), 0.0)
    its.end(connection.fileno())
    its.hang_up_overdue()
    connection.setblocking(False)
    with pytest.raises(BlockingIOError):
        connection.recv(1)


def test_its_thread_ends_once_nothing_is_waited_for_and_another_begins_with_the_next(
    connection: socket.socket,
) -> None:
    before = set(threading.enumerate())
    its = Deadlines()
    assert watchers(before) == set(), "building it begins none"
    for _ in range(2):
        its.begin(connection.fileno(), 3600)
        assert len(watchers(before)) == 1
        its.end(connection.fileno())
        wait_until(lambda: not watchers(before))

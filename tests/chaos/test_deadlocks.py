"""Clears of overlapping users, schedules, reschedules, schedulers and senders at once: no deadlock, no long wait."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.checker import Evidence, check
from tests.chaos.clients import USERS, Book, Client, address_of
from tests.chaos.relay import ChaosRelay
from tests.e2e.conftest import Site
from tests.postgres import PostgresServer
from tests.processes import environment
from tests.waiting import wait_until

#: How long the torture goes on; `make torture` has a longer one.
SECONDS = float(os.environ.get("TORTURE_SECONDS", "12"))

#: How long it goes on at most where it is to end in a deadlock.
MOST_SECONDS = 60.0

#: Of schedules, clears of users, clears of one email, reschedules, schedules of many at once.
CLEARS = (1, 8, 1, 0, 0)
SCHEDULES = (10, 0, 0, 4, 3)

#: Seconds that a client may wait for a lock.
LONGEST_WAIT = 1.0


@pytest.fixture
def relay() -> Iterator[ChaosRelay]:
    with ChaosRelay() as relay:
        yield relay


def torture(site: Site, seconds: float, is_enough: Callable[[Book], bool] = lambda book: False) -> Book:
    """Everything at once, for so long or until it is enough; gives the book, and leaves nothing pending."""
    [(name,)] = site.query("SELECT current_database()")
    # A deadlock shows before a wait for a lock is given up.
    site.query(f"ALTER DATABASE {name} SET deadlock_timeout = '200ms'")
    for user in USERS:
        site.query("INSERT INTO duepost.recipient (user_id, address) VALUES (%s, %s)", user, address_of(user))
    book = Book()
    with ExitStack() as stack:
        for number in range(2):
            stack.enter_context(site.watch(f"watch-{number}"))
            stack.enter_context(site.workers(f"workers-{number}", processes=2))
        kinds = [CLEARS] * 8 + [SCHEDULES] * 3
        clients = [
            Client(
                site.url, book, f"client-{number}",
                pause=0.002, weights=weights, later=(0.0, 1.0, 2.0), lock_timeout=LONGEST_WAIT,
            )
            for number, weights in enumerate(kinds)
        ]  # fmt: skip
        for client in clients:
            client.start()
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at and not is_enough(book):
            time.sleep(0.1)
        for client in clients:
            client.stopping.set()
        for client in clients:
            client.join(timeout=60)
        wait_until(lambda: not site.pending(), timeout=90, what="all to be finished", state=site.pending)
    return book


def deadlocks(site: Site) -> object:
    [(count,)] = site.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    return count


def has_deadlocked(book: Book) -> bool:
    return any("Deadlock" in error for error in list(book.errors))


def test_no_client_deadlocks_or_waits_long(url: str, relay: ChaosRelay, tmp_path: Path) -> None:
    site = Site(url, relay, environment(url, relay.url), tmp_path)
    book = torture(site, SECONDS)
    assert book.errors == []
    assert deadlocks(site) == 0
    assert check(book.emails, Evidence.of(site.query, relay.taken)) == []
    assert len(book.emails) > 200


def test_a_lock_order_that_is_dropped_is_caught(server: PostgresServer, relay: ChaosRelay, tmp_path: Path) -> None:
    with server.fresh_database() as url:
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        [(definition,)] = site.query(
            "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE oid = 'duepost.clear_users'::regproc"
        )
        assert "ORDER BY i.id" in str(definition)
        site.query(str(definition).replace("ORDER BY i.id", "ORDER BY random()"))
        book = torture(site, MOST_SECONDS, has_deadlocked)
        assert has_deadlocked(book)
        assert deadlocks(site) != 0

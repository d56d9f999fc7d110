"""The main job in this very process: real database, real dialogues, no worker processes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import psycopg2
import pytest

from tests.app_harness import Harness
from tests.postgres import Connection, PostgresServer
from tests.relays import ScriptedRelay

os.environ.setdefault("DUEPOST_FROM", "Duepost <noreply@example.com>")


@pytest.fixture(scope="module")
def shared(each_server: PostgresServer) -> Iterator[Connection]:
    """One database for all that is rolled back: nothing is ever left in it."""
    with each_server.fresh_database() as url:
        connection = psycopg2.connect(url)
        yield connection
        connection.close()


@pytest.fixture
def application(shared: Connection) -> Iterator[Connection]:
    """An application's open transaction, on every PostgreSQL at hand."""
    yield shared
    shared.rollback()


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    """A relay that accepts everything, until it is told something else."""
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
def harness(url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """Scheduler and sender, called in turn: nothing happens behind a test's back."""
    yield from _harness(url, relay, tmp_path, monkeypatch)


@pytest.fixture
def each_harness(
    each_url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Harness]:
    """The same on every PostgreSQL at hand."""
    yield from _harness(each_url, relay, tmp_path, monkeypatch)


def _harness(url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    for name, value in settings_of(url, relay.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    harness = Harness(url, tmp_path)
    yield harness
    harness.close()


def settings_of(url: str, smtp_url: str, templates: Path) -> Mapping[str, str]:
    """What a worker's environment says."""
    return {
        "DUEPOST_DATABASE_URL": url,
        "DUEPOST_SMTP_URL": smtp_url,
        "DUEPOST_FROM": "Duepost <noreply@example.com>",
        "DUEPOST_TEMPLATES": str(templates),
        "DUEPOST_STATE_DIR": "off",
        "DUEPOST_SMTP_CONNECT_TIMEOUT": "2",
        "DUEPOST_SMTP_TIMEOUT": "0.3",
        "DUEPOST_SMTP_DOT_TIMEOUT": "0.3",
    }

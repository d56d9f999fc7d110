"""The main job in this very process: real database, real dialogues, no worker processes."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.relays import ScriptedRelay

os.environ.setdefault("DUEPOST_FROM", "Duepost <noreply@example.com>")


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    """A relay that accepts everything, until it is told something else."""
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
def postroom(url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Postroom"]:
    """Scheduler and sender, called in turn: nothing happens behind a test's back."""
    yield from _postroom(url, relay, tmp_path, monkeypatch)


@pytest.fixture
def each_postroom(
    each_url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator["Postroom"]:
    """The same on every PostgreSQL at hand."""
    yield from _postroom(each_url, relay, tmp_path, monkeypatch)


def _postroom(url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Postroom"]:
    for name, value in settings_of(url, relay.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    postroom = Postroom(url, tmp_path)
    yield postroom
    postroom.close()


def settings_of(url: str, smtp_url: str, templates: Path) -> Mapping[str, str]:
    """What a worker's environment says."""
    return {
        "DUEPOST_DATABASE_URL": url,
        "DUEPOST_SMTP_URL": smtp_url,
        "DUEPOST_FROM": "Duepost <noreply@example.com>",
        "DUEPOST_TEMPLATES": str(templates),
        "DUEPOST_SMTP_CONNECT_TIMEOUT": "2",
        "DUEPOST_SMTP_TIMEOUT": "0.3",
        "DUEPOST_SMTP_DOT_TIMEOUT": "0.3",
    }


from tests.postroom import Postroom  # noqa: E402 - `actors` reads the environment when it is imported

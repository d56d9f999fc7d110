"""A console with a real server, on a real database, and a browser without a screen."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.web.site import ConsoleSite, Start


@pytest.fixture
def start(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a console on the test's database; the arguments are settings."""
    with ExitStack() as stack:

        def start(*, host: str = "127.0.0.1", mailbox: Path | None = None, **env: str) -> ConsoleSite:
            for name, value in env.items():
                monkeypatch.setenv(name, value)
            return stack.enter_context(ConsoleSite(url, host=host, mailbox=mailbox))

        yield start


@pytest.fixture
def console(start: Start) -> ConsoleSite:
    """A console where nobody has to log in: whoever reaches it is its operator."""
    return start()


@pytest.fixture
def with_logins(start: Start, tmp_path: Path) -> ConsoleSite:
    """A console with a viewer, a support person and an operator, whom a proxy on this machine names."""
    users = tmp_path / "users"
    users.write_text("vera:viewer:-\nsue:support:-\nolga:operator:-\n")
    return start(DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_USER_HEADER="X-User", DUEPOST_WEB_PROXIES="127.0.0.1")

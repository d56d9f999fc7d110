"""A shell with Duepost's settings."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psycopg2

from tests.processes import duepost, environment

T = TypeVar("T")
U = TypeVar("U")

#: Keeps compiled bytecode, wherever that is switched off: a command then starts faster.
BYTECODE = {
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / f"duepost-pycache-{os.getuid()}"),
}

#: The options of an email that is complete but for its recipient.
PLAIN = ("--kind", "welcome", "--subject", "Hello", "--body-text", "World")


class Shell:
    """Runs commands against one database."""

    def __init__(self, url: str, smtp_url: str = "smtp://127.0.0.1:1", **more: str) -> None:
        self.url = url
        self.env = environment(url, smtp_url, **BYTECODE, **more)

    def run(self, *arguments: str, stdin: str | None = None, status: int = 0) -> str:
        """Runs a command, checks its status, gives what it printed."""
        done = duepost(*arguments, env=self.env, stdin=stdin)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    def run_all(self, *commands: Sequence[str], status: int = 0) -> list[str]:
        """Runs commands that do not depend on each other; gives what each printed."""
        return at_once(lambda command: self.run(*command, status=status), commands)

    def schedule(self, times: int = 1, *, address: str = "ann@example.com", at: str = "now()") -> None:
        """Schedules plain emails without a command: that is quicker."""
        for _ in range(times):
            self.query(
                f"SELECT duepost.schedule_email('welcome', %s, scheduled_at => {at}, subject => 's', body_text => 'b')",
                address,
            )

    def json(self, *arguments: str) -> object:
        """What a command prints as JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def findings(self, *, status: int | None = 0) -> dict[str, tuple[str, str]]:
        """What the doctor finds: health and detail of each check; its exit status does not matter where it is None."""
        done = duepost("doctor", "--json", env=self.env)
        assert status in (None, done.returncode), done.stdout + done.stderr
        return {each["check"]: (each["health"], each["detail"]) for each in json.loads(done.stdout)}

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Asks the database."""
        connection = psycopg2.connect(self.url)
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            rows = list(cursor.fetchall()) if cursor.description else []
        connection.close()
        return rows


def at_once(do: Callable[[T], U], each: Sequence[T]) -> list[U]:
    """Does something with each, several at a time: a process takes most of a second to start."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(do, each))

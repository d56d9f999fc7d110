"""Real workers for a test: processes of their own, and a relay that takes mail, or refuses it by a script."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING, Self

from duepost.catching import Refusal
from duepost.extras import needs
from duepost.testing.rendering import parsed

if TYPE_CHECKING:
    from duepost.catcher import Catcher

#: Seconds that a test waits for what workers do, where it says nothing else.
PATIENCE = 60.0

#: Seconds between two looks.
PAUSE = 0.05

#: Seconds that a process gets to end in order.
FAREWELL = 20.0


class Workers:
    """A worker process, a watch and a relay on this machine; a context manager.

    What they are to send has to be committed.

    Args:
        database_url: the database, migrated.
        templates: the folder of templates.
        refusals: whom the relay refuses, how, and how often; the first that matches counts.
        sender: whom emails are from that name nobody.
        environment: further settings of the processes.
    """

    def __init__(
        self,
        database_url: str,
        *,
        templates: Path | str = "templates",
        refusals: Sequence[Refusal] = (),
        sender: str = "Duepost <duepost@localhost>",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="duepost-testing-")
        self._refusals = refusals
        self._processes: list[subprocess.Popen[bytes]] = []
        self._catcher: Catcher | None = None
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("DUEPOST_", "SENTRY_"))}
        self._environment = ours | {
            "DUEPOST_DATABASE_URL": database_url,
            "DUEPOST_TEMPLATES": str(Path(templates).resolve()),
            "DUEPOST_FROM": sender,
            "DUEPOST_STATE_DIR": "off",
            **(environment or {}),
        }

    @property
    def log(self) -> str:
        """What the processes have said."""
        return "".join(path.read_text(errors="replace") for path in sorted(Path(self._folder.name).glob("*.log")))

    @property
    def outbox(self) -> list[EmailMessage]:
        """What the relay has taken, oldest first."""
        if self._catcher is None:
            return []
        return [parsed(content) for _, content in self._catcher.messages()]

    def start(self) -> None:
        """Starts relay, worker and watch.

        Raises:
            MissingExtra: the relay's package is not installed.
        """
        with needs("testing", "the relay of a test"):
            from duepost.catcher import Catcher  # noqa: PLC0415 - heavy
        self._catcher = Catcher(Path(self._folder.name) / "mailbox", rules=self._refusals)
        self._environment = {"DUEPOST_SMTP_URL": self._catcher.start()} | self._environment
        self._run("worker", "worker", "--processes", "1", "--threads", "4")
        self._run("watch", "trigger", "--watch")

    def stop(self) -> None:
        """Ends them; safe to repeat."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(FAREWELL)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        if self._catcher is not None:
            self._catcher.stop()
        self._folder.cleanup()

    def wait_until(self, condition: Callable[[], bool], what: str = "it", timeout: float = PATIENCE) -> None:
        """Waits until something is so.

        Args:
            condition: says whether it is.
            what: what is waited for, as the error says.
            timeout: seconds.

        Raises:
            AssertionError: it took longer, or a process has ended; with what the processes have said.
        """
        until = time.monotonic() + timeout
        while not condition():
            ended = [process for process in self._processes if process.poll() is not None]
            if ended or time.monotonic() > until:
                why = "a process has ended by itself" if ended else f"not within {timeout:.0f} s"
                raise AssertionError(f"{what}: {why}\n{self.log}")
            time.sleep(PAUSE)

    def wait_for(self, count: int = 1, timeout: float = PATIENCE) -> list[EmailMessage]:
        """Waits until the relay has taken as many emails; returns all that it has.

        Raises:
            AssertionError: it took longer than the timeout, in seconds.
        """
        self.wait_until(lambda: len(self.outbox) >= count, f"{count} emails at the relay", timeout)
        return self.outbox

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, name: str, *arguments: str) -> None:
        with (Path(self._folder.name) / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(  # noqa: S603 - the command of this very installation
                    [sys.executable, "-P", "-m", "duepost", *arguments],
                    env=self._environment,
                    cwd=self._folder.name,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

"""Real processes: workers, ticks, as a user runs them."""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests import forked
from tests.namespaces import Namespace
from tests.waiting import wait_until

ROOT = Path(__file__).parent.parent


def environment(url: str, smtp_url: str, **more: str) -> dict[str, str]:
    """The settings of a worker, and nothing of ours."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("DUEPOST_", "SENTRY_"))}
    return {
        **kept,
        "DUEPOST_DATABASE_URL": url,
        "DUEPOST_SMTP_URL": smtp_url,
        "DUEPOST_FROM": "Duepost <noreply@example.com>",
        "DUEPOST_STATE_DIR": "off",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def duepost(
    *arguments: str, env: Mapping[str, str], cwd: Path | None = None, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    if forked.is_possible(env):
        return forked.run(arguments, env, cwd or ROOT, stdin, timeout=120)
    return subprocess.run(
        [sys.executable, "-m", "duepost", *arguments],
        env=dict(env), cwd=cwd or ROOT, input=stdin, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


class Process:
    """A process that goes on until it is stopped or killed; its output is kept."""

    def __init__(self, arguments: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path = ROOT) -> None:
        self.log = log
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                arguments, env=dict(env), cwd=cwd, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has said so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """Kill -9, children included."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def signal(self, number: int) -> None:
        """Sends a signal to the process itself."""
        self.popen.send_signal(number)

    def stop(self) -> int:
        """SIGTERM, and wait for the end."""
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            return self.popen.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def wait(self, timeout: float = 60) -> int:
        """Waits for it to end by itself."""
        return self.popen.wait(timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.popen.poll() is None:
            self.kill()


class Workers(Process):
    """`dramatiq actors`, as the README says; of this code, or of a release whose packages are in another folder.

    Where a host is named, in its namespace.
    """

    def __init__(
        self,
        env: Mapping[str, str],
        log: Path,
        *,
        processes: int = 1,
        threads: int = 4,
        ready: bool = True,
        code: Path = ROOT,
        host: Namespace | None = None,
    ) -> None:
        flags = ["--processes", str(processes), "--threads", str(threads)]
        command = [sys.executable, "-m", "dramatiq", "actors", *flags]
        if host is not None:
            command = host.entering(pwd.getpwuid(os.geteuid()), command)
        super().__init__(command, {**env, "PYTHONPATH": str(code)}, log, cwd=code)
        if ready:
            wait_until(
                lambda: self.output.count("is ready for action") >= processes,
                timeout=60,
                what="the workers",
                state=lambda: self.output,
            )

    def worker_pids(self) -> list[int]:
        """The worker processes, without their master."""
        children = Path(f"/proc/{self.popen.pid}/task/{self.popen.pid}/children").read_text()
        return [int(pid) for pid in children.split()]


class Watch(Process):
    """`duepost trigger --watch`."""

    def __init__(self, env: Mapping[str, str], log: Path, *, code: Path = ROOT) -> None:
        command = [sys.executable, "-m", "duepost", "trigger", "--watch"]
        super().__init__(command, {**env, "PYTHONPATH": str(code)}, log, cwd=code)

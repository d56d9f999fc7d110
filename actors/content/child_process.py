"""A process of its own for what can be neither interrupted nor survived in the process that sends."""

import os
import select
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections import deque
from pathlib import Path
from typing import IO, TypeVar

T = TypeVar("T")


class ChildProcess(ABC):
    """A program that reads requests and writes answers, each behind its length. One thread at a time.

    Args:
        program: a file that Python runs by its path; it imports nothing of Duepost.
    """

    def __init__(self, program: Path) -> None:
        # It has no need of what else is set: passwords, keys.
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("DUEPOST_", "SENTRY_", "PG"))
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-P", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=environment,
            # What a terminal tells its processes to do is not for it: it ends when this one does.
            start_new_session=True,
        )
        os.set_blocking(self._output.fileno(), False)
        os.set_blocking(self._input.fileno(), False)

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        return self._process.stdin

    @property
    def _output(self) -> IO[bytes]:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        return self._process.stdout

    @abstractmethod
    def _too_late(self) -> Exception:
        """What is raised where it does not answer, or read, in time."""

    @abstractmethod
    def _why_ended(self) -> Exception:
        """What is raised where it has ended over its work."""

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def _send(self, data: bytes, until: float) -> None:
        """Hands a request over, with its length before it; `until` is by the monotonic clock."""
        waiting = memoryview(len(data).to_bytes(4, "big") + data)
        while waiting:
            self._wait(self._input, until, is_writing=True)
            try:
                waiting = waiting[os.write(self._input.fileno(), waiting[:65_536]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise self._why_ended() from None

    def _wait(self, stream: IO[bytes], until: float, *, is_writing: bool) -> None:
        """Waits until a pipe is ready."""
        poll = select.poll()
        poll.register(stream, select.POLLOUT if is_writing else select.POLLIN)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1_000):
            raise self._too_late()

    def kill(self, seconds: float | None = None) -> bool:
        """Ends it at once, and returns whether it has ended within these seconds; None: its end is waited for."""
        self._process.kill()
        for stream in (self._input, self._output):
            stream.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True


def popped(waiting: deque[T]) -> T | None:
    """Takes one of those that wait, if there is one: a single operation, which needs no lock."""
    try:
        return waiting.pop()
    except IndexError:
        return None

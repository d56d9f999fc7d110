"""Reads files that emails name by their URLs: in processes of their own (`file_program.py`).

A file system or a store that does not answer can be interrupted in no thread. A process that takes too long is ended;
of those that cannot be ended, as a file system holds them, there is a most.
"""

import json
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from actors.content.child_process import ChildProcess, popped
from actors.content.libraries import check_installed

_PROGRAM: Final = Path(__file__).with_name("file_program.py")

#: What reading from a store needs, and the extra that brings it.
LIBRARIES: Final = ("fsspec", "s3fs")
EXTRA: Final = "s3"

#: Bytes of an email's attachments, all together; `duepost.most_attached()` is the same.
MOST: Final = 26_214_400

#: Seconds that a process may take to begin, before those for reading.
START: Final = 30.0

#: Processes that are kept while there is nothing to do; each ends by itself after a minute of that.
KEPT: Final = 2

#: Processes that were told to end and have not, up to which further ones are started.
MOST_STUCK: Final = 8

#: Seconds for which the end of one is waited for: a file system may hold it.
END: Final = 1.0

#: Bytes of what a process says of the files: 100 of them at the most.
_LONGEST_HEAD: Final = 100_000


class UnreadFile(Exception):
    """A file is not read; nothing of its URL is in the message.

    Attributes:
        place: its place among those that were asked for.
        reason: why.
    """

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(reason)
        self.place = place
        self.reason = reason


class FoundFile(NamedTuple):
    """What is known of a file that was read.

    Attributes:
        sha256: of its content, in hexadecimal.
        length: bytes of its content in base64, with line ends.
        is_utf8: whether it is text in UTF-8.
    """

    sha256: str
    length: int
    is_utf8: bool


class OpenFiles:
    """Files that a process has read, and has still to hand over."""

    def __init__(self, found: Sequence[FoundFile], process: "_Process | None", seconds: float) -> None:
        self.found = found
        self._process = process
        self._seconds = seconds

    @property
    def length(self) -> int:
        """Bytes of all of them in base64, with line ends."""
        return sum(each.length for each in self.found)

    def take(self) -> list[bytes]:
        """Returns the contents in base64, in lines that are ended by CRLF. Once only.

        Raises:
            UnreadFile: the process has ended.
        """
        if self._process is None:
            return []
        until = time.monotonic() + self._seconds
        return [self._process.take(each.length, until) for each in self.found]


class FileReader:
    """Reads files in processes that it starts as they are needed. Any thread may call it.

    Args:
        roots: URLs of the folders and prefixes in which files may lie.
        timeout: seconds that all files of an email may take together.
    """

    def __init__(self, roots: Sequence[str], timeout: float) -> None:
        self._roots = list(roots)
        self._timeout = timeout
        #: Those that wait. Single operations need no lock.
        self._idle: deque[_Process] = deque()
        #: Those that were told to end and have not.
        self._stuck: list[_Process] = []
        self._lock = threading.Lock()
        weakref.finalize(self, _end, self._idle)

    @contextmanager
    def reading(self, urls: Sequence[str], most: int = MOST) -> Iterator[OpenFiles]:
        """Reads files, and gives what is known of them; a process holds their contents until they are taken.

        Args:
            urls: where they are.
            most: bytes of all of them together.

        Raises:
            UnreadFile: one of them is not read.
        """
        process = self._take()
        try:
            request = {"urls": list(urls), "roots": self._roots, "most": most}
            answer = process.ask(request, self._timeout)
            if "error" not in answer:
                files = answer["files"]
                assert isinstance(files, list)  # noqa: S101 - our own program
                yield OpenFiles([FoundFile(**each) for each in files], process, self._timeout)
        except BaseException:
            self._end(process)
            raise
        if process.has_all_taken:
            self._keep(process)
        else:
            self._end(process)
        if "error" in answer:
            raise UnreadFile(int(str(answer["place"])), str(answer["error"]))

    def close(self) -> None:
        """Ends the processes that wait."""
        _end(self._idle)

    def _take(self) -> "_Process":
        while (process := popped(self._idle)) is not None:
            if process.is_alive():
                return process
            process.kill(END)
        with self._lock:
            self._stuck = [each for each in self._stuck if each.is_alive()]
            if len(self._stuck) >= MOST_STUCK:
                raise UnreadFile(0, f"{MOST_STUCK} processes that read files hang in a file system")
        return _Process()

    def _keep(self, process: "_Process") -> None:
        if len(self._idle) >= KEPT:
            self._end(process)
        else:
            self._idle.append(process)

    def _end(self, process: "_Process") -> None:
        if not process.kill(END):
            with self._lock:
                self._stuck.append(process)


def _end(processes: "deque[_Process]") -> None:
    while (process := popped(processes)) is not None:
        process.kill(END)


def check_libraries(roots: Sequence[str]) -> None:
    """Makes sure that what reads from these places is installed; loads nothing of it.

    Raises:
        MissingLibrary: it is not.
    """
    if any(root.startswith("s3://") for root in roots):
        check_installed(LIBRARIES, needed_for="DUEPOST_ATTACHMENT_ROOTS: s3://", extra=EXTRA)


class _Process(ChildProcess):
    """A process of `file_program.py`."""

    def __init__(self) -> None:
        # A store's client reads its own settings.
        super().__init__(_PROGRAM)
        self._is_new = True
        #: Bytes of contents that are to be taken still.
        self._left = 0

    @property
    def has_all_taken(self) -> bool:
        """Whether it has nothing more to hand over."""
        return not self._left

    def ask(self, request: dict[str, object], seconds: float) -> dict[str, object]:
        """Has files read, and returns what is said of them.

        Raises:
            UnreadFile: it takes longer, or the process has ended.
        """
        if self._is_new:
            self.take(4, time.monotonic() + START)
            self._is_new = False
        until = time.monotonic() + seconds
        self._send(json.dumps(request).encode("ascii"), until)
        length = int.from_bytes(self.take(4, until), "big")
        if length > _LONGEST_HEAD:
            raise UnreadFile(0, "the process that reads it does not answer rightly")
        answer: dict[str, object] = json.loads(self.take(length, until))
        files = answer.get("files", [])
        assert isinstance(files, list)  # noqa: S101 - our own program
        self._left = sum(int(each["length"]) for each in files)
        return answer

    def take(self, length: int, until: float) -> bytes:
        """Reads this number of bytes.

        Raises:
            UnreadFile: they do not come in time, or the process has ended.
        """
        content = bytearray(length)
        rest = memoryview(content)
        while rest:
            self._wait(self._output, until, is_writing=False)
            try:
                count = os.readv(self._output.fileno(), [rest[: 2**20]])
            except BlockingIOError:
                continue
            if not count:
                raise self._why_ended()
            rest = rest[count:]
        self._left = max(0, self._left - length)
        return bytes(content)

    def _too_late(self) -> UnreadFile:
        return UnreadFile(0, "its file does not come in time (DUEPOST_ATTACHMENT_TIMEOUT)")

    def _why_ended(self) -> UnreadFile:
        return UnreadFile(0, "the process that reads it has ended")

"""The child processes of `duepost up` and `duepost demo`, and the lock on the folder that they work in."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, TextIO

import psutil

from duepost.private import make_private, private_opener

#: Seconds between SIGTERM and SIGKILL. A worker finishes the emails in its hands first.
STOP_TIMEOUT = 30.0
#: In each child's environment, and its children's: tells them from a stranger with the same number.
MARK = "DUEPOST_CHILD"
_RECORD = "children.json"
_LOCK = "lock"
#: Seconds by which the kernel's idea of a start time may wander when the clock is adjusted.
_CLOCK_SLACK = 2.0
#: Seconds that the kernel may take to end a killed process.
_KILL_TIMEOUT = 5.0
_PAUSE = 0.02

# A program of its own asks for SIGTERM at the parent's death: `preexec_fn` may deadlock when threads run.
_LEASH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ChildError(RuntimeError):
    """A child process cannot be started; the message says why, in one line."""


class FolderInUse(RuntimeError):
    """Another process works in the folder.

    Attributes:
        folder: the folder.
        pid: that process; None if it has not said its number yet.
    """

    def __init__(self, folder: Path, pid: int | None) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(f"{folder} is in use by {holder}")
        self.folder = folder
        self.pid = pid


class FolderLock:
    """Keeps a folder to one process; the kernel releases it when its holder dies, however it dies.

    A context manager. The lock is held while this object lives. Children made by a bare fork share it;
    those of `Children` do not.

    Args:
        folder: the folder, for this user alone; made when it is missing. The lock is the file `lock` in it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Takes the lock, or says at once who has it.

        Raises:
            FolderInUse: another process has it, or another lock object of this one.
            OSError: the folder cannot be written.
        """
        make_private(self._folder)
        with contextlib.ExitStack() as on_failure:
            file = on_failure.enter_context(open(self._folder / _LOCK, "a+", encoding="ascii", opener=private_opener))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                raise FolderInUse(self._folder, int(holder) if holder.isdecimal() else None) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            on_failure.pop_all()
        self._file = file

    def release(self) -> None:
        """Gives the lock back; quiet if it is not held."""
        if self._file is not None:
            # The file stays: another process may be waiting to open it, and two files would be two locks.
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@dataclass(frozen=True)
class _Recorded:
    """What is written down of a child, so that a later run knows it again."""

    name: str
    pid: int
    created: float
    argv: list[str]
    mark: str


class Children:
    """Child processes that end with their parent, even when that is killed.

    Each runs in a session of its own, so Ctrl-C on the terminal reaches the parent alone. On Linux each gets
    SIGTERM when the *thread* that started it ends, so start them from the main thread.

    Args:
        folder: where the children are written down (`children.json`); it must exist, and be ours alone.
    """

    def __init__(self, folder: Path) -> None:
        self._record = folder / _RECORD
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._recorded: list[_Recorded] = []

    def start(self, name: str, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        """Starts a child; what it says goes to the end of its log.

        Args:
            name: what `poll` calls it; no two have the same.
            argv: the program and its arguments; the program is looked up on the PATH of `env`.
            env: its whole environment.
            log: the file that takes its output and errors; made when it is missing.

        Raises:
            ChildError: there is no such program, or the log cannot be written.
            ValueError: a child of this name was started already.
        """
        if name in self._children:
            raise ValueError(f"a child named {name} was started already")
        program = shutil.which(argv[0], path=env.get("PATH"))
        if program is None:
            raise ChildError(f"{name} cannot be started: there is no program {argv[0]}")
        command = [program, *argv[1:]]
        mark = uuid.uuid4().hex
        try:
            child = _spawn(_leashed(command), {**env, MARK: mark}, log)
        except OSError as error:
            raise ChildError(f"{name} cannot be started: {error.filename}: {error.strerror}") from error
        self._children[name] = child
        created = psutil.Process(child.pid).create_time()
        self._recorded.append(_Recorded(name, child.pid, created, command, mark))
        _write_record(self._record, self._recorded)

    def poll(self) -> str | None:
        """The name of the first child, in the order of their start, that has ended; None if all run."""
        return next((name for name, child in self._children.items() if _has_ended(child)), None)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """Ends all children, and theirs: SIGTERM, then SIGKILL to whatever is left.

        Args:
            timeout: seconds from SIGTERM to SIGKILL, for all of them together.
        """
        for child in reversed(self._children.values()):
            if not _has_ended(child):
                # Not `terminate`: that reaps a child that has just ended, and its number is free then.
                os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and not all(map(_has_ended, self._children.values())):
            time.sleep(_PAUSE)
        for child in self._children.values():
            # Before it is reaped: until then its number, and so the group's, cannot be anyone else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self._children.clear()
        self._recorded.clear()
        self._record.unlink(missing_ok=True)


def end_leftovers(folder: Path, timeout: float = STOP_TIMEOUT) -> list[str]:
    """Ends the children that a killed parent left behind: SIGTERM, then SIGKILL.

    A process is ours if number, start time and command line are those written down, or if it carries a
    child's mark in its environment; nothing else is touched. Call it under the folder's lock.

    Args:
        folder: the folder that the killed parent gave to `Children`.
        timeout: seconds from SIGTERM to SIGKILL, for all of them together.

    Returns:
        The names of the children of whom something was left.
    """
    recorded = list(_read_record(folder / _RECORD))
    found = {one.name: _still_there(one) for one in recorded}
    _terminate([process for processes in found.values() for process in processes], timeout)
    _kill([process for one in recorded for process in _still_there(one)])
    (folder / _RECORD).unlink(missing_ok=True)
    return [name for name, processes in found.items() if processes]


def _terminate(processes: Sequence[psutil.Process], timeout: float) -> None:
    """Asks those on top, who end their own children in order, and waits for all."""
    numbers = {process.pid for process in processes}
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in numbers:
                process.terminate()
    _wait_for_end(processes, timeout)


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait_for_end(processes, _KILL_TIMEOUT)


def _wait_for_end(processes: Sequence[psutil.Process], timeout: float) -> None:
    """Takes a zombie for ended, unlike psutil: process 1 of a container may never reap it."""
    deadline = time.monotonic() + timeout
    while any(map(_runs, processes)) and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _leashed(command: list[str]) -> list[str]:
    if sys.platform != "linux":
        return command
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command]


def _spawn(command: list[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab", opener=private_opener) as output:
        return subprocess.Popen(  # noqa: S603 - our own workers
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    """Whether a child has ended, without reaping it: its number stays its own."""
    if child.returncode is not None:
        return True
    try:
        return psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _still_there(recorded: _Recorded) -> list[psutil.Process]:
    """The recorded child, and every process that has its mark."""
    return [process for process in psutil.process_iter() if _is(process, recorded) or _is_of(process, recorded)]


def _is(process: psutil.Process, recorded: _Recorded) -> bool:
    if process.pid != recorded.pid:
        return False
    try:
        same_time = abs(process.create_time() - recorded.created) <= _CLOCK_SLACK
        # The end of it: the leash stands in front at first, the interpreter of a script for ever.
        same_command = process.cmdline()[-len(recorded.argv) :] == recorded.argv
    except psutil.Error:
        return False
    return same_time and same_command


def _is_of(process: psutil.Process, recorded: _Recorded) -> bool:
    try:
        return process.environ().get(MARK) == recorded.mark
    except (psutil.Error, OSError):
        return False


def _write_record(path: Path, recorded: Sequence[_Recorded]) -> None:
    draft = path.with_suffix(".new")
    with open(draft, "w", encoding="utf-8", opener=private_opener) as file:
        file.write(json.dumps([asdict(one) for one in recorded]))
    draft.replace(path)


def _read_record(path: Path) -> Iterator[_Recorded]:
    try:
        text = path.read_text()
        yield from (_Recorded(**fields) for fields in json.loads(text))
    except (FileNotFoundError, ValueError, TypeError):
        return

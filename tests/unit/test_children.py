"""Child processes: none outlives its parent, and no stranger is harmed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from duepost.children import ChildError, Children, FolderInUse, FolderLock, end_leftovers

SLEEPER = [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"]
STUBBORN_CODE = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('up', flush=True)
time.sleep(600)
"""
STUBBORN = [sys.executable, "-c", STUBBORN_CODE]
#: Says its child's number; that child ignores SIGTERM and forgets its parent.
FAMILY_CODE = f"""
import subprocess, time
child = subprocess.Popen({STUBBORN!r})
print('child', child.pid, flush=True)
time.sleep(600)
"""
FAMILY = [sys.executable, "-c", FAMILY_CODE]
ENV = dict(os.environ)
#: A parent that starts one child and says its number.
PARENT = """
import os, sys, time
from pathlib import Path
from duepost.children import Children
children = Children(Path(sys.argv[1]))
children.start("child", sys.argv[2:], os.environ, Path(sys.argv[1]) / "log")
print("up", flush=True)
time.sleep(600)
"""


#: A process that takes the lock of a folder and keeps it.
HOLDER = """
import sys, time
from pathlib import Path
from duepost.children import FolderLock
lock = FolderLock(Path(sys.argv[1]))
lock.acquire()
print("up", flush=True)
time.sleep(600)
"""


def wait_for(condition: Callable[[], object], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def record(folder: Path) -> dict[str, object]:
    entry: dict[str, object] = json.loads((folder / "children.json").read_text())[0]
    return entry


def recorded_pid(folder: Path) -> int:
    pid = record(folder)["pid"]
    assert isinstance(pid, int)
    return pid


def said(log: Path, word: str) -> Callable[[], bool]:
    return lambda: log.exists() and word in log.read_text()


def grandchild(log: Path) -> int:
    wait_for(lambda: said(log, "child")() and said(log, "up")())
    return int(log.read_text().split("child")[1].split()[0])


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    children = Children(tmp_path)
    yield children
    children.stop(timeout=0)


@contextlib.contextmanager
def running(argv: list[str], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process outside of `Children`, which says one line when it is up."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env, cwd=root) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with running(SLEEPER) as process:
        yield process


def killed_parent(folder: Path, argv: list[str]) -> int:
    """Starts a parent of one child and kills it with -9; gives the child's number."""
    with running([sys.executable, "-c", PARENT, str(folder), *argv]):
        wait_for(said(folder / "log", "up"))
    return recorded_pid(folder)


def test_a_child_writes_to_its_log_and_has_its_environment(children: Children, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("earlier\n")
    children.start("say", ["sh", "-c", "echo $WORD; echo oops >&2"], {"WORD": "hello", "PATH": os.defpath}, log)
    wait_for(children.poll)
    assert log.read_text() == "earlier\nhello\noops\n"


def test_poll_names_the_first_that_ended(children: Children, tmp_path: Path) -> None:
    children.start("stays", SLEEPER, ENV, tmp_path / "log")
    assert children.poll() is None
    children.start("ends", ["true"], ENV, tmp_path / "log")
    wait_for(lambda: children.poll() == "ends")


def test_stop_ends_all_and_forgets_them(children: Children, tmp_path: Path) -> None:
    for name in ("one", "two"):
        children.start(name, SLEEPER, ENV, tmp_path / name)
        wait_for(said(tmp_path / name, "up"))
    pids = [entry["pid"] for entry in json.loads((tmp_path / "children.json").read_text())]
    began = time.monotonic()
    children.stop()
    assert time.monotonic() - began < 5
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert not (tmp_path / "children.json").exists()
    children.stop()


def test_a_child_that_ignores_sigterm_is_killed(children: Children, tmp_path: Path) -> None:
    children.start("stubborn", STUBBORN, ENV, tmp_path / "log")
    wait_for(said(tmp_path / "log", "up"))
    pid = recorded_pid(tmp_path)
    children.stop(timeout=0.1)
    assert not psutil.pid_exists(pid)


def test_a_childs_own_children_end_with_it(children: Children, tmp_path: Path) -> None:
    children.start("family", FAMILY, ENV, tmp_path / "log")
    pid = grandchild(tmp_path / "log")
    children.stop()
    wait_for(lambda: not runs(pid))


def test_stop_ends_what_a_killed_child_left(children: Children, tmp_path: Path) -> None:
    children.start("family", FAMILY, ENV, tmp_path / "log")
    pid = grandchild(tmp_path / "log")
    os.kill(recorded_pid(tmp_path), signal.SIGKILL)
    wait_for(children.poll)
    assert runs(pid)
    children.stop()
    wait_for(lambda: not runs(pid))


def test_ctrl_c_reaches_only_the_parent(children: Children, tmp_path: Path) -> None:
    children.start("child", SLEEPER, ENV, tmp_path / "log")
    pid = recorded_pid(tmp_path)
    assert os.getpgid(pid) == os.getsid(pid) == pid


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    pid = killed_parent(tmp_path, SLEEPER)
    wait_for(lambda: not runs(pid))


def test_a_program_that_is_not_there_is_one_clear_line(children: Children, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="worker cannot be started: there is no program no-such-program"):
        children.start("worker", ["no-such-program"], ENV, tmp_path / "log")


def test_a_log_that_cannot_be_written_is_one_clear_line(children: Children, tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="nowhere/log: No such file"):
        children.start("worker", ["true"], ENV, tmp_path / "nowhere" / "log")


def test_two_children_may_not_have_one_name(children: Children, tmp_path: Path) -> None:
    children.start("child", SLEEPER, ENV, tmp_path / "log")
    with pytest.raises(ValueError, match="child named child"):
        children.start("child", SLEEPER, ENV, tmp_path / "log")


def test_what_a_killed_parent_left_behind_is_ended(tmp_path: Path) -> None:
    pid = killed_parent(tmp_path, STUBBORN)
    assert runs(pid)
    assert end_leftovers(tmp_path, timeout=0.1) == ["child"]
    wait_for(lambda: not runs(pid))
    assert end_leftovers(tmp_path) == []


def test_the_children_of_a_killed_child_are_ended_too(tmp_path: Path) -> None:
    pid = killed_parent(tmp_path, FAMILY)
    child = grandchild(tmp_path / "log")
    wait_for(lambda: not runs(pid))
    assert runs(child)
    assert end_leftovers(tmp_path, timeout=0.1) == ["child"]
    wait_for(lambda: not runs(child))


@pytest.mark.parametrize("wrong", ["created", "argv"])
def test_a_reused_number_is_never_harmed(wrong: str, tmp_path: Path, bystander: subprocess.Popen[bytes]) -> None:
    entry = {
        "name": "child",
        "pid": bystander.pid,
        "created": psutil.Process(bystander.pid).create_time(),
        "argv": SLEEPER,
        "mark": "x",
    }
    entry[wrong] = {"created": 1.0, "argv": ["something", "else"]}[wrong]
    (tmp_path / "children.json").write_text(json.dumps([entry]))
    assert end_leftovers(tmp_path, timeout=0.1) == []
    assert bystander.poll() is None


@pytest.mark.parametrize("text", ["", "[{", "[{}]", "[1]", "{}", "null"])
def test_a_damaged_record_is_no_obstacle(text: str, tmp_path: Path) -> None:
    (tmp_path / "children.json").write_text(text)
    assert end_leftovers(tmp_path) == []


def test_a_folder_is_had_by_one_at_a_time(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "new"):
        with pytest.raises(FolderInUse, match=f"is in use by process {os.getpid()}$") as refused:
            FolderLock(tmp_path / "new").acquire()
        assert refused.value.pid == os.getpid()
    with FolderLock(tmp_path / "new"):
        pass


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with running([sys.executable, "-c", HOLDER, str(tmp_path)]) as holder:
        with pytest.raises(FolderInUse) as refused:
            FolderLock(tmp_path).acquire()
        assert refused.value.pid == holder.pid
    with FolderLock(tmp_path):
        pass


def test_a_child_does_not_hold_its_parents_lock(children: Children, tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        children.start("child", SLEEPER, ENV, tmp_path / "log")
    with FolderLock(tmp_path):
        assert children.poll() is None

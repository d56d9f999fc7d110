"""Code that takes too long is ended from outside, but never where that would harm the whole process."""

import gc
import importlib
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest

from actors.liveness import time_limit as time_limits
from actors.liveness.time_limit import TimeLimit, TookTooLong
from tests.waiting import wait_until

IMPORTED = """
import sys
sys.modules["import_started"] = sys
while "import_may_end" not in sys.modules:
    pass
"""


@pytest.fixture
def slow_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module whose import goes on until `import_may_end` is among the modules."""
    (tmp_path / "slow_to_import.py").write_text(IMPORTED, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("slow_to_import", "import_started", "import_may_end"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "slow_to_import"


def test_an_import_is_never_broken_off_since_that_can_leave_the_import_lock_taken(
    slow_module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_limit = TimeLimit()
    seen: list[str] = []

    def work() -> None:
        try:
            with time_limit.limited(0.0):
                importlib.import_module(slow_module)
                seen.append("imported")
                while True:
                    pass
        except TookTooLong:
            seen.append("ended")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while "import_started" not in sys.modules:
        pass
    for _ in range(20):
        time_limit.end_the_late()
    assert seen == []
    monkeypatch.setitem(sys.modules, "import_may_end", sys)
    thread.join(10)
    assert seen == ["imported", "ended"]


def test_its_thread_ends_once_nothing_is_limited_and_another_begins_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time_limits, "LOOK_INTERVAL", 0.0001)
    before = set(threading.enumerate())

    def watchers() -> list[threading.Thread]:
        return [each for each in set(threading.enumerate()) - before if each.name == "duepost-time_limit"]

    time_limit = TimeLimit()
    assert watchers() == [], "building it begins none"
    for _ in range(2):
        with time_limit.limited(3600.0):
            assert len(watchers()) == 1
        wait_until(lambda: not watchers())


def test_what_takes_too_long_is_ended() -> None:
    def loop() -> None:
        with TimeLimit().limited(0.0):
            while True:
                pass

    with pytest.raises(TookTooLong):
        loop()


def test_what_drops_the_exception_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: dropped.append(found.exc_type))

    class Slow:
        def __del__(self) -> None:
            while True:
                pass

    def loop() -> None:
        with TimeLimit().limited(0.0):
            Slow()
            while True:
                pass

    with pytest.raises(TookTooLong):
        loop()
    assert dropped == [TookTooLong]


def test_nothing_is_raised_once_the_work_is_over() -> None:
    time_limit = TimeLimit()
    ended = 0
    for seconds in [0.0, 0.00001, 0.0001, 0.001] * 200:
        try:
            with time_limit.limited(seconds):
                time_limit.end_the_late()
        except TookTooLong:
            ended += 1
        sum(range(10))
        time_limit.end_the_late()
        sum(range(10))
    assert ended > 0


def test_one_that_comes_before_the_block_has_begun_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    time_limit = TimeLimit()
    begin = time_limit._begin

    def begin_late(thread: int, seconds: float, frame: FrameType | None) -> None:
        begin(thread, seconds, frame)
        # As where the process is stopped here, and goes on after the time is over.
        time_limit.end_the_late()

    monkeypatch.setattr(time_limit, "_begin", begin_late)

    def block() -> None:
        with time_limit.limited(0.0):
            raise AssertionError("it has begun")

    with pytest.raises(TookTooLong):
        block()
    assert not time_limit._until
    time_limit.end_the_late()
    sum(range(10))


def test_nothing_is_raised_in_a_thread_that_has_left_the_block() -> None:
    time_limit = TimeLimit()

    def block() -> None:
        time_limit._begin(threading.get_ident(), 0.0, sys._getframe())

    block()
    time_limit.end_the_late()
    sum(range(10))
    assert not time_limit._until


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python collects between two steps only, and never in there")
def test_nothing_is_collected_while_it_is_asked_where_threads_are() -> None:
    """Up to Python 3.11 a collection in there can stop the process for ever (python/cpython#106883)."""
    time_limit = TimeLimit()
    may_end = threading.Event()

    def work() -> None:
        with suppress(TookTooLong), time_limit.limited(1000.0):
            may_end.wait(30)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    wait_until(lambda: thread.ident in time_limit._until)
    asked, within = [0], [0]

    def note(phase: str, _: dict[str, int]) -> None:
        frame = sys._getframe(1)
        within[0] += frame.f_code.co_name == "_current_frames" and phase == "start"

    def ask() -> None:
        asked[0] += 1
        time_limit._until[thread.ident or 0] = 0.0
        time_limit.end_the_late()

    usual = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    try:
        for _ in range(100):
            ask()
    finally:
        gc.set_threshold(*usual)
        gc.callbacks.remove(note)
        may_end.set()
        thread.join()
    assert gc.isenabled()
    assert (asked[0], within[0]) == (100, 0)

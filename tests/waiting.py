"""Waiting for what other threads and processes do: looked for, never slept for."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(
    look: Callable[[], T],
    *,
    timeout: float = 30.0,
    what: str = "it",
    state: Callable[[], object] | None = None,
) -> T:
    """Looks until the answer is truthy, and gives it; `state` says in the failure how things stood.

    Args:
        look: what to look at.
        timeout: seconds; generous, for a test does not depend on speed.
        what: what was waited for.
        state: how things stand, for the message of a failure.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s for {what}; {state() if state else found!r}")
        time.sleep(0.02)

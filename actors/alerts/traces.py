"""Traces for Sentry: how long each step of an attempt took, from the time it was scheduled for. Ids alone leave."""

import random
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from actors.alerts.alerts import capture

if TYPE_CHECKING:
    from sentry_sdk.types import Event

#: What a trace is of, and what its parts are of, as Sentry groups them.
OPERATION = "queue.process"


class Step(StrEnum):
    """What an attempt does, one after the other, for each recipient."""

    #: Until the claim, from the time it was scheduled for, or from when that was done, if it was later.
    WAIT = "wait"
    #: From the claim, or the answer before, until the copy is made: users are read, templates rendered.
    RENDER = "render"
    #: Until the answer is there: a connection, if none is free, and the dialogue.
    DIALOGUE = "dialogue"
    #: Until what came of it is committed.
    CONCLUDE = "conclude"


class Trace:
    """When the steps of one attempt began and ended, by this machine's clock. One thread at a time has it."""

    __slots__ = ("begun", "ended", "steps")

    def __init__(self) -> None:
        self.begun = self.ended = time.time()
        self.steps: list[tuple[Step, float, float]] = []

    def has_waited(self, seconds: float) -> None:
        """It began so long before the claim."""
        if seconds > 0:
            self.steps.insert(0, (Step.WAIT, self.begun - seconds, self.begun))
            self.begun -= seconds

    def end(self, step: Step) -> None:
        """A step is over, which began when the one before was."""
        now = time.time()
        self.steps.append((step, self.ended, now))
        self.ended = now


class Traces:
    """Chooses attempts to be traced.

    Args:
        rate: which part of them: 0 for none, 1 for all.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate

    def begin(self) -> Trace | None:
        """A trace of an attempt that begins now; None where this one is not traced."""
        return Trace() if self._rate and random.random() < self._rate else None  # noqa: S311 - a sample is no secret


def send(trace: Trace, name: str, tags: Mapping[str, object]) -> None:
    """Sends a trace. Sentry's own tracing stays off, which would trace each broker message with all that is in it."""
    trace_id, root = uuid.uuid4().hex, uuid.uuid4().hex[:16]
    context = {"trace_id": trace_id, "span_id": root, "op": OPERATION, "status": "ok"}
    event = {
        "type": "transaction",
        "transaction": name,
        "transaction_info": {"source": "task"},
        "start_timestamp": _moment(trace.begun),
        "timestamp": _moment(trace.ended),
        "contexts": {"trace": context},
        "tags": {key: str(value) for key, value in tags.items() if value is not None},
        "spans": [
            {
                "trace_id": trace_id, "span_id": uuid.uuid4().hex[:16], "parent_span_id": root, "op": f"duepost.{step}",
                "description": str(step), "start_timestamp": _moment(begun), "timestamp": _moment(ended),
            }
            for step, begun, ended in trace.steps
        ],
    }  # fmt: skip
    capture(cast("Event", event))


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)

"""A channel of its own: each item is a line over TCP, and the server answers each with a line such as `200 taken`."""

import socket
import time
from dataclasses import dataclass
from typing import Final

from actors.channels.channel import Dialogue, Event, Permit, Rulings, Wait
from actors.channels.failures import describe_failure
from actors.channels.starting import wait_for_permit
from actors.channels.stream import Stream
from actors.ruling import Phase, Ruling, Scope, one_line
from models.words import Verdict

SECONDS, LONGEST_REPLY = 10.0, 1024
MEANING: Final = {"2": Verdict.SENT, "4": Verdict.RETRY, "5": Verdict.UNDELIVERABLE}


@dataclass(frozen=True, slots=True)
class Line:
    recipients: tuple[str, ...]
    text: bytes


def judge(reply: str) -> Ruling:
    """The verdict table: of a reply that is none nobody knows what it means."""
    verdict = MEANING.get(reply[:1]) if reply[:3].isdigit() else None
    if verdict is None:
        return Ruling(Verdict.UNKNOWN, Scope.MESSAGE, Phase.RESPONSE, reply=one_line(reply))
    scope = Scope.RECIPIENT if verdict is Verdict.SENT else Scope.MESSAGE
    return Ruling(verdict, scope, Phase.RESPONSE, code=int(reply[:3]), reply=one_line(reply[4:]))


def judge_failure(phase: Phase, failure: OSError) -> Ruling:
    """Once the whole line was written it may have arrived; before that it has not, and the route is at fault."""
    verdict, scope = (Verdict.UNKNOWN, Scope.MESSAGE) if phase is Phase.RESPONSE else (Verdict.RETRY, Scope.RELAY)
    return Ruling(verdict, scope, phase, reply=one_line(describe_failure(failure, SECONDS, "the server", "")))


class LineSession:
    refusal: Ruling | None = None

    def __init__(self, stream: Stream, permit: Permit) -> None:
        self._stream, self._permit, self.idle_since = stream, permit, time.monotonic()

    def deliver(self, payload: Line) -> Dialogue[Rulings | None]:
        phase, deadline = Phase.REQUEST, time.monotonic() + SECONDS
        try:
            if why_not := (yield from wait_for_permit(self._permit, lambda: self.is_ready, "the server")):
                raise ConnectionError(why_not)
            yield from self._stream.send_rest(memoryview(payload.text + b"\n"), deadline)
            phase, reply = Phase.RESPONSE, b""
            while not reply.endswith(b"\n"):
                reply += (data := (yield from self._stream.receive(deadline)))
                if not data or len(reply) > LONGEST_REPLY:
                    raise ConnectionError("the server hung up, or says too much")
            ruling = judge(reply.decode("ascii", "replace").rstrip())
        except OSError as failure:
            ruling = judge_failure(phase, failure)
            yield Wait(Event.LEAVE, 0.0)
            self.abandon()
        self.idle_since = time.monotonic()
        return dict.fromkeys(payload.recipients, ruling)

    def pipeline(self, payload: Line) -> bool:
        return False

    def withdraw(self) -> None: ...
    @property
    def is_open(self) -> bool:
        return self.fileno() != -1

    @property
    def is_ready(self) -> bool:
        return self.is_open and self._stream.overheard() is None

    def fileno(self) -> int:
        return self._stream.fileno()

    def abandon(self) -> None:
        self._stream.close()

    close = abandon


@dataclass(frozen=True)
class LineChannel:
    address: tuple[str, int]
    permit: Permit
    pipelines = False

    def connect(self) -> LineSession | Ruling:
        try:
            return LineSession(Stream(socket.create_connection(self.address, SECONDS)), self.permit)
        except OSError as failure:
            return judge_failure(Phase.CONNECT, failure)

    def is_full(self, refusal: Ruling) -> bool:
        return False

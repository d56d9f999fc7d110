"""The seam between delivery and a channel: connect, deliver one payload after the other, close.

A dialogue is a generator that waits for nothing itself: it yields what it waits for, and whoever drives it resumes it
with whether that has come. So one thread drives many dialogues, and nothing in a dialogue can hold up another.
"""

import select
from collections.abc import Callable, Generator, Mapping
from enum import Enum
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from actors.ruling import Ruling

T = TypeVar("T")


class Payload(Protocol):
    """What is delivered: whatever the channel takes, for recipients that it rules on one by one."""

    @property
    def recipients(self) -> tuple[str, ...]:
        """The names that rulings are given for."""


P_contra = TypeVar("P_contra", bound=Payload, contravariant=True)


class Event(Enum):
    """What a dialogue may wait for."""

    #: The peer has said something, or hung up.
    READ = select.POLLIN
    #: More can be written.
    WRITE = select.POLLOUT
    #: The one or the other.
    EITHER = select.POLLIN | select.POLLOUT
    #: Nothing is waited for: the dialogue goes on at once. What it was waited on is forgotten, as it is about to be
    #: closed, or another connection to take its place.
    LEAVE = 0


class Wait(NamedTuple):
    """A wish of a dialogue: resume it with True once this can be done, with False after that many seconds."""

    event: Event
    seconds: float


#: Yields what it waits for, is resumed with whether that has come (at first with None), and ends with a T.
Dialogue: TypeAlias = Generator[Wait, bool | None, T]

#: What came of a payload for each of its recipients; None where nothing was said about it: it may go another way.
Rulings: TypeAlias = Mapping[str, Ruling]


class NoPlace(Exception):
    """The route takes no further session of ours now. Nothing was said about any payload: they wait for a place."""


class Session(Protocol[P_contra]):
    """A conversation with a route that takes one payload after the other. One thread at a time has it."""

    def deliver(self, payload: P_contra) -> Dialogue[Rulings | None]:
        """Delivers a payload; the session has to be ready, or the payload to be the one that was pipelined.

        What the peer or the network do wrong is in the rulings, never an exception. Afterwards the session may have
        ended.

        Returns:
            A ruling for each recipient; None where nothing was said about the payload.
        """

    def pipeline(self, payload: P_contra) -> bool:
        """Offers the payload that is delivered next, for its beginning to go out with the end of the one before.

        Returns:
            whether the session has it: then it is to be delivered next, unless it is withdrawn.
        """

    def withdraw(self) -> None:
        """The payload that was pipelined goes another way. If it has begun, the session ends with the one before."""

    @property
    def is_open(self) -> bool:
        """Whether it stands, as far as is known without looking."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes one more payload: it stands, is quiet, and is not used up. Never waits."""

    @property
    def idle_since(self) -> float:
        """When a payload last went over it, or it was opened, by the monotonic clock."""

    @property
    def refusal(self) -> Ruling | None:
        """Why the route refused this session as such, if it has: `Channel.is_full` says what the rulings count for."""

    def fileno(self) -> int:
        """What a selector waits for; -1 once it has ended, and where it has no connection between deliveries.

        It changes in a dialogue only after `Event.LEAVE`.
        """

    def close(self) -> None:
        """Ends it politely. May block for a moment: runs in the pool."""

    def abandon(self) -> None:
        """Ends it at once, in mid-dialogue. Never blocks."""


class Channel(Protocol[P_contra]):
    """A way to deliver, to one route. Any thread may call it."""

    @property
    def pipelines(self) -> bool:
        """Whether its sessions may take a payload behind another one."""

    def connect(self) -> "Session[P_contra] | Ruling":
        """Opens a session, until it takes payloads. May block: runs in the pool.

        Returns:
            a session; or why there is none, in relay scope.

        Raises:
            NoPlace: the route takes no further session now.
        """

    def is_full(self, refusal: Ruling) -> bool:
        """Whether a session was refused for there being others, which work; else the route is at fault.

        Asked once the session has ended. May block: runs in the pool.
        """


class Permit(Protocol):
    """Whether this worker may start content: only while it can prove that it lives. Any thread may ask; never waits."""

    def is_given(self) -> bool:
        """Whether it may, at this moment."""

    def may_come(self) -> bool:
        """Asked where it is not given: whether it is worth while to ask again."""


def converse(dialogue: Dialogue[T], fileno: Callable[[], int]) -> T:
    """Drives a dialogue to its end in the calling thread, which waits.

    Args:
        dialogue: it.
        fileno: returns what it is waited on.
    """
    has_come: bool | None = None
    while True:
        try:
            wait = dialogue.send(has_come)
        except StopIteration as end:
            result: T = end.value
            return result
        if wait.event is Event.LEAVE:
            has_come = True
            continue
        poll = select.poll()
        poll.register(fileno(), wait.event.value)
        has_come = bool(poll.poll(max(0.0, wait.seconds) * 1000))

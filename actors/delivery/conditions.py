"""Items whose kind asks something before they are sent: each is claimed by itself, in a pool, and delays no others.

A claim of many keeps them from everybody for some seconds. A guard of the application takes as long as it takes, so
kinds that are slow have a lane of their own, in which each has one item at a time, and what
there is more of them is put off, for about as long as it would wait.
"""

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import psycopg2

from actors.channels.channel import Payload
from actors.delivery.decision import Judged
from actors.delivery.lanes import Blocking, Lane
from actors.ruling import Phase, Ruling, Scope, one_line
from models.database.connections import Limits
from models.items import Claimed
from models.kept_content import Copy
from models.words import Verdict

C_co = TypeVar("C_co", bound=Claimed, covariant=True)
P_co = TypeVar("P_co", bound=Payload, covariant=True)

#: How long all that is asked of one item may take, and wait for a lock. Two seconds, as the contract says.
LIMITS: Final = Limits(statement=2.0, lock=2.0)

#: Conditions that took more seconds than this are slow.
SLOW: Final = 0.25

#: Items of a kind that this process asks about at once: of a quick kind, of one that is not known yet, of a slow one.
MOST_QUICK, MOST_UNKNOWN, MOST_SLOW = 64, 2, 1

#: Seconds for which an item is put off that there is no room for.
SHORTEST_PUT_OFF, LONGEST_PUT_OFF = 1.0, 3600.0


class NotClaimed(Exception):
    """Its conditions say that it is not to be sent, or not now; or somebody else has it. Nobody is told."""


@dataclass(slots=True)
class _Kind:
    """A kind: how many seconds its conditions took last, how many items are asked about, or put off."""

    seconds: float | None = None
    under_way: int = 0
    put_off: int = 0

    @property
    def is_slow(self) -> bool:
        return self.seconds is not None and self.seconds > SLOW

    @property
    def most(self) -> int:
        if self.seconds is None:
            return MOST_UNKNOWN
        return MOST_SLOW if self.is_slow else MOST_QUICK


class Speeds:
    """How long each kind's conditions take, in this process. Any thread may ask.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}

    def admit(self, kind: str) -> float:
        """Takes one more item's place, where there is one.

        Returns:
            0; or the seconds for which it is put off where there is none.
        """
        with self._lock:
            known = self._kinds.setdefault(kind, _Kind())
            if known.under_way < known.most:
                known.under_way += 1
                known.put_off = 0 if not known.is_slow else known.put_off
                return 0.0
            known.put_off += 1
            wait = known.put_off * (known.seconds or 0.0)
        return min(max(SHORTEST_PUT_OFF, wait), LONGEST_PUT_OFF) * random.uniform(1.0, 1.5)  # noqa: S311 - no secret

    def lane(self, kind: str) -> Lane:
        """Where a kind's conditions are asked."""
        with self._lock:
            return Lane.SLOW_CONDITIONS if self._kinds.setdefault(kind, _Kind()).is_slow else Lane.CONDITIONS

    def ended(self, kind: str, seconds: float | None) -> None:
        """Gives a place back; `seconds` is how long it took, None where nothing was asked."""
        with self._lock:
            known = self._kinds.setdefault(kind, _Kind())
            known.under_way = max(0, known.under_way - 1)
            known.put_off = max(0, known.put_off - 1)
            if seconds is not None:
                known.seconds = seconds


class KeptAttempt(Generic[C_co, P_co]):
    """An item before it is claimed: all that comes next is that its conditions are asked.

    Attributes:
        item: it, of which no more is known than its id and kind; its claim is 0.
    """

    has_route_failed: Final = False
    is_unread: Final = False
    is_concluded_alone: Final = False
    judged: Sequence[Judged] = ()
    copies: Sequence[Copy] = ()

    def __init__(self, item: C_co, speeds: Speeds, claim: Callable[[], None]) -> None:
        self.item = item
        self._speeds = speeds
        self._claim = claim
        self._has_place = True

    def advance(self) -> P_co | Blocking | None:
        """It is to be claimed, by which another attempt takes this one's place."""
        return Blocking(self._speeds.lane(self.item.kind), self._claim)

    def leave(self, seconds: float | None = None) -> None:
        """Gives its place among those of its kind back, once; `seconds` is how long it took to ask."""
        if self._has_place:
            self._has_place = False
            self._speeds.ended(self.item.kind, seconds)

    def take(self, rulings: object) -> None:
        """Nothing was sent."""

    def report(self) -> None:
        """There is nothing to tell."""


def ruling_on(said: str) -> Ruling:
    """What it means that an item's conditions could not be asked: it is tried again, and not sent."""
    return Ruling(Verdict.RETRY, Scope.MESSAGE, Phase.GUARD, reply=one_line(said))


def rulings_on(waits: Mapping[str, float | str]) -> dict[str, Ruling]:
    """What it means for users that they are to get nothing now: for as many seconds, or for a reason."""
    rulings = {}
    for user, wait in waits.items():
        if isinstance(wait, str):
            rulings[user] = Ruling(Verdict.RETRY, Scope.RECIPIENT, Phase.GUARD, reply=one_line(wait))
        else:
            rulings[user] = Ruling(Verdict.RETRY, Scope.RECIPIENT, Phase.GUARD, reply="quiet hours", wait=wait)
    return rulings


def described(failure: psycopg2.Error) -> str:
    """What an item's conditions have failed of, as the database says it."""
    if failure.pgcode == "57014":
        return f"it took longer than {LIMITS.statement:.0f} s"
    return f"SQLSTATE {failure.pgcode}: {failure.diag.message_primary or ''}"

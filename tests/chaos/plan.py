"""What is to go wrong, and when: drawn from a seed, so that it can be done again."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Trouble(StrEnum):
    """What can be done to what runs."""

    KILL_WORKER = "kill -9 of a worker"
    END_WORKER = "SIGTERM to a worker"
    STOP_WORKER = "SIGSTOP of a worker, SIGCONT later"
    KILL_WATCH = "kill -9 of a watch"
    RESTART_FAST = "PostgreSQL restarted, fast"
    RESTART_IMMEDIATE = "PostgreSQL restarted, immediate"
    TERMINATE = "back ends terminated"
    CUT_NETWORK = "network cut, mended later"
    PAUSE = "pause, resumed later"
    MIGRATE = "migration while all runs"
    RELAY = "relay misbehaves"
    POISON = "email whose content cannot be read or rendered"
    LIMIT = "relay allows one connection, any number later"
    BEHIND_DOT = "relay loses what lies behind a dot, takes it later"
    LOCKS = "a client takes and waits for every advisory lock, lets go later"


#: How often each is drawn, against the others.
WEIGHTS: Mapping[Trouble, int] = {
    Trouble.KILL_WORKER: 4,
    Trouble.END_WORKER: 2,
    Trouble.STOP_WORKER: 2,
    Trouble.KILL_WATCH: 1,
    Trouble.RESTART_FAST: 1,
    Trouble.RESTART_IMMEDIATE: 1,
    Trouble.TERMINATE: 2,
    Trouble.CUT_NETWORK: 2,
    Trouble.PAUSE: 1,
    Trouble.MIGRATE: 1,
    Trouble.RELAY: 10,
    Trouble.POISON: 4,
    Trouble.LIMIT: 1,
    Trouble.BEHIND_DOT: 1,
    Trouble.LOCKS: 2,
}

#: What can be wrong with an email, whatever was checked when it was scheduled; `poison.py` knows how it gets there.
POISONS = ("huge exponent", "deep nesting", "many digits", "endless template", "failing template", "missing template")


#: What a relay can do wrong; `relay.py` knows how.
MISBEHAVIOURS = (
    "banner 421", "banner closed", "banner hangs", "EHLO closed", "MAIL 451", "MAIL hangs", "RCPT 450", "RCPT 550",
    "RCPT garbage", "RCPT reset", "DATA 451", "DATA hangs", "DATA closed", "body closed", "body reset", "dot 451",
    "dot 554", "dot closed", "dot reset", "dot hangs", "dot garbage", "taken, then closed", "taken, then reset",
    "taken, then hangs", "taken, slowly",
)  # fmt: skip


#: The ways in which a trouble may come.
HOW: Mapping[Trouble, Sequence[str]] = {Trouble.RELAY: MISBEHAVIOURS, Trouble.POISON: POISONS}


@dataclass(frozen=True, slots=True)
class Event:
    """One trouble: when (seconds after the start), to which of several, for how long (seconds), and how."""

    at: float
    trouble: Trouble
    target: int
    seconds: float
    how: str

    def __str__(self) -> str:
        return f"{self.at:6.1f} s  {self.trouble} {self.how}"


def plan(seed: int, seconds: float, *, pause: float = 0.7) -> list[Event]:
    """The troubles of a run: one every `pause` seconds on average."""
    chance = random.Random(seed)
    events: list[Event] = []
    at = 1.0
    while (at := at + chance.expovariate(1 / pause)) < seconds:
        [trouble] = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))
        how = chance.choice(HOW[trouble]) if trouble in HOW else ""
        events.append(Event(at, trouble, chance.randrange(1000), chance.uniform(0.3, 3.0), how))
    return events

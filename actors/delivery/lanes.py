"""Where work that may block is done: the pools of threads, and what keeps whom from waiting."""

from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple


class Lane(Enum):
    """A pool of threads: kinds of work that are not to wait for each other have lanes of their own."""

    CLAIM = auto()
    #: What kinds ask before an item is claimed: of those that are quick, and of those that take long.
    CONDITIONS = auto()
    SLOW_CONDITIONS = auto()
    #: Reads for many items at once, and for one that is not to hold up others.
    READ = auto()
    READ_ALONE = auto()
    #: Rendering: a first try, which is short; a longer one; and for as long as an item may take.
    TRIAL = auto()
    SHORT = auto()
    LONG = auto()
    #: Makes copies that are quick to make but for their signatures.
    SIGN = auto()
    #: Reads attachments, as soon as there is room in memory for it.
    ATTACHMENTS = auto()
    #: Reads attachments that an email names by URL, where a file system or a store may take its time.
    FILES = auto()
    #: Makes requests: asks DNS, reads secrets.
    COMPOSE = auto()
    #: An application's own function, which takes as long as it may.
    FUNCTION = auto()
    CONCLUDE = auto()
    #: Asks for places where a rate is limited, and gives turns to what waits for one.
    PLACES = auto()
    #: One item's writing, which may wait for a row that an application holds.
    ALONE = auto()
    #: Opens and closes sessions: as many threads as there may be sessions.
    SESSION = auto()


#: Threads of each lane but SESSION.
THREADS: Final = {
    Lane.CLAIM: 1,
    Lane.CONDITIONS: 4,
    Lane.SLOW_CONDITIONS: 4,
    Lane.READ: 1,
    Lane.READ_ALONE: 2,
    Lane.TRIAL: 1,
    # Few: each of them takes its turn at Python's lock whenever somebody else wants it.
    Lane.SHORT: 1,
    Lane.LONG: 2,
    Lane.SIGN: 1,
    # In turn, so that a large one comes to its room.
    Lane.ATTACHMENTS: 1,
    Lane.FILES: 4,
    Lane.COMPOSE: 8,
    Lane.FUNCTION: 4,
    Lane.CONCLUDE: 1,
    Lane.PLACES: 1,
    Lane.ALONE: 3,
}

#: Lanes whose work takes the processor for long: what waits there is limited in number.
SLOW: Final = frozenset({Lane.SHORT, Lane.LONG})

#: Lanes of which what waits is limited in number, each of the groups for itself.
LIMITED: Final = (SLOW, frozenset({Lane.FILES}))

#: Lanes whose work does not count as being under way: it keeps nobody from being claimed.
UNCOUNTED: Final = SLOW | {Lane.FILES, Lane.TRIAL, Lane.READ_ALONE, Lane.SLOW_CONDITIONS}


class Blocking(NamedTuple):
    """Work on an item that may block, and where it is done. What it raises ends that item's job, and no other's."""

    lane: Lane
    work: Callable[[], None]

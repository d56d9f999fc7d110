"""Finds the addresses of servers. Blocks, and so runs in the pool."""

import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple, TypeAlias

from actors.channels.http.guard import address_error
from actors.channels.http.request import Target
from actors.channels.http.verdicts import judge_failure
from actors.ruling import Phase, Ruling

#: Seconds for which addresses are remembered, and that a name has none.
KNOWN_FOR, UNKNOWN_FOR = 30.0, 5.0

#: Names that are remembered.
MOST_KNOWN: Final = 1_000

#: Addresses of one server that are tried.
MOST_ADDRESSES: Final = 4

#: Looks a name up: returns its addresses; raises an OSError or a UnicodeError.
Lookup: TypeAlias = Callable[[str, int], "list[str]"]


class _Known(NamedTuple):
    addresses: tuple[str, ...]
    error: str | None
    until: float


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for _, _, _, _, address in found]


class Resolver:
    """Remembers for a moment what the system's resolver says. Any thread may call it.

    Args:
        look_up: what is asked.
    """

    def __init__(self, look_up: Lookup = _look_up) -> None:
        self._look_up = look_up
        #: Under the lock: the oldest first.
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def resolve(self, target: Target) -> tuple[str, ...] | Ruling:
        """The addresses of a server that may be connected to; or why there are none, in relay scope."""
        known = self._remembered(target)
        if known.error is not None:
            return judge_failure(Phase.RESOLVE, known.error)
        errors = {each: address_error(each, allows_private=target.allows_private) for each in known.addresses}
        allowed = tuple(address for address, error in errors.items() if error is None)
        if allowed:
            return allowed[:MOST_ADDRESSES]
        what = next(iter(errors.values()), "it has none")
        return judge_failure(Phase.RESOLVE, f"{target.host} leads where the endpoint may not: {what}")

    def knows(self, target: Target) -> bool:
        """Whether `resolve` has its answer at hand, and does not block."""
        with self._lock:
            known = self._known.get(target.host)
        return known is not None and known.until > time.monotonic()

    def _remembered(self, target: Target) -> _Known:
        with self._lock:
            known = self._known.get(target.host)
        if known is not None and known.until > time.monotonic():
            return known
        known = self._asked(target)
        with self._lock:
            self._known.pop(target.host, None)
            self._known[target.host] = known
            while len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        return known

    def _asked(self, target: Target) -> _Known:
        try:
            addresses = tuple(dict.fromkeys(self._look_up(target.host, target.port)))
        except (OSError, UnicodeError) as failure:
            why = getattr(failure, "strerror", None) or "it is no name"
            return _Known((), f"{target.host} does not resolve: {why}", time.monotonic() + UNKNOWN_FOR)
        return _Known(addresses, None, time.monotonic() + KNOWN_FOR)

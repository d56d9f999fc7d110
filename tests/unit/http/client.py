"""A client for tests: it makes requests through the real event loop, one or many at a time."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from actors.channels.channel import Permit, Rulings
from actors.channels.http.channel import HttpChannel
from actors.channels.http.endpoint_url import parse_endpoint_url
from actors.channels.http.request import HttpPayload, Request
from actors.channels.http.session import HttpSession
from actors.channels.http.verdicts import judge
from actors.delivery.event_loop import EventLoop, Slot
from actors.ruling import Ruling
from tests.smtp_client import AnyTime

ASKED = Request("POST", "/T0/TOKEN?k=QS", (("content-type", "application/json"),), b'{"secret":"PAYLOAD"}')


def payload(
    url: str, request: Request = ASKED, *addresses: str, deadline: float = 20.0, allows_private: bool = True
) -> HttpPayload:
    target = parse_endpoint_url(url, allows_private=True).target
    if not allows_private:
        target = type(target)(target.host, target.port, target.is_tls)
    return HttpPayload("orders", target, addresses or ("127.0.0.1",), request, judge, deadline)


class Client:
    """Slots of one channel, in one event loop; a context manager."""

    def __init__(self, certificates: Path | None = None, permit: Permit | None = None) -> None:
        self.channel = HttpChannel(permit or AnyTime(), certificates)
        self.loop: EventLoop[HttpPayload] = EventLoop()
        self._free: list[Slot[HttpPayload]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Nothing is left that the selector knows of: no slot is waited on between deliveries.
        assert set(self.loop._selector.get_map()) == {self.loop._wake_reader}
        self.loop.close()
        self.channel.close()

    def slot(self) -> Slot[HttpPayload]:
        session = self.channel.connect()
        assert isinstance(session, HttpSession)
        return self._free.pop() if self._free else Slot(session)

    def ask(self, *asked: HttpPayload) -> list[Ruling]:
        """Makes the requests side by side; returns their rulings in their order."""
        found: dict[int, Ruling] = {}
        for number, each in enumerate(asked):
            self._begin(self.slot(), number, each, found)
        while self.loop:
            self.loop.wait(60)
        return [found[number] for number in range(len(asked))]

    def one(self, url: str, request: Request = ASKED, *addresses: str, deadline: float = 20.0) -> Ruling:
        """Makes a request, and returns its ruling."""
        return self.ask(payload(url, request, *addresses, deadline=deadline))[0]

    def _begin(self, slot: Slot[HttpPayload], number: int, asked: HttpPayload, found: dict[int, Ruling]) -> None:
        def ended(rulings: Rulings | None, failure: BaseException | None) -> None:
            if failure is not None:
                raise failure
            assert rulings is not None
            assert slot.session.fileno() == -1
            found[number] = rulings["orders"]
            self._free.append(slot)

        self.loop.drive(slot, slot.session.deliver(asked), ended)


def statuses(rulings: Sequence[Ruling]) -> list[int | None]:
    return [ruling.code for ruling in rulings]

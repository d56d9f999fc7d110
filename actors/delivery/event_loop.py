"""Many dialogues at once in one thread: each goes on when its peer has said something, or can take more."""

import os
import selectors
import threading
import time
import weakref
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from actors.channels.channel import Dialogue, Event, Payload, Rulings, Session

P = TypeVar("P", bound=Payload)

#: How a dialogue has ended: its result, or the exception that it raised.
Ended = Callable[[Rulings | None, BaseException | None], None]

_NEVER: Final = float("inf")

_EVENTS: Final = {
    Event.READ: selectors.EVENT_READ,
    Event.WRITE: selectors.EVENT_WRITE,
    Event.EITHER: selectors.EVENT_READ | selectors.EVENT_WRITE,
}


class Slot(Generic[P]):
    """A session of an event loop's, and the dialogue that is driven over it now."""

    def __init__(self, session: Session[P]) -> None:
        self.session = session
        self.dialogue: Dialogue[Rulings | None] | None = None
        self.ended: Ended = _ignore
        #: Until when it waits, by the monotonic clock.
        self.deadline = _NEVER
        #: What the selector has been told; 0 where it is not told of this session.
        self.events = 0


def _ignore(_rulings: Rulings | None, _failure: BaseException | None) -> None:
    """Nobody waits for it."""


def _free(selector: selectors.BaseSelector, *pipe: int) -> None:
    selector.close()
    for end in pipe:
        os.close(end)


class EventLoop(Generic[P]):
    """Drives dialogues side by side, one over each slot. One thread at a time uses it; others may wake it.

    A dialogue never blocks: it yields what it waits for. `close` frees its descriptors; at the latest they go with it.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._busy: set[Slot[P]] = set()
        #: Of the pipe that wakes it: a number that was closed may be somebody else's file by now.
        self._wake_lock = threading.Lock()
        self._is_closed = False
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ, None)
        self._free = weakref.finalize(self, _free, self._selector, self._wake_reader, self._wake_writer)

    def close(self) -> None:
        """Frees its descriptors; nothing may be driven any more. Who still wakes it, wakes nobody."""
        with self._wake_lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._free()

    def __len__(self) -> int:
        """How many dialogues are being driven."""
        return len(self._busy)

    def drive(self, slot: Slot[P], dialogue: Dialogue[Rulings | None], ended: Ended) -> None:
        """Begins a dialogue over a slot that is free, and tells `ended` once it is over."""
        slot.dialogue, slot.ended = dialogue, ended
        self._busy.add(slot)
        self._resume(slot, None)

    def go_on(self) -> None:
        """Goes on with what can go on at once; waits for nothing."""
        self._go_on_within(0.0)

    def wait(self, seconds: float) -> None:
        """Goes on with what can go on; waits until something can, but for no longer than that."""
        nearest = min((slot.deadline for slot in self._busy), default=_NEVER)
        patience = max(0.0, min(seconds, nearest - time.monotonic()))
        self._go_on_within(None if patience == _NEVER else patience)
        # What has arrived counts, however late we looked: so this comes last.
        if time.monotonic() >= nearest:
            self._end_the_late()

    def _go_on_within(self, seconds: float | None) -> None:
        for key, _ in self._selector.select(seconds):
            if key.data is None:
                self._be_woken()
            elif key.data in self._busy:
                self._resume(key.data, has_come=True)
            else:
                # The peer says something unasked, or hangs up: that is found out when the session is used next.
                self.forget(key.data)

    def wake(self) -> None:
        """Ends a wait; any thread may call this."""
        with self._wake_lock:
            if self._is_closed:
                return
            try:
                os.write(self._wake_writer, b"!")
            except BlockingIOError:
                return

    def forget(self, slot: Slot[P]) -> None:
        """Listens to a slot's session no more, until it is used again."""
        if slot.events:
            self._selector.unregister(slot.session)
            slot.events = 0

    def _be_woken(self) -> None:
        try:
            os.read(self._wake_reader, 4096)
        except BlockingIOError:
            return

    def _resume(self, slot: Slot[P], has_come: bool | None) -> None:
        """Goes on with a dialogue until it has to wait, or ends. One dialogue's failure is no other's."""
        rulings: Rulings | None = None
        failure: BaseException | None = None
        dialogue = slot.dialogue
        if dialogue is None:
            return
        try:
            wait = dialogue.send(has_come)
            while wait.event is Event.LEAVE:
                self.forget(slot)
                wait = dialogue.send(True)
            slot.deadline = time.monotonic() + wait.seconds
            self._listen(slot, _EVENTS[wait.event])
        except StopIteration as end:
            rulings = end.value
        except BaseException as error:  # noqa: BLE001 - one dialogue's failure is no other's
            failure = error
            # Where it is not the dialogue's own, the dialogue has to hear of it: its session ends in mid-dialogue.
            dialogue.close()
        else:
            return
        if slot.session.fileno() < 0:
            self.forget(slot)
        slot.dialogue, slot.deadline = None, _NEVER
        self._busy.discard(slot)
        slot.ended(rulings, failure)

    def _listen(self, slot: Slot[P], events: int) -> None:
        if slot.events == events:
            return
        if slot.events:
            self._selector.modify(slot.session, events, slot)
        else:
            self._selector.register(slot.session, events, slot)
        slot.events = events

    def _end_the_late(self) -> None:
        now = time.monotonic()
        for slot in [slot for slot in self._busy if slot.deadline <= now]:
            self._resume(slot, has_come=False)

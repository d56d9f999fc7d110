"""Many dialogues at once in one thread: each goes on when its relay has said something, or can take more."""

import os
import selectors
import time
from collections import deque
from collections.abc import Callable, Generator
from functools import partial
from typing import Final

from actors.channels.smtp.connection import Connection
from actors.channels.smtp.dialogue import Action, Aside, Receive, Script, Send, Stopped
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.wire import BLOCK, Wire
from actors.ruling import Phase

_NEVER: Final = float("inf")


def _nothing() -> Script[None]:
    yield from ()


class Line:
    """A connection of a event loop's, and the script that is played over it just now."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.script: Generator[Action, Reply | None, None] = _nothing()
        self.ended: Callable[[BaseException | None], None] = lambda _: None
        #: What is being waited for, how many seconds that may take, and until when by the monotonic clock.
        self.phase = Phase.CONNECT
        self.limit = 0.0
        self.deadline = _NEVER
        #: Bytes that have gone out since a Send began; None while a reply is waited for.
        self.sent: int | None = None
        #: What the selector has been told.
        self.heard: Wire | None = None
        self.events = 0

    @property
    def wire(self) -> Wire:
        """What it speaks over.

        Raises:
            TypeError: the connection is not open.
        """
        if self.connection.wire is None:
            raise TypeError("only an open connection is played over")
        return self.connection.wire


class EventLoop:
    """Plays scripts over lines, side by side. One thread at a time uses it; others may wake it.

    Args:
        aside: has done elsewhere what a script asks to be done aside: it may block, and so never runs in this thread,
            however few scripts there are.
    """

    def __init__(self, aside: Callable[[Callable[[], None]], None]) -> None:
        self._aside = aside
        self._selector = selectors.DefaultSelector()
        self._busy: set[Line] = set()
        self._back: deque[tuple[Line, Callable[[], Action]]] = deque()
        self._ears, self._bell = os.pipe()
        for end in (self._ears, self._bell):
            os.set_blocking(end, False)
        self._selector.register(self._ears, selectors.EVENT_READ, None)

    def __len__(self) -> int:
        """How many scripts are being played."""
        return len(self._busy)

    def play(self, line: Line, script: Script[None], ended: Callable[[BaseException | None], None]) -> None:
        """Begins a script over a line that is free; `ended` is told once it is over, and what it raised."""
        line.script, line.ended = script, ended
        self._busy.add(line)
        self._advance(line, partial(next, script))

    def wait(self, seconds: float) -> None:
        """Goes on with what can go on; waits until something can, but for no longer than that."""
        nearest = min((line.deadline for line in self._busy), default=_NEVER)
        patience = 0.0 if self._back else max(0.0, min(seconds, nearest - time.monotonic()))
        for key, _ in self._selector.select(None if patience == _NEVER else patience):
            if key.data is None:
                self._be_woken()
            else:
                self._go_on(key.data)
        while self._back:
            self._advance(*self._back.popleft())
        # What has arrived counts, however late we looked: so this comes last.
        if time.monotonic() >= nearest:
            self._end_the_late()

    def wake(self) -> None:
        """Ends a wait; any thread may call this."""
        try:
            os.write(self._bell, b"!")
        except BlockingIOError:
            return

    def _be_woken(self) -> None:
        try:
            os.read(self._ears, 4096)
        except BlockingIOError:
            return

    def _go_on(self, line: Line) -> None:
        if line not in self._busy:
            # The relay says something unasked, or hangs up: that is found out when the line is used next.
            self.forget(line)
        elif line.sent is None:
            self._look_for_reply(line)
        else:
            self._send_more(line)

    def _advance(self, line: Line, step: Callable[[], Action]) -> None:
        """Goes on with a script until it has to wait, or ends."""
        failure: BaseException | None = None
        try:
            action = step()
            while True:
                try:
                    is_done, reply = self._begin(line, action)
                except Exception as error:  # noqa: BLE001 - it is the script's
                    action = line.script.throw(error)
                    continue
                if not is_done:
                    self._listen(line)
                    return
                action = line.script.send(reply)
        except StopIteration:
            pass
        except BaseException as error:  # noqa: BLE001 - one script's failure is no other's
            failure = error
            # Where it is not the script's own, the script has to hear of it: its connection ends in mid-dialogue.
            line.script.close()
        if line.heard is not None and line.heard is not line.connection.wire:
            self.forget(line)
        self._busy.discard(line)
        line.ended(failure)

    def _begin(self, line: Line, action: Action) -> tuple[bool, Reply | None]:
        """Does an action as far as it goes without waiting: whether it is done, and the reply."""
        if isinstance(action, Receive):
            wire = line.wire
            reply = wire.reply_at_hand(action.phase)
            if reply is None:
                self._expect(line, action.phase, None, wire.limit_to_receive(action.phase, action.most))
            return reply is not None, reply
        if isinstance(action, Send):
            wire = line.wire
            sent = wire.begin(action.data, action.phase)
            if not wire.is_written:
                self._expect(line, action.phase, sent, wire.limit_to_send(action.phase))
            return wire.is_written, None
        if isinstance(action, Aside):
            return self._do_aside(line, action), None
        raise TypeError("TLS is begun aside, when a connection is opened")

    def _expect(self, line: Line, phase: Phase, sent: int | None, limit: float) -> None:
        line.phase, line.sent, line.limit = phase, sent, limit
        line.deadline = time.monotonic() + limit

    def _do_aside(self, line: Line, action: Aside) -> bool:
        line.deadline = _NEVER
        self.forget(line)
        self._aside(partial(self._work_aside, line, action))
        return False

    def _work_aside(self, line: Line, action: Aside) -> None:
        try:
            action.work()
        except BaseException as failure:  # noqa: BLE001 - it is the script's
            self._back.append((line, partial(line.script.throw, failure)))
        else:
            self._back.append((line, partial(line.script.send, None)))
        self.wake()

    def _look_for_reply(self, line: Line) -> None:
        try:
            reply = line.wire.look_for_reply(line.phase)
        except Stopped as stopped:
            self._advance(line, partial(line.script.throw, stopped))
            return
        if reply is not None:
            self._advance(line, partial(line.script.send, reply))

    def _send_more(self, line: Line) -> None:
        before = line.sent or 0
        try:
            line.sent = before + line.wire.go_on(line.phase)
        except Stopped as stopped:
            self._advance(line, partial(line.script.throw, stopped))
            return
        if line.wire.is_written:
            self._advance(line, partial(line.script.send, None))
        elif line.sent // BLOCK > before // BLOCK:
            line.deadline = time.monotonic() + line.limit

    def _end_the_late(self) -> None:
        now = time.monotonic()
        for line in [line for line in self._busy if line.deadline <= now]:
            self._advance(line, partial(line.script.throw, line.wire.too_late(line.phase, line.limit)))

    def _listen(self, line: Line) -> None:
        if line.deadline == _NEVER:
            return
        events = selectors.EVENT_READ if line.sent is None else selectors.EVENT_WRITE
        if line.heard is not line.wire or line.events != events:
            self.forget(line)
            self._selector.register(line.wire, events, line)
            line.heard, line.events = line.wire, events

    def forget(self, line: Line) -> None:
        """Listens to a line no more, until it is played over again."""
        if line.heard is not None:
            self._selector.unregister(line.heard)
            line.heard, line.events = None, 0

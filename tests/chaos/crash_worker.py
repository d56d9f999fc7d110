"""A worker that claims and delivers one email, and drops dead where it is told: run as a process, fed with JSON lines.

Each line forks: `{"at": 7, "moment": "before"}`. The answer is a JSON line: the name of the step at which it died, or
null where it came to the end.
"""

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from actors.app import Application
from actors.channels.channel import Dialogue
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.wire import Wire
from actors.ruling import Phase
from actors.settings import settings
from models.database.connections import Cursor

#: Threads that look after the process, at moments of their own, and do nothing for an email. All others count.
CARETAKERS = frozenset({"duepost-worker-session", "duepost-route", "duepost-maintenance", "duepost-rescue"})


class Steps:
    """Counts the steps of all threads that work for the email, and ends the process at one of them."""

    def __init__(self, at: int, moment: str, said: int) -> None:
        self._at = at
        self._moment = moment
        self._said = said
        self._count = 0
        self._lock = threading.Lock()

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step, with death before or after it, if it is the one."""
        if threading.current_thread().name in CARETAKERS:
            yield
            return
        with self._lock:
            self._count += 1
            is_last = self._count == self._at
        if is_last and self._moment == "before":
            self._die(name)
        yield
        if is_last:
            self._die(name)

    def _die(self, name: str) -> None:
        os.write(self._said, json.dumps(f"{self._moment} {name}").encode() + b"\n")
        os._exit(9)


def watch(steps: Steps) -> None:
    """From now on every statement and every step of SMTP is counted."""
    execute, send, receive = Cursor.execute, Wire.send, Wire.receive

    def watched_execute(cursor: Cursor, query: str, vars: object = None) -> None:  # noqa: A002 - the driver's name
        lines = [line for line in query.splitlines() if line.strip() and not line.startswith("--")]
        with steps.step(f"SQL {lines[0]}"):
            execute(cursor, query, vars)

    def watched_send(wire: Wire, data: bytes, phase: Phase) -> Dialogue[None]:
        with steps.step(f"sending {phase}"):
            yield from send(wire, data, phase)

    def watched_receive(wire: Wire, phase: Phase, most: float) -> Dialogue[Reply]:
        with steps.step(f"the reply to {phase}"):
            return (yield from receive(wire, phase, most))

    Cursor.execute = watched_execute  # type: ignore[method-assign, assignment]
    Wire.send = watched_send  # type: ignore[method-assign, assignment]
    Wire.receive = watched_receive  # type: ignore[method-assign, assignment]


def live(app: Application, at: int, moment: str, said: int) -> None:
    """One email, from the claim of its message to the acknowledgement."""
    broker = app.broker
    broker.worker_session.start()
    watch(Steps(at, moment, said))
    consumer = broker.consume("duepost_send", prefetch=1, timeout=100)
    message = next(consumer)
    assert message is not None
    broker.emit_before("process_message", message)
    app.routes["default"].send_email(*message.args)
    broker.emit_after("process_message", message)
    consumer.ack(message)
    consumer.close()
    os.write(said, b"null\n")
    os._exit(0)


def main() -> None:
    """A fork for each line."""
    app = Application(settings())
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            live(app, asked["at"], asked["moment"], sys.stdout.fileno())
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) not in {0, 9}:
            sys.exit(1)


if __name__ == "__main__":
    main()

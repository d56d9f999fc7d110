"""The actors of this process, pointed at a test's own database and relay, and called by hand."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import dramatiq

from actors import delivery, runtime, scheduler, sender
from actors.attendance import Attendance
from actors.broker import SESSION_LIMITS
from actors.consumer import ClaimedMessage
from actors.crew import Blocking
from actors.delivery import Delivery, Judged
from actors.scheduler import enqueue_due_emails
from actors.sender import send_email
from actors.settings import settings
from duepost import client
from models.database import Database, Row
from models.emails import ClaimedEmail


class Postroom:
    """Schedules as an application does, and runs scheduler and senders one after the other."""

    def __init__(self, url: str, templates: Path) -> None:
        settings.cache_clear()
        self.templates = templates
        self.runtime = runtime
        self.database = runtime.database
        self.database.close()
        self.database.url = url
        runtime.templates.__init__(templates)  # type: ignore[misc]  # the actors hold this very object
        self._forget_relay()
        self.application = Database(url, application_name="application")
        self.attendance = runtime.broker.attendance
        Attendance.__init__(self.attendance, Database(url, limits=SESSION_LIMITS))
        self.attendance.start()

    def close(self) -> None:
        self._forget_relay()
        self.attendance.stop()
        self.database.close()
        self.application.close()
        settings.cache_clear()

    def schedule(self, **arguments: object) -> int:
        """Schedules one email and commits; a plain one where nothing else is said."""
        given: dict[str, object] = {"kind": "welcome", **arguments}
        if "users" not in given:
            given.setdefault("address", "ann@example.com")
        if "template" not in given:
            given.setdefault("subject", "Hello")
            given.setdefault("body_text", "World\n")
        with self.application.transaction() as cursor:
            return client.schedule_email(cursor, **given)  # type: ignore[arg-type]

    def recipient(self, user_id: str, address: str | None, name: str | None = None, *, active: bool = True) -> None:
        """Makes a user known."""
        self.query(
            "INSERT INTO duepost.recipient (user_id, address, name, active) VALUES (%(u)s, %(a)s, %(n)s, %(active)s)",
            u=user_id, a=address, n=name, active=active,
        )  # fmt: skip

    def template(self, name: str, **files: str) -> None:
        """Writes a template: `subject`, `text`, `html`."""
        endings = {"subject": "subject.txt", "text": "txt", "html": "html"}
        for part, content in files.items():
            path = self.templates / f"{name}.{endings[part]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    def enqueue(self) -> None:
        """One pass of the scheduler, from the beginning."""
        scheduler.ration.__init__()  # type: ignore[misc]  # the scheduler holds this very object
        enqueue_due_emails()

    def send(self) -> None:
        """Works off the senders' queue as a worker thread does."""
        consumer = runtime.broker.consume("duepost_send", prefetch=100_000, timeout=1)
        while (message := next(consumer)) is not None:
            self.process(message)
            consumer.ack(message)

    def process(self, message: ClaimedMessage) -> None:
        """One message, with Dramatiq's middleware around it."""
        runtime.broker.emit_before("process_message", message)
        try:
            send_email(*message.args)
        except dramatiq.errors.Retry as retry:
            runtime.broker.emit_after("process_message", message, exception=retry)
        else:
            runtime.broker.emit_after("process_message", message)

    def deliver(self) -> None:
        """A pass of the scheduler, and all that it enqueued."""
        self.enqueue()
        self.send()

    def query(self, statement: str, **parameters: object) -> list[Row]:
        """Looks, or moves something, as somebody from outside."""
        return self.application.execute(statement, parameters)

    def row(self, email_id: int) -> Mapping[str, object]:
        """The row of an email that is not finished."""
        [(row,)] = self.query("SELECT to_jsonb(e) FROM duepost.scheduled_email e WHERE id = %(id)s", id=email_id)
        assert isinstance(row, dict)
        return row

    def due_in(self, email_id: int) -> float:
        """Seconds until an email is due."""
        [(seconds,)] = self.query(
            "SELECT extract(epoch FROM due_at - now())::float FROM duepost.scheduled_email WHERE id = %(id)s",
            id=email_id,
        )
        assert isinstance(seconds, float)
        return seconds

    def ledger(self, email_id: int) -> list[str]:
        """How an email ended, for each recipient, in the order of their names."""
        rows = self.query(
            "SELECT outcome FROM duepost.delivery WHERE email_id = %(id)s ORDER BY user_id, address",
            id=email_id,
        )
        return [str(row[0]) for row in rows]

    def attempts(self, email_id: int) -> list[Mapping[str, object]]:
        """The journal of an email."""
        rows = self.query(
            "SELECT to_jsonb(a) FROM duepost.attempt a WHERE email_id = %(id)s ORDER BY claim, user_id",
            id=email_id,
        )
        return [row[0] for row in rows if isinstance(row[0], dict)]

    def make_due(self, email_id: int | None = None) -> None:
        """Moves time: due now."""
        self.query(
            "UPDATE duepost.scheduled_email SET due_at = now() WHERE state = 'scheduled'"
            " AND (%(id)s::bigint IS NULL OR id = %(id)s)",
            id=email_id,
        )

    def _forget_relay(self) -> None:
        sender.crew.close()
        relay_route = runtime.relay_route
        relay_route.__init__(relay_route._database, relay_route._relay, relay_route._worker_id)  # type: ignore[misc]
        delivery.quick_templates.clear()


def deliveries(email: ClaimedEmail) -> Iterator[Judged]:
    """The attempts at an email, one recipient after the other, as the sender makes them."""
    connection = runtime.relay_connection()
    on_its_way = Delivery(email)
    try:
        while (step := on_its_way.advance()) is not None:
            if isinstance(step, Blocking):
                step.work()
            else:
                yield from on_its_way.judged
                on_its_way.judged.clear()
                on_its_way.take(connection.deliver(step))
        yield from on_its_way.judged
    finally:
        connection.close()

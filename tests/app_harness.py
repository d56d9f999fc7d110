"""The application of this process, built for a test's own database and relay, and called by hand."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import dramatiq

from actors.app import Application
from actors.delivery.decision import Decision, Judged
from actors.delivery.job import OwnJob
from actors.delivery.lanes import Blocking
from actors.delivery.report import report
from actors.queue.consumer import ClaimedMessage, PostgresConsumer
from actors.settings import settings
from duepost import client
from models import scheduled_messages
from models.database.connections import Database, Row
from models.database.full_scan_throttle import FullScanThrottle
from models.emails import QUEUE, ClaimedEmail, queue_of
from tests.smtp_client import ChannelClient


class Harness:
    """Schedules as an application does, and runs scheduler and senders one after the other."""

    def __init__(self, url: str, templates: Path) -> None:
        self.templates = templates
        self.application = Database(url, application_name="application")
        self._build()

    def _build(self) -> None:
        settings.cache_clear()
        self.app = Application(settings())
        self.database = self.app.database
        self.worker_session = self.app.broker.worker_session
        self.worker_session.start()
        for each in self.app.routes.values():
            each.route.register()

    def _take_down(self) -> None:
        for each in self.app.routes.values():
            each.dispatcher.close()
        self.app.messages.close()
        self.worker_session.stop()
        self.database.close()
        settings.cache_clear()

    def restart(self) -> None:
        """As a worker that is started again: it reads its settings."""
        self._take_down()
        self._build()

    def close(self) -> None:
        self._take_down()
        self.application.close()

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
        self.app.scheduler.full_scan_throttle = FullScanThrottle()
        self.app.enqueue_due_emails()

    def send(self) -> None:
        """Works off the senders' queues as a worker thread does, one after the other."""
        for queue_name in (*map(queue_of, self.app.routes), scheduled_messages.QUEUE):
            consumer = self.consumer(queue_name)
            while (message := next(consumer)) is not None:
                self.process(message)
                consumer.ack(message)

    def consumer(self, queue_name: str = QUEUE) -> PostgresConsumer:
        """A consumer of the senders' queue, once it may claim: on a busy machine the session's proof may be late."""
        self.worker_session.wait_until_proven(30)
        return self.app.broker.consume(queue_name, prefetch=100_000, timeout=1)

    def process(self, message: ClaimedMessage) -> None:
        """One message, with Dramatiq's middleware around it."""
        broker = self.app.broker
        broker.emit_before("process_message", message)
        try:
            self.app.broker.get_actor(message.actor_name)(*message.args)
        except dramatiq.errors.Retry as retry:
            broker.emit_after("process_message", message, exception=retry)
        else:
            broker.emit_after("process_message", message)

    def claim(self, email_id: int) -> ClaimedEmail | None:
        """Claims an email as the dispatcher does; this process then knows nothing of it."""
        job = OwnJob()
        works = self.app.routes["default"].email_work.claim([(email_id, job)])
        if not works:
            job.wait()
            return None
        [work] = works
        if work.is_unread:
            self.app.routes["default"].email_work.read(works)
        self.app.in_flight.drop(work.attempt.item.claim)
        return work.attempt.item

    def conclude(self, email: ClaimedEmail, judged: Sequence[Judged]) -> None:
        """Concludes an attempt."""
        report(self.app.routes["default"].conclusions.conclude(Decision.of(email, judged)))

    def deliveries(self, email: ClaimedEmail) -> Iterator[Judged]:
        """The attempts at an email, one recipient after the other, as the sender makes them."""
        client = ChannelClient(self.app.routes["default"].channel)
        attempt = self.app.routes["default"].email_work.attempt(email)
        try:
            while (step := attempt.advance()) is not None:
                if isinstance(step, Blocking):
                    step.work()
                else:
                    yield from attempt.judged
                    attempt.judged.clear()
                    attempt.take(client.deliver(step))
            yield from attempt.judged
        finally:
            client.close()

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

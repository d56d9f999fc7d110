"""What happens to the demo's items while the workers deliver them: clears, an operator's hand, a mended template."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from duepost import client
from duepost.demo import messages
from duepost.demo.messages import PlannedMessage
from duepost.demo.plan import PlannedEmail
from models import emails
from models.database.connections import Database
from models.database.statements import statements

SQL = statements(__file__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of the demo's emails and messages stand where."""

    scheduled: int
    queued: int
    sending: int
    unknown: int
    finished: int


@dataclass
class Director:
    """Schedules the plan, and does to each email what its line says, when its moment has come."""

    database: Database
    templates: Path
    emails: Mapping[int, PlannedEmail] = field(default_factory=dict)
    messages: Mapping[int, PlannedMessage] = field(default_factory=dict)
    _done: set[int] = field(default_factory=set)

    def introduce(self, plan: Sequence[PlannedEmail]) -> None:
        """Makes the plan's users known, unless they are."""
        users = {user for planned in plan for user in _users(planned)}
        self.database.execute(SQL["introduce"], {"users": sorted(users)})

    def schedule(self, plan: Sequence[PlannedEmail], message_plan: Sequence[PlannedMessage] = ()) -> Iterator[int]:
        """Schedules all in one transaction: all of the plan, or nothing. Yields how many emails are done."""
        scheduled: dict[int, PlannedEmail] = {}
        scheduled_messages: dict[int, PlannedMessage] = {}
        with self.database.transaction() as cursor:
            for planned in plan:
                email_id = client.schedule_email(cursor, **planned.arguments)  # type: ignore[arg-type]
                scheduled[email_id] = planned
                yield len(scheduled)
            for message in message_plan:
                is_changed = message.edit is not None or message.is_cleared
                scheduled_messages[messages.schedule(cursor, message, messages.LATER if is_changed else 0)] = message
        self.emails, self.messages = scheduled, scheduled_messages

    @property
    def items(self) -> Mapping[int, PlannedEmail | PlannedMessage]:
        """Emails and messages."""
        return {**self.emails, **self.messages}

    def progress(self) -> Progress:
        """How things stand."""
        [row] = self.database.execute(SQL["progress"], {"ids": list(self.items)})
        return Progress(*row)  # type: ignore[arg-type]  # five counts

    def outcomes(self) -> dict[int, Counter[str]]:
        """What each email and message came to, by id, from the ledger."""
        found: dict[int, Counter[str]] = {item_id: Counter() for item_id in self.items}
        for email_id, outcome, count in self.database.execute(SQL["outcomes"], {"ids": list(self.items)}):
            found[int(str(email_id))][str(outcome)] = int(str(count))
        return found

    def act(self) -> Iterator[str]:
        """Does what is to be done now; yields a line for each thing done."""
        for message_id, message in self.messages.items():
            if message_id not in self._done and (message.edit is not None or message.is_cleared):
                self._done.add(message_id)
                with self.database.transaction() as cursor:
                    line = messages.change(cursor, message_id, message)
                yield line
        for email_id, planned in self.emails.items():
            if email_id in self._done or not (planned.clear or planned.hasten or planned.mend):
                continue
            done = self._clear(email_id, planned) if planned.clear else self._hasten(email_id, planned)
            if done:
                self._done.add(email_id)
                yield done

    def _clear(self, email_id: int, planned: PlannedEmail) -> str | None:
        standing = self._standing(email_id)
        if planned.clear == "too late" and standing is not None and standing[0] != "sending":
            return None
        with self.database.transaction() as cursor:
            receipt = client.clear_scheduled_email(cursor, email_id)
        return f"email {email_id} is cleared: the receipt says {receipt}"

    def _hasten(self, email_id: int, planned: PlannedEmail) -> str | None:
        standing = self._standing(email_id)
        if standing is None or standing[0] != "scheduled" or not standing[1]:
            return None
        if planned.mend:
            self._mend(planned.mend)
        with self.database.transaction() as cursor:
            emails.retry_now(cursor, email_id)
        why = f"template {planned.mend} is mended" if planned.mend else f"{planned.hasten}"
        return f"email {email_id}: {why}; retried by hand (duepost retry {email_id})"

    def _mend(self, template: str) -> None:
        for path in self.templates.glob(f"{template}.*"):
            path.write_text(path.read_text(encoding="utf-8").replace("nmuber", "number"), encoding="utf-8")

    def _standing(self, email_id: int) -> tuple[str, int, str] | None:
        rows = self.database.execute(SQL["standing"], {"id": email_id})
        return rows[0] if rows else None  # type: ignore[return-value]  # the statement's three columns


def _users(planned: PlannedEmail) -> list[str]:
    users = planned.arguments.get("users")
    return [str(user) for user in users] if isinstance(users, list) else []

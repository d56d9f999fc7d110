"""What happens to the demo's emails while the workers deliver them: clears, an operator's hand, a mended template."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from duepost import client
from duepost.demo.plan import PlannedEmail
from models import emails
from models.database.connections import Database
from models.database.statements import statements

SQL = statements(__file__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How many of the demo's emails stand where."""

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
    _done: set[int] = field(default_factory=set)

    def introduce(self, plan: Sequence[PlannedEmail]) -> None:
        """Makes the plan's users known, unless they are."""
        users = {user for planned in plan for user in _users(planned)}
        self.database.execute(SQL["introduce"], {"users": sorted(users)})

    def schedule(self, plan: Sequence[PlannedEmail]) -> Iterator[int]:
        """Schedules all in one transaction: all of the plan, or nothing. Yields how many are done."""
        scheduled: dict[int, PlannedEmail] = {}
        with self.database.transaction() as cursor:
            for planned in plan:
                email_id = client.schedule_email(cursor, **planned.arguments)  # type: ignore[arg-type]
                scheduled[email_id] = planned
                yield len(scheduled)
        self.emails = scheduled

    def progress(self) -> Progress:
        """How things stand."""
        [row] = self.database.execute(SQL["progress"], {"ids": list(self.emails)})
        return Progress(*row)  # type: ignore[arg-type]  # five counts

    def outcomes(self) -> dict[int, Counter[str]]:
        """What each email came to, by id, from the ledger."""
        found: dict[int, Counter[str]] = {email_id: Counter() for email_id in self.emails}
        for email_id, outcome, count in self.database.execute(SQL["outcomes"], {"ids": list(self.emails)}):
            found[int(str(email_id))][str(outcome)] = int(str(count))
        return found

    def act(self) -> Iterator[str]:
        """Does what is to be done now; yields a line for each thing done."""
        for email_id, planned in self.emails.items():
            if email_id in self._done or not (planned.clear or planned.hasten or planned.mend):
                continue
            line = self._clear(email_id, planned) if planned.clear else self._hasten(email_id, planned)
            if line:
                self._done.add(email_id)
                yield line

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

"""An email's life in memory: what Duepost's database is to say after each step. No clock, no SQL."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

#: Stands for the one recipient of an email to an address.
ADDRESS = ""


class Verdict(StrEnum):
    """What a relay does to one copy."""

    SENT = "sent"
    REFUSED = "refused"
    LATER = "later"
    LOST = "lost after it was taken"
    CUT = "cut off at the dot"
    RELAY = "the relay's own fault"


#: Verdicts with which the relay has taken the copy.
TAKEN = frozenset({Verdict.SENT, Verdict.LOST})
#: Verdicts after which nobody knows.
UNKNOWN = frozenset({Verdict.LOST, Verdict.CUT})
#: The outcome of a verdict that ends it for the recipient.
OUTCOMES: Mapping[Verdict, str] = {Verdict.SENT: "sent", Verdict.REFUSED: "undeliverable"}


@dataclass
class Email:
    """One email that is not finished. `users` maps each that is still on it to its outcome, if it has one."""

    kind: str
    users: dict[str, str | None]
    due: bool
    state: str = "scheduled"
    attempts: int = 0
    unknowns: int = 0
    expired: bool = False
    probe: bool = False
    #: Users whose copy may have arrived.
    unsure: set[str] = field(default_factory=set)

    @property
    def to_go(self) -> list[str]:
        """The users that are still to get it, in the order in which they do."""
        return sorted(user for user, outcome in self.users.items() if outcome is None)

    @property
    def is_pending(self) -> bool:
        """Whether it may still be changed from outside."""
        return self.state in {"scheduled", "queued"}

    @property
    def is_clearable(self) -> bool:
        """Whether it can be promised never to be sent."""
        return self.is_pending and self.unknowns == 0


@dataclass
class Model:
    """All emails, the ledger, the relay's copies, the operator's pause and the circuit."""

    emails: dict[int, Email] = field(default_factory=dict)
    ledger: Counter[tuple[int, str, str | None]] = field(default_factory=Counter)
    copies: Counter[tuple[int, str]] = field(default_factory=Counter)
    paused: bool = False
    circuit_open: bool = False
    probe_is_due: bool = False

    def clear_users(self, users: Iterable[str], kind: str | None) -> list[tuple[int, str]]:
        """Takes users off; gives the receipts of each email that had one of them."""
        off = set(users)
        return [
            (email_id, receipt)
            for email_id, email in sorted(self.emails.items())
            if off & set(email.users) - {ADDRESS} and kind in {None, email.kind}
            for receipt in self._take_off(email_id, email, off)
        ]

    def _take_off(self, email_id: int, email: Email, off: set[str]) -> list[str]:
        removed = [user for user in email.to_go if user in off]
        if not email.is_clearable or not removed:
            return ["too_late"]
        for user in removed:
            del email.users[user]
        if not email.users:
            self.finish(email_id, "cleared")
            return ["cleared"]
        is_late = bool(off & set(email.users))
        if not email.to_go:
            self.finish(email_id, None)
        return ["user_removed", "too_late"] if is_late else ["user_removed"]

    def clear(self, email_id: int) -> str:
        """Clears one email whole."""
        email = self.emails.get(email_id)
        if email is None or not email.is_clearable:
            return "too_late"
        partly = len(email.to_go) < len(email.users)
        self.finish(email_id, "cleared")
        return "user_removed" if partly else "cleared"

    def reschedule(self, email_id: int, *, due: bool) -> str:
        """Moves one email to another time."""
        email = self.emails.get(email_id)
        if email is None or not email.is_pending:
            return "too_late"
        if email.expired:
            return "refused"
        email.state, email.due, email.probe = "scheduled", due, False
        return "rescheduled"

    def finish(self, email_id: int, outcome: str | None) -> None:
        """Into the ledger: a row for each user that has an outcome, and one for the email's own."""
        email = self.emails.pop(email_id)
        for user, own in email.users.items():
            if own is not None:
                self.ledger[email_id, own, user or None] += 1
        if outcome is not None:
            self.ledger[email_id, outcome, None] += 1

    @property
    def has_queued(self) -> bool:
        """Whether a sender has something to do."""
        return any(email.state == "queued" for email in self.emails.values())

    def due_ids(self) -> set[int]:
        """What the scheduler would find."""
        return {email_id for email_id, email in self.emails.items() if email.state == "scheduled" and email.due}

    def enqueue(self, email_id: int, *, probe: bool = False) -> bool:
        """Scheduled → queued, or into the ledger if its time is over; gives whether it is queued."""
        email = self.emails[email_id]
        if email.expired:
            self.finish(email_id, "expired")
            return False
        email.state, email.probe = "queued", probe
        return True

    def trigger(self, due_in_order: Sequence[int]) -> None:
        """A pass of the scheduler."""
        if not self.paused and not self.circuit_open:
            for email_id in due_in_order:
                self.enqueue(email_id)
        elif self.circuit_open and self.probe_is_due and not self.paused and due_in_order:
            self.probe_is_due = False
            for email_id in due_in_order:
                if self.enqueue(email_id, probe=True):
                    return

    def claim(self, email_id: int, *, is_mark: bool) -> bool:
        """Scheduled or queued → sending; gives whether it may be delivered now.

        A message by which the email is queued goes where it may not be sent now; another one changes nothing then.
        """
        email = self.emails.get(email_id)
        if email is None or not email.is_pending:
            return False
        if email.expired:
            self.finish(email_id, "expired")
            return False
        if self.paused or not email.due or (self.circuit_open and not email.probe):
            email.probe = False
            if is_mark:
                email.state = "scheduled"
            return False
        email.state = "sending"
        return True

    def take(self, email_id: int, users: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """What the relay does with the copies, one after the other."""
        for user, verdict in zip(users, verdicts, strict=True):
            if verdict in TAKEN:
                self.copies[email_id, user] += 1

    def conclude(self, email_id: int, users: Sequence[str], verdicts: Sequence[Verdict]) -> None:
        """What an attempt means for the email."""
        email = self.emails[email_id]
        probe, email.probe = email.probe, False
        for user, verdict in zip(users, verdicts, strict=True):
            email.users[user] = OUTCOMES.get(verdict)
            if verdict in UNKNOWN:
                email.unsure.add(user)
        if Verdict.RELAY in verdicts and not self.circuit_open:
            self.circuit_open, self.probe_is_due = True, False
        elif probe and (Verdict.RELAY in verdicts or not set(verdicts) - UNKNOWN):
            self.probe_is_due = False
        elif probe:
            self.circuit_open = self.probe_is_due = False
        if not email.to_go:
            self.finish(email_id, None)
        elif set(verdicts) & UNKNOWN:
            self.lose(email_id)
        else:
            email.state, email.attempts, email.due = "scheduled", email.attempts + 1, email.expired

    def lose(self, email_id: int) -> None:
        """Nobody knows what came of an attempt: once more, or a person decides."""
        email = self.emails[email_id]
        is_sent_again = email.unknowns == 0 and email.kind == "resend"
        email.state = "scheduled" if is_sent_again else "unknown"
        email.attempts, email.unknowns = email.attempts + 1, email.unknowns + 1
        email.due, email.probe = True, False

    def resolve_resend(self, email_id: int) -> bool:
        """A person wants it sent again."""
        email = self.emails[email_id]
        if not (email.state == "unknown" or (email.state == "scheduled" and email.unknowns > 0)):
            return False
        email.state, email.due = "scheduled", True
        return True

    def resolve_sent(self, email_id: int) -> bool:
        """A person says that it arrived."""
        email = self.emails[email_id]
        if not (email.state == "unknown" or (email.state == "scheduled" and email.unknowns > 0)):
            return False
        unsure = email.unsure & set(email.to_go)
        for user in unsure or email.to_go:
            email.users[user] = "sent"
        email.unsure.clear()
        if email.to_go:
            return self.resolve_resend(email_id)
        self.finish(email_id, None)
        return True

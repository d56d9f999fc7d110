"""The words that the database, the workers and the command share."""

from enum import IntEnum, StrEnum


class State(StrEnum):
    """Where a scheduled email that is not finished stands."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    SENDING = "sending"
    UNKNOWN = "unknown"


class Outcome(StrEnum):
    """How a finished email ended; the ledger's word."""

    SENT = "sent"
    UNDELIVERABLE = "undeliverable"
    CLEARED = "cleared"
    EXPIRED = "expired"
    SUPPRESSED = "suppressed"
    OBSOLETE = "obsolete"


class Priority(IntEnum):
    """In which line of its route an item is: the lower, the sooner it leaves."""

    URGENT = -1
    NORMAL = 0
    BULK = 1

    @property
    def word(self) -> str:
        """As users have it."""
        return self.name.lower()


class Verdict(StrEnum):
    """What one attempt came to, for one recipient."""

    SENT = "sent"
    UNDELIVERABLE = "undeliverable"
    RETRY = "retry"
    UNKNOWN = "unknown"


class Reopening(StrEnum):
    """What `duepost reopen` answers for one email."""

    REOPENED = "reopened"
    EXPIRED = "expired"
    NOT_KEPT = "not_kept"
    NOT_UNDELIVERABLE = "not_undeliverable"
    TOO_LATE = "too_late"

"""What came back after a relay had taken an email: bounces and complaints, each once."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime

from models.database.connections import Database
from models.database.statements import statements

SQL = statements(__file__)


@dataclass(frozen=True, slots=True)
class Sent:
    """Whom an email went to.

    Attributes:
        email_id: the email.
        kind: its kind.
        address: the recipient's.
        route: by which it went; None: the default one.
        is_unsubscribable: whether recipients can unsubscribe from the kind.
    """

    email_id: int
    kind: str
    address: str
    route: str | None
    is_unsubscribable: bool


@dataclass(frozen=True, slots=True)
class Noted:
    """What came back, and what follows.

    Attributes:
        source: where it came in: `mailbox`.
        source_id: what it is called there; the same is noted once.
        email_id: the email that it is about, where that is believed.
        kind: its kind.
        address: the recipient's.
        event: what it says: `failed`, `abuse` and the like.
        effect: what follows.
        scope: where that is to suppress, of which kind; None: of all emails.
        enhanced_code: of the last server (RFC 3463).
        reply: what it said.
    """

    source: str
    source_id: str | None = None
    email_id: int | None = None
    kind: str | None = None
    address: str | None = None
    event: str = ""
    effect: str = ""
    scope: str | None = None
    enhanced_code: str | None = None
    reply: str | None = None


@dataclass(frozen=True, slots=True)
class Bounce:
    """What came back, as it was noted. The time is UTC."""

    received_at: datetime
    source: str
    event: str
    effect: str
    email_id: int | None
    kind: str | None
    address: str | None
    enhanced_code: str | None
    reply: str | None


def sent(database: Database, email_id: int, days: int) -> list[Sent]:
    """Whom an email went to in the last days, as far as a relay took it."""
    rows = database.execute(SQL["sent"], {"id": email_id, "days": days})
    return [Sent(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the fields


def note(database: Database, noted: Noted) -> bool:
    """Notes what came back, and suppresses where that follows, in one transaction; False where it was known."""
    return database.execute(SQL["note"], asdict(noted)) == [(True,)]


def newest(database: Database, limit: int) -> list[Bounce]:
    """What came back lately, the newest first."""
    return [Bounce(*row) for row in database.execute(SQL["newest"], {"limit": limit})]  # type: ignore[arg-type]  # as above


def of_email(database: Database, email_id: int) -> list[Bounce]:
    """What came back of an email, in order."""
    return [Bounce(*row) for row in database.execute(SQL["of_email"], {"id": email_id})]  # type: ignore[arg-type]  # as above


def lately(database: Database) -> Mapping[str, int]:
    """How many came back in the last day, by what followed."""
    return {str(effect): int(str(number)) for effect, number in database.execute(SQL["lately"])}

"""What came back after a relay had taken an email: bounces and complaints, each once."""

from collections.abc import Mapping, Sequence
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
        source: where it came in: `mailbox`, or the provider whose webhook it was.
        source_id: what it is called there; the same is noted once.
        email_id: the email that it is about, where that is believed.
        kind: its kind.
        address: the recipient's.
        event: what it says: `failed`, `abuse` and the like.
        effect: what follows.
        scope: where that is to suppress, of which kind; None: of all emails.
        enhanced_code: of the last server (RFC 3463).
        reply: what it said.
        token: of a signature that counts once; None: what it was signed with says nothing of that.
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
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """Whether a provider's calls come in. Times are UTC.

    Attributes:
        source: the provider.
        accepted_at: when one was last taken; None: never.
        refused_at: when one was last refused; None: never.
        refused_because: why.
    """

    source: str
    accepted_at: datetime | None
    refused_at: datetime | None
    refused_because: str | None


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


def sent_as(
    database: Database, addresses: Sequence[str], days: int, *, message_id: str | None, relay_id: str | None
) -> list[int]:
    """The emails that a provider means, of those that went to these addresses lately: at most two.

    Args:
        database: where.
        addresses: the recipients'.
        days: how many days ago at the most.
        message_id: what stands before the @ of our Message-ID.
        relay_id: what the relay has called it in its reply to the dot.
    """
    asked = {
        "addresses": [_storable(each) for each in addresses], "days": days, "message_id": _storable(message_id),
        "relay_id": _storable(relay_id),
    }  # fmt: skip
    return [int(str(email_id)) for (email_id,) in database.execute(SQL["sent_as"], asked)]


def note(database: Database, noted: Noted) -> bool:
    """Notes what came back, and suppresses where that follows, in one transaction; False where it was known."""
    found = {name: _storable(value) for name, value in asdict(noted).items()}
    return database.execute(SQL["note"], found) == [(True,)]


def _storable(value: object) -> object:
    """A text without what PostgreSQL's text cannot hold, whoever has sent it."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def use_token(database: Database, source: str, token: str) -> bool:
    """Uses the token of a signature up; False where it was used before."""
    return database.execute(SQL["use_token"], {"source": source, "token": token}) == [(True,)]


def tell_webhook(database: Database, source: str, refused_because: str | None) -> None:
    """A call of a provider's webhook has been taken (None), or was refused."""
    database.execute(SQL["tell_webhook"], {"source": source, "refused_because": refused_because})


def webhooks(database: Database) -> list[Webhook]:
    """Whether calls come in, for each provider that ever made one."""
    return [Webhook(*row) for row in database.execute(SQL["webhooks"])]  # type: ignore[arg-type]  # as above


def newest(database: Database, limit: int) -> list[Bounce]:
    """What came back lately, the newest first."""
    return [Bounce(*row) for row in database.execute(SQL["newest"], {"limit": limit})]  # type: ignore[arg-type]  # as above


def of_email(database: Database, email_id: int) -> list[Bounce]:
    """What came back of an email, in order."""
    return [Bounce(*row) for row in database.execute(SQL["of_email"], {"id": email_id})]  # type: ignore[arg-type]  # as above


def lately(database: Database) -> Mapping[str, int]:
    """How many came back in the last day, by what followed."""
    return {str(effect): int(str(number)) for effect, number in database.execute(SQL["lately"])}

"""What people look at: what is pending, one email's story, counts, and the state of the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from models.database.connections import Database
from models.database.statements import statements
from models.words import Outcome, State

SQL = statements(__file__)


@dataclass(frozen=True, slots=True)
class PendingEmail:
    """One email that is not finished, or one message, which has an endpoint. Times are UTC."""

    id: int
    kind: str
    state: State
    scheduled_at: datetime
    due_at: datetime
    expires_at: datetime | None
    attempts: int
    unknowns: int
    last_error: str | None
    key: str | None
    due_in_seconds: float
    endpoint: str | None


@dataclass(frozen=True, slots=True)
class Troubles:
    """What has failed and is not finished.

    Attributes:
        retrying: emails that wait for another attempt, or are in one.
        most_attempts: how many attempts the one with the most has behind it.
        retrying_seconds: for how long the oldest of them has been due, since its own time; None where there is none.
        on_templates: those of them that failed when they were rendered.
        on_recipients: those of them for which duepost.recipient failed.
        unknown: emails that wait for a person.
        unknown_seconds: for how long the oldest of those has waited; None where there is none.
        unknown_id: one of those.
    """

    retrying: int
    most_attempts: int
    retrying_seconds: float | None
    on_templates: int
    on_recipients: int
    unknown: int
    unknown_seconds: float | None
    unknown_id: int | None


@dataclass(frozen=True, slots=True)
class Failure:
    """What templates, or duepost.recipient, fail of: how often, and one of the emails, which stands for all.

    Of a template the reason names file and line; of duepost.recipient it has no value of a row.
    """

    reason: str
    emails: int
    email_id: int


@dataclass(frozen=True, slots=True)
class UnservedRoute:
    """A route that no living worker serves: how many emails are due on it, and which kinds name it."""

    name: str
    due: int
    kinds: list[str]


@dataclass(frozen=True, slots=True)
class Minute:
    """What ended in one minute.

    Attributes:
        ago: how many minutes ago, 0 for the one that is not over.
        sent: how many ledger rows say `sent`.
        others: how many say something else.
        late_p50: seconds by which half of what was sent came later than it was scheduled; None where nothing was sent.
        late_p95: the same of 95 in 100.
    """

    ago: int
    sent: int
    others: int
    late_p50: float | None
    late_p95: float | None


@dataclass(frozen=True, slots=True)
class Working:
    """A worker process that is not gone: what it sends now, and for how long it has been sending the oldest of it.

    Attributes:
        id: its number.
        host: the machine.
        pid: the process there.
        release: of its code; None with release 0.1.
        started_at: when it began.
        is_missing: its session has ended; it may come back.
        sending: how many items it has in hand.
        oldest_seconds: for how long the oldest of them; None where it has none.
        kinds: of which kinds they are.
        item_id: one of them; None where it has none.
    """

    id: int
    host: str
    pid: int
    release: str | None
    started_at: datetime
    is_missing: bool
    sending: int
    oldest_seconds: float | None
    kinds: list[str]
    item_id: int | None


@dataclass(frozen=True, slots=True)
class Server:
    """The PostgreSQL server: its version, also as a number, its clock in seconds since 1970, if it takes writes."""

    version: str
    number: int
    clock: float
    is_standby: bool
    is_read_only: bool


def pending(database: Database, *, state: State | None, kind: str | None, limit: int) -> list[PendingEmail]:
    """What is not finished: what waits for a person first, then the next due."""
    rows = database.execute(SQL["pending"], {"state": state, "kind": kind, "limit": limit})
    return [PendingEmail(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the fields


def count_pending(database: Database, *, state: State | None, kind: str | None) -> int:
    """How many are not finished."""
    return _number(database, SQL["count_pending"], state=state, kind=kind)


def email(database: Database, email_id: int) -> Mapping[str, object] | None:
    """The row of an email or message that is not finished; of its content only a batch's items. None: there is none."""
    rows = database.execute(SQL["email"], {"id": email_id})
    return rows[0][0] if rows else None  # type: ignore[return-value]  # jsonb


def channels(database: Database, item_ids: Sequence[int]) -> dict[int, str]:
    """The channel of each of these items of which something is known: `email` or `message`."""
    rows = database.execute(SQL["channels"], {"ids": list(item_ids)})
    return {int(str(item_id)): str(channel) for item_id, channel in rows}


def deliveries(database: Database, email_id: int) -> list[Mapping[str, object]]:
    """How an email ended, for each recipient; empty while it is not finished."""
    return [row[0] for row in database.execute(SQL["deliveries"], {"id": email_id})]  # type: ignore[misc]  # jsonb


def attempts(database: Database, email_id: int) -> list[Mapping[str, object]]:
    """Each attempt at an email, in order."""
    return [row[0] for row in database.execute(SQL["attempts"], {"id": email_id})]  # type: ignore[misc]  # jsonb


def pending_by_state(database: Database) -> dict[str, int]:
    """How many emails are in each state; states without one are 0."""
    counts = {str(state): 0 for state in State}
    counts.update((str(state), int(str(count))) for state, count in database.execute(SQL["pending_by_state"]))
    return counts


def outcomes(database: Database) -> dict[str, int]:
    """How many ledger rows have each outcome; outcomes without one are 0."""
    counts = {str(outcome): 0 for outcome in Outcome}
    counts.update((str(outcome), int(str(count))) for outcome, count in database.execute(SQL["outcomes"]))
    return counts


def sent_lately(database: Database) -> tuple[int, int]:
    """How many were sent in the last minute and in the last hour."""
    [(minute, hour)] = database.execute(SQL["sent_lately"])
    return int(str(minute)), int(str(hour))


def last_hour(database: Database) -> list[Minute]:
    """What ended in each minute of the last hour, the newest first; minutes in which nothing did are left out."""
    # The statement's columns are the fields.
    return [Minute(*row) for row in database.execute(SQL["last_hour"])]  # type: ignore[arg-type]


def workers(database: Database) -> list[Working]:
    """The worker processes that are not gone, and what each is sending."""
    return [Working(*row) for row in database.execute(SQL["workers"])]  # type: ignore[arg-type]  # as above


def oldest_due(database: Database) -> float | None:
    """Seconds for which the oldest due email has been waiting; None where nothing is due."""
    [(seconds,)] = database.execute(SQL["oldest_due"])
    return None if seconds is None else float(str(seconds))


def held_back(database: Database) -> float | None:
    """Seconds for which the oldest due item that somebody has paused has been waiting; None where none is due."""
    [(seconds,)] = database.execute(SQL["held_back"], {})
    return None if seconds is None else float(str(seconds))


def expired_lately(database: Database) -> tuple[int, int | None]:
    """How many items have expired within the last hour, and the newest of them."""
    [(number, newest)] = database.execute(SQL["expired_lately"])
    return int(str(number)), None if newest is None else int(str(newest))


def due_count(database: Database) -> int:
    """How many emails are due and not yet being sent."""
    return _number(database, SQL["due_count"])


def unserved_routes(database: Database) -> list[UnservedRoute]:
    """The routes that no living worker serves, though something is due on them or a kind names them."""
    rows = database.execute(SQL["unserved_routes"])
    return [UnservedRoute(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the fields


def troubles(database: Database) -> Troubles:
    """What has failed and is not finished."""
    [row] = database.execute(SQL["troubles"])
    return Troubles(*row)  # type: ignore[arg-type]  # the statement's columns are the fields


def template_failures(database: Database, limit: int) -> list[Failure]:
    """What templates fail of, the most frequent first."""
    rows = database.execute(SQL["template_failures"], {"limit": limit})
    return [Failure(*row) for row in rows]  # type: ignore[arg-type]  # as above


def recipient_failures(database: Database, limit: int) -> list[Failure]:
    """What duepost.recipient fails of, the most frequent first."""
    rows = database.execute(SQL["recipient_failures"], {"limit": limit})
    return [Failure(*row) for row in rows]  # type: ignore[arg-type]  # as above


def has_recipients(database: Database) -> bool:
    """Whether duepost.recipient is there: a team may have dropped it, to put its own view there."""
    return database.execute(SQL["has_recipients"]) == [(True,)]


def last_pass(database: Database) -> float | None:
    """Seconds since the scheduler's last pass, to twenty seconds; None where there was none yet."""
    [(seconds,)] = database.execute(SQL["last_pass"])
    return None if seconds is None else float(str(seconds))


def killed_workers(database: Database) -> int:
    """How many workers, of the last day, have not left in order."""
    return _number(database, SQL["killed_workers"])


def queue_depth(database: Database) -> tuple[int, int]:
    """How many of the broker's messages wait, and how many are in hand."""
    [(waiting, in_hand)] = database.execute(SQL["queue_depth"])
    return int(str(waiting)), int(str(in_hand))


def sending(database: Database) -> tuple[int, float]:
    """How many emails are being sent, and for how many seconds the oldest."""
    [(number, seconds)] = database.execute(SQL["sending"])
    return int(str(number)), 0.0 if seconds is None else float(str(seconds))


def failing_messages(database: Database) -> dict[str, int]:
    """What the broker's messages that are tried again have failed of: types of exceptions, and how many messages."""
    return {str(failure): int(str(number)) for failure, number in database.execute(SQL["failing_messages"])}


def message_id_domain(database: Database) -> str | None:
    """The domain of the Message-IDs of emails that name no sender; None before the first worker has started."""
    [(domain,)] = database.execute(SQL["message_id_domain"])
    return None if domain is None else str(domain)


def dead_letters(database: Database) -> int:
    """How many of the broker's messages failed for good."""
    return _number(database, SQL["dead_letters"])


def _number(database: Database, statement: str, **parameters: object) -> int:
    [(count,)] = database.execute(statement, parameters)
    return int(str(count))


def server(database: Database) -> Server:
    """The server behind the connection."""
    [row] = database.execute(SQL["server"])
    return Server(*row)  # type: ignore[arg-type]  # the statement's columns are the fields


def horizons(database: Database) -> list[tuple[str, float | None]]:
    """What keeps done rows from being removed, and for how many seconds, None where that is not known.

    Sessions of others are only seen by members of pg_read_all_stats.
    """
    rows = database.execute(SQL["horizons"], {})
    return [(str(holder), None if seconds is None else float(str(seconds))) for holder, seconds in rows]


def sees_all_sessions(database: Database) -> bool:
    """Whether our role may see what the sessions of others do."""
    return database.execute(SQL["sees_all_sessions"]) == [(True,)]


class Rights(NamedTuple):
    """What a role may do of what it is there for.

    Attributes:
        role: its name.
        exists: whether it is there.
        lacking: what it lacks, such as `SELECT on duepost.recipient`; empty where it is not there.
    """

    role: str
    exists: bool
    lacking: Sequence[str]


def rights(database: Database) -> list[Rights]:
    """What each of Duepost's roles for clients, operators and workers may do."""
    rows = database.execute(SQL["lacking_rights"], {"own": False})
    return [Rights(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the fields


def own_rights(database: Database) -> Rights:
    """What our own role may do of what a worker does."""
    [row] = database.execute(SQL["lacking_rights"], {"own": True})
    return Rights(*row)  # type: ignore[arg-type]  # the statement's columns are the fields


def templates_wanted(database: Database) -> bool:
    """Whether any email that is not finished names a template."""
    return database.execute(SQL["templates_wanted"]) == [(True,)]


#: Emails that are not finished, the newest ones, among which each kind's context is looked for.
RECENT = 1_000


class RecentContext(NamedTuple):
    """What an email that is not finished gives its template.

    Attributes:
        kind: what sort of email it is.
        template: the template's name.
        context: the context, as JSON in text.
        to_users: whether it goes to users, who have names; else to an address.
    """

    kind: str
    template: str
    context: str | None
    to_users: bool


def recent_contexts(database: Database) -> list[RecentContext]:
    """The newest context of each kind and template, among the newest emails that are not finished."""
    rows = database.execute(SQL["recent_contexts"], {"limit": RECENT})
    return [RecentContext(*row) for row in rows]  # type: ignore[arg-type]  # the statement's columns are the fields


def context_of(database: Database, email_id: int) -> str | None:
    """The context of an email that is not finished, as JSON in text; None if there is no such email with a template."""
    rows = database.execute(SQL["context_of"], {"id": email_id})
    return str(rows[0][0] or "{}") if rows else None


def recipient_of(database: Database, user: str) -> Mapping[str, object] | None:
    """What templates see of a user; None if `duepost.recipient` has no such one."""
    rows = database.execute(SQL["recipient_of"], {"user": user})
    return dict(zip(("user_id", "address", "name", "locale", "timezone"), rows[0], strict=True)) if rows else None

"""What commands share: which database, how to print, and what an error means."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated

import psycopg2
import typer
from psycopg2 import errorcodes

from actors.queue.broker import PostgresBroker
from actors.settings import BadSettings, settings
from actors.tick import tick
from duepost.embedded import EmbeddedPostgres
from models.database.connections import Database
from models.database.deadlines import Deadlines
from models.database.migrate import check_schema
from models.errors import DuepostError

#: Where `duepost up` keeps everything, below the working directory.
UP = Path(".duepost")

#: Where it keeps the embedded PostgreSQL.
EMBEDDED = UP / "postgres"

#: SQLSTATEs of input that is wrong: the user can mend it.
BAD_INPUT = frozenset(
    {
        errorcodes.INVALID_PARAMETER_VALUE,
        errorcodes.UNIQUE_VIOLATION,
        errorcodes.INVALID_DATETIME_FORMAT,
        errorcodes.DATETIME_FIELD_OVERFLOW,
        errorcodes.NUMERIC_VALUE_OUT_OF_RANGE,
        errorcodes.INVALID_TEXT_REPRESENTATION,
        errorcodes.UNTRANSLATABLE_CHARACTER,
        errorcodes.PROGRAM_LIMIT_EXCEEDED,
        errorcodes.STATEMENT_TOO_COMPLEX,
    }
)

#: SQLSTATEs of a database without Duepost's schema, or with an older one.
NO_SCHEMA = frozenset(
    {
        errorcodes.INVALID_SCHEMA_NAME,
        errorcodes.UNDEFINED_TABLE,
        errorcodes.UNDEFINED_FUNCTION,
        errorcodes.UNDEFINED_COLUMN,
    }
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
EmailId = Annotated[int, typer.Argument(help="The email's id.", min=1, max=2**63 - 1)]


class BadInput(DuepostError):
    """What the user gave is wrong: the message names the place and what would be right."""


class Failed(DuepostError):
    """The command could not do what it was asked for."""


def database_url() -> str:
    """The configured database, or the one of a `duepost up` in this folder.

    Raises:
        BadSettings: there is neither.
    """
    if settings().database_url is not None:
        return settings().need_database_url()
    running = EmbeddedPostgres.running_url(EMBEDDED)
    if running is None:
        raise BadSettings("DUEPOST_DATABASE_URL: not set, and no `duepost up` is running in this folder")
    return running


def uses_up() -> bool:
    """Whether this command has its database from a `duepost up` in this folder, whose relay is its own too."""
    return settings().database_url is None and settings().smtp_url is None


@cache
def deadlines() -> Deadlines:
    """Those of all databases of this command: built when the first one is."""
    return Deadlines()


def client_database() -> Database:
    """The database, for what a member of duepost_client may do."""
    return Database(database_url(), application_name="duepost command", deadlines=deadlines())


def session_database() -> Database:
    """The way to PostgreSQL itself, past a pooler, for sessions that have to last."""
    url = settings().session_url or database_url()
    return Database(url, application_name="duepost command", deadlines=deadlines())


def operator_database() -> Database:
    """The database, its schema checked.

    Raises:
        SchemaMismatch: the schema is missing or older.
    """
    database = client_database()
    check_schema(database)
    return database


def ask_for_pass(database: Database) -> bool:
    """Asks a worker for a pass of the scheduler, unless that is asked for already; says whether it was not."""
    return tick(PostgresBroker(database, []))


def explain(error: psycopg2.Error) -> DuepostError:
    """What a database's error means to the user, in a line."""
    text = " ".join((error.diag.message_primary or str(error)).split())
    if error.pgcode in BAD_INPUT:
        return BadInput(text)
    if error.pgcode in NO_SCHEMA:
        return Failed(f"the database's schema does not fit ({text}): run `duepost migrate`")
    if error.pgcode == errorcodes.INSUFFICIENT_PRIVILEGE:
        return Failed(
            f"this database role may not do that: {text}; an administrator makes it a member of duepost_client "
            "(schedule, clear, reschedule, message, status), of duepost_viewer (list, show, find, why), of that and "
            "duepost_operator (endpoint, but not its test; retry, resolve, reopen, pause, forget) or of duepost_worker "
            "(all else)"
        )
    return Failed(f"database: {text}")


@contextmanager
def argument(name: str) -> Iterator[None]:
    """Names the argument in the errors of what it was given."""
    try:
        yield
    except UnicodeEncodeError:
        raise
    except RecursionError as error:
        raise BadInput(f"{name}: nested too deeply") from error
    except ValueError as error:
        raise BadInput(f"{name}: {error}") from error

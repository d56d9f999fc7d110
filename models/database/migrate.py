"""Creates and upgrades the schema: tables by numbered plain-SQL files, functions as this code has them.

A migration is applied once, in a transaction of its own, and frozen from then on. The functions and the grants are
applied at each run, in one transaction.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from psycopg2.errors import DuplicateSchema, DuplicateTable, InsufficientPrivilege, LockNotAvailable, UniqueViolation

from models.database import preconditions
from models.database.connections import Cursor, Database, Limits
from models.database.preconditions import Holder
from models.database.statements import statements
from models.errors import DatabaseUnreachable, MigrationRefused, SchemaMismatch

FOLDER = Path(__file__).parent.parent / "migrations"
FUNCTIONS = Path(__file__).parent.parent / "functions"
GRANTS = Path(__file__).parent.parent / "grants.sql"
FILE_NAME = re.compile(r"^(?P<number>\d{4})_\w+\.sql$")
CREATE_SCHEMA = re.compile(r"^CREATE SCHEMA IF NOT EXISTS [^;]*;", re.MULTILINE)
COMMENT = re.compile(r"^COMMENT ON .*?';\n", re.MULTILINE | re.DOTALL)
SQL = statements(__file__)
T = TypeVar("T")

#: A migration waits this long (seconds) for a lock. Whoever comes after it waits too, so it gives way, and tries again.
GIVING_WAY = Limits(statement=0, lock=2.0, idle=0)

#: Seconds between two tries, and how many there are.
PAUSE = 1.0
TRIES = 200


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, in hex."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(folder: Path = FOLDER) -> list[Migration]:
    """The migrations of a folder, by number.

    Raises:
        MigrationRefused: a file's name is wrong, or two have the same number.
    """
    found: dict[int, Migration] = {}
    for path in sorted(folder.glob("*.sql")):
        match = FILE_NAME.match(path.name)
        if not match:
            raise MigrationRefused(f"{path.name}: a migration is named like 0001_tables.sql")
        number = int(match["number"])
        if number in found:
            raise MigrationRefused(f"{path.name}: {found[number].name} has the number {number} already")
        found[number] = Migration(number, path.name, path.read_text(encoding="utf-8"))
    return list(found.values())


def migrate(
    database: Database,
    *,
    queue_schema: str,
    folder: Path = FOLDER,
    functions: Path = FUNCTIONS,
    retention_days: int | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[str]:
    """Brings tables, functions and grants up to date; safe to repeat and to race.

    Each migration is committed on its own, under the lock of the record, which a racing run waits for. One that has to
    wait for a long transaction lets the others pass every two seconds: what runs goes on.

    Args:
        database: where to; its role needs the right to create schemas, unless both are there and its own.
        queue_schema: the SQL that makes the broker's own tables, run where they are missing.
        folder: the numbered files.
        functions: the files of the functions.
        retention_days: for how many days the ledger is kept at least from now on; as before without it.
        tell: hears what is waited for, once it takes longer than some seconds.

    Yields:
        the name of each file as it has been applied.

    Raises:
        MigrationRefused: an applied file has changed since; something in the schemas is a stranger's; the schemas
            cannot be made; or another transaction was in the way for ten minutes. Nothing is made before all but the
            last is known.
        UnfitDatabase: the server is too old, or the database's encoding is not UTF8.
        DatabaseUnreachable: no connection could be made.
    """
    known = migrations(folder)
    _locked(database, lambda cursor: _prepare(cursor, queue_schema, known), tell)
    for migration in known:
        if _locked(database, partial(_apply, migration=migration), tell):
            yield migration.name
    _locked(database, partial(_replace_functions, functions=functions), tell)
    if retention_days is not None:
        _locked(database, lambda cursor: cursor.execute(SQL["keep"], {"days": retention_days}), tell)


def check_schema(database: Database) -> None:
    """Makes sure that the database's schema is the one of this code, or a later one, and that this role may use it.

    Raises:
        UnfitDatabase: the server is too old, or the database's encoding is not UTF8.
        SchemaMismatch: it is missing or older; the message says what to run.
        NotPermitted: the role is no member of duepost_worker.
        DatabaseUnreachable: no connection could be made.
    """
    wanted = migrations()[-1]
    with database.transaction() as cursor:
        preconditions.check_server(cursor, writes=False)
    try:
        if database.execute(SQL["record_exists"]) == [(False,)]:
            raise SchemaMismatch("the database has no Duepost schema: run `duepost migrate`")
        [(applied,)] = database.execute(SQL["latest"])
    except InsufficientPrivilege as error:
        raise preconditions.not_permitted(database) from error
    if not isinstance(applied, int) or applied < wanted.number:
        raise SchemaMismatch(
            f"the database's schema is at {applied or 0}, this code needs {wanted.number}: run `duepost migrate`"
        )


def _locked(database: Database, work: Callable[[Cursor], T], tell: Callable[[str], None]) -> T:
    """One transaction under the lock of migrations; gives way, and tries again, where another one is in the way.

    Who has been in the way at two tries is named, once.
    """
    before: set[Holder] = set()
    told: set[Holder] = set()
    for _ in range(TRIES):
        try:
            with database.transaction(GIVING_WAY) as cursor:
                cursor.execute(SQL["settle_names"])
                preconditions.check_server(cursor, writes=True)
                preconditions.check_trust(cursor)
                cursor.execute(SQL["record_exists"])
                if cursor.fetchone() == (True,):
                    cursor.execute(SQL["lock"])
                return work(cursor)
        except DatabaseUnreachable as error:
            if not isinstance(error.__cause__, LockNotAvailable):
                raise
            with database.transaction() as cursor:
                now = preconditions.holders(cursor)
            for holder in sorted(now & before - told):
                tell(f"waiting for {holder}")
            told |= now & before
            before = now
        except (DuplicateSchema, DuplicateTable, UniqueViolation):
            # Another run has just made the same; what it is gets looked at like anything else that is there.
            pass
        time.sleep(PAUSE)
    named = "; ".join(map(str, sorted(told & before)[: preconditions.NAMED])) or "another transaction"
    raise MigrationRefused(f"{named} has been in the way for ten minutes: end it, and run `duepost migrate` again")


def _prepare(cursor: Cursor, queue_schema: str, known: Sequence[Migration]) -> None:
    """Checks all that is left to check, before anything is made; then makes schemas, record and the broker's tables."""
    missing = preconditions.missing_schemas(cursor)
    cursor.execute(SQL["record_exists"])
    is_new = cursor.fetchone() == (False,)
    if not is_new:
        cursor.execute(SQL["all_applied"])
        recorded = dict(cursor.fetchall())
        for migration in known:
            _check_unchanged(migration, recorded.get(migration.number))
    for name in missing:
        cursor.execute(f"CREATE SCHEMA {name}")
    if is_new:
        cursor.execute(SQL["create_record"])
    cursor.execute(SQL["queue_exists"])
    if cursor.fetchone() == (False,):
        # Its schema is there by now; to ask for it once more takes a right that this role need not have.
        cursor.execute(CREATE_SCHEMA.sub("", queue_schema))


def _apply(cursor: Cursor, migration: Migration) -> bool:
    if _is_applied(cursor, migration):
        return False
    cursor.execute(migration.sql)
    cursor.execute(SQL["record"], {"number": migration.number, "name": migration.name, "checksum": migration.checksum})
    return True


def _replace_functions(cursor: Cursor, functions: Path) -> None:
    """Applies the functions' files and the grants. A signature that this code has no more goes in the same moment."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(functions.glob("*.sql")))
    # A function may call another that comes in a later file.
    cursor.execute(SQL["defer_checks_of_bodies"])
    cursor.execute(COMMENT.sub("", text))
    cursor.execute(SQL["drop_old_signatures"])
    # Comments name functions without their arguments, so they wait until the old signatures are gone.
    cursor.execute("".join(COMMENT.findall(text)))
    cursor.execute(SQL["has_partitions"])
    if cursor.fetchone() == (False,):
        cursor.execute(SQL["make_partitions"])
    cursor.execute(GRANTS.read_text(encoding="utf-8"))


def _is_applied(cursor: Cursor, migration: Migration) -> bool:
    cursor.execute(SQL["applied"], {"number": migration.number})
    row = cursor.fetchone()
    if row is None:
        return False
    _check_unchanged(migration, row[0])
    return True


def _check_unchanged(migration: Migration, recorded: str | None) -> None:
    if recorded is not None and recorded != migration.checksum:
        raise MigrationRefused(
            f"{migration.name} has changed since it was applied: restore it, and put the change into a new file"
        )

"""Creates and upgrades the schema: tables by numbered plain-SQL files, functions as this code has them.

A migration is applied once, in a transaction of its own, and frozen from then on. The functions and the grants are
applied at each run, in one transaction, after the types that the functions take.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

from psycopg2.errors import (
    DeadlockDetected,
    DuplicateSchema,
    DuplicateTable,
    InsufficientPrivilege,
    LockNotAvailable,
    UniqueViolation,
)

from models.database import levels, preconditions
from models.database.connections import Cursor, Database, Limits
from models.database.preconditions import Holder
from models.database.statements import statements
from models.errors import DatabaseUnreachable, MigrationRefused, SchemaMismatch

FOLDER = levels.MIGRATIONS
FUNCTIONS = Path(__file__).parent.parent / "functions"
GRANTS = Path(__file__).parent.parent / "grants.sql"
FILE_NAME = re.compile(r"^(?P<number>\d{4})_\w+\.sql$")
CREATE_SCHEMA = re.compile(r"^CREATE SCHEMA IF NOT EXISTS [^;]*;", re.MULTILINE)
HEAD = re.compile(r"\A(?:--.*\n|\s*\n)*")
OLDEST_WORKER = re.compile(r"^-- oldest worker: (?P<level>\d{4})$", re.MULTILINE)
FUNCTION = re.compile(r"^CREATE OR REPLACE (?:FUNCTION|PROCEDURE|VIEW) duepost\.(\w+)", re.MULTILINE)
COMMENT = re.compile(r"^COMMENT ON .*?';\n", re.MULTILINE | re.DOTALL)
SQL = statements(__file__)
T = TypeVar("T")

#: A migration waits this long (seconds) for a lock. Whoever comes after it waits too, so it gives way, and tries again:
#: before PostgreSQL looks for a deadlock (deadlock_timeout, 1 s), and ends the other one.
GIVING_WAY = Limits(statement=0, lock=0.2, idle=0)

#: Seconds between two tries, and how many there are.
PAUSE = 1.0
TRIES = 500

#: Seconds that workers below a raised floor have to finish what they have in hand, before a migration that was told to
#: go on despite them does.
FAREWELL = 60.0


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

    @property
    def oldest_worker(self) -> int | None:
        """The level that a worker's code must have to work on its schema, said in its head; None for any."""
        head = HEAD.match(self.sql)
        said = OLDEST_WORKER.search(head[0]) if head else None
        return int(said["level"]) if said else None


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
        found[number] = migration = Migration(number, path.name, path.read_text(encoding="utf-8"))
        if (migration.oldest_worker or 0) > number:
            raise MigrationRefused(f"{path.name}: its oldest worker is at most {number:04}, one that knows this file")
    return list(found.values())


def migrate(
    database: Database,
    *,
    queue_schema: str,
    folder: Path = FOLDER,
    functions: Path = FUNCTIONS,
    retention_days: int | None = None,
    despite_old_workers: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> Iterator[str]:
    """Brings tables, functions and grants up to date; safe to repeat and to race.

    Each migration is committed on its own, under the lock of the record, which a racing run waits for. One that has to
    wait for a long transaction lets the others pass every two seconds: what runs goes on. A schema that a later release
    has made stays as it is.

    Args:
        database: where to; its role needs the right to create schemas, unless both are there and its own.
        queue_schema: the SQL that makes the broker's own tables, run where they are missing.
        folder: the numbered files.
        functions: the files of the functions.
        retention_days: for how many days the ledger is kept at least from now on; as before without it.
        despite_old_workers: apply also what running workers are too old for. Those that can be told finish and end
            first, for which they have `FAREWELL` seconds.
        tell: hears what is waited for, once it takes longer than some seconds; and that nothing is to be done here.

    Yields:
        the name of each file as it has been applied.

    Raises:
        MigrationRefused: an applied file has changed since; something in the schemas is a stranger's; the schemas
            cannot be made; workers are running that a migration would break; or another transaction was in the way for
            ten minutes. Nothing is made before all but the last is known.
        ReleaseTooOld: a later release has upgraded the database, and this one can no longer work there.
        UnfitDatabase: the server is too old, or the database's encoding is not UTF8.
        DatabaseUnreachable: no connection could be made.
    """
    known = migrations(folder)
    pending, later = _locked(database, lambda cursor: _prepare(cursor, queue_schema, known), tell)
    floor = max((each.oldest_worker for each in pending if each.oldest_worker is not None), default=None)
    if floor is None:
        yield from _apply_all(database, known, tell)
    elif despite_old_workers:
        with _farewell(database, floor, tell):
            yield from _apply_all(database, known, tell)
    else:
        _locked(database, lambda cursor: _check_workers(cursor, floor), tell)
        yield from _apply_all(database, known, tell, check_workers=True)
    if later:
        tell(f"a later release has upgraded the schema ({', '.join(later)}): it is left as that release has made it")
    else:
        _locked(database, partial(_grow_types, functions=functions), tell)
        _locked(database, partial(_replace_functions, functions=functions), tell)
    if retention_days is not None:
        _locked(database, lambda cursor: cursor.execute(SQL["keep"], {"days": retention_days}), tell)


def _apply_all(
    database: Database, known: Sequence[Migration], tell: Callable[[str], None], *, check_workers: bool = False
) -> Iterator[str]:
    for migration in known:
        if _locked(database, partial(_apply, migration=migration, check_workers=check_workers), tell):
            yield migration.name


@contextmanager
def _farewell(database: Database, floor: int, tell: Callable[[str], None]) -> Iterator[None]:
    """Raises the floor before its migration is applied, and waits for those workers that look for it.

    If the migration then fails, the floor is what it was.
    """
    raised = _locked(database, lambda cursor: levels.raise_floor(cursor, floor), tell)
    if raised is None:
        yield
        return
    try:
        told: set[levels.OldWorker] = set()
        until = time.monotonic() + FAREWELL
        while time.monotonic() < until and (left := _told_to_end(database, floor)):
            for worker in left - told:
                tell(f"waiting for {worker} to finish and end")
            told |= left
            time.sleep(PAUSE / 4)
        yield
    except BaseException:
        _locked(database, lambda cursor: levels.note_floor(cursor, *raised), tell)
        raise


def _told_to_end(database: Database, floor: int) -> set[levels.OldWorker]:
    with database.transaction() as cursor:
        return {each for each in levels.workers_below(cursor, floor) if each.level is not None}


def _check_workers(cursor: Cursor, floor: int, *, lock: bool = False) -> None:
    """Makes sure that no worker is running that a floor would leave behind.

    Raises:
        MigrationRefused: some are; the message names them.
    """
    found = levels.workers_below(cursor, floor, lock=lock)
    if found:
        more = len(found) - preconditions.NAMED
        named = ", ".join(map(str, found[: preconditions.NAMED])) + (f" (and {more} more)" if more > 0 else "")
        raise MigrationRefused(
            f"workers are running that could not work on the new schema: {named}. Stop them (SIGTERM: they finish what "
            "they have in hand), run `duepost migrate` again, and start workers of this release; "
            "`--despite-old-workers` migrates all the same"
        )


def check_schema(database: Database) -> None:
    """Makes sure that this code's migrations and functions are there, and that it, and this role, may work with them.

    A schema that a later release has made is fine as long as that release lets this one work there.

    Raises:
        UnfitDatabase: the server is too old, or the database's encoding is not UTF8.
        ReleaseTooOld: the database has been upgraded, and this code can no longer work there.
        SchemaMismatch: a migration or a function is missing; the message says what to run.
        NotPermitted: the role is no member of duepost_worker.
        DatabaseUnreachable: no connection could be made.
    """
    with database.transaction() as cursor:
        preconditions.check_server(cursor, writes=False)
    try:
        if database.execute(SQL["record_exists"]) == [(False,)]:
            raise SchemaMismatch("the database has no Duepost schema: run `duepost migrate`")
        applied = {number for number, _ in database.execute(SQL["all_applied"])}
        missing = [each.name for each in migrations() if each.number not in applied]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise SchemaMismatch(f"the database's schema lacks {missing[0]}{more}: run `duepost migrate`")
        levels.check_level(database)
        lacking = database.execute(SQL["missing_functions"], {"names": _function_names()})
        if lacking:
            raise SchemaMismatch(f"the database lacks the function {lacking[0][0]}: run `duepost migrate`")
    except InsufficientPrivilege as error:
        raise preconditions.not_permitted(database) from error


@cache
def _function_names() -> list[str]:
    """What the files of the functions make, views among them."""
    return sorted({name for path in FUNCTIONS.glob("*.sql") for name in FUNCTION.findall(path.read_text("utf-8"))})


def _locked(database: Database, work: Callable[[Cursor], T], tell: Callable[[str], None]) -> T:
    """One transaction under the lock of migrations; gives way, and tries again, where another one is in the way.

    Who has been in the way at two tries is named, once.
    """
    before: set[Holder] = set()
    told: set[Holder] = set()
    for _ in range(TRIES):
        try:
            with database.transaction(GIVING_WAY) as cursor:
                cursor.execute(SQL["fix_names"])
                preconditions.check_server(cursor, writes=True)
                preconditions.check_trust(cursor)
                cursor.execute(SQL["record_exists"])
                if cursor.fetchone() == (True,):
                    cursor.execute(SQL["lock"])
                return work(cursor)
        except DatabaseUnreachable as error:
            if not isinstance(error.__cause__, LockNotAvailable | DeadlockDetected):
                raise
            with database.transaction() as cursor:
                now = preconditions.holders(cursor)
            for holder in sorted(now & before - told):
                tell(f"waiting for {holder}")
            told |= now & before
            before = now
        except DeadlockDetected:
            # Whoever reads two of the tables has read one of them before we came to it.
            pass
        except (DuplicateSchema, DuplicateTable, UniqueViolation):
            # Another run has just made the same; what it is gets looked at like anything else that is there.
            pass
        time.sleep(PAUSE)
    named = "; ".join(map(str, sorted(told & before)[: preconditions.NAMED])) or "another transaction"
    raise MigrationRefused(f"{named} has been in the way for ten minutes: end it, and run `duepost migrate` again")


def _prepare(cursor: Cursor, queue_schema: str, known: Sequence[Migration]) -> tuple[list[Migration], list[str]]:
    """Checks all that is left to check, before anything is made; then makes schemas, record and the broker's tables.

    Returns:
        the migrations that are not applied yet; and what a later release has applied that this code does not know.
    """
    missing = preconditions.missing_schemas(cursor)
    cursor.execute(SQL["record_exists"])
    is_new = cursor.fetchone() == (False,)
    recorded: dict[int, str] = {}
    if not is_new:
        cursor.execute(SQL["all_applied"])
        recorded = dict(cursor.fetchall())
        for migration in known:
            _check_unchanged(migration, recorded.get(migration.number))
        levels.check_level_of(cursor, known[-1].number)
    for name in missing:
        cursor.execute(f"CREATE SCHEMA {name}")
    if is_new:
        cursor.execute(SQL["create_record"])
    cursor.execute(SQL["queue_exists"])
    if cursor.fetchone() == (False,):
        # Its schema is there by now; to ask for it once more takes a right that this role need not have.
        cursor.execute(CREATE_SCHEMA.sub("", queue_schema))
    later = [f"{number:04}" for number in sorted(recorded) if number > known[-1].number]
    return [each for each in known if each.number not in recorded], later


def _apply(cursor: Cursor, migration: Migration, *, check_workers: bool) -> bool:
    if _is_applied(cursor, migration):
        return False
    floor = migration.oldest_worker
    if floor is not None and check_workers:
        _check_workers(cursor, floor, lock=True)
    cursor.execute(migration.sql)
    cursor.execute(SQL["record"], {"number": migration.number, "name": migration.name, "checksum": migration.checksum})
    if floor is not None:
        levels.note_floor(cursor, migration.number, floor)
    return True


def _grow_types(cursor: Cursor, functions: Path) -> None:
    """Makes the functions' types, or adds what they lack.

    It waits for transactions that have called: in its own it holds no lock that one of them may wait for.
    """
    for path in sorted(functions.glob("types/*.sql")):
        cursor.execute(path.read_text(encoding="utf-8"))


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

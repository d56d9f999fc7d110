"""Creates and upgrades the schema: numbered plain-SQL files, each in one transaction, each applied once."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.database import UNLIMITED, Cursor, Database
from models.errors import MigrationRefused, SchemaMismatch
from models.statements import statements

FOLDER = Path(__file__).parent / "migrations"
GRANTS = Path(__file__).parent / "grants.sql"
FILE_NAME = re.compile(r"^(?P<number>\d{4})_\w+\.sql$")
SQL = statements(__file__)


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


def migrate(database: Database, *, queue_schema: str, folder: Path = FOLDER) -> Iterator[str]:
    """Brings the schema up to date; safe to repeat and to race.

    Each migration is committed on its own, under an advisory lock that a racing run waits for.

    Args:
        database: where to; its role needs the right to create schemas, not superuser.
        queue_schema: the SQL that makes the broker's own tables, run where they are missing.
        folder: the numbered files.

    Yields:
        the name of each file as it has been applied.

    Raises:
        MigrationRefused: an applied file has changed since, or the database is newer than this code.
        DatabaseUnreachable: no connection could be made.
    """
    known = migrations(folder)
    with database.transaction(UNLIMITED) as cursor:
        _lock(cursor)
        cursor.execute(SQL["create_record"])
        cursor.execute(SQL["queue_exists"])
        if cursor.fetchone() == (False,):
            cursor.execute(queue_schema)
    for migration in known:
        with database.transaction(UNLIMITED) as cursor:
            _lock(cursor)
            if _is_applied(cursor, migration):
                continue
            cursor.execute(migration.sql)
            cursor.execute(
                SQL["record"],
                {"number": migration.number, "name": migration.name, "checksum": migration.checksum},
            )
        yield migration.name
    with database.transaction(UNLIMITED) as cursor:
        _lock(cursor)
        cursor.execute(GRANTS.read_text(encoding="utf-8"))


def check_schema(database: Database) -> None:
    """Makes sure that the database's schema is the one of this code, or a later one.

    Raises:
        SchemaMismatch: it is missing or older; the message says what to run.
        DatabaseUnreachable: no connection could be made.
    """
    wanted = migrations()[-1]
    if database.execute(SQL["record_exists"]) == [(False,)]:
        raise SchemaMismatch("the database has no Duepost schema: run `duepost migrate`")
    [(applied,)] = database.execute(SQL["latest"])
    if not isinstance(applied, int) or applied < wanted.number:
        raise SchemaMismatch(
            f"the database's schema is at {applied or 0}, this code needs {wanted.number}: run `duepost migrate`"
        )


def _lock(cursor: Cursor) -> None:
    cursor.execute(SQL["lock"])


def _is_applied(cursor: Cursor, migration: Migration) -> bool:
    cursor.execute(SQL["applied"], {"number": migration.number})
    row = cursor.fetchone()
    if row is None:
        return False
    if row[0] != migration.checksum:
        raise MigrationRefused(
            f"{migration.name} has changed since it was applied: restore it, and put the change into a new file"
        )
    return True

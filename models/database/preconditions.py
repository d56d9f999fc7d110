"""What has to be so before anything is made: the server fits, and what is there already belongs to a role we trust."""

from collections.abc import Sequence
from typing import NamedTuple

from models.database.connections import Cursor, Database
from models.database.statements import statements
from models.errors import DatabaseUnreachable, MigrationRefused, NotPermitted, UnfitDatabase

SQL = statements(__file__)

#: The oldest PostgreSQL that will do, as `server_version_num` has it.
OLDEST_SERVER = 140_000

#: How many strangers, holders or grants a line names.
NAMED = 3

NO_WRITES_ON_STANDBY = (
    "the database is a hot standby, which takes no writes: DUEPOST_DATABASE_URL must lead to the primary (of several "
    "hosts, target_session_attrs=read-write finds it)"
)
NO_WRITES_BY_DEFAULT = (
    "the database is read-only: default_transaction_read_only is on for this role, this database or the server; "
    "`ALTER ROLE … RESET default_transaction_read_only` and the like end that"
)


class Holder(NamedTuple):
    """A session that has a lock on a table of ours."""

    pid: int
    role: str
    application: str
    table: str

    def __str__(self) -> str:
        return f"session {self.pid} of {self.role} ({self.application}), at {self.table}"


def check_server(cursor: Cursor, *, writes: bool) -> None:
    """Makes sure that the server and the database are such that Duepost can work there.

    Raises:
        UnfitDatabase: the version is too old, or the encoding is not UTF8.
        DatabaseUnreachable: it takes no writes, and `writes` are to be made.
    """
    cursor.execute(SQL["server"])
    encoding, in_recovery, read_only, number, version = cursor.fetchone() or ("", False, False, 0, "")
    if number < OLDEST_SERVER:
        raise UnfitDatabase(f"PostgreSQL {version}: 14 or later is needed")
    if encoding != "UTF8":
        raise UnfitDatabase(
            f"the database's encoding is {encoding}, and Duepost needs UTF8: make another database with "
            "`CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0`"
        )
    if writes and in_recovery:
        raise DatabaseUnreachable(NO_WRITES_ON_STANDBY)
    if writes and read_only:
        raise DatabaseUnreachable(NO_WRITES_BY_DEFAULT)


def check_writable(database: Database) -> None:
    """The same for who is about to write, in a transaction of its own."""
    with database.transaction() as cursor:
        check_server(cursor, writes=True)


def not_permitted(database: Database) -> NotPermitted:
    """Why this role may not do what workers, triggers and operators do."""
    with database.transaction() as cursor:
        cursor.execute(SQL["role"])
        role, is_there, is_member = cursor.fetchone() or ("?", True, False)
    if not is_there:
        return NotPermitted(
            f"the role {role} needs to be a member of duepost_worker, which is not there: `CREATE ROLE duepost_worker "
            f'NOLOGIN`, then `duepost migrate` as the schema\'s owner, then `GRANT duepost_worker TO "{role}"`'
        )
    if is_member:
        return NotPermitted("duepost_worker lacks rights: run `duepost migrate` as the schema's owner")
    return NotPermitted(
        f"the role {role} needs to be a member of duepost_worker: an administrator runs "
        f'`GRANT duepost_worker TO "{role}"`'
    )


def check_trust(cursor: Cursor) -> None:
    """Makes sure that nothing in our schemas could make this role do what somebody else wants.

    Raises:
        MigrationRefused: something there belongs to a stranger, or to a role whose things this one may not change.
    """
    cursor.execute("SELECT current_user::text")
    [role] = cursor.fetchone() or ("",)
    found = strangers(cursor, str(role))
    if found:
        raise MigrationRefused(
            f"{_listed(found)}, and not to {role}: `duepost migrate` changes only what its own role has made, as "
            "what somebody else has put there would run with its rights. Run it as that owner, or have it dropped"
        )
    cursor.execute(SQL["not_ours"])
    others = [(str(what), str(owner)) for what, owner in cursor.fetchall()]
    if others:
        raise MigrationRefused(f"{_listed(others)}, and {role} may not change it: run `duepost migrate` as that owner")


def strangers(cursor: Cursor, role: str) -> list[tuple[str, str]]:
    """What in our schemas belongs to somebody whom a role has no reason to trust, with its owner."""
    cursor.execute(SQL["strangers"], {"role": role})
    return [(str(what), str(owner)) for what, owner in cursor.fetchall()]


def missing_schemas(cursor: Cursor) -> list[str]:
    """Which of our schemas have to be made.

    Raises:
        MigrationRefused: this role may not make them.
    """
    cursor.execute(SQL["missing_schemas"])
    rows = cursor.fetchall()
    missing = [str(name) for name, _ in rows]
    if missing and not all(may_create for _, may_create in rows):
        made = "; ".join(f"CREATE SCHEMA {name} AUTHORIZATION …" for name in missing)
        raise MigrationRefused(
            f"this role may not make the schema {' and the schema '.join(missing)}: an administrator runs "
            f"`GRANT CREATE ON DATABASE …` for it, or `{made}`"
        )
    return missing


def trust_findings(database: Database) -> list[str]:
    """What in our schemas, seen from their owner, belongs to or is open to somebody else: a line for each."""
    with database.transaction() as cursor:
        cursor.execute(SQL["owner"])
        [owner] = cursor.fetchone() or ("",)
        foreign = strangers(cursor, str(owner))
        cursor.execute(SQL["creators"])
        creators = cursor.fetchall()
        cursor.execute(SQL["open_to_all"])
        open_to_all = [str(name) for (name,) in cursor.fetchall()]
    found = [f"{_listed(foreign)}, and not to {owner}, who owns the schema: drop it"] if foreign else []
    found += [
        f"{role} may create in schema {schema}: REVOKE CREATE ON SCHEMA {schema} FROM {role}"
        for schema, role in creators
    ]
    if open_to_all:
        found.append(f"everybody has rights on {', '.join(open_to_all[:NAMED])}: REVOKE ALL … FROM PUBLIC")
    return found


def shortfalls(database: Database) -> list[str]:
    """What workers and clients still lack after a migrate, and what to do: a line for each."""
    with database.transaction() as cursor:
        cursor.execute(SQL["shortfalls"])
        missing, cannot_read, no_schema, role = cursor.fetchone() or ([], False, False, "")
    found = []
    if missing:
        made = "; ".join(f"CREATE ROLE {name} NOLOGIN" for name in missing)
        found.append(
            f"{' and '.join(missing)}: not there, and {role} may not create roles: an administrator runs `{made}`, "
            "then `duepost migrate` grants the rights"
        )
    if no_schema:
        found.append(f"{role} may not grant the rights on the schemas: run `duepost migrate` as their owner")
    if cannot_read:
        found.append(
            "duepost.recipient belongs to somebody else, who runs `GRANT SELECT ON duepost.recipient TO duepost_worker`"
        )
    return found


def holders(cursor: Cursor) -> set[Holder]:
    """Which other sessions have a lock on something of ours just now."""
    cursor.execute(SQL["holders"])
    return {Holder(*row) for row in cursor.fetchall()}


def blockers(database: Database, seconds: float) -> list[str]:
    """Who keeps others waiting for a table of ours for longer than this."""
    rows = database.execute(SQL["blockers"], {"seconds": seconds})
    return [
        f"session {pid} of {role} ({application}) keeps others waiting at {table} for {float(str(waited)):.0f} s"
        for pid, role, application, table, waited in rows
    ]


def _listed(found: Sequence[tuple[str, str]]) -> str:
    named = [f"{what} belongs to {owner}" for what, owner in found[:NAMED]]
    more = len(found) - len(named)
    return ", ".join(named) + (f" (and {more} more)" if more else "")

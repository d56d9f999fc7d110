"""The contract of applications from psql and from the Python client; `tests/servers/test_node.py` has it from Node."""

import inspect
import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import psycopg2

import duepost
from tests.contract import CALLS, Call, Outcome, differences
from tests.postgres import Cursor, PostgresServer, run

NULL, SEPARATOR = "<null>", "\x1f"


def from_psql(psql: Path, url: str, calls: Iterable[Call]) -> list[Outcome]:
    """Each call as a statement that a person types."""
    return [_typed(psql, url, call) for call in calls]


def _typed(psql: Path, url: str, call: Call) -> Outcome:
    options = ["-XqAt", "-F", SEPARATOR, "-P", f"null={NULL}", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]
    statement = call.statement([_literal(value) for value in call.parameters()])
    env = {**os.environ, "PGCLIENTENCODING": "UTF8"}
    done = subprocess.run(
        [psql, *options, url], input=f"{statement};\n", capture_output=True, text=True, env=env, check=False
    )
    if done.returncode == 0:
        lines = done.stdout.splitlines()
        return Outcome([[None if each == NULL else each for each in line.split(SEPARATOR)] for line in lines])
    _, _, said = done.stderr.partition("ERROR:  ")
    sqlstate, _, message = said.partition(": ")
    return Outcome(error=(sqlstate, message))


def _literal(value: object) -> str:
    if isinstance(value, list):
        return "'{" + ",".join(map(str, value)) + "}'"
    if value is None:
        return "NULL"
    return "'" + str(value).replace("'", "''") + "'"


def from_python(cursor: Cursor, calls: Iterable[Call]) -> list[Outcome]:
    """Each call by the client's function of that name; what it has none for, as a statement."""
    return [_called(cursor, call) for call in calls]


def _called(cursor: Cursor, call: Call) -> Outcome:
    cursor.execute("SAVEPOINT before")
    try:
        found = _rows(_result(cursor, call))
    except psycopg2.Error as error:
        cursor.execute("ROLLBACK TO before")
        return Outcome(error=(str(error.pgcode), str(error.diag.message_primary)))
    return Outcome(found)


def _result(cursor: Cursor, call: Call) -> object:
    function = getattr(duepost, call.function, None)
    if function is None:
        places = [f"%({name})s" for name in call.arguments]
        cursor.execute(call.statement(places), dict(zip(call.arguments, call.parameters(), strict=True)))
        return [tuple(map(_spelt, row)) for row in cursor.fetchall()]
    named = inspect.signature(function).parameters
    if call.function == "status":
        at = duepost.status(cursor, call.arguments.get("id"), key=call.arguments.get("key"))  # type: ignore[arg-type]
        return [] if at is None else [(at.id, at.channel, at.kind, at.state, at.outcome, at.attempts)]
    if all(name in named for name in call.arguments):
        return function(cursor, **call.arguments)
    return function(cursor, *call.arguments.values())


def _rows(found: object) -> Sequence[Sequence[str | None]]:
    rows = [each if isinstance(each, tuple) else (each,) for each in (found if isinstance(found, list) else [found])]
    return [[None if each is None else str(each) for each in row] for row in rows]


def _spelt(value: object) -> object:
    """A value as PostgreSQL spells it."""
    return ("t" if value else "f") if isinstance(value, bool) else value


def test_the_calls_give_the_same_from_psql(server: PostgresServer, url: str) -> None:
    assert differences(CALLS, from_psql(server.binaries / "psql", url, CALLS)) == []


def test_the_calls_give_the_same_from_python(url: str) -> None:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        found = from_python(cursor, CALLS)
    connection.close()
    assert differences(CALLS, found) == []


def test_every_function_that_applications_and_operators_may_call_is_called(url: str) -> None:
    connection = psycopg2.connect(url)
    granted = run(
        connection,
        """
        SELECT DISTINCT f.proname::text
        FROM pg_proc AS f
        CROSS JOIN LATERAL aclexplode(f.proacl) AS each
        JOIN pg_roles AS role ON role.oid = each.grantee AND role.rolname IN ('duepost_client', 'duepost_operator')
        WHERE f.pronamespace = 'duepost'::regnamespace
        """,
    )
    connection.close()
    # A file's bytes stand in no JSON, by which calls are handed on: tests/integration/test_drivers.py calls that one.
    assert {name for (name,) in granted} - {call.function for call in CALLS} == {"attachment"}

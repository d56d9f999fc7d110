"""What operators look for is found by an index, among a million pending items and two million rows of the ledger."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from duepost import operations
from duepost.commands import findings
from duepost.operations import Filter, Outcome, Place, Section, State
from models import endpoints, metrics, rates, reports, routes
from models.database.connections import UNLIMITED, Cursor, Database
from tests.postgres import PostgresServer

#: Pages of 8 KiB that a look at one person, or at one item, may touch.
FEW = 2_000

#: Pages of a table that is as well read from end to end.
SHORT = 20

#: Pages that a screen may touch: what is kept in memory is read within a second.
MANY = 60_000


@pytest.fixture(scope="module")
def large(server: PostgresServer) -> Iterator[Database]:
    """A million emails for later, each to one user; two million deliveries in three months, few undeliverable."""
    with server.fresh_database() as url:
        database = Database(url)
        with database.transaction(UNLIMITED) as cursor:
            cursor.execute("SET LOCAL synchronous_commit = off")
            for table in ("delivery", "attempt"):
                for month in (-1, -2):
                    cursor.execute(
                        "DO $$ DECLARE m timestamp := date_trunc('month', now() AT TIME ZONE 'UTC')"
                        f" + make_interval(months => {month}); BEGIN EXECUTE format('CREATE TABLE duepost.%I"
                        f" PARTITION OF duepost.{table} FOR VALUES FROM (%L) TO (%L)',"
                        f" '{table}_' || to_char(m, 'YYYY_MM'),"
                        " m AT TIME ZONE 'UTC', (m + interval '1 month') AT TIME ZONE 'UTC'); END $$"
                    )
            cursor.execute(
                "INSERT INTO duepost.item (id, kind, scheduled_at, due_at, last_error, is_held)"
                " SELECT i, CASE WHEN i % 100000 = 0 THEN 'rare' ELSE 'k' || i % 20 END, t, t,"
                " CASE WHEN i % 1000 = 0 THEN 'rcpt: 451 4.3.0 later' END, i % 10000 = 0 FROM ("
                "  SELECT i, now() + i * interval '1 min' AS t FROM generate_series(1, 1000000) AS i) AS each"
            )
            cursor.execute("SELECT setval('duepost.scheduled_email_id_seq', 4000000)")
            cursor.execute(
                "INSERT INTO duepost.email (item_id, message_id_header, date_header, address, subject, body_text)"
                " SELECT id, '<' || id || '@x>', due_at, 'a' || id % 500000 || '@example.com', 's', 'b'"
                " FROM duepost.item"
            )
            cursor.execute(
                "INSERT INTO duepost.scheduled_email_user (email_id, user_id)"
                " SELECT id, 'user-' || id % 500000 FROM duepost.item"
            )
            cursor.execute(
                "INSERT INTO duepost.delivery (email_id, kind, outcome, user_id, address, code, reply, attempts,"
                " unknowns, scheduled_at, finished_at)"
                " SELECT 1000000 + i, CASE WHEN i % 500000 = 7 THEN 'rare' ELSE 'k' || i % 20 END,"
                " CASE WHEN i % 500 = 0 THEN 'undeliverable' ELSE 'sent' END, 'user-' || i % 500000,"
                " 'a' || i % 500000 || '@example.com', 250, 'ok', 1, 0, t, t"
                " FROM (SELECT i, now() - i * interval '3 s' AS t FROM generate_series(1, 2000000) AS i) AS each"
            )
        database.execute(
            "SELECT duepost.set_rate(per_second => 14), duepost.set_rate(domain => 'x.example', per_second => 1)"
        )
        database.execute("ANALYZE", limits=UNLIMITED)
        yield database
        database.close()


LOOKS: list[tuple[str, Callable[[Database], object], int]] = [
    ("all", lambda db: operations.find_items(db, Filter()), FEW),
    ("unknown", lambda db: operations.find_items(db, Filter(state=State.UNKNOWN)), FEW),
    ("a kind", lambda db: operations.find_items(db, Filter(kind="k7")), FEW),
    ("a route", lambda db: operations.find_items(db, Filter(route="default")), FEW),
    ("a user", lambda db: operations.find_items(db, Filter(user="user-4711")), FEW),
    ("an address", lambda db: operations.find_items(db, Filter(address="A4711@example.com")), FEW),
    ("the ledger", lambda db: operations.find_items(db, Filter(), Place(Section.FINISHED)), FEW),
    ("undeliverable", lambda db: operations.find_items(db, Filter(outcome=Outcome.UNDELIVERABLE)), FEW),
    (
        "the ledger of a day",
        lambda db: operations.find_items(
            db, Filter(until=datetime.now(UTC) - timedelta(days=40)), Place(Section.FINISHED)
        ),
        FEW,
    ),
    ("a rare kind", lambda db: operations.find_items(db, Filter(kind="rare"), Place(Section.FINISHED)), MANY),
    ("a person by user", lambda db: operations.person(db, user="user-4711"), FEW),
    ("a person by address", lambda db: operations.person(db, address="a4711@example.com"), FEW),
    ("an item", lambda db: operations.item(db, 1_000_500), FEW),
    ("failures", operations.failures, MANY),
    ("kinds", operations.kinds, FEW),
    ("forecast", operations.forecast, MANY),
    ("rates", rates.states, FEW),
    ("what rates are too small for", lambda db: rates.jams(db, 24), MANY),
    ("journal", operations.journal, FEW),
    ("suppression", operations.suppressions, FEW),
    ("what is due", lambda db: (reports.due_count(db), reports.oldest_due(db), reports.last_pass(db)), FEW),
    ("what ended in the last hour", reports.last_hour, FEW),
    (
        "routes and workers",
        lambda db: (routes.states(db), reports.unserved_routes(db), reports.workers(db), endpoints.known(db)),
        FEW,
    ),
    # These count all that is pending, from one narrow table.
    ("what is pending by state", reports.pending_by_state, MANY),
    ("what waits for a person", lambda db: list(findings.of_mail(db)), MANY),
    ("metrics", metrics.gauges, MANY),
]


def long_scans(node: dict[str, Any]) -> Iterator[str]:
    """Our tables that a plan has read from end to end; an empty partition is read like that too, and costs nothing."""
    is_ours = not str(node.get("Relation Name", "")).startswith("pg_")
    if node["Node Type"] == "Seq Scan" and is_ours and node["Shared Hit Blocks"] + node["Shared Read Blocks"] > SHORT:
        yield str(node["Relation Name"])
    for child in node.get("Plans", []):
        yield from long_scans(child)


@pytest.mark.parametrize(("look", "most"), [each[1:] for each in LOOKS], ids=[each[0] for each in LOOKS])
def test_a_look_touches_few_pages_and_reads_no_table_from_end_to_end(
    large: Database, look: Callable[[Database], object], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements: list[bytes] = []
    execute = Cursor.execute

    def noted(cursor: Cursor, query: str, vars: object = None) -> None:  # noqa: A002 - the driver's name
        statements.append(cursor.mogrify(query, vars))  # type: ignore[arg-type]  # the driver's
        execute(cursor, query, vars)

    monkeypatch.setattr(Cursor, "execute", noted)
    look(large)
    monkeypatch.setattr(Cursor, "execute", execute)
    touched = 0
    for statement in statements:
        text = statement.decode().replace("%", "%%")
        plan = large.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", {})[0][0]
        assert isinstance(plan, list)
        top = plan[0]["Plan"]
        touched += int(top["Shared Hit Blocks"]) + int(top["Shared Read Blocks"])
        assert most > FEW or list(long_scans(top)) == [], text
    assert touched < most

"""Every statement: used, valid, and served by its index at a million rows."""

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from models.database.connections import UNLIMITED, Database
from models.database.statements import statements
from tests.postgres import Connection, PostgresServer

ROOT = Path(__file__).parent.parent.parent
FILES = sorted((ROOT / "models").glob("*.sql"))
STATEMENTS = [*FILES, *sorted((ROOT / "models/database").glob("*.sql"))]
TWINS = [path for path in FILES if path.name != "grants.sql"]

#: What a parameter stands for where a statement is only planned.
SAMPLES = {
    "id": "1::bigint",
    "held": "ARRAY[1]::bigint[]",
    "after_due_at": "'0001-01-01'::timestamptz",
    "after_id": "0",
    "size": "100",
    "on_time": "2.0",
    "depth": "100",
    "busy": "ARRAY[]::text[]",
    "least_urgent_first": "false",
    "message_id": "'00000000-0000-0000-0000-000000000001'::uuid",
    "message_ids": "ARRAY['00000000-0000-0000-0000-000000000001']::uuid[]",
    "claims": "ARRAY[1]::bigint[]",
    "queue_names": "ARRAY['duepost_send']",
    "content": "'{}'::jsonb",
    "failure": "'RuntimeError'",
    "delay": "0.0",
    "priority": "10",
    "seconds": "60",
    "limit": "20",
    "queue_name": "'duepost_send'",
    "enough": "1000",
    "carried_for": "10.0",
    "state": "NULL",
    "kind": "NULL",
    "route": "'default'",
    "routes": "ARRAY['default']",
    "way": "'default'",
    "target": "'relay.example.com:25'",
    "fallback": "NULL",
    "worker_id": "1",
    "claim": "1::bigint",
    "results": "'[]'::jsonb",
    "probe": "false",
    "anyway": "false",
    "counted": "true",
    "mailbox_full": "false",
    "pause": "15.0::double precision",
    "error": "'error'",
    "ids": "ARRAY[1, 2]::bigint[]",
    "message_claims": "ARRAY[1]::bigint[]",
    "email_ids": "ARRAY[1]",
    "contents": "ARRAY['{}']",
    "from_the_beginning": "true",
    "full_scan": "true",
    "window": "100",
    "priorities": "ARRAY[10, 20]::integer[]",
    "etas": "ARRAY[]::timestamptz[]",
    "actor_name": "'enqueue_due_emails'",
}


@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_every_statement_is_used_by_its_twin_and_no_other_is_asked_for(path: Path) -> None:
    module = path.with_suffix(".py").read_text(encoding="utf-8")
    used = set(re.findall(r'SQL\["(\w+)"\]', module))
    assert used == set(statements(str(path.with_suffix(".py"))))


@pytest.mark.parametrize("path", STATEMENTS, ids=lambda path: path.stem)
def test_a_statement_names_its_columns_so_that_one_more_breaks_no_running_worker(path: Path) -> None:
    text = re.sub(r"--.*|'[^']*'", "", path.read_text(encoding="utf-8"))
    assert re.findall(r"(?:\b\w+\.|SELECT |RETURNING )\*", text) == []
    assert re.findall(r"INSERT INTO [\w.]+(?: AS \w+)?\s+(?![\s(]|AS )\w+", text) == []


def test_two_statements_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "twins.sql").write_text("-- name: one\nSELECT 1\n-- name: one\nSELECT 2\n")
    with pytest.raises(ValueError, match="two statements are named one"):
        statements(str(tmp_path / "twins.py"))


@pytest.fixture(scope="module")
def million(server: PostgresServer) -> Iterator[Database]:
    """A million emails for later, 2,000 due, a million messages for later, 2,000 to be claimed."""
    with server.fresh_database() as url:
        database = Database(url)
        with database.transaction(UNLIMITED) as cursor:
            cursor.execute("SET LOCAL synchronous_commit = off")
            cursor.execute(
                "INSERT INTO duepost.item (id, kind, scheduled_at, due_at) SELECT i, 'k', t, t FROM ("
                "  SELECT i, now() + CASE WHEN i % 500 = 0 THEN interval '-1 h' ELSE i * interval '1 min' END AS t"
                "  FROM generate_series(1, 1000000) AS i) AS each"
            )
            cursor.execute("SELECT setval('duepost.scheduled_email_id_seq', 1000000)")
            cursor.execute(
                "INSERT INTO duepost.email (item_id, message_id_header, date_header, address, subject, body_text)"
                " SELECT id, '<' || id || '@x>', due_at, 'a' || id || '@example.com', 's', 'b' FROM duepost.item"
            )
            cursor.execute(
                "INSERT INTO duepost.scheduled_email_user (email_id, user_id)"
                " SELECT id, 'user-' || id FROM duepost.item"
            )
            cursor.execute(
                "INSERT INTO dramatiq.queue (message_id, queue_name, state, message, eta)"
                " SELECT gen_random_uuid(), 'duepost_send', 'queued', '{}',"
                " now() + CASE WHEN i % 500 = 0 THEN interval '-1 h' ELSE i * interval '1 min' END"
                " FROM generate_series(1, 1000000) AS i"
            )
        database.execute("ANALYZE", limits=UNLIMITED)
        yield database
        database.close()


HOT = [
    ("emails", "due_page", "item_due"),
    ("emails", "newest_due", "item_due"),
    ("emails", "next_due_at", "item_due"),
    ("emails", "lock_expired", "item_pkey"),
    ("emails", "conclude_later", "item_pkey"),
    ("emails", "conclude_unknown", "item_pkey"),
    ("emails", "release", "item_pkey"),
    ("emails", "retry_now", "item_pkey"),
    ("emails", "return_unstarted", "queue_key"),
    ("emails", "held_by_dead_workers", "item_pkey"),
    ("emails", "held_by_worker", "item_pkey"),
    ("reports", "pending", "item_due"),
    ("reports", "oldest_due", "item_due"),
    ("reports", "due_count", "item_due"),
    ("reports", "unserved_routes", "item_due"),
    ("messages", "claim", "queue_claimable"),
    ("messages", "acknowledge", "queue_pkey"),
    ("messages", "store_retry", "queue_pkey"),
    ("messages", "reject", "queue_pkey"),
    ("messages", "return_unstarted", "queue_pkey"),
    ("messages", "return_orphaned", "queue_claimed"),
    ("messages", "waits", "queue_claimable"),
    ("messages", "overdue", "queue_claimable"),
    ("messages", "dead_letters", "queue_dead"),
    ("messages", "purge", "queue_dead"),
    ("messages", "return_from_dead", "Index"),
]


def plan_of(database: Database, statement: str) -> str:
    filled = re.sub(r"%\((\w+)\)s", lambda match: SAMPLES[match[1]], statement).replace("%%", "%")
    return "\n".join(str(row[0]) for row in database.execute(f"EXPLAIN {filled}"))


#: Emails' lives, as their functions are called.
LIFE = (
    "SELECT duepost.enqueue_items_v2("
    "ARRAY[500], ARRAY[gen_random_uuid()], ARRAY['{}']::jsonb[], 'q', ARRAY[10], false, 'default', 0)",
    "SELECT id FROM duepost.claim_emails_v3(ARRAY[500], 1, 'default')",
    "SELECT id FROM duepost.claim_due_emails_v2('default', 1, 1, ARRAY[now(), now(), now()], '{0,0,0}', 3600)",
    "SELECT duepost.conclude_emails(ARRAY[500], ARRAY[currval('duepost.claim_number')],"
    """ '[{"email_id": 500, "user_id": "user-500", "phase": "dot", "verdict": "sent", "outcome": "sent"}]',"""
    " ARRAY[NULL]::uuid[], ARRAY[NULL]::bigint[])",
    "SELECT duepost.schedule_email('k', users => ARRAY['new'], subject => 's', body_text => 'b')",
    "SELECT duepost.clear_scheduled_emails(ARRAY['user-1000'])",
    "SELECT duepost.clear_scheduled_emails_to('a1500@example.com')",
    "SELECT duepost.reschedule_email(2000, now() + interval '1 h')",
    "SELECT duepost.finish(2500, 'expired', NULL)",
)


def test_no_function_of_an_emails_life_reads_a_table_from_end_to_end_at_a_million_rows(million: Database) -> None:
    with million.transaction() as cursor:
        for statement in LIFE:
            cursor.execute(statement)
        cursor.execute(
            "SELECT relname, seq_scan, idx_scan FROM pg_stat_xact_user_tables"
            " WHERE schemaname IN ('duepost', 'dramatiq')"
        )
        scans = {str(table): (whole, by_index) for table, whole, by_index in cursor.fetchall()}
    for table in ("item", "email", "in_hand", "queue", "scheduled_email_user"):
        assert scans[table][0] == 0, scans
        assert scans[table][1] > 0, scans
    assert [table for table in scans if table.startswith(("delivery", "attempt")) and scans[table][0]] == []


@pytest.mark.parametrize(("module", "name", "index"), HOT, ids=lambda value: value)
def test_the_hot_statements_are_served_by_an_index_at_a_million_rows(
    million: Database, module: str, name: str, index: str
) -> None:
    plan = plan_of(million, statements(str(ROOT / "models" / f"{module}.py"))[name])
    assert index in plan
    for table in ("item", "email", "queue"):
        assert not re.search(rf"Seq Scan on {table}\b", plan), plan


@pytest.mark.parametrize(
    ("module", "name"),
    [(module, name) for module, name, index in HOT if index in {"item_pkey", "queue_pkey"}] + [("messages", "claim")],
)
def test_a_table_in_which_all_is_done_is_still_read_by_its_keys(url: str, module: str, name: str) -> None:
    database = Database(url)
    with closing(psycopg2.connect(url)) as reader, reader.cursor() as cursor:
        reader.set_session(isolation_level="REPEATABLE READ")
        fill_with_what_is_done(reader, database)
        plan = plan_of(database, statements(str(ROOT / "models" / f"{module}.py"))[name])
        for scan in re.findall(r"Scan using \w+_pkey on (?:queue|item|email).*\n.*", plan):
            assert "Index Cond" in scan, plan
        assert not re.search(r"Seq Scan on (queue|item|email)\b", plan), plan
        cursor.execute("SELECT 1")
    database.close()


def fill_with_what_is_done(reader: Connection, database: Database) -> None:
    """Rows that a snapshot keeps, and a planner that has been told that there are none."""
    for statement in (
        "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
        " SELECT gen_random_uuid(), 'duepost_send', 'queued', '{}' FROM generate_series(1, 20000)",
        "SELECT count(duepost.schedule_email(kind => 'k', address => 'a@example.com', subject => 's',"
        " body_text => 'b')) FROM generate_series(1, 5000)",
    ):
        database.execute(statement, limits=UNLIMITED)
    with reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM dramatiq.queue")
    database.execute("DELETE FROM dramatiq.queue", limits=UNLIMITED)
    database.execute("DELETE FROM duepost.item; DELETE FROM duepost.email", limits=UNLIMITED)
    with closing(psycopg2.connect(database.url)) as housekeeper, housekeeper.cursor() as cursor:
        housekeeper.autocommit = True
        cursor.execute("VACUUM ANALYZE dramatiq.queue, duepost.item, duepost.email")


def blocks_of_a_claim(database: Database, size: int, **samples: str) -> int:
    """How many pages a claim of that many messages touches."""
    statement = statements(str(ROOT / "models" / "messages.py"))["claim"]
    filled = re.sub(r"%\((\w+)\)s", lambda match: {**SAMPLES, "size": str(size), **samples}[match[1]], statement)
    rows = database.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {filled}")
    assert isinstance(rows[0][0], list)
    top = rows[0][0][0]["Plan"]
    assert top["Actual Rows"] == size
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


def test_with_a_snapshot_held_open_a_claim_that_goes_on_does_not_wade_through_what_is_done(url: str) -> None:
    database, reader = Database(url), psycopg2.connect(url)
    database.execute(
        "INSERT INTO dramatiq.queue (message_id, queue_name, state, message, eta)"
        " SELECT gen_random_uuid(), 'duepost_send', 'queued', '{}', now() - interval '1 h' + i * interval '1 ms'"
        " FROM generate_series(1, 50000) AS i",
        limits=UNLIMITED,
    )
    reader.set_session(isolation_level="REPEATABLE READ")
    with closing(reader), reader.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM dramatiq.queue")
        [(place,)] = database.execute(
            "SELECT eta::text FROM dramatiq.queue ORDER BY eta OFFSET 49000 LIMIT 1", limits=UNLIMITED
        )
        database.execute("DELETE FROM dramatiq.queue WHERE eta < %(place)s::timestamptz", {"place": place})
        from_place = {"from_the_beginning": "false", "priorities": "ARRAY[0]", "etas": f"ARRAY['{place}']"}
        assert blocks_of_a_claim(database, 16, **from_place) < 16 * 40
        assert blocks_of_a_claim(database, 16) > 2000, "what is done is really in the way"
    database.close()


@pytest.mark.parametrize("look", ["due_page", "newest_due", "next_due_at"])
def test_a_look_at_a_line_that_was_just_filled_touches_few_pages_though_nothing_is_known_of_it(
    url: str, look: str
) -> None:
    database = Database(url)
    with closing(psycopg2.connect(url)) as housekeeper, housekeeper.cursor() as cursor:
        housekeeper.autocommit = True
        # The planner has seen it empty.
        cursor.execute("VACUUM ANALYZE dramatiq.queue, duepost.item, duepost.in_hand")
    database.execute(
        "SELECT count(duepost.schedule_email(kind => 'k', address => 'a@example.com', subject => 's',"
        " body_text => 'b')) FROM generate_series(1, 10000)",
        limits=UNLIMITED,
    )
    statement = statements(str(ROOT / "models" / "emails.py"))[look]
    samples = {**SAMPLES, "on_time": "3600.0"}
    filled = re.sub(r"%\((\w+)\)s", lambda match: samples[match[1]], statement)
    rows = database.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {filled}", limits=database.limits.by_index)
    assert isinstance(rows[0][0], list)
    top = rows[0][0][0]["Plan"]
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 1000
    database.close()


def test_a_claim_among_a_million_messages_touches_few_pages_and_takes_no_lock_that_stays(million: Database) -> None:
    assert blocks_of_a_claim(million, 16) < 16 * 40
    assert million.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT id FROM duepost.scheduled_email e"
        " WHERE e.id IN"
        " (SELECT u.email_id FROM duepost.scheduled_email_user u WHERE u.user_id = ANY (ARRAY['user-7']))"
        " ORDER BY e.id",
        "SELECT id FROM duepost.scheduled_email e"
        " WHERE duepost.mailbox_key(e.address) = duepost.mailbox_key('A7@example.com')"
        " AND e.address IS NOT NULL ORDER BY e.id",
    ],
    ids=["by user", "by address"],
)
def test_a_clear_reads_only_what_it_clears_at_a_million_rows(million: Database, statement: str) -> None:
    plan = plan_of(million, statement)
    assert "Seq Scan" not in plan


def test_a_clear_of_one_user_among_a_million_touches_few_pages(million: Database) -> None:
    rows = million.execute(
        "EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM duepost.clear_scheduled_emails(ARRAY['user-999999'])"
    )
    assert isinstance(rows[0][0], list)
    top = rows[0][0][0]["Plan"]
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 2000


@pytest.fixture(scope="module")
def one_blocked(server: PostgresServer) -> Iterator[Database]:
    """A million emails that are due on a route whose circuit is open, and ten on each of two others."""
    with server.fresh_database() as url:
        database = Database(url)
        with database.transaction(UNLIMITED) as cursor:
            cursor.execute("SET LOCAL synchronous_commit = off")
            cursor.execute(
                "INSERT INTO duepost.route (name, circuit_open, probe_at, probe_pause)"
                " VALUES ('down', true, now() + interval '5 min', 300), ('marketing', false, NULL, 0)"
            )
            cursor.execute(
                "INSERT INTO duepost.item (id, kind, route, scheduled_at, due_at)"
                " SELECT i, 'k', 'down', t, t FROM"
                " (SELECT i, now() - i * interval '1 ms' AS t FROM generate_series(1, 1000000) AS i) AS each"
                " UNION ALL SELECT 1000000 + i, 'k', CASE i % 2 WHEN 0 THEN 'default' ELSE 'marketing' END,"
                " now(), now()"
                " FROM generate_series(1, 20) AS i"
            )
        database.execute("ANALYZE", limits=UNLIMITED)
        yield database
        database.close()


def blocks_of(database: Database, statement: str, **samples: str) -> int:
    """How many pages a statement touches."""
    filled = re.sub(r"%\((\w+)\)s", lambda match: {**SAMPLES, **samples}[match[1]], statement)
    rows = database.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {filled}")
    assert isinstance(rows[0][0], list)
    top = rows[0][0][0]["Plan"]
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("emails", "due_page"),
        ("emails", "newest_due"),
        ("emails", "next_due_at"),
        ("emails", "due_now"),
        ("routes", "ways"),
    ],
)
def test_a_million_due_emails_of_a_route_that_is_down_cost_the_others_nothing(
    one_blocked: Database, module: str, name: str
) -> None:
    statement = statements(str(ROOT / "models" / f"{module}.py"))[name]
    served = {"route": "'marketing'", "routes": "ARRAY['default', 'marketing']", "priority": "0"}
    # The first time in a session a function is planned, which reads the catalog.
    blocks_of(one_blocked, statement, **served)
    assert blocks_of(one_blocked, statement, **served) < 500

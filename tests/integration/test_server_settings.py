"""What a server, a database or a role is set to by others changes nothing about what Duepost does."""

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from models import control, workers
from models.database.migrate import check_schema
from tests.app_harness import Harness
from tests.integration.conftest import settings_of
from tests.postgres import PostgresServer
from tests.relays import ScriptedRelay

#: Each as `ALTER DATABASE … SET` takes it.
SETTINGS = [
    "client_encoding = 'LATIN1'",
    "client_encoding = 'SQL_ASCII'",
    "client_encoding = 'EUC_JP'",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_isolation = 'repeatable read'",
    "default_transaction_deferrable = on",
    "search_path = ''",
    "standard_conforming_strings = off",
    "escape_string_warning = on",
    "DateStyle = 'German'",
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'Pacific/Kiritimati'",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
    "client_min_messages = 'debug1'",
    "client_min_messages = 'error'",
    "row_security = off",
    "jit_above_cost = 0",
    "transform_null_equals = on",
    "quote_all_identifiers = on",
    "array_nulls = off",
    "backslash_quote = off",
    "xmloption = 'document'",
    "lc_messages = 'C'",
    "check_function_bodies = on",
    "plpgsql.variable_conflict = 'use_variable'",
    "plpgsql.extra_errors = 'all'",
    "plan_cache_mode = 'force_custom_plan'",
    "synchronous_commit = off",
    "statement_timeout = '5s'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '100ms'",
    "idle_session_timeout = '100ms'",
    "track_activities = off",
    "timezone_abbreviations = 'India'",
    "enable_indexscan = off",
]


@pytest.fixture(params=SETTINGS)
def set_server(request: pytest.FixtureRequest, url: str, server: PostgresServer) -> str:
    """A migrated database with a setting of somebody else's."""
    name = url.partition("@/")[2].partition("?")[0]
    server.execute(f"ALTER DATABASE {name} SET {request.param}")
    return url


@pytest.fixture
def set_harness(
    set_server: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Harness]:
    for name, value in settings_of(set_server, relay.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    harness = Harness(set_server, tmp_path)
    yield harness
    harness.close()


def test_the_main_job_is_done_whatever_the_database_is_set_to(set_harness: Harness, relay: ScriptedRelay) -> None:
    check_schema(set_harness.database)
    set_harness.recipient("zoé", "zoe@example.com", "Zoé Łąka")
    set_harness.template("welcome", subject="Grüße", text="{{ n }} € für {{ recipient.name }} ☃\n")
    first = set_harness.schedule(template="welcome", context={"n": "10\\5"}, users=["zoé"])
    set_harness.deliver()
    assert set_harness.ledger(first) == ["sent"], set_harness.query("SELECT last_error FROM duepost.scheduled_email")
    second = set_harness.schedule(scheduled_at="2030-01-01T00:00:00Z")
    assert set_harness.query(
        "SELECT * FROM duepost.clear_scheduled_emails_to('ann@example.com')"
    ) == [(second, "cleared")]  # fmt: skip
    control.maintain_partitions(set_harness.database, retention_days=400)
    assert len(relay.messages) == 1


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "UTF8", "SJIS"])
def test_the_environments_client_encoding_changes_nothing(
    url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    for name, value in settings_of(url, relay.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    harness = Harness(url, tmp_path)
    try:
        email_id = harness.schedule(subject="Grüße ☃")
        harness.deliver()
        assert harness.ledger(email_id) == ["sent"]
    finally:
        harness.close()


#: Notes how each transaction that writes to a table is isolated.
NOTE = """
    CREATE TABLE public.isolation (written text, level text);
    GRANT INSERT ON public.isolation TO PUBLIC;
    CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.isolation VALUES (TG_TABLE_NAME, current_setting('transaction_isolation'));
        RETURN NULL;
    END
    $$;
"""
WRITTEN = ("duepost.worker", "duepost.control", "duepost.item", "duepost.in_hand", "dramatiq.queue", "duepost.delivery")


@pytest.mark.parametrize("level", ["serializable", "repeatable read"])
def test_no_transaction_of_workers_is_isolated_otherwise_than_they_are_written_for(
    url: str, server: PostgresServer, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    name = url.partition("@/")[2].partition("?")[0]
    with psycopg2.connect(url) as outside, outside.cursor() as cursor:
        cursor.execute(NOTE)
        for table in WRITTEN:
            cursor.execute(
                f"CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION public.note()"
            )
    outside.close()
    server.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    for variable, value in settings_of(url, relay.url, tmp_path).items():
        monkeypatch.setenv(variable, value)
    harness = Harness(url, tmp_path)
    try:
        for _ in range(2):
            harness.schedule()
        harness.deliver()
        workers.stamp(harness.database, harness.worker_session.worker_id)
        harness.worker_session.stop()
        levels = harness.query("SELECT DISTINCT written, level FROM public.isolation ORDER BY 1")
        assert levels == sorted((table.partition(".")[2], "read committed") for table in WRITTEN)
    finally:
        harness.close()

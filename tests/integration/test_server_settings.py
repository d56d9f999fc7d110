"""What a server, a database or a role is set to by others changes nothing about what Duepost does."""

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from models import control, workers
from models.migrate import check_schema
from tests.integration.conftest import settings_of
from tests.postgres import PostgresServer
from tests.postroom import Postroom
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
]


@pytest.fixture(params=SETTINGS)
def set_server(request: pytest.FixtureRequest, url: str, server: PostgresServer) -> str:
    """A migrated database with a setting of somebody else's."""
    name = url.partition("@/")[2].partition("?")[0]
    server.execute(f"ALTER DATABASE {name} SET {request.param}")
    return url


@pytest.fixture
def set_postroom(
    set_server: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Postroom]:
    for name, value in settings_of(set_server, relay.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    postroom = Postroom(set_server, tmp_path)
    yield postroom
    postroom.close()


def test_the_main_job_is_done_whatever_the_database_is_set_to(set_postroom: Postroom, relay: ScriptedRelay) -> None:
    check_schema(set_postroom.database)
    set_postroom.recipient("zoé", "zoe@example.com", "Zoé Łąka")
    set_postroom.template("welcome", subject="Grüße", text="{{ n }} € für {{ recipient.name }} ☃\n")
    first = set_postroom.schedule(template="welcome", context={"n": "10\\5"}, users=["zoé"])
    set_postroom.deliver()
    assert set_postroom.ledger(first) == ["sent"], set_postroom.query("SELECT last_error FROM duepost.scheduled_email")
    second = set_postroom.schedule(scheduled_at="2030-01-01T00:00:00Z")
    assert set_postroom.query(
        "SELECT * FROM duepost.clear_scheduled_emails_to('ann@example.com')"
    ) == [(second, "cleared")]  # fmt: skip
    control.maintain_partitions(set_postroom.database, retention_days=400)
    assert len(relay.messages) == 1


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "UTF8", "SJIS"])
def test_the_environments_client_encoding_changes_nothing(
    url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", encoding)
    for name, value in settings_of(url, relay.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    postroom = Postroom(url, tmp_path)
    try:
        email_id = postroom.schedule(subject="Grüße ☃")
        postroom.deliver()
        assert postroom.ledger(email_id) == ["sent"]
    finally:
        postroom.close()


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
WRITTEN = ("duepost.worker", "duepost.control", "duepost.scheduled_email", "dramatiq.queue", "duepost.delivery")


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
    postroom = Postroom(url, tmp_path)
    try:
        for _ in range(2):
            postroom.schedule()
        postroom.deliver()
        workers.stamp(postroom.database, postroom.attendance.worker_id)
        postroom.attendance.stop()
        levels = postroom.query("SELECT DISTINCT written, level FROM public.isolation ORDER BY 1")
        assert levels == sorted((table.partition(".")[2], "read committed") for table in WRITTEN)
    finally:
        postroom.close()

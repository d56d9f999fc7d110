"""The Python client: any DB-API cursor, in the caller's own transaction, without worker code."""

import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest
from psycopg2.extras import NamedTupleCursor, RealDictCursor

import duepost
from models.database import Cursor


@pytest.fixture(params=[None, RealDictCursor, NamedTupleCursor], ids=["plain", "dicts", "named tuples"])
def cursor(url: str, request: pytest.FixtureRequest) -> Iterator[Cursor]:
    connection = psycopg2.connect(url)
    with connection.cursor(cursor_factory=request.param) as cursor:
        yield cursor
    connection.close()


def test_every_function_works_with_every_sort_of_cursor(cursor: Cursor) -> None:
    email_id = duepost.schedule_email(
        cursor,
        kind="welcome",
        users=["ann", "bob"],
        template="welcome",
        context={"n": 1, "text": "Grüße"},
        key="k",
        scheduled_at=datetime.now(UTC),
        expires_at=datetime.now(UTC) + timedelta(days=1),
        sender="Ann <ann@example.com>",
        reply_to="help@example.com",
        headers={"X-A": "b"},
    )
    assert duepost.reschedule_email(cursor, email_id, datetime.now(UTC)) == "rescheduled"
    assert duepost.clear_scheduled_emails(cursor, ["ann"]) == [(email_id, "user_removed")]
    assert duepost.clear_scheduled_email(cursor, email_id) == "cleared"
    other = duepost.schedule_email(cursor, kind="k", address="ann@example.com", subject="s", body_text="b")
    assert duepost.clear_scheduled_emails_to(cursor, "ann@example.com", "k") == [(other, "cleared")]


def test_the_callers_rollback_takes_it_back(url: str) -> None:
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        duepost.schedule_email(cursor, kind="k", address="ann@example.com", subject="s", body_text="b")
        connection.rollback()
        cursor.execute("SELECT count(*) FROM duepost.scheduled_email")
        assert cursor.fetchone() == (0,)
    connection.close()


def test_a_time_without_a_zone_is_refused(cursor: Cursor) -> None:
    naive = datetime(2030, 1, 1)  # noqa: DTZ001 - the point
    with pytest.raises(ValueError, match="scheduled_at: needs a time zone"):
        duepost.schedule_email(cursor, kind="k", address="a@b.c", subject="s", body_text="b", scheduled_at=naive)
    with pytest.raises(ValueError, match="scheduled_at: needs a time zone"):
        duepost.reschedule_email(cursor, 1, naive)


def test_importing_it_imports_no_worker_code() -> None:
    code = (
        "import sys, duepost\n"
        "loaded = {'actors', 'models', 'dramatiq', 'sentry_sdk', 'psycopg2', 'jinja2', 'typer'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])

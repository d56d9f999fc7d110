"""`duepost.testing`: what an application's tests see and do, in a transaction of their own and with real workers."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest
import sqlalchemy
from sqlalchemy import orm
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import duepost
import duepost.aio
from duepost.testing import Kit
from tests.postgres import Connection, PostgresServer, run

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
LATER = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def module_url(server: PostgresServer) -> Iterator[str]:
    with server.fresh_database() as url:
        yield url


@pytest.fixture
def connection(module_url: str) -> Iterator[Connection]:
    """An application's open transaction: nothing of it is ever committed."""
    connection = psycopg2.connect(module_url)
    yield connection
    connection.close()


@pytest.fixture
def kit(connection: Connection, tmp_path: Path) -> Kit:
    return Kit(connection.cursor(), templates=tmp_path)


def schedule(connection: Connection, **given: object) -> int:
    more: dict[str, object] = {"kind": "welcome", **given}
    if "users" not in more and "addresses" not in more:
        more.setdefault("address", "ann@example.com")
    if "template" not in more:
        more |= {"subject": "Hello", "body_text": "World\n"}
    with connection.cursor() as cursor:
        return duepost.schedule_email(cursor, **more)  # type: ignore[arg-type]


def test_what_is_scheduled_and_not_committed_is_found_by_a_part_of_it(connection: Connection, kit: Kit) -> None:
    first = schedule(
        connection, users=["1", "2"], template="digest", context={"a": {"b": 1, "c": 2}}, scheduled_at=LATER
    )
    schedule(connection, kind="other")
    for wanted in (
        {"kind": "welcome"}, {"user": 1}, {"users": ["2", 1]}, {"context": {"a": {"b": 1}}}, {"scheduled_at": LATER},
        {"template": lambda name: name and name.startswith("dig")}, {"channel": "email", "user": "2"},
    ):  # fmt: skip
        found = kit.assert_scheduled(**wanted)
        assert (found.id, found.scheduled_at, list(found.users)) == (first, LATER, ["1", "2"]), wanted
    assert kit.assert_scheduled(address="ANN@example.com").kind == "other"
    assert [item.kind for item in kit.scheduled()] == ["welcome", "other"]
    for other in ({"user": "3"}, {"users": ["1"]}, {"context": {"a": {"b": 2}}}, {"kind": "welcome", "key": "k"}):
        kit.assert_not_scheduled(**other)


def test_what_is_not_found_lists_what_is_there(connection: Connection, kit: Kit) -> None:
    with pytest.raises(AssertionError, match=r"^an item: expected something, 0 found\nNothing is scheduled\.$"):
        kit.assert_scheduled()
    email_id = schedule(connection, users=["1"], template="digest", context={"n": 1}, scheduled_at=LATER)
    with pytest.raises(AssertionError) as caught:
        kit.assert_scheduled(kind="digest", user="1")
    assert str(caught.value).splitlines() == [
        "an item with kind='digest', user='1': expected something, 0 found",
        "What is scheduled:",
        f"  email {email_id} welcome: users 1, at 2030-01-01T12:00:00+00:00, template digest, context {{'n': 1}}",
    ]
    with pytest.raises(AssertionError, match=f"expected nothing, 1 found\nWhat is scheduled:\n  email {email_id} "):
        kit.assert_not_scheduled(kind="welcome")
    with pytest.raises(AssertionError, match="expected 2, 1 found"):
        kit.assert_scheduled(kind="welcome", count=2)
    with pytest.raises(TypeError, match="knid: an item has no such attribute; it has address, "):
        kit.scheduled(knid="welcome")


def test_drained_emails_are_parsed_messages_one_for_each_user(connection: Connection, kit: Kit, tmp_path: Path) -> None:
    (tmp_path / "digest.subject.txt").write_text("{{ count }} news for {{ recipient.name }}")
    (tmp_path / "digest.txt").write_text("Grüße, {{ recipient.user_id }}\n")
    (tmp_path / "digest.html").write_text("<p>{{ count }}</p>\n")
    run(
        connection,
        "INSERT INTO duepost.recipient (user_id, address, name, active) VALUES ('1', 'ann@example.com', 'Ann Ä', true),"
        " ('2', 'bob@example.com', 'Bob', false), ('3', NULL, 'Eve', true)",
    )
    email_id = schedule(connection, users=["1", "2", "3", "4"], template="digest", context={"count": 3},
                        sender="News <news@example.com>", headers={"List-Id": "news.example.com"})  # fmt: skip
    [email] = kit.drain()
    assert email["Subject"] == "3 news for Ann Ä"
    assert email["To"] == "Ann Ä <ann@example.com>"
    assert email["From"] == "News <news@example.com>"
    assert email["List-Id"] == "news.example.com"
    text, html = (email.get_body((each,)) for each in ("plain", "html"))
    assert text is not None
    assert html is not None
    assert (text.get_content(), html.get_content()) == ("Grüße, 1\n", "<p>3</p>\n")
    assert kit.outbox == [email]
    assert run(
        connection, "SELECT user_id, outcome FROM duepost.delivery WHERE email_id = %s ORDER BY user_id", email_id
    ) == [("1", "sent"), ("2", "cleared"), ("3", "undeliverable"), ("4", "undeliverable")]
    kit.assert_not_scheduled()
    assert kit.drain() == []


def test_a_guard_is_asked_before_an_email_is_drained(connection: Connection, kit: Kit, tmp_path: Path) -> None:
    run(connection, "CREATE TABLE invoice (number text, is_paid boolean)")
    run(
        connection,
        "CREATE FUNCTION is_unpaid(bigint, text[], jsonb) RETURNS boolean LANGUAGE sql AS"
        " $$ SELECT NOT is_paid FROM invoice WHERE number = $3 ->> 'number' $$",
    )
    run(connection, "INSERT INTO invoice VALUES ('1', true), ('2', false)")
    run(connection, "INSERT INTO duepost.kind (kind, guard) VALUES ('reminder', 'public.is_unpaid')")
    (tmp_path / "reminder.subject.txt").write_text("{{ number }}")
    (tmp_path / "reminder.txt").write_text("Please pay.\n")
    paid, unpaid, unknown = (
        schedule(connection, kind="reminder", template="reminder", context={"number": number}) for number in "123"
    )
    run(connection, "UPDATE duepost.item SET due_at = due_at + interval '1 day' WHERE id = %s", unknown)
    assert [each["Subject"] for each in kit.drain()] == ["2"]
    assert run(connection, "SELECT email_id, outcome, reply FROM duepost.delivery ORDER BY email_id") == [
        (paid, "obsolete", "the guard public.is_unpaid said no"), (unpaid, "sent", None),
    ]  # fmt: skip
    # One that fails fails the test: a worker would try again.
    with pytest.raises(psycopg2.Error, match="it gave NULL, and not true or false"):
        kit.drain(advance=timedelta(days=1, seconds=1))


def test_suppressed_addresses_get_nothing_when_emails_are_drained(connection: Connection, kit: Kit) -> None:
    run(
        connection,
        "INSERT INTO duepost.suppression (address, kind, until) VALUES ('ann@example.com', NULL, NULL),"
        " ('bob@example.com', 'news', now() + interval '1 hour'), ('eve@example.com', NULL, now() - interval '1 s')",
    )
    one = schedule(connection)
    run(connection, "INSERT INTO duepost.recipient (user_id, address, active) VALUES ('1', 'ann@EXAMPLE.com', true)")
    user = schedule(connection, users=["1"])
    both = schedule(connection, kind="news", addresses=["ann@example.com"], cc=["bob@example.com", "eve@example.com"])
    none = schedule(connection, kind="news", addresses=["ann@example.com", "bob@example.com"])
    bob = schedule(connection, address="bob@example.com")
    assert len(kit.drain()) == 2
    assert run(connection, "SELECT email_id, address, outcome FROM duepost.delivery ORDER BY email_id, address") == [
        (one, "ann@example.com", "suppressed"),
        (user, "ann@EXAMPLE.com", "suppressed"),
        (both, "ann@example.com", "suppressed"), (both, "bob@example.com", "suppressed"),
        (both, "eve@example.com", "sent"),
        (none, "ann@example.com", "suppressed"), (none, "bob@example.com", "suppressed"),
        (bob, "bob@example.com", "sent"),
    ]  # fmt: skip


def test_time_passes_for_what_is_scheduled_in_the_same_transaction(connection: Connection, kit: Kit) -> None:
    soon = kit.now() + timedelta(hours=2)
    schedule(connection, scheduled_at=soon, expires_at=soon + timedelta(hours=1), key="soon")
    schedule(connection, scheduled_at=soon + timedelta(days=1), key="later", expires_at=soon + timedelta(days=2))
    assert kit.drain() == []
    assert len(kit.drain(advance=timedelta(hours=2, seconds=1))) == 1
    item = kit.assert_scheduled(key="later", scheduled_at=soon + timedelta(days=1))
    kit.advance_to(soon + timedelta(days=3))
    assert soon + timedelta(days=3) <= kit.now() <= soon + timedelta(days=3, minutes=5)
    assert kit.drain() == []
    assert run(connection, "SELECT outcome FROM duepost.delivery WHERE email_id = %s", item.id) == [("expired",)]
    with pytest.raises(ValueError, match="moment: needs a time zone"):
        kit.advance_to(datetime(2030, 1, 1))  # noqa: DTZ001 - the point


def test_batches_and_messages_are_seen_with_their_items_and_payloads(
    connection: Connection, kit: Kit, tmp_path: Path
) -> None:
    (tmp_path / "comments.subject.txt").write_text("{{ items | length }} comments")
    (tmp_path / "comments.txt").write_text("{% for item in items %}{{ item.by }} {% endfor %}")
    run(connection, "SELECT duepost.set_endpoint('shop', 'webhook', 'https://example.com/', secret => 'new')")
    with connection.cursor() as cursor:
        for name in ("Ann", "Bob"):
            duepost.add_to_batch(
                cursor, "b", {"by": name}, kind="comments", template="comments", address="eve@example.com"
            )
        message_id = duepost.schedule_message(cursor, kind="paid", endpoint="shop", payload={"order": 1, "of": "Ann"})
    kit.assert_scheduled(kind="comments", context={"items": [{"by": "Ann"}, {"by": "Bob"}]})
    assert kit.assert_scheduled(endpoint="shop", payload={"order": 1}).id == message_id
    [email] = kit.drain(advance=timedelta(minutes=3))
    assert (email["Subject"], email.get_content()) == ("2 comments", "Ann Bob \n")
    assert [item.id for item in kit.posted] == [message_id]


def test_a_template_that_fails_fails_the_test_and_names_the_file(connection: Connection, kit: Kit) -> None:
    schedule(connection, template="none")
    with pytest.raises(Exception, match=r"none\.subject\.txt.*there is no such file"):
        kit.drain()


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
def test_the_kit_takes_a_session_of_sqlalchemy(module_url: str, driver: str) -> None:
    engine = sqlalchemy.create_engine(module_url.replace("postgresql", f"postgresql+{driver}", 1))
    with orm.Session(engine) as session:
        duepost.schedule_email(session, kind="k", address="a@example.com", subject="s", body_text="b", key="50 % :x")
        kit = Kit(session)
        kit.assert_scheduled(key="50 % :x")
        kit.advance(timedelta(days=1))
        assert len(kit.drain()) == 1
        kit.assert_not_scheduled()
    engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_the_kit_looks_into_an_asynchronous_session_s_transaction(module_url: str, driver: str) -> None:
    def look(session: orm.Session) -> int:
        kit = Kit(session)
        kit.assert_scheduled(key="k")
        return len(kit.drain(advance=timedelta(days=1)))

    async def main() -> int:
        engine = create_async_engine(module_url.replace("postgresql", f"postgresql+{driver}", 1))
        async with AsyncSession(engine) as session:
            await duepost.aio.schedule_email(
                session, kind="k", address="a@example.com", subject="s", body_text="b", key="k"
            )
            sent = await session.run_sync(look)
        await engine.dispose()
        return sent

    assert asyncio.run(main()) == 1


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of somebody's, with modules of its own that are called as ours are, and no configuration."""
    (tmp_path / "models.py").write_text("HOST = True\n")
    (tmp_path / "actors.py").write_text("HOST = True\n")
    return tmp_path


def run_tests(project: Path, code: str, **env: str) -> str:
    """Runs a test file as its owner does."""
    (project / "test_shop.py").write_text("import actors, models\n\nassert models.HOST and actors.HOST\n\n\n" + code)
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DUEPOST_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "test_shop.py"],
        cwd=project, env=own | env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_snippets_of_the_page_are_tests_that_pass_without_any_set_up(project: Path) -> None:
    blocks = re.findall(r"^```python test\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    assert "3 passed" in run_tests(project, "\n\n".join(blocks))


def test_each_test_has_a_fresh_database_also_on_a_server_of_ones_own(project: Path, server: PostgresServer) -> None:
    code = """
import psycopg2
import pytest
import duepost


@pytest.mark.parametrize("turn", [1, 2])
def test_nothing_is_left(duepost_kit, duepost_database_url, turn):
    duepost_kit.assert_not_scheduled()
    with psycopg2.connect(duepost_database_url) as connection, connection.cursor() as cursor:
        duepost.schedule_email(cursor, kind="k", address="a@example.com", subject="s", body_text="b")
    connection.close()
    duepost_kit.assert_scheduled(count=1)
"""
    before = _databases(server)
    assert "2 passed" in run_tests(project, code, DUEPOST_TEST_DATABASE_URL=server.url())
    assert _databases(server) - before == set()


def _databases(server: PostgresServer) -> set[object]:
    connection = psycopg2.connect(server.url())
    try:
        return {
            name for (name,) in run(connection, "SELECT datname FROM pg_database WHERE datname LIKE 'duepost_test_%%'")
        }
    finally:
        connection.close()


def test_a_project_that_uses_none_of_it_loads_nothing_but_the_client() -> None:
    code = (
        "import sys, duepost.testing.plugin\n"
        "heavy = {'actors', 'models', 'dramatiq', 'psycopg2', 'jinja2', 'psutil', 'aiosmtpd', 'sqlalchemy', 'babel'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PAGE.parent)

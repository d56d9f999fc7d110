"""The Python client: any DB-API cursor, in the caller's own transaction, without worker code."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import psycopg2
import pytest
from psycopg2.extensions import STATUS_BEGIN
from psycopg2.extras import DictCursor, NamedTupleCursor, RealDictCursor

import duepost
from tests.postgres import Connection, Cursor, PostgresServer

ROOT = Path(__file__).parents[2]
NAIVE = datetime(2030, 1, 1)  # noqa: DTZ001 - the point
CURSORS = {"plain": None, "lists": DictCursor, "dicts": RealDictCursor, "named tuples": NamedTupleCursor}


@pytest.fixture(scope="module")
def connection(server: PostgresServer) -> Iterator[Connection]:
    with server.fresh_database() as url:
        connection = psycopg2.connect(url)
        yield connection
        connection.close()


@pytest.fixture(params=list(CURSORS.values()), ids=list(CURSORS))
def cursor(connection: Connection, request: pytest.FixtureRequest) -> Iterator[Cursor]:
    """Cursors that give rows as tuples, lists, mappings and named tuples."""
    with connection.cursor(cursor_factory=request.param) as cursor:
        yield cursor
    connection.rollback()


@pytest.fixture
def plain(connection: Connection) -> Iterator[Cursor]:
    with connection.cursor() as cursor:
        yield cursor
    connection.rollback()


def schedule(cursor: Cursor, **more: object) -> int:
    whom = {} if "users" in more else {"address": "ann@example.com"}
    return duepost.schedule_email(cursor, kind="k", subject="s", body_text="b", **whom, **more)  # type: ignore[arg-type]


def test_schedule_email_gives_the_id_and_passes_every_argument_on(connection: Connection, cursor: Cursor) -> None:
    later = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    email_id = duepost.schedule_email(
        cursor,
        kind="welcome",
        users=["ann", "bob"],
        template="welcome",
        context={"n": 1, "text": "Grüße", "list": [None, True]},
        key="k",
        scheduled_at=later,
        expires_at=later + timedelta(days=1),
        sender="Ann <ann@example.com>",
        reply_to="help@example.com",
        headers={"X-A": "b"},
    )
    assert isinstance(email_id, int)
    with connection.cursor() as look:
        look.execute(
            "SELECT kind, template, context, key, scheduled_at, expires_at, sender, reply_to, headers,"
            " (SELECT array_agg(user_id ORDER BY user_id) FROM duepost.scheduled_email_user)"
            " FROM duepost.scheduled_email WHERE id = %s",
            (email_id,),
        )
        assert look.fetchone() == (
            "welcome", "welcome", {"n": 1, "text": "Grüße", "list": [None, True]}, "k", later,
            later + timedelta(days=1), "Ann <ann@example.com>", "help@example.com", {"X-A": "b"}, ["ann", "bob"],
        )  # fmt: skip


def test_schedule_emails_gives_the_ids_in_order(connection: Connection, cursor: Cursor) -> None:
    later = datetime(2030, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    ids = duepost.schedule_emails(
        cursor,
        (
            {"kind": "k", "address": f"a{n}@example.com", "subject": "s", "body_text": "b", "scheduled_at": moment}
            for n, moment in enumerate([None, later, "2031-01-01T00:00Z"])
        ),
    )
    ids += duepost.schedule_emails(cursor, [{"kind": "k", "users": ("ann", "bob"), "template": "t", "context": {}}])
    with connection.cursor() as look:
        look.execute(
            "SELECT e.id, e.address, CASE WHEN e.scheduled_at > now() THEN e.scheduled_at::text END,"
            " (SELECT count(*) FROM duepost.scheduled_email_user WHERE email_id = e.id)"
            " FROM duepost.scheduled_email AS e ORDER BY array_position(%s, e.id)",
            (ids,),
        )
        assert look.fetchall() == [
            (ids[0], "a0@example.com", None, 0),
            (ids[1], "a1@example.com", "2030-01-01 10:00:00+00", 0),
            (ids[2], "a2@example.com", "2031-01-01 00:00:00+00", 0),
            (ids[3], None, None, 2),
        ]


def test_what_is_wrong_in_a_set_is_named_with_its_place(plain: Cursor) -> None:
    good = {"kind": "k", "address": "ann@example.com", "subject": "s", "body_text": "b"}
    for wrong, expected, said in (
        ({"scheduled_at": NAIVE}, ValueError, r"emails\[1\]: scheduled_at: needs a time zone"),
        ({"users": "ann"}, TypeError, r"emails\[1\]: users: must be a list of user ids"),
        ({"context": {1, 2}}, TypeError, "not JSON serializable"),
        ({"address": "nobody"}, psycopg2.errors.InvalidParameterValue, r"emails\[1\]: address: must be one address"),
    ):
        with pytest.raises(expected, match=said):
            duepost.schedule_emails(plain, [good, {**good, **wrong}])


def test_clear_scheduled_emails_gives_ids_and_receipts(cursor: Cursor) -> None:
    both, alone = schedule(cursor, users=["ann", "bob"]), schedule(cursor, users=["ann"])
    assert duepost.clear_scheduled_emails(cursor, ["ann"]) == [(both, "user_removed"), (alone, "cleared")]
    assert duepost.clear_scheduled_emails(cursor, ("bob",), kind="other") == []
    assert duepost.clear_scheduled_emails(cursor, []) == []


def test_clear_scheduled_emails_to_gives_ids_and_receipts(cursor: Cursor) -> None:
    email_id = schedule(cursor)
    assert duepost.clear_scheduled_emails_to(cursor, "ann@example.com", "other") == []
    assert duepost.clear_scheduled_emails_to(cursor, "ann@example.com", "k") == [(email_id, "cleared")]


def test_clear_scheduled_email_gives_a_receipt(cursor: Cursor) -> None:
    email_id = schedule(cursor)
    assert [duepost.clear_scheduled_email(cursor, email_id) for _ in range(2)] == ["cleared", "too_late"]


def test_reschedule_email_gives_a_receipt(cursor: Cursor) -> None:
    email_id = schedule(cursor)
    assert duepost.reschedule_email(cursor, email_id, datetime.now(UTC)) == "rescheduled"
    assert duepost.reschedule_email(cursor, 999_999, "2030-01-01T00:00Z") == "too_late"


def test_the_transaction_stays_the_callers(connect: Callable[[], Connection]) -> None:
    connection, other = connect(), connect()
    with connection.cursor() as cursor, other.cursor() as look:
        email_id = schedule(cursor, users=["ann"])
        duepost.reschedule_email(cursor, email_id, datetime.now(UTC))
        duepost.clear_scheduled_emails(cursor, ["ann"])
        schedule(cursor)
        assert connection.status == STATUS_BEGIN
        look.execute("SELECT count(*) FROM duepost.scheduled_email")
        assert look.fetchone() == (0,)
        connection.rollback()
        cursor.execute("SELECT count(*) FROM duepost.scheduled_email")
        assert cursor.fetchone() == (0,)


def test_a_callers_other_work_commits_or_fails_with_it(connect: Callable[[], Connection]) -> None:
    connection = connect()
    with connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE app (a int)")

    def work() -> None:
        with connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO app VALUES (1)")
            duepost.schedule_email(cursor, kind="k", address="nobody", subject="s", body_text="b")

    with pytest.raises(psycopg2.errors.InvalidParameterValue):
        work()
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM app")
        assert cursor.fetchone() == (0,)


def test_errors_are_the_drivers_own(plain: Cursor) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^users: must name at least one user"):
        schedule(plain, users=[])


@pytest.mark.parametrize("argument", ["scheduled_at", "expires_at"])
def test_a_time_without_a_zone_is_refused(plain: Cursor, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}: needs a time zone"):
        schedule(plain, **{argument: NAIVE})


def test_a_zone_that_knows_no_offset_is_none(plain: Cursor) -> None:
    class Nowhere(tzinfo):
        def utcoffset(self, moment: datetime | None) -> None: ...
        def dst(self, moment: datetime | None) -> None: ...
        def tzname(self, moment: datetime | None) -> None: ...

    with pytest.raises(ValueError, match="scheduled_at: needs a time zone"):
        schedule(plain, scheduled_at=NAIVE.replace(tzinfo=Nowhere()))


def test_a_move_to_a_time_without_a_zone_is_refused(plain: Cursor) -> None:
    with pytest.raises(ValueError, match="scheduled_at: needs a time zone"):
        duepost.reschedule_email(plain, 1, NAIVE)


WITHOUT_A_ZONE = [
    "2030-01-01T09:00:00", "2030-01-01 09:00", "2030-01-01", "01/02/2030", "tomorrow", "now", "infinity", "soon", "",
    "2030-01-01T09:00:00 CET", "Tue Jan 1 09:00 2030 +0100",
]  # fmt: skip


@pytest.mark.parametrize("text", WITHOUT_A_ZONE)
@pytest.mark.parametrize("argument", ["scheduled_at", "expires_at"])
def test_a_text_that_is_no_time_with_a_zone_is_refused(plain: Cursor, argument: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: must be a time with its zone, such as 20"):
        schedule(plain, **{argument: text})
    email = {"kind": "k", "address": "a@example.com", "subject": "s", "body_text": "b", argument: text}
    with pytest.raises(ValueError, match=rf"^emails\[0\]: {argument}: must be a time with its zone, such as 20"):
        duepost.schedule_emails(plain, [email])


def test_a_move_to_a_text_without_a_zone_is_refused(plain: Cursor) -> None:
    with pytest.raises(ValueError, match=r"^scheduled_at: must be a time with its zone"):
        duepost.reschedule_email(plain, 1, "2030-01-01 09:00")


@pytest.mark.parametrize("argument", ["scheduled_at", "expires_at"])
def test_a_date_is_no_time(plain: Cursor, argument: str) -> None:
    day = date(2030, 1, 1)
    with pytest.raises(ValueError, match=f"^{argument}: needs a time zone and a time of day"):
        schedule(plain, **{argument: day})
    with pytest.raises(ValueError, match=rf"^emails\[0\]: {argument}: needs a time zone and a time of day"):
        duepost.schedule_emails(plain, [{"kind": "k", argument: day}])
    with pytest.raises(TypeError, match=f"^{argument}: must be a datetime with a time zone, is a int"):
        schedule(plain, **{argument: 1_900_000_000})


@pytest.mark.parametrize(
    "text",
    ["2030-01-01T00:00:00Z", "2030-01-01 09:00:00+09:00", "2030-01-01T09:00+0900", "2030-01-01T09:00:00 Asia/Tokyo",
     "20300101T000000Z", "2030-01-01T00:00:00.000 UTC", "2029-12-31T23:59:60Z"],
)  # fmt: skip
def test_a_text_with_its_zone_is_one_moment_whatever_the_session_says(plain: Cursor, text: str) -> None:
    plain.execute("SET LOCAL TimeZone = 'America/New_York'")
    plain.execute("SET LOCAL DateStyle = 'SQL, DMY'")
    email = {"kind": "k", "address": "a@example.com", "subject": "s", "body_text": "b", "scheduled_at": text}
    ids = [schedule(plain, scheduled_at=text), *duepost.schedule_emails(plain, [email])]
    plain.execute(
        "SELECT count(*) FROM duepost.scheduled_email WHERE id = ANY (%s) AND scheduled_at = '2030-01-01T00:00Z'",
        (ids,),
    )
    assert plain.fetchone() == (2,)


def test_one_user_id_is_not_taken_for_a_list_of_letters(plain: Cursor) -> None:
    with pytest.raises(TypeError, match="users: must be a list of user ids"):
        schedule(plain, users="ann")
    with pytest.raises(TypeError, match="users: must be a list of user ids"):
        duepost.clear_scheduled_emails(plain, "ann")


ITSELF: dict[str, object] = {}
ITSELF["a"] = ITSELF


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"when": datetime.now(UTC)}, "when: not JSON serializable: datetime"),
        ({"user": {"born": date(2000, 1, 1)}}, "user: born: not JSON serializable: date"),
        ({"lines": [{"price": 1}, {"price": Decimal("1.5")}]}, r"lines\[1\]: price: not JSON serializable: Decimal"),
        ({"id": UUID(int=1)}, "id: not JSON serializable: UUID"),
        ({"a": {1, 2}}, "a: not JSON serializable: set"),
        ({"a": b"b"}, "a: not JSON serializable: bytes"),
        ({"a": [float("nan")]}, r"a\[0\]: not JSON serializable: must be a finite number"),
        ({"a": float("inf")}, "a: not JSON serializable: must be a finite number"),
        ({"a": {(1, 2): 3}}, "a: not JSON serializable: a key must be a string, is a tuple"),
        (ITSELF, "not JSON serializable: it is nested too deeply, or holds itself"),
    ],
)
def test_what_is_no_json_is_named_by_argument_and_key(plain: Cursor, value: dict[str, object], said: str) -> None:
    with pytest.raises(TypeError, match=f"^context: {said}"):
        duepost.schedule_email(plain, kind="k", address="a@example.com", template="t", context=value)
    email = {"kind": "k", "address": "a@example.com", "template": "t", "context": value}
    place = r"^emails\[1\]: " if value is ITSELF else r"^emails\[1\]: context: "
    with pytest.raises(TypeError, match=place + said):
        duepost.schedule_emails(plain, [{"kind": "k"}, email])


def test_values_are_passed_as_parameters(plain: Cursor) -> None:
    nasty = "'); DROP TABLE duepost.recipient; -- %s %(kind)s"
    email_id = schedule(plain, key=nasty, users=[nasty])
    assert duepost.clear_scheduled_emails(plain, [nasty], kind="k") == [(email_id, "cleared")]


def test_importing_it_imports_no_worker_code() -> None:
    code = (
        "import sys, duepost\n"
        "loaded = {'actors', 'models', 'dramatiq', 'sentry_sdk', 'psycopg2', 'jinja2', 'typer'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


class AsynchronousCursor:
    """As psycopg's: what `execute` gives is to be awaited."""

    async def execute(self, _statement: str, _parameters: object) -> None:
        """Never awaited."""

    def fetchone(self) -> object:
        """Nothing."""

    def fetchall(self) -> object:
        """Nothing."""


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("cursor", [AsynchronousCursor(), object()], ids=["asynchronous", "none of the DB-API"])
def test_a_cursor_of_another_sort_is_a_type_error_that_says_what_to_do(cursor: object) -> None:
    for call in (
        lambda: duepost.schedule_email(cursor, kind="k", address="a@b.example", subject="s", body_text="b"),  # type: ignore[arg-type]
        lambda: duepost.clear_scheduled_email(cursor, 1),  # type: ignore[arg-type]
        lambda: duepost.clear_scheduled_emails(cursor, ["ann"]),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=r"^cursor: .*SELECT duepost"):
            call()

"""A message to a function of the application's: it runs in the transaction that concludes the message."""

import threading
from collections.abc import Callable

import psycopg2
import pytest

from models import emails, scheduled_messages
from models.database.connections import Limits
from tests.app_harness import Harness
from tests.postgres import Connection
from tests.waiting import wait_until


class Posts:
    """The application's own table, and a function that fills it; messages to that."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.register("app.post(bigint, jsonb)", "INSERT INTO app.posts VALUES (message_id, payload)")

    def register(self, signature: str, body: str, endpoint: str = "posts") -> None:
        """Registers a function of this body as an endpoint."""
        name = signature.partition("(")[0]
        self.harness.query("CREATE SCHEMA IF NOT EXISTS app")
        self.harness.query("CREATE TABLE IF NOT EXISTS app.posts (message_id bigint, payload jsonb)")
        self.harness.query(
            f"CREATE OR REPLACE FUNCTION {name}(message_id bigint, payload jsonb) RETURNS void LANGUAGE plpgsql"
            f" AS $f$ BEGIN {body}; END $f$"
        )
        self.harness.query(
            "INSERT INTO duepost.endpoint (name, format, function) VALUES (%(name)s, 'function', %(function)s)"
            " ON CONFLICT DO NOTHING",
            name=endpoint, function=signature,
        )  # fmt: skip
        self.harness.query(
            "INSERT INTO duepost.route (name, channel) VALUES ('endpoint:' || %(name)s, 'message')"
            " ON CONFLICT DO NOTHING",
            name=endpoint,
        )

    def schedule(self, payload: str = '{"text": "Hi"}', endpoint: str = "posts") -> int:
        """Schedules a message that is due now."""
        [(number,)] = self.harness.query(
            """
            WITH item AS (
                INSERT INTO duepost.item (id, channel, kind, route, scheduled_at, due_at)
                SELECT nextval('duepost.scheduled_email_id_seq'), 'message', 'post', 'endpoint:' || %(e)s, now(), now()
                RETURNING id
            )
            INSERT INTO duepost.message (item_id, endpoint, wire_id, payload)
            SELECT id, %(e)s, 'msg_' || id, %(payload)s::jsonb FROM item
            RETURNING item_id
            """,
            e=endpoint, payload=payload,
        )  # fmt: skip
        return int(str(number))

    @property
    def counts(self) -> dict[object, object]:
        """How often each message was taken."""
        return dict(self.harness.query("SELECT message_id, count(*) FROM app.posts GROUP BY 1"))  # type: ignore[arg-type]

    def state(self, message_id: int) -> object:
        """Where a message stands; None once it is finished."""
        rows = self.harness.query("SELECT state FROM duepost.scheduled_message WHERE id = %(id)s", id=message_id)
        return rows[0][0] if rows else None

    def error(self, message_id: int) -> str:
        """What its last attempt failed of."""
        [(said,)] = self.harness.query("SELECT last_error FROM duepost.item WHERE id = %(id)s", id=message_id)
        return str(said)


@pytest.fixture
def posts(harness: Harness) -> Posts:
    return Posts(harness)


def test_a_message_is_taken_once_and_is_in_the_ledger(harness: Harness, posts: Posts) -> None:
    message_id = posts.schedule('{"n": 12345678901234567890.12}')
    harness.enqueue()
    harness.send()
    assert posts.counts == {message_id: 1}
    assert harness.query("SELECT payload ->> 'n' FROM app.posts") == [("12345678901234567890.12",)]
    assert harness.query("SELECT channel, outcome, attempts, endpoint FROM duepost.delivery") == [
        ("message", "sent", 1, "posts")
    ]
    assert posts.state(message_id) is None
    assert harness.query("SELECT count(*) FROM dramatiq.queue WHERE key IS NOT NULL") == [(0,)]
    assert harness.query("SELECT verdict, phase FROM duepost.attempt") == [("sent", "response")]


def test_each_user_of_a_message_has_a_row_of_the_ledger(harness: Harness, posts: Posts) -> None:
    message_id = posts.schedule()
    harness.query("INSERT INTO duepost.scheduled_email_user VALUES (%(id)s, 'ann'), (%(id)s, 'bob')", id=message_id)
    harness.enqueue()
    harness.send()
    assert posts.counts == {message_id: 1}
    assert harness.query("SELECT user_id, outcome FROM duepost.delivery ORDER BY 1") == [
        ("ann", "sent"),
        ("bob", "sent"),
    ]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("RAISE EXCEPTION 'the topic is closed' USING ERRCODE = 'P0042'", "SQLSTATE P0042: the topic is closed"),
        ("PERFORM 1 / 0", "SQLSTATE 22012"),
        ("COMMIT", "SQLSTATE 2D000"),
        ("RAISE EXCEPTION E'a \\x01 b\\nc'", "SQLSTATE P0001"),
    ],
)
def test_one_that_raises_is_retried_alone_with_what_it_said(
    harness: Harness, posts: Posts, body: str, said: str
) -> None:
    posts.register("app.broken(bigint, jsonb)", f"INSERT INTO app.posts VALUES (message_id, payload); {body}", "broken")
    broken, whole = posts.schedule(endpoint="broken"), posts.schedule()
    harness.enqueue()
    harness.send()
    assert posts.counts == {whole: 1}
    assert posts.state(broken) == "scheduled"
    assert said in posts.error(broken)
    assert harness.query("SELECT attempts FROM duepost.item") == [(1,)]


def test_one_that_is_gone_opens_its_endpoints_circuit_and_nothing_is_lost(harness: Harness, posts: Posts) -> None:
    posts.register("app.gone(bigint, jsonb)", "NULL", "gone")
    harness.query("DROP FUNCTION app.gone(bigint, jsonb)")
    gone, whole = posts.schedule(endpoint="gone"), posts.schedule()
    harness.enqueue()
    harness.send()
    assert posts.counts == {whole: 1}
    assert posts.state(gone) == "scheduled"
    assert harness.query("SELECT name FROM duepost.route WHERE circuit_open") == [("endpoint:gone",)]
    posts.register("app.gone(bigint, jsonb)", "INSERT INTO app.posts VALUES (message_id, payload)", "gone")
    harness.query("UPDATE duepost.route SET probe_at = now() - interval '1 s' WHERE circuit_open")
    harness.query("UPDATE duepost.item SET due_at = now()")
    harness.enqueue()
    harness.send()
    assert posts.counts == {gone: 1, whole: 1}
    assert harness.query("SELECT name FROM duepost.route WHERE circuit_open") == []


def test_one_that_takes_too_long_is_retried(harness: Harness, posts: Posts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.delivery.message_work.FUNCTION_LIMITS", Limits(statement=0.2, lock=0.1))
    posts.register("app.slow(bigint, jsonb)", "PERFORM pg_sleep(60)", "slow")
    slow = posts.schedule(endpoint="slow")
    harness.enqueue()
    harness.send()
    assert posts.state(slow) == "scheduled"
    assert "SQLSTATE 57014" in posts.error(slow)


def test_a_function_that_waits_for_whoever_clears_its_message_ends_in_no_deadlock(
    harness: Harness, posts: Posts, connect: Callable[[], Connection]
) -> None:
    posts.register(
        "app.locking(bigint, jsonb)",
        "PERFORM pg_advisory_xact_lock(4711); INSERT INTO app.posts VALUES (message_id, payload)", "locking",
    )  # fmt: skip
    message_id = posts.schedule(endpoint="locking")
    harness.enqueue()
    with connect() as application, application.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(4711)")
        sending = threading.Thread(target=harness.send)
        sending.start()
        wait_until(
            lambda: harness.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == [(1,)]
        )
        # As a clear does: it waits for nobody, as the item is free while the function runs.
        cursor.execute("SET LOCAL lock_timeout = '5s'")
        cursor.execute("SELECT id FROM duepost.item WHERE id = %(id)s FOR UPDATE", {"id": message_id})
        cursor.execute("SELECT duepost.is_in_hand(%(id)s)", {"id": message_id})
        assert cursor.fetchone() == (True,)
    sending.join(30)
    assert not sending.is_alive()
    wait_until(lambda: posts.state(message_id) in (None, "scheduled"))
    while posts.state(message_id) is not None:
        harness.query("UPDATE duepost.item SET due_at = now()")
        harness.enqueue()
        harness.send()
    assert posts.counts == {message_id: 1}


def test_an_item_that_is_held_for_a_moment_is_no_failed_attempt(
    harness: Harness, posts: Posts, connect: Callable[[], Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.delivery.message_work.HELD_PAUSE", 0.2)
    harness.query("CREATE SEQUENCE app.calls")
    posts.register(
        "app.counted(bigint, jsonb)",
        "PERFORM nextval('app.calls'); INSERT INTO app.posts VALUES (message_id, payload)", "counted",
    )  # fmt: skip
    message_id = posts.schedule(endpoint="counted")
    harness.enqueue()
    with connect() as scheduler, scheduler.cursor() as cursor:
        sending = threading.Thread(target=harness.send)
        # As a pass of the scheduler does.
        cursor.execute("SELECT id FROM duepost.item WHERE id = %(id)s FOR KEY SHARE", {"id": message_id})
        sending.start()
        wait_until(lambda: harness.query("SELECT last_value, is_called FROM app.calls") >= [(1, True)])
        assert posts.counts == {}
        assert posts.state(message_id) == "sending"
    sending.join(30)
    assert not sending.is_alive()
    assert posts.counts == {message_id: 1}
    assert harness.query("SELECT attempts FROM duepost.delivery") == [(1,)]


def test_a_dead_workers_message_to_a_function_is_taken_by_another_as_it_never_ran(
    harness: Harness, posts: Posts
) -> None:
    message_id = posts.schedule()
    harness.enqueue()
    [claimed] = scheduled_messages.claim(harness.database, [message_id], harness.worker_session.worker_id)
    assert posts.state(message_id) == "sending"
    harness.query("UPDATE duepost.worker SET gone_at = now()")
    harness.app.rescuer.rescue()
    assert posts.state(message_id) == "scheduled"
    [(unknowns, attempts)] = harness.query("SELECT unknowns, attempts FROM duepost.item")
    assert (unknowns, attempts) == (0, 0)
    assert claimed.function is not None


def test_a_claim_that_went_to_another_worker_undoes_what_the_function_has_done(harness: Harness, posts: Posts) -> None:
    message_id = posts.schedule()
    harness.query(
        "CREATE OR REPLACE FUNCTION app.post(message_id bigint, payload jsonb) RETURNS void LANGUAGE plpgsql AS $f$"
        " BEGIN INSERT INTO app.posts VALUES (message_id, payload);"
        " UPDATE duepost.in_hand SET claim = claim + 1000 WHERE item_id = message_id; END $f$"
    )
    harness.enqueue()
    harness.send()
    assert posts.counts == {}
    assert posts.state(message_id) == "sending"


def test_what_the_application_asked_to_hear_is_told_in_the_same_transaction(harness: Harness, posts: Posts) -> None:
    harness.query("CREATE TABLE app.heard (id bigint, channel text, user_id text, outcome text)")
    harness.query(
        "CREATE FUNCTION app.hear(bigint, text, text, text) RETURNS void LANGUAGE sql"
        " AS $f$ INSERT INTO app.heard VALUES ($1, $2, $3, $4) $f$"
    )
    harness.query("INSERT INTO duepost.kind (kind, on_outcome) VALUES ('post', 'app.hear'), ('welcome', 'app.hear')")
    message_id = posts.schedule()
    email_id = harness.schedule(expires_at="2100-01-01T00:00:00Z", scheduled_at="2099-01-01T00:00:00Z")
    harness.query("SELECT duepost.clear_scheduled_email(%(id)s)", id=email_id)
    harness.enqueue()
    harness.send()
    assert harness.query("SELECT id, channel, user_id, outcome FROM app.heard ORDER BY id") == [
        (message_id, "message", None, "sent"), (email_id, "email", None, "cleared"),
    ]  # fmt: skip


def test_a_function_that_is_told_and_fails_undoes_nothing(harness: Harness, posts: Posts) -> None:
    harness.query(
        "CREATE FUNCTION app.deaf(bigint, text, text, text) RETURNS void LANGUAGE plpgsql AS $f$"
        " BEGIN RAISE EXCEPTION 'no'; END $f$"
    )
    harness.query("INSERT INTO duepost.kind (kind, on_outcome) VALUES ('post', 'app.deaf')")
    message_id = posts.schedule()
    harness.enqueue()
    harness.send()
    assert posts.counts == {message_id: 1}
    assert harness.query("SELECT outcome FROM duepost.delivery") == [("sent",)]


def test_one_that_is_later_than_its_kind_allows_expires(harness: Harness, posts: Posts) -> None:
    harness.query("INSERT INTO duepost.kind (kind, late_after, catch_up) VALUES ('post', '1 hour', 'expire')")
    late, on_time = posts.schedule(), posts.schedule()
    harness.query("UPDATE duepost.item SET scheduled_at = now() - interval '2 h' WHERE id = %(id)s", id=late)
    harness.enqueue()
    harness.send()
    assert posts.counts == {on_time: 1}
    assert harness.query("SELECT outcome FROM duepost.delivery WHERE email_id = %(id)s", id=late) == [("expired",)]


def test_one_that_became_late_while_it_was_queued_expires_too(harness: Harness, posts: Posts) -> None:
    late = posts.schedule()
    harness.enqueue()
    harness.query("INSERT INTO duepost.kind (kind, late_after, catch_up) VALUES ('post', '1 hour', 'expire')")
    harness.query("UPDATE duepost.item SET scheduled_at = now() - interval '2 h' WHERE id = %(id)s", id=late)
    harness.send()
    assert posts.counts == {}
    assert harness.query("SELECT outcome FROM duepost.delivery WHERE email_id = %(id)s", id=late) == [("expired",)]


def test_a_function_of_somebody_who_may_not_act_as_the_schemas_owner_is_not_called(
    harness: Harness, posts: Posts
) -> None:
    harness.query("CREATE ROLE stranger NOLOGIN")
    harness.query("GRANT CREATE ON SCHEMA app TO stranger")
    harness.query("ALTER FUNCTION app.post(bigint, jsonb) OWNER TO stranger")
    message_id = posts.schedule()
    try:
        harness.enqueue()
        harness.send()
        assert posts.counts == {}
        assert "SQLSTATE 42883" in posts.error(message_id)
    finally:
        harness.query("DROP OWNED BY stranger")
        harness.query("DROP ROLE stranger")


def test_a_message_that_is_not_due_any_more_is_not_claimed(harness: Harness, posts: Posts) -> None:
    message_id = posts.schedule()
    harness.enqueue()
    harness.query("UPDATE duepost.endpoint SET disabled_at = now(), disabled_because = 'by hand'")
    harness.send()
    assert posts.counts == {}
    assert posts.state(message_id) == "scheduled"
    with harness.database.transaction() as cursor:
        assert not emails.is_claimable(cursor, message_id, None)


def test_what_is_wrong_with_the_database_itself_is_no_failure_of_the_function(
    harness: Harness, posts: Posts, monkeypatch: pytest.MonkeyPatch
) -> None:
    message_id = posts.schedule()
    harness.enqueue()
    monkeypatch.setattr(
        scheduled_messages,
        "call_function_and_conclude",
        lambda *_: (_ for _ in ()).throw(psycopg2.IntegrityError("x")),
    )
    harness.send()
    assert posts.counts == {}
    assert harness.query("SELECT count(*) FROM duepost.delivery") == [(0,)]
    assert posts.state(message_id) == "scheduled"

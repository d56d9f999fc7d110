"""Messages to endpoints over HTTP: what an answer does to the message, to its endpoint, and to nobody else."""

import threading
from collections.abc import Iterator

import pytest

from actors.delivery.job import Job, OwnJob
from duepost.commands import checks
from duepost.commands.health import Health
from models import scheduled_messages
from tests.app_harness import Harness
from tests.http_servers import Action, ScriptedServer, answer, close, hang, reset
from tests.waiting import wait_until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Desk:
    """Endpoints on servers of this machine, and messages to them."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness

    def endpoint(self, name: str, hook: ScriptedServer, **columns: object) -> None:
        """Registers an endpoint."""
        given: dict[str, object] = {
            "format": "webhook", "secret": SECRET, "url": f"{hook.url}/hook/{name}", "allow_private": True, **columns,
        }  # fmt: skip
        names = ", ".join(given)
        values = ", ".join(f"%({each})s" for each in given)
        self.harness.query(
            f"INSERT INTO duepost.endpoint (name, {names}) VALUES (%(name)s, {values})", name=name, **given
        )
        self.harness.query(
            "INSERT INTO duepost.route (name, channel) VALUES ('endpoint:' || %(name)s, 'message')"
            " ON CONFLICT DO NOTHING",
            name=name,
        )

    def schedule(self, endpoint: str, payload: str = '{"text": "Hi"}') -> int:
        """Schedules a message that is due now."""
        [(number,)] = self.harness.query(
            """
            WITH item AS (
                INSERT INTO duepost.item (id, channel, kind, route, scheduled_at, due_at)
                SELECT nextval('duepost.scheduled_email_id_seq'), 'message', 'event', 'endpoint:' || %(e)s, now(), now()
                RETURNING id
            )
            INSERT INTO duepost.message (item_id, endpoint, wire_id, payload)
            SELECT id, %(e)s, 'msg_a_' || id, %(payload)s::jsonb FROM item
            RETURNING item_id
            """,
            e=endpoint, payload=payload,
        )  # fmt: skip
        return int(str(number))

    def run(self) -> None:
        """A pass of the scheduler, and what it has enqueued."""
        self.harness.enqueue()
        self.harness.send()

    def state(self, message_id: int) -> object:
        """Where it stands, or how it ended."""
        rows = self.harness.query(
            "SELECT state FROM duepost.scheduled_message WHERE id = %(id)s"
            " UNION ALL SELECT outcome FROM duepost.delivery WHERE email_id = %(id)s",
            id=message_id,
        )
        # What was reopened is in the ledger too.
        return rows[0][0]

    def open_circuits(self) -> list[object]:
        """The routes that wait for a probe."""
        return [name for (name,) in self.harness.query("SELECT name FROM duepost.route WHERE circuit_open ORDER BY 1")]

    def disabled(self) -> list[object]:
        """Endpoints that nothing is sent to."""
        return [
            name for (name,) in self.harness.query("SELECT name FROM duepost.endpoint WHERE disabled_at IS NOT NULL")
        ]


@pytest.fixture
def desk(harness: Harness) -> Desk:
    return Desk(harness)


@pytest.fixture
def hook() -> Iterator[ScriptedServer]:
    with ScriptedServer() as hook:
        yield hook


@pytest.fixture
def other() -> Iterator[ScriptedServer]:
    with ScriptedServer() as hook:
        yield hook


def test_a_message_arrives_and_is_in_the_ledger(desk: Desk, hook: ScriptedServer, harness: Harness) -> None:
    desk.endpoint("orders", hook)
    message_id = desk.schedule("orders", '{"n": 12345678901234567890.12}')
    desk.run()
    assert desk.state(message_id) == "sent"
    [received] = hook.requests
    assert b"12345678901234567890.12" in received.body
    assert harness.query("SELECT endpoint, code FROM duepost.delivery") == [("orders", 204)]
    assert harness.query("SELECT verdict, code, phase FROM duepost.attempt") == [("sent", 204, "response")]


def test_how_late_a_message_was_is_counted(
    desk: Desk, hook: ScriptedServer, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUEPOST_METRICS_PORT", "9464")
    harness.restart()
    desk.endpoint("orders", hook)
    message_id = desk.schedule("orders")
    harness.query("UPDATE duepost.item SET scheduled_at = now() - interval '90 s', created_at = now() - interval '1 h'")
    desk.run()
    assert desk.state(message_id) == "sent"
    assert harness.app.metrics is not None
    labels = {"channel": "message"}
    registry = harness.app.metrics.registry
    assert registry.get_sample_value("duepost_lateness_seconds_count", labels) == 1
    late = registry.get_sample_value("duepost_lateness_seconds_sum", labels)
    assert late is not None
    assert late >= 90


def test_many_messages_leave_together(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook)
    ids = [desk.schedule("orders") for _ in range(30)]
    while "scheduled" in {desk.state(each) for each in ids}:
        desk.harness.query("UPDATE dramatiq.queue SET eta = now()")
        desk.run()
    assert {desk.state(each) for each in ids} == {"sent"}
    assert len(hook.requests) == 30


@pytest.mark.parametrize(
    ("action", "state", "is_open"),
    [
        (answer("HTTP/1.1 204 No Content"), "sent", False),
        (answer("HTTP/1.1 500 Oops"), "scheduled", False),
        (answer("HTTP/1.1 422 No"), "undeliverable", False),
        (answer("HTTP/1.1 404 Not Found"), "scheduled", True),
        (answer("HTTP/1.1 301 Moved", "location: http://example.com/"), "scheduled", True),
    ],
)
def test_what_an_answer_comes_to(
    desk: Desk, hook: ScriptedServer, action: Action, state: str, *, is_open: bool
) -> None:
    desk.endpoint("orders", hook)
    hook.script(action)
    message_id = desk.schedule("orders")
    desk.run()
    assert desk.state(message_id) == state
    assert desk.open_circuits() == (["endpoint:orders"] if is_open else [])


def test_one_endpoints_circuit_is_no_other_endpoints(desk: Desk, hook: ScriptedServer, other: ScriptedServer) -> None:
    desk.endpoint("dead", hook, url="http://127.0.0.1:1/")
    desk.endpoint("alive", other)
    dead = [desk.schedule("dead") for _ in range(3)]
    alive = [desk.schedule("alive") for _ in range(3)]
    email_id = desk.harness.schedule()
    desk.run()
    assert {desk.state(each) for each in alive} == {"sent"}
    assert {desk.state(each) for each in dead} == {"scheduled"}
    assert desk.harness.ledger(email_id) == ["sent"]
    assert desk.open_circuits() == ["endpoint:dead"]


def test_a_probe_that_goes_well_closes_the_circuit(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook)
    hook.script(answer("HTTP/1.1 404 Not Found"))
    first = desk.schedule("orders")
    desk.run()
    second = desk.schedule("orders")
    desk.run()
    assert [desk.state(each) for each in (first, second)] == ["scheduled", "scheduled"]
    desk.harness.query("UPDATE duepost.route SET probe_at = now() - interval '1 s'")
    desk.harness.query("UPDATE duepost.item SET due_at = now()")
    desk.run()
    assert desk.open_circuits() == []
    desk.harness.query("UPDATE duepost.item SET due_at = now()")
    desk.run()
    assert [desk.state(each) for each in (first, second)] == ["sent", "sent"]


def test_an_endpoint_that_is_gone_is_disabled_and_its_messages_stay(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook)
    hook.script(answer("HTTP/1.1 410 Gone"))
    first = desk.schedule("orders")
    desk.run()
    rest = [desk.schedule("orders") for _ in range(4)]
    desk.run()
    assert desk.state(first) == "undeliverable"
    assert desk.disabled() == ["orders"]
    assert {desk.state(each) for each in rest} == {"scheduled"}
    assert len(hook.requests) == 1


def test_whoever_looks_sees_an_endpoint_that_fails_or_is_gone(
    desk: Desk, hook: ScriptedServer, other: ScriptedServer, caplog: pytest.LogCaptureFixture
) -> None:
    desk.endpoint("moved", hook)
    desk.endpoint("gone", other)
    assert checks.endpoints(desk.harness.database) == (Health.OK, "none is disabled, none fails")
    hook.script(answer("HTTP/1.1 404 Not Found"))
    other.script(answer("HTTP/1.1 410 Gone"))
    for name in ("moved", "gone"):
        desk.schedule(name, '{"text": "private"}')
    desk.run()
    health, said = checks.endpoints(desk.harness.database)
    assert health is Health.FAILED
    assert "the circuit of moved is open (response 404)" in said
    assert "gone is disabled (response 410)" in said
    assert "duepost endpoint enable gone" in said
    lines = [each for each in caplog.messages if "endpoint" in each]
    assert any(each.startswith("An endpoint fails; its messages wait") and "endpoint=moved" in each for each in lines)
    assert any(each.startswith("An endpoint is disabled; its messages") and "endpoint=gone" in each for each in lines)
    assert any(each.startswith("A message was undeliverable") for each in lines)
    assert not any("private" in each or "/hook/" in each for each in caplog.messages)


def test_a_pause_that_is_asked_for_is_the_whole_endpoints(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook)
    hook.script(answer("HTTP/1.1 429 Slow down", "retry-after: 300"))
    first = desk.schedule("orders")
    desk.run()
    rest = [desk.schedule("orders") for _ in range(5)]
    desk.run()
    desk.harness.query("UPDATE duepost.item SET due_at = now()")
    desk.run()
    assert len(hook.requests) == 1
    [(seconds,)] = desk.harness.query(
        "SELECT extract(epoch FROM paused_until - now())::integer FROM duepost.route WHERE name = 'endpoint:orders'"
    )
    assert 200 < int(str(seconds)) <= 300
    desk.harness.query("UPDATE duepost.route SET paused_until = now() - interval '1 s'")
    for _ in range(20):
        desk.harness.query("UPDATE duepost.item SET due_at = now()")
        desk.harness.query("UPDATE dramatiq.queue SET eta = now()")
        desk.run()
    assert {desk.state(each) for each in (first, *rest)} == {"sent"}


@pytest.mark.parametrize(
    ("format_name", "secret", "state"), [("webhook", SECRET, "scheduled"), ("mattermost", None, "unknown")]
)
def test_an_answer_that_got_lost_is_unknown_and_sent_again_only_where_receivers_tell_it(
    desk: Desk, hook: ScriptedServer, format_name: str, secret: str | None, state: str
) -> None:
    desk.endpoint("orders", hook, format=format_name, secret=secret)
    hook.script(reset())
    message_id = desk.schedule("orders")
    desk.run()
    assert desk.state(message_id) == state
    [(unknowns, may_have_arrived)] = desk.harness.query(
        "SELECT i.unknowns, m.may_have_arrived FROM duepost.item AS i JOIN duepost.message AS m ON m.item_id = i.id"
    )
    assert (unknowns, may_have_arrived) == (1, True)
    if state == "scheduled":
        desk.run()
        assert desk.state(message_id) == "sent"
        assert len({each.headers["webhook-id"] for each in hook.requests}) == 1


@pytest.mark.parametrize("status", ["500 Internal Server Error", "429 Too Many Requests", "404 Not Found"])
def test_what_was_answered_is_too_late_to_clear_and_goes_on(desk: Desk, hook: ScriptedServer, status: str) -> None:
    desk.endpoint("orders", hook)
    hook.script(answer(f"HTTP/1.1 {status}"))
    message_id = desk.schedule("orders")
    desk.harness.query("INSERT INTO duepost.scheduled_email_user VALUES (%(id)s, 'ann')", id=message_id)
    desk.run()
    assert desk.state(message_id) == "scheduled"
    assert desk.harness.query("SELECT duepost.clear_scheduled_message(%(id)s)", id=message_id) == [("too_late",)]
    assert desk.harness.query("SELECT receipt FROM duepost.clear_scheduled(ARRAY['ann'])") == [("too_late",)]
    desk.harness.query("UPDATE duepost.route SET circuit_open = false, paused_until = NULL, pause = 0")
    desk.harness.query("UPDATE duepost.item SET due_at = now()")
    desk.run()
    assert desk.state(message_id) == "sent"


def test_what_a_request_never_reached_can_still_be_cleared(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook, url="http://127.0.0.1:1/")
    message_id = desk.schedule("orders")
    desk.run()
    assert desk.harness.query("SELECT duepost.clear_scheduled_message(%(id)s)", id=message_id) == [("cleared",)]


def test_what_a_request_never_reached_can_still_be_edited(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook, url="http://127.0.0.1:1/")
    desk.schedule("orders")
    desk.run()
    assert desk.harness.query("SELECT may_have_arrived FROM duepost.message") == [(False,)]


def test_a_private_address_is_refused_unless_the_endpoint_allows_it(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook, allow_private=False, url=hook.url.replace("127.0.0.1", "localhost.test"))
    message_id = desk.schedule("orders")
    desk.run()
    assert desk.state(message_id) == "scheduled"
    assert hook.requests == []


def test_ten_that_are_refused_alike_are_not_at_fault(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook)
    for _ in range(10):
        hook.script(answer("HTTP/1.1 422 Unprocessable", body=b"unknown tenant"))
    ids = [desk.schedule("orders") for _ in range(10)]
    for _ in range(20):
        desk.harness.query("UPDATE dramatiq.queue SET eta = now()")
        desk.run()
        if desk.open_circuits():
            break
    assert desk.open_circuits() == ["endpoint:orders"]
    assert {desk.state(each) for each in ids} <= {"scheduled", "queued"}


def test_one_that_hangs_keeps_no_other_endpoints_message_waiting(
    desk: Desk, hook: ScriptedServer, other: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.endpoint("slow", hook)
    desk.endpoint("quick", other)
    for _ in range(4):
        hook.script(hang())
    slow = [desk.schedule("slow") for _ in range(4)]
    quick = desk.schedule("quick")
    desk.harness.enqueue()
    dispatcher = desk.harness.app.messages.dispatcher
    threads = [threading.Thread(target=dispatcher.do, args=(each,), daemon=True) for each in (*slow, quick)]
    for thread in threads:
        thread.start()
    wait_until(lambda: desk.harness.query("SELECT outcome FROM duepost.delivery") == [("sent",)])
    assert desk.state(quick) == "sent"
    hook.__exit__(None, None, None)
    for thread in threads:
        thread.join(30)


def test_an_endpoint_that_works_again_is_failing_no_more(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook)
    hook.script(close())
    message_id = desk.schedule("orders")
    desk.run()
    [(failing,)] = desk.harness.query("SELECT failing_since IS NOT NULL FROM duepost.endpoint")
    assert failing is True
    desk.harness.query("UPDATE duepost.item SET due_at = now()")
    desk.run()
    assert desk.state(message_id) == "sent"
    assert desk.harness.query("SELECT failing_since FROM duepost.endpoint") == [(None,)]


def test_one_that_fails_for_five_days_is_disabled_and_its_messages_stay(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook)
    hook.script(close())
    hook.script(close())
    message_id = desk.schedule("orders")
    desk.run()
    assert desk.disabled() == []
    desk.harness.query("UPDATE duepost.endpoint SET failing_since = failing_since - interval '6 days'")
    desk.harness.query("UPDATE duepost.item SET due_at = now(), is_held = false, unknowns = 0")
    desk.run()
    assert desk.disabled() == ["orders"]
    assert desk.state(message_id) in {"scheduled", "unknown"}


def test_what_could_not_be_claimed_leaves_its_room_to_what_was_set_aside(desk: Desk, hook: ScriptedServer) -> None:
    desk.endpoint("orders", hook)
    first, second = desk.schedule("orders"), desk.schedule("orders")
    desk.harness.query("SELECT duepost.clear_scheduled_message(%(id)s)", id=first)
    # It is finished as its job comes to be claimed, and was still there when its room was looked for.
    work, resumed = desk.harness.app.messages.work, []
    work._endpoint("orders").load.most = 1

    def add(message_id: int, _job: Job) -> bool:
        resumed.append(message_id)
        return True

    work.go_on_with(add)
    with pytest.MonkeyPatch.context() as patch:
        routes = {first: "endpoint:orders", second: "endpoint:orders"}
        patch.setattr(scheduled_messages, "routes_of", lambda *_: routes)
        assert work.claim([(first, OwnJob()), (second, OwnJob())]) == []
    assert resumed == [second]
    assert not work._endpoint("orders").load.aside

"""RabbitMQ carries messages, and nothing that happens to it loses or doubles anything: the row is the truth."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Site
from tests.http_servers import Conversation, ScriptedServer, answer
from tests.network import Line
from tests.processes import Workers, duepost, environment
from tests.relays import ScriptedRelay
from tests.servers.conftest import need, own_folder
from tests.servers.rabbitmq import RabbitmqServer
from tests.waiting import wait_until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

CARRIES_AGAIN = "RabbitMQ carries messages again"

#: Requests under way at once: much less than is enqueued at once, so that messages wait in RabbitMQ.
CONNECTIONS = "4"


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitmqServer]:
    """A RabbitMQ; started again where a test has left it killed."""
    need("rabbitmq")
    with own_folder() as folder, RabbitmqServer(folder) as server:
        yield server


@pytest.fixture
def running(rabbitmq: RabbitmqServer) -> RabbitmqServer:
    """It runs."""
    if not rabbitmq.machine.is_running:
        rabbitmq.start()
    return rabbitmq


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture
def hook() -> Iterator[ScriptedServer]:
    with ScriptedServer() as hook:
        yield hook


@pytest.fixture
def gate(hook: ScriptedServer) -> Iterator[threading.Event]:
    """Until it is opened, the hook answers nobody."""
    gate = threading.Event()

    def wait(_conversation: Conversation) -> None:
        gate.wait(60)

    for _ in range(int(CONNECTIONS)):
        hook.script(wait, answer("HTTP/1.1 204 No Content"))
    yield gate
    gate.set()


def site_of(url: str, relay: ScriptedRelay, folder: Path, broker_url: str) -> Site:
    env = environment(
        url,
        relay.url,
        DUEPOST_BROKER_URL=broker_url,
        DUEPOST_TEMPLATES=str(folder),
        DUEPOST_HTTP_CONNECTIONS=CONNECTIONS,
    )
    return Site(url, relay, env, folder)


@pytest.fixture
def site(url: str, relay: ScriptedRelay, tmp_path: Path, running: RabbitmqServer) -> Site:
    """A site whose messages RabbitMQ carries."""
    return site_of(url, relay, tmp_path, running.amqp())


def schedule_messages(site: Site, hook: ScriptedServer, count: int) -> None:
    site.query(
        "SELECT duepost.set_endpoint(name => 'orders', format => 'webhook', url => %s, secret => %s,"
        " allow_private => true)",
        hook.url, SECRET,
    )  # fmt: skip
    site.query(
        "SELECT duepost.schedule_message(kind => 'event', endpoint => 'orders', payload => '{}')"
        " FROM generate_series(1, %s)",
        count,
    )


def queue(site: Site, name: str = "duepost_send_message") -> str:
    """What a queue of a site is called in RabbitMQ."""
    [(installation,)] = site.query("SELECT installation FROM duepost.control")
    return f"{name}.{installation}"


def wait_until_carried(site: Site, server: RabbitmqServer) -> None:
    """Until messages wait in RabbitMQ."""
    name = queue(site)
    wait_until(lambda: server.waiting(name) > 20, timeout=60, what="messages in RabbitMQ", state=site.logs)


def wait_until_finished(site: Site, count: int) -> None:
    def finished() -> bool:
        [(pending,)] = site.query("SELECT count(*) FROM duepost.scheduled_message")
        return not pending and not site.pending() and sum(site.outcomes().values()) == count

    wait_until(finished, timeout=180, what="all to be finished", state=lambda: (site.outcomes(), site.logs()[-4000:]))


def assert_each_once(site: Site, hook: ScriptedServer, count: int) -> None:
    assert site.outcomes() == {"sent": count}
    ids = Counter(each.headers["webhook-id"] for each in hook.requests)
    assert len(ids) == count
    assert set(ids.values()) == {1}
    assert "Traceback" not in site.logs()


def doctors(site: Site) -> tuple[str, str]:
    said = duepost("doctor", "--json", "--no-relay", env=site.env, cwd=site.folder)
    [found] = [finding for finding in json.loads(said.stdout) if finding["check"] == "broker"]
    return found["health"], found["detail"]


def test_messages_go_through_rabbitmq_and_each_is_delivered_once(
    site: Site, hook: ScriptedServer, gate: threading.Event, running: RabbitmqServer
) -> None:
    with site.workers(processes=2), site.watch():
        schedule_messages(site, hook, 400)
        site.schedule(200)
        wait_until_carried(site, running)
        health, said = doctors(site)
        gate.set()
        wait_until_finished(site, 600)
        wait_until(lambda: running.waiting(queue(site)) == 0, what="nothing to be left in RabbitMQ")
    assert health == "ok"
    assert "duepost_send_message" in said
    assert "pass" not in said
    assert set(Counter(site.received()).values()) == {1}
    ids = Counter(each.headers["webhook-id"] for each in hook.requests)
    assert (len(ids), set(ids.values())) == (400, {1})
    assert site.query("SELECT count(*) FROM dramatiq.queue WHERE key IS NOT NULL") == [(0,)]
    assert "Traceback" not in site.logs()


def test_a_rabbitmq_that_is_killed_and_comes_back_loses_and_doubles_nothing(
    site: Site, hook: ScriptedServer, gate: threading.Event, running: RabbitmqServer
) -> None:
    with site.workers() as workers, site.watch():
        schedule_messages(site, hook, 400)
        wait_until_carried(site, running)
        running.machine.kill()
        gate.set()
        wait_until(lambda: "RabbitMQ: " in workers.output, timeout=60, what="the line", state=site.logs)
        schedule_messages(site, hook, 300)
        running.start()
        wait_until(lambda: CARRIES_AGAIN in workers.output, timeout=90, what=CARRIES_AGAIN, state=site.logs)
        wait_until_finished(site, 700)
        assert workers.stop() == 0
    assert_each_once(site, hook, 700)


def test_what_is_purged_is_delivered_all_the_same(
    site: Site, hook: ScriptedServer, gate: threading.Event, running: RabbitmqServer
) -> None:
    with site.workers(), site.watch():
        schedule_messages(site, hook, 300)
        wait_until_carried(site, running)
        assert running.purge(queue(site)) > 0
        gate.set()
        wait_until_finished(site, 300)
    assert_each_once(site, hook, 300)


def test_a_queue_that_is_deleted_is_made_again(
    site: Site, hook: ScriptedServer, gate: threading.Event, running: RabbitmqServer
) -> None:
    with site.workers() as workers, site.watch():
        schedule_messages(site, hook, 300)
        wait_until_carried(site, running)
        running.delete(queue(site))
        gate.set()
        wait_until(lambda: CARRIES_AGAIN in workers.output, timeout=60, what=CARRIES_AGAIN, state=site.logs)
        wait_until_finished(site, 300)
    assert_each_once(site, hook, 300)


def test_a_connection_whose_bytes_vanish_is_given_up_and_mail_goes_on(
    url: str, relay: ScriptedRelay, tmp_path: Path, hook: ScriptedServer, gate: threading.Event, running: RabbitmqServer
) -> None:
    with Line(partial(socket.create_connection, ("127.0.0.1", running.ports["AMQP"]))) as line:
        site = site_of(url, relay, tmp_path, running.amqp(port=line.port))
        with site.workers() as workers, site.watch():
            schedule_messages(site, hook, 300)
            wait_until_carried(site, running)
            line.cut()
            gate.set()
            wait_until_finished(site, 300)
            wait_until(lambda: "RabbitMQ: " in workers.output, timeout=90, what="the line", state=site.logs)
            line.mend()
            wait_until(lambda: CARRIES_AGAIN in workers.output, timeout=90, what=CARRIES_AGAIN, state=site.logs)
            assert workers.stop() == 0
    assert_each_once(site, hook, 300)


def test_rubbish_in_the_queue_harms_nobody(
    site: Site, hook: ScriptedServer, gate: threading.Event, running: RabbitmqServer
) -> None:
    parts: dict[str, object] = {
        "queue_name": "x", "actor_name": "send_message", "args": [], "kwargs": {}, "options": {}, "message_id": "1",
        "message_timestamp": 1,
    }  # fmt: skip
    bad: list[dict[str, object]] = [
        {"actor_name": "no_such_actor"}, {"actor_name": ["x"]}, {"args": ["1"]}, {"args": [2**80]}, {"args": 7},
        {"args": None}, {"kwargs": 3}, {"options": None}, {"options": {"pipe_target": 1, "broker_priority": "x"}},
        {"args": [10**12]},
    ]  # fmt: skip
    bodies = [b"", b"\xff\x00", b"{}", b"[1]", *(json.dumps({**parts, **each}).encode() for each in bad)]
    with site.workers() as workers, site.watch():
        schedule_messages(site, hook, 100)
        wait_until_carried(site, running)
        running.publish(queue(site), bodies)
        gate.set()
        wait_until_finished(site, 100)
        wait_until(lambda: running.waiting(queue(site)) == 0, what="nothing to be left", state=site.logs)
        assert workers.popen.poll() is None
    assert_each_once(site, hook, 100)


def test_a_worker_begins_while_rabbitmq_is_away_and_uses_it_when_it_comes(
    site: Site, hook: ScriptedServer, running: RabbitmqServer
) -> None:
    running.machine.kill()
    with site.workers() as workers, site.watch():
        assert workers.output.count("RabbitMQ: ") == 1
        assert "Connection refused" in workers.output
        schedule_messages(site, hook, 50)
        wait_until_finished(site, 50)
        health, said = doctors(site)
        assert health == "failed"
        assert "cannot be reached" in said
        running.start()
        wait_until(lambda: CARRIES_AGAIN in workers.output, timeout=90, what=CARRIES_AGAIN, state=site.logs)
        assert doctors(site)[0] == "ok"
    assert_each_once(site, hook, 50)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [({"password": "wrong-one"}, "ACCESS_REFUSED"), ({"virtual_host": "nowhere"}, "nowhere")],
    ids=["password", "virtual host"],
)
def test_a_url_that_rabbitmq_refuses_is_one_line_and_status_2(
    url: str, relay: ScriptedRelay, tmp_path: Path, running: RabbitmqServer, wrong: dict[str, str], says: str
) -> None:
    site = site_of(url, relay, tmp_path, running.amqp(**wrong))  # type: ignore[arg-type]
    with Workers(site.env, tmp_path / "refused.log", ready=False) as workers:
        assert workers.wait() == 2
        [line] = [line for line in workers.output.splitlines() if "DUEPOST_BROKER_URL" in line]
        assert says in line
        assert "Traceback" not in workers.output
        assert "wrong-one" not in workers.output
    health, said = doctors(site)
    assert health == "failed"
    assert "refuses us" in said
    assert "wrong-one" not in said

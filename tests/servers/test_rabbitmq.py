"""RabbitMQ carries messages, and nothing that happens to it loses or doubles anything: the row is the truth."""

import json
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from actors.queue.broker import PostgresBroker
from actors.queue.rabbitmq import QueueState, Rabbitmq, RabbitmqRefused, inspect
from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.http_servers import ScriptedServer
from tests.network import Line
from tests.processes import Workers, duepost, environment
from tests.relays import ScriptedRelay, hang, reply
from tests.servers.conftest import need, own_folder
from tests.servers.rabbitmq import RabbitmqServer
from tests.waiting import wait_until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

IS_AWAY = "RabbitMQ: "
CARRIES_AGAIN = "RabbitMQ carries messages again"

#: Dialogues under way at once: much less than is scheduled, so that messages wait in RabbitMQ.
CONNECTIONS = "4"

COUNT = 150


@pytest.fixture(scope="module")
def rabbitmq() -> Iterator[RabbitmqServer]:
    """A RabbitMQ that does not run yet, or as a test has left it."""
    need("rabbitmq")
    with own_folder() as folder, RabbitmqServer(folder) as server:
        yield server


@pytest.fixture
def running(rabbitmq: RabbitmqServer) -> RabbitmqServer:
    """It runs: a start takes long, and is what one or two tests are about."""
    if not rabbitmq.machine.is_running:
        rabbitmq.start()
    return rabbitmq


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    """A relay that says nothing to recipients until it is released."""
    with ScriptedRelay() as relay:
        relay.on(Phase.RCPT, hang(), reply("250 2.1.5 ok"))
        yield relay


@pytest.fixture
def hook() -> Iterator[ScriptedServer]:
    with ScriptedServer() as hook:
        yield hook


def site_of(url: str, relay: ScriptedRelay, folder: Path, broker_url: str) -> Site:
    env = environment(
        url,
        relay.url,
        DUEPOST_BROKER_URL=broker_url,
        DUEPOST_TEMPLATES=str(folder),
        DUEPOST_SMTP_CONNECTIONS=CONNECTIONS,
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


def queue(site: Site, name: str = "duepost_send") -> str:
    """What a queue of a site is called in RabbitMQ."""
    [(installation,)] = site.query("SELECT installation FROM duepost.control")
    return f"{name}.{installation}"


def schedule_and_wait_until_carried(site: Site, server: RabbitmqServer) -> None:
    """Schedules emails, until messages of theirs wait in RabbitMQ."""
    site.schedule(COUNT)
    name = queue(site)
    wait_until(lambda: server.waiting(name) > 20, timeout=120, what="messages in RabbitMQ", state=site.logs)


def wait_until_said(workers: Workers, said: str) -> None:
    wait_until(lambda: said in workers.output, timeout=180, what=said, state=lambda: workers.output[-4000:])


def assert_each_once(site: Site, count: int) -> None:
    site.wait_until_finished(count, timeout=180)
    assert site.outcomes() == {"sent": count}
    recipients = Counter(site.received())
    assert len(recipients) == count
    assert set(recipients.values()) == {1}
    assert "Traceback" not in site.logs()


def doctors(site: Site) -> tuple[str, str]:
    said = duepost("doctor", "--json", "--no-relay", env=site.env, cwd=site.folder)
    [found] = [finding for finding in json.loads(said.stdout) if finding["check"] == "broker"]
    return found["health"], found["detail"]


def test_a_worker_begins_while_rabbitmq_is_away_and_uses_it_when_it_comes(
    url: str, relay: ScriptedRelay, tmp_path: Path, rabbitmq: RabbitmqServer
) -> None:
    rabbitmq.kill()
    site = site_of(url, relay, tmp_path, rabbitmq.amqp())
    relay.release()
    with site.workers() as workers:
        assert workers.output.count(IS_AWAY) == 1
        assert "Connection refused" in workers.output
        site.schedule(COUNT)
        site.wait_until_finished(COUNT, timeout=180)
        health, said = doctors(site)
        assert health == "failed"
        assert "Connection refused; mail goes on" in said
        rabbitmq.start()
        wait_until_said(workers, CARRIES_AGAIN)
        assert doctors(site)[0] == "ok"
        assert workers.output.count(IS_AWAY) == 1
    assert_each_once(site, COUNT)


def test_emails_and_messages_go_through_rabbitmq_and_each_is_delivered_once(
    site: Site, hook: ScriptedServer, running: RabbitmqServer
) -> None:
    with site.workers(processes=2):
        schedule_and_wait_until_carried(site, running)
        schedule_messages(site, hook, 50)
        health, said = doctors(site)
        site.relay.release()
        wait_until(lambda: len(hook.requests) >= 50, timeout=180, what="the messages", state=site.logs)
        wait_until(lambda: sum(site.outcomes().values()) == COUNT + 50, timeout=180, what="the end", state=site.logs)
        wait_until(lambda: running.waiting(queue(site)) == 0, what="nothing to be left in RabbitMQ")
    assert health == "ok"
    assert "duepost_send " in said
    assert "pass" not in said
    assert set(Counter(site.received()).values()) == {1}
    assert len({each.headers["webhook-id"] for each in hook.requests}) == len(hook.requests) == 50
    assert site.query("SELECT count(*) FROM dramatiq.queue WHERE key IS NOT NULL") == [(0,)]
    assert "Traceback" not in site.logs()


def test_a_rabbitmq_that_is_killed_and_comes_back_loses_and_doubles_nothing(
    site: Site, running: RabbitmqServer
) -> None:
    with site.workers() as workers:
        schedule_and_wait_until_carried(site, running)
        running.kill()
        site.relay.release()
        wait_until_said(workers, IS_AWAY)
        site.schedule(COUNT, prefix="meanwhile")
        site.wait_until_finished(2 * COUNT, timeout=180)
        running.start()
        wait_until_said(workers, CARRIES_AGAIN)
        site.schedule(COUNT, prefix="afterwards")
        assert_each_once(site, 3 * COUNT)
        assert workers.stop() == 0


def test_what_is_purged_is_delivered_all_the_same_and_a_queue_that_is_deleted_is_made_again(
    site: Site, running: RabbitmqServer
) -> None:
    with site.workers() as workers:
        schedule_and_wait_until_carried(site, running)
        assert running.purge(queue(site)) > 0
        running.delete(queue(site))
        wait_until_said(workers, CARRIES_AGAIN)
        site.relay.release()
        assert_each_once(site, COUNT)


def test_a_connection_whose_bytes_vanish_is_given_up_and_mail_goes_on(
    url: str, relay: ScriptedRelay, tmp_path: Path, running: RabbitmqServer
) -> None:
    with Line(partial(socket.create_connection, ("127.0.0.1", running.ports["AMQP"]))) as line:
        site = site_of(url, relay, tmp_path, f"{running.amqp(port=line.port)}?heartbeat=2")
        with site.workers() as workers:
            schedule_and_wait_until_carried(site, running)
            line.cut()
            relay.release()
            wait_until_said(workers, IS_AWAY)
            site.wait_until_finished(COUNT, timeout=180)
            line.mend()
            wait_until_said(workers, CARRIES_AGAIN)
            assert_each_once(site, COUNT)
            assert workers.stop() == 0


def test_a_rabbitmq_whose_memory_is_short_takes_nothing_and_mail_goes_on_without_it(
    site: Site, running: RabbitmqServer
) -> None:
    with site.workers() as workers:
        site.relay.release()
        running.call("vm_memory_monitor set_vm_memory_high_watermark [{absolute,1}]")
        try:
            site.schedule(COUNT)
            wait_until_said(workers, "it takes no messages")
            health, said = doctors(site)
            site.wait_until_finished(COUNT, timeout=180)
        finally:
            running.call("vm_memory_monitor set_vm_memory_high_watermark [{absolute,2000000000}]")
        wait_until_said(workers, CARRIES_AGAIN)
        assert_each_once(site, COUNT)
    assert health == "failed"
    assert "rabbitmqctl status" in said


def test_what_takes_longer_than_rabbitmq_waits_for_is_delivered_once(site: Site, running: RabbitmqServer) -> None:
    """It comes again, to whoever reads the queue: RabbitMQ takes the reader for one that hangs."""
    running.call("application set_env [rabbit,consumer_timeout,1500]")
    try:
        with site.workers() as workers:
            schedule_and_wait_until_carried(site, running)
            wait_until_said(workers, "timed out")
            wait_until_said(workers, CARRIES_AGAIN)
            site.relay.release()
            assert_each_once(site, COUNT)
    finally:
        running.call("application set_env [rabbit,consumer_timeout,1800000]")


def test_rubbish_in_the_queue_harms_nobody(site: Site, running: RabbitmqServer) -> None:
    parts: dict[str, object] = {
        "queue_name": "x", "actor_name": "send_email", "args": [], "kwargs": {}, "options": {}, "message_id": "1",
        "message_timestamp": 1,
    }  # fmt: skip
    bad: list[dict[str, object]] = [
        {"actor_name": "no_such_actor"}, {"actor_name": ["x"]}, {"args": ["1"]}, {"args": [2**80]}, {"args": 7},
        {"args": None}, {"kwargs": 3}, {"options": None}, {"options": {"pipe_target": 1, "broker_priority": "x"}},
        {"args": [10**12]},
    ]  # fmt: skip
    bodies = [b"", b"\xff\x00", b"{}", b"[1]", *(json.dumps({**parts, **each}).encode() for each in bad)]
    with site.workers() as workers:
        schedule_and_wait_until_carried(site, running)
        running.publish(queue(site), bodies)
        site.relay.release()
        assert_each_once(site, COUNT)
        wait_until(lambda: running.waiting(queue(site)) == 0, what="nothing to be left", state=site.logs)
        assert workers.popen.poll() is None


def test_a_url_that_rabbitmq_refuses_is_one_line_and_status_2(
    url: str, relay: ScriptedRelay, tmp_path: Path, running: RabbitmqServer
) -> None:
    site = site_of(url, relay, tmp_path, running.amqp(password="wrong-one"))
    with Workers(site.env, tmp_path / "refused.log", ready=False) as workers:
        assert workers.wait() == 2
        [line] = [line for line in workers.output.splitlines() if "DUEPOST_BROKER_URL" in line]
        assert "ACCESS_REFUSED" in line
        assert "Traceback" not in workers.output
        assert "wrong-one" not in workers.output
    health, said = doctors(site)
    assert health == "failed"
    assert "refuses us" in said
    assert "rabbitmqctl list_permissions" in said
    assert "wrong-one" not in said


@pytest.mark.parametrize(
    ("user", "virtual_host", "is_declared", "says", "advice"),
    [
        ("app", "nowhere", False, "vhost nowhere", "rabbitmqctl list_vhosts"),
        ("app", "", True, "PRECONDITION_FAILED - inequivalent arg", "rabbitmqctl delete_queue"),
        ("too-narrow", "", False, "ACCESS_REFUSED", "rabbitmqctl list_permissions"),
        ("narrow", "", False, "", ""),
    ],
    ids=["virtual host", "queue of another make", "rights", "rights that are enough"],
)
def test_worker_and_doctor_tell_what_rabbitmq_refuses_and_what_to_do(
    running: RabbitmqServer, user: str, virtual_host: str, is_declared: bool, says: str, advice: str
) -> None:
    name = f"duepost_{user}{virtual_host}{is_declared}"
    if is_declared:
        running.declare(f"{name}.here")
    url = running.amqp(user=user, virtual_host=virtual_host)
    rabbitmq = Rabbitmq(url, PostgresBroker("", []), [name], lambda: "here")
    for look in (rabbitmq.check, partial(inspect, url, [f"{name}.here"])):
        with pytest.raises(RabbitmqRefused, match=says) if says else nullcontext() as refused:
            look()
        assert refused is None or advice in refused.value.advice
    if not says:
        assert inspect(url, [f"{name}.here", "duepost_none"]) == {
            f"{name}.here": QueueState(0, 0), "duepost_none": None,
        }  # fmt: skip

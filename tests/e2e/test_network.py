"""What lies between workers and their database: networks that are cut, poolers that share sessions."""

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.conftest import Site
from tests.namespaces import Namespace, NamespaceNetwork, fresh_namespace, namespaces_are_allowed
from tests.network import Line, Network
from tests.pooler import PGBOUNCER, Pooler
from tests.postgres import PostgresServer
from tests.processes import Workers, duepost, environment
from tests.relays import ScriptedRelay
from tests.waiting import wait_until

#: Where everything must be shown, a missing PgBouncer is a failure.
needs_pgbouncer = pytest.mark.skipif(
    PGBOUNCER is None and os.environ.get("CI") != "true", reason="PgBouncer is not installed"
)


#: What a worker says that was cut off, once it has its session again.
IS_BACK = "database session is back"


@pytest.fixture
def hosts() -> Iterator[tuple[Namespace, ...]]:
    """Three machines, each with a link of its own that can be cut."""
    if not namespaces_are_allowed():
        pytest.skip("no right to make network namespaces here")
    with ExitStack() as stack:
        yield tuple(stack.enter_context(fresh_namespace()) for _ in range(3))


@contextmanager
def server_for(server: PostgresServer, hosts: Sequence[Namespace]) -> Iterator[PostgresServer]:
    """A PostgreSQL that hosts reach over their links."""
    own = PostgresServer(server.binaries, hosts=hosts)
    own.start()
    try:
        yield own
    finally:
        own.stop("immediate")
        own.remove()


@contextmanager
def workers_of(site: Site, host: Namespace, server: PostgresServer, stack: ExitStack) -> Iterator[Workers]:
    """Workers on a host: it reaches the database and the relay over its link, and nothing else."""
    relay = stack.enter_context(Line(partial(socket.create_connection, ("127.0.0.1", site.relay.port)), host.outer))
    over_the_link = {
        "DUEPOST_DATABASE_URL": f"postgresql://postgres@{host.outer}:{server.port}{urlsplit(site.url).path}",
        "DUEPOST_SMTP_URL": f"smtp://{host.outer}:{relay.port}",
        "DUEPOST_SMTP_HELO": "worker.example.com",
        "DUEPOST_STATEMENT_TIMEOUT": "5",
        "DUEPOST_SMTP_TIMEOUT": "10",
        "DUEPOST_SMTP_DOT_TIMEOUT": "10",
    }
    with Workers({**site.env, **over_the_link}, site.folder / f"{host.name}.log", host=host) as workers:
        yield workers


def no_copy_but_the_named(site: Site) -> bool:
    """Whether every email that came twice is one of which the ledger says so."""
    named = {address for (address,) in site.query("SELECT address FROM duepost.delivery WHERE unknowns > 0")}
    return {address for address, count in Counter(site.received()).items() if count > 1} <= named


def test_a_cut_network_is_got_over_in_bounded_time(url: str, relay: ScriptedRelay, tmp_path: Path) -> None:
    with Network(url) as network:
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        with site.watch(), site.workers(DUEPOST_DATABASE_URL=network.url, DUEPOST_STATEMENT_TIMEOUT="2") as workers:
            site.schedule(600)
            wait_until(lambda: len(relay.messages) > 50, state=site.logs)
            network.cut()
            wait_until(lambda: "session is lost" in workers.output, what="the cut to be noticed", state=site.logs)
            network.mend()
            site.wait_until_finished(600, timeout=60)
            assert workers.stop() == 0
        assert site.outcomes() == {"sent": 600}
        assert no_copy_but_the_named(site)
        assert set(Counter(site.received()).values()) <= {1, 2}


def test_a_worker_that_is_cut_off_begins_nothing_and_others_take_over(
    url: str, relay: ScriptedRelay, tmp_path: Path
) -> None:
    with Network(url) as network:
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        with site.watch(), site.workers("cut-off", DUEPOST_DATABASE_URL=network.url) as cut_off:
            site.schedule(2000)
            wait_until(lambda: len(relay.messages) > 20, state=site.logs)
            network.cut()
            with site.workers("whole"):
                # Its session lives on behind the network: the server ends it when no proof has come for a while.
                site.wait_until_finished(2000, timeout=90)
            cut_off.kill()
        assert site.outcomes() == {"sent": 2000}
        assert no_copy_but_the_named(site)


def test_packets_that_vanish_are_noticed_by_keepalives_and_got_over_in_bounded_time(
    far_server: PostgresServer, namespace: Namespace, relay: ScriptedRelay, tmp_path: Path
) -> None:
    with far_server.fresh_database() as url:
        network = NamespaceNetwork(namespace, url)
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        # By the statement's limit it would hang up only after ten minutes.
        patient = site.workers(DUEPOST_DATABASE_URL=network.url, DUEPOST_STATEMENT_TIMEOUT="600")
        with site.watch(), patient as workers:
            site.schedule(600)
            wait_until(lambda: len(relay.messages) > 50, state=site.logs)
            network.cut()
            for said in ("session is lost", "OperationalError"):
                wait_until(lambda said=said: said in workers.output, timeout=90, what=said, state=site.logs)  # type: ignore[misc]
            network.mend()
            site.wait_until_finished(600, timeout=90)
            assert workers.stop() == 0
        assert site.outcomes() == {"sent": 600}
        assert no_copy_but_the_named(site)


def test_the_server_ends_the_session_of_a_worker_whose_packets_vanish_and_others_take_over(
    far_server: PostgresServer, namespace: Namespace, relay: ScriptedRelay, tmp_path: Path
) -> None:
    with far_server.fresh_database() as url:
        network = NamespaceNetwork(namespace, url)
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        with site.watch(), site.workers("cut-off", DUEPOST_DATABASE_URL=network.url) as cut_off:
            site.schedule(2000)
            wait_until(lambda: len(relay.messages) > 20, state=site.logs)
            [(session,)] = site.query(
                "SELECT l.pid FROM pg_locks AS l JOIN duepost.worker AS w ON l.objid = w.id::oid"
                " WHERE l.locktype = 'advisory' AND l.granted"
            )
            network.cut()
            with site.workers("whole"):
                site.wait_until_finished(2000, timeout=90)
            wait_until(lambda: not site.query("SELECT 1 FROM pg_stat_activity WHERE pid = %s", session))
            assert (
                f"[{session}] LOG:  could not receive data from client: Connection timed out"
                in far_server.log.read_text()
            )
            cut_off.kill()
        assert site.outcomes() == {"sent": 2000}
        assert no_copy_but_the_named(site)


#: What tells workers from each other: each has attempts of its own.
WHO_HAS_SENT = "SELECT DISTINCT worker_id FROM duepost.attempt"


def test_three_worker_hosts_share_a_database_and_one_that_is_cut_off_and_back_costs_nothing(
    server: PostgresServer, hosts: tuple[Namespace, ...], relay: ScriptedRelay, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        database_server = stack.enter_context(server_for(server, hosts))
        url = stack.enter_context(database_server.fresh_database())
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        stack.enter_context(site.watch())
        workers = [stack.enter_context(workers_of(site, host, database_server, stack)) for host in hosts]

        lots = [site.schedule(1500)]

        def have_all_sent() -> bool:
            if len(site.query(WHO_HAS_SENT)) == len(hosts):
                return True
            if not site.query("SELECT FROM duepost.item LIMIT 1"):
                # Those that were quicker have taken all of it.
                lots.append(site.schedule(1500, prefix=f"more-{len(lots)}"))
            return False

        wait_until(have_all_sent, timeout=90, what="each host to send", state=site.logs)
        first = 1500 * len(lots)
        hosts[0].cut()
        site.schedule(600, prefix="meanwhile")
        site.wait_until_finished(first + 600, timeout=180)
        hosts[0].mend()
        wait_until(lambda: IS_BACK in workers[0].output, timeout=90, what=IS_BACK, state=site.logs)
        assert [each.stop() for each in workers[1:]] == [0] * len(workers[1:])
        site.schedule(100, prefix="afterwards")
        site.wait_until_finished(first + 700, timeout=180)
        assert workers[0].stop() == 0
        assert site.outcomes() == {"sent": first + 700}
        assert no_copy_but_the_named(site)


@needs_pgbouncer
def test_all_but_the_marking_session_goes_through_a_pooler_in_transaction_mode(
    url: str, relay: ScriptedRelay, tmp_path: Path
) -> None:
    with Pooler(url) as pooler:
        pooled = environment(pooler.url, relay.url, DUEPOST_SESSION_DATABASE_URL=url)
        site = Site(url, relay, pooled, tmp_path)
        with site.watch(), site.workers("first", processes=2) as first, site.workers("second"):
            ids = site.schedule(300)
            wait_until(lambda: len(relay.messages) > 50, state=site.logs)
            first.kill()
            site.wait_until_finished(300)
            assert len(ids) == 300
            for command in (["list"], ["stats"], ["show", str(ids[0])], ["doctor", "--no-relay"]):
                done = duepost(*command, env=pooled, cwd=tmp_path)
                assert done.returncode == 0, (command, done.stdout, done.stderr)
        assert site.outcomes() == {"sent": 300}
        assert no_copy_but_the_named(site)


@needs_pgbouncer
def test_nothing_of_ours_is_left_in_a_pooled_session(url: str, relay: ScriptedRelay, tmp_path: Path) -> None:
    with Pooler(url, connections=1) as pooler:
        pooled = environment(pooler.url, relay.url, DUEPOST_SESSION_DATABASE_URL=url)
        site, through = Site(url, relay, pooled, tmp_path), Site(pooler.url, relay, pooled, tmp_path)
        with site.watch(), site.workers():
            site.schedule(20)
            site.wait_until_finished(20)
            for name in (
                "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout",
                "timezone", "synchronous_commit",
            ):  # fmt: skip
                setting = "SELECT current_setting(%s)"
                assert through.query(setting, name) == site.query(setting, name), name
            held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
            assert through.query(held) == [(0,)]


@needs_pgbouncer
def test_a_marking_session_through_a_pooler_is_refused_in_one_line(
    url: str, relay: ScriptedRelay, tmp_path: Path
) -> None:
    with Pooler(url) as pooler:
        site = Site(url, relay, environment(pooler.url, relay.url), tmp_path)
        for command in (["trigger", "--watch"], ["doctor", "--no-relay"]):
            done = duepost(*command, env=site.env, cwd=tmp_path)
            assert done.returncode == 1
            assert "DUEPOST_SESSION_DATABASE_URL" in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
        with Workers(site.env, tmp_path / "refused.log", ready=False) as workers:
            assert workers.wait() == 1
            assert "DUEPOST_SESSION_DATABASE_URL" in workers.output


def test_back_ends_that_are_terminated_again_and_again_cost_nothing(
    url: str, relay: ScriptedRelay, tmp_path: Path
) -> None:
    site = Site(url, relay, environment(url, relay.url), tmp_path)
    with site.watch(), site.workers(processes=2) as workers:
        site.schedule(400)
        for step in range(5):
            wait_until(lambda step=step: len(relay.messages) > step * 60, state=site.logs)  # type: ignore[misc]
            site.query(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        site.wait_until_finished(400)
        assert workers.popen.poll() is None
        workers.signal(signal.SIGTERM)
        assert workers.wait() == 0
    assert site.outcomes() == {"sent": 400}
    assert no_copy_but_the_named(site)

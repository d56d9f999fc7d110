"""Real `dramatiq actors` processes, real ticks, real dialogues; and what kill -9 and restarts do to them."""

import os
import signal
import sys
from collections import Counter
from pathlib import Path

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.postgres import PostgresServer
from tests.processes import Process, duepost, environment
from tests.relays import ScriptedRelay, accept, close, hang, reply
from tests.waiting import wait_until


def test_500_emails_with_two_racing_triggers_two_workers_and_one_kill_arrive(site: Site) -> None:
    ids = site.schedule(500)
    with (
        site.watch("watch-1"),
        site.watch("watch-2"),
        site.workers("w1", threads=8) as doomed,
        site.workers("w2", threads=8),
    ):
        wait_until(lambda: len(site.relay.messages) > 100, what="some to be sent", state=site.logs)
        doomed.kill()
        site.wait_until_finished(500)
    assert site.outcomes() == {"sent": 500}
    copies = Counter(site.received())
    assert set(copies) == {f"person-{n}@example.com" for n in range(1, 501)}
    resent = {
        str(address)
        for (address,) in site.query(
            "SELECT address FROM duepost.delivery WHERE unknowns > 0 AND email_id = ANY (%s)", ids
        )
    }
    twice = {address for address, count in copies.items() if count > 1}
    assert twice <= resent, "only what was caught between dot and commit may come twice, and the ledger names it"
    assert max(copies.values()) <= 2
    by_address: dict[str, set[bytes]] = {}
    for message in site.relay.messages:
        by_address.setdefault(message.recipients[0], set()).add(message.content)
    assert all(len(contents) == 1 for contents in by_address.values()), "a copy is the same message, byte for byte"


def test_what_is_due_leaves_once_and_without_any_tick(site: Site) -> None:
    with site.workers(processes=2):
        for number in range(1, 11):
            site.schedule(2, prefix=f"email-{number}")
            # Time stands still until a worker looks, however slow the machine is.
            wait_until(
                lambda: not site.pending() or site.query("UPDATE duepost.item SET due_at = now()"), state=site.logs
            )
    assert site.outcomes() == {"sent": 20}
    assert sorted(Counter(site.received()).values()) == [1] * 20
    assert site.query("SELECT checked_in_at FROM duepost.control") == [(None,)], "there was no pass of the scheduler"


def test_what_a_killed_worker_held_is_back_within_seconds(site: Site) -> None:
    site.relay.on(Phase.DOT, hang(), times=1)
    [email_id] = site.schedule()
    with site.watch(), site.workers("w1") as doomed, site.workers("w2"):
        wait_until(lambda: site.pending() == {"sending": 1}, state=site.logs)
        doomed.kill()
        killed_workers_row = site.query("SELECT worker_id FROM duepost.scheduled_email WHERE id = %s", email_id)
        site.wait_until_finished(1)
        assert site.query("SELECT unknowns, attempts FROM duepost.delivery") == [(1, 2)]
        assert (
            site.query("SELECT gone_at IS NOT NULL FROM duepost.worker WHERE id = %s", *killed_workers_row[0])
            in (
                [(True,)],
                [],
            )
            or killed_workers_row == []
        )


def test_sigterm_finishes_the_dialogue_that_runs(site: Site) -> None:
    site.relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"), times=1)
    site.schedule()
    with site.watch(), site.workers() as workers:
        wait_until(lambda: site.pending() == {"sending": 1}, state=site.logs)
        workers.signal(signal.SIGTERM)
        wait_until(lambda: "Stopping worker process" in site.logs() or "Shutting down" in site.logs())
        site.relay.release()
        assert workers.wait() == 0
    assert site.outcomes() == {"sent": 1}
    assert len(site.relay.messages) == 1


def test_sigterm_returns_at_once_what_was_only_prefetched(site: Site) -> None:
    site.relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"))
    site.schedule(20)
    with site.watch() as watch, site.workers(threads=2, DUEPOST_SMTP_CONNECTIONS="2") as workers:
        # Two are being sent, and one for a connection, or for each, is claimed ahead.
        wait_until(lambda: site.pending().get("sending", 0) >= 3, state=site.logs)
        watch.stop()
        workers.signal(signal.SIGTERM)
        wait_until(lambda: "Shutting down" in site.logs())
        site.relay.release()
        assert workers.wait() == 0
    assert site.query("SELECT count(*) FROM dramatiq.queue WHERE state = 'consumed'") == [(0,)]
    assert "sending" not in site.pending()


def test_a_long_line_that_stopped_workers_have_left_is_gone_on_with_without_a_tick(site: Site) -> None:
    site.schedule(40, scheduled_at="'2001-01-01'")
    # As a worker leaves it that has claimed without messages, and was stopped or killed.
    site.query("UPDATE duepost.route SET claimed_directly_until = now() + interval '3 s'")
    with site.workers():
        site.wait_until_finished(40)
    assert site.outcomes() == {"sent": 40}


def test_a_restarted_database_costs_nothing(own_server: PostgresServer, relay: ScriptedRelay, tmp_path: Path) -> None:
    with own_server.fresh_database() as url:
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        with site.watch(), site.workers(processes=2):
            site.schedule(300)
            wait_until(lambda: len(relay.messages) > 50, state=site.logs)
            own_server.restart("fast")
            wait_until(lambda: len(relay.messages) > 100, state=site.logs)
            own_server.restart("immediate")
            site.wait_until_finished(300)
        assert site.outcomes() == {"sent": 300}
        resent = {address for (address,) in site.query("SELECT address FROM duepost.delivery WHERE unknowns > 0")}
        assert {address for address, count in Counter(site.received()).items() if count > 1} <= resent


def test_a_relay_that_is_away_at_the_start_is_waited_for(url: str, tmp_path: Path) -> None:
    with ScriptedRelay() as gone:
        pass
    site = Site(url, gone, environment(url, gone.url), tmp_path)
    site.schedule(3)
    with site.watch(), site.workers():
        wait_until(
            lambda: site.query("SELECT circuit_open FROM duepost.route") == [(True,)],
            what="the circuit",
            state=site.logs,
        )
        wait_until(lambda: site.pending() == {"scheduled": 3}, what="all to be back in line", state=site.logs)


def test_a_database_that_is_away_at_the_start_is_one_line_and_status_1(tmp_path: Path) -> None:
    env = environment("postgresql://nobody@127.0.0.1:1/nothing", "smtp://127.0.0.1:1")
    done = duepost("worker", env=env)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    with Process([sys.executable, "-m", "dramatiq", "actors", "--processes", "1"], env, tmp_path / "log") as workers:
        assert workers.wait() == 1
    assert "Traceback" not in workers.output
    assert workers.output.count("duepost: ") == 1


def test_a_bad_setting_is_one_line_and_status_2(url: str, tmp_path: Path) -> None:
    env = {**environment(url, "smtp://127.0.0.1:1"), "DUEPOST_DISABLED": "maybe"}
    with Process([sys.executable, "-m", "dramatiq", "actors", "--processes", "1"], env, tmp_path / "log") as workers:
        assert workers.wait() == 2
    assert "duepost: DUEPOST_DISABLED: must be 0 or 1" in workers.output
    assert "Traceback" not in workers.output


def test_a_missing_schema_is_one_line_that_says_what_to_run(server: PostgresServer, tmp_path: Path) -> None:
    with server.fresh_database(migrated=False) as url:
        env = environment(url, "smtp://127.0.0.1:1")
        with Process(
            [sys.executable, "-m", "dramatiq", "actors", "--processes", "1"], env, tmp_path / "log"
        ) as workers:
            assert workers.wait() == 1
    assert "run `duepost migrate`" in workers.output
    assert "Traceback" not in workers.output


def test_nothing_private_is_in_a_log_line(running_site: Site) -> None:
    running_site.relay.on(
        Phase.RCPT,
        reply("550 5.1.1 <person-1@example.com> does not exist"),
        when=lambda line: "person-1@" in line,
    )
    running_site.query(
        "SELECT duepost.schedule_email(kind => 'k', address => 'secret-person@example.com', template => 'none',"
        """ context => '{"n": "very-secret"}')"""
    )
    running_site.schedule(3)
    wait_until(lambda: sum(running_site.outcomes().values()) == 3, state=running_site.logs)
    wait_until(lambda: running_site.query("SELECT 1 FROM duepost.scheduled_email WHERE attempts > 0"))
    logs = running_site.logs()
    for secret in ("person", "secret", "Hello", "@example.com"):
        assert secret not in logs.replace("noreply@example.com", "")


def test_the_broker_holds_a_process_id_per_worker_and_one_lock_each(site: Site) -> None:
    with site.workers(processes=2) as workers:
        wait_until(lambda: site.query("SELECT count(*) FROM duepost.worker WHERE gone_at IS NULL") == [(2,)])
        pids = {int(str(pid)) for (pid,) in site.query("SELECT pid FROM duepost.worker")}
        assert pids <= set(workers.worker_pids())
        assert site.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(2,)]
        os.kill(pids.pop(), 0)


def test_workers_need_no_more_than_the_role_for_workers(site: Site, server: PostgresServer) -> None:
    server.execute("DROP ROLE IF EXISTS only_worker")
    server.execute("CREATE ROLE only_worker LOGIN IN ROLE duepost_worker")
    try:
        site.env["DUEPOST_DATABASE_URL"] = site.url.replace("postgres@", "only_worker@", 1)
        site.relay.on(Phase.RCPT, reply("550 5.1.1 unknown"), when=lambda line: "dead" in line)
        site.relay.on(Phase.DOT, accept(), close(), times=1)
        site.query("INSERT INTO duepost.recipient (user_id, address) VALUES ('ann', 'ann@example.com')")
        site.schedule(5)
        site.schedule(prefix="dead")
        site.query(
            "SELECT duepost.schedule_email(kind => 'k', users => ARRAY['ann'], subject => 's', body_text => 'b')"
        )
        site.query("UPDATE duepost.control SET maintained_at = NULL, swept_at = NULL")
        with site.watch(), site.workers():
            site.wait_until_finished(7)
        assert site.outcomes() == {"sent": 6, "undeliverable": 1}
        assert "Traceback" not in site.logs()
        assert site.query("SELECT count(*) FROM duepost.suppression") == [(1,)]
    finally:
        server.execute("DROP ROLE only_worker")


def test_a_role_that_lacks_rights_is_one_line_and_status_1(site: Site, server: PostgresServer) -> None:
    server.execute("DROP ROLE IF EXISTS nobody_special")
    server.execute("CREATE ROLE nobody_special LOGIN")
    try:
        site.env["DUEPOST_DATABASE_URL"] = site.url.replace("postgres@", "nobody_special@", 1)
        arguments = [sys.executable, "-m", "dramatiq", "actors", "--processes", "1"]
        with Process(arguments, site.env, site.folder / "log") as workers:
            assert workers.wait() == 1
        assert "needs to be a member of duepost_worker" in workers.output
        assert "Traceback" not in workers.output
    finally:
        server.execute("DROP ROLE nobody_special")


def test_workers_end_in_order_although_the_database_is_away(
    own_server: PostgresServer, relay: ScriptedRelay, tmp_path: Path
) -> None:
    name = "away"
    own_server.execute(f"CREATE DATABASE {name}")
    url = own_server.url(name)
    site = Site(url, relay, environment(url, relay.url), tmp_path)
    assert duepost("migrate", env=site.env).returncode == 0
    relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"))
    site.schedule(20)
    with site.watch() as watch, site.workers() as workers:
        wait_until(lambda: "watching:" in site.logs(), what="the watch to begin", state=site.logs)
        wait_until(lambda: site.pending().get("sending", 0) >= 4, state=site.logs)
        own_server.stop("immediate")
        try:
            workers.signal(signal.SIGTERM)
            watch.signal(signal.SIGTERM)
            relay.release()
            assert workers.wait() == 0
            assert watch.wait() == 0
        finally:
            own_server.start()


def test_workers_wait_for_a_database_that_goes_away_and_keep_their_verdicts(
    own_server: PostgresServer, relay: ScriptedRelay, tmp_path: Path
) -> None:
    with own_server.fresh_database() as url:
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"))
        site.schedule(4)
        with site.watch(), site.workers():
            wait_until(lambda: relay.transcript.count("C: .") == 4, what="four dots", state=lambda: relay.transcript)
            own_server.stop("fast")
            relay.release()
            assert relay.wait_for(lambda relay: len(relay.messages) == 4)
            wait_until(lambda: "The database is away" in site.logs(), what="the workers to wait", state=site.logs)
            own_server.start()
            site.wait_until_finished(4)
        assert site.query("SELECT count(*) FROM duepost.delivery WHERE outcome = 'sent' AND unknowns = 0") == [(4,)]
        assert len(relay.messages) == 4, "a verdict that was kept is not a second copy"


def test_a_watch_outlives_a_database_that_crashes_again_and_again(
    own_server: PostgresServer, relay: ScriptedRelay, tmp_path: Path
) -> None:
    with own_server.fresh_database() as url:
        site = Site(url, relay, environment(url, relay.url), tmp_path)
        site.schedule(3)
        with site.watch() as watch:
            for crash in range(8):
                wait_until(
                    lambda crash=crash: (
                        watch.output.count("the database is back") == crash  # type: ignore[misc]
                        and site.query("SELECT 1 FROM pg_stat_activity WHERE application_name = 'duepost command'")
                    ),
                    what="the watch to come back",
                    state=site.logs,
                )
                own_server.restart("immediate")
                assert watch.popen.poll() is None, site.logs()
            assert watch.stop() == 0

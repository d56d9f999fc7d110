"""The thirteen promises of the design, each tried from outside: SQL, processes, SMTP."""

import threading
from collections import Counter
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import psycopg2
import psycopg2.extensions
import pytest

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.postgres import PostgresServer
from tests.processes import environment
from tests.relays import ScriptedRelay, accept, close, hang, reply
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def shared(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all: two worker processes and a watch."""
    folder = tmp_path_factory.mktemp("invariants")
    with server.fresh_database() as url, ScriptedRelay() as relay:
        site = Site(url, relay, environment(url, relay.url, DUEPOST_TEMPLATES=str(folder)), folder)
        with site.workers(processes=2), site.watch():
            yield site


@pytest.fixture
def site(shared: Site) -> Iterator[Site]:
    """The shared site, with a clean ledger and a relay that accepts everything."""
    yield shared
    shared.relay.forget()
    shared.relay.release()
    shared.query("UPDATE duepost.control SET paused = false; UPDATE duepost.route SET circuit_open = false")
    shared.query("DELETE FROM duepost.suppression")
    wait_until(
        lambda: not shared.pending(), what="a clean table", state=lambda: (shared.pending(), shared.logs()[-2000:])
    )
    shared.query("DELETE FROM duepost.delivery")
    shared.relay.released.clear()


def address_counts(site: Site, prefix: str) -> Counter[str]:
    return Counter(recipient for recipient in site.received() if recipient.startswith(prefix))


def test_invariant_01_the_row_is_the_truth_and_a_message_is_a_hint(site: Site) -> None:
    later, *now = site.schedule(4, prefix="one", scheduled_at="now() + interval '1 hour'")
    site.query("UPDATE duepost.control SET paused = true")
    hint = (
        "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
        " SELECT m, 'duepost_send', 'queued', jsonb_build_object('queue_name', 'duepost_send',"
        " 'actor_name', 'send_email', 'args', jsonb_build_array(%s::bigint), 'kwargs', '{}'::jsonb,"
        " 'options', '{}'::jsonb, 'message_id', m::text,"
        " 'message_timestamp', 0) FROM (SELECT gen_random_uuid() AS m) AS each"
    )
    for email_id in (later, later, *now, *now, 999_999_999):
        site.query(hint, email_id)
    site.query("UPDATE duepost.control SET paused = false")
    wait_until(lambda: site.query("SELECT count(*) FROM dramatiq.queue WHERE queue_name = 'duepost_send'") == [(0,)])
    assert address_counts(site, "one-") == {}, "early and doubled hints send nothing"
    site.query("UPDATE duepost.scheduled_email SET due_at = now() WHERE id = ANY (%s)", now)
    wait_until(lambda: sum(site.outcomes().values()) == 3, state=site.logs)
    assert set(address_counts(site, "one-").values()) == {1}
    site.query("SELECT duepost.clear_scheduled_email(%s)", later)


def test_invariant_02_one_email_one_transaction(site: Site) -> None:
    blocker = psycopg2.connect(site.url)
    with blocker.cursor() as cursor:
        site.query("UPDATE duepost.control SET paused = true")
        first, *others = site.schedule(20, prefix="two")
        cursor.execute("SELECT FROM duepost.scheduled_email WHERE id = %s FOR UPDATE", (first,))
        site.query("UPDATE duepost.control SET paused = false")
        wait_until(lambda: site.outcomes() == {"sent": len(others)}, state=site.logs)
        assert site.pending() == {"scheduled": 1}, "the blocked row alone stays behind"
    blocker.close()
    site.wait_until_finished(20)
    assert set(address_counts(site, "two-").values()) == {1}


def test_invariant_03_no_transaction_is_open_while_smtp_is_spoken(site: Site) -> None:
    site.relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"), times=4)
    site.schedule(4, prefix="three")
    wait_until(lambda: site.pending().get("sending") == 4, state=site.logs)
    in_transaction = site.query(
        "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'duepost%' AND state LIKE 'idle in transaction%'"
    )
    locks = site.query(
        "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
        " WHERE c.relname LIKE 'scheduled_email%' AND l.pid <> pg_backend_pid()"
        " AND EXISTS (SELECT FROM pg_stat_activity a WHERE a.pid = l.pid AND a.state = 'idle in transaction')"
    )
    site.relay.release()
    assert (in_transaction, locks) == ([], [(0,)])


def test_invariant_04_what_belongs_together_commits_together(site: Site) -> None:
    [email_id] = site.schedule(prefix="four", scheduled_at="now() + interval '1 hour'")
    site.query("UPDATE duepost.scheduled_email SET due_at = now() WHERE id = %s", email_id)
    site.wait_until_finished(1)
    [(ledger, journal)] = site.query(
        "SELECT d.xmin::text, a.xmin::text FROM duepost.delivery d JOIN duepost.attempt a USING (email_id)"
        " WHERE email_id = %s",
        email_id,
    )
    assert ledger == journal, "the ledger's row and the attempt's are of one transaction"
    assert site.query("SELECT count(*) FROM duepost.scheduled_email WHERE id = %s", email_id) == [(0,)]


def test_invariant_05_one_lock_order_so_no_deadlock(site: Site) -> None:
    before = site.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    users = [f"user-{n}" for n in range(12)]
    site.query(
        "INSERT INTO duepost.recipient (user_id, address) SELECT u, u || '@example.com' FROM unnest(%s) u", users
    )
    failures: list[BaseException] = []

    def client(number: int) -> None:
        try:
            connection = psycopg2.connect(site.url)
            with connection.cursor() as cursor:
                for step in range(15):
                    some = users[(number + step) % 6 :: 2]
                    cursor.execute(
                        "SELECT duepost.schedule_email(kind => 'k', users => %s, subject => 's', body_text => 'b')",
                        (some,),
                    )
                    cursor.execute("SELECT * FROM duepost.clear_scheduled_emails(%s)", (some[::-1],))
                    connection.commit()
            connection.close()
        except psycopg2.Error as error:
            failures.append(error)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: not site.pending(), state=site.logs)
    assert failures == []
    assert site.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == before


def test_invariant_06_only_one_worker_holds_a_row(site: Site) -> None:
    site.schedule(200, prefix="six")
    with site.workers("more", processes=1), site.watch("watch-2"):
        site.wait_until_finished(200)
    counts = address_counts(site, "six-")
    assert len(counts) == 200
    assert set(counts.values()) == {1}


def test_invariant_07_death_is_seen_not_timed(site: Site) -> None:
    site.relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"), times=1)
    [slow] = site.schedule(prefix="seven-slow")
    wait_until(lambda: site.pending() == {"sending": 1}, state=site.logs)
    site.query("UPDATE duepost.scheduled_email SET claimed_at = now() - interval '1 day'")
    site.query("SELECT pg_sleep(3)")
    assert site.pending() == {"sending": 1}, "a slow relay is never taken for a dead worker"
    site.relay.release()
    site.wait_until_finished(1)
    assert site.query("SELECT unknowns FROM duepost.delivery WHERE email_id = %s", slow) == [(0,)]


def test_invariant_08_no_notify(site: Site) -> None:
    listener = psycopg2.connect(site.url)
    listener.set_isolation_level(psycopg2.extensions.ISOLATION_LEVEL_AUTOCOMMIT)
    with listener.cursor() as cursor:
        for queue in ("duepost_send", "duepost_scheduler", "default"):
            for event in ("enqueue", "ack"):
                cursor.execute(f'LISTEN "dramatiq.{queue}.{event}"')
        site.schedule(5, prefix="eight")
        site.wait_until_finished(5)
        cursor.execute("SELECT 1")
        listener.poll()
        assert listener.notifies == []
    listener.close()
    source = "".join(path.read_text() for path in (Path(__file__).parents[2] / "models").rglob("*.sql"))
    assert "notify(" not in source.lower()


def test_invariant_09_a_clear_that_says_cleared_is_kept(site: Site) -> None:
    ids = site.schedule(150, prefix="nine")
    receipts = {
        email_id: site.query("SELECT duepost.clear_scheduled_email(%s)", email_id)[0][0] for email_id in reversed(ids)
    }
    wait_until(lambda: not site.pending(), state=site.logs)
    rows = site.query("SELECT email_id, outcome FROM duepost.delivery")
    outcomes = {row[0]: row[1] for row in rows}
    for email_id, receipt in receipts.items():
        assert outcomes[email_id] == ("cleared" if receipt == "cleared" else "sent")
    assert sum(address_counts(site, "nine-").values()) == list(receipts.values()).count("too_late")


def test_invariant_10_the_ambiguous_is_named(site: Site) -> None:
    site.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('held', 'hold') ON CONFLICT DO NOTHING")
    site.relay.on(Phase.DOT, accept(), close(), times=2)
    [(held,)] = site.query(
        "SELECT duepost.schedule_email("
        "kind => 'held', address => 'ten-held@example.com', subject => 's', body_text => 'b')"
    )
    wait_until(lambda: site.pending() == {"unknown": 1}, state=site.logs)
    [resent] = site.schedule(prefix="ten-resent")
    wait_until(lambda: site.outcomes() == {"sent": 1}, state=site.logs)
    assert site.query("SELECT unknowns FROM duepost.delivery WHERE email_id = %s", resent) == [(1,)]
    assert address_counts(site, "ten-") == {"ten-held@example.com": 1, "ten-resent-1@example.com": 2}
    site.query("SELECT duepost.finish(%s, 'sent', 'resolved')", held)


def test_invariant_11_same_message_id_and_date_on_every_attempt(site: Site) -> None:
    site.relay.on(Phase.DOT, accept(), reply("451 4.3.0 again"), times=2)
    [email_id] = site.schedule(prefix="eleven")
    [(fixed,)] = site.query("SELECT message_id_header FROM duepost.scheduled_email WHERE id = %s", email_id)
    for attempt in (1, 2):
        wait_until(
            lambda a=attempt: site.query(  # type: ignore[misc]
                "SELECT 1 FROM duepost.scheduled_email WHERE state = 'scheduled' AND attempts = %s", a
            ),
            state=lambda: (site.query("SELECT to_jsonb(e) FROM duepost.scheduled_email e"), site.logs()[-2000:]),
        )
        site.query("UPDATE duepost.scheduled_email SET due_at = now()")
    site.wait_until_finished(1)
    copies = [message for message in site.relay.messages if message.recipients[0].startswith("eleven-")]
    headers = [message_from_bytes(copy.content) for copy in copies]
    assert len(copies) == 3
    assert {header["Message-ID"] for header in headers} == {fixed}
    assert len({header["Date"] for header in headers}) == 1


def test_invariant_12_undeliverable_is_dropped_and_the_relays_faults_are_nobodys(site: Site) -> None:
    site.relay.on(Phase.RCPT, reply("550 5.1.1 unknown"), when=lambda line: "twelve-dead" in line)
    site.schedule(prefix="twelve-dead")
    wait_until(lambda: site.outcomes() == {"undeliverable": 1}, state=site.logs)
    site.relay.on(Phase.MAIL, reply("535 5.7.8 log in"))
    before = site.relay.connections
    site.schedule(50, prefix="twelve-live")
    wait_until(
        lambda: site.query("SELECT circuit_open FROM duepost.route") == [(True,)],
        state=site.logs,
    )
    wait_until(lambda: site.pending() == {"scheduled": 50}, state=lambda: (site.pending(), site.logs()))
    assert site.outcomes() == {"undeliverable": 1}, "nothing is dropped"
    assert site.relay.connections - before < 36, "the relay is not hammered"
    site.relay.forget()
    site.query("UPDATE duepost.scheduled_email SET due_at = now()")
    site.query("UPDATE duepost.route SET probe_at = now()")
    site.wait_until_finished(51)
    assert site.outcomes() == {"undeliverable": 1, "sent": 50}


def test_invariant_13_private_by_default(site: Site) -> None:
    site.relay.on(Phase.RCPT, reply("450 4.2.0 thirteen-secret@example.com is busy"), times=1)
    site.query(
        "SELECT duepost.schedule_email(kind => 'k', address => 'thirteen-secret@example.com',"
        " subject => 'Confidential', body_text => 'whispered')"
    )
    wait_until(lambda: site.query("SELECT 1 FROM duepost.scheduled_email WHERE attempts = 1"))
    stored = str(site.query("SELECT message::text FROM dramatiq.queue"))
    for secret in ("thirteen-secret", "Confidential", "whispered"):
        assert secret not in site.logs()
        assert secret not in stored
    site.query("UPDATE duepost.scheduled_email SET due_at = now()")
    site.wait_until_finished(1)

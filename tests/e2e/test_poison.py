"""Emails that would bring a worker down: each is bounded and reported, and the others flow."""

import time
from pathlib import Path

import psutil
import pytest

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.relays import accept, close, drip, hang, reply
from tests.sentry import SentryEndpoint
from tests.waiting import wait_until

#: Templates by the word that names what becomes of them.
POISON = {
    "TookTooLong": "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}",
    "TooLong": "{% for a in range(99999) %}{% for b in range(99999) %}lines and lines{% endfor %}{% endfor %}",
    "MemoryError": "{{ ('x' * 10**10) | length }}",
    "RecursionError": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "UndefinedError": "{{ nobody.knows.it }}",
    "SecurityError": "{{ ''.__class__.__mro__ }}",
}


def test_poisoned_emails_are_bounded_and_reported_and_the_others_flow(site: Site, tmp_path: Path) -> None:
    for name, source in POISON.items():
        (tmp_path / f"{name}.subject.txt").write_text("Hello")
        (tmp_path / f"{name}.txt").write_text(source)
    (tmp_path / "doubling.subject.txt").write_text("Hello")
    (tmp_path / "doubling.txt").write_text(
        "{% set x = namespace(s='x') %}{% for i in range(40) %}{% set x.s = x.s ~ x.s %}{% endfor %}{{ x.s | length }}"
    )
    poisoned = [*POISON, "doubling"]
    with SentryEndpoint() as sentry:
        site.env |= {"SENTRY_DSN": sentry.dsn, "DUEPOST_RENDER_TIMEOUT": "2", "DUEPOST_MEMORY_LIMIT": "256"}
        with site.workers(threads=4) as workers, site.watch():
            [worker] = workers.worker_pids()
            for name in poisoned:
                site.query(
                    "SELECT duepost.schedule_email(kind => 'welcome', address => 'ann@example.com', template => %s)",
                    name,
                )
            site.schedule(50)
            wait_until(lambda: site.outcomes() == {"sent": 50}, timeout=60, state=site.logs)
            wait_until(
                lambda: (
                    site.query("SELECT count(*) FROM duepost.scheduled_email WHERE attempts = 1") == [(len(poisoned),)]
                ),
                state=site.logs,
            )
            wait_until(lambda: len(sentry.events) == len(poisoned), state=lambda: sentry.events)
            assert workers.worker_pids() == [worker], "no process has ended"
    errors = {
        name: str(error) for name, error in site.query("SELECT template, last_error FROM duepost.scheduled_email")
    }
    for name in POISON:
        assert name in errors[name]
    assert "MemoryError" in errors["doubling"]
    assert site.query("SELECT DISTINCT state FROM duepost.scheduled_email WHERE due_at > now()") == [("scheduled",)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("""headers => jsonb_build_object('X-Big', repeat('x', 1048576))""", "headers: must be at most 65536 bytes"),
        (
            "template => 'welcome', context => (SELECT jsonb_object_agg(i, i) FROM generate_series(1, 1000000) AS i)",
            "context: must be at most 262144 bytes",
        ),
        ("""headers => '{"Content-Type": "application/x-nobody-knows"}'""", "Content-Type is set by Duepost"),
    ],
)
def test_what_no_worker_could_stomach_is_refused_when_it_is_scheduled(site: Site, arguments: str, said: str) -> None:
    content = "" if "template" in arguments else ", subject => 's', body_text => 'b'"
    with pytest.raises(Exception, match=said):
        site.query(f"SELECT duepost.schedule_email(kind => 'k', address => 'a@example.com' {content}, {arguments})")
    assert site.pending() == {}


@pytest.mark.parametrize(
    "context", ['{"n": 1e5000}', '{"n": ' + "[" * 4000 + "]" * 4000 + "}"], ids=["number", "depth"]
)
def test_emails_that_wait_for_their_dot_are_not_cut_off_by_a_context_that_nobody_can_read(
    site: Site, context: str
) -> None:
    site.relay.on(Phase.DOT, accept(), drip("250 2.0.0 taken, at last", 0.2), times=6)
    with site.workers(threads=4), site.watch():
        site.schedule(6)
        wait_until(lambda: len(site.relay.messages) == 6, state=site.logs)
        [(poison,)] = site.query(
            "SELECT duepost.schedule_email(kind => 'welcome', address => 'poison@example.com', template => 'right',"
            " scheduled_at => now() + interval '1 h')"
        )
        # As it may lie in the table from before such a context was refused.
        site.query(
            "UPDATE duepost.scheduled_email SET context = %s::jsonb, due_at = now() WHERE id = %s", context, poison
        )
        attempted = "SELECT attempts, last_error LIKE '%%context%%' FROM duepost.scheduled_email WHERE id = %s"
        wait_until(lambda: site.query(attempted, poison) == [(1, True)], state=site.logs)
        wait_until(lambda: site.outcomes() == {"sent": 6}, state=site.logs)
    assert len(site.relay.messages) == 6
    assert site.query("SELECT count(*) FROM duepost.delivery WHERE unknowns > 0 OR attempts > 1") == [(0,)]


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("loops", [1, 30])
def test_a_code_leaves_within_half_a_second_beside_templates_that_loop(site: Site, tmp_path: Path, loops: int) -> None:
    for name, source in {"code": "{{ recipient.address }}", **{f"loop{n}": LOOP for n in range(loops)}}.items():
        (tmp_path / f"{name}.subject.txt").write_text("Hello")
        (tmp_path / f"{name}.txt").write_text(source)
    # None of them is given up before the end.
    with site.workers(threads=4, DUEPOST_RENDER_TIMEOUT="600") as workers, site.watch():
        [worker] = workers.worker_pids()
        # The session, the connections and the statements' plans are there.
        site.schedule(3)
        site.wait_until_finished(3)
        idle = min(seconds_until_sent(site, "subject => 's', body_text => 'b'") for _ in range(3))
        site.query(
            "SELECT duepost.schedule_email(kind => 'digest', address => 'bob@example.com', template => 'loop' || i)"
            f" FROM generate_series(0, {loops - 1}) AS i"
        )
        wait_until(lambda: site.pending().get("sending", 0) >= min(loops, 8), timeout=120, state=site.logs)
        for content in ("subject => 's', body_text => 'b'", "template => 'code'"):
            # The loops use up all the time that the worker's process has, so that this is a clock which stands still
            # while others have the processors. They may keep the database from them, too: this time and not the next.
            taken: list[float] = []
            while min(taken, default=1e9) >= max(0.5, 3 * idle) and len(taken) < 10:
                begun = processor_seconds(worker)
                seconds_until_sent(site, content)
                taken.append(processor_seconds(worker) - begun)
            assert min(taken) < max(0.5, 3 * idle), taken
        assert site.pending().get("sending", 0) >= min(loops, 8), "the templates loop still"


def processor_seconds(pid: int) -> float:
    """How long a process has had a processor until now."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def seconds_until_sent(site: Site, content: str) -> float:
    """How long a sign-in code takes, from its commit to the ledger."""
    begun = time.monotonic()
    [(email_id,)] = site.query(
        f"SELECT duepost.schedule_email(kind => 'code', address => 'ann@example.com', {content})"
    )
    sent = "SELECT 1 FROM duepost.delivery WHERE email_id = %s"
    wait_until(lambda: site.query(sent, email_id), timeout=120, what="a code to be sent", state=site.logs)
    return time.monotonic() - begun


def test_a_silent_first_connection_delays_no_email_and_a_refused_login_is_tried_once_a_connection(site: Site) -> None:
    site.relay.on(Phase.BANNER, hang(), close(), times=1)
    with site.workers(threads=4), site.watch():
        first = site.schedule(1)
        wait_until(lambda: site.relay.connections == 1)
        begun = time.monotonic()
        site.schedule(19, prefix="other")
        site.wait_until_finished(20)
        assert time.monotonic() - begun < 2
        assert first
        site.relay.release()


def test_of_1000_due_a_relay_that_refuses_us_hears_of_no_more_than_there_are_connections(site: Site) -> None:
    site.relay.on(Phase.BANNER, reply("554 5.7.1 you may not send"))
    ids = site.schedule(1000)
    with site.workers(threads=4), site.watch():
        wait_until(
            lambda: site.query("SELECT circuit_open FROM duepost.route") == [(True,)],
            state=site.logs,
        )
        wait_until(lambda: site.pending() == {"scheduled": 1000}, state=site.pending)
        assert site.relay.connections <= 8 + 1, "eight connections, and perhaps a first probe"
    assert site.query("SELECT count(*) FROM duepost.scheduled_email WHERE attempts > 1") == [(0,)]
    assert site.query("SELECT min(id) FROM duepost.scheduled_email WHERE due_at <= now()") == [(ids[0],)]

"""Two relays and real worker processes: whatever one of them does, the other's emails leave."""

import re
from collections.abc import Iterator

import pytest

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.processes import Workers, duepost
from tests.relays import Action, ScriptedRelay, hang, reply
from tests.waiting import wait_until

#: As many as two relays need.
THREADS = 3


@pytest.fixture
def marketing(site: Site) -> Iterator[ScriptedRelay]:
    """The other relay, by which digests leave."""
    with ScriptedRelay() as relay:
        site.env["DUEPOST_SMTP_URL_MARKETING"] = relay.url
        site.query("INSERT INTO duepost.kind (kind, route) VALUES ('digest', 'marketing')")
        yield relay


def schedule_digests(site: Site, count: int) -> None:
    site.query(
        "SELECT count(duepost.schedule_email(kind => 'digest', address => 'digest-' || i || '@example.com',"
        f" subject => 'Digest', body_text => 'World')) FROM generate_series(1, {count}) AS i"
    )


def recipients(relay: ScriptedRelay) -> list[str]:
    return sorted(recipient for message in relay.messages for recipient in message.recipients)


def welcomes_are_sent(site: Site, count: int) -> None:
    """Waits until that many emails of the default relay are in the ledger, whatever waits for the other."""
    wait_until(
        lambda: (
            site.query("SELECT count(*) FROM duepost.delivery WHERE kind = 'welcome' AND outcome = 'sent'")
            == [(count,)]
        ),
        timeout=120,
        what=f"{count} emails of the relay that works",
        state=lambda: (site.outcomes(), site.pending(), site.logs()[-3000:]),
    )


def is_open(site: Site) -> dict[object, object]:
    return dict(site.query("SELECT name, circuit_open FROM duepost.route"))  # type: ignore[arg-type]


def nothing_is_dropped(site: Site, digests: int) -> None:
    assert site.query("SELECT count(*) FROM duepost.item WHERE kind = 'digest'") == [(digests,)]
    assert site.query("SELECT count(*) FROM duepost.delivery WHERE kind = 'digest'") == [(0,)]


def test_each_kind_leaves_by_its_relay_and_each_email_once(
    site: Site, relay: ScriptedRelay, marketing: ScriptedRelay
) -> None:
    site.schedule(100)
    schedule_digests(site, 100)
    with site.workers(threads=THREADS), site.watch():
        site.wait_until_finished(200)
    assert recipients(relay) == sorted(f"person-{number}@example.com" for number in range(1, 101))
    assert recipients(marketing) == sorted(f"digest-{number}@example.com" for number in range(1, 101))


@pytest.mark.parametrize("phase", [Phase.BANNER, Phase.EHLO, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT])
def test_a_relay_that_hangs_keeps_no_thread_and_no_email_of_another(
    site: Site, marketing: ScriptedRelay, phase: Phase
) -> None:
    marketing.on(phase, hang())
    schedule_digests(site, 1000)
    with site.workers(threads=THREADS), site.watch():
        wait_until(lambda: marketing.connections >= 8, timeout=60, what="all its connections to hang", state=site.logs)
        site.schedule(50)
        welcomes_are_sent(site, 50)
        nothing_is_dropped(site, 1000)
        assert is_open(site)["default"] is False
        marketing.forget()
        marketing.release()


REFUSALS = [
    pytest.param(Phase.BANNER, [reply("554 5.7.1 go away")], id="banner"),
    pytest.param(Phase.MAIL, [reply("530 5.7.0 log in first")], id="login"),
]


@pytest.mark.parametrize(("phase", "actions"), REFUSALS)
def test_a_relay_that_refuses_us_opens_its_own_circuit_with_one_alert(
    site: Site, marketing: ScriptedRelay, phase: Phase, actions: list[Action]
) -> None:
    marketing.on(phase, *actions)
    schedule_digests(site, 1000)
    with site.workers(threads=THREADS), site.watch():
        wait_until(lambda: is_open(site).get("marketing") is True, timeout=60, what="the circuit", state=site.logs)
        site.schedule(50)
        welcomes_are_sent(site, 50)
    nothing_is_dropped(site, 1000)
    assert is_open(site) == {"default": False, "marketing": True}
    assert len(re.findall(r"sending through it is stopped: .*route=marketing", site.logs())) == 1


def test_a_relay_that_is_not_there_opens_its_own_circuit(site: Site, marketing: ScriptedRelay) -> None:
    marketing.stop()
    schedule_digests(site, 1000)
    with site.workers(threads=THREADS), site.watch():
        wait_until(lambda: is_open(site).get("marketing") is True, timeout=60, what="the circuit", state=site.logs)
        site.schedule(50)
        welcomes_are_sent(site, 50)
        told = duepost("doctor", "--no-relay", env=site.env)
    nothing_is_dropped(site, 1000)
    assert "the circuit of marketing is open" in told.stdout
    assert "nothing is sent through it, nothing is dropped" in told.stdout


def test_a_fallback_takes_over_while_the_circuit_is_open_and_each_email_leaves_once(
    site: Site, relay: ScriptedRelay, marketing: ScriptedRelay
) -> None:
    site.env["DUEPOST_SMTP_FALLBACK_MARKETING"] = "default"
    marketing.on(Phase.BANNER, reply("554 5.7.1 go away"))
    schedule_digests(site, 200)
    with site.workers(threads=THREADS), site.watch():
        site.wait_until_finished(200, timeout=120)
        assert is_open(site) == {"default": False, "marketing": True}
        assert recipients(marketing) == []
        marketing.forget()
        site.query("UPDATE duepost.route SET probe_at = now() WHERE circuit_open")
        schedule_digests(site, 1)
        wait_until(lambda: is_open(site)["marketing"] is False, timeout=60, what="a good probe", state=site.logs)
        schedule_digests(site, 20)
        site.wait_until_finished(221, timeout=120)
    assert len(recipients(marketing)) == 21
    assert recipients(relay) == sorted(f"digest-{number}@example.com" for number in range(1, 201))


def test_workers_that_die_while_both_relays_are_used_lose_nothing(
    site: Site, relay: ScriptedRelay, marketing: ScriptedRelay
) -> None:
    site.schedule(300)
    schedule_digests(site, 300)
    with site.watch():
        workers = site.workers(threads=THREADS)
        wait_until(lambda: relay.messages and marketing.messages, timeout=60, what="both to be used", state=site.logs)
        workers.kill()
        with site.workers("again", threads=THREADS):
            site.wait_until_finished(600, timeout=120)
    assert len(set(recipients(relay))) == 300
    assert len(set(recipients(marketing))) == 300
    assert site.query("SELECT DISTINCT kind, coalesce(route, 'default') FROM duepost.delivery ORDER BY kind") == [
        ("digest", "marketing"),
        ("welcome", "default"),
    ]


def test_a_route_that_no_worker_serves_is_told_with_the_variable_to_set(site: Site) -> None:
    site.query("INSERT INTO duepost.kind (kind, route) VALUES ('digest', 'marketing')")
    schedule_digests(site, 3)
    site.schedule(1)
    with site.workers(), site.watch():
        welcomes_are_sent(site, 1)
        told = duepost("doctor", "--no-relay", env=site.env)
    assert told.returncode == 1
    assert "no worker serves the route marketing (of kind digest, 3 emails due)" in told.stdout
    assert "DUEPOST_SMTP_URL_MARKETING" in told.stdout
    nothing_is_dropped(site, 3)


@pytest.mark.usefixtures("marketing")
def test_too_few_threads_for_the_relays_end_a_worker_with_one_line(site: Site) -> None:
    workers = Workers(site.env, site.folder / "workers.log", threads=2, ready=False)
    try:
        wait_until(lambda: "2 relays need 3" in workers.output, what="the line", state=lambda: workers.output)
    finally:
        workers.stop()

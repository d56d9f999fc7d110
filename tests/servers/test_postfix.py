"""Postfix: the main job, what it refuses and why, its limits, TLS, and restarts in mid-run."""

from collections.abc import Iterator

import pytest

from tests.servers.conftest import MakeSite, Servers
from tests.servers.postfix import Postfix
from tests.servers.site import REFUSED, Refusal, assert_nothing_lost, assert_stored_once, refused
from tests.waiting import wait_until


def test_2000_emails_over_two_processes_are_each_stored_once(postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url())
    site.schedule(2000)
    with site.running(2, connections=16):
        site.wait_until_finished()
    assert site.outcomes() == {"sent": 2000}
    assert_stored_once(site, postfix)


def test_2000_emails_survive_reload_stop_and_kill_in_mid_run(postfix: Postfix, make_site: MakeSite) -> None:
    # A reload may leave connections without a banner until another client has gone: they are not waited for long.
    site = make_site(postfix.url(), DUEPOST_SMTP_TIMEOUT="10")
    with site.running(2):
        for number, trouble in enumerate((postfix.reload, postfix.stop, postfix.kill, postfix.reload), 1):
            site.schedule(500, to=f"run-{number}")
            wait_until(lambda: site.outcomes().get("sent", 0) > 500 * (number - 1) + 100, state=site.report)  # noqa: B023
            trouble()
            if not postfix.machine.is_running:
                postfix.start()
            site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": 2000}
    assert_nothing_lost(site, postfix)


#: What an operator has wrong, and a word of what Postfix says then.
ABOUT_US = {
    "SENDER_REFUSED": "Sender address rejected",
    "SENDER_UNKNOWN": "Sender address rejected",
    "CLIENT_REFUSED": "Client host rejected",
    "HELO_REFUSED": "Helo command rejected",
    "NOT_IN_MYNETWORKS": "Relay access denied",
    "DEFERS_STRANGERS": "Relay access denied",
    "LOGIN_REQUIRED": "Access denied",
    "LOGIN_REQUIRED_AT_RELAYING": "Access denied",
}


@pytest.fixture(scope="module")
def refusals(servers: Servers, make_module_site: MakeSite) -> Iterator[dict[str, Refusal]]:
    """Each of `ABOUT_US`, all at the same time; then Postfix is mended and reloaded."""
    postfix = servers["postfix"]
    assert isinstance(postfix, Postfix)
    with refused({way: make_module_site(postfix.url(way)) for way in ABOUT_US}, top="net") as seen:
        for way in ABOUT_US:
            postfix.set_options(way)
        postfix.reload()
        yield seen


@pytest.mark.parametrize("way", ABOUT_US)
def test_what_is_about_us_drops_nothing_and_opens_the_circuit(way: str, refusals: dict[str, Refusal]) -> None:
    seen = refusals[way]
    assert seen.outcomes == {}, "nothing dropped"
    assert seen.suppressed == set()
    assert seen.reason


@pytest.mark.parametrize("way", ABOUT_US)
def test_doctor_says_what_is_about_us(way: str, refusals: dict[str, Refusal]) -> None:
    health, detail = refusals[way].doctor
    assert health == "failed"
    # The doctor asks for our own address, which is not relayed.
    assert (ABOUT_US[way] if ABOUT_US[way] != "Relay access denied" else "circuit is open") in detail


@pytest.mark.parametrize("way", ABOUT_US)
def test_all_is_delivered_once_it_is_mended(way: str, postfix: Postfix, refusals: dict[str, Refusal]) -> None:
    site = refusals[way].site
    site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": REFUSED}
    assert_stored_once(site, postfix)


def test_a_full_disk_drops_nothing_and_doctor_says_it(postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url("DISK_FULL"))
    site.schedule(12)
    with site.running():
        wait_until(lambda: site.tried() >= 3, timeout=60, state=site.report)
        health, detail = site.doctor()
        assert health == "failed"
        assert "Insufficient system storage" in detail
        assert site.outcomes() == {}
        postfix.set_options("DISK_FULL")
        postfix.reload()
        site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": 12}
    assert_stored_once(site, postfix)


def test_unknown_users_are_dropped_and_suppressed_and_known_ones_are_not(postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url())
    site.schedule(40)
    site.schedule(12, to="unknown")
    site.schedule(40, to="another")
    with site.running():
        site.wait_until_finished()
    unknown = {f"unknown-{number}@example.com" for number in range(1, 13)}
    assert site.undeliverable() == unknown
    assert site.suppressed() == unknown
    assert site.outcomes() == {"sent": 80, "undeliverable": 12}
    assert_stored_once(site, postfix)


@pytest.mark.parametrize("way", ["SMALL", "SMALL_UNSAID"])
def test_what_is_too_big_is_dropped_and_nothing_else(way: str, postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url(way))
    site.schedule(10)
    site.schedule(2, to="big", body_text="A long line of text that is repeated.\n" * 1000)
    with site.running():
        site.wait_until_finished()
    assert site.outcomes() == {"sent": 10, "undeliverable": 2}
    assert site.suppressed() == set()
    assert_stored_once(site, postfix)


def test_what_a_content_check_refuses_is_dropped_and_nothing_else(postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url("CONTENT"))
    site.schedule(10)
    site.schedule(2, to="spam", subject="This is SPAM")
    with site.running():
        site.wait_until_finished()
    assert site.undeliverable() == {"spam-1@example.com", "spam-2@example.com"}
    assert site.suppressed() == set()
    assert_stored_once(site, postfix)


def test_greylisting_is_waited_for(postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url("GREYLISTED"))
    site.schedule(10)
    with site.running():
        wait_until(lambda: site.tried() >= 10, state=site.report)
        assert site.outcomes() == {}
        assert site.circuit_reason() == ""
        [(soonest,)] = site.query("SELECT extract(epoch FROM min(due_at) - now()) FROM duepost.scheduled_email")
        assert float(str(soonest)) > 240, "five minutes at the least"
        site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": 10}
    assert_stored_once(site, postfix)


@pytest.mark.parametrize(
    ("way", "processes", "connections"),
    [("TWO_CONNECTIONS", 1, 8), ("FIVE_CONNECTIONS", 1, 8), ("FIFTY_CONNECTIONS", 2, 32)],
)
def test_fewer_connections_than_ours_are_enough(
    way: str, processes: int, connections: int, postfix: Postfix, make_site: MakeSite
) -> None:
    site = make_site(postfix.url(way))
    site.schedule(400)
    with site.running(processes, connections=connections):
        site.wait_until_finished()
    assert site.outcomes() == {"sent": 400}
    assert_stored_once(site, postfix)


def test_a_message_rate_slows_the_relay_down_for_all(postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url("MESSAGE_RATE"))
    site.schedule(150)
    with site.running():
        wait_until(lambda: site.outcomes().get("sent", 0) >= 100, state=site.report)
        wait_until(lambda: "sending" not in site.pending() and "queued" not in site.pending(), state=site.report)
        [(refused,)] = site.query("SELECT count(*) FROM duepost.attempt WHERE verdict = 'retry'")
        assert int(str(refused)) <= 20, "asked once for each connection or so, not once for each email"
    assert site.outcomes() == {"sent": 100}
    assert_stored_once(site, postfix)


def test_a_limit_of_errors_hurts_no_other_email(postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url("ERROR_LIMIT"))
    site.schedule(20)
    site.schedule(20, to="unknown")
    site.schedule(20, to="another")
    with site.running():
        site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": 40, "undeliverable": 20}
    assert_stored_once(site, postfix)


@pytest.mark.parametrize("way", ["STRICT_PIPELINING", "POSTSCREEN", "FILTERED"])
def test_strict_servers_have_nothing_to_complain_of(way: str, postfix: Postfix, make_site: MakeSite) -> None:
    site = make_site(postfix.url(way))
    site.schedule(200)
    with site.running():
        site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": 200}
    assert_stored_once(site, postfix)
    assert "improper command pipelining" not in postfix.machine.path("/var/log/mail.log").read_text()


#: Each way in with TLS: the URL's scheme and host, whether our authority is trusted; a word of what is wrong, if any.
TLS = {
    "a self-signed certificate, on this machine": ("SELF_SIGNED", "smtp", "localhost", False, ""),
    "a self-signed certificate, by its address": ("SELF_SIGNED", "smtp", "127.0.0.1", False, ""),
    "a self-signed one, but TLS is required": (
        "SELF_SIGNED",
        "smtp+starttls",
        "localhost",
        False,
        "self-signed",
    ),
    "our own authority": ("OWN_CA", "smtp+starttls", "localhost", True, ""),
    "our own authority, by its address": ("OWN_CA", "smtp+starttls", "127.0.0.1", True, ""),
    "an authority that is not known": ("OWN_CA", "smtp+starttls", "localhost", False, "certificate"),
    "another name": ("WRONG_NAME", "smtp+starttls", "localhost", True, "name"),
    "an outdated certificate": ("OUTDATED", "smtp+starttls", "localhost", True, "expired"),
    "TLS from the start": ("SMTPS", "smtps", "localhost", True, ""),
    "TLS from the start, by an authority that is not known": ("SMTPS", "smtps", "localhost", False, "certificate"),
    "smtps:// to a port without": ("PLAIN", "smtps", "localhost", True, "TLS"),
    "smtp+starttls:// to a port without": ("PLAIN", "smtp+starttls", "localhost", True, "STARTTLS"),
    "smtp:// to a port with TLS from the start": ("SMTPS", "smtp", "localhost", True, "smtps"),
}


@pytest.fixture(scope="module")
def tls(servers: Servers, make_module_site: MakeSite) -> Iterator[dict[str, Refusal]]:
    """Each of `TLS`, all at the same time."""
    postfix = servers["postfix"]
    assert isinstance(postfix, Postfix)
    sites = {}
    for name, (way, scheme, host, trusted, _) in TLS.items():
        trust = {"DUEPOST_SMTP_CA": str(postfix.authority.file)} if trusted else {}
        sites[name] = make_module_site(postfix.url(way, scheme=scheme, host=host), DUEPOST_SMTP_TIMEOUT="5", **trust)
    with refused(sites) as seen:
        yield seen


@pytest.mark.parametrize("name", [name for name, case in TLS.items() if not case[-1]])
def test_tls_that_is_right_delivers(name: str, postfix: Postfix, tls: dict[str, Refusal]) -> None:
    tls[name].site.wait_until_finished()
    assert tls[name].site.outcomes() == {"sent": REFUSED}
    assert tls[name].doctor[0] in {"ok", "warning"}
    assert_stored_once(tls[name].site, postfix)


@pytest.mark.parametrize("name", [name for name, case in TLS.items() if case[-1]])
def test_tls_that_is_wrong_drops_nothing_and_says_why(name: str, tls: dict[str, Refusal]) -> None:
    seen, word = tls[name], TLS[name][-1]
    assert seen.outcomes == {}
    assert seen.reason
    assert seen.doctor[0] == "failed"
    assert word.lower() in seen.doctor[1].lower()

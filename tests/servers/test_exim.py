"""Exim: logins, what it refuses and defers, rates, and connections that it ends."""

from collections.abc import Iterator

import pytest

from tests.servers.conftest import MakeSite, Servers
from tests.servers.exim import Exim
from tests.servers.site import REFUSED, Refusal, assert_stored_once, refused
from tests.waiting import wait_until

#: What an operator has wrong: the way in, the login; and a word of what is said then.
ABOUT_US = {
    "relaying": ("RELAYING", "smtp", "", "relay not permitted"),
    "the name in EHLO": ("HELO", "smtp", "", "fully qualified"),
    "no login": ("CRAM", "smtp", "", "authentication required"),
    "a wrong password": ("LOGIN", "smtp+starttls", "app:wrong", "535"),
    "a wrong password by CRAM-MD5": ("CRAM", "smtp", "app:wrong", "535"),
}

#: Each mechanism: the way in, and how the URL says it.
LOGINS = {
    "PLAIN, by STARTTLS": ("LOGIN", "smtp+starttls"),
    "PLAIN, with TLS from the start": ("SMTPS", "smtps"),
    "CRAM-MD5": ("CRAM", "smtp"),
}


@pytest.fixture(scope="module")
def seen(servers: Servers, make_module_site: MakeSite) -> Iterator[dict[str, Refusal]]:
    """All of `ABOUT_US` and `LOGINS`, at the same time; then Exim is mended."""
    exim = servers["exim"]
    assert isinstance(exim, Exim)
    trust = {"DUEPOST_SMTP_CA": str(exim.authority.file)}
    sites = {
        name: make_module_site(exim.url(way, scheme=scheme, login=login), **trust)
        for name, (way, scheme, login, _) in ABOUT_US.items()
    }
    sites |= {
        name: make_module_site(exim.url(way, scheme=scheme, login=exim.login), **trust)
        for name, (way, scheme) in LOGINS.items()
    }
    with refused(sites) as seen:
        exim.mend()
        yield seen


@pytest.mark.parametrize("name", ABOUT_US)
def test_what_is_about_us_drops_nothing_and_doctor_says_it(name: str, seen: dict[str, Refusal]) -> None:
    found, word = seen[name], ABOUT_US[name][-1]
    assert found.outcomes == {}
    assert found.suppressed == set()
    assert found.reason
    assert found.doctor[0] == "failed"
    assert word in found.doctor[1]


@pytest.mark.parametrize("name", ["relaying", "the name in EHLO"])
def test_all_is_delivered_once_it_is_mended(name: str, exim: Exim, seen: dict[str, Refusal]) -> None:
    site = seen[name].site
    site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": REFUSED}
    assert_stored_once(site, exim)


@pytest.mark.parametrize("name", LOGINS)
def test_each_mechanism_logs_in(name: str, exim: Exim, seen: dict[str, Refusal]) -> None:
    assert seen[name].doctor[0] == "ok"
    seen[name].site.wait_until_finished()
    assert seen[name].site.outcomes() == {"sent": REFUSED}
    assert_stored_once(seen[name].site, exim)


def test_each_recipient_and_message_gets_its_own_verdict(exim: Exim, make_site: MakeSite) -> None:
    exim.break_again()
    site = make_site(exim.url())
    site.schedule(20)
    site.schedule(3, to="unknown")
    site.schedule(3, to="greylist")
    site.schedule(3, to="drop")
    site.schedule(3, to="spam", subject="This is SPAM")
    site.schedule(3, to="scanned", subject="Scanned LATER")
    with site.running():
        wait_until(lambda: site.pending() == {"scheduled": 6}, state=site.report)
        assert site.circuit_reason() == ""
        given_up = {f"{name}-{number}@example.com" for name in ("unknown", "drop", "spam") for number in (1, 2, 3)}
        assert site.undeliverable() == given_up
        assert site.suppressed() == {f"unknown-{number}@example.com" for number in (1, 2, 3)}
        exim.mend()
        site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": 26, "undeliverable": 9}
    assert_stored_once(site, exim)


def test_a_rate_is_kept_by_all(exim: Exim, make_site: MakeSite) -> None:
    site = make_site(exim.url("RATE"))
    site.schedule(100)
    with site.running():
        wait_until(lambda: site.outcomes().get("sent", 0) >= 49, state=site.report)
        wait_until(lambda: "sending" not in site.pending() and "queued" not in site.pending(), state=site.report)
        [(refusals,)] = site.query("SELECT count(*) FROM duepost.attempt WHERE verdict = 'retry'")
        assert int(str(refusals)) <= 20, "asked once for each connection or so, not once for each email"
    assert site.outcomes() == {"sent": sum(site.outcomes().values())}
    assert_stored_once(site, exim)


def test_20_emails_a_connection_are_taken_over_fresh_ones(exim: Exim, make_site: MakeSite) -> None:
    site = make_site(exim.url("REPLACED"))
    site.schedule(300)
    with site.running():
        site.wait_until_finished()
    assert site.outcomes() == {"sent": 300}
    assert_stored_once(site, exim)

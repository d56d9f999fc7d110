"""Dovecot Submission: logins over TLS, and the right number of copies."""

from collections.abc import Iterator

import pytest

from tests.servers.conftest import MakeSite, Servers
from tests.servers.dovecot import Dovecot
from tests.servers.site import REFUSED, Refusal, assert_stored_once, refused

#: The URL's scheme and way in, the login; and a word of what is wrong, if any.
LOGINS = {
    "STARTTLS": ("smtp+starttls", "PLAIN", "app:password", ""),
    "TLS from the start": ("smtps", "SMTPS", "app:password", ""),
    "a wrong password": ("smtp+starttls", "PLAIN", "app:wrong", "535"),
    "no login": ("smtp+starttls", "PLAIN", "", "530"),
}


@pytest.fixture(scope="module")
def seen(servers: Servers, make_module_site: MakeSite) -> Iterator[dict[str, Refusal]]:
    """All of `LOGINS`, at the same time."""
    dovecot = servers["dovecot"]
    assert isinstance(dovecot, Dovecot)
    trust = {"DUEPOST_SMTP_CA": str(dovecot.authority.file)}
    sites = {
        name: make_module_site(dovecot.url(way, scheme=scheme, login=login), **trust)
        for name, (scheme, way, login, _) in LOGINS.items()
    }
    with refused(sites) as seen:
        yield seen


@pytest.mark.parametrize("name", [name for name, case in LOGINS.items() if not case[-1]])
def test_a_right_login_delivers(name: str, dovecot: Dovecot, seen: dict[str, Refusal]) -> None:
    site = seen[name].site
    assert seen[name].doctor[0] == "ok"
    site.wait_until_finished()
    assert site.outcomes() == {"sent": REFUSED}
    assert_stored_once(site, dovecot)


@pytest.mark.parametrize("name", [name for name, case in LOGINS.items() if case[-1]])
def test_a_wrong_login_drops_nothing_and_doctor_says_it(name: str, seen: dict[str, Refusal]) -> None:
    found, code = seen[name], LOGINS[name][-1]
    assert found.outcomes == {}
    assert found.reason
    assert found.doctor[0] == "failed"
    assert code in found.doctor[1]


@pytest.mark.parametrize("count", [200, 1000])
def test_each_email_is_stored_once(count: int, dovecot: Dovecot, make_site: MakeSite) -> None:
    site = make_site(dovecot.main_url())
    site.schedule(count)
    with site.running():
        site.wait_until_finished()
    assert site.outcomes() == {"sent": count}
    assert_stored_once(site, dovecot)

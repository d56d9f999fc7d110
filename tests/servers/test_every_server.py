"""The main job, unknown users, sizes and restarts, with each of the real servers."""

import pytest

from tests.servers.conftest import MakeSite, Servers
from tests.servers.server import Server
from tests.servers.site import assert_nothing_lost, assert_stored_once
from tests.waiting import wait_until


@pytest.fixture(params=["exim", "opensmtpd", "dovecot", "sendmail", "haraka"])
def real(request: pytest.FixtureRequest, servers: Servers) -> Server:
    """Each server in turn; Postfix has tests of its own."""
    return servers[request.param]


def test_500_emails_are_each_stored_once_and_unknown_users_are_dropped(real: Server, make_site: MakeSite) -> None:
    site = make_site(real.main_url())
    site.schedule(250)
    site.schedule(3, to="unknown")
    site.schedule(250, to="another")
    with site.running(2):
        site.wait_until_finished()
    assert site.undeliverable() == {"unknown-1@example.com", "unknown-2@example.com", "unknown-3@example.com"}
    assert site.outcomes() == {"sent": 500, "undeliverable": 3}
    assert_stored_once(site, real)


def test_what_is_too_big_is_dropped_and_nothing_else(real: Server, make_site: MakeSite) -> None:
    site = make_site(real.main_url())
    site.schedule(5)
    site.schedule(2, to="big", body_text="A long line of text that is repeated, again and again.\n" * 2000)
    with site.running():
        site.wait_until_finished()
    assert site.undeliverable() == {"big-1@example.com", "big-2@example.com"}
    assert site.outcomes() == {"sent": 5, "undeliverable": 2}
    assert site.suppressed() == set()
    assert_stored_once(site, real)


def test_nothing_is_lost_when_it_stops_or_is_killed_in_mid_run(real: Server, make_site: MakeSite) -> None:
    site = make_site(real.main_url(), DUEPOST_SMTP_TIMEOUT="10")
    with site.running():
        for number, end in enumerate((real.stop, real.kill), 1):
            site.schedule(200, to=f"run-{number}")
            wait_until(lambda: site.outcomes().get("sent", 0) > 200 * (number - 1) + 50, state=site.report)  # noqa: B023
            end()
            real.start()
            site.wait_until_finished(hurry=True)
    assert site.outcomes() == {"sent": 400}
    assert_nothing_lost(site, real)

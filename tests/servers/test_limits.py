"""What real servers bear behind a dot, and how many connections and emails they take: learnt once, known to all."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.servers.conftest import MakeSite
from tests.servers.dovecot import Dovecot
from tests.servers.exim import Exim
from tests.servers.haraka import Haraka
from tests.servers.postfix import Postfix
from tests.servers.server import Server
from tests.servers.site import Site, assert_stored_once
from tests.waiting import wait_until

#: Connections of a process.
CONNECTIONS = 8


def assert_no_failure(site: Site) -> None:
    """The circuit was closed all the time."""
    assert site.circuit_reason() == ""
    assert "the circuit is closed" not in site.logs()


def refusals(site: Site) -> int:
    """Attempts that the server had something against."""
    [(count,)] = site.query("SELECT count(*) FROM duepost.attempt WHERE verdict <> 'sent'")
    return int(str(count))


def run(site: Site, count: int, *, processes: int = 1, connections: int = CONNECTIONS) -> float:
    """Has that many emails sent; returns the seconds that it took."""
    site.schedule(count)
    with site.running(processes, connections=connections):
        begun = time.monotonic()
        site.wait_until_finished()
    return time.monotonic() - begun


def assert_once_by_default(site: Site, server: Server) -> None:
    run(site, 200)
    assert site.outcomes() == {"sent": 200}
    assert_stored_once(site, server)
    assert_no_failure(site)
    assert site.query("SELECT ahead_off_because FROM duepost.route") == [(None,)]


def test_dovecot_submission_gets_each_email_once(dovecot: Dovecot, make_site: MakeSite) -> None:
    assert_once_by_default(make_site(dovecot.main_url()), dovecot)


def test_haraka_gets_each_email_once(haraka: Haraka, make_site: MakeSite) -> None:
    assert_once_by_default(make_site(haraka.main_url()), haraka)


@pytest.mark.parametrize("name", ["dovecot", "haraka"])
def test_what_a_server_cannot_bear_behind_a_dot_is_learnt_once(
    name: str, request: pytest.FixtureRequest, make_site: MakeSite
) -> None:
    server: Server = request.getfixturevalue(name)
    site = make_site(f"{server.main_url()}?pipelining=ahead")
    run(site, 200)
    sent = site.sent()
    doubtful = {header for header, is_doubtful in sent.items() if is_doubtful}
    assert site.outcomes() == {"sent": 200}
    assert len(doubtful) <= CONNECTIONS
    [(why,)] = site.query("SELECT ahead_off_because FROM duepost.route")
    assert why
    print(f"{name}: {why}; {len(doubtful)} in doubt")
    # Another process, which has been told nothing.
    run(site, 200)
    copies = site.stored(server)
    assert set(copies) == set(site.sent())
    assert len(copies) == 400
    assert {header for header, count in copies.items() if count > 1} <= doubtful
    assert {header for header, is_doubtful in site.sent().items() if is_doubtful} == doubtful


@pytest.mark.parametrize(
    ("way", "count", "processes", "connections"),
    [
        ("TWO_CONNECTIONS", 300, 1, 8),
        ("FIVE_CONNECTIONS", 300, 1, 8),
        ("FIFTY_CONNECTIONS", 1000, 2, 32),
        ("PLAIN", 300, 1, 8),
    ],
)
def test_fewer_connections_than_ours_are_all_that_postfix_has_to_bear(
    way: str, count: int, processes: int, connections: int, postfix: Postfix, make_site: MakeSite
) -> None:
    site = make_site(postfix.url(way))
    seconds = run(site, count, processes=processes, connections=connections)
    print(f"{way}: {count / seconds:.0f} a second")
    assert site.outcomes() == {"sent": count}
    assert_stored_once(site, postfix)
    assert_no_failure(site)
    assert refusals(site) == 0


Forget = Callable[[], None]


@pytest.fixture
def postfix_forgets(postfix: Postfix) -> Iterator[Forget]:
    """Has Postfix start counting from zero; it has nothing counted before and after the test."""
    postfix.reload()
    yield postfix.reload
    postfix.reload()


@pytest.fixture
def exim_forgets(exim: Exim) -> Iterator[Forget]:
    """Has Exim start counting from zero; it has nothing counted before and after the test."""

    def forget() -> None:
        for file in exim.machine.path("/var/spool/exim4/db").glob("ratelimit*"):
            file.unlink(missing_ok=True)

    forget()
    yield forget
    forget()


def assert_all_is_delivered_in_the_end(site: Site, server: Server, count: int, forget: Forget) -> None:
    """More is due than the server takes in a time: it is asked a handful of times, and later takes the rest."""
    site.schedule(count)
    with site.running(2):
        wait_until(
            lambda: site.query("SELECT 1 FROM duepost.route WHERE paused_until > now() + interval '3 s'"),
            timeout=120,
            state=site.report,
        )
        asked = refusals(site)
        assert site.outcomes()["sent"] < count
        forget()
        site.query("UPDATE duepost.route SET paused_until = now()")
        site.wait_until_finished(hurry=True)
    print(f"{asked} refusals, {refusals(site)} in the end")
    # What is under way over each connection, and one for each process after each pause.
    assert refusals(site) <= 2 * CONNECTIONS * 2 + 20
    assert site.outcomes() == {"sent": count}
    assert_stored_once(site, server)
    assert_no_failure(site)


def test_a_message_rate_of_postfix_delays_and_drops_nothing(
    postfix: Postfix, make_site: MakeSite, postfix_forgets: Forget
) -> None:
    assert_all_is_delivered_in_the_end(make_site(postfix.url("MESSAGE_RATE")), postfix, 150, postfix_forgets)


def test_a_rate_limit_of_exim_delays_and_drops_nothing(exim: Exim, make_site: MakeSite, exim_forgets: Forget) -> None:
    assert_all_is_delivered_in_the_end(make_site(exim.url("RATE")), exim, 90, exim_forgets)

"""A relay that takes few connections, or few emails in a time: nothing fails, and all processes heed it."""

import time
from collections import Counter

import pytest

from actors.delivery.route import TRIES
from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.relays import ScriptedRelay, reply
from tests.waiting import wait_until


def circuit_was_opened(site: Site) -> bool:
    return site.query("SELECT circuit_open, circuit_reason FROM duepost.route") != [(False, None)] or (
        "the circuit is closed" in site.logs()
    )


def attempts(site: Site) -> Counter[object]:
    return Counter(dict(site.query("SELECT attempts, count(*) FROM duepost.delivery GROUP BY 1")))  # type: ignore[arg-type]


@pytest.mark.parametrize(("limit", "processes"), [(2, 1), (2, 2), (5, 2), (1, 2)])
def test_more_connections_than_the_relay_takes_are_neither_a_failure_nor_an_attempt(
    site: Site, relay: ScriptedRelay, limit: int, processes: int
) -> None:
    relay.limit = limit
    begun = time.monotonic()
    site.schedule(150)
    with site.workers(processes=processes, DUEPOST_SMTP_CONNECTIONS="8"), site.watch():
        site.wait_until_finished(150, timeout=120)
        # The number is known by now.
        known = relay.surplus
        site.schedule(150, prefix="later")
        site.wait_until_finished(300, timeout=120)
    assert not circuit_was_opened(site)
    assert attempts(site) == {1: 300}
    assert max(Counter(site.received()).values()) == 1
    assert relay.most_at_once == limit
    # Once a minute one more is tried, and asked for as often as the relay may still count one that was closed.
    tried = int((time.monotonic() - begun) // 60) * TRIES
    assert known <= 8 * processes + 4 + tried
    assert relay.surplus <= known + 2 + tried
    [(learnt,)] = site.query("SELECT connections FROM duepost.route")
    # One fewer where the relay has counted one that was closed already for long; one more where another process was
    # about to open one, which the next refusal corrects.
    assert isinstance(learnt, int)
    assert max(1, limit - 1) <= learnt <= limit + processes - 1


def test_idle_connections_leave_their_places_to_others(site: Site, relay: ScriptedRelay) -> None:
    relay.limit = 1
    site.schedule(5)
    with site.workers("first"), site.watch():
        site.wait_until_finished(5)
        assert relay.wait_until_idle()
        # A second process finds the place free, however long the first one lives.
        with site.workers("second"):
            site.schedule(20, prefix="later")
            site.wait_until_finished(25)
    assert not circuit_was_opened(site)


def test_idle_connections_are_closed_when_the_circuit_opens(site: Site, relay: ScriptedRelay) -> None:
    site.schedule(50)
    with site.workers(), site.watch():
        site.wait_until_finished(50)
        relay.on(Phase.MAIL, reply("550 5.7.1 your account is suspended"))
        site.schedule(1)
        wait_until(lambda: site.query("SELECT circuit_open FROM duepost.route") == [(True,)])
        assert relay.wait_until_idle(20)


class Meter:
    """A number of emails in a number of seconds; a refusal counts, or does not."""

    def __init__(self, most: int, seconds: float, *, counts_refusals: bool) -> None:
        self._most = most
        self._seconds = seconds
        self._counts_refusals = counts_refusals
        self._seen: list[float] = []
        self.refusals = 0

    def __call__(self, _line: str) -> bool:
        """Whether this one is too much."""
        now = time.monotonic()
        self._seen = [moment for moment in self._seen if moment > now - self._seconds]
        is_too_much = len(self._seen) >= self._most
        if not is_too_much or self._counts_refusals:
            self._seen.append(now)
        self.refusals += is_too_much
        return is_too_much


@pytest.mark.parametrize("counts_refusals", [False, True], ids=["plain", "refusals count"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_relay_that_takes_few_emails_in_a_time_slows_all_down(
    site: Site, relay: ScriptedRelay, processes: int, counts_refusals: bool
) -> None:
    meter = Meter(60, 5.0, counts_refusals=counts_refusals)
    relay.on(Phase.MAIL, reply("450 4.7.1 Error: too much mail from 127.0.0.1"), when=meter)
    site.schedule(150)
    with site.workers(processes=processes, DUEPOST_SMTP_CONNECTIONS="8"), site.watch():
        site.wait_until_finished(150, timeout=120)
    assert not circuit_was_opened(site)
    assert max(Counter(site.received()).values()) == 1
    # The first refusal meets what is under way over each connection; each later one is met alone, by each process.
    assert meter.refusals <= 16 * processes + 20


@pytest.fixture
def brittle(relay: ScriptedRelay) -> ScriptedRelay:
    """A relay that takes the email in front, and ends at what lies behind its dot."""
    relay.behind = "close"
    return relay


def test_what_a_relay_cannot_bear_behind_a_dot_is_known_to_all_and_after_a_restart(
    site: Site, brittle: ScriptedRelay
) -> None:
    site.env["DUEPOST_SMTP_URL"] += "?pipelining=ahead"
    site.schedule(200)
    with site.workers(processes=2, DUEPOST_SMTP_CONNECTIONS="4"), site.watch():
        site.wait_until_finished(200, timeout=120)
        lost = brittle.behind_dots
    # One for each connection that was at it in that moment.
    assert 1 <= lost <= 8
    copies = Counter(site.received())
    assert len(copies) == 200
    assert sum(copies.values()) - 200 <= lost
    with site.workers("again", processes=2, DUEPOST_SMTP_CONNECTIONS="4"), site.watch("watch-again"):
        site.schedule(200, prefix="later")
        site.wait_until_finished(400, timeout=120)
    assert brittle.behind_dots == lost
    assert site.query("SELECT ahead_off_because FROM duepost.route") == [
        ("no reply to a dot that something lay behind",)
    ]


def test_nothing_lies_behind_a_dot_by_default(site: Site, brittle: ScriptedRelay) -> None:
    site.schedule(200)
    with site.workers(DUEPOST_SMTP_CONNECTIONS="1"), site.watch():
        site.wait_until_finished(200, timeout=120)
    assert brittle.behind_dots == 0
    assert set(Counter(site.received()).values()) == {1}


def test_a_limit_at_one_relay_says_nothing_of_another(site: Site, relay: ScriptedRelay) -> None:
    relay.limit = 1
    site.schedule(40)
    with site.workers(), site.watch():
        site.wait_until_finished(40, timeout=120)
    with ScriptedRelay() as other:
        site.env["DUEPOST_SMTP_URL"] = other.url
        site.schedule(200, prefix="other")
        with site.workers("again"), site.watch("watch-again"):
            site.wait_until_finished(240, timeout=120)
        assert other.most_at_once > 1
    target = other.url.rpartition("@")[2].removeprefix("smtp://")
    assert site.query("SELECT name, target, connections FROM duepost.route") == [("default", target, None)]

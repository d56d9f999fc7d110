"""Rates by relay, recipient's domain and endpoint, kept by four worker processes against other sides that count."""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.http_servers import ScriptedServer
from tests.postgres import PostgresServer
from tests.processes import environment
from tests.relays import ScriptedRelay
from tests.waiting import wait_until


class Counted:
    """When the relay was told of each recipient, by domain, and when of the end of each message."""

    def __init__(self, relay: ScriptedRelay) -> None:
        self.recipients: dict[str, list[float]] = defaultdict(list)
        self.messages: list[float] = []
        relay.on(Phase.RCPT, when=self._recipient)
        relay.on(Phase.DOT, when=self._message)

    def _recipient(self, line: str) -> bool:
        self.recipients[line.rpartition("@")[2].partition(">")[0]].append(time.monotonic())
        return False

    def _message(self, _line: str) -> bool:
        self.messages.append(time.monotonic())
        return False

    @property
    def all(self) -> list[float]:
        """When it was told of any recipient."""
        return sorted(moment for moments in self.recipients.values() for moment in moments)


def most_in_a_second(moments: list[float]) -> int:
    """The most in any window of one second."""
    moments = sorted(moments)
    return max(bisect_left(moments, moment + 1.0) - place for place, moment in enumerate(moments))


@pytest.fixture
def counted(relay: ScriptedRelay) -> Counted:
    return Counted(relay)


def schedule(site: Site, count: int, domain: str, kind: str = "welcome") -> None:
    site.query(
        f"SELECT duepost.schedule_email(kind => '{kind}', address => 'person-' || i || '@{domain}', subject => 'Hello',"
        f" body_text => 'World') FROM generate_series(1, {count}) AS i"
    )


def test_no_second_has_more_than_a_route_may_take_though_a_worker_and_the_server_are_killed(
    own_server: PostgresServer, relay: ScriptedRelay, counted: Counted, tmp_path: Path
) -> None:
    with own_server.fresh_database() as url:
        more = {"DUEPOST_SMTP_CONNECTIONS": "4", "DUEPOST_STATE_DIR": str(tmp_path / "state")}
        site = Site(url, relay, environment(url, relay.url, **more), tmp_path)
        site.query("SELECT duepost.set_rate(per_second => 50)")
        schedule(site, 400, "one.example")
        with site.workers(processes=3), site.workers("fourth") as fourth, site.watch():
            wait_until(lambda: len(counted.messages) > 100, timeout=60, what="a hundred emails")
            fourth.kill()
            wait_until(lambda: len(counted.messages) > 200, timeout=60, what="two hundred emails")
            own_server.restart("immediate")
            site.wait_until_finished(400, timeout=120)
    assert most_in_a_second(counted.all) <= 50
    assert most_in_a_second(counted.messages) <= 50
    span = counted.messages[-1] - counted.messages[0]
    print(f"{len(counted.messages)} in {span:.1f} s: {len(counted.messages) / span:.1f} a second")


def test_a_slow_domain_with_thousands_due_slows_no_other_and_what_waits_says_why(site: Site, counted: Counted) -> None:
    site.query("SELECT duepost.set_rate(domain => 'Slow.Example', per_second => 2)")
    site.query("INSERT INTO duepost.kind (kind, priority) VALUES ('reset', 'urgent')")
    schedule(site, 2000, "slow.example")
    schedule(site, 100, "fast.example")
    with site.workers(processes=4, DUEPOST_SMTP_CONNECTIONS="4"), site.watch():
        wait_until(
            lambda: len(counted.recipients["fast.example"]) == 100,
            timeout=90,
            what="the other domain's emails",
            state=lambda: (site.outcomes(), Counter(dict(counted.recipients)), site.logs()[-2000:]),
        )
        # Two thousand take a quarter of an hour.
        assert len(counted.recipients["slow.example"]) < 500
        # What comes now and is urgent is ahead of them.
        schedule(site, 3, "slow.example", kind="reset")
        wait_until(
            lambda: site.query("SELECT count(*) FROM duepost.delivery WHERE kind = 'reset'") == [(3,)],
            timeout=60,
            what="what is urgent",
            state=lambda: (
                site.query("SELECT kind, state, count(*) FROM duepost.scheduled_email GROUP BY 1, 2"),
                site.logs()[-2000:],
            ),
        )
    assert most_in_a_second(counted.recipients["slow.example"]) <= 2
    waiting = site.query("SELECT DISTINCT last_error, attempts FROM duepost.scheduled_email WHERE kind = 'welcome'")
    assert waiting == [("rate: waits for the rate of slow.example: 2 a second", 0)]
    assert site.outcomes()["sent"] == len(counted.messages)


def test_an_endpoint_gets_no_more_than_it_takes_though_a_worker_is_killed_and_no_other_is_slowed(
    site: Site, hook: ScriptedServer
) -> None:
    for name in ("chat", "shop"):
        site.set_webhook(name, f"{hook.url}{name}")
    site.query("SELECT duepost.set_rate(route => 'endpoint:chat', per_second => 5)")

    def moments(endpoint: str) -> list[float]:
        return [each.moment for each in list(hook.requests) if each.path == f"/{endpoint}"]

    site.schedule_messages("chat", 1000)
    site.schedule_messages("shop", 200)
    with site.workers(processes=3), site.workers("fourth") as fourth, site.watch():
        wait_until(lambda: len(moments("shop")) == 200, timeout=90, what="the other endpoint's", state=site.logs)
        # A thousand take more than three minutes.
        assert len(moments("chat")) < 500
        wait_until(lambda: len(moments("chat")) >= 40, timeout=90, what="forty messages", state=site.logs)
        fourth.kill()
        killed_at = len(moments("chat"))
        wait_until(lambda: len(moments("chat")) >= killed_at + 40, timeout=90, what="forty more", state=site.logs)
        waiting = site.query("SELECT DISTINCT last_error FROM duepost.scheduled_message WHERE last_error LIKE 'rate%'")
        kept_to = moments("chat")
        site.query("SELECT duepost.remove_rate(route => 'endpoint:chat')")
        site.query("UPDATE duepost.item SET due_at = now() WHERE due_at > now()")
        wait_until(
            lambda: not site.query("SELECT FROM duepost.scheduled_message WHERE state <> 'sending' LIMIT 1"),
            timeout=120,
            what="the rest",
            state=lambda: (
                site.query("SELECT state, last_error, count(*) FROM duepost.scheduled_message GROUP BY 1, 2"),
                site.logs()[-2000:],
            ),
        )
    assert most_in_a_second(kept_to) <= 5
    assert waiting == [("rate: waits for the rate of the route endpoint:chat: 5 a second",)]

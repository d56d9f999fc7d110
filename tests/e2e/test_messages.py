"""Scheduled messages by real worker processes: functions exactly once through kills, endpoints beside each other."""

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.conftest import Site
from tests.http_servers import ScriptedServer, answer, hang
from tests.waiting import wait_until


@pytest.fixture
def other() -> Iterator[ScriptedServer]:
    with ScriptedServer() as hook:
        yield hook


def outcomes(site: Site) -> dict[object, object]:
    return dict(
        site.query("SELECT outcome, count(*) FROM duepost.delivery WHERE channel = 'message' GROUP BY 1")  # type: ignore[arg-type]
    )


def pending(site: Site) -> dict[object, object]:
    return dict(site.query("SELECT state, count(*) FROM duepost.scheduled_message GROUP BY 1"))  # type: ignore[arg-type]


def wait_until_finished(site: Site, count: int) -> None:
    wait_until(
        lambda: not pending(site) and sum(int(str(each)) for each in outcomes(site).values()) == count,
        timeout=90,
        state=lambda: (outcomes(site), pending(site), site.logs()[-3000:]),
    )


def taken(site: Site) -> int:
    [(count,)] = site.query("SELECT count(*) FROM app.posts")
    return int(str(count))


def has_taken(site: Site, count: int) -> bool:
    return taken(site) >= count


def test_messages_and_emails_leave_side_by_side(site: Site, hook: ScriptedServer) -> None:
    site.set_webhook("orders", hook.url)
    with site.workers(), site.watch():
        messages = site.schedule_messages("orders", 600)
        site.schedule(50)
        wait_until_finished(site, 600)
        wait_until(lambda: len(site.received()) == 50, state=site.logs)
    assert outcomes(site) == {"sent": 600}
    ids = Counter(each.headers["webhook-id"] for each in hook.requests)
    assert len(ids) == len(messages) == 600
    assert set(ids.values()) == {1}
    assert "Traceback" not in site.logs()


def test_a_function_takes_each_message_exactly_once_through_kills(site: Site) -> None:
    site.query("CREATE SCHEMA app")
    site.query("CREATE TABLE app.posts (message_id bigint, n integer)")
    site.query(
        "CREATE FUNCTION app.post(message_id bigint, payload jsonb) RETURNS void LANGUAGE sql AS"
        " $f$ INSERT INTO app.posts VALUES ($1, ($2 ->> 'n')::integer) $f$"
    )
    site.query(
        "SELECT duepost.set_endpoint(name => 'posts', format => 'function', function => 'app.post(bigint,jsonb)')"
    )
    ids = site.schedule_messages("posts", 500)
    with site.watch():
        for turn in range(6):
            with site.workers(f"workers-{turn}", processes=2) as workers:
                enough = min(500, taken(site) + 30)
                wait_until(partial(has_taken, site, enough), timeout=60, state=site.logs)
                workers.kill()
        with site.workers("workers-last"):
            wait_until_finished(site, 500)
    assert sorted(int(str(each)) for (each,) in site.query("SELECT message_id FROM app.posts")) == ids
    assert outcomes(site) == {"sent": 500}
    assert site.query("SELECT count(*) FROM duepost.delivery WHERE unknowns > 0") == [(0,)]


def test_an_endpoint_that_hangs_keeps_no_other_waiting(site: Site, hook: ScriptedServer, other: ScriptedServer) -> None:
    site.set_webhook("slow", hook.url)
    site.set_webhook("quick", other.url)
    for _ in range(300):
        hook.script(hang())
    with site.workers(), site.watch():
        site.schedule_messages("slow", 300)
        wait_until(lambda: len(hook.requests) >= 2, state=site.logs)
        began = time.monotonic()
        site.schedule_messages("quick", 20)
        wait_until(lambda: outcomes(site) == {"sent": 20}, state=site.logs)
        # Nobody counts seconds here: it is a small part of what one that hangs has.
        assert time.monotonic() - began < 15
        site.schedule(5)
        wait_until(lambda: len(site.received()) == 5, state=site.logs)
        hook.__exit__(None, None, None)


def test_an_endpoint_that_asks_for_a_pause_gets_it_from_every_process(site: Site, hook: ScriptedServer) -> None:
    site.set_webhook("orders", hook.url)
    hook.script(answer("HTTP/1.1 429 Too Many Requests", "retry-after: 3600"))
    with site.workers(processes=2), site.watch():
        site.schedule_messages("orders")
        wait_until(lambda: site.query("SELECT name FROM duepost.route WHERE paused_until > now() + interval '50 min'"))
        site.schedule_messages("orders", 50)
        site.schedule(5)
        wait_until(lambda: len(site.received()) == 5, state=site.logs)
        assert len(hook.requests) == 1
        site.query("UPDATE duepost.route SET paused_until = now() - interval '1 s'")
        site.query("UPDATE duepost.item SET due_at = now()")
        wait_until_finished(site, 51)
    assert outcomes(site) == {"sent": 51}


def test_a_killed_worker_s_request_is_unknown_and_comes_again_under_the_same_id(
    site: Site, hook: ScriptedServer
) -> None:
    site.set_webhook("orders", hook.url)
    hook.script(hang())
    with site.watch():
        with site.workers() as workers:
            site.schedule_messages("orders")
            wait_until(lambda: len(hook.requests) == 1, state=site.logs)
            workers.kill()
        with site.workers("again"):
            wait_until_finished(site, 1)
    assert len(hook.requests) == 2
    assert len({each.headers["webhook-id"] for each in hook.requests}) == 1
    assert site.query("SELECT unknowns FROM duepost.delivery") == [(1,)]

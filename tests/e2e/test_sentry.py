"""What Sentry hears from real workers: each failure once, nothing of any email's content, and the tick's check-in."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.postgres import PostgresServer
from tests.processes import environment
from tests.relays import ScriptedRelay, accept, close, reply
from tests.sentry import SentryEndpoint
from tests.waiting import wait_until

SECRETS = (
    "dead-person",
    "lost-person",
    "busy-person",
    "plain-person",
    "late-person",
    "classified",
    "Topsecret",
    "whispered",
)


@dataclass
class Story:
    """What happened at a site, and what Sentry was told."""

    site: Site
    sentry: SentryEndpoint
    ids: dict[str, int]

    def events(self, word: str) -> list[dict[str, object]]:
        """The events whose fingerprint has this word."""
        return [event for event in self.sentry.events if word in (event.get("fingerprint") or [])]


@pytest.fixture(scope="module")
def story(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """One of each: undeliverable, unknown, retry, render error, unexpected exception, a circuit that opens."""
    folder = tmp_path_factory.mktemp("story")
    with server.fresh_database() as url, ScriptedRelay() as relay, SentryEndpoint() as sentry:
        relay.on(
            Phase.RCPT, reply("550 5.1.1 <dead-person@example.com> unknown"), when=lambda line: "dead-person" in line
        )
        relay.on(Phase.RCPT, reply("450 4.2.0 busy-person is busy"), when=lambda line: "busy-person" in line)
        relay.on(Phase.DOT, accept(), close(), times=1)
        env = environment(
            url, relay.url, DUEPOST_TEMPLATES=str(folder), SENTRY_DSN=sentry.dsn, SENTRY_ENVIRONMENT="test",
            DUEPOST_SENTRY_TRACES="1",
        )  # fmt: skip
        site = Site(url, relay, env, folder)
        (folder / "broken.subject.txt").write_text("Hello")
        (folder / "broken.txt").write_text("{{ classified_word.upper() + 1 }}")
        with site.workers(), site.watch():
            ids = _happen(site)
            wait_until(lambda: len(sentry.events) >= 5, state=lambda: (sentry.events, site.logs()[-3000:]))
            wait_until(lambda: sentry.check_ins, what="a check-in")
            yield Story(site, sentry, ids)


def _happen(site: Site) -> dict[str, int]:
    ids: dict[str, int] = {}
    [ids["lost"]] = site.schedule(prefix="lost-person")
    site.wait_until_finished(1)
    [ids["dead"]] = site.schedule(prefix="dead-person")
    site.wait_until_finished(2)
    site.query(
        "SELECT duepost.schedule_email(kind => 'newsletter', address => 'plain-person@example.com',"
        """ template => 'broken', context => '{"classified_word": "Topsecret"}')"""
    )
    [ids["busy"]] = site.schedule(prefix="busy-person")
    for attempts in (1, 2):
        wait_until(
            lambda a=attempts: (
                site.query(  # type: ignore[misc]
                    "SELECT count(*) FROM duepost.scheduled_email WHERE state = 'scheduled' AND attempts >= %s", a
                )
                == [(2,)]
            ),
            state=site.logs,
        )
        if attempts == 1:
            site.query("UPDATE duepost.scheduled_email SET due_at = now()")
    _break_a_table(site, ids)
    relay = site.relay
    relay.on(Phase.BANNER, reply("554 5.7.1 whispered refusal"))
    relay.on(Phase.MAIL, reply("421 4.3.2 closing"))
    [ids["late"]] = site.schedule(prefix="late-person")
    wait_until(
        lambda: site.query("SELECT circuit_open FROM duepost.route") == [(True,)],
        state=site.logs,
    )
    return ids


def _break_a_table(site: Site, ids: dict[str, int]) -> None:
    site.query("ALTER TABLE duepost.suppression RENAME TO gone")
    [ids["unexpected"]] = site.schedule(prefix="plain-person")
    wait_until(
        lambda: site.query("SELECT 1 FROM dramatiq.queue WHERE (message->'options'->>'retries')::int >= 2"),
        what="an unexpected exception to be retried",
        state=site.logs,
    )
    site.query("ALTER TABLE duepost.gone RENAME TO suppression")
    site.query("UPDATE dramatiq.queue SET eta = now()")
    wait_until(lambda: site.query("SELECT 1 FROM duepost.delivery WHERE email_id = %s", ids["unexpected"]))


def test_an_undeliverable_email_is_one_warning(story: Story) -> None:
    [event] = story.events("undeliverable")
    assert event["level"] == "warning"
    assert event["fingerprint"] == ["welcome", "undeliverable", "5.1.1"]


def test_an_unknown_is_one_event(story: Story) -> None:
    [event] = story.events("unknown")
    assert event["fingerprint"] == ["welcome", "unknown", "-"]


def test_a_render_error_is_one_event_however_often_it_is_retried(story: Story) -> None:
    assert len([event for event in story.sentry.events if "newsletter" in (event.get("fingerprint") or [])]) == 1


def test_a_circuit_that_opens_is_one_event(story: Story) -> None:
    assert len([event for event in story.sentry.events if "The relay fails" in str(event)]) == 1


def test_an_unexpected_exception_is_one_event_however_often_it_is_retried(story: Story) -> None:
    assert len([event for event in story.sentry.events if "exception" in event]) == 1


def test_a_retry_is_no_event(story: Story) -> None:
    assert len(story.sentry.events) == 5


def test_release_and_environment_are_set(story: Story) -> None:
    assert {event["environment"] for event in story.sentry.events} == {"test"}
    assert all(str(event["release"]).startswith("duepost@") for event in story.sentry.events)


def test_a_completed_pass_checks_in_with_the_monitor(story: Story) -> None:
    check_in = story.sentry.check_ins[0]
    assert (check_in["monitor_slug"], check_in["status"]) == ("duepost-scheduler", "ok")


def test_no_byte_of_any_email_reaches_sentry(story: Story) -> None:
    for secret in (*SECRETS, "@example.com", "World"):
        assert secret.encode() not in story.sentry.raw


def test_no_word_of_any_email_is_in_a_log_line_or_in_the_brokers_table(story: Story) -> None:
    stored = str(story.site.query("SELECT message::text FROM dramatiq.queue"))
    for secret in SECRETS:
        assert secret not in story.site.logs()
        assert secret not in stored


def test_each_attempt_is_traced_with_its_steps_and_ids_alone(story: Story) -> None:
    ended = {int(trace["tags"]["email_id"]): trace for trace in story.sentry.traces}
    trace = ended[story.ids["dead"]]
    assert trace["transaction"] == "send_email"
    assert trace["contexts"]["trace"]["op"] == "queue.process"
    assert [span["op"] for span in trace["spans"]] == [
        "duepost.wait", "duepost.render", "duepost.dialogue", "duepost.conclude",
    ]  # fmt: skip
    assert {span["parent_span_id"] for span in trace["spans"]} == {trace["contexts"]["trace"]["span_id"]}
    moments = [span[name] for span in trace["spans"] for name in ("start_timestamp", "timestamp")]
    assert moments == sorted(moments)
    assert (moments[0], moments[-1]) == (trace["start_timestamp"], trace["timestamp"])
    for each in story.sentry.traces:
        assert set(each["tags"]) <= {"email_id", "kind", "route", "verdict", "phase"}
        assert set(each["contexts"]) == {"trace"}

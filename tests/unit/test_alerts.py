# mypy: disable-error-code="no-untyped-call"
# Dramatiq is typed in part.
"""Alerts: what Sentry hears of, over real HTTP, and that nothing private goes along."""

import subprocess
import sys
from collections.abc import Iterator

import dramatiq
import psycopg2
import pytest
import sentry_sdk
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries

from actors.alerts import alerts
from actors.alerts.redaction import PrivateRetries
from actors.content.templates import RenderError
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict
from tests.sentry import Item, SentryEndpoint

SECRET = "ann@secret.example"
REFUSED = Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.RCPT, 550, "5.1.1", f"<{SECRET}>: no such user")
REFUSED_CONNECTION = Ruling(Verdict.RETRY, Scope.RELAY, Phase.CONNECT, reply="connection refused")
BROKEN = RenderError("welcome.txt", "UndefinedError: 'first_name' is undefined", 3)


@pytest.fixture
def no_sentry() -> Iterator[None]:
    """Sentry as it is before anybody starts it; whatever a test starts is ended, and what was is restored."""
    scope = sentry_sdk.get_global_scope()
    before = scope.client
    scope.set_client(None)
    yield
    sentry_sdk.get_client().close(timeout=2.0)
    scope.set_client(before)


@pytest.fixture
def sentry(no_sentry: None) -> Iterator[SentryEndpoint]:
    with SentryEndpoint() as endpoint:
        alerts.start(endpoint.dsn, environment="testing", release="duepost@1.2.3")
        yield endpoint
        sentry_sdk.get_client().close(timeout=2.0)


def only_event(sentry: SentryEndpoint) -> Item:
    sentry.wait_for(lambda sentry: sentry.events)
    sentry_sdk.flush()
    [event] = sentry.events
    return event


@pytest.mark.usefixtures("no_sentry")
@pytest.mark.parametrize("dsn", [None, ""])
def test_without_a_dsn_sentry_is_off(dsn: str | None) -> None:
    alerts.start(dsn, environment="testing", release="duepost@1.2.3")
    assert not sentry_sdk.is_initialized()


@pytest.mark.usefixtures("no_sentry")
def test_while_sentry_is_off_reports_go_nowhere() -> None:
    alerts.undeliverable(7, "welcome", REFUSED)
    alerts.unknown(7, "welcome")
    alerts.render_error(7, "welcome", template="welcome.txt", line=3)
    alerts.circuit_opened(REFUSED_CONNECTION)
    alerts.lost_claim(7, "welcome")
    alerts.check_in()


@pytest.mark.usefixtures("no_sentry")
def test_a_dsn_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="scheme"):
        alerts.start("sentry", environment="testing", release="duepost@1.2.3")


def test_an_undeliverable_email_is_a_warning(sentry: SentryEndpoint) -> None:
    alerts.undeliverable(7, "welcome", REFUSED)
    event = only_event(sentry)
    assert (event["message"], event["level"]) == ("An email was undeliverable", "warning")


def test_an_undeliverable_email_is_told_by_kind_verdict_and_codes(sentry: SentryEndpoint) -> None:
    alerts.undeliverable(7, "welcome", REFUSED)
    assert only_event(sentry)["tags"] == {
        "code": "550",
        "email_id": "7",
        "enhanced_code": "5.1.1",
        "kind": "welcome",
        "phase": "rcpt",
        "verdict": "undeliverable",
    }


def test_undeliverable_emails_are_one_issue_for_each_kind_and_enhanced_code(sentry: SentryEndpoint) -> None:
    alerts.undeliverable(7, "welcome", REFUSED)
    assert only_event(sentry)["fingerprint"] == ["welcome", "undeliverable", "5.1.1"]


def test_an_undeliverable_email_without_codes_has_none(sentry: SentryEndpoint) -> None:
    alerts.undeliverable(7, "welcome", Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.ADDRESS))
    event = only_event(sentry)
    assert event["fingerprint"] == ["welcome", "undeliverable", "-"]
    assert {"code", "enhanced_code"}.isdisjoint(event["tags"])


def test_what_a_relay_said_does_not_leave(sentry: SentryEndpoint) -> None:
    alerts.undeliverable(7, "welcome", REFUSED)
    only_event(sentry)
    assert b"secret" not in sentry.raw
    assert b"no such user" not in sentry.raw


def test_an_unknown_outcome_is_an_error(sentry: SentryEndpoint) -> None:
    alerts.unknown(7, "welcome")
    event = only_event(sentry)
    assert (event["level"], event["fingerprint"]) == ("error", ["welcome", "unknown", "-"])
    assert event["tags"] == {"email_id": "7", "kind": "welcome", "verdict": "unknown"}


def test_a_broken_template_is_an_error_that_names_file_and_line(sentry: SentryEndpoint) -> None:
    alerts.render_error(7, "welcome", template="welcome.txt", line=3)
    event = only_event(sentry)
    assert (event["level"], event["fingerprint"]) == ("error", ["welcome", "retry", "-"])
    assert event["tags"] == {
        "email_id": "7",
        "kind": "welcome",
        "line": "3",
        "template": "welcome.txt",
        "verdict": "retry",
    }


def test_an_opened_circuit_is_an_error_of_no_kind(sentry: SentryEndpoint) -> None:
    alerts.circuit_opened(REFUSED_CONNECTION)
    event = only_event(sentry)
    assert (event["level"], event["fingerprint"]) == ("error", ["-", "retry", "-"])
    assert event["tags"] == {"kind": "-", "phase": "connect", "verdict": "retry"}


def test_of_several_relays_the_one_that_fails_is_named_and_is_an_issue_of_its_own(
    sentry: SentryEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    alerts.circuit_opened(REFUSED_CONNECTION, "marketing")
    event = only_event(sentry)
    assert event["fingerprint"] == ["-", "retry", "-", "marketing"]
    assert event["tags"] == {"kind": "-", "phase": "connect", "route": "marketing", "verdict": "retry"}
    assert "sending through it is stopped: kind=- verdict=retry route=marketing" in caplog.text


def test_a_lost_claim_is_an_error(sentry: SentryEndpoint) -> None:
    alerts.lost_claim(7, "welcome")
    event = only_event(sentry)
    assert (event["level"], event["fingerprint"]) == ("error", ["welcome", "lost_claim", "-"])


def test_an_event_names_release_and_environment(sentry: SentryEndpoint) -> None:
    alerts.unknown(7, "welcome")
    event = only_event(sentry)
    assert (event["release"], event["environment"]) == ("duepost@1.2.3", "testing")


def test_a_check_in_tells_sentry_when_to_miss_it(sentry: SentryEndpoint) -> None:
    alerts.check_in()
    sentry.wait_for(lambda sentry: sentry.check_ins)
    [check_in] = sentry.check_ins
    assert (check_in["monitor_slug"], check_in["status"]) == ("duepost-scheduler", "ok")
    assert check_in["monitor_config"] == {
        "schedule": {"type": "interval", "value": 1, "unit": "minute"},
        "timezone": "UTC",
        "checkin_margin": 5,
        "max_runtime": 10,
        "failure_issue_threshold": 2,
        "recovery_threshold": 1,
    }


def test_what_others_put_into_a_scope_does_not_leave(sentry: SentryEndpoint) -> None:
    with sentry_sdk.isolation_scope() as scope:
        scope.set_user({"email": SECRET})
        scope.set_extra("address", SECRET)
        scope.set_context("email", {"address": SECRET})
        scope.add_breadcrumb(message=SECRET)
        alerts.unknown(7, "welcome")
    only_event(sentry)
    assert SECRET.encode() not in sentry.raw


#: Forked, as Dramatiq's workers are: such a process ends without running atexit's functions.
WORKER = """
import multiprocessing, sys
from actors.alerts import alerts

def work():
    alerts.start(sys.argv[1], environment="testing", release="duepost@1.2.3")
    for email_id in range(10):
        alerts.unknown(email_id, "welcome")

process = multiprocessing.get_context("fork").Process(target=work)
process.start()
process.join()
"""


def test_a_worker_process_that_ends_sends_what_it_still_has() -> None:
    with SentryEndpoint() as sentry:
        subprocess.run([sys.executable, "-c", WORKER, sentry.dsn], check=True, timeout=60)
        assert [event["tags"]["email_id"] for event in sentry.events] == [str(n) for n in range(10)]


@pytest.fixture
def broker(sentry: SentryEndpoint) -> Iterator[StubBroker]:
    """A broker built after Sentry was started, with the middleware of a worker."""
    broker = StubBroker(middleware=[Retries(), PrivateRetries()])
    yield broker
    broker.close()


@pytest.fixture
def plain_broker(sentry: SentryEndpoint) -> Iterator[StubBroker]:
    """A broker without our middleware."""
    broker = StubBroker(middleware=[Retries()])
    yield broker
    broker.close()


def run(broker: StubBroker, *errors: Exception) -> None:
    """Runs an actor for email 7 that raises these errors in turn, then succeeds."""
    waiting = list(errors)

    @dramatiq.actor(broker=broker, min_backoff=1, max_backoff=1)
    def send_email(_email_id: int) -> None:
        address = SECRET
        if waiting:
            error = waiting.pop(0)
            error.add_note(address)
            raise error

    send_email.send(7)
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    try:
        broker.join(send_email.queue_name, timeout=10_000, fail_fast=False)
        worker.join()
    finally:
        worker.stop()
    sentry_sdk.flush()


def test_an_unexpected_exception_is_reported_once_for_all_its_retries(
    broker: StubBroker, sentry: SentryEndpoint
) -> None:
    run(broker, ValueError(SECRET), ValueError(SECRET), ValueError(SECRET))
    assert sentry.messages == ["ValueError"]


def test_an_unexpected_exception_is_reported_once_without_our_middleware_too(
    plain_broker: StubBroker, sentry: SentryEndpoint
) -> None:
    run(plain_broker, ValueError(SECRET), ValueError(SECRET), ValueError(SECRET))
    assert sentry.messages == ["ValueError"]


def test_each_type_of_exception_is_reported_once(broker: StubBroker, sentry: SentryEndpoint) -> None:
    run(broker, ValueError(), KeyError(), ValueError(), KeyError())
    assert sentry.messages == ["ValueError", "KeyError"]


def test_a_retry_that_was_asked_for_is_not_reported(broker: StubBroker, sentry: SentryEndpoint) -> None:
    run(broker, dramatiq.errors.Retry(delay=1))
    assert sentry.messages == []


def test_an_exception_after_a_retry_that_was_asked_for_is_reported(broker: StubBroker, sentry: SentryEndpoint) -> None:
    run(broker, dramatiq.errors.Retry(delay=1), ValueError())
    assert sentry.messages == ["ValueError"]


def test_an_exception_is_told_by_type_and_place(broker: StubBroker, sentry: SentryEndpoint) -> None:
    run(broker, ValueError(SECRET))
    [exception] = only_event(sentry)["exception"]["values"]
    assert exception["type"] == "ValueError"
    assert exception["stacktrace"]["frames"][-1]["function"] == "send_email"
    assert exception["stacktrace"]["frames"][-1]["lineno"] > 0


def test_an_exception_is_told_with_its_actor_and_the_email_s_id(broker: StubBroker, sentry: SentryEndpoint) -> None:
    run(broker, ValueError(SECRET))
    context = only_event(sentry)["contexts"]["dramatiq"]
    assert context.pop("message_id")
    assert context == {"actor": "send_email", "queue": "default", "ids": [7], "retries": 1}


def failures() -> Iterator[Exception]:
    yield ValueError(f"invalid address {SECRET!r}")
    yield psycopg2.IntegrityError(f"DETAIL: Key (address)=({SECRET}) already exists.\n")
    yield OSError(5, SECRET, SECRET)
    yield UnicodeEncodeError("ascii", SECRET, 0, 1, SECRET)
    yield ExceptionGroup(SECRET, [ValueError(SECRET), KeyError(SECRET)])
    error = RuntimeError(SECRET)
    error.__cause__ = KeyError(SECRET)
    yield error


@pytest.mark.parametrize("failure", list(failures()), ids=lambda failure: type(failure).__name__)
def test_no_byte_of_an_exception_s_message_notes_or_locals_leaves(
    broker: StubBroker, sentry: SentryEndpoint, failure: Exception
) -> None:
    run(broker, failure)
    only_event(sentry)
    assert b"secret" not in sentry.raw
    assert b"DETAIL" not in sentry.raw


def test_an_address_among_a_message_s_arguments_does_not_leave(broker: StubBroker, sentry: SentryEndpoint) -> None:
    @dramatiq.actor(broker=broker, max_retries=0)
    def greet(address: str, *, name: str) -> None:
        raise ValueError(address, name)

    greet.send(SECRET, name=SECRET)
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    sentry.wait_for(lambda sentry: sentry.events)
    worker.stop()
    assert b"secret" not in sentry.raw


def test_the_stored_message_holds_no_trace_of_sentry_s(broker: StubBroker) -> None:
    @dramatiq.actor(broker=broker)
    def send_email(_email_id: int) -> None:
        pass

    assert send_email.send(7).options == {}

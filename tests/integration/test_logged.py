"""Without Sentry, and with it: each failure is one log line, with ids, kinds and codes, and nothing private."""

import json
import logging
import re
from collections.abc import Callable

import pytest

from actors.alerts import alerts
from actors.ruling import Phase
from models import emails
from tests.app_harness import Harness
from tests.relays import ScriptedRelay, close, reply

#: What must never be in a log: an address, a name, a subject, a body, a value of a context, a relay's text.
CANARIES = ("canary-address", "canary-name", "canary-subject", "canary-body", "canary-value", "canary-reply")

ADDRESS = "canary-address@example.com"


@pytest.fixture
def failing(harness: Harness, caplog: pytest.LogCaptureFixture) -> Callable[..., list[logging.LogRecord]]:
    """Delivers one email that fails, and gives what was logged."""
    caplog.set_level(logging.INFO)

    def deliver(**more: object) -> list[logging.LogRecord]:
        harness.schedule(
            **{"address": ADDRESS, "subject": "canary-subject", "body_text": "canary-body", "kind": "welcome", **more}
        )
        caplog.clear()
        harness.deliver()
        return failures_of(caplog)

    return deliver


def failures_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The lines about failures; none of all lines may tell what is private."""
    for record in caplog.records:
        text = logging.Formatter("%(message)s").format(record)
        assert not any(canary in text for canary in CANARIES), text
    return [record for record in caplog.records if record.name == alerts.__name__]


def facts(record: logging.LogRecord) -> dict[str, str]:
    message = record.getMessage()
    assert "\n" not in message
    return dict(re.findall(r"(\w+)=(\"(?:[^\"\\]|\\.)*\"|\S+)", message))


def test_an_undeliverable_email_is_one_line(
    relay: ScriptedRelay, failing: Callable[..., list[logging.LogRecord]]
) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 canary-reply: no such mailbox"))
    [record] = failing()
    assert record.getMessage().startswith("An email was undeliverable: ")
    assert facts(record) == {
        "kind": "welcome", "verdict": "undeliverable", "email_id": "1", "phase": "rcpt", "code": "550",
        "enhanced_code": "5.1.1",
    }  # fmt: skip


def test_an_attempt_that_is_made_again_is_one_line(
    relay: ScriptedRelay, failing: Callable[..., list[logging.LogRecord]]
) -> None:
    relay.on(Phase.RCPT, reply("450 4.2.0 canary-reply"))
    [record] = failing()
    assert facts(record)["code"] == "450"
    assert "retried" in record.getMessage()


@pytest.mark.parametrize(("on_unknown", "state"), [("resend", "scheduled"), ("hold", "unknown")])
def test_an_unknown_outcome_is_one_line_that_says_whether_it_waits_for_a_person(
    harness: Harness,
    relay: ScriptedRelay,
    failing: Callable[..., list[logging.LogRecord]],
    on_unknown: str,
    state: str,
) -> None:
    harness.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('welcome', %(o)s)", o=on_unknown)
    relay.on(Phase.DOT, close())
    [record] = failing()
    assert (facts(record)["verdict"], facts(record)["state"]) == ("unknown", state)


def test_a_broken_template_is_one_line_each_time_it_fails(
    harness: Harness, caplog: pytest.LogCaptureFixture, failing: Callable[..., list[logging.LogRecord]]
) -> None:
    harness.template("hi", subject="s", text="{{ missing.canary }}")
    email = {"template": "hi", "context": {"a": "canary-value"}, "subject": None, "body_text": None}
    [record] = failing(**email)
    assert facts(record)["template"] == "hi.txt"
    caplog.clear()
    harness.make_due()
    harness.deliver()
    [again] = failures_of(caplog)
    assert "again" in again.getMessage()


def test_a_relay_that_fails_is_one_line_however_many_emails_wait(
    harness: Harness, relay: ScriptedRelay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    relay.on(Phase.BANNER, reply("554 5.7.1 canary-reply"))
    for _ in range(5):
        harness.schedule(address=ADDRESS)
    harness.deliver()
    harness.deliver()
    [record] = failures_of(caplog)
    assert facts(record)["code"] == "554"
    assert "stopped" in record.getMessage()


def test_an_email_whose_worker_ended_is_one_line(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    email_id = harness.schedule(address=ADDRESS)
    harness.enqueue()
    claimed = harness.claim(email_id)
    assert claimed is not None
    caplog.clear()
    harness.app.rescuer.mark_lost(emails.Lost(claimed.id, claimed.claim, claimed.kind, 0, "default"))
    [record] = failures_of(caplog)
    assert facts(record) == {"kind": "welcome", "verdict": "unknown", "email_id": str(email_id), "state": "scheduled"}


def test_a_kind_cannot_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    kind = "a\n[ERROR] forged email_id=7 \x1b[31m"
    alerts.lost_claim(1, kind)
    alerts.render_error(2, kind, template="a b.txt", line=3)
    for record in failures_of(caplog):
        assert json.loads(facts(record)["kind"]) == kind
        assert "\x1b" not in record.getMessage()

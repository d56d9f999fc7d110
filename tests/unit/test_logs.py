"""Log lines as JSON: each parses, whatever it is about, and says nothing private."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from actors.alerts import alerts
from actors.alerts.logs import fields_of, json_lines
from actors.ruling import Phase, Ruling, Scope
from actors.settings import BadSettings, settings
from models.words import Verdict

SECRET = "ann@secret.example"
REFUSED = Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.RCPT, 550, "5.1.1", f"<{SECRET}>: no such user")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What the root logger writes."""
    handler = logging.StreamHandler(stream := io.StringIO())
    handler.setFormatter(json_lines())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.setLevel(before)
    root.removeHandler(handler)


def only_line(stream: io.StringIO) -> dict[str, object]:
    [line] = stream.getvalue().splitlines()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def test_an_alert_is_an_event_with_its_tags_as_fields(stream: io.StringIO) -> None:
    alerts.undeliverable(7, "welcome", REFUSED)
    line = only_line(stream)
    at = datetime.fromisoformat(str(line.pop("time")))
    assert at.utcoffset() == timedelta(0)
    assert isinstance(line.pop("process"), int)
    assert line == {
        "level": "warning", "event": "An email was undeliverable", "logger": "actors.alerts.alerts", "kind": "welcome",
        "verdict": "undeliverable", "email_id": 7, "phase": "rcpt", "code": 550, "enhanced_code": "5.1.1",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ['a"b', "line\nline", "\r\u2028\u0085", "nul\0", "\ud800", "{}", "\x1b[31m", "%s %d"])
def test_a_hostile_kind_stays_within_its_line(stream: io.StringIO, kind: str) -> None:
    alerts.undeliverable(7, kind, REFUSED)
    assert stream.getvalue().isascii()
    assert only_line(stream)["kind"] == kind


def test_any_other_line_is_an_event_too(stream: io.StringIO) -> None:
    logging.getLogger("elsewhere").warning("%d of %s", 3, "them")
    line = only_line(stream)
    assert (line["event"], line["level"], line["logger"]) == ("3 of them", "warning", "elsewhere")


def test_an_exception_is_told_without_its_message(stream: io.StringIO) -> None:
    failure = ValueError(SECRET)
    logging.getLogger("elsewhere").error("It failed.", exc_info=failure)
    assert "ValueError" in str(only_line(stream)["exception"])
    assert "secret" not in stream.getvalue()


def test_a_field_takes_no_place_of_what_each_line_has(stream: io.StringIO) -> None:
    taken = {"time": 1, "level": 2, "logger": 3, "process": 4, "event": 5, "_record": 6, "kind": "welcome"}
    logging.getLogger("elsewhere").warning("told", extra=fields_of("It happened", taken))
    line = only_line(stream)
    assert (line["event"], line["level"], line["logger"], line["kind"]) == (
        "It happened", "warning", "elsewhere", "welcome",
    )  # fmt: skip
    assert datetime.fromisoformat(str(line["time"])).utcoffset() == timedelta(0)
    assert line["process"] != 4
    assert "_record" not in line


def test_a_stack_is_not_told(stream: io.StringIO) -> None:
    logging.getLogger("elsewhere").error("It failed.", stack_info=True)
    assert "stack_info" not in only_line(stream)


@pytest.mark.parametrize("value", ["xml", "", "json,text"])
def test_another_format_is_a_bad_setting(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DUEPOST_LOG", value)
    settings.cache_clear()
    with pytest.raises(BadSettings, match=r"^DUEPOST_LOG: must be text or json$"):
        settings()
    settings.cache_clear()

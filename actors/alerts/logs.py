"""How log lines look: text for people, or a JSON object in each line for what collects them.

Dramatiq's, uvicorn's and our own lines go through the standard library's logging alike; structlog makes JSON of them.
"""

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from actors.alerts.redaction import install, private_traceback

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter
    from structlog.typing import EventDict

#: What a record has of an event that is told in fields: its sentence, and the fields.
EVENT: Final = "duepost_event"
FIELDS: Final = "duepost_fields"


class LogFormat(StrEnum):
    """What DUEPOST_LOG says."""

    TEXT = "text"
    JSON = "json"


def json_lines() -> "ProcessorFormatter":
    """Makes a record one line of JSON, in ASCII: event, its fields, time (UTC), process, level, logger."""
    # A tenth of a second, at the start of each command: only where JSON is asked for.
    from structlog.processors import JSONRenderer  # noqa: PLC0415
    from structlog.stdlib import ProcessorFormatter, add_log_level, add_logger_name  # noqa: PLC0415

    return ProcessorFormatter(
        foreign_pre_chain=[_event, _time_and_process, _private_exception, add_log_level, add_logger_name],
        processors=[ProcessorFormatter.remove_processors_meta, JSONRenderer()],
    )


def _event(_logger: object, _level: str, line: "EventDict") -> "EventDict":
    # What each line has comes after the fields: no field of an event takes its place.
    fields: Mapping[str, object] = getattr(line["_record"], FIELDS, {})
    told = {name: value for name, value in fields.items() if value is not None}
    return {**told, **line, "event": getattr(line["_record"], EVENT, None) or line["event"]}


def _time_and_process(_logger: object, _level: str, line: "EventDict") -> "EventDict":
    record = line["_record"]
    line["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
    line["process"] = record.process
    return line


def _private_exception(_logger: object, _level: str, line: "EventDict") -> "EventDict":
    record = line["_record"]
    line.pop("exc_info", None)
    line.pop("stack_info", None)
    if record.exc_info and record.exc_info[1] is not None:
        line["exception"] = private_traceback(record.exc_info[1])
    elif record.exc_text:
        line["exception"] = record.exc_text
    return line


def fields_of(sentence: str, fields: Mapping[str, object]) -> dict[str, object]:
    """What goes along with a log line as `extra`, so that JSON has its parts."""
    return {EVENT: sentence, FIELDS: fields}


def start(format_: LogFormat) -> None:
    """Lets the root logger's handlers write so; text is left as it was set up. Safe to repeat."""
    if format_ is LogFormat.JSON:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(json_lines())


def start_of_command(format_: LogFormat, level: int = logging.WARNING) -> None:
    """Sets up logging for a command that stays: what is of this level or worse goes to stderr."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    install()
    start(format_)

"""How log lines look: text for people, or a JSON object in each line for what collects them.

The standard library's logging carries them, as Dramatiq's, uvicorn's and our own lines go through it alike.
"""

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

from actors.alerts.redaction import install, private_traceback

#: What a record has of an event that is told in fields: its sentence, and the fields.
EVENT: Final = "duepost_event"
FIELDS: Final = "duepost_fields"

#: What each line has; no field of an event is called so.
OWN: Final = ("time", "level", "event", "logger", "process")


class LogFormat(StrEnum):
    """What DUEPOST_LOG says."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """A record as one line of JSON, in ASCII: time (UTC), level, event, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, EVENT, None) or record.getMessage(),
            "logger": record.name,
            "process": record.process,
        }
        fields: Mapping[str, object] = getattr(record, FIELDS, {})
        line.update({name: value for name, value in fields.items() if name not in OWN and value is not None})
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = private_traceback(record.exc_info[1])
        elif record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, default=str)


def fields_of(sentence: str, fields: Mapping[str, object]) -> dict[str, object]:
    """What goes along with a log line as `extra`, so that JSON has its parts."""
    return {EVENT: sentence, FIELDS: fields}


def start(format_: LogFormat) -> None:
    """Lets the root logger's handlers write so; text is left as it was set up. Safe to repeat."""
    if format_ is LogFormat.JSON:
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())


def start_of_command(format_: LogFormat, level: int = logging.WARNING) -> None:
    """Sets up logging for a command that stays: what is of this level or worse goes to stderr."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    install()
    start(format_)

"""How a check of `duepost doctor`, or of the console's first page, comes out."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import psycopg2

from duepost.commands.context import explain
from models.errors import DuepostError


class Health(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


#: What a check has seen: how it is, and a line that says what happened and which command is next.
Looked = tuple[Health, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's line."""

    check: str
    health: Health
    detail: str


#: Readable on a light and on a dark terminal: yellow is faint on the one, blue on the other.
STYLES = {Health.OK: "green", Health.WARNING: "bold magenta", Health.FAILED: "bold red"}


def checked(check: str, look: Callable[[], Looked]) -> Finding:
    """One check's finding. One that cannot look has failed, and says why; the others go on."""
    try:
        health, detail = look()
    except psycopg2.Error as error:
        health, detail = Health.FAILED, str(explain(error))
    except DuepostError as error:
        health, detail = Health.FAILED, str(error)
    return Finding(check, health, detail)

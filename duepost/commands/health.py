"""How a check of `duepost doctor` comes out."""

from dataclasses import dataclass
from enum import StrEnum


class Health(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's line."""

    check: str
    health: Health
    detail: str


#: Readable on a light and on a dark terminal: yellow is faint on the one, blue on the other.
STYLES = {Health.OK: "green", Health.WARNING: "bold magenta", Health.FAILED: "bold red"}

"""What the demo schedules and what it expects: a JSON Lines file, its extra keys taken apart."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from duepost.commands.jsonl import EMAILS, ENCODING, ON_ERROR, BadLine, ItemLine, read_items
from models.words import Outcome

HERE = Path(__file__).parent
SAMPLE = HERE / "sample.jsonl"
TEMPLATES = HERE / "templates"

#: Keys of a line beside the arguments of schedule_email, and what they say.
EXTRA_KEYS = {
    "scheduled_in": "seconds from now, instead of scheduled_at",
    "expires_in": "seconds from now, instead of expires_at",
    "expect": 'how many recipients end how, such as {"sent": 1}; sent for each is the default',
    "clear": "'in time' or 'too late': cleared before it is due, or once it is on its way",
    "hasten": "why its retry is brought forward by an operator",
    "mend": "the template that is mended when it has failed, and its retry brought forward",
}


@dataclass(frozen=True, slots=True)
class PlannedEmail:
    """One email of the demo: the arguments of schedule_email, what is done to it, and what is expected of it."""

    line: int
    arguments: Mapping[str, object]
    expected: Mapping[str, int]
    clear: str | None = None
    hasten: str | None = None
    mend: str | None = None

    @property
    def what(self) -> str:
        """What this one shows, in a few words."""
        kind, users = self.arguments["kind"], self.arguments.get("users")
        descriptions = {
            f"cleared {self.clear}": self.clear,
            f"template error, mended later ({self.mend})": self.mend,
            f"{self.hasten}, retried": self.hasten,
            f"{kind} to {len(users) if isinstance(users, list) else 1} users": isinstance(users, list) and users[1:],
            f"{kind} that expires": self.expected.get(Outcome.EXPIRED),
            f"{kind} to a dead address": self.expected.get(Outcome.UNDELIVERABLE),
        }
        return next((words for words, applies in descriptions.items() if applies), str(kind))


def read_plan(path: Path | None) -> list[PlannedEmail]:
    """The emails of a user's file, or of the bundled sample.

    Raises:
        BadLine: a line is wrong; its number and field are named.
        OSError: the file cannot be read.
    """
    source = path or SAMPLE
    with source.open(encoding=ENCODING, errors=ON_ERROR) as lines:
        return [_planned(line, source.name) for line in read_items(lines, source.name, EMAILS.with_keys(EXTRA_KEYS))]


def _planned(line: ItemLine, name: str) -> PlannedEmail:
    arguments = dict(line.arguments)
    extra = {key: arguments.pop(key) for key in EXTRA_KEYS if key in arguments}
    for key, target in (("scheduled_in", "scheduled_at"), ("expires_in", "expires_at")):
        if key in extra:
            arguments[target] = _moment(extra[key], f"{name}: line {line.number}: {key}")
    if extra.get("clear") not in {None, "in time", "too late"}:
        raise BadLine(f"{name}: line {line.number}: clear: must be 'in time' or 'too late'")
    users = arguments.get("users")
    copies = len(set(users)) if isinstance(users, list) else 1
    return PlannedEmail(
        line=line.number,
        arguments=arguments,
        expected=_expected(extra.get("expect", {"sent": copies}), f"{name}: line {line.number}: expect"),
        **{key: _text(extra.get(key), f"{name}: line {line.number}: {key}") for key in ("clear", "hasten", "mend")},
    )


def _moment(value: object, place: str) -> datetime:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 < value < 1e9:
        raise BadLine(f"{place}: must be a number of seconds")
    return datetime.now(UTC) + timedelta(seconds=value)


def _text(value: object, place: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise BadLine(f"{place}: must be a string")
    return value


def _expected(value: object, place: str) -> Counter[str]:
    outcomes = {str(outcome) for outcome in Outcome}
    if isinstance(value, str):
        value = {value: 1}
    if (
        not isinstance(value, dict)
        or not set(value) <= outcomes
        or not all(isinstance(count, int) and count > 0 for count in value.values())
    ):
        raise BadLine(f'{place}: must be an outcome, or counts of outcomes such as {{"sent": 1}}')
    return Counter(value)

"""Items from JSON Lines: the arguments of schedule_email or schedule_message as keys, a line each."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from duepost.arguments import (
    ARGUMENTS,
    MESSAGE_ARGUMENTS,
    Argument,
    ListArgument,
    LocalTimeArgument,
    NewEmail,
    NewMessage,
    PayloadArgument,
    TimeArgument,
    checked_local_time,
    checked_time,
    is_storable,
    texts,
)
from models.errors import DuepostError

#: How a file is opened: with or without a byte order mark; what is not UTF-8 is left for its line to be named.
ENCODING, ON_ERROR = "utf-8-sig", "surrogateescape"

#: Python reads no whole number of more than 4,300 digits.
MANY_DIGITS = 4_000

#: By sort of argument, what looks at its text.
_CHECKS: Mapping[type[Argument], Callable[[str], str]] = {
    TimeArgument: checked_time,
    LocalTimeArgument: checked_local_time,
}

#: What stands for a byte that is not UTF-8.
NOT_UTF8 = re.compile("[\ud800-\udfff]")


class BadLine(DuepostError):
    """A line is wrong: the message names the file, the line's number, the field, and what would be right."""


@dataclass(frozen=True, slots=True)
class ItemLine:
    """One line.

    Attributes:
        number: from 1.
        length: in characters.
        arguments: what it says; its numbers are as near as Python's own come.
        text: its JSON as it is written.
    """

    number: int
    length: int
    arguments: dict[str, object]
    text: str = ""


@dataclass(frozen=True, slots=True)
class Form:
    """What lines hold.

    Attributes:
        arguments: the keys that a line may have.
        required: those that it must have.
        example: a line, for errors.
    """

    arguments: Mapping[str, Argument]
    required: Collection[str]
    example: str

    def with_keys(self, extra: Collection[str]) -> "Form":
        """The same with further keys, whose values are not checked here."""
        return Form({**self.arguments, **dict.fromkeys(extra, ANYTHING)}, self.required, self.example)


#: The value of a key that is checked elsewhere.
ANYTHING = PayloadArgument("Any JSON.")

EMAILS = Form(ARGUMENTS, sorted(NewEmail.__required_keys__), '{"kind": "welcome", "address": "ann@example.com"}')
MESSAGES = Form(
    MESSAGE_ARGUMENTS,
    [name for name in MESSAGE_ARGUMENTS if name in NewMessage.__required_keys__],
    '{"kind": "news", "endpoint": "team", "payload": {"text": "Hello"}}',
)


def read_items(lines: Iterable[str], name: str, form: Form) -> Iterator[ItemLine]:
    """Reads and checks lines; blank ones are skipped. What only the database can judge is left to it.

    Args:
        lines: the lines of a file, opened as `ENCODING` and `ON_ERROR` say.
        name: the file's name, for errors.
        form: what they hold.

    Raises:
        BadLine: a line is wrong.
    """
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix("\ufeff").strip() if number == 1 else line.strip()
        if text:
            yield ItemLine(number, len(text), _arguments(text, f"{name}: line {number}", form), text)


def _arguments(line: str, place: str, form: Form) -> dict[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        doubled = next((key for key in keys if keys.count(key) > 1), None) if len(set(keys)) < len(keys) else None
        if doubled is not None:
            raise BadLine(f"{place}: {doubled}: given twice")
        return dict(pairs)

    if NOT_UTF8.search(line):
        raise BadLine(f"{place}: not UTF-8")
    try:
        # The line itself is what is scheduled: how many digits Python reads is of no concern.
        found = json.loads(line, object_pairs_hook=unique, parse_constant=_no_constant, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise BadLine(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise BadLine(f"{place}: not JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadLine(f"{place}: must be an object such as {form.example}")
    for key, value in found.items():
        _check(key, value, f"{place}: {key}", form.arguments)
    given = {key: value for key, value in found.items() if value is not None}
    for name in form.required:
        if name not in given:
            raise BadLine(f"{place}: {name}: must be given")
    return given


def _check(key: str, value: object, place: str, arguments: Mapping[str, Argument]) -> None:
    if key not in arguments:
        raise BadLine(f"{place}: unknown; known are {', '.join(arguments)}")
    argument = arguments[key]
    if value is not None and not isinstance(value, argument.json_type):
        raise BadLine(f"{place}: must be {argument.json_form}")
    if (
        isinstance(argument, ListArgument)
        and isinstance(value, list)
        and not all(isinstance(each, str) for each in value)
    ):
        raise BadLine(f"{place}: must be {argument.json_form}")
    if not all(is_storable(text) for text in texts(value)):
        raise BadLine(f"{place}: must not contain NUL or a lone surrogate")
    check = _CHECKS.get(type(argument))
    if check is not None and isinstance(value, str):
        try:
            check(value)
        except ValueError as error:
            raise BadLine(f"{place}: {error}") from error


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < MANY_DIGITS else float(digits)


def _no_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")

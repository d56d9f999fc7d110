"""Emails from JSON Lines: the arguments of schedule_email as keys, one email a line. A bad line is named."""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from duepost.arguments import ARGUMENTS, TimeArgument, checked_time
from models.errors import DuepostError

#: How a file is opened: with or without a byte order mark; what is not UTF-8 is left for its line to be named.
ENCODING, ON_ERROR = "utf-8-sig", "surrogateescape"

#: Python reads no whole number of more than 4,300 digits.
MANY_DIGITS = 4_000

#: What stands for a byte that is not UTF-8.
NOT_UTF8 = re.compile("[\ud800-\udfff]")


class BadLine(DuepostError):
    """A line is wrong: the message names the file, the line's number, the field, and what would be right."""


@dataclass(frozen=True, slots=True)
class EmailLine:
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


def read_emails(lines: Iterable[str], name: str, *, extra: Collection[str] = ()) -> Iterator[EmailLine]:
    """Reads and checks lines; blank ones are skipped. What only the database can judge is left to it.

    Args:
        lines: the lines of a file, opened as `ENCODING` and `ON_ERROR` say.
        name: the file's name, for errors.
        extra: further keys that are allowed; their values are not checked here.

    Raises:
        BadLine: a line is wrong.
    """
    for number, line in enumerate(lines, start=1):
        text = line.removeprefix("\ufeff").strip() if number == 1 else line.strip()
        if text:
            yield EmailLine(number, len(text), _arguments(text, f"{name}: line {number}", extra), text)


def _arguments(line: str, place: str, extra: Collection[str]) -> dict[str, object]:
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
        raise BadLine(f'{place}: must be an object such as {{"kind": "welcome", "address": "ann@example.com"}}')
    for key, value in found.items():
        _check(key, value, f"{place}: {key}", extra)
    if not isinstance(found.get("kind"), str):
        raise BadLine(f"{place}: kind: must be given")
    return {key: value for key, value in found.items() if value is not None}


def _check(key: str, value: object, place: str, extra: Collection[str]) -> None:
    if key in extra:
        return
    if key not in ARGUMENTS:
        raise BadLine(f"{place}: unknown; known are {', '.join([*ARGUMENTS, *extra])}")
    argument = ARGUMENTS[key]
    if value is not None and not isinstance(value, argument.json_type):
        raise BadLine(f"{place}: must be {argument.json_form}")
    if isinstance(value, list) and not all(isinstance(each, str) for each in value):
        raise BadLine(f"{place}: must be {argument.json_form}")
    if not all(_is_storable(text) for text in _texts(value)):
        raise BadLine(f"{place}: must not contain NUL or a lone surrogate")
    if isinstance(argument, TimeArgument) and isinstance(value, str):
        try:
            checked_time(value)
        except ValueError as error:
            raise BadLine(f"{place}: {error}") from error


def _texts(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys too, however deep."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, list):
            left += each
        elif isinstance(each, dict):
            left += [*each, *each.values()]


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < MANY_DIGITS else float(digits)


def _no_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")

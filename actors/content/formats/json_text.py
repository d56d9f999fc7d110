"""JSON as formats meet it: exact payloads that go out as they are, and answers of which nothing is certain."""

import json
from collections.abc import Mapping
from typing import NoReturn, TypeAlias

#: A value of JSON. Numbers of a payload are kept as they are written.
Json: TypeAlias = "str | int | float | bool | Mapping[str, Json] | list[Json] | None"


def json_object(text: str | bytes) -> Mapping[str, Json] | None:
    """Reads an object; None where it is none, or none that can be read. Never raises."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def number(value: Json) -> float:
    """A number that is one, infinite from 1e15 on; else 0."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if abs(value) < 1e15 else float("inf")


def word(value: Json) -> str:
    """A word such as an error's code, where it is one, in ASCII and short; else nothing."""
    is_word = isinstance(value, str) and len(value) <= 80 and value.isascii() and value.replace(".", "_").isidentifier()
    return value if isinstance(value, str) and is_word else ""


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)

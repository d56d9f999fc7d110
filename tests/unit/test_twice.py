"""What stands in SQL and in Python is the same on both sides."""

import re
from pathlib import Path

import pytest

from actors.content import addresses, mime
from duepost.arguments import ISO_TIME
from models.database import advisory_locks

ROOT = Path(__file__).parents[2]
RULES = (ROOT / "models/functions/rules.sql").read_text()


def body(function: str, text: str = RULES) -> str:
    """What a SQL function does."""
    [found] = re.findall(rf"FUNCTION duepost\.{function}\(.*?\$\$(.*?)\$\$", text, re.DOTALL)
    return str(found)


def patterns(function: str) -> list[str]:
    """The patterns that a SQL function compares with, without their anchors."""
    quoted = re.findall(r"~ E?'((?:[^']|'')*)'", body(function))
    return [each.removeprefix("^").removesuffix("$").replace("''", "'") for each in quoted]


def as_in_sql(pattern: re.Pattern[str]) -> str:
    return pattern.pattern.replace("(?:", "(")


def test_reserved_headers_are_the_same() -> None:
    [reserved] = [each for each in patterns("headers_error") if "message-id" in each]
    names = set(reserved.strip("()").split("|"))
    assert {name for name in names if not name.endswith("-.*")} == mime.RESERVED
    assert {name.removesuffix(".*") for name in names if name.endswith("-.*")} == set(mime.RESERVED_PREFIXES)


def test_a_header_s_name_is_the_same() -> None:
    assert as_in_sql(mime._HEADER_NAME) in patterns("headers_error")


def test_structured_headers_are_the_same() -> None:
    name, value = patterns("is_structured")
    assert name.strip("()") == as_in_sql(mime._STRUCTURED_NAME)
    assert value == as_in_sql(mime._STRUCTURED_VALUE)


def test_a_time_with_its_zone_is_the_same() -> None:
    assert patterns("has_zone") == [as_in_sql(ISO_TIME)]


@pytest.mark.parametrize(
    ("function", "said", "most"),
    [
        ("is_address", "octet_length(value) <= {}", addresses.LONGEST_ADDRESS),
        ("is_address", "BETWEEN 1 AND {}", addresses.LONGEST_LOCAL_PART),
        ("ascii_domain", "length(result) <= {}", addresses.LONGEST_DOMAIN),
        ("is_label", "length(label) <= {}", addresses.LONGEST_LABEL),
        ("mailbox_error", "line_error(argument, value, {})", addresses.LONGEST_MAILBOX),
        ("structured_header_error", "> {}", mime.LONGEST_LINE),
    ],
)
def test_a_limit_is_the_same(function: str, said: str, most: int) -> None:
    assert said.format(most) in body(function)


def test_advisory_locks_are_those_of_the_register() -> None:
    sessions = (ROOT / "models/functions/sessions.sql").read_text()
    assert f"lock.classid = {advisory_locks.WORKER} " in sessions
    for path in [*ROOT.glob("models/**/*.sql"), *ROOT.glob("models/**/*.py"), *ROOT.glob("actors/**/*.py")]:
        if "migrations" not in path.parts and path.name != "advisory_locks.py":
            keys = re.findall(r"pg_\w*advisory\w*\((\w+)|classid = (\w+)", path.read_text())
            assert path.name == "sessions.sql" or not keys, path

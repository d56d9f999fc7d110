"""Letters beyond ASCII: the lists that SQL and the workers share, read out of the migration that has them."""

import re
from collections.abc import Sequence
from pathlib import Path

_SQL = (Path(__file__).parent / "migrations" / "0008_mailboxes.sql").read_text(encoding="utf-8")

#: A string constant; those on lines that follow each other are one.
_LITERAL = re.compile(r"(?P<escaped>E?)'(?P<text>[^']*(?:'\n *'[^']*)*)'")


def _literals(function: str) -> list[str]:
    """The string constants of a function, without those that have escapes."""
    body = _SQL.partition(f"CREATE FUNCTION duepost.{function}(")[2].partition("$$;")[0]
    return [re.sub(r"'\n *'", "", found["text"]) for found in _LITERAL.finditer(body) if not found["escaped"]]


_upper, _lower = _literals("lower_case")

#: Characters that a domain may be written with, as ranges of code points, each without its end.
DOMAIN_LETTERS: Sequence[tuple[int, int]] = [
    (int(first), int(end)) for first, end in re.findall(r"\[(\d+),(\d+)\)", _literals("domain_letters")[0])
]

#: For `str.translate`: the lower case of letters, as `duepost.lower_case()` has it.
LOWER_CASE = str.maketrans(
    {
        **dict(zip(_upper, _lower, strict=True)),
        "\u0130": "i\u0307",
        **{chr(code): chr(code + 32) for code in range(ord("A"), ord("Z") + 1)},
    }
)

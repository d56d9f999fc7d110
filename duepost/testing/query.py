"""Statements of the test kit itself, for whatever cursor, connection or session the test has."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from duepost.call import Paramstyle, Row

R = TypeVar("R")

#: `:name`, but no part of a cast.
_NAME = re.compile(r"(?<!:):([a-z_]+)")


@dataclass(frozen=True, slots=True)
class Query(Generic[R]):
    """A statement whose parameters are written `:name`.

    Attributes:
        sql: the statement; casts are written `CAST(… AS …)`, and it has no `%`.
        read: makes the result of the rows.
        parameters: its parameters.
    """

    sql: str
    read: Callable[[Sequence[Row]], R]
    parameters: Mapping[str, object] = field(default_factory=dict)

    def text(self, style: Paramstyle) -> str:
        """Returns the SQL in a driver's style, which has names."""
        return self.sql if style == "named" else _NAME.sub(r"%(\1)s", self.sql)


def nothing(rows: Sequence[Row]) -> None:  # there are none that matter
    """Reads nothing."""


def texts(rows: Sequence[Row]) -> list[str]:
    """Reads the first column as texts."""
    return [str(row[0]) for row in rows]

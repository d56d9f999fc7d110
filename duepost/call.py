"""One call of an SQL function: its statement in the style of any driver, and what its rows mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: A row as a sequence of its values, in the order of the columns.
Row = Sequence[object]

#: How a driver writes parameters: `%(kind)s`, `%s` (psycopg, psycopg2, Django), `:kind` (SQLAlchemy's `text()`), `$1`
#: (asyncpg, and PostgreSQL itself).
Paramstyle = Literal["pyformat", "format", "named", "numeric_dollar"]

#: Placeholders by style, of a parameter's name and its place, from 1.
_PLACEHOLDERS: Mapping[str, str] = {
    "pyformat": "%({name})s",
    "format": "%s",
    "named": ":{name}",
    "numeric_dollar": "${place}",
}

#: The styles whose parameters have names.
_NAMED = frozenset({"pyformat", "named"})


class Statement(Protocol[R_co]):
    """What can be run with any driver."""

    @property
    def parameters(self) -> Mapping[str, object]:
        """What it is given, by name."""

    @property
    def read(self) -> Callable[[Sequence[Row]], R_co]:
        """Makes the result of the rows."""

    def text(self, style: Paramstyle) -> str:
        """Returns its SQL, with its parameters' places in a driver's style."""


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A call of one of Duepost's SQL functions that is ready to be made.

    Attributes:
        function: the function's name, without the schema.
        parameters: what it is given, by argument.
        types: the SQL types of these arguments.
        read: makes the result of the rows.
        columns: what is selected of its rows; none for a function that returns one value a row.
    """

    function: str
    parameters: Mapping[str, object]
    types: Mapping[str, str]
    read: Callable[[Sequence[Row]], R]
    columns: Sequence[str] = ()

    def text(self, style: Paramstyle) -> str:
        """Returns the statement, with its parameters' places in a driver's style."""
        placeholder = _PLACEHOLDERS[style]
        arguments = ", ".join(
            f"{name} => {self._cast(name, placeholder.format(name=name, place=place))}"
            for place, name in enumerate(self.parameters, start=1)
        )
        call = f"duepost.{self.function}({arguments})"
        return f"SELECT {', '.join(self.columns)} FROM {call}" if self.columns else f"SELECT {call}"  # noqa: S608

    def statement(self, style: Paramstyle) -> tuple[str, dict[str, object] | list[object]]:
        """Returns the statement and its parameters: by name, or in their order, as the style has it.

        Raises:
            ValueError: there is no such style.
        """
        if style not in _PLACEHOLDERS:
            raise ValueError(f"paramstyle: must be one of {', '.join(_PLACEHOLDERS)}, not {style!r}")
        return self.text(style), dict(self.parameters) if style in _NAMED else list(self.parameters.values())

    def _cast(self, name: str, placeholder: str) -> str:
        """Gives a parameter its type. A driver that sends typed values is told of a text that it is one."""
        type_ = self.types[name]
        if isinstance(self.parameters[name], str) and type_ != "text":
            placeholder = f"CAST({placeholder} AS text)"
        # `::` is no cast in SQLAlchemy's `text()`.
        return f"CAST({placeholder} AS {type_})"


def value(rows: Sequence[Row]) -> object:
    """Returns the one value of the one row.

    Raises:
        LookupError: there is none.
    """
    if not rows:
        raise LookupError("the database gave no row")
    return rows[0][0]


def text_of(rows: Sequence[Row]) -> str:
    """Returns that value as a text, such as a receipt."""
    return str(value(rows))


def id_of(rows: Sequence[Row]) -> int:
    """Returns that value as an id."""
    return int(str(value(rows)))


def ids_of(rows: Sequence[Row]) -> list[int]:
    """Returns an id for each row."""
    return [int(str(row[0])) for row in rows]


def receipts_of(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """Returns an id and a receipt for each row."""
    return [(int(str(item_id)), str(receipt)) for item_id, receipt in rows]


def receipts_by_channel(rows: Sequence[Row]) -> list[tuple[int, str, str]]:
    """Returns an id, a channel and a receipt for each row."""
    return [(int(str(item_id)), str(channel), str(receipt)) for item_id, channel, receipt in rows]

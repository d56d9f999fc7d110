"""How commands print: the one way from data to a terminal or a pipe.

Whatever comes from a database, a relay, a file or an exception is text, never markup or a control sequence: it goes
through `visible`, and reaches rich as `Text`. On a terminal a table is laid out in its width; in a pipe it is
separated by tabs, one row a line, and nothing is cut.
"""

import json
import os
import re
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, TextIO

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

#: What moves the cursor to another place of a line, or to another line: a space is what people see there.
_SPACES = frozenset("\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\u2028\u2029")

#: Joiners are part of words in several scripts, and of emoji; others of their category hide or reorder text.
_JOINERS = frozenset("\u200c\u200d")

#: Categories of characters that a terminal obeys, hides, or cannot show: control, format, surrogate.
_UNSEEN = frozenset({"Cc", "Cf", "Cs"})

#: Characters of a cell that a terminal shows; `duepost show`, a pipe and --json have them all.
LONGEST_CELL = 240

#: Columns of a terminal up to which a table's column is not wrapped.
NARROW = 20

_PLAIN = re.compile(r"[\x20-\x7e]*")


def visible(text: object) -> str:
    """A value as one line that can be printed anywhere: line breaks and tabs are spaces, what is unseen is spelt out.

    Nothing else is changed or lost.
    """
    text = str(text)
    if _PLAIN.fullmatch(text):
        return text
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character in _SPACES:
        return " "
    if character in _JOINERS or unicodedata.category(character) not in _UNSEEN:
        return character
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, length: int = LONGEST_CELL) -> str:
    """Cuts a text to a number of characters: between two words if there are two, and marked with an ellipsis."""
    if len(text) <= length:
        return text
    head = text[: length - 1]
    words = head.rpartition(" ")[0].rstrip()
    return (words or head) + "…"


class Cell(NamedTuple):
    """A value that is told in fewer words on a terminal than in a pipe."""

    whole: str
    short: str


@dataclass(frozen=True, slots=True)
class Table:
    """Columns' names, and rows of as many values."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | Cell]]


def prepare_streams() -> None:
    """What the terminal's encoding lacks is spelt out: no character makes printing fail."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def say(text: str = "", *, to_copy: bool = False) -> None:
    """Prints a line; on a terminal it is wrapped between words, unless it holds what people copy."""
    if sys.stdout.isatty() and not to_copy:
        console().print(_text(text))
    else:
        _write(sys.stdout, f"{visible(text)}\n")


def warn(text: str) -> None:
    """Prints a line on stderr."""
    _write(sys.stderr, f"{visible(text)}\n")
    sys.stderr.flush()


def say_coloured(word: str, style: str, text: str, *, width: int) -> None:
    """A line that begins with a coloured word, padded to `width`; on a terminal it is wrapped beside that word."""
    if not sys.stdout.isatty():
        say(f"{word:<{width}} {text}")
        return
    grid = RichTable.grid(padding=(0, 1, 0, 0))
    grid.add_column(min_width=width, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(word, style), _text(text))
    console().print(grid)


def print_table(table: Table) -> None:
    """Prints a table: laid out on a terminal, separated by tabs in a pipe, the columns' names first."""
    if not sys.stdout.isatty():
        for row in (table.columns, *table.rows):
            _write(sys.stdout, "\t".join(map(_whole, row)) + "\n")
        return
    laid_out = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    rows = [[_short(cell) for cell in row] for row in table.rows]
    for place, name in enumerate(table.columns):
        is_narrow = max((row[place].cell_len for row in rows), default=0) <= NARROW
        laid_out.add_column(_text(name), overflow="fold", no_wrap=is_narrow)
    for cells in rows:
        laid_out.add_row(*cells)
    console().print(laid_out)


def _whole(cell: str | int | Cell) -> str:
    return visible(cell.whole if isinstance(cell, Cell) else cell)


def _short(cell: str | int | Cell) -> Text:
    return _text(shortened(visible(cell.short if isinstance(cell, Cell) else cell)))


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Prints names and values, a line for each."""
    if not sys.stdout.isatty():
        for name, value in facts:
            _write(sys.stdout, f"{visible(name)}\t{visible(value)}\n")
        return
    grid = RichTable.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        grid.add_row(_text(name), _text(value))
    console().print(grid)


def print_json(value: object) -> None:
    """Prints a value as JSON; times in ISO 8601."""
    text = json.dumps(value, default=_plain, indent=2, ensure_ascii=not _takes_unicode(sys.stdout))
    # Only strings hold such characters, and there JSON has a spelling for them.
    _write(sys.stdout, "".join(map(_json_character, text)) + "\n")


def console() -> Console:
    """A console that takes nothing for markup, emoji or anything else to be coloured."""
    return Console(markup=False, emoji=False, highlight=False)


def _text(text: str) -> Text:
    return Text(visible(text), overflow="fold")


def _write(stream: TextIO, text: str) -> None:
    if not _takes_unicode(stream):
        text = text.replace("…", "...")
    stream.write(text)


def _takes_unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().replace("-", "") == "utf8"


def _json_character(character: str) -> str:
    if character == "\n" or (character not in _SPACES and _visible_character(character) == character):
        return character
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def give_up_output() -> None:
    """Nobody reads on: what is still in the buffer goes nowhere, without a word at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

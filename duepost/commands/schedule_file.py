"""Schedules the items of a file of JSON Lines: all of them, or none."""

import io
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import psycopg2
import typer

from duepost import client
from duepost.commands import jsonl
from duepost.commands.context import BAD_INPUT, BadInput, client_database
from duepost.commands.jsonl import ENCODING, ON_ERROR, BadLine, Form, ItemLine, read_items
from duepost.commands.output import print_json, say
from duepost.commands.wording import count
from models.database.connections import Cursor
from models.errors import DuepostError

FileOption = Annotated[
    Path | None,
    typer.Option("--file", help="JSON Lines, the arguments as keys; all are scheduled, or none. - is stdin."),
]

#: Lines from which on a file shows its progress.
LONG_FILE = 1000

#: Items of a file that are scheduled in one round trip, and characters of their lines.
SET, LONGEST_SET = 1000, 16_000_000

#: How the database names what is wrong in a set.
PLACED = re.compile(r"[a-z]+\[(?P<place>\d+)\]: (?P<reason>.*)")


@dataclass(frozen=True, slots=True)
class Items:
    """What a file holds.

    Attributes:
        form: of its lines.
        schedule: schedules many, each of which is JSON in text.
    """

    form: Form
    schedule: Callable[[Cursor, Iterable[str]], list[int]]


EMAILS = Items(jsonl.EMAILS, client.schedule_lines)
MESSAGES = Items(jsonl.MESSAGES, client.schedule_message_lines)


def schedule_file(file: Path, items: Items) -> list[int]:
    """Schedules what stands in a file, or none of it; returns the ids, in the order of the lines.

    Raises:
        BadLine: a line is wrong.
        BadInput: the file cannot be read, or the database takes no such JSON.
    """
    if str(file) == "-":
        return _schedule_lines(io.TextIOWrapper(sys.stdin.buffer, encoding=ENCODING, errors=ON_ERROR), "stdin", items)
    try:
        with file.open(encoding=ENCODING, errors=ON_ERROR) as lines:
            return _schedule_lines(lines, file.name, items)
    except OSError as error:
        raise BadInput(f"--file: {file}: {error.strerror or error}") from error


def say_scheduled(ids: Sequence[int], word: str, *, as_json: bool) -> None:
    """Says how many were scheduled; in JSON, their ids."""
    if as_json:
        print_json({"ids": ids})
    else:
        say(f"Scheduled {count(len(ids), word)}.")


def _schedule_lines(lines: Iterable[str], name: str, items: Items) -> list[int]:
    found = list(read_items(lines, name, items.form))
    ids: list[int] = []
    with client_database().transaction() as cursor, progress(len(found)) as advance:
        for some in sets(found):
            ids += _schedule_set(cursor, some, name, items)
            advance(len(some))
    return ids


def _schedule_set(cursor: Cursor, lines: Sequence[ItemLine], name: str, items: Items) -> list[int]:
    cursor.execute("SAVEPOINT one_set")
    try:
        return items.schedule(cursor, [line.text for line in lines])
    except psycopg2.Error as error:
        if error.pgcode not in BAD_INPUT:
            raise
        reason = _reason(error)
        placed = PLACED.fullmatch(reason)
        if placed is not None:
            raise BadLine(f"{name}: line {lines[int(placed['place'])].number}: {placed['reason']}") from error
        # The set as a whole is no JSON to PostgreSQL: it does not say where.
        cursor.execute("ROLLBACK TO SAVEPOINT one_set")
        for line in lines:
            read_as_json(cursor, line.text, partial(_bad_line, f"{name}: line {line.number}"))
        raise BadInput(f"{name}: {reason}") from error


def read_as_json(cursor: Cursor, text: str, wrong: Callable[[str], DuepostError]) -> None:
    """Has PostgreSQL read a text as JSON.

    Raises:
        DuepostError: it cannot: what `wrong` makes of the reason.
    """
    try:
        cursor.execute("SELECT %(text)s::jsonb IS NULL", {"text": text})
    except psycopg2.Error as error:
        if error.pgcode not in BAD_INPUT:
            raise
        raise wrong(_reason(error)) from error


def _bad_line(place: str, reason: str) -> BadLine:
    return BadLine(f"{place}: {reason}")


def _reason(error: psycopg2.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split())


def sets(lines: Iterable[ItemLine]) -> Iterator[list[ItemLine]]:
    """Lines in sets that are each one round trip: not too many, and not too long."""
    some: list[ItemLine] = []
    length = 0
    for line in lines:
        if some and (len(some) >= SET or length + line.length > LONGEST_SET):
            yield some
            some, length = [], 0
        some.append(line)
        length += line.length
    if some:
        yield some


@contextmanager
def progress(length: int, label: str = "Scheduling") -> Iterator[Callable[[int], object]]:
    """A bar on stderr while a long file is worked off, on a terminal only; gives what moves it on."""
    if sys.stderr.isatty() and length >= LONG_FILE:
        with typer.progressbar(length=length, label=label, file=sys.stderr) as bar:
            yield bar.update
    else:
        yield lambda _: None

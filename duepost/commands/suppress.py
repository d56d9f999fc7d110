"""`duepost suppress` and `unsuppress`: who gets nothing, by hand, and as CSV in and out."""

import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer

from duepost import operations
from duepost.commands.acting import By, Reason, order_of
from duepost.commands.ages import UNITS, moment_of
from duepost.commands.context import BadInput, Failed, Json, operator_database
from duepost.commands.output import print_json, say, warn
from duepost.commands.schedule_file import progress
from duepost.commands.wording import count
from duepost.operations import Order, TakenIn
from models.database.connections import Database

#: Columns of the CSV, in their order; of an import all but the first may be missing.
COLUMNS = ("address", "kind", "reason", "until", "source", "suppressed_at")

#: What others call them.
ALSO_CALLED: Mapping[str, str] = {"email": "address", "recipient": "address", "scope": "kind"}

#: Lines that are named where they are wrong; of the others only the number is.
NAMED = 10

Kind = Annotated[str | None, typer.Option(help="Of this kind alone; without it, of all emails.")]


def suppress(
    address: Annotated[str | None, typer.Argument(help="An address, however it is spelled.")] = None,
    kind: Kind = None,
    reason: Reason = None,
    until: Annotated[
        str | None, typer.Option(help="When it ends: ISO 8601 with its zone, or an age from now such as 30d.")
    ] = None,
    import_: Annotated[
        Path | None,
        typer.Option("--import", help="A CSV file with a column address, and perhaps kind, reason, until; - is stdin."),
    ] = None,
    export: Annotated[bool, typer.Option("--export", help="Print all as CSV, as --import takes it.")] = False,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Sends nothing to an address any more: emails to it end as suppressed. Takes many out of CSV; prints all as CSV.

    Each call is one line of the journal of operators, with who and --reason. A line of the file that is wrong is named,
    and the others are taken: exit status 1.

    Examples: duepost suppress ann@example.com --kind digest --until 30d; duepost suppress --import dead.csv
    """
    if [address is not None, import_ is not None, export].count(True) != 1:
        raise BadInput("suppress: give one of ADDRESS, --import and --export")
    if export:
        _print_all(operator_database())
        return
    end = None if until is None else _end(until)
    if import_ is not None:
        usual = {"kind": kind, "reason": reason, "until": None if end is None else end.isoformat()}
        _take_in(import_, usual, order_of(by, reason), as_json=as_json)
        return
    assert address is not None  # noqa: S101 - one of the three
    answer = operations.suppress(operator_database(), order_of(by, reason), address, kind=kind, until=end)
    if as_json:
        print_json({"address": address, "kind": kind, "until": end, "receipt": answer})
        return
    what = f"emails of kind {kind}" if kind is not None else "email"
    words = {"suppressed": "is suppressed now", "changed": "is suppressed, now so", "already": "is suppressed already"}
    say(f"{address} {words[answer]}: it gets no {what}.")


def unsuppress(
    address: Annotated[str, typer.Argument(help="An address, however it is spelled.")],
    kind: Annotated[str | None, typer.Option(help="That of this kind; without it, that of all emails.")] = None,
    reason: Reason = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Lifts the suppression of an address, that of all emails or of a kind. Exit status 1 where there is none.

    Examples: duepost unsuppress ann@example.com --reason "it works again"; duepost unsuppress a@b.example --kind digest
    """
    database = operator_database()
    answer = operations.unsuppress(database, order_of(by, reason), address, kind=kind)
    if as_json:
        print_json({"address": address, "kind": kind, "receipt": answer})
    if answer == "lifted":
        if not as_json:
            say(f"{address} is not suppressed any more{f' for kind {kind}' if kind is not None else ''}.")
        return
    others = [each.kind for each in operations.suppressed(database, [address])]
    advice = "".join(
        f"; it is for {'all emails, without --kind' if each is None else f'--kind {each}'}" for each in others[:NAMED]
    )
    scope = f"kind {kind}" if kind is not None else "all emails"
    raise Failed(f"{address}: is not suppressed for {scope}{advice}")


def _end(text: str) -> datetime:
    """A moment ahead: what is an age elsewhere counts from now."""
    if text[-1:] in UNITS and text[:-1].isdigit():
        now = datetime.now(UTC)
        return now + (now - moment_of(text, "--until"))
    return moment_of(text, "--until")


# CSV -----------------------------------------------------------------------------------------------------------------


def _print_all(database: Database) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in operations.all_suppressions(database):
        writer.writerow(
            (
                each.address, each.kind, each.reason, each.until and each.until.isoformat(), each.source,
                each.suppressed_at.isoformat(),
            )
        )  # fmt: skip


def _take_in(file: Path, usual: Mapping[str, str | None], order: Order, *, as_json: bool) -> None:
    with _opened(file) as lines:
        numbers, rows = _rows(lines, str(file), usual)
    if not rows:
        raise BadInput(f"{file}: holds no address")

    with progress(len(rows), "Taking in") as tell:
        found = operations.import_suppressions(operator_database(), order, rows, file=file.name, tell=tell)
    wrong = [f"{file}: line {numbers[place]}: {said}" for place, said in found.refused.items()]
    if as_json:
        print_json({"suppressed": found.stored, "already": found.already, "refused": wrong})
    else:
        _tell(found)
    for each in wrong[:NAMED] if not as_json else []:
        warn(each)
    if wrong:
        raise Failed(f"{file}: {count(len(wrong), 'line')} not taken")


def _tell(found: TakenIn) -> None:
    were = f"; {found.already} {'was' if found.already == 1 else 'were'} so already" if found.already else ""
    say(f"{count(found.stored, 'suppression')} taken{were}.")


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    if str(file) == "-":
        yield sys.stdin
        return
    with file.open(encoding="utf-8-sig", newline="") as lines:
        yield lines


def _rows(
    lines: TextIO, name: str, usual: Mapping[str, str | None]
) -> tuple[Sequence[int], Sequence[Mapping[str, str | None]]]:
    """The rows of a CSV, with the lines that they end on; what a row does not say is as usual.

    Raises:
        BadInput: it cannot be read, or has no column of addresses.
    """
    numbers: list[int] = []
    rows: list[Mapping[str, str | None]] = []
    try:
        first = lines.readline()
        reader = csv.reader(_again(first, lines), delimiter=max(",;\t", key=first.count))
        columns: Sequence[str] | None = None
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if columns is None:
                columns = _columns(cells, name)
                if not _is_headless(cells):
                    continue
            named = zip(columns, map(str.strip, cells), strict=False)
            numbers.append(reader.line_num)
            rows.append({**usual, **{column: cell for column, cell in named if column in COLUMNS and cell}})
    except UnicodeDecodeError as error:
        raise BadInput(f"{name}: not UTF-8") from error
    except csv.Error as error:
        raise BadInput(f"{name}: line {len(numbers) + 1}: not CSV: {error}") from error
    return numbers, rows


def _again(first: str, lines: TextIO) -> Iterator[str]:
    yield first
    yield from lines


def _is_headless(cells: Sequence[str]) -> bool:
    """Whether a first row is no header, but has an address: then nothing but addresses is read."""
    return any("@" in cell for cell in cells)


def _columns(cells: Sequence[str], name: str) -> Sequence[str]:
    """The columns of a file with this first row.

    Raises:
        BadInput: it is a header, and none of the columns holds addresses.
    """
    if _is_headless(cells):
        return COLUMNS[:1]
    found = [cell.strip().lower().replace(" ", "_") for cell in cells]
    columns = [ALSO_CALLED.get(each, each) for each in found]
    if columns.count("address") != 1:
        others = ", ".join(COLUMNS[1:])
        raise BadInput(f"{name}: line 1: must name the columns, one of them address; others are {others}")
    return columns

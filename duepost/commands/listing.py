"""Lists of items, pending and finished, as `duepost list` and `duepost find` print them."""

from collections.abc import Sequence
from dataclasses import asdict

import typer

from duepost import operations
from duepost.commands.output import Cell, Table, print_json, print_table, say
from duepost.commands.wording import counts, moment
from duepost.operations import Filter, Found, Place, Section
from models.database.connections import Database

FOUND_COLUMNS = ("id", "kind", "state", "when", "to", "attempts", "words", "route", "key")

#: Rows that are read at once.
PAGE = 1_000


def print_found(database: Database, wanted: Filter, limit: int, *, finished: bool, as_json: bool) -> None:
    """Prints what fits, pending and finished, or finished alone; on stderr it says where there is more."""
    found: list[Found] = []
    after = Place(Section.FINISHED) if finished else None
    while True:
        page = operations.find_items(database, wanted, after, min(PAGE, limit - len(found)))
        found += page.items
        after = page.next
        if after is None or len(found) >= limit:
            break
    if as_json:
        print_json([asdict(each) for each in found])
        return
    if found:
        print_table(Table(FOUND_COLUMNS, [found_row(each) for each in found]))
    else:
        say("Nothing fits.")
    if after is not None:
        typer.echo(f"The first {limit}; there may be more: --limit {limit * 10}.", err=True)


def found_row(found: Found) -> Sequence[str | int | Cell]:
    """A row of a list of items, pending and finished."""
    if found.state is None:
        only = found.outcomes if found.recipients > 1 else {}
        state = counts(only) if only else next(iter(found.outcomes), "finished")
    else:
        state = f"{found.state}, kind paused" if found.is_kind_paused else str(found.state)
    whom = found.endpoint or ", ".join(found.users) or found.address or ""
    more = found.recipients - len(found.users)
    whom += f" and {more} more" if found.users and more > 0 else ""
    when = found.finished_at or found.due_at
    return (
        found.id, found.kind, state, moment(when), whom, found.attempts, found.words or "", found.route,
        found.key or "",
    )  # fmt: skip

"""What the demo shows: live on a terminal, plain lines elsewhere, and the table of outcomes at the end."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from duepost.commands.output import Table, console, say, visible
from duepost.demo.director import Progress as Standing

#: Seconds between two plain lines of progress.
PLAIN_INTERVAL = 1.0


class Display(Protocol):
    """Where progress goes."""

    def update(self, standing: Standing) -> None:
        """Shows how things stand."""

    def say(self, line: str) -> None:
        """Shows that something has happened."""


class LiveDisplay:
    """A bar that moves."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress = progress
        self._task = progress.add_task("delivering", total=total, detail="")

    def update(self, standing: Standing) -> None:
        """Moves the bar."""
        self._progress.update(self._task, completed=standing.finished, detail=_described(standing))

    def say(self, line: str) -> None:
        """A line above the bar."""
        self._progress.console.print(Text(f"  {visible(line)}"))


class PlainDisplay:
    """A line now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._next = 0.0

    def update(self, standing: Standing) -> None:
        """At most a line a second."""
        if time.monotonic() >= self._next or standing.finished == self._total:
            self._next = time.monotonic() + PLAIN_INTERVAL
            self.say(f"{standing.finished}/{self._total} finished; {_described(standing)}")

    def say(self, line: str) -> None:
        """A line."""
        say(f"  {line}")


@contextmanager
def display(total: int) -> Iterator[Display]:
    """A live display on a terminal, plain lines elsewhere."""
    if not sys.stdout.isatty():
        yield PlainDisplay(total)
        return
    columns = (
        TextColumn("  {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console()) as progress:
        yield LiveDisplay(progress, total)


class Planned(Protocol):
    """An email or a message of the demo."""

    @property
    def what(self) -> str:
        """What it shows, in a few words."""

    @property
    def expected(self) -> Mapping[str, int]:
        """How many recipients end how."""


def outcome_table(items: Mapping[int, Planned], outcomes: Mapping[int, Counter[str]]) -> tuple[Table, bool]:
    """The outcomes beside what was expected, a row for each sort of item; and whether all are as expected."""
    rows: list[tuple[str | int, ...]] = []
    groups: dict[tuple[str, str], list[int]] = {}
    for email_id, planned in items.items():
        groups.setdefault((planned.what, worded(planned.expected)), []).append(email_id)
    all_well = True
    for (what, expected), ids in groups.items():
        found = Counter(worded(outcomes[email_id]) for email_id in ids)
        well = set(found) == {expected}
        all_well &= well
        described = expected if well else "; ".join(f"{count} × {outcome}" for outcome, count in found.items())
        rows.append((what, len(ids), expected, described, "ok" if well else "NOT AS EXPECTED"))
    return Table(("email or message", "count", "expected", "outcome", ""), rows), all_well


def worded(outcomes: Mapping[str, int]) -> str:
    """Outcomes in words: `sent`, or `2 sent, 1 undeliverable`."""
    if sum(outcomes.values()) == 1:
        return next(iter(outcomes))
    words = [f"{outcomes[name]} {name}" for name in sorted(outcomes)]
    return ", ".join(words) or "nothing"


def doubled(received: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Pairs of recipient and Message-ID that arrived more than once."""
    return [pair for pair, count in Counter(received).items() if count > 1]


def _described(standing: Standing) -> str:
    parts = {
        "waiting": standing.scheduled,
        "queued": standing.queued,
        "sending": standing.sending,
        "unknown": standing.unknown,
    }
    return ", ".join(f"{count} {name}" for name, count in parts.items() if count) or "all done"

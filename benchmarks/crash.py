"""What does `kill -9` of everything cost?

Workers and watch are killed in the middle of a backlog, and started again; then PostgreSQL with them.

The sink notes each email that it has taken. Those that it had taken before the kill, and whose conclusion was not
committed, were between dot and commit: no more than so many may arrive twice, each named in the ledger as unknown once.

Run: python benchmarks/crash.py
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.site import (  # noqa: E402 - the path comes first
    Bar,
    Server,
    bars_table,
    finished,
    fresh_database,
    machine,
    migrated,
    now,
    running,
    schedule,
    server,
    sink,
    start,
    wait_for,
)

#: Seconds that the sink is given to read what had arrived when everything was killed.
SETTLING = 0.5


class Turn(NamedTuple):
    """What one kill came to: emails, and the seconds from the restart to the last conclusion."""

    delivered_before: int
    between: int
    copies: int
    unnamed: int
    lost: int
    seconds: float


def main() -> None:
    """Kills in several turns, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=5, help="turns, each with one kill")
    options.add_argument("--emails", type=int, default=3000, help="emails of the backlog")
    options.add_argument("--seed", type=int, default=1, help="for the moments of the kills")
    given = options.parse_args()
    moments = random.Random(given.seed)
    turns: dict[bool, list[Turn]] = {False: [], True: []}
    with server() as postgres, tempfile.TemporaryDirectory() as folder:
        for number in range(2 * given.turns):
            with_postgres = number >= given.turns
            with fresh_database(postgres.url, f"turn_{number}") as url:
                after = round(given.emails * moments.uniform(0.1, 0.7))
                record = Path(folder) / f"record_{number}"
                turns[with_postgres].append(turn(url, record, given.emails, after, postgres if with_postgres else None))
            print(turns[with_postgres][-1], file=sys.stderr)
    report(turns[False], turns[True], given.emails)


def turn(url: str, record: Path, emails: int, after: int, postgres: Server | None) -> Turn:
    """One kill, when so many are delivered, of PostgreSQL too where it is given."""
    with migrated(url) as database, sink(record=record) as port:
        begun = now(database)
        with running(database, port) as processes:
            schedule(database, emails)
            wait_for(lambda: finished(database, begun) >= after, pause=0.01)
            processes.kill()
            if postgres is not None:
                postgres.kill()
        if postgres is not None:
            postgres.postgres.start()
            database.close()
        time.sleep(SETTLING)
        before, concluded = len(set(taken(record))), finished(database, begun)
        restarted_at = time.monotonic()
        again = start(url, port)
        wait_for(lambda: finished(database, begun) >= emails, pause=0.05)
        seconds = time.monotonic() - restarted_at
        again.stop()
        copies = {address for address, count in Counter(taken(record)).items() if count > 1}
        named = database.execute(
            "SELECT address FROM duepost.delivery WHERE unknowns > 0 AND address = ANY (%(copies)s)",
            {"copies": list(copies)},
        )
        return Turn(
            concluded,
            before - concluded,
            sum(Counter(taken(record)).values()) - len(set(taken(record))),
            len(copies - {str(address) for (address,) in named}),
            emails - len(set(taken(record))),
            seconds,
        )


def taken(record: Path) -> list[str]:
    """The recipients of all emails that the sink has taken, one for each copy."""
    return [line.split()[2] for line in record.read_text().splitlines()]


def report(turns: list[Turn], with_postgres: list[Turn], emails: int) -> None:
    """The tables, in Markdown."""
    print(f"{emails:,} emails, workers and watch killed with SIGKILL and started again. {machine()}\n")
    print(
        "| killed | delivered before | between dot and commit | copies | of them unnamed | lost | seconds to the last |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, some in (("workers and watch", turns), ("PostgreSQL too", with_postgres)):
        for each in some:
            cells = (f"{value:.1f}" if isinstance(value, float) else str(value) for value in each)
            print(f"| {name} | {' | '.join(cells)} |")
    every = [*turns, *with_postgres]
    bars = [
        Bar("copies beyond those between dot and commit", 0, max(each.copies - each.between for each in every), True),
        Bar("copies that the ledger does not name", 0, max(each.unnamed for each in every), True),
        Bar("lost", 0, max(each.lost for each in every), True),
        Bar("seconds from the restart to the last conclusion", 5, max(each.seconds for each in turns), True),
        Bar("the same with PostgreSQL killed too", 5, max(each.seconds for each in with_postgres), True),
    ]  # fmt: skip
    print(f"\n{bars_table(bars)}")


if __name__ == "__main__":
    main()

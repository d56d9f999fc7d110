"""What does `kill -9` of everything cost?

Duepost, at its default of 16 connections and at the 128 at which it is timed, with and without `?pipelining=ahead`:
workers and watch are killed in the middle of a backlog, and started again; then PostgreSQL with them. Then its peers,
at the settings at which they are timed: all their processes are killed, and started again as their documentation says.

The sink notes each email that it has taken. Those of Duepost's that it had taken before the kill, and whose conclusion
was not committed, were between dot and commit: the workers' journals have what they had read of the replies to them,
and the rest may arrive twice, each named in the ledger as unknown once.

Run: python benchmarks/crash.py
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import psycopg2

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
    table,
    wait_for,
)
from benchmarks.systems import NEAR, SYSTEMS, Setting, System, interpreter, peer  # noqa: E402
from benchmarks.usage import kill  # noqa: E402

#: Seconds that the sink is given to read what had arrived when everything was killed.
REST = 0.5

#: Seconds after the restart at which what a peer has not done is taken for stuck.
PATIENCE = 90.0

#: Duepost's connections, and whether the next envelope goes out with the dot.
SETTINGS = ((16, False), (16, True), (128, False), (128, True))


class Turn(NamedTuple):
    """What one kill came to: emails, and the seconds from the restart to the last conclusion."""

    delivered_before: int
    between: int
    copies: int
    unnamed: int
    lost: int
    seconds: float


class PeerTurn(NamedTuple):
    """What one kill of a peer came to; the seconds are from the restart until nothing was left, or patience was."""

    delivered_before: int
    copies: int
    lost: int
    stuck: int
    seconds: float


def main() -> None:
    """Kills in several turns, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=3, help="turns of each, each with one kill")
    options.add_argument("--emails", type=int, default=4000, help="emails of the backlog")
    options.add_argument("--seed", type=int, default=1, help="for the moments of the kills")
    options.add_argument("--only", nargs="*", default=[], help="names of systems; all without it")
    given = options.parse_args()
    moments = random.Random(given.seed)
    killed: dict[str, list[Turn]] = {}
    peers: dict[str, list[PeerTurn]] = {}
    with server() as postgres, tempfile.TemporaryDirectory() as folder:

        def moment(emails: int) -> int:
            return round(emails * moments.uniform(0.2, 0.7))

        record = Path(folder) / "record"
        for _ in range(given.turns if not given.only or "Duepost" in given.only else 0):
            for connections, ahead in SETTINGS:
                for with_postgres in (False, True):
                    with fresh_database(postgres.url, "killed") as url:
                        found = turn(
                            url, record, given.emails, moment(given.emails), connections, ahead,
                            postgres if with_postgres else None,
                        )  # fmt: skip
                    killed.setdefault(called(connections, ahead, with_postgres), []).append(found)
                    print(called(connections, ahead, with_postgres), found, file=sys.stderr)
        for system in SYSTEMS:
            if not system.remaining or (given.only and system.name not in given.only):
                continue
            interpreter(system)
            setting = system.settings[NEAR]
            emails = min(given.emails, setting.emails)
            while len(peers.setdefault(system.name, [])) < given.turns:
                with fresh_database(postgres.url, "killed") as url:
                    came_to = peer_turn(system, url, record, replace(setting, emails=emails), moment(emails))
                print(system.name, came_to, file=sys.stderr)
                # A kill that came when all was done tells nothing.
                if came_to.delivered_before < emails:
                    peers[system.name].append(came_to)
    report(killed, peers, given.emails)


def called(connections: int, ahead: bool, with_postgres: bool) -> str:
    """What a row is called."""
    return f"{connections} connections{', ahead' if ahead else ''}{', PostgreSQL too' if with_postgres else ''}"


def turn(
    url: str, record: Path, emails: int, after: int, connections: int, ahead: bool, postgres: Server | None
) -> Turn:
    """One kill, when that many are delivered, of PostgreSQL too where it is given."""
    with (
        tempfile.TemporaryDirectory(prefix="duepost-bench-state-") as state,
        migrated(url) as database,
        sink(record=record) as port,
    ):
        begun = now(database)
        with running(database, port, connections, ahead, Path(state)) as processes:
            schedule(database, emails)
            wait_for(lambda: finished(database, begun) >= after, pause=0.01)
            processes.kill()
            if postgres is not None:
                postgres.kill()
        if postgres is not None:
            postgres.postgres.start()
            database.close()
        time.sleep(REST)
        before, concluded = len(set(taken(record))), finished(database, begun)
        restarted_at = time.monotonic()
        again = start(url, port, Path(state), connections, ahead)
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
            len(taken(record)) - len(set(taken(record))),
            len(copies - {str(address) for (address,) in named}),
            emails - len(set(taken(record))),
            seconds,
        )


def peer_turn(system: System, url: str, record: Path, setting: Setting, after: int) -> PeerTurn:
    """One kill of all of a peer's processes, when the sink has taken that many; PostgreSQL goes on."""
    with sink(record=record) as port:
        with peer(system, "drain", url, port, setting) as first:
            first.begin()
            wait_for(lambda: len(taken(record)) >= after, pause=0.01)
            kill(first.process.pid)
        time.sleep(REST)
        before = len(set(taken(record)))
        with peer(system, "resume", url, port, setting) as again:
            again.begin()
            restarted_at = time.monotonic()
            wait_for(
                lambda: remaining(url, system) == 0 or time.monotonic() - restarted_at > PATIENCE,
                pause=0.25,
            )
            seconds = time.monotonic() - restarted_at
            stuck = remaining(url, system)
            time.sleep(REST)
    every = taken(record)
    arrived = len(set(every))
    return PeerTurn(before, len(every) - arrived, max(0, setting.emails - arrived - stuck), stuck, seconds)


def remaining(url: str, system: System) -> int:
    """How many a peer has not yet recorded as done."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(system.remaining)
        [count] = cursor.fetchone() or (0,)
        return int(count)


def taken(record: Path) -> list[str]:
    """The recipients of all emails that the sink has taken, one for each copy."""
    return [line.split()[2] for line in record.read_text().splitlines()]


def report(killed: Mapping[str, Sequence[Turn]], peers: Mapping[str, Sequence[PeerTurn]], emails: int) -> None:
    """The tables, in Markdown."""
    print(
        f"{emails:,} emails (or as many as a peer is timed with, where those are fewer), killed with SIGKILL and"
        f" started again; a number for each turn. {machine()}\n"
    )
    if killed:
        columns = (
            "delivered before", "between dot and commit", "copies", "of them unnamed", "lost", "seconds to the last",
        )  # fmt: skip
        print("Duepost, workers and watch killed:\n")
        print(table(columns, {name: cells(turns) for name, turns in killed.items()}))
        every = [each for turns in killed.values() for each in turns]
        alone = [each.seconds for name, turns in killed.items() for each in turns if "PostgreSQL" not in name]
        too = [each.seconds for name, turns in killed.items() for each in turns if "PostgreSQL" in name]
        bars = [
            Bar("copies after a kill, at the most", 2, max(each.copies for each in every), True),
            Bar("copies beyond those between dot and commit", 0, max(e.copies - e.between for e in every), True),
            Bar("copies that the ledger does not name", 0, max(each.unnamed for each in every), True),
            Bar("lost", 0, max(each.lost for each in every), True),
            Bar("seconds from the restart to the last conclusion", 5, max(alone), True),
            Bar("the same with PostgreSQL killed too", 5, max(too), True),
        ]
        print(f"\n{bars_table(bars)}\n")
    if peers:
        print(f"Its peers; stuck is what they had not done {PATIENCE:.0f} s after the restart:\n")
        names = ("delivered before", "copies", "lost", "stuck", "seconds to the last")
        print(table(names, {name: cells(turns) for name, turns in peers.items()}))


def cells(turns: Sequence[Sequence[float]]) -> list[str]:
    """A cell for each thing that was counted, with a number for each turn."""
    columns = zip(*turns, strict=True)
    return [
        ", ".join(f"{value:.1f}" if isinstance(value, float) else f"{value:,}" for value in each) for each in columns
    ]


if __name__ == "__main__":
    main()

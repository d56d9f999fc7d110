"""How fast, next to others? Duepost and its peers in turns, on one server, into one sink.

Each peer is installed from PyPI into an environment of its own. Four scenes: a sink without latency, each at its own
defaults; the same, each at the settings that a sweep found best for it (`benchmarks/sweep.py`); a sink 20 ms away with
16 connections for each; the same with as many connections as suit each, at most 128. Every turn has a fresh database.
Jobs and rows are stored, and processes are up, before the clock runs; Duepost's time includes its scheduler. A peer's
jobs hold an address; Duepost's and django-post_office's rows hold the whole text.

Prints a Markdown table of medians, the bars, and what machine it was; draws a chart where it is told.

Run: python benchmarks/against_peers.py --turns 3
"""

import argparse
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.chart import chart  # noqa: E402 - the path comes first
from benchmarks.site import (  # noqa: E402
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
    seconds_to_last,
    server,
    sink,
    table,
    wait_for,
)
from benchmarks.systems import (  # noqa: E402
    FAR,
    FAR_OWN,
    NEAR,
    SCENES,
    SYSTEMS,
    Setting,
    System,
    drain,
    interpreter,
    scaled,
)
from benchmarks.usage import cpu_seconds, largest_megabytes  # noqa: E402

DUEPOST, AHEAD = "Duepost", "Duepost, `?pipelining=ahead`"


@dataclass
class Measured:
    """Emails a second by system and scene, turn by turn; and what Duepost's 1,000 emails cost."""

    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def add(self, system: System, scene: str, rate: float) -> None:
        """One turn's rate, which is also told."""
        self.rates.setdefault((system.name, scene), []).append(rate)
        print(f"{scene}: {system.name} {rate:,.0f}/s", file=sys.stderr)

    def median(self, name: str, scene: str) -> float | None:
        """Emails a second; none where the scene was left out."""
        rates = self.rates.get((name, scene))
        return statistics.median(rates) if rates else None


def main() -> None:
    """Runs all turns, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=3, help="turns; medians are shown")
    options.add_argument("--share", type=float, default=1.0, help="of the emails of each turn, for a quick look")
    options.add_argument("--only", nargs="*", default=[], help="names of systems; all without it")
    options.add_argument("--scenes", nargs="*", default=SCENES, help="scenes; all without it")
    options.add_argument("--chart", type=Path, help="an SVG file for the rates without latency")
    given = options.parse_args()
    systems = [each for each in SYSTEMS if not given.only or each.name in given.only]
    for each in systems:
        interpreter(each)
    measured = Measured()
    with server() as postgres, sink() as near, sink(latency=20) as far:
        for turn in range(given.turns):
            for scene in given.scenes:
                for system in systems:
                    if scene not in system.settings:
                        continue
                    setting = scaled(system.settings[scene], given.share)
                    port = far if scene in (FAR, FAR_OWN) else near
                    with fresh_database(postgres.url, f"turn_{turn}") as own:
                        seconds = (
                            drain(system, own, port, setting)
                            if system.script
                            else duepost_turn(system, own, port, setting, postgres, measured if scene == NEAR else None)
                        )
                    measured.add(system, scene, setting.emails / seconds)
    print(report(measured, systems, given.turns))
    if given.chart:
        peers = [each.name for each in systems if not each.is_limit]
        given.chart.write_text(
            chart({name.replace("`", ""): measured.median(name, NEAR) or 0 for name in peers}), encoding="utf-8"
        )


def duepost_turn(
    system: System, url: str, port: int, setting: Setting, postgres: Server, measured: Measured | None = None
) -> float:
    """Seconds from the commit that schedules them to the last row of the ledger; workers and watch are up before."""
    ahead = system.option == "ahead"
    with migrated(url) as database, running(database, port, setting.connections, ahead) as processes:
        trees = [processes.workers.pid, processes.watch.pid, postgres.postmaster]
        schedule(database, setting.emails)
        used = sum(cpu_seconds(pid) for pid in trees)
        begun = now(database)
        # Counting costs what it counts: so not often, and the end is read from the ledger.
        wait_for(lambda: finished(database, begun) == setting.emails, pause=0.5)
        if measured is not None and not ahead:
            measured.cpu.append((sum(cpu_seconds(pid) for pid in trees) - used) / setting.emails * 1000)
            measured.memory.append(largest_megabytes(processes.workers.pid))
        return seconds_to_last(database, begun)


def bars(measured: Measured, systems: Sequence[System]) -> Iterator[Bar]:
    """Each bar whose systems were measured."""

    def ratio(scene: str, ours: str, theirs: Sequence[str]) -> float | None:
        rate = measured.median(ours, scene)
        others = [other for other in (measured.median(each, scene) for each in theirs) if other]
        return rate / max(others) if rate and others else None

    def has(word: str) -> list[str]:
        return [each.name for each in systems if word in each.name]

    peers = [each.name for each in systems if each.script and not each.is_limit]
    two_trips, one_trip = has("two round trips"), has("one round trip*")
    asked: list[tuple[str, float, float | None]] = [
        ("no latency, × the fastest peer", 1.0, ratio(NEAR, DUEPOST, peers)),
        ("no latency, × PGQueuer with its own client", 1.0, ratio(NEAR, DUEPOST, has("PGQueuer, own"))),
        ("no latency, × PGQueuer with aiosmtplib", 1.0, ratio(NEAR, DUEPOST, has("PGQueuer, aio"))),
        ("no latency, × django-post_office", 1.5, ratio(NEAR, DUEPOST, has("post_office"))),
        ("no latency, × the SKIP LOCKED loop", 1.0, ratio(NEAR, DUEPOST, has("SKIP LOCKED"))),
        ("no latency, × the Django loop", 10.0, ratio(NEAR, DUEPOST, has("Django loop"))),
        ("20 ms, 16 connections, × the fastest peer", 1.0, ratio(FAR, DUEPOST, peers)),
        ("20 ms, 16 connections, × the limit of two round trips", 0.9, ratio(FAR, DUEPOST, two_trips)),
        ("20 ms, 16 connections, one round trip, × the fastest peer", 1.7, ratio(FAR, AHEAD, peers)),
        ("20 ms, 16 connections, one round trip, × its limit", 0.9, ratio(FAR, AHEAD, one_trip)),
        ("20 ms, own best, × the fastest peer", 1.0, ratio(FAR_OWN, DUEPOST, peers)),
    ]
    yield from (Bar(what, least, found) for what, least, found in asked if found is not None)
    if measured.cpu:
        yield Bar("CPU seconds for 1,000 emails, workers, scheduler and PostgreSQL", 0.9,
                  statistics.median(measured.cpu), at_most=True)  # fmt: skip
        yield Bar("MB of the larger worker process", 120, statistics.median(measured.memory), at_most=True)


def report(measured: Measured, systems: Sequence[System], turns: int) -> str:
    """The tables, in Markdown."""
    scenes = [each for each in SCENES if any(scene == each for _, scene in measured.rates)]
    rates = table(scenes, {each.name: [cell(measured, each, scene) for scene in scenes] for each in systems})
    return (
        f"Emails a second, text of 2 KB, one recipient, due now; median of {turns} turns; in brackets the connections,"
        " and after a stroke the batch, where it is a setting; Duepost's default is 16 connections here."
        f" {machine()}\n\n{rates}\n\n{bars_table(list(bars(measured, systems)))}"
    )


def cell(measured: Measured, system: System, scene: str) -> str:
    """A rate, and the settings it was reached with where they are the system's own."""
    rate = measured.median(system.name, scene)
    if rate is None:
        return "–"
    setting = system.settings[scene]
    own = [str(number) for number in (setting.connections, setting.batch) if number]
    return f"{rate:,.0f}" + (f" ({'/'.join(own)})" if own and scene != FAR else "")


if __name__ == "__main__":
    main()

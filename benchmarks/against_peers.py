"""How fast, next to others? Duepost and its peers in turns, on one server, into one sink.

Each peer is installed from PyPI into an environment of its own, at its best settings (`benchmarks/peers/`). Three
scenes: a sink without latency; a sink 20 ms away with 16 connections for each; the same with as many connections as
suits each, at most 128. Every turn has a fresh database. Jobs and rows are stored before the clock runs; Duepost's time
includes its scheduler.

Prints a Markdown table of medians, the bars, and what machine it was; draws a chart where it is told.

Run: python benchmarks/against_peers.py --turns 3
"""

import argparse
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Sequence
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
from benchmarks.usage import cpu_seconds, largest_megabytes  # noqa: E402

PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(__file__).parent / ".environments"

NEAR, FAR, FAR_OWN = "no latency", "20 ms, 16 connections", "20 ms, own best"


@dataclass(frozen=True)
class System:
    """What is measured.

    Attributes:
        name: for people.
        script: of `peers/`; none for Duepost itself.
        requirements: what its environment holds; none for this one.
        connections: for each scene, how many suit it; a scene without is left out.
        emails: for each scene, how many it is given: fewer where it is slow.
    """

    name: str
    script: str
    requirements: tuple[str, ...]
    connections: dict[str, int]
    emails: dict[str, int]


#: Seconds after which a peer that is not done is taken for stuck.
LONGEST_TURN = 300.0

SYSTEMS = (
    System("Duepost", "", (), {NEAR: 128, FAR: 16, FAR_OWN: 128}, {NEAR: 10_000, FAR: 2_000, FAR_OWN: 8_000}),
    System(
        "PGQueuer",
        "pgqueuer_peer",
        ("pgqueuer>=1.6,<2", "asyncpg>=0.30,<1", "uvloop>=0.21,<1", "aiosmtplib>=5,<6"),
        {NEAR: 32, FAR: 16, FAR_OWN: 128},
        {NEAR: 10_000, FAR: 2_000, FAR_OWN: 8_000},
    ),
    System(
        "django-post_office",
        "post_office_peer",
        ("django-post_office>=3.12,<4", "django>=5.2,<6", "psycopg[binary]>=3.2,<4"),
        {NEAR: 8, FAR: 16, FAR_OWN: 64},
        {NEAR: 10_000, FAR: 2_000, FAR_OWN: 4_000},
    ),
    System(
        "Procrastinate",
        "procrastinate_peer",
        ("procrastinate>=3.10,<4", "aiosmtplib>=5,<6"),
        {NEAR: 16, FAR: 16, FAR_OWN: 64},
        {NEAR: 4_000, FAR: 1_500, FAR_OWN: 4_000},
    ),
    System(
        "stock dramatiq-pg",
        "dramatiq_pg_peer",
        ("dramatiq-pg>=0.12,<1", "dramatiq>=1.18,<2", "psycopg2-binary>=2.9,<3", "setuptools<80"),
        {NEAR: 16, FAR: 16, FAR_OWN: 32},
        {NEAR: 3_000, FAR: 1_500, FAR_OWN: 1_500},
    ),
    System(
        "Zulip-shaped loop",
        "zulip_shaped_peer",
        ("django>=5.2,<6", "psycopg[binary]>=3.2,<4"),
        {NEAR: 1, FAR_OWN: 1},
        {NEAR: 1_000, FAR_OWN: 100},
    ),
    System(
        "limit: no table",
        "pipelined_peer",
        (),
        {NEAR: 16, FAR: 16, FAR_OWN: 128},
        {NEAR: 10_000, FAR: 2_000, FAR_OWN: 8_000},
    ),
)


@dataclass
class Measured:
    """Emails a second by system and scene, turn by turn; and what Duepost's 1,000 emails cost."""

    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

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
    options.add_argument("--scenes", nargs="*", default=[NEAR, FAR, FAR_OWN], help="scenes; all without it")
    options.add_argument("--chart", type=Path, help="an SVG file for the rates without latency")
    given = options.parse_args()
    systems = [each for each in SYSTEMS if not given.only or each.name in given.only]
    interpreters = {each.name: interpreter(each) for each in systems}
    measured = Measured()
    with server() as postgres, sink() as near, sink(latency=20) as far:
        for turn in range(given.turns):
            for scene in given.scenes:
                for system in systems:
                    if scene not in system.connections:
                        continue
                    emails = max(20, round(system.emails[scene] * given.share))
                    port = near if scene == NEAR else far
                    with fresh_database(postgres.url, f"turn_{turn}") as own:
                        seconds = (
                            peer_turn(system, interpreters[system.name], own, port, emails, system.connections[scene])
                            if system.script
                            else duepost_turn(own, port, emails, system.connections[scene], scene, postgres, measured)
                        )
                    measured.rates.setdefault((system.name, scene), []).append(emails / seconds)
                    print(f"turn {turn + 1}, {scene}: {system.name} {emails / seconds:.0f}/s", file=sys.stderr)
    print(report(measured, systems, given.turns))
    if given.chart:
        given.chart.write_text(
            chart({each.name: measured.median(each.name, NEAR) or 0 for each in systems if "limit" not in each.name}),
            encoding="utf-8",
        )


def interpreter(system: System) -> str:
    """The Python of a peer's own environment, which is made where it is not there yet."""
    if not system.requirements:
        return sys.executable
    folder = ENVIRONMENTS / system.script
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        print(f"Installing {system.name} …", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *system.requirements], check=True)
        (folder / ".ready").touch()
    return str(python)


def peer_turn(system: System, python: str, url: str, port: int, emails: int, connections: int) -> float:
    """Seconds that a peer takes, from the word to the end of its process."""
    process = subprocess.Popen(
        [python, str(PEERS / f"{system.script}.py"), url, str(port), str(emails), str(connections)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"{system.name} did not get ready")
    begun = time.monotonic()
    process.stdin.write("go\n")
    process.stdin.flush()
    try:
        status = process.wait(LONGEST_TURN)
    except subprocess.TimeoutExpired:
        process.kill()
        raise SystemExit(f"{system.name} is not done after {LONGEST_TURN:.0f} s") from None
    if status != 0:
        raise SystemExit(f"{system.name} failed")
    return time.monotonic() - begun


def duepost_turn(
    url: str, port: int, emails: int, connections: int, scene: str, postgres: Server, measured: Measured
) -> float:
    """Seconds from the commit that schedules them to the last row of the ledger; workers and watch are up before."""
    with migrated(url) as database, running(database, port, connections) as processes:
        trees = [processes.workers.pid, processes.watch.pid, postgres.postmaster]
        schedule(database, emails)
        used = sum(cpu_seconds(pid) for pid in trees)
        begun = now(database)
        # Counting costs what it counts: so not often, and the end is read from the ledger.
        wait_for(lambda: finished(database, begun) == emails, pause=0.5)
        if scene == NEAR:
            measured.cpu.append((sum(cpu_seconds(pid) for pid in trees) - used) / emails * 1000)
            measured.memory.append(largest_megabytes(processes.workers.pid))
        return seconds_to_last(database, begun)


def bars(measured: Measured, systems: Sequence[System]) -> Iterator[Bar]:
    """Each bar whose systems were measured."""

    def ratio(scene: str, peers: Sequence[str]) -> float | None:
        ours = measured.median("Duepost", scene)
        theirs = [rate for rate in (measured.median(each, scene) for each in peers) if rate]
        return ours / max(theirs) if ours and theirs else None

    names = [each.name for each in systems if each.name != "Duepost" and "limit" not in each.name]
    asked: list[tuple[str, float, float | None]] = [
        ("no latency, × PGQueuer", 1.0, ratio(NEAR, ["PGQueuer"])),
        ("no latency, × django-post_office", 1.5, ratio(NEAR, ["django-post_office"])),
        ("no latency, × Zulip-shaped loop", 10.0, ratio(NEAR, ["Zulip-shaped loop"])),
        ("20 ms, 16 connections, × the fastest peer", 1.9, ratio(FAR, names)),
        ("20 ms, 16 connections, × the limit", 0.9, ratio(FAR, ["limit: no table"])),
        ("20 ms, own best, × PGQueuer", 1.0, ratio(FAR_OWN, ["PGQueuer"])),
    ]
    yield from (Bar(what, least, found) for what, least, found in asked if found is not None)
    if measured.cpu:
        yield Bar("CPU seconds for 1,000 emails, workers, scheduler and PostgreSQL", 0.9,
                  statistics.median(measured.cpu), at_most=True)  # fmt: skip
        yield Bar("MB of the larger worker process", 120, statistics.median(measured.memory), at_most=True)


def report(measured: Measured, systems: Sequence[System], turns: int) -> str:
    """The tables, in Markdown."""
    scenes = (NEAR, FAR, FAR_OWN)
    show: Callable[[float | None], str] = lambda rate: "–" if rate is None else f"{rate:,.0f}"  # noqa: E731
    rates = table(
        scenes, {each.name: [show(measured.median(each.name, scene)) for scene in scenes] for each in systems}
    )
    return (
        f"Emails a second, text of 2 KB, one recipient, due now; median of {turns} turns. {machine()}\n\n"
        f"{rates}\n\n{bars_table(list(bars(measured, systems)))}"
    )


if __name__ == "__main__":
    main()

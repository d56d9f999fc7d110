"""Which settings suit each? Every system over 8 to 128 connections, and batches where they are a setting.

What comes out best is kept in `benchmarks/systems.py`, so that the other benchmarks use it.

Run: python benchmarks/sweep.py
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.against_peers import duepost_turn  # noqa: E402 - the path comes first
from benchmarks.site import fresh_database, machine, server, sink, table  # noqa: E402
from benchmarks.systems import FAR_OWN, NEAR, SYSTEMS, System, drain, scaled  # noqa: E402

COUNTS = (8, 16, 32, 64, 128)


def main() -> None:
    """Runs them all, and prints a table for each scene."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=1, help="turns; medians are shown")
    options.add_argument("--share", type=float, default=0.5, help="of the emails that a full turn has")
    options.add_argument("--only", nargs="*", default=[], help="names of systems; all without it")
    given = options.parse_args()
    systems = [each for each in SYSTEMS if not given.only or each.name in given.only]
    print(f"Emails a second by SMTP connections; median of {given.turns} turns. {machine()}")
    with server() as postgres, sink() as near, sink(latency=20) as far:

        def rate(system: System, scene: str, connections: int, batch: int) -> float:
            setting = scaled(replace(system.settings[scene], connections=connections, batch=batch), given.share)
            # So few connections to what is so far away do little: the rate shows it as well in less time.
            if scene == FAR_OWN:
                setting = replace(setting, emails=min(setting.emails, connections * 60))
            port = near if scene == NEAR else far
            with fresh_database(postgres.url, "sweep") as own:
                seconds = (
                    drain(system, own, port, setting)
                    if system.script
                    else duepost_turn(system, own, port, setting, postgres)
                )
            print(f"{scene}: {system.name} {connections}/{batch} {setting.emails / seconds:,.0f}/s", file=sys.stderr)
            return setting.emails / seconds

        for scene in (NEAR, FAR_OWN):
            rows = {
                name: [
                    f"{statistics.median(rate(system, scene, count, batch) for _ in range(given.turns)):,.0f}"
                    if count in system.connections
                    else "–"
                    for count in COUNTS
                ]
                for name, system, batch in variants(systems)
            }
            print(f"\n{scene.removesuffix(', own best').capitalize()}:\n")
            print(table([str(count) for count in COUNTS], rows))


def variants(systems: list[System]) -> Iterator[tuple[str, System, int]]:
    """Each system with more than one setting to try, and each of its batches."""
    for system in systems:
        if len(system.connections) > 1:
            for batch in system.batches:
                yield system.name + (f", batch {batch:,}" if len(system.batches) > 1 else ""), system, batch


if __name__ == "__main__":
    main()

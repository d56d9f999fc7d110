"""`make chaos MINUTES=n SEED=s`: runs until the time is over; status 1 as soon as something is wrong."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import Chaos, random_seed
from tests.postgres import installed_binaries

#: Seconds for which things go wrong in one run.
ONE_RUN = 120.0


def main() -> int:
    """Runs one seed after the other, each with a summary line."""
    options = argparse.ArgumentParser(prog="make chaos", description=(__doc__ or "").strip())
    options.add_argument("--minutes", type=float, default=2.0, help="how long things go wrong, altogether")
    options.add_argument("--seed", type=int, default=0, help="replays the plan of a seed; 0 draws one")
    options.add_argument("--proxy", action="store_true", help="cut the network by a proxy, never for real")
    given = options.parse_args()
    seed = given.seed or random_seed()
    until = time.monotonic() + given.minutes * 60
    with tempfile.TemporaryDirectory(prefix="duepost-chaos-") as folder:
        while (left := until - time.monotonic()) > 0:
            print(f"seed {seed}: `make chaos SEED={seed}` replays the plan", flush=True)
            logs = Path(folder) / str(seed)
            logs.mkdir()
            binaries = installed_binaries()["embedded-18"]
            report = Chaos(seed, min(left, ONE_RUN), logs, binaries, say=_say, by_proxy=given.proxy).run()
            print(report, flush=True)
            for each in report.wrong:
                print(f"  wrong: {each}")
            if report.wrong:
                kept = Path(tempfile.mkdtemp(prefix=f"duepost-chaos-{seed}-")) / "log"
                kept.write_text(report.log)
                print(f"  logs: {kept}")
                return 1
            seed += 1
    return 0


def _say(line: str) -> None:
    if sys.stdout.isatty():
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

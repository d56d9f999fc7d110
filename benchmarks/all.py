"""All benchmarks, one after the other. What they print goes into one page, as each is done; rates into the README too.

Run: python benchmarks/all.py docs, or with names of some: python benchmarks/all.py docs crash scheduling
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

#: What a section of the page is called, and the benchmark whose it is.
SECTIONS = {
    "against_peers": "Next to others",
    "sweep": "Which settings suit each",
    "lateness": "From the insert to the relay",
    "on_time": "On time",
    "priorities": "Priorities",
    "crash": "Everything killed",
    "messages": "Messages to endpoints",
    "growth": "As it grows",
    "screens": "The console's screens",
    "snapshots": "Old snapshots held",
    "scheduling": "Scheduling",
    "broker": "The broker alone",
    "gains": "What each trick gains",
}

#: What is run by its name alone: it takes 40 GB of disk.
BY_NAME = {"screens"}

HEAD = """# What was measured?

`make bench` writes this page: each section is what one benchmark printed, bars that were missed included. The machine
was shared and noisy; ratios are of turns side by side. Sections are of different days and loads: compare within one,
never between two. What the numbers mean: [performance.md](performance.md).

![Emails a second, no latency](peers.svg)
"""


def main() -> None:
    """Runs them, and writes the page again after each; the sections of those that are not run stay."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("folder", type=Path, help="where measured.md and peers.svg go")
    options.add_argument("names", nargs="*", type=benchmark, help="all but screens without it")
    given = options.parse_args()
    names = given.names or [name for name in SECTIONS if name not in BY_NAME]
    page = given.folder / "measured.md"
    found = sections(page.read_text(encoding="utf-8")) if page.exists() else {}
    for name in names:
        print(f"{SECTIONS[name]} …", file=sys.stderr)
        extra = ["--chart", str(given.folder / "peers.svg")] if name == "against_peers" else []
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *extra],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[SECTIONS[name]] = f"`python benchmarks/{name}.py`\n\n{done.stdout.strip()}"
        page.write_text(written(found), encoding="utf-8")
        if name == "against_peers":
            readme = ROOT / "README.md"
            readme.write_text(with_rates(readme.read_text(encoding="utf-8"), done.stdout), encoding="utf-8")


def with_rates(readme: str, printed: str) -> str:
    """The README with the table of rates that was printed, without the settings behind each rate."""
    table = re.findall(r"^\|.*\|$", printed.split("\n\n")[1], re.MULTILINE)
    rows = [re.sub(r" \([\d/]+\) ", " ", line) for line in table]
    rows[0] = rows[0].replace("| |", "| emails/s |", 1)
    lines = "\n".join(rows) + "\n"
    return re.sub(r"^\| emails/s \|(?:.+\n)+", lambda _: lines, readme, count=1, flags=re.MULTILINE)


def benchmark(name: str) -> str:
    """The name of a benchmark that there is."""
    if name not in SECTIONS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(SECTIONS)}")
    return name


def sections(page: str) -> dict[str, str]:
    """The sections of a page, by name."""
    parts = [part.partition("\n") for part in page.split("\n## ")[1:]]
    return {name: text.strip() for name, _, text in parts}


def written(found: dict[str, str]) -> str:
    """The page, its sections in their order."""
    return HEAD + "".join(f"\n## {name}\n\n{found[name]}\n" for name in SECTIONS.values() if name in found)


if __name__ == "__main__":
    main()

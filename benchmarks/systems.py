"""What is measured side by side: Duepost and its peers, each with the settings that a sweep found best for it."""

import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.usage import kill

PEERS = Path(__file__).parent / "peers"
ENVIRONMENTS = Path(__file__).parent / ".environments"

#: Scenes: where the sink is, and over how many connections it is spoken to.
DEFAULTS, NEAR = "no latency, own defaults", "no latency, own best"
FAR, FAR_OWN = "20 ms, 16 connections", "20 ms, own best"
SCENES = (DEFAULTS, NEAR, FAR, FAR_OWN)

#: Seconds after which a peer that is not done is taken for stuck.
LONGEST_TURN = 60.0


@dataclass(frozen=True)
class Setting:
    """How a system is run in a scene.

    Attributes:
        emails: how many it is given: fewer where it is slow.
        connections: SMTP connections of all its processes together; 0 stands for its defaults in everything.
        batch: jobs or rows of one read, where it has that setting; 0 stands for its default.
    """

    emails: int
    connections: int = 0
    batch: int = 0


@dataclass(frozen=True)
class System:
    """What is measured.

    Attributes:
        name: for people.
        settings: for each scene; a scene without is left out.
        script: of `peers/`; none for Duepost itself.
        requirements: what its environment holds.
        option: a variant of the peer; `ahead` for Duepost too.
        remaining: SQL that counts what is not yet done, for a peer that is killed; none where nothing is recorded.
        batches: values of `batch` that a sweep tries.
        connections: numbers of connections that a sweep tries.
    """

    name: str
    settings: Mapping[str, Setting]
    script: str = ""
    requirements: tuple[str, ...] = ()
    option: str = ""
    remaining: str = ""
    batches: tuple[int, ...] = (0,)
    connections: tuple[int, ...] = (8, 16, 32, 64, 128)

    @property
    def is_limit(self) -> bool:
        """Whether it records nothing: no peer, but what could be reached."""
        return self.script == "limit_peer"


PGQUEUER = ("pgqueuer>=1.6,<2", "asyncpg>=0.30,<1", "uvloop>=0.21,<1", "aiosmtplib>=5,<6")
PGQUEUER_REMAINING = "SELECT count(*) FROM pgqueuer"
UVLOOP = ("uvloop>=0.21,<1",)

# What `python benchmarks/sweep.py` finds best goes here; where two are level, the smaller one. Those without latency
# were swept; those with 20 ms are what was tried by hand.
SYSTEMS = (
    System(
        "Duepost",
        {DEFAULTS: Setting(6_000), NEAR: Setting(10_000, 64), FAR: Setting(1_500, 16), FAR_OWN: Setting(6_000, 128)},
    ),
    System(
        "Duepost, `?pipelining=ahead`",
        {NEAR: Setting(10_000, 128), FAR: Setting(2_000, 16), FAR_OWN: Setting(6_000, 128)},
        option="ahead",
    ),
    System(
        "PGQueuer, own client",
        {
            DEFAULTS: Setting(6_000),
            NEAR: Setting(12_000, 64, 200),
            FAR: Setting(1_500, 16, 200),
            FAR_OWN: Setting(10_000, 128, 200),
        },
        "pgqueuer_peer",
        PGQUEUER,
        option="bare",
        remaining=PGQUEUER_REMAINING,
        batches=(50, 200),
    ),
    System(
        "PGQueuer, aiosmtplib",
        {
            DEFAULTS: Setting(2_000),
            NEAR: Setting(6_000, 64, 200),
            FAR: Setting(800, 16, 100),
            FAR_OWN: Setting(4_000, 128, 100),
        },
        "pgqueuer_peer",
        PGQUEUER,
        remaining=PGQUEUER_REMAINING,
        batches=(50, 200),
    ),
    System(
        "django-post_office",
        {
            DEFAULTS: Setting(2_000),
            NEAR: Setting(6_000, 8, 1_000),
            FAR: Setting(800, 16, 1_000),
            FAR_OWN: Setting(4_000, 128, 1_000),
        },
        "post_office_peer",
        ("django-post_office>=3.12,<4", "django>=5.2,<6", "psycopg[binary]>=3.2,<4"),
        remaining="SELECT count(*) FROM post_office_email WHERE status <> 0",
        batches=(1_000,),
    ),
    System(
        "SKIP LOCKED loop, psycopg 3",
        {NEAR: Setting(4_000, 16), FAR: Setting(800, 16), FAR_OWN: Setting(3_000, 64)},
        "psycopg_loop_peer",
        ("psycopg[binary]>=3.2,<4",),
        remaining="SELECT count(*) FROM email",
    ),
    System(
        "Procrastinate",
        {DEFAULTS: Setting(500), NEAR: Setting(1_500, 128), FAR: Setting(800, 16), FAR_OWN: Setting(1_500, 32)},
        "procrastinate_peer",
        ("procrastinate>=3.10,<4", "aiosmtplib>=5,<6"),
        remaining="SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')",
    ),
    System(
        "stock dramatiq-pg",
        {
            DEFAULTS: Setting(600),
            NEAR: Setting(2_000, 16, 10_000),
            FAR: Setting(600, 16, 10_000),
            FAR_OWN: Setting(1_500, 32, 10_000),
        },
        "dramatiq_pg_peer",
        ("dramatiq-pg>=0.12,<1", "dramatiq>=1.18,<2", "psycopg2-binary>=2.9,<3", "setuptools<80"),
        remaining="SELECT count(*) FROM email",
        batches=(10_000,),
    ),
    System(
        "Django loop, one process, one row a transaction",
        {NEAR: Setting(500, 1), FAR_OWN: Setting(50, 1)},
        "django_loop_peer",
        ("django>=5.2,<6", "psycopg[binary]>=3.2,<4"),
        remaining="SELECT count(*) FROM contenttypes_scheduledemail",
        connections=(1,),
    ),
    System(
        "*limit: no table, two round trips*",
        {NEAR: Setting(40_000, 16), FAR: Setting(1_500, 16), FAR_OWN: Setting(10_000, 128)},
        "limit_peer",
        UVLOOP,
    ),
    System(
        "*limit: no table, one round trip*",
        {NEAR: Setting(40_000, 16), FAR: Setting(3_000, 16), FAR_OWN: Setting(20_000, 128)},
        "limit_peer",
        UVLOOP,
        option="ahead",
    ),
)


def named(name: str) -> System:
    """The system of this name."""
    return next(each for each in SYSTEMS if each.name == name)


def interpreter(system: System) -> str:
    """The Python of a peer's own environment, which is made where it is not there yet."""
    if not system.script:
        return sys.executable
    folder = ENVIRONMENTS / system.script
    python = folder / "bin" / "python"
    if not (folder / ".ready").exists():
        print(f"Installing {system.name} …", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *system.requirements], check=True)
        (folder / ".ready").touch()
    return str(python)


@dataclass
class Peer:
    """A peer's process, which has prepared and waits for the word."""

    system: System
    process: subprocess.Popen[str] = field(repr=False)

    def begin(self) -> None:
        """The word."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def lines(self) -> Iterator[str]:
        """What it prints."""
        assert self.process.stdout is not None
        yield from self.process.stdout


@contextmanager
def peer(system: System, mode: str, url: str, port: int, setting: Setting, pace: float = 0.0) -> Iterator[Peer]:
    """A peer in one of the modes of `peers/turn.py`, ready; it is waited for if it ends, else killed with all below."""
    numbers = (port, setting.emails, setting.connections, setting.batch, pace)
    process = subprocess.Popen(
        [
            interpreter(system),
            str(PEERS / f"{system.script}.py"),
            mode,
            url,
            *(f"{number:g}" if isinstance(number, float) else str(number) for number in numbers),
            *([system.option] if system.option else []),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"{system.name} did not get ready")
        yield Peer(system, process)
    finally:
        kill(process.pid)
        process.wait()


def drain(system: System, url: str, port: int, setting: Setting) -> float:
    """Seconds that a peer takes for all of its emails, from the word to the end of its process."""
    with peer(system, "drain", url, port, setting) as running:
        begun = time.monotonic()
        running.begin()
        try:
            status = running.process.wait(LONGEST_TURN)
        except subprocess.TimeoutExpired:
            # It counts with what it would do at the least: in a sweep some settings do not suit it at all.
            print(f"{system.name} is not done after {LONGEST_TURN:.0f} s", file=sys.stderr)
            return LONGEST_TURN
        if status != 0:
            raise SystemExit(f"{system.name} failed")
        return time.monotonic() - begun


def scaled(setting: Setting, share: float) -> Setting:
    """The same with a share of the emails."""
    return replace(setting, emails=max(20, round(setting.emails * share)))

"""Importing a module builds nothing: what holds a thread, a connection or others' objects is built by who needs it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Run in a fresh interpreter: imports each module that is named, and prints what is amiss afterwards.
AFTER_IMPORTING = """
import gc, importlib, sys, threading
from dataclasses import is_dataclass
from enum import Enum
from weakref import WeakSet

PACKAGES = ("actors", "models", "duepost")

for name in sys.argv[1:]:
    importlib.import_module(name)


def is_value(thing):
    frozen = is_dataclass(thing) and type(thing).__dataclass_params__.frozen
    return isinstance(thing, (type, Enum, tuple)) or frozen


def is_ours(name):
    return name.partition(".")[0] in PACKAGES


for name, module in list(sys.modules.items()):
    if is_ours(name):
        for attribute, thing in vars(module).items():
            if isinstance(thing, WeakSet):
                # What a child forgets after a fork.
                if len(thing):
                    print(f"{name}.{attribute} has {list(thing)}")
            elif is_ours(type(thing).__module__) and not is_value(thing):
                print(f"{name}.{attribute} is {thing!r}")

from actors.liveness.time_limit import TimeLimit
from actors.queue.broker import PostgresBroker
from models.database.connections import Connection, Database
from models.database.deadlines import Deadlines
from models.database.pool import Pool

for thing in gc.get_objects():
    if type(thing) in (TimeLimit, PostgresBroker, Connection, Database, Deadlines, Pool):
        print(f"there is {thing!r}")
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        print(f"{thread} runs")

import dramatiq.broker, sentry_sdk

if dramatiq.broker.global_broker is not None:
    print("Dramatiq has a broker")
if sentry_sdk.is_initialized():
    print("Sentry is on")
"""


def modules() -> list[str]:
    """All of them but those that are run: as a command, or by Dramatiq."""
    paths = [path for package in ("actors", "models", "duepost") for path in (ROOT / package).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    return sorted(each for each in names if not each.endswith("__main__") and not each.startswith("duepost.app"))


def test_importing_every_module_builds_nothing() -> None:
    assert len(modules()) > 100
    done = subprocess.run(
        [sys.executable, "-c", AFTER_IMPORTING, *modules()], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("", 0), done.stderr

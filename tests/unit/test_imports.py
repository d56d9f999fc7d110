"""Importing a module builds nothing: what holds a thread, a connection or others' objects is built by who needs it.

`duepost.worker` is the one that builds, in a process of Dramatiq's command line: `dramatiq duepost.worker`.
"""

import ast
import subprocess
import sys
from pathlib import Path

from actors.app import Application
from actors.settings import settings

ROOT = Path(__file__).parents[2]
PACKAGES = ("actors", "models", "duepost")

#: Run in a fresh interpreter: imports each module that is named, and prints what is amiss afterwards.
AFTER_IMPORTING = """
import gc, importlib, os, sys, threading
from dataclasses import is_dataclass
from enum import Enum
from weakref import WeakSet

import django.conf

PACKAGES = ("actors", "models", "duepost")

# A project has settings before it imports an app.
django.conf.settings.configure()
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
for descriptor in os.listdir("/proc/self/fd"):
    try:
        opened = os.readlink(f"/proc/self/fd/{descriptor}")
    except FileNotFoundError:
        continue
    if opened.startswith("socket:") and int(descriptor) > 2:
        print(f"{opened} is open")

import dramatiq.broker, sentry_sdk

if dramatiq.broker.global_broker is not None:
    print("Dramatiq has a broker")
if sentry_sdk.is_initialized():
    print("Sentry is on")
"""


#: What builds, and says so.
BUILDER = "duepost.worker"


def modules() -> list[str]:
    """All of them but those that are run: as a command, or by Dramatiq."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths}
    run = {each for each in names if each.endswith("__main__") or each.startswith("duepost.app")}
    return sorted(names - run - {BUILDER})


def after_importing(*names: str) -> subprocess.CompletedProcess[str]:
    """What is there in a fresh interpreter that has imported these."""
    return subprocess.run(
        [sys.executable, "-c", AFTER_IMPORTING, *names], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_importing_every_module_builds_nothing() -> None:
    assert len(modules()) > 100
    done = after_importing(*modules())
    assert (done.stdout, done.returncode) == ("", 0), done.stderr


def test_the_workers_module_builds_and_starts_no_thread() -> None:
    done = after_importing("dramatiq.cli", BUILDER)
    assert "Dramatiq has a broker" in done.stdout, done.stderr
    assert "runs" not in done.stdout
    assert "is open" not in done.stdout


def test_every_database_is_handed_its_deadlines() -> None:
    calls = [
        (path, node)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Database"
    ]
    assert len(calls) > 4
    for path, call in calls:
        assert "deadlines" in {each.arg for each in call.keywords}, f"{path}:{call.lineno}"


def test_the_databases_of_a_process_share_one() -> None:
    application = Application(settings())
    assert application.broker.worker_session._database.deadlines is application.database.deadlines

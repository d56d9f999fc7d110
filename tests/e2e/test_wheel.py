"""The wheel: installed into an empty environment, beside a project that has its own `models` and `actors`."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel() -> Iterator[Path]:
    """The built wheel."""
    folder = Path(tempfile.mkdtemp(prefix="duepost-wheel-", dir="/tmp"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )
    [wheel] = folder.glob("*.whl")
    yield wheel
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def python(wheel: Path) -> Iterator[Path]:
    """An environment with the wheel and what it asks for, and nothing else."""
    folder = Path(tempfile.mkdtemp(prefix="duepost-venv-", dir="/tmp"))
    folder.chmod(0o755)
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    yield python
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project() -> Iterator[Path]:
    """A host's project with modules of the same names, which are not to be imported by us."""
    folder = Path(tempfile.mkdtemp(prefix="duepost-host-", dir="/tmp"))
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

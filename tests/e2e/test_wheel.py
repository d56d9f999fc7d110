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

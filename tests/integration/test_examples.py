"""The example projects of the documentation, each copied out of the checkout and run as its page says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg2
import pytest

from tests.postgres import PostgresServer, run

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def run_in(folder: Path, *command: str, **env: str) -> str:
    """Runs a command of a project; gives what it says."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("DUEPOST_", "PYTEST_", "DJANGO_"))}
    done = subprocess.run(
        command, cwd=folder, env=own | env, capture_output=True, text=True, timeout=280, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an example."""
    return Path(shutil.copytree(EXAMPLES / request.param, tmp_path / request.param))


def where(url: str) -> dict[str, str]:
    """A database as libpq's variables name it."""
    parts = urlsplit(url)
    asked = parse_qs(parts.query)
    return {
        "PGHOST": asked["host"][0],
        "PGPORT": asked["port"][0],
        "PGUSER": parts.username or "",
        "PGDATABASE": parts.path[1:],
    }


@pytest.mark.parametrize("project", ["django"], indirect=True)
def test_the_django_project_migrates_and_its_tests_pass(project: Path, server: PostgresServer) -> None:
    with server.fresh_database(migrated=False) as url:
        manage = [sys.executable, "manage.py"]
        run_in(project, *manage, "migrate", **where(url))
        assert "No changes detected" in run_in(project, *manage, "makemigrations", "--check", **where(url))
        assert "Ran 4 tests" in run_in(project, *manage, "test", **where(url))


@pytest.mark.parametrize("project", ["flask", "fastapi"], indirect=True)
def test_the_project_s_tests_pass(project: Path, server: PostgresServer) -> None:
    said = run_in(
        project, sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider",
        DUEPOST_TEST_DATABASE_URL=server.url(),
    )  # fmt: skip
    assert "3 passed" in said


@pytest.mark.parametrize("project", ["psql"], indirect=True)
def test_the_sql_of_the_shop_runs_in_psql(project: Path, server: PostgresServer, url: str) -> None:
    bundled = server.binaries / "psql"
    psql = str(bundled) if bundled.exists() else shutil.which("psql")
    assert psql is not None
    said = run_in(project, psql, "-X", "-v", "ON_ERROR_STOP=1", "-f", "shop.sql", url)
    assert "cleared" in said
    assert "scheduled" in said
    connection = psycopg2.connect(url)
    assert run(connection, "SELECT kind, address FROM duepost.scheduled_email ORDER BY id") == [
        ("welcome", "ann@example.com"),
        ("welcome", "bob@example.com"),
    ]
    connection.close()


@pytest.mark.parametrize("page", sorted(EXAMPLES.glob("*/README.md")), ids=lambda page: page.parent.name)
def test_a_page_names_the_files_of_its_project(page: Path) -> None:
    text = page.read_text("utf-8")
    named = [path.name for path in page.parent.rglob("*") if path.suffix in {".js", ".sql"} or path.name == "app.py"]
    assert all(f"`{name}`" in text for name in named), named

"""What the documentation shows can be run: snippets marked `sql run` and `python run`."""

import re
from pathlib import Path

import psycopg2
import pytest

ROOT = Path(__file__).parents[2]


def snippets(language: str) -> list[tuple[str, str]]:
    """The marked snippets of README and docs, each with its page; those of a page belong together."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    found = []
    for page in pages:
        blocks = re.findall(
            rf"^```{language} run\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
        )
        if blocks:
            found.append((page.name, "\n".join(blocks)))
    return found


@pytest.mark.parametrize(
    ("page", "statements"), snippets("sql"), ids=lambda value: value if value.endswith(".md") else ""
)
def test_the_sql_of_a_page_runs(url: str, page: str, statements: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements.split(";\n"):
            if statement.strip():
                cursor.execute(statement)
    connection.close()


@pytest.mark.parametrize(("page", "code"), snippets("python"), ids=lambda value: value if value.endswith(".md") else "")
def test_the_python_of_a_page_runs_as_it_stands(
    url: str, page: str, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUEPOST_DATABASE_URL", url)
    exec(compile(code, page, "exec"), {})
    connection = psycopg2.connect(url)
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM duepost.scheduled_email")
        assert cursor.fetchone() == (len(re.findall(r"duepost\.schedule_email\(", code)),)
    connection.close()

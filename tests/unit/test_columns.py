"""Statements name their columns: one more in a table, or one more argument, changes nothing for them."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Migrations are frozen and run on the tables that they know.
FILES = sorted(path for path in (ROOT / "models").rglob("*.sql") if path.parent.name != "migrations")

#: Comments, and what stands in quotes: patterns have stars, too.
NO_CODE = re.compile(r"--[^\n]*|'(?:[^']|'')*'")

STAR = re.compile(r"\w\.\*|\b(?:SELECT|RETURNING|DISTINCT|ALL|BY|,)\s+\*|,\s*\*")
INSERT = re.compile(r"\bINSERT\s+INTO\s+(?P<table>[\w.]+)(?:\s+AS\s+\w+)?(?P<columns>\s*\(\s*\w+(?:,\s*\w+)*\s*\))?")
UNPACKED = re.compile(r"\b(?:unnest|jsonb?_to_record(?:set)?)\(")
NAMED = re.compile(r"\s*(?:WITH ORDINALITY\s+)?AS\s+\w+\s*\(\s*\w+")
VARIABLE = re.compile(r"^\s+\w+\s+(?P<type>duepost\.\w+|[\w.]+%ROWTYPE);", re.MULTILINE)


def code_of(text: str) -> str:
    return NO_CODE.sub(lambda found: " " if found[0].startswith("--") else "''", text)


def arguments_and_rest(text: str) -> tuple[list[str], str]:
    """The arguments of a call whose parenthesis has just been opened, and what follows it."""
    depth, arguments = 0, [""]
    for place, character in enumerate(text):
        if character in "([":
            depth += 1
        elif character in ")]" and depth == 0:
            return arguments, text[place + 1 :]
        elif character in ")]":
            depth -= 1
        if character == "," and depth == 0:
            arguments.append("")
        else:
            arguments[-1] += character
    raise ValueError(f"a parenthesis is not closed: {text[:100]}")


def faults(text: str, types: set[str]) -> Iterator[str]:
    """What depends on which columns there are, or in which order."""
    code = code_of(text)
    for found in STAR.finditer(code):
        yield f"all columns: {found[0]}"
    for found in INSERT.finditer(code):
        if not found["columns"]:
            yield f"INSERT without columns: {found['table']}"
    for found in UNPACKED.finditer(code):
        arguments, rest = arguments_and_rest(code[found.end() :])
        if (len(arguments) > 1 or "record" in found[0]) and not NAMED.match(rest):
            yield f"unpacked without names: {found[0]}{','.join(arguments)[:60]}"
    for found in VARIABLE.finditer(code):
        if found["type"] not in types:
            yield f"a variable with a table's columns: {found['type']}"


def types_of_functions() -> set[str]:
    """The types that functions take: not those of a table, to which a migration may add a column."""
    made = re.compile(r"CREATE TYPE (duepost\.\w+)")
    return {name for path in FILES for name in made.findall(path.read_text())}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT / "models")))
def test_no_statement_depends_on_which_columns_there_are(path: Path) -> None:
    assert list(faults(path.read_text(), types_of_functions())) == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM duepost.item",
        "SELECT i.id, m.* FROM duepost.item AS i",
        "SELECT i.id, * FROM duepost.item AS i",
        "DELETE FROM duepost.item RETURNING *",
        "SELECT DISTINCT * FROM duepost.item",
        "INSERT INTO duepost.item VALUES (1)",
        "INSERT INTO duepost.item AS i SELECT 1",
        "INSERT INTO duepost.item (SELECT 1, 2)",
        "SELECT 1 FROM unnest(%(ids)s::bigint[], array_fill(1, ARRAY[2])) AS g",
        "SELECT 1 FROM jsonb_to_recordset(%(results)s) AS r",
        "DECLARE\n    kept duepost.item;\n",
        "DECLARE\n    kept duepost.item%ROWTYPE;\n",
    ],
)
def test_what_would_depend_on_them_is_found(statement: str) -> None:
    assert len(list(faults(statement, types_of_functions()))) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*), 2 * i.id, make_interval(secs => 2 * 3) FROM duepost.item AS i -- and all of i.*",
        "SELECT 1 WHERE 'a.*' ~ 'b.*' AND jsonb_path_exists(a, 'strict $[*]')",
        "INSERT INTO duepost.item (id) SELECT 1",
        "INSERT INTO duepost.item AS i (id, kind)\n    VALUES (1, 2)",
        "SELECT u FROM unnest(%(ids)s) AS u",
        "SELECT id FROM unnest(%(ids)s::bigint[], %(claims)s::bigint[])\n    WITH ORDINALITY AS c (id, claim, place)",
        "SELECT 1 FROM jsonb_to_recordset(%(results)s) AS r (\n    id bigint)",
        "DECLARE\n    email duepost.new_email;\n",
    ],
)
def test_what_does_not_is_left_alone(statement: str) -> None:
    assert list(faults(statement, types_of_functions())) == []

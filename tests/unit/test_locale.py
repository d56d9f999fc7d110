"""No rule in SQL depends on the database's locale: a Turkish one has another lower case of I."""

import re
from pathlib import Path

import pytest

MODELS = Path(__file__).parents[2] / "models"
FILES = [
    *sorted((MODELS / "functions").glob("*.sql")),
    MODELS / "migrations" / "0008_mailboxes.sql",
    MODELS / "emails.sql",
]

#: Compared with itself only: what one relay said, to what it said before.
ALLOWED = {"duepost.refusal_of(reply text)"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_rule_depends_on_the_locale(file: Path) -> None:
    for function in re.split(r"(?m)^(?=CREATE |-- name: )", file.read_text(encoding="utf-8")):
        if any(name in function for name in ALLOWED):
            continue
        code = re.sub(r"(?m)--.*$", "", function)
        assert not re.search(r"\[\[:|\[:\w+:\]|~\*|\bI?LIKE lower|\bILIKE\b|\bupper\(|\binitcap\(", code), function
        assert code.count("lower(") == code.count('COLLATE "C"'), function

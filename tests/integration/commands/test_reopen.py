"""`duepost reopen`, as a shell runs it."""

import json

import pytest

from tests.integration.commands.shell import Shell

EMPTY = "reopen: give either ids, or --kind, --since or --reply"


@pytest.fixture
def shell(url: str) -> Shell:
    """A database with three undeliverable emails: 1 and 2 of kind welcome, 3 of kind invoice, ended two days ago."""
    shell = Shell(url)
    for number, (kind, text) in enumerate([("welcome", "no [/such] user"), ("welcome", "full"), ("invoice", "no")], 1):
        shell.query(
            "WITH sending AS ("
            "  SELECT duepost.schedule_email(%s, %s, subject => 's', body_text => 'b') AS id"
            ") SELECT id FROM sending",
            kind, f"user{number}@example.com",
        )  # fmt: skip
        shell.query(
            "UPDATE duepost.scheduled_email SET state = 'sending', claim = id, worker_id = 1, claimed_at = now()"
        )
        result = {"address": f"user{number}@example.com", "outcome": "undeliverable", "code": 550, "reply": text}
        shell.query("SELECT duepost.keep_undeliverable(%s, %s, %s, 7)", number, number, json.dumps([result]))
        shell.query("SELECT duepost.finish(%s, 'undeliverable', NULL)", number)
    shell.query("UPDATE duepost.undeliverable_email SET finished_at = now() - interval '2 days' WHERE id = 3")
    return shell


def pending(shell: Shell) -> list[int]:
    return [int(str(row[0])) for row in shell.query("SELECT id FROM duepost.scheduled_email ORDER BY id")]


def test_one_is_due_now(shell: Shell) -> None:
    assert shell.run("reopen", "1") == "Email 1 is due now.\n"
    assert pending(shell) == [1]


def test_show_says_how_it_is_brought_back(shell: Shell) -> None:
    assert "Next: nothing: it is finished; duepost reopen 1 schedules it once more, until " in shell.run("show", "1")


def test_several_by_id_kind_time_and_words(shell: Shell) -> None:
    assert shell.run("reopen", "--kind", "welcome", "--reply", "NO [/such]", "--dry-run") == "1 email: 1\n"
    assert shell.json("reopen", "--since", "2030-01-01T00:00:00Z") == []
    assert shell.run("reopen", "--since", "1h") == "2 emails are due now.\n"
    assert shell.json("reopen", "3") == [{"email_id": 3, "receipt": "reopened"}]
    assert pending(shell) == [1, 2, 3]


def test_what_is_not_reopened_is_named_with_the_reason(shell: Shell) -> None:
    error = shell.run("reopen", "1", "99", status=1)
    assert error == (
        "duepost: email 99 is not reopened: nothing of it is undeliverable (duepost show tells what became of it)\n"
    )
    assert pending(shell) == [1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], EMPTY),
        (["1", "--kind", "welcome"], EMPTY),
        (["--reply", " "], "--reply: must not be empty"),
        (["--since", "yesterday"], "--since: must be an ISO 8601 time with its zone"),
        (["--since", "2026-01-01T00:00:00"], "--since: must be an ISO 8601 time with its zone"),
        (["0"], "greater than or equal to 1"),
        (["x"], "valid integer"),
    ],
)
def test_bad_usage_is_one_line_and_reopens_nothing(shell: Shell, arguments: list[str], said: str) -> None:
    error = shell.run("reopen", *arguments, status=2)
    assert said in error
    assert error.count("\n") == 1
    assert pending(shell) == []

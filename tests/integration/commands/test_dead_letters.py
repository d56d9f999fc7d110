"""`duepost dead-letters` and `requeue`: messages of the broker that failed for good."""

import pytest

from tests.integration.commands.shell import Shell

FIRST, SECOND = "00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"


@pytest.fixture
def shell(url: str) -> Shell:
    shell = Shell(url)
    for message_id, days in ((FIRST, 2), (SECOND, 1)):
        shell.query(
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, message, mtime) VALUES (%s, 'duepost_send',"
            """ 'rejected', '{"actor_name": "send_email", "args": [7],"""
            """ "options": {"failure": "RuntimeError", "retries": 3}}', now() - make_interval(days => %s))""",
            message_id, days,
        )  # fmt: skip
    return shell


def test_dead_letters_are_listed_the_newest_first(shell: Shell) -> None:
    found = shell.json("dead-letters")
    assert isinstance(found, list)
    assert [each["message_id"] for each in found] == [SECOND, FIRST]
    assert {name: found[0][name] for name in ("queue_name", "actor_name", "failure", "retries")} == {
        "queue_name": "duepost_send",
        "actor_name": "send_email",
        "failure": "RuntimeError",
        "retries": 3,
    }
    table, short = shell.run_all(["dead-letters"], ["dead-letters", "--limit", "1", "--json"])
    assert FIRST in table
    assert FIRST not in short


def test_no_dead_letters_is_said(url: str) -> None:
    assert shell_says(url) == "There are no dead letters.\n"


def shell_says(url: str) -> str:
    return Shell(url).run("dead-letters")


def test_a_dead_letter_is_requeued_with_its_retries_counted_from_zero(shell: Shell) -> None:
    shell.run("requeue", FIRST, SECOND)
    assert shell.query("SELECT state::text, message -> 'options' FROM dramatiq.queue") == [("queued", {})] * 2


@pytest.mark.parametrize(
    ("ids", "status", "said"),
    [
        ([FIRST, "nonsense"], 2, "'nonsense'"),
        ([FIRST, "00000000-0000-0000-0000-000000000009"], 1, "there is no such dead letter"),
        ([], 2, "MESSAGE"),
    ],
)
def test_a_wrong_id_requeues_nothing(shell: Shell, ids: list[str], status: int, said: str) -> None:
    error = shell.run("requeue", *ids, status=status)
    assert said in error
    assert len(error.splitlines()) == 1
    assert shell.query("SELECT DISTINCT state::text FROM dramatiq.queue") == [("rejected",)]

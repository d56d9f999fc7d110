"""Every error is one line on stderr, with an exit status that says whose turn it is."""

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.processes import duepost, environment

NOWHERE = "postgresql://nobody:hushhush@127.0.0.1:1/nothing"


def failing(
    *arguments: str, url: str = NOWHERE, cwd: Path | None = None, more: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Runs a command that fails; gives its status and its one line."""
    env = environment(url, "smtp://user:topsecret@127.0.0.1:1", **(more or {}))
    done = duepost(*arguments, env={name: value for name, value in env.items() if value}, cwd=cwd)
    assert done.returncode != 0, done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("duepost: ")
    for secret in ("hushhush", "topsecret", "Traceback"):
        assert secret not in done.stderr + done.stdout
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["list", "--nonsense"], "--nonsense"),
        (["list", "--state", "asleep"], "asleep"),
        (["show"], "email_id"),
        (["show", "seven"], "email_id"),
        (["show", "0"], "email_id"),
        (["show", str(2**63)], "email_id"),
        (["resolve", "1", "perhaps"], "perhaps"),
        (["schedule", "--address", "a@b.c"], "--kind"),
        (["schedule", "--kind", "k", "--context", "{"], "--context: not JSON"),
        (["schedule", "--kind", "k", "--at", "tomorrow"], "--at: must be a time with its zone"),
        (
            ["schedule", "--kind", "k", "--expires-at", "2030-01-01T00:00:00"],
            "--expires-at: must be a time with its zone",
        ),
        (["schedule", "--kind", "k", "--header", "nonsense"], "--header: must be 'Name: value'"),
        (["schedule", "--file", "missing.jsonl"], "missing.jsonl: No such file"),
        (["schedule", "--file", "x.jsonl", "--kind", "k"], "--file: goes without kind"),
        (["reschedule", "1", "soon"], "AT: must be a time with its zone"),
        (["clear"], "clear: give one of an id, --user or --address"),
        (["clear", "1", "--user", "ann"], "clear: give one of an id, --user or --address"),
        (["demo", "missing.jsonl"], "missing.jsonl: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_usage_is_named_and_status_2(arguments: list[str], named: str) -> None:
    status, line = failing(*arguments)
    assert status == 2
    assert named in line


@pytest.mark.parametrize(
    ("variable", "value", "right"),
    [
        ("DUEPOST_DATABASE_URL", "mysql://x", "a libpq URL"),
        ("DUEPOST_SMTP_URL", "http://x", "smtp"),
        ("DUEPOST_FROM", "nobody", "noreply@example.com"),
        ("DUEPOST_DISABLED", "maybe", "0 or 1"),
        ("DUEPOST_SMTP_TIMEOUT", "-1", "greater than 0"),
        ("DUEPOST_SMTP_TIMEOUT", "soon", "number"),
        ("DUEPOST_RETENTION_DAYS", "0", "greater than or equal to 1"),
        ("SENTRY_DSN", "nonsense", "a Sentry DSN"),
    ],
)
def test_a_bad_setting_is_named_and_status_2(variable: str, value: str, right: str) -> None:
    status, line = failing("stats", more={variable: value})
    assert status == 2
    assert line.startswith(f"duepost: {variable}: ")
    assert right.lower() in line.lower()


def test_a_missing_database_setting_names_duepost_up(tmp_path: Path) -> None:
    status, line = failing("list", url="", cwd=tmp_path)
    assert status == 2
    assert "DUEPOST_DATABASE_URL" in line
    assert "duepost up" in line


@pytest.mark.parametrize("command", [["list"], ["migrate"], ["trigger"], ["worker"], ["schedule", "--kind", "k"]])
def test_an_unreachable_database_is_status_1(command: list[str]) -> None:
    assert failing(*command)[0] == 1


@pytest.mark.parametrize("command", [["list"], ["trigger"], ["worker"], ["clear", "1"], ["stats", "--json"]])
def test_a_missing_schema_says_what_to_run(server: PostgresServer, command: list[str]) -> None:
    with server.fresh_database(migrated=False) as url:
        status, line = failing(*command, url=url)
    assert status == 1
    assert "run `duepost migrate`" in line


def test_a_role_that_may_not_look_is_told_so(server: PostgresServer, url: str) -> None:
    server.execute("DROP ROLE IF EXISTS only_client")
    server.execute("CREATE ROLE only_client LOGIN IN ROLE duepost_client")
    try:
        theirs = url.replace("postgres@", "only_client@", 1)
        assert failing("list", url=theirs)[0] == 1
        done = duepost(
            "schedule", "--kind", "k", "--address", "a@b.example", "--subject", "s", "--body-text", "b",
            env=environment(theirs, "smtp://127.0.0.1:1"),
        )  # fmt: skip
        assert (done.returncode, done.stdout.strip()) == (0, "1")
    finally:
        server.execute("DROP ROLE only_client")


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ('{"kind": "k", "adress": "a@b.c"}', "adress: unknown"),
        ('{"kind": "k", "address": ["a@b.c"]}', "address: must be a string"),
        ('{"kind": "k", "users": "ann"}', "users: must be a list of strings"),
        ('{"kind": "k", "context": "{}"}', "context: must be an object"),
        ('{"kind": "k", "kind": "l"}', "kind: given twice"),
        ('{"address": "a@b.c"}', "kind: must be given"),
        ('{"kind": "k", "scheduled_at": "2030-01-01T00:00:00"}', "scheduled_at: must be a time with its zone"),
        (r'{"kind": "k\u0000"}', "kind: must not contain NUL"),
        (r'{"kind": "k\ud800"}', "kind: must not contain NUL or a lone surrogate"),
        ("[1]", "must be an object"),
        ('{"kind": NaN}', "not JSON"),
        ('{"kind": "k", "address": "nobody", "subject": "s", "body_text": "b"}', "address: must be one address"),
        ('{"kind": "k", "address": "a@b.c", "subject": "s"}', "body_text: a subject needs a body"),
    ],
    ids=range(13),
)
def test_a_bad_line_of_a_file_names_number_and_field_and_nothing_is_scheduled(
    url: str, tmp_path: Path, line: str, place: str
) -> None:
    good = '{"kind": "k", "address": "ann@example.com", "subject": "s", "body_text": "b"}'
    (tmp_path / "emails.jsonl").write_text(f"{good}\n\n{line}\n{good}\n")
    status, error = failing("schedule", "--file", str(tmp_path / "emails.jsonl"), url=url)
    assert status == 2
    assert f"emails.jsonl: line 3: {place}" in error
    stats = duepost("stats", "--json", env=environment(url, "smtp://127.0.0.1:1"))
    assert re.search(r'"scheduled": 0', stats.stdout)


def test_a_file_that_is_not_utf_8_is_named(url: str, tmp_path: Path) -> None:
    (tmp_path / "emails.jsonl").write_bytes(b'{"kind": "\xff"}\n')
    assert "not UTF-8" in failing("schedule", "--file", str(tmp_path / "emails.jsonl"), url=url)[1]

"""Data is text: whatever it holds, every reading command shows it, as it stands, and nothing else happens."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from duepost.commands.output import shortened, visible
from tests.integration.commands.shell import Shell
from tests.integration.commands.terminal import on_terminal
from tests.postgres import PostgresServer
from tests.processes import ROOT, duepost

TEXTS: list[str] = json.loads((ROOT / "tests" / "corpus" / "hostile.json").read_text(encoding="utf-8"))["shown"]

#: A word longer than any line, and a text longer than any cell.
LONG = "x" * 10_000
TEXTS += [LONG, "word " * 2_000]

#: Bytes that a terminal obeys or hides; a line break ends a row, a tab separates two cells.
UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u200b\u2028-\u202e\u2066-\u2069\ufeff]")

#: Runs several commands in one process, as that is quicker, with the `duepost` command's own way to print and to fail.
SEVERAL = """
import json, sys
from duepost.bundled import use_bundled_packages
use_bundled_packages()
from duepost.commands import app
for arguments in json.loads(sys.argv[1]):
    try:
        app.run(arguments)
    except SystemExit as end:
        if end.code:
            sys.exit(f"{arguments}: status {end.code}")
"""


def several(commands: Sequence[Sequence[str]]) -> list[str]:
    return [sys.executable, "-c", SEVERAL, json.dumps(commands)]


@pytest.fixture(scope="module")
def shell(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A database whose every text is one of the corpus, an email for each."""
    with server.fresh_database() as url:
        shell = Shell(url, DUEPOST_TEMPLATES=str(tmp_path_factory.mktemp("templates")))
        shell.query(
            "INSERT INTO duepost.scheduled_email (id, kind, scheduled_at, due_at, last_error, key, message_id_header,"
            " date_header, address, sender, reply_to, template, attempts)"
            " SELECT i, t, '2030-01-01Z', '2030-01-01Z', 'rcpt: ' || t, t || i, t, now(), t, t, t, t, 1"
            " FROM unnest(%s) WITH ORDINALITY AS each (t, i)",
            TEXTS,
        )
        shell.query(
            "INSERT INTO duepost.scheduled_email_user (email_id, user_id) SELECT id, kind FROM duepost.scheduled_email"
        )
        shell.query(
            "INSERT INTO duepost.attempt (email_id, claim, worker_id, started_at, user_id, phase, verdict, code, reply)"
            " SELECT id, id, 1, now(), kind, 'rcpt', 'retry', 450, kind FROM duepost.scheduled_email"
        )
        shell.query(
            "INSERT INTO duepost.delivery (email_id, kind, outcome, user_id, address, code, reply, attempts, unknowns,"
            " key, scheduled_at, message_id_header)"
            " SELECT id + 1000, kind, 'undeliverable', kind, kind, 550, kind, 1, 0, key, now(), kind"
            " FROM duepost.scheduled_email"
        )
        shell.query(
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
            " SELECT gen_random_uuid(), 'q' || left(t, 50), 'rejected', jsonb_build_object('actor_name', t, 'args',"
            " '[]'::jsonb, 'options', jsonb_build_object('failure', t, 'retries', 3)) FROM unnest(%s) AS t",
            TEXTS,
        )
        shell.query("UPDATE duepost.control SET paused = true, paused_by = %s, pause_reason = %s", TEXTS[0], TEXTS[1])
        yield shell


SHOWS = [["show", str(i)] for i in range(1, len(TEXTS) + 1)]
ENDED = [["show", str(1000 + i)] for i in range(1, len(TEXTS) + 1)]
READING = [["list", "--limit", "1000"], ["stats"], ["dead-letters", "--limit", "1000"], *SHOWS, *ENDED]


def piped(shell: Shell, commands: Sequence[Sequence[str]], **more: str) -> str:
    done = subprocess.run(
        several(commands), env={**shell.env, **more}, cwd=ROOT, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert b"Traceback" not in done.stderr
    return done.stdout.decode("utf-8")


def test_in_a_pipe_every_text_is_whole_and_a_row_is_a_line(shell: Shell) -> None:
    lines = piped(shell, [["list", "--limit", "1000"]]).split("\n")
    assert lines[0] == "id\tkind\tstate\tdue\tattempts\tlast error\tendpoint"
    rows = [line.split("\t") for line in lines[1:] if line]
    assert {len(row) for row in rows} == {7}
    assert {int(row[0]): (row[1], row[5]) for row in rows} == {
        number: (visible(text), visible(f"rcpt: {text}")) for number, text in enumerate(TEXTS, 1)
    }


def test_in_a_pipe_dead_letters_are_whole(shell: Shell) -> None:
    lines = piped(shell, [["dead-letters", "--limit", "1000"]]).split("\n")
    rows = [line.split("\t") for line in lines[1:] if line]
    assert sorted(row[2] for row in rows) == sorted(map(visible, TEXTS))
    assert {row[2] == row[4] for row in rows} == {True}


def test_nothing_reaches_a_pipe_that_a_terminal_would_obey(shell: Shell) -> None:
    printed = piped(shell, READING)
    assert UNSEEN.search(printed) is None
    for text in TEXTS:
        assert visible(text) in printed


@pytest.mark.parametrize("columns", [80, 120])
def test_on_a_terminal_no_word_is_lost_or_obeyed(shell: Shell, columns: int) -> None:
    shown = on_terminal(several(READING), shell.env, columns=columns)
    assert shown.status == 0, shown.text[-2000:]
    assert "Traceback" not in shown.text
    assert UNSEEN.search(shown.text) is None
    words = {word for text in TEXTS for word in shortened(visible(text)).split() if len(word) < 12}
    assert {word for word in words if word not in shown.text} == set()


def test_on_a_terminal_no_line_is_longer_than_it_is_wide(shell: Shell) -> None:
    shown = on_terminal(several([["list", "--limit", "7"], ["show", "1"]]), shell.env, columns=80)
    assert max(map(len, shown.text.replace("\r", "").split("\n"))) <= 80
    assert "450 4.3.1" in shown.text


@pytest.mark.parametrize(
    "more",
    [
        {"LC_ALL": "C", "LANG": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
    ],
    ids=str,
)
def test_a_terminal_of_another_encoding_is_no_traceback(shell: Shell, more: dict[str, str]) -> None:
    printed = piped(shell, READING, **more)
    assert "Insufficient storage: [/var/spool/mqueue]" in printed
    [listed] = json.loads(f"[{piped(shell, [['list', '--json', '--limit', '1000']], **more)}]")
    assert [each["kind"] for each in sorted(listed, key=lambda each: int(each["id"]))] == TEXTS


def test_json_holds_every_text_unchanged_and_nothing_that_a_terminal_obeys(shell: Shell) -> None:
    printed = piped(shell, [["list", "--json", "--limit", "1000"]])
    assert UNSEEN.search(printed) is None
    assert [each["kind"] for each in sorted(json.loads(printed), key=lambda each: int(each["id"]))] == TEXTS
    for email_id in (1, 17, 1001):
        assert json.loads(piped(shell, [["show", str(email_id), "--json"]]))["kind"] == TEXTS[(email_id - 1) % 1000]


def test_the_doctor_and_stats_show_what_operators_and_relays_said(shell: Shell) -> None:
    shell.query("UPDATE duepost.scheduled_email SET last_error = 'render: [/red] line 1: [bold' WHERE id = 3")
    done = duepost("doctor", "--no-relay", env=shell.env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "[/red] line 1: [bold" in done.stdout
    assert TEXTS[0] in done.stdout, "who has paused"
    assert TEXTS[1] in piped(shell, [["stats"]]), "why"


@pytest.mark.parametrize("columns", [0, 80])
def test_the_demo_takes_kinds_for_text(server: PostgresServer, tmp_path: Path, columns: int) -> None:
    kinds = [text for text in TEXTS if text and not UNSEEN.search(text + "\n".strip()) and "\n" not in text]
    kinds = [text for text in kinds if "\t" not in text and "\r" not in text and len(text.encode()) < 60]
    line = {"address": "ann@example.com", "subject": "s", "body_text": "b"}
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(json.dumps({"kind": kind, **line}) for kind in kinds))
    folder = tmp_path / "there"
    folder.mkdir()
    script = f"import os; os.chdir({str(folder)!r})\n{SEVERAL}"
    with server.fresh_database() as url:
        env = {name: value for name, value in Shell(url).env.items() if name != "DUEPOST_SMTP_URL"}
        command = [sys.executable, "-c", script, json.dumps([["demo", str(file)]])]
        if columns:
            text, status = on_terminal(command, env, columns=columns)
        else:
            done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
            text, status = done.stdout + done.stderr, done.returncode
    assert status == 0, text[-3000:]
    assert "Every outcome is as expected." in text
    for kind in kinds:
        assert all(word in text for word in kind.split() if len(word) < 12), kind

"""Ctrl-C and a reader that goes away are no errors of anybody's: no traceback, a status that a shell knows."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import psycopg2
import pytest

from tests.integration.commands.shell import Shell
from tests.processes import ROOT, Process
from tests.waiting import wait_until

INTERRUPTED = 130


def waiting(shell: Shell) -> bool:
    """Whether somebody waits for a lock."""
    return bool(shell.query("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


@pytest.mark.parametrize("arguments", [["list"], ["stats"], ["show", "1"], ["retry", "1"], ["migrate"]], ids=" ".join)
def test_ctrl_c_ends_a_command_that_waits_for_the_database(url: str, tmp_path: Path, arguments: list[str]) -> None:
    shell = Shell(url)
    shell.schedule()
    blocker = psycopg2.connect(url)
    with blocker.cursor() as cursor:
        cursor.execute("LOCK TABLE duepost.scheduled_email, duepost.control, duepost.migration")
        command = [sys.executable, "-m", "duepost", *arguments]
        with Process(command, shell.env, tmp_path / "log") as process:
            wait_until(lambda: waiting(shell), state=lambda: process.output)
            process.signal(signal.SIGINT)
            assert process.wait(timeout=10) == INTERRUPTED, process.output
    blocker.close()
    assert process.output == ""


def test_ctrl_c_while_a_command_is_loaded_is_no_traceback(url: str, tmp_path: Path) -> None:
    shell = Shell(url)
    for number, module in enumerate(["dramatiq", "jinja2", "actors.settings", "duepost.commands"]):
        command = [sys.executable, "-X", "importtime", "-m", "duepost", "list"]
        with Process(command, shell.env, tmp_path / f"{number}.log") as process:
            wait_until(lambda module=module, process=process: f" {module}\n" in process.output)  # type: ignore[misc]
            process.signal(signal.SIGINT)
            # A shell says 130 of a process that the signal itself has ended, too: Python does so before our first line.
            assert process.wait() in {INTERRUPTED, 0, -signal.SIGINT}
        assert "Traceback" not in process.output


@pytest.mark.parametrize(
    "arguments", [["list"], ["list", "--json"], ["dead-letters"], ["doctor", "--no-relay"]], ids=" ".join
)
def test_a_reader_that_stops_after_a_line_is_no_error_of_anybody_s(url: str, arguments: list[str]) -> None:
    shell = Shell(url)
    shell.query(
        "SELECT duepost.schedule_email('k', 'a' || i || '@example.com', subject => 's', body_text => 'b')"
        " FROM generate_series(1, 2000) AS i"
    )
    command = [sys.executable, "-m", "duepost", *arguments, *(["--limit", "2000"] if arguments[0] == "list" else [])]
    with subprocess.Popen(
        command, env=shell.env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(process.stderr.read() if process.stderr else ""))
        reader.start()
        process.wait(timeout=60)
        reader.join()
    assert "Traceback" not in said[0]
    assert "Exception ignored" not in said[0]
    assert process.returncode in {0, 1}

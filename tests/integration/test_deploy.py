"""The files of deploy/, checked by the tools that read them."""

import configparser
import itertools
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from actors.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted(path.name for path in DEPLOY.glob("duepost-*.*") if path.suffix in {".service", ".timer"})
COMMANDS = {"worker", "trigger", "migrate", "doctor"}


def tool(name: str) -> str:
    """A program of the system; without it the test is skipped here, and fails where everything must be shown."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    return path


def test_every_file_says_in_its_first_line_what_it_is_for() -> None:
    for path in DEPLOY.iterdir():
        if path.suffix != ".md":
            first = path.read_text(encoding="utf-8").splitlines()[0]
            assert re.match(r"^[#;] \S.{10,}", first), path.name


def test_every_file_is_explained_in_the_readme() -> None:
    readme = (DEPLOY / "README.md").read_text(encoding="utf-8")
    for path in DEPLOY.iterdir():
        if path.name not in {"README.md", ".gitignore"}:
            assert f"`{path.name}`" in readme


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_finds_nothing_wrong_with_the_unit(unit: str, tmp_path: Path) -> None:
    command = tmp_path / "duepost"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    for name in UNITS:
        text = (DEPLOY / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text.replace("/opt/duepost/bin/duepost", str(command)), encoding="utf-8")
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(tmp_path / unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or unit in line]
    assert done.returncode == 0, done.stderr
    assert complaints == []


def test_systemd_reads_the_timer_as_every_minute() -> None:
    calendar = re.search(r"^OnCalendar=(.+)$", (DEPLOY / "duepost-trigger.timer").read_text(), re.MULTILINE)
    assert calendar is not None
    done = subprocess.run(
        [tool("systemd-analyze"), "calendar", "--iterations=3", calendar[1]], capture_output=True, text=True, check=True
    )
    seconds = [int(minute) for minute in re.findall(r":(\d\d):00", done.stdout)]
    assert len(set(seconds)) >= 3


def test_cron_finds_nothing_wrong_with_the_crontab() -> None:
    subprocess.run([tool("crontab"), "-n", str(DEPLOY / "duepost.cron")], check=True, capture_output=True)


def test_the_crontabs_line_is_a_command_that_a_shell_can_read() -> None:
    line = (DEPLOY / "duepost.cron").read_text(encoding="utf-8").splitlines()[-1]
    assert line.startswith("* * * * * ")
    subprocess.run(["/bin/sh", "-n", "-c", line.removeprefix("* * * * * ")], check=True)


def test_workers_get_more_time_to_stop_than_a_relay_may_take_after_the_dot() -> None:
    unit = (DEPLOY / "duepost-worker.service").read_text(encoding="utf-8")
    supervisor = configparser.ConfigParser()
    supervisor.read(DEPLOY / "supervisor.conf")
    assert "TimeoutStopSec=660" in unit
    assert supervisor.getint("program:duepost-worker", "stopwaitsecs") > 600


def test_supervisor_runs_the_workers_and_the_watch() -> None:
    supervisor = configparser.ConfigParser()
    supervisor.read(DEPLOY / "supervisor.conf")
    commands = [supervisor.get(section, "command") for section in supervisor.sections()]
    assert [re.findall(r"bin/duepost (\w+ --\w+)", command) for command in commands] == [
        ["worker --processes"],
        ["trigger --watch"],
    ]
    for command in commands:
        subprocess.run([*shlex.split(command)[:1], "-n", *shlex.split(command)[1:]], check=True)


def test_the_container_is_not_root_and_asks_the_doctor() -> None:
    lines = (DEPLOY / "Containerfile").read_text(encoding="utf-8").splitlines()
    users = [line for line in lines if line.startswith("USER ")]
    assert users == ["USER duepost"]
    assert any(line.startswith("HEALTHCHECK") and '"duepost", "doctor"' in line for line in lines)


def test_the_example_names_every_setting_and_no_other() -> None:
    example = re.findall(r"^([A-Z_]+)=", (DEPLOY / "duepost.env.example").read_text(), re.MULTILINE)
    assert sorted(example) == sorted(str(field.validation_alias) for field in Settings.model_fields.values())


def test_every_setting_of_the_example_is_explained_in_the_line_before() -> None:
    lines = (DEPLOY / "duepost.env.example").read_text(encoding="utf-8").splitlines()
    for before, line in itertools.pairwise(lines):
        if not line.startswith("#"):
            assert before.startswith("# "), line


def test_only_commands_that_exist_are_run() -> None:
    for path in DEPLOY.iterdir():
        if path.suffix == ".md":
            continue
        used = re.findall(r'bin/duepost (\w+)|"duepost", "(\w+)"', path.read_text(encoding="utf-8"))
        assert {first or second for first, second in used} <= COMMANDS, path.name

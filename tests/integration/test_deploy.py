"""The files of deploy/, checked by the tools that read them."""

import configparser
import itertools
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from actors.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"

#: What is shipped; a machine's own settings (duepost.env, .env, templates/) may lie beside it.
SHIPPED = sorted(
    path
    for path in DEPLOY.iterdir()
    if path.is_file() and path.suffix not in {".env", ".md"} and not path.name.startswith(".")
)
UNITS = sorted(path.name for path in SHIPPED if path.suffix in {".service", ".timer"})
SERVICES = [unit for unit in UNITS if unit.endswith(".service")]
COMMANDS = {"worker", "trigger", "migrate", "doctor", "reopen", "web", "list", "resolve", "resume"}

#: The settings of the design; the code has a few more, for time-outs, retention and Sentry.
CONTRACT = {
    "DUEPOST_DATABASE_URL",
    "DUEPOST_SMTP_URL",
    "DUEPOST_FROM",
    "DUEPOST_TEMPLATES",
    "DUEPOST_DISABLED",
    "SENTRY_DSN",
}

#: Seconds that a relay may take to answer the last dot: RFC 5321 section 4.5.3.2.6.
AFTER_THE_DOT = 600

EVERY_MINUTE = "* * * * * "


def tool(name: str) -> str:
    """A program of the system; without it the test is skipped here, and fails where everything must be shown."""
    path = shutil.which(name)
    if path is None:
        absent(f"{name} is not installed")
    return path


def absent(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def read(name: str) -> str:
    return (DEPLOY / name).read_text(encoding="utf-8")


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.read_string(read(name))
    return parsed


def stub(path: Path, script: str) -> Path:
    """A program that stands in for one of the system's."""
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.fixture
def supervisor() -> configparser.ConfigParser:
    """supervisor.conf, read as supervisor does: what follows a blank and a semicolon is a comment."""
    parsed = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=(";",))
    parsed.read_string(read("supervisor.conf"))
    return parsed


@pytest.fixture
def services() -> dict[str, str]:
    """The text of each service of compose.yaml."""
    parts = re.split(
        r"^  ([a-z]+):\n", read("compose.yaml").split("\nservices:\n")[1].split("\nvolumes:\n")[0], flags=re.MULTILINE
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def example() -> dict[str, str]:
    """The example of settings, as a shell reads it."""
    script = f"set -a && . {DEPLOY / 'duepost.env.example'} && exec env -0"
    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": os.defpath}, capture_output=True, text=True, check=True
    )
    read_by_shell = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)
    return {name: value for name, value in read_by_shell.items() if name.startswith(("DUEPOST_", "SENTRY_"))}


# All files


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_file_says_in_its_first_line_what_it_is_for(path: Path) -> None:
    # JSON has no comments.
    says = (
        r'^\{\n  "title": "\w+",\n  "uid": "\w+",\n  "description": ".{10,}"'
        if path.suffix == ".json"
        else r"^[#;] \S.{10,}"
    )
    assert re.match(says, read(path.name))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_file_is_explained_in_the_readme(path: Path) -> None:
    assert re.search(rf"^\|.*`{re.escape(path.name)}`.* \| .+ \| .+ \|$", read("README.md"), re.MULTILINE)


@pytest.mark.parametrize("path", [*SHIPPED, DEPLOY / "README.md"], ids=lambda path: path.name)
def test_only_commands_of_the_contract_are_run(path: Path) -> None:
    used = re.findall(r'(?:bin/duepost |"duepost", "|`duepost )(\w+)', read(path.name))
    assert set(used) <= COMMANDS


@pytest.mark.parametrize("command", sorted(COMMANDS - {"worker"}))
def test_every_flag_that_is_given_is_one_of_the_commands(command: str) -> None:
    text = "\n".join(read(path.name) for path in SHIPPED).replace('", "', " ")
    lines = re.findall(rf"\bduepost {command}\b([^\"`;|\n]*)", text)
    assert lines
    done = subprocess.run(
        [sys.executable, "-m", "duepost", command, "--help"], capture_output=True, text=True, check=True
    )
    for flag in re.findall(r"--[a-z-]+", " ".join(lines)):
        assert re.search(rf"{flag}(?![a-z-])", done.stdout), flag


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_images_are_named_without_a_registry(path: Path) -> None:
    images = re.findall(r"^(?:FROM|\s+image:) (\S+)$", read(path.name), re.MULTILINE)
    assert [image for image in images if "/" in image] == []


# systemd


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong_with_the_unit(name: str, tmp_path: Path) -> None:
    command = stub(tmp_path / "duepost", "")
    for each in UNITS:
        (tmp_path / each).write_text(read(each).replace("/opt/duepost/bin/duepost", str(command)), encoding="utf-8")
    done = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", str(tmp_path / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    complaints = [line for line in done.stderr.splitlines() if str(tmp_path) in line or name in line]
    assert done.returncode == 0, done.stderr
    assert complaints == []


def test_systemd_reads_the_timer_as_every_minute() -> None:
    calendar = unit("duepost-trigger.timer").get("Timer", "OnCalendar")
    done = subprocess.run(
        [tool("systemd-analyze"), "calendar", "--iterations=3", calendar], capture_output=True, text=True, check=True
    )
    [first, second, third] = [
        int(hour) * 60 + int(minute)
        for hour, minute in re.findall(r"(?:elapse|#\d): .* (\d\d):(\d\d):00 ", done.stdout)
    ]
    assert ((second - first) % 1440, (third - second) % 1440) == (1, 1)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_not_root_and_shut_in(name: str) -> None:
    service = unit(name)["Service"]
    assert service["User"] == "duepost"
    assert service["EnvironmentFile"] == "/etc/duepost/duepost.env"
    assert service["ProtectSystem"] == "strict"
    assert [service[key] for key in ("NoNewPrivileges", "ProtectHome", "PrivateTmp")] == ["yes"] * 3


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_starts_after_network_and_database(name: str) -> None:
    assert unit(name)["Unit"]["After"].split() == ["network-online.target", "postgresql.service"]


@pytest.mark.parametrize("name", ["duepost-watch.service", "duepost-worker.service"])
def test_systemd_tries_again_for_ever_but_not_with_bad_settings(name: str) -> None:
    parsed = unit(name)
    assert parsed["Service"]["Restart"] == "on-failure"
    assert parsed["Service"]["RestartPreventExitStatus"] == "2 78"
    assert parsed["Unit"]["StartLimitIntervalSec"] == "0"


def test_systemd_signals_the_master_alone_and_waits_longer_than_a_relay_may_take() -> None:
    service = unit("duepost-worker.service")["Service"]
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > AFTER_THE_DOT


def test_a_tick_that_hangs_is_ended_before_the_next() -> None:
    service = unit("duepost-trigger.service")["Service"]
    assert service["Type"] == "oneshot"
    assert int(service["TimeoutStartSec"]) < 60


# cron


def test_cron_finds_nothing_wrong_with_the_crontab() -> None:
    crontab = tool("crontab")
    usage = subprocess.run([crontab, "-h"], capture_output=True, text=True, check=False)
    said = usage.stdout + usage.stderr
    # Debian's cron calls it -n; cronie has -T, and another meaning for -n.
    flag = "-n" if "dry run" in said else "-T" if "-T <file>" in said else absent("this crontab cannot check a file")
    done = subprocess.run([crontab, flag, str(DEPLOY / "duepost.cron")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_crontab_has_its_environment_at_the_top_and_one_line_a_minute() -> None:
    lines = [line for line in read("duepost.cron").splitlines() if not line.startswith("#")]
    *environment, job = lines
    assert [line.partition("=")[0] for line in environment] == ["SHELL", "PATH", "MAILTO"]
    assert job.startswith(EVERY_MINUTE)
    assert "%" not in job, "cron takes it for the end of the line"


@pytest.fixture
def cron(tmp_path: Path) -> Callable[[str], tuple[str, str]]:
    """Runs the crontab's line as cron does, with a stub for duepost: what would be mailed, and what is logged."""

    def run(script: str) -> tuple[str, str]:
        log = tmp_path / "log"
        stub(tmp_path / "logger", f'cat > "{log}"')
        command = stub(tmp_path / "duepost", script)
        job = read("duepost.cron").splitlines()[-1].removeprefix(EVERY_MINUTE)
        job = job.replace("/opt/duepost/bin/duepost", str(command))
        job = job.replace("/etc/duepost/duepost.env", str(DEPLOY / "duepost.env.example"))
        environment = {"PATH": f"{tmp_path}:{os.defpath}"}
        done = subprocess.run(["/bin/sh", "-c", job], env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr, log.read_text(encoding="utf-8")

    return run


def test_a_tick_from_cron_has_the_settings(cron: Callable[[str], tuple[str, str]], example: dict[str, str]) -> None:
    _, logged = cron('printf %s "$* $DUEPOST_SMTP_URL"')
    assert logged == f"trigger --quiet {example['DUEPOST_SMTP_URL']}"


def test_a_tick_from_cron_that_fails_is_logged_and_not_mailed(cron: Callable[[str], tuple[str, str]]) -> None:
    mailed, logged = cron("echo it failed >&2; exit 1")
    assert (mailed, logged) == ("", "it failed\n")


# supervisor


def test_supervisor_runs_the_workers_and_the_watch(supervisor: configparser.ConfigParser) -> None:
    commands = [shlex.split(supervisor[section]["command"]) for section in supervisor.sections()]
    assert [command[:2] for command in commands] == [["/bin/sh", "-c"]] * 2
    lines = [command[2].partition(" && exec ")[2] for command in commands]
    assert lines == [
        "/opt/duepost/bin/duepost worker --processes 2 --threads 8",
        "/opt/duepost/bin/duepost trigger --watch",
    ]


def test_supervisors_lines_are_commands_that_a_shell_can_read(supervisor: configparser.ConfigParser) -> None:
    for section in supervisor.sections():
        shell, *arguments = shlex.split(supervisor[section]["command"])
        subprocess.run([shell, "-n", *arguments], check=True)


def test_supervisor_can_read_its_configuration(tmp_path: Path) -> None:
    options = pytest.importorskip("supervisor.options").ServerOptions()
    user = pwd.getpwuid(os.getuid()).pw_name
    text = read("supervisor.conf").replace("user=duepost", f"user={user}")
    text = text.replace("/var/log/supervisor", str(tmp_path)).replace("/var/lib/duepost", str(tmp_path))
    path = tmp_path / "supervisord.conf"
    path.write_text(f"[supervisord]\n{text}", encoding="utf-8")
    options.realize(["-c", str(path)])
    assert [group.name for group in options.process_group_configs] == ["duepost-watch", "duepost-worker"]


def test_supervisors_programs_are_not_root(supervisor: configparser.ConfigParser) -> None:
    assert [supervisor[section]["user"] for section in supervisor.sections()] == ["duepost"] * 2


def test_supervisor_waits_longer_than_a_relay_may_take(supervisor: configparser.ConfigParser) -> None:
    worker = supervisor["program:duepost-worker"]
    assert worker["stopsignal"] == "TERM"
    assert "stopasgroup" not in worker, "dramatiq's master gets the signal, and tells its workers"
    assert int(worker["stopwaitsecs"]) > AFTER_THE_DOT


# Containers


def test_the_container_is_not_root() -> None:
    lines = read("Containerfile").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER duepost"]
    assert lines.index("USER duepost") > max(i for i, line in enumerate(lines) if line.startswith("RUN "))


def test_the_container_runs_workers_and_asks_the_doctor() -> None:
    text = read("Containerfile")
    assert re.search(r'^CMD \["duepost", "worker"', text, re.MULTILINE)
    assert re.search(r'^HEALTHCHECK .*CMD \["duepost", "doctor"', text, re.MULTILINE)


def test_the_container_is_built_of_what_the_wheel_needs_and_nothing_else() -> None:
    copied = [line.split()[1:-1] for line in read("Containerfile").splitlines() if line.startswith("COPY ")]
    sources = {source for line in copied for source in line}
    assert sources == {"pyproject.toml", "README.md", "LICENSE", "actors", "models", "duepost"}
    assert all((DEPLOY.parent / source).exists() for source in sources)


def test_compose_is_yaml() -> None:
    parsed = pytest.importorskip("yaml").safe_load(read("compose.yaml"))
    assert list(parsed["services"]) == ["database", "migrate", "worker", "watch"]


def test_compose_migrates_a_healthy_database_before_anything_else_runs(services: dict[str, str]) -> None:
    assert list(services) == ["database", "migrate", "worker", "watch"]
    assert "condition: service_healthy" in services["migrate"]
    assert 'command: ["duepost", "migrate"]' in services["migrate"]
    for name in ("worker", "watch"):
        assert re.search(r"migrate:\n +condition: service_completed_successfully", services[name])


def test_compose_restarts_all_but_the_migration(services: dict[str, str]) -> None:
    policies = {name: re.findall(r"^    restart: (.+)$", text, re.MULTILINE) for name, text in services.items()}
    on = ["unless-stopped"]
    assert policies == {"database": on, "migrate": ['"no"'], "worker": on, "watch": on}


def test_compose_asks_for_the_health_of_database_and_worker(services: dict[str, str]) -> None:
    assert "pg_isready" in services["database"]
    assert "healthcheck" not in services["worker"], "the image's own"


def test_compose_shuts_duepost_in(services: dict[str, str]) -> None:
    common = read("compose.yaml").split("\nservices:\n")[0]
    assert "  read_only: true\n" in common
    assert '  cap_drop: ["ALL"]\n' in common
    assert '  security_opt: ["no-new-privileges:true"]\n' in common
    assert all("<<: *duepost" in services[name] for name in ("migrate", "worker", "watch"))


def test_compose_gives_workers_longer_to_stop_than_a_relay_may_take(services: dict[str, str]) -> None:
    grace = re.search(r"stop_grace_period: (\d+)m\n", services["worker"])
    assert grace is not None
    assert int(grace[1]) * 60 > AFTER_THE_DOT


def test_an_application_on_the_same_machine_reaches_composes_database(services: dict[str, str]) -> None:
    assert re.search(r'ports: \["127\.0\.0\.1:\$\{POSTGRES_PORT:-5432\}:5432"\]', services["database"])


def test_compose_has_no_password_of_its_own() -> None:
    uses = re.findall(r"\$\{POSTGRES_PASSWORD(..)", read("compose.yaml"))
    assert set(uses) == {":?"}


# Settings


def test_the_example_names_every_setting_and_no_other(example: dict[str, str]) -> None:
    known = {str(field.validation_alias) for field in Settings.model_fields.values()}
    assert set(example) == known
    assert known >= CONTRACT


def test_the_example_is_accepted_as_it_stands(example: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in example.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert settings.need_relay().host == "relay.example.com"
    assert settings.need_sender().address == "noreply@example.com"


def as_kubectl_reads(text: str) -> dict[str, str]:
    """An env file as `kubectl create secret --from-env-file` reads it: what follows = is the value, as it stands."""
    lines = [line.lstrip() for line in text.splitlines()]
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_every_value_of_the_example_is_read_alike_by_kubectl_shells_systemd_and_compose(
    example: dict[str, str],
) -> None:
    values = as_kubectl_reads(read("duepost.env.example"))
    assert values == example
    # Nothing that systemd or compose would take for a quotation mark, an escape, a comment or a variable.
    assert [value for value in values.values() if not re.fullmatch(r"[A-Za-z0-9:/@.+_-]*", value)] == []


def test_kubectls_reading_of_the_example_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in as_kubectl_reads(read("duepost.env.example")).items():
        monkeypatch.setenv(name, value)
    assert Settings().need_relay().host == "relay.example.com"


def test_every_setting_of_the_example_is_explained_in_the_line_before() -> None:
    lines = read("duepost.env.example").splitlines()
    for before, line in itertools.pairwise(lines):
        if not line.startswith("#"):
            assert before.startswith("# "), line


# Kubernetes


#: MiB that a worker process has at its start, at most, and that its master has.
AT_THE_START, MASTER = 160, 100


def test_the_cluster_s_memory_fits_what_workers_may_take() -> None:
    [workers] = [each for each in objects() if each["metadata"]["name"] == "duepost-worker"]
    [container] = workers["spec"]["template"]["spec"]["containers"]
    command, environment = container["command"], {each["name"]: each["value"] for each in container["env"]}
    processes = int(command[command.index("--processes") + 1])
    units = {"Gi": 1024, "Mi": 1}
    limit = container["resources"]["limits"]["memory"]
    most = processes * (AT_THE_START + int(environment["DUEPOST_MEMORY_LIMIT"])) + MASTER
    assert int(limit[:-2]) * units[limit[-2:]] >= most


def test_the_cluster_s_migration_can_be_applied_again() -> None:
    [migration] = [each for each in objects() if each["kind"] == "Job"]
    assert migration["spec"]["ttlSecondsAfterFinished"] > 0
    assert f"kubectl delete job {migration['metadata']['name']} --ignore-not-found" in read("README.md")


def test_the_cluster_has_templates_with_their_subfolders() -> None:
    assert "configMap" not in read("kubernetes.yaml")
    assert re.search(r"^COPY templates /templates$", read("templates.Containerfile"), re.MULTILINE)


def objects() -> list[dict[str, Any]]:
    """The objects of kubernetes.yaml."""
    return list(pytest.importorskip("yaml").safe_load_all(read("kubernetes.yaml")))


@pytest.fixture
def cluster() -> dict[str, dict[str, Any]]:
    """The pod of each object of kubernetes.yaml, by the object's name."""
    return {each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in objects()}


def test_the_cluster_runs_migration_workers_and_watch_and_none_is_root(cluster: dict[str, dict[str, Any]]) -> None:
    commands = {name: pod["containers"][0]["command"][1] for name, pod in cluster.items()}
    assert commands == {"duepost-migrate": "migrate", "duepost-worker": "worker", "duepost-watch": "trigger"}
    for pod in cluster.values():
        [container] = pod["containers"]
        assert container["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_cluster_asks_for_progress_and_waits_longer_than_a_relay_may_take(
    cluster: dict[str, dict[str, Any]],
) -> None:
    pod = cluster["duepost-worker"]
    assert pod["terminationGracePeriodSeconds"] > AFTER_THE_DOT
    assert pod["containers"][0]["livenessProbe"]["exec"]["command"] == ["duepost", "doctor", "--worker"]

"""The files of deploy/, checked by the tools that read them."""

import configparser
import itertools
import json
import os
import pwd
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError

from actors.metrics import MetricsServer, WorkerMetrics
from actors.settings import Settings
from tests.unit.test_metrics import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"

#: What is shipped; a machine's own settings (duepost.env, .env, users, templates/) may lie beside it.
SHIPPED = sorted(
    path
    for path in DEPLOY.iterdir()
    if path.is_file() and path.suffix not in {".env", ".md"} and path.name != "users" and not path.name.startswith(".")
)
UNITS = sorted(path.name for path in SHIPPED if path.suffix in {".service", ".timer"})
SERVICES = [unit for unit in UNITS if unit.endswith(".service")]
COMMANDS = {"worker", "bounces", "trigger", "migrate", "doctor", "reopen", "web", "list", "resolve", "resume"}

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
    # systemd takes a key twice.
    parsed = configparser.ConfigParser(interpolation=None, strict=False)
    parsed.optionxform = str  # type: ignore[assignment,method-assign]
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
def services() -> dict[str, dict[str, Any]]:
    """The services of compose.yaml, as YAML's anchors put them together."""
    parsed = yaml.safe_load(read("compose.yaml"))
    return dict(parsed["services"])


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


def test_images_of_ours_have_this_release_s_version() -> None:
    with (DEPLOY.parent / "pyproject.toml").open("rb") as file:
        version = tomllib.load(file)["project"]["version"]
    for name in ("kubernetes.yaml", "kubernetes-web.yaml", "templates.Containerfile"):
        assert set(re.findall(r"^(?:FROM|\s+image:) duepost(\S*)$", read(name), re.MULTILINE)) == {f":{version}"}
    assert f"-t duepost:{version} ." in read("README.md")


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
def test_systemd_finds_the_service_well_shut_in(name: str) -> None:
    done = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=true", "--no-pager", str(DEPLOY / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(rf"Overall exposure level for {name}: (\d+\.\d)", done.stdout)
    assert level is not None, done.stdout + done.stderr
    # 0 is shut in wholly, 10 not at all.
    assert float(level[1]) < 3, done.stdout


def test_services_are_shut_in_alike() -> None:
    own = {"ExecStart", "Type", "Restart", "RestartSec", "RestartPreventExitStatus", "KillMode"}
    own |= {"TimeoutStopSec", "TimeoutStartSec"}
    found = {name: {key: value for key, value in unit(name)["Service"].items() if key not in own} for name in SERVICES}
    assert all(each == found[SERVICES[0]] for each in found.values())
    texts = [re.findall(r"^SystemCallFilter=.*$", read(name), re.MULTILINE) for name in SERVICES]
    assert texts == [["SystemCallFilter=@system-service", "SystemCallFilter=~@privileged @resources"]] * len(SERVICES)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_keeps_what_duepost_needs(name: str) -> None:
    service = unit(name)["Service"]
    # PostgreSQL by a socket or the network, the relay; the resolver asks the kernel which addresses there are.
    assert set(service["RestrictAddressFamilies"].split()) == {"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}
    # Without it nobody could tell whether a dead worker was of this boot of this machine.
    assert "ProcSubset" not in service
    # Something that is refused is an error in the log, not the end of the process.
    assert service["SystemCallErrorNumber"] == "EPERM"
    assert service["StateDirectory"] == "duepost"


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


@pytest.mark.parametrize("name", ["duepost-watch.service", "duepost-web.service", "duepost-worker.service"])
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


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Containerfile, with their arguments: lines that go on are put together."""
    text = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", read(name), flags=re.MULTILINE))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in text.splitlines() if line]


CONTAINERFILES = ["Containerfile", "templates.Containerfile"]


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_hadolint_finds_nothing_wrong_with_the_containerfile(name: str) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        absent("hadolint is not installed")
    done = subprocess.run([hadolint, str(DEPLOY / name)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", CONTAINERFILES)
def test_every_instruction_is_known_and_its_shell_can_be_read(name: str) -> None:
    known = {"FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "STOPSIGNAL", "HEALTHCHECK", "CMD"}
    assert {instruction for instruction, _ in instructions(name)} <= known
    for instruction, arguments in instructions(name):
        if instruction == "RUN":
            subprocess.run(["/bin/sh", "-n", "-c", arguments], check=True)
        if instruction == "FROM":
            assert not arguments.endswith(":latest")


def test_the_container_is_not_root() -> None:
    lines = read("Containerfile").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 999:999"]
    assert lines.index("USER 999:999") > max(i for i, line in enumerate(lines) if line.startswith("RUN "))


def test_the_container_s_user_has_the_id_that_the_cluster_names(cluster: dict[str, dict[str, Any]]) -> None:
    created = re.search(r"useradd --system --uid (\d+) --gid (\d+)", read("Containerfile"))
    assert created is not None
    assert f"\nUSER {created[1]}:{created[2]}\n" in read("Containerfile")
    contexts = [pod["containers"][0]["securityContext"] for pod in cluster.values()]
    assert {context["runAsUser"] for context in contexts} == {int(created[1])}


def health_check() -> list[str]:
    """What the image runs to ask whether a container is well."""
    [arguments] = [
        arguments for instruction, arguments in instructions("Containerfile") if instruction == "HEALTHCHECK"
    ]
    command = json.loads(arguments.partition("CMD ")[2])
    assert isinstance(command, list)
    return command


def asked(command: list[str], **env: str) -> int:
    """The exit status of a health check."""
    return subprocess.run(
        command, env={"PATH": os.defpath, **env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    ).returncode


def test_the_container_runs_workers() -> None:
    assert re.search(r'^CMD \["duepost", "worker"', read("Containerfile"), re.MULTILINE)


def test_asking_for_health_starts_no_python() -> None:
    assert health_check()[0] == "bash"
    assert "python" not in " ".join(health_check())
    assert "duepost" not in " ".join(health_check())


def test_the_container_is_well_while_a_worker_process_answers_and_not_otherwise() -> None:
    server = MetricsServer(WorkerMetrics(), "127.0.0.1", free_port())
    server.start()
    try:
        assert asked(health_check(), DUEPOST_METRICS_PORT=str(server.port)) == 0
        port = str(server.port)
    finally:
        server.stop()
    assert asked(health_check(), DUEPOST_METRICS_PORT=port) != 0


def test_a_worker_that_hangs_is_not_well() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert asked(health_check(), DUEPOST_METRICS_PORT=str(silent.getsockname()[1])) != 0


def test_without_a_port_nothing_is_asked() -> None:
    assert asked(health_check()) == 0
    assert asked(health_check(), DUEPOST_METRICS_PORT="") == 0


def test_the_container_is_built_of_what_the_wheel_needs_and_nothing_else() -> None:
    copied = [line.split()[1:-1] for line in read("Containerfile").splitlines() if line.startswith("COPY ")]
    sources = {source for line in copied for source in line}
    assert sources == {"pyproject.toml", "README.md", "LICENSE", "actors", "models", "duepost"}
    assert all((DEPLOY.parent / source).exists() for source in sources)


# Compose

SERVICES_OF_COMPOSE = ["database", "migrate", "worker", "watch", "web"]
OURS = ("migrate", "worker", "watch", "web")


def test_the_compose_specification_takes_it() -> None:
    judge = Path(sys.executable).with_name("check-jsonschema")
    if not judge.exists():
        absent("check-jsonschema is not installed")
    done = subprocess.run(
        [judge, "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_migrates_a_healthy_database_before_anything_else_runs(services: dict[str, dict[str, Any]]) -> None:
    assert list(services) == SERVICES_OF_COMPOSE
    assert services["migrate"]["depends_on"] == {"database": {"condition": "service_healthy"}}
    assert services["migrate"]["command"] == ["duepost", "migrate"]
    for name in ("worker", "watch", "web"):
        assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_compose_restarts_all_but_the_migration(services: dict[str, dict[str, Any]]) -> None:
    policies = {name: service["restart"] for name, service in services.items()}
    on = "unless-stopped"
    assert policies == {"database": on, "migrate": "no", "worker": on, "watch": on, "web": on}


def test_compose_asks_for_the_health_of_database_worker_and_console(services: dict[str, dict[str, Any]]) -> None:
    assert services["database"]["healthcheck"]["test"][1] == "pg_isready"
    # The image's own, which wants a port; what the file of settings says of it is overruled.
    assert "healthcheck" not in services["worker"]
    assert int(services["worker"]["environment"]["DUEPOST_METRICS_PORT"])
    assert [services[name]["healthcheck"] for name in ("migrate", "watch")] == [{"disable": True}] * 2
    assert "/health" in services["web"]["healthcheck"]["test"][-1]


def test_the_console_of_compose_is_well_while_it_answers_and_not_otherwise(services: dict[str, dict[str, Any]]) -> None:
    command = [part.replace("$$", "$") for part in services["web"]["healthcheck"]["test"][1:]]
    server = MetricsServer(WorkerMetrics(), "127.0.0.1", free_port())
    server.start()
    command[-1] = command[-1].replace("8025", str(server.port))
    try:
        assert asked(command) == 0
    finally:
        server.stop()
    assert asked(command) != 0


def test_compose_s_console_is_for_this_machine_and_has_logins(services: dict[str, dict[str, Any]]) -> None:
    web = services["web"]
    assert web["profiles"] == ["web"]
    assert web["ports"] == ["127.0.0.1:${WEB_PORT:-8025}:8025"]
    assert web["environment"]["DUEPOST_WEB_USERS"] == "/users"
    assert {volume["target"]: volume["read_only"] for volume in web["volumes"]} == {"/templates": True, "/users": True}


def test_compose_shuts_duepost_in(services: dict[str, dict[str, Any]]) -> None:
    for name in OURS:
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["security_opt"] == ["no-new-privileges:true"]


def test_compose_gives_all_the_same_settings(services: dict[str, dict[str, Any]]) -> None:
    common = services["migrate"]["environment"]
    assert {"DUEPOST_DATABASE_URL", "DUEPOST_TEMPLATES", "DUEPOST_STATE_DIR"} == set(common)
    for name in OURS:
        assert services[name]["env_file"] == "duepost.env"
        assert common.items() <= services[name]["environment"].items()


def test_compose_s_templates_are_made_where_they_are_missing(services: dict[str, dict[str, Any]]) -> None:
    for name in OURS:
        [templates] = [volume for volume in services[name]["volumes"] if volume != "state:/var/lib/duepost/state"][:1]
        assert (templates["target"], templates["bind"]) == ("/templates", {"create_host_path": True})


def test_compose_gives_workers_longer_to_stop_than_a_relay_may_take(services: dict[str, dict[str, Any]]) -> None:
    grace = re.fullmatch(r"(\d+)m", services["worker"]["stop_grace_period"])
    assert grace is not None
    assert int(grace[1]) * 60 > AFTER_THE_DOT


def test_an_application_on_the_same_machine_reaches_composes_database(services: dict[str, dict[str, Any]]) -> None:
    assert services["database"]["ports"] == ["127.0.0.1:${POSTGRES_PORT:-5432}:5432"]


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


CLUSTER = ["kubernetes.yaml", "kubernetes-web.yaml"]

#: The oldest and the newest Kubernetes whose schemas the files are held against; None is the newest that is known.
KUBERNETES = ["1.29", None]


@pytest.mark.parametrize("version", KUBERNETES, ids=lambda version: version or "newest")
@pytest.mark.parametrize("name", CLUSTER)
def test_kubernetes_own_schemas_take_each_object(name: str, version: str | None) -> None:
    judge = Path(sys.executable).with_name("kubernetes-validate")
    if not judge.exists():
        absent("kubernetes-validate is not installed")
    asked_for = [] if version is None else ["--kubernetes-version", version]
    done = subprocess.run(
        [judge, "--strict", *asked_for, str(DEPLOY / name)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search(r"^(WARN|ERROR)", done.stdout + done.stderr, re.MULTILINE)


@pytest.mark.parametrize("name", CLUSTER)
def test_cluster_files_have_no_key_twice_and_no_anchors(name: str) -> None:
    assert not re.search(r"^\s*<<:|: [&*]\w", read(name), re.MULTILINE), "not every tool takes them"

    class Strict(yaml.SafeLoader):  # type: ignore[misc]
        """Takes no key twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(keys)), keys
            return dict(super().construct_mapping(node, deep))

    assert all(yaml.load_all(read(name), Loader=Strict))


def test_pods_are_restricted_as_the_pod_security_standard_has_it(cluster: dict[str, dict[str, Any]]) -> None:
    for pod in cluster.values():
        [container] = pod["containers"]
        context = container["securityContext"]
        assert context == {
            "runAsNonRoot": True,
            "runAsUser": 999,
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["resources"]["limits"].keys() == {"memory"}


def test_no_service_of_the_namespace_sets_a_variable_of_ours(
    cluster: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(pod["enableServiceLinks"] is False for pod in cluster.values())
    # What it is good for: this is what a service called duepost-metrics would set.
    monkeypatch.setenv("DUEPOST_METRICS_PORT", "tcp://10.96.0.7:9191")
    with pytest.raises(ValidationError, match="DUEPOST_METRICS_PORT"):
        Settings()


def test_labels_and_selectors_fit_each_other() -> None:
    deployments = [each for each in objects() if each["kind"] == "Deployment"]
    for each in deployments:
        assert each["spec"]["selector"]["matchLabels"].items() <= each["spec"]["template"]["metadata"]["labels"].items()
    apps = {each["spec"]["template"]["metadata"]["labels"]["app"] for each in objects() if "template" in each["spec"]}
    [policy] = [each for each in objects() if each["kind"] == "NetworkPolicy"]
    [choice] = policy["spec"]["podSelector"]["matchExpressions"]
    assert set(choice["values"]) == apps - {"duepost-web"}
    [service] = [each for each in objects() if each["kind"] == "Service"]
    assert service["spec"]["selector"]["app"] in apps


def test_prometheus_reaches_each_worker_process(cluster: dict[str, dict[str, Any]]) -> None:
    [container] = cluster["duepost-worker"]["containers"]
    command, ports = container["command"], [port["containerPort"] for port in container["ports"]]
    first = int({each["name"]: each["value"] for each in container["env"]}["DUEPOST_METRICS_PORT"])
    assert ports == list(range(first, first + int(command[command.index("--processes") + 1])))
    [policy] = [each for each in objects() if each["kind"] == "NetworkPolicy"]
    [rule] = policy["spec"]["ingress"]
    assert rule["ports"] == [{"port": ports[0], "endPort": ports[-1]}]


def objects() -> list[dict[str, Any]]:
    """The objects of the files for a cluster."""
    return [each for name in CLUSTER for each in yaml.safe_load_all(read(name))]


@pytest.fixture
def cluster() -> dict[str, dict[str, Any]]:
    """The pod of each object that has one, by the object's name."""
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"] for each in objects() if "template" in each["spec"]
    }


def test_the_cluster_runs_migration_workers_watch_and_console_and_none_is_root(
    cluster: dict[str, dict[str, Any]],
) -> None:
    commands = {name: pod["containers"][0]["command"][1] for name, pod in cluster.items()}
    assert commands == {
        "duepost-migrate": "migrate",
        "duepost-worker": "worker",
        "duepost-watch": "trigger",
        "duepost-web": "web",
    }
    for pod in cluster.values():
        [container] = pod["containers"]
        assert container["securityContext"]["runAsNonRoot"]
        assert container["securityContext"]["readOnlyRootFilesystem"]


def test_the_cluster_waits_longer_than_a_relay_may_take(cluster: dict[str, dict[str, Any]]) -> None:
    assert cluster["duepost-worker"]["terminationGracePeriodSeconds"] > AFTER_THE_DOT


@pytest.mark.parametrize(("name", "path"), [("duepost-worker", "/metrics"), ("duepost-web", "/health")])
def test_probes_start_no_process(cluster: dict[str, dict[str, Any]], name: str, path: str) -> None:
    [container] = cluster[name]["containers"]
    port = container["ports"][0]["name"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert "exec" not in container[probe]
        assert container[probe]["httpGet"] == {"path": path, "port": port}
    # One that is slow for a moment is not killed, and what it sends with it.
    assert container["livenessProbe"]["periodSeconds"] * container["livenessProbe"]["failureThreshold"] >= 60

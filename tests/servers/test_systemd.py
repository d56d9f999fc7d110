"""systemd really runs deploy/'s units, shut in as they are: on a machine of its own, as its first process."""

import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.processes import ROOT
from tests.relays import ScriptedRelay
from tests.servers.conftest import need, own_folder
from tests.servers.install import installed
from tests.servers.installation import Installation, OwnDatabase
from tests.servers.server import free_port
from tests.waiting import wait_until

UNITS = sorted([*(ROOT / "deploy").glob("*.service"), *(ROOT / "deploy").glob("*.timer")])
SERVICES = [path.name for path in UNITS if path.suffix == ".service"]
STAYING = ["duepost-watch.service", "duepost-web.service", "duepost-worker.service"]

#: Where the machine's systemd finds its units: these, and the targets that they name; nothing of the machine's own.
PLACE = "/etc/duepost-units"
TARGETS = ("basic", "multi-user", "network-online", "shutdown", "sysinit", "timers")

#: Puts itself into a control group of its own, $1, and becomes systemd, in namespaces in which that is the root of all.
BOOT = f"""
set -e
groups=/run/cgroup2
mkdir -p $groups
mount -t cgroup2 none $groups
mkdir $groups/$1
echo 0 > $groups/$1/cgroup.procs
exec unshare --pid --cgroup --mount --uts --ipc --fork --kill-child=KILL --mount-proc sh -c '
    mount --bind /proc/sys /proc/sys
    mount -o remount,bind,ro /proc/sys
    umount /run/cgroup2
    mount -t cgroup2 none /sys/fs/cgroup
    touch /var/log/console
    mount --bind /var/log/console /dev/console
    exec env container=duepost SYSTEMD_UNIT_PATH={PLACE} /usr/lib/systemd/systemd --system --unit=multi-user.target \\
        --log-target=console --show-status=no'
"""


class Systemd(Installation):
    """A machine whose first process is systemd."""

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """What it answers.

        Raises:
            RuntimeError: it failed.
        """
        # systemd hears only who is within its own namespaces; it has moved itself into this group.
        group = cgroup2() / self.own.name / "init.scope" / "cgroup.procs"
        pid, *_ = wait_until(lambda: group.read_text().split() if group.exists() else [], timeout=60, what="systemd")
        command = ["nsenter", "--target", pid, "--mount", "--pid", "--", "systemctl", "--no-pager", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{arguments}: {done.stdout}{done.stderr}")
        return done.stdout + done.stderr

    def shown(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.systemctl("show", "--property", what, "--value", unit).strip()

    def processes(self, unit: str) -> list[int]:
        """A unit's processes, by their numbers on the machine that runs the tests."""
        group = cgroup2() / self.own.name / self.shown(unit, "ControlGroup").lstrip("/")
        return [int(pid) for pid in (group / "cgroup.procs").read_text().split()]

    def state(self) -> str:
        """How it stands, for the message of a failure."""
        said = [path.read_text(errors="replace")[-3000:] for path in self.path("/var/log").glob("*") if path.is_file()]
        return "\n".join([self.systemctl("list-units", "--all", "duepost*", check=False), *said])


def cgroup2() -> Path:
    """Where the machine that runs the tests has its tree of control groups."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    pytest.fail("there is no tree of control groups")


def gone(group: Path) -> bool:
    """Removes a control group and all below it; says whether it could be done, which takes the end of all processes."""
    try:
        for each in sorted(group.rglob("*/"), reverse=True):
            each.rmdir()
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@dataclass
class Host:
    """What runs, and what is around it."""

    machine: Systemd
    database: OwnDatabase
    relay: ScriptedRelay
    port: int

    def send(self, count: int) -> None:
        """Schedules emails of a template; they arrive."""
        before = len(self.relay.messages)
        self.database.query(
            "SELECT duepost.schedule_email(kind => 'welcome', address => 'ann-' || i || '@example.com',"
            " template => 'hello', context => jsonb_build_object('name', 'Ann')) FROM generate_series(1, %s) AS i",
            count,
        )
        wait_until(
            lambda: len(self.relay.messages) == before + count and not self.database.query("SELECT FROM duepost.item"),
            timeout=300,
            what=f"{count} emails",
            state=self.machine.state,
        )
        assert b"Hello Ann" in self.relay.messages[-1].content
        # By a process of its own, which is shut in like the worker.
        assert b'<p style=3D"color: red;' in self.relay.messages[-1].content


@pytest.fixture
def host(own_database: OwnDatabase, tmp_path: Path) -> Iterator[Host]:
    """A machine with the units, none of which runs yet; its relay is known by name, and has TLS."""
    need("systemd")
    authority = Authority.made(tmp_path)
    port = free_port()
    with own_folder() as folder, ScriptedRelay(starttls=authority.server("localhost")) as relay:
        settings = {
            "DUEPOST_DATABASE_URL": own_database.url,
            "DUEPOST_SMTP_URL": f"smtp+starttls://localhost:{relay.port}",
            "DUEPOST_SMTP_CA": "/etc/duepost/ca.pem",
            "DUEPOST_FROM": "noreply@example.com",
            "DUEPOST_TEMPLATES": "/var/lib/duepost/templates",
            "DUEPOST_PREPARE_HTML": "1",
        }
        machine = Systemd(installed("systemd"), folder, settings)
        machine.write("/etc/duepost/ca.pem", authority.file.read_text())
        machine.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
        html = "<style>p{color:red}</style><p>Hello {{ name }}</p>"
        for ending, text in {"subject.txt": "Hello", "txt": "Hello {{ name }}", "html": html}.items():
            machine.write(f"/var/lib/duepost/templates/hello.{ending}", text)
        for path in UNITS:
            text = path.read_text().replace("bin/duepost web", f"bin/duepost web --port {port}")
            machine.write(f"{PLACE}/{path.name}", text)
        for target in TARGETS:
            machine.write(f"{PLACE}/{target}.target", "[Unit]\nDefaultDependencies=no\n")
        logs = "[Service]\nStandardOutput=append:/var/log/%N.log\nStandardError=inherit\n"
        machine.write(f"{PLACE}/duepost-.service.d/logs.conf", logs)
        try:
            with machine:
                machine.start(*machine.installed("sh", "-c", BOOT, "sh", folder.name))
                wait_until(
                    lambda: "running" in machine.systemctl("is-system-running", check=False),
                    timeout=300,
                    what="systemd",
                    state=lambda: machine.output + machine.state(),
                )
                yield Host(machine, own_database, relay, port)
        finally:
            wait_until(lambda: gone(cgroup2() / folder.name), timeout=60, what="the end of the control groups")


def test_shut_in_as_they_are_they_deliver_answer_and_end_in_order(host: Host) -> None:
    machine = host.machine
    machine.systemctl("start", *STAYING)
    host.send(20)
    with urllib.request.urlopen(f"http://127.0.0.1:{host.port}/health", timeout=120) as answer:
        assert answer.status == 200
    for unit in STAYING:
        for pid in machine.processes(unit):
            status = Path(f"/proc/{pid}/status").read_text()
            for line in ("NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000", "CapEff:\t0000000000000000"):
                assert line in status, unit
    assert list(machine.path("/var/lib/duepost/journal").iterdir())
    machine.systemctl("stop", *STAYING)
    assert {machine.shown(unit, "Result") for unit in STAYING} == {"success"}
    assert "Operation not permitted" not in machine.state()


def test_what_is_killed_is_started_again_and_nothing_of_it_stays(host: Host) -> None:
    machine = host.machine
    machine.systemctl("start", *STAYING)
    host.send(1)
    before = machine.processes("duepost-worker.service")
    assert len(before) >= 3
    machine.systemctl("kill", "--kill-whom=main", "--signal=KILL", "duepost-worker.service")
    wait_until(lambda: machine.shown("duepost-worker.service", "NRestarts") == "1", timeout=300, what="a restart")
    host.send(5)
    assert not set(before) & set(machine.processes("duepost-worker.service"))


def test_a_tick_from_the_timers_service_asks_for_a_pass(host: Host) -> None:
    host.machine.systemctl("start", "duepost-trigger.timer")
    host.machine.systemctl("start", "duepost-trigger.service")
    assert host.database.query("SELECT message_id FROM dramatiq.queue WHERE state = 'queued'")
    assert host.machine.shown("duepost-trigger.timer", "ActiveState") == "active"
    assert host.machine.shown("duepost-trigger.service", "Result") == "success"


def test_a_bad_setting_is_not_tried_again(host: Host) -> None:
    host.machine.write("/etc/duepost/duepost.env", "DUEPOST_DATABASE_URL=nonsense\nLD_LIBRARY_PATH=/opt/python/lib\n")
    host.machine.systemctl("start", "duepost-worker.service", check=False)
    wait_until(
        lambda: host.machine.shown("duepost-worker.service", "ActiveState") == "failed",
        timeout=300,
        what="the end",
        state=host.machine.state,
    )
    assert host.machine.shown("duepost-worker.service", "NRestarts") == "0"
    assert host.machine.shown("duepost-worker.service", "ExecMainStatus") == "2"

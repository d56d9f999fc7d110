"""supervisord really runs deploy/supervisor.conf: it delivers, outlives kill -9, and stops in order."""

import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.folders import short_folder
from tests.processes import ROOT, Process
from tests.relays import hang, reply
from tests.waiting import wait_until

PROGRAMS = ("duepost-watch", "duepost-worker")

#: What Debian's supervisord.conf says before it includes ours.
MAIN = """
[unix_http_server]
file={folder}/sock
[supervisord]
nodaemon=true
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/sock

"""


class Supervisor(Process):
    """supervisord with our programs; `folder` has a short path, as a socket's."""

    def __init__(self, site: Site, folder: Path) -> None:
        self._folder = folder
        self._conf = folder / "supervisord.conf"
        (folder / "duepost.env").write_text(
            "".join(
                f"{name}={shlex.quote(value)}\n"
                for name, value in site.env.items()
                if name.startswith(("DUEPOST_", "PYTHON"))
            )
        )
        ours = (ROOT / "deploy" / "supervisor.conf").read_text()
        for path, instead in {
            "/opt/duepost/bin/duepost": f"{sys.executable} -m duepost",
            "/etc/duepost/duepost.env": str(folder / "duepost.env"),
            "/var/lib/duepost": str(site.folder),
            "/var/log/supervisor": str(site.folder),
            "user=duepost": f"user={pwd.getpwuid(os.getuid()).pw_name}",
        }.items():
            assert path in ours
            ours = ours.replace(path, instead)
        self._conf.write_text(MAIN.format(folder=folder) + ours)
        command = [str(Path(sys.executable).with_name("supervisord")), "-c", str(self._conf)]
        # Nothing of the settings but what the file has.
        super().__init__(command, {"PATH": os.environ["PATH"]}, site.folder / "supervisord.log", cwd=folder)

    def ctl(self, *arguments: str) -> str:
        """What supervisorctl answers."""
        command = self.ctl_command(*arguments)
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        return done.stdout + done.stderr

    def ctl_command(self, *arguments: str) -> list[str]:
        """A command of supervisorctl's."""
        return [str(Path(sys.executable).with_name("supervisorctl")), "-c", str(self._conf), *arguments]

    def states(self) -> dict[str, str]:
        """How the programs stand, by name."""
        return dict(re.findall(r"^(\S+)\s+([A-Z]+)\b", self.ctl("status"), re.MULTILINE))

    def pid(self, program: str) -> int:
        """The process that supervisord has started."""
        return int(self.ctl("pid", program))

    def wait_until(self, state: str) -> None:
        """Until all programs are in that state."""
        wait_until(
            lambda: self.states() == dict.fromkeys(PROGRAMS, state),
            timeout=300,
            what=f"all to be {state}",
            state=lambda: self.ctl("status"),
        )


@pytest.fixture
def supervisor(site: Site) -> Iterator[Supervisor]:
    """supervisord, with workers and watch running."""
    folder = short_folder("duepost-supervisor-")
    try:
        with Supervisor(site, folder) as supervisor:
            supervisor.wait_until("RUNNING")
            yield supervisor
            supervisor.stop()
        assert running(folder) == []
    finally:
        for pid in running(folder):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def running(folder: Path) -> list[int]:
    """The processes that have the settings of this test's file: those of ours, whoever their parent is."""
    state = f"DUEPOST_STATE_DIR={state_of(folder)}".encode()
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if state in environ.read_bytes().split(b"\0"):
                found.append(int(environ.parent.name))
        except OSError:
            continue
    return found


def state_of(folder: Path) -> str:
    """The state folder of the settings there, which no other test has."""
    [line] = [line for line in (folder / "duepost.env").read_text().splitlines() if "STATE_DIR" in line]
    return shlex.split(line)[0].partition("=")[2]


def test_what_supervisord_runs_delivers(site: Site, supervisor: Supervisor) -> None:
    site.schedule(20)
    site.wait_until_finished(20, timeout=300)
    assert len(site.received()) == 20


@pytest.mark.parametrize("which", ["the master", "a worker process"])
def test_what_is_killed_is_started_again_and_nothing_of_it_stays(
    site: Site, supervisor: Supervisor, which: str
) -> None:
    wait_until(lambda: site.logs().count("is ready for action") == 2, timeout=300, what="two", state=site.logs)
    first = supervisor.pid("duepost-worker")
    children = [int(pid) for pid in Path(f"/proc/{first}/task/{first}/children").read_text().split()]
    os.kill(first if which == "the master" else children[0], signal.SIGKILL)
    wait_until(lambda: supervisor.pid("duepost-worker") not in {0, first}, timeout=300, what="another one")
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in [first, *children]),
        timeout=300,
        what="the end of the first ones",
        state=site.logs,
    )
    supervisor.wait_until("RUNNING")
    site.schedule(10)
    site.wait_until_finished(10, timeout=300)


def test_stop_all_waits_for_what_is_being_sent(site: Site, supervisor: Supervisor) -> None:
    site.relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"), times=1)
    site.schedule(1)
    wait_until(lambda: site.pending() == {"sending": 1}, timeout=300, what="an email on its way", state=site.logs)
    with Process(supervisor.ctl_command("stop", "all"), {}, site.folder / "stop.log") as stop:
        wait_until(lambda: supervisor.states().get("duepost-worker") == "STOPPING", what="it to be told")
        wait_until(lambda: supervisor.states().get("duepost-watch") == "STOPPED", what="the end of the watch")
        assert site.pending() == {"sending": 1}
        site.relay.release()
        stop.wait(300)
    supervisor.wait_until("STOPPED")
    assert (site.outcomes(), site.pending()) == ({"sent": 1}, {})

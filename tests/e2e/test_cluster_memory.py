"""What processes really take fits into what deploy/'s files for a cluster let each container have."""

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from tests.e2e.conftest import Site
from tests.integration.test_deploy import AT_THE_START, CLUSTER, DEPLOY, MASTER
from tests.postgres import PostgresServer
from tests.processes import ROOT, Process
from tests.servers.server import free_port
from tests.waiting import wait_until

#: Of a limit, how much a process that has just started may take: the rest is for what comes later.
SHARE = 0.75


def limits() -> Mapping[str, int]:
    """MiB that the container of each command may have."""
    found = {}
    for name in CLUSTER:
        for each in yaml.safe_load_all((DEPLOY / name).read_text()):
            if "template" in each["spec"]:
                [container] = each["spec"]["template"]["spec"]["containers"]
                number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", container["resources"]["limits"]["memory"]).groups()  # type: ignore[union-attr]
                found[container["command"][1]] = int(number) * {"Mi": 1, "Gi": 1024}[unit]
    return found


def peak(status: str) -> float:
    """MiB that a process has had at the most, from what the kernel says of it."""
    [kilobytes] = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) / 1024


def most(pid: int) -> float:
    """MiB that a process has had at the most."""
    return peak(Path(f"/proc/{pid}/status").read_text())


def test_a_worker_and_its_master_take_what_the_limit_reckons_with(site: Site) -> None:
    with site.workers(processes=2, threads=8, DUEPOST_METRICS_PORT=str(free_port())) as workers:
        site.schedule(20)
        site.wait_until_finished(20)
        assert most(workers.popen.pid) < MASTER
        assert [most(pid) for pid in workers.worker_pids() if most(pid) > AT_THE_START] == []


def test_a_watch_and_a_console_fit(site: Site) -> None:
    command = [sys.executable, "-m", "duepost", "web", "--port", "0"]
    with site.watch() as watch, Process(command, {**site.env, "PYTHONPATH": str(ROOT)}, site.folder / "web.log") as web:
        ticks = "SELECT message_id FROM dramatiq.queue"
        wait_until(lambda: site.query(ticks), timeout=120, what="the watch's tick", state=site.logs)
        wait_until(lambda: "The console is at" in web.output, timeout=120, what="the console", state=site.logs)
        assert most(watch.popen.pid) < SHARE * limits()["trigger"]
        assert most(web.popen.pid) < SHARE * limits()["web"]


#: A command that says at its end what the kernel has of its process.
SAYS = """
import atexit, sys
from duepost.__main__ import main
atexit.register(lambda: print(open("/proc/self/status").read()))
sys.argv = ["duepost", "migrate"]
main()
"""


def test_a_migration_fits(server: PostgresServer, site: Site) -> None:
    with server.fresh_database(migrated=False) as url:
        env = {**site.env, "DUEPOST_DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", SAYS], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert peak(done.stdout) < SHARE * limits()["migrate"]

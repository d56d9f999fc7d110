"""Debian's cron daemon reads deploy/duepost.cron, and a tick a minute comes of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import ROOT
from tests.servers.conftest import need, own_folder
from tests.servers.install import installed
from tests.servers.installation import Installation, OwnDatabase
from tests.waiting import wait_until

SPOOL = "/var/spool/cron/crontabs"


@pytest.fixture
def machine(own_database: OwnDatabase) -> Iterator[Installation]:
    """A machine whose cron has our crontab, installed as the README says."""
    need("cron")
    with own_folder() as folder:
        settings = {"DUEPOST_DATABASE_URL": own_database.url, "DUEPOST_SMTP_URL": "smtp://127.0.0.1:9"}
        with Installation(installed("cron"), folder, {**settings, "DUEPOST_FROM": "noreply@example.com"}) as machine:
            machine.folder(SPOOL, mode=0o1730)
            crontab = (ROOT / "deploy" / "duepost.cron").read_text()
            machine.write("/etc/duepost/duepost.cron", crontab)
            start = "crontab -u duepost /etc/duepost/duepost.cron && exec cron -f"
            machine.start(*machine.installed("sh", "-c", start))
            yield machine


def test_a_minute_of_cron_asks_for_a_pass(machine: Installation, own_database: OwnDatabase) -> None:
    # No worker runs: what a tick asks for stays where it is.
    def asked() -> object:
        return own_database.query("SELECT message_id FROM dramatiq.queue WHERE state = 'queued'")

    wait_until(asked, timeout=150, what="a tick from cron", state=lambda: machine.output)
    installed_crontab = machine.path(f"{SPOOL}/duepost").read_text()
    assert installed_crontab.endswith((ROOT / "deploy" / "duepost.cron").read_text())
    assert Path(machine.path(SPOOL)).stat().st_mode & 0o7777 == 0o1730

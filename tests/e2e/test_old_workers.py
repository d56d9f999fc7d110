"""A breaking migration: workers of older releases finish, say so and end; while they are there it is refused."""

import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable
from email import message_from_bytes
from pathlib import Path

import pytest
from dramatiq_pg.schema import generate_init_sql

from actors.liveness.maintenance import TOO_OLD
from actors.ruling import Phase
from models.database.connections import Database
from models.database.migrate import FOLDER, migrate
from models.errors import MigrationRefused
from tests.e2e.conftest import Site
from tests.processes import Workers, duepost
from tests.relays import hang, reply
from tests.waiting import wait_until

#: A migration of a later release that workers of this one could not work on.
BREAKING = "-- oldest worker: 9001\nCREATE TABLE duepost.later ();\n"

Upgrade = Callable[..., list[str]]


@pytest.fixture
def upgrade(site: Site, tmp_path: Path) -> Upgrade:
    """Runs the later release's `duepost migrate`."""
    folder = tmp_path / "migrations"
    shutil.copytree(FOLDER, folder)
    (folder / "9001_breaking.sql").write_text(BREAKING)

    def upgrade(*, despite_old_workers: bool = False) -> list[str]:
        database = Database(site.url)
        try:
            return list(
                migrate(
                    database,
                    queue_schema=generate_init_sql(),
                    folder=folder,
                    despite_old_workers=despite_old_workers,
                )
            )
        finally:
            database.close()

    return upgrade


def is_upgraded(site: Site) -> bool:
    return site.query("SELECT to_regclass('duepost.later') IS NOT NULL") == [(True,)]


def copies(site: Site) -> Counter[str]:
    """How many times the relay took each email."""
    return Counter(str(message_from_bytes(each.content)["Message-ID"]) for each in site.relay.messages)


def end_of_session(site: Site, workers: Workers) -> None:
    """Ends the sessions that say these worker processes are alive."""
    ended = site.query(
        "SELECT pg_terminate_backend(session_pid) FROM duepost.worker WHERE gone_at IS NULL AND pid = ANY (%s)",
        workers.worker_pids(),
    )
    assert ended == [(True,)]


def test_running_workers_finish_what_they_have_in_hand_and_end_before_the_migration(
    site: Site, upgrade: Upgrade
) -> None:
    site.relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"), times=1)
    applied: list[str] = []
    upgrading = threading.Thread(target=lambda: applied.extend(upgrade(despite_old_workers=True)))
    with site.watch() as watch, site.workers(processes=2) as workers:
        site.schedule(20)
        wait_until(lambda: len(site.relay.messages) == 19 and site.pending() == {"sending": 1}, state=site.logs)
        upgrading.start()
        assert watch.wait() == TOO_OLD
        wait_until(lambda: workers.output.count("finishes what it has in hand") == 2, state=site.logs)
        later = site.schedule(5, prefix="later")
        assert not is_upgraded(site), "it waits for the email in hand"
        site.relay.release()
        assert workers.wait() == TOO_OLD
    upgrading.join(timeout=60)
    assert applied == ["9001_breaking.sql"]
    assert site.outcomes() == {"sent": 20}
    assert site.pending() == {"scheduled": len(later)}
    assert site.query("SELECT count(*) FROM duepost.attempt WHERE verdict <> 'sent'") == [(0,)]
    assert set(copies(site).values()) == {1}
    assert "Traceback" not in site.logs()
    [line] = [line for line in watch.output.splitlines() if "too old" in line]
    assert line.startswith("duepost: this release is too old for the database: it knows migrations up to")


def test_it_is_refused_while_workers_run_that_it_would_break_and_goes_on_once_they_are_stopped(
    site: Site, upgrade: Upgrade
) -> None:
    with site.workers(processes=2) as workers:
        with pytest.raises(MigrationRefused) as refused:
            upgrade()
        named = [int(pid) for pid in re.findall(r"\(process (\d+) on", str(refused.value))]
        assert sorted(named) == sorted(workers.worker_pids())
        assert not is_upgraded(site)
        assert workers.stop() == 0
    assert upgrade() == ["9001_breaking.sql"]


def test_what_is_too_old_ends_at_its_start_with_one_line_and_that_status(site: Site, upgrade: Upgrade) -> None:
    upgrade()
    workers = Workers(site.env, site.folder / "workers.log", processes=1, ready=False)
    assert workers.wait() == TOO_OLD
    assert len(re.findall(r"^duepost: this release is too old", workers.output, re.MULTILINE)) == 1, workers.output
    assert "Traceback" not in workers.output
    for command in (["worker"], ["trigger"], ["trigger", "--watch"], ["list"], ["stats"], ["pause"], ["migrate"]):
        done = duepost(*command, env=site.env)
        assert done.returncode == TOO_OLD, command
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert done.stderr.startswith("duepost: this release is too old"), command
    assert site.query("SELECT count(*) FROM duepost.worker") == [(0,)]


def test_a_worker_that_was_away_during_the_migration_begins_nothing_when_it_is_back(
    site: Site, upgrade: Upgrade
) -> None:
    with site.workers() as workers:
        os.killpg(workers.popen.pid, signal.SIGSTOP)
        end_of_session(site, workers)
        [email_id] = site.schedule()
        # A pass of the scheduler waits for the worker.
        assert duepost("trigger", env=site.env).returncode == 0
        upgrade()
        os.killpg(workers.popen.pid, signal.SIGCONT)
        assert workers.wait() == TOO_OLD
    assert site.query("SELECT id, state, attempts FROM duepost.scheduled_email") == [(email_id, "scheduled", 0)]
    assert site.relay.messages == []


def test_a_newer_schema_that_asks_for_nothing_is_worked_on(site: Site) -> None:
    site.query("INSERT INTO duepost.migration (number, name, checksum) VALUES (9001, '9001_later.sql', '')")
    with site.workers(), site.watch():
        site.schedule(3)
        site.wait_until_finished(3)

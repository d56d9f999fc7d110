"""A server whose disk is full, or that takes no writes: said clearly, and nothing is lost."""

import json
import secrets
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.conftest import Site
from tests.postgres import PostgresServer
from tests.processes import duepost, environment
from tests.relays import ScriptedRelay
from tests.waiting import wait_until

#: How many emails of half a megabyte; more than a disk that is full has room for, less than one that is not.
BIG_EMAILS = 60


@contextmanager
def site_of(server: PostgresServer, relay: ScriptedRelay, folder: Path) -> Iterator[Site]:
    with server.fresh_database() as url:
        yield Site(url, relay, environment(url, relay.url), folder)


def schedule_from_a_shell(site: Site, address: str = "shell@example.com") -> subprocess.CompletedProcess[str]:
    arguments = ["--kind", "k", "--address", address, "--subject", "s", "--body-text", "b"]
    return duepost("schedule", *arguments, env=site.env)


def test_a_server_that_takes_no_writes_is_waited_for(
    own_server: PostgresServer, relay: ScriptedRelay, tmp_path: Path
) -> None:
    with site_of(own_server, relay, tmp_path) as site, site.workers(), site.watch():
        site.schedule(5)
        site.wait_until_finished(5)
        site.schedule(20, scheduled_at="now() + interval '2 s'")
        site.query("ALTER SYSTEM SET default_transaction_read_only = on")
        site.query("SELECT pg_reload_conf()")
        wait_until(lambda: site.query("SHOW default_transaction_read_only") == [("on",)])
        refused = schedule_from_a_shell(site)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert "read-only transaction" in refused.stderr
        wait_until(lambda: "the database is away" in site.logs(), state=site.logs)
        site.query("ALTER SYSTEM RESET default_transaction_read_only")
        site.query("SELECT pg_reload_conf()")
        site.wait_until_finished(25)
        assert schedule_from_a_shell(site).returncode == 0
        site.wait_until_finished(26)
    assert len(site.received()) == 26


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "tmpfs", folder], check=False).returncode:
        pytest.skip("no right to mount a disk here")
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def big_file(folder: Path) -> Path:
    """Emails that no compression makes small."""
    path = folder / "big.jsonl"
    lines = (
        {"kind": "k", "address": f"big-{n}@example.com", "subject": "s", "body_text": secrets.token_hex(250_000)}
        for n in range(BIG_EMAILS)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def fill(balloon: Path) -> None:
    with suppress(OSError), balloon.open("wb", buffering=0) as file:
        while file.write(bytes(65536)):
            pass


def test_a_full_disk_is_said_and_nothing_is_lost(
    server: PostgresServer, small_disk: Path, relay: ScriptedRelay, tmp_path: Path
) -> None:
    own = PostgresServer(server.binaries, small_disk)
    own.start()
    balloon = small_disk / "balloon"
    try:
        with site_of(own, relay, tmp_path) as site, site.workers(), site.watch():
            site.schedule(20)
            site.wait_until_finished(20)
            site.schedule(20, prefix="second", scheduled_at="now() + interval '3 s'")
            fill(balloon)
            refused = duepost("schedule", "--file", str(big_file(tmp_path)), env=site.env)
            assert (refused.returncode, refused.stderr.count("\n")) == (1, 1), refused.stderr
            assert "No space left on device" in refused.stderr
            balloon.unlink()
            if not own.is_running:
                own.start()
            site.wait_until_finished(40)
            assert duepost("schedule", "--file", str(big_file(tmp_path)), env=site.env).returncode == 0
            site.wait_until_finished(40 + BIG_EMAILS)
            unknown = {str(a) for (a,) in site.query("SELECT address FROM duepost.delivery WHERE unknowns > 0")}
            assert {each for each, count in Counter(site.received()).items() if count > 1} <= unknown
    finally:
        own.stop("immediate")

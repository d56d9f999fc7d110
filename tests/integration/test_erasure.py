"""A person is forgotten and what counts stays; a restored backup sends nothing twice."""

import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest

from actors.ruling import Phase
from duepost import operations
from duepost.operations import Doing, Filter, Order, State
from models import emails, erasure
from models import operations as orders
from models.database.connections import Database
from tests.app_harness import Harness
from tests.postgres import PostgresServer
from tests.relays import ScriptedRelay, reply

ORDER = Order("ann the operator", "command", "asked for")
TOMORROW = datetime.now(UTC) + timedelta(days=1)


def rows_with(harness: Harness, text: str) -> dict[str, int]:
    """In which tables a text still stands, and in how many rows."""
    tables = harness.query(
        "SELECT c.oid::regclass::text FROM pg_class AS c WHERE c.relkind = 'r'"
        " AND c.relnamespace IN ('duepost'::regnamespace, 'dramatiq'::regnamespace) ORDER BY 1"
    )
    found = {}
    for (table,) in tables:
        [(number,)] = harness.query(f"SELECT count(*) FROM {table} AS t WHERE t::text ILIKE %(text)s", text=f"%{text}%")
        if number:
            found[str(table)] = int(str(number))
    return found


@pytest.fixture
def known(harness: Harness, relay: ScriptedRelay) -> Harness:
    """Zoe has had emails and is to have others, alone and with Bob; one was refused, and her address is suppressed."""
    relay.on(Phase.RCPT, reply("550 5.1.1 zoe@example.com is unknown"), when=lambda line: "zoe@" in line, times=1)
    harness.recipient("zoe", "Zoe@Example.com", "Zoe")
    harness.recipient("bob", "bob@example.com", "Bob")
    harness.schedule(address="zoe@example.com")
    harness.deliver()
    harness.query("DELETE FROM duepost.suppression")
    harness.schedule(users=["bob", "zoe"], kind="digest")
    harness.deliver()
    harness.query("INSERT INTO duepost.suppression (address, reply) VALUES ('zoe@example.com', 'zoe is gone')")
    harness.schedule(address="ZOE@example.com", scheduled_at=TOMORROW)
    harness.schedule(users=["zoe"], scheduled_at=TOMORROW)
    harness.schedule(users=["bob", "zoe"], scheduled_at=TOMORROW)
    operations.act(harness.database, Doing.RETRY, Filter(address="zoe@example.com"), ORDER)
    return harness


def test_a_person_who_is_forgotten_stands_nowhere_and_what_counts_stays(known: Harness) -> None:
    counted = "SELECT outcome, count(*) FROM duepost.delivery WHERE outcome <> 'cleared' GROUP BY 1 ORDER BY 1"
    outcomes = known.query(counted)
    assert set(rows_with(known, "zoe")) > {"duepost.recipient", "duepost.suppression", "duepost.operator_action"}
    by_address = operations.forget(known.database, ORDER, address="zoe@EXAMPLE.com")
    by_user = operations.forget(known.database, ORDER, user="zoe")
    assert rows_with(known, "zoe") == {}
    assert (by_address["cleared"], by_user["cleared"], by_address["left"], by_user["left"]) == (1, 2, 0, 0)
    after = known.query(
        "SELECT outcome, count(*) FROM duepost.delivery WHERE outcome <> 'cleared' GROUP BY 1 ORDER BY 1"
    )
    assert after == outcomes
    assert [each.id for each in operations.person(known.database, user="bob").planned] == [5]
    [last, *_] = operations.journal(known.database)
    assert (last.action, last.by, dict(last.asked)) == ("forget", "ann the operator", {"forgotten": True})


def test_to_forget_is_safe_to_repeat_and_says_what_is_left(known: Harness) -> None:
    held = known.schedule(address="zoe@example.com")
    known.query("UPDATE duepost.item SET is_held = true WHERE id = %(id)s", id=held)
    assert operations.forget(known.database, ORDER, address="zoe@example.com")["left"] == 1
    operations.act(known.database, Doing.RESOLVE_DROP, Filter(ids=(held,)), ORDER)
    again = operations.forget(known.database, ORDER, address="zoe@example.com")
    assert (again["left"], again["ledger"]) == (0, 1)
    assert not any(operations.forget(known.database, ORDER, address="zoe@example.com").values())


def test_an_export_has_all_of_one_person_and_nothing_of_others(known: Harness) -> None:
    found = operations.export(known.database, user="zoe")
    assert isinstance(found["items"], list)
    assert [each["id"] for each in found["items"]] == [4, 5, 2]
    assert "bob@example.com" not in str(found)
    by_address = operations.export(known.database, address="zoe@example.com")["items"]
    assert isinstance(by_address, list)
    assert [each["id"] for each in by_address] == [3, 2, 1]
    assert "is unknown" in str(by_address[-1]["endings"])
    assert "is unknown" in str(by_address[-1]["attempts"])


def test_who_may_not_forget_forgets_nobody(known: Harness) -> None:
    action, _ = orders.begin(known.database, "forget", ORDER, {})
    with psycopg2.connect(known.database.url) as worker, worker.cursor() as cursor:
        cursor.execute("SET ROLE duepost_worker")
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("SELECT * FROM duepost.forget_some(%s, NULL, 'zoe')", (action,))


# A restored backup ---------------------------------------------------------------------------------------------------


@pytest.fixture
def empty(server: PostgresServer) -> Iterator[str]:
    """The URL of an empty database on the same server."""
    with server.fresh_database(migrated=False) as url:
        yield url


def shell(server: PostgresServer, program: str, *arguments: str) -> None:
    """Runs one of the server's own programs."""
    env = {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": str(server.binaries.parent / "lib")}
    done = subprocess.run(
        [str(server.binaries / program), *arguments], check=False, capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr


def test_a_restored_backup_sends_nothing_twice(
    harness: Harness, relay: ScriptedRelay, server: PostgresServer, empty: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    in_hand, queued, due, later = (harness.schedule(address=f"{n}@example.com") for n in ("a", "b", "c", "d"))
    harness.query("UPDATE duepost.item SET due_at = now() + interval '1 h' WHERE id = %(id)s", id=later)
    soon = harness.schedule(address="e@example.com", scheduled_at=datetime.now(UTC) + timedelta(hours=2))
    claimed = harness.claim(in_hand)
    assert claimed is not None
    harness.query("UPDATE duepost.item SET due_at = now() + interval '1 h' WHERE id = %(id)s", id=due)
    harness.enqueue()
    harness.query("UPDATE duepost.item SET due_at = now() WHERE id = %(id)s", id=due)
    shell(server, "pg_dump", "-Fc", "-f", str(tmp_path / "backup"), harness.database.url)

    emails.return_unstarted(harness.database, [claimed])
    harness.deliver()
    after_backup = harness.schedule(address="f@example.com")
    harness.deliver()
    assert len(relay.messages) == 4

    shell(server, "pg_restore", "--exit-on-error", "-d", empty, str(tmp_path / "backup"))
    monkeypatch.setenv("DUEPOST_DATABASE_URL", empty)
    with psycopg2.connect(empty) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT installation FROM duepost.control")
        [(installation,)] = cursor.fetchall()
    database = Database(empty)
    _, held, kept = erasure.hold_after_restore(database, due_by=None, by="ann", reason="the disk was lost")
    assert (held, kept) == (3, 2)
    database.close()

    restored = Harness(empty, tmp_path)
    try:
        for _ in range(2):
            restored.deliver()
        assert len(relay.messages) == 4, "nothing is sent twice"
        waiting = operations.find_items(restored.database, Filter(state=State.UNKNOWN)).items
        assert sorted(each.id for each in waiting) == [in_hand, queued, due]
        assert restored.query("SELECT count(*) FROM dramatiq.queue WHERE key IS NOT NULL") == [(0,)]
        assert restored.schedule() > after_backup, "no id is given a second time"
        assert restored.query("SELECT installation = %(old)s FROM duepost.control", old=installation) == [(False,)]
        report = operations.act(restored.database, Doing.RESOLVE_SENT, Filter(kind="welcome"), ORDER)
        assert report.done == 3
        restored.query("UPDATE duepost.item SET due_at = now() WHERE id = ANY (%(ids)s)", ids=[later, soon])
        restored.deliver()
        assert len(relay.messages) == 7, "what was due later, and what was scheduled since, once each"
        with pytest.raises(psycopg2.errors.RaiseException, match="workers are running"):
            erasure.hold_after_restore(restored.database, due_by=None, by="ann", reason=None)
    finally:
        restored.close()

"""Any actor on the broker, in real processes: kill -9, restarts, shutdown, wedged workers."""

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import dramatiq.broker
import psycopg2
import pytest

from actors.liveness.maintenance import WEDGED
from tests.postgres import PostgresServer
from tests.processes import Process, duepost, environment
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Shop:
    """A database, a sender of messages, and workers."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.env = {**environment(url, "smtp://127.0.0.1:1"), "SHOP_URL": url}
        self.query("CREATE TABLE IF NOT EXISTS shop_order (number integer, pid integer)")
        os.environ["SHOP_URL"] = url
        sys.modules.pop("tests.e2e.shop", None)
        before = dramatiq.broker.global_broker
        self.actors: ModuleType = importlib.import_module("tests.e2e.shop")
        dramatiq.broker.global_broker = before

    def query(self, statement: str) -> list[tuple[object, ...]]:
        connection = psycopg2.connect(self.url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def workers(self, name: str = "workers", *, processes: int = 1, threads: int = 4, **more: str) -> Process:
        """Starts `dramatiq tests.e2e.shop`."""
        arguments = ["-m", "dramatiq", "tests.e2e.shop", "--processes", str(processes), "--threads", str(threads)]
        process = Process([sys.executable, *arguments], {**self.env, **more}, self.folder / f"{name}.log")
        wait_until(
            lambda: process.output.count("is ready for action") >= processes, timeout=60, state=lambda: process.output
        )
        return process

    def done(self) -> Counter[int]:
        """How often each number was worked on."""
        return Counter(int(str(number)) for (number,) in self.query("SELECT number FROM shop_order"))

    def messages(self) -> dict[str, int]:
        return {
            str(state): int(str(n)) for state, n in self.query("SELECT state, count(*) FROM dramatiq.queue GROUP BY 1")
        }

    def send(self, actor: str, numbers: range) -> None:
        for number in numbers:
            getattr(self.actors, actor).send(number)

    def wait_until_empty(self) -> None:
        wait_until(lambda: self.messages() == {}, timeout=60, what="the queue to be empty", state=self.logs)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.log")))


@pytest.fixture
def shop(url: str, tmp_path: Path) -> Iterator[Shop]:
    shop = Shop(url, tmp_path)
    yield shop
    shop.actors.database.close()


def test_work_that_is_acknowledged_with_its_transaction_is_done_exactly_once_through_kill_9(shop: Shop) -> None:
    shop.send("order", range(600))
    with shop.workers("first", processes=2) as first, shop.workers("second"):
        wait_until(lambda: sum(shop.done().values()) > 50, state=shop.logs)
        first.kill()
        shop.wait_until_empty()
    assert shop.done() == Counter(range(600))


def test_work_that_is_acknowledged_on_its_own_is_never_lost_through_kill_9(shop: Shop) -> None:
    shop.send("view", range(600))
    with shop.workers("first", processes=2) as first, shop.workers("second"):
        wait_until(lambda: sum(shop.done().values()) > 50, state=shop.logs)
        first.kill()
        shop.wait_until_empty()
    assert set(shop.done()) == set(range(600))
    assert shop.done().total() <= 600 + 2 * 8, "no more is done again than was in hand"


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restarted_server_costs_no_message_and_doubles_none(
    own_server: PostgresServer, tmp_path: Path, mode: str
) -> None:
    with own_server.fresh_database() as url:
        shop = Shop(url, tmp_path)
        shop.send("order", range(1500))
        with shop.workers(processes=2) as workers:
            for step in (100, 500):
                wait_until(lambda step=step: shop.done().total() > step, state=shop.logs)  # type: ignore[misc]
                own_server.restart(mode)
            shop.wait_until_empty()
            assert workers.popen.poll() is None
        shop.actors.database.close()
        assert shop.done() == Counter(range(1500))


def test_sigterm_returns_at_once_what_was_only_prefetched_while_the_rest_goes_on(shop: Shop) -> None:
    for number in range(1, 9):
        shop.actors.dawdle.send(number, 3600 if number <= 2 else 0)
    with shop.workers(threads=2) as workers:
        wait_until(lambda: shop.done() == Counter({1: 1, 2: 1}) and shop.messages()["consumed"] == 4, state=shop.logs)
        workers.signal(signal.SIGTERM)
        wait_until(lambda: shop.messages() == {"consumed": 2, "queued": 6}, state=shop.logs)
        assert workers.popen.poll() is None, "what runs may finish"
        with shop.workers("second"):
            wait_until(lambda: shop.messages() == {"consumed": 2}, state=shop.logs)
        workers.kill()


def test_a_transaction_that_idles_too_long_is_tried_again(shop: Shop) -> None:
    shop.send("idle_in_transaction", range(3))
    with shop.workers(SHOP_IDLE="0.3"):
        shop.wait_until_empty()
    assert shop.done() == Counter(range(3))


def test_a_worker_that_stops_reading_its_queue_ends_and_others_take_over(shop: Shop) -> None:
    with shop.workers(SHOP_PATIENCE="4") as wedged:
        shop.actors.stop_reading.send()
        wait_until(lambda: shop.done() == Counter([shop.actors.STOPPED_READING]), state=shop.logs)
        shop.send("order", range(20))
        # The last line of Dramatiq's own log, which says so too, is lost now and then as it ends.
        assert wedged.wait() == WEDGED
        assert "is wedged, and ends: messages wait in default" in wedged.output
    shop.query("DELETE FROM dramatiq.queue WHERE message ->> 'actor_name' = 'stop_reading'")
    with shop.workers("second"):
        shop.wait_until_empty()
    assert shop.done() == Counter([shop.actors.STOPPED_READING, *range(20)])


def test_a_worker_whose_interpreter_is_kept_ends_too(shop: Shop) -> None:
    with shop.workers(SHOP_PATIENCE="1", SHOP_STATEMENT_TIMEOUT="1") as wedged:
        shop.actors.keep_the_interpreter.send()
        assert wedged.wait(timeout=60) != 0
        assert "Timeout" in wedged.output
        assert "keep_the_interpreter" in wedged.output


def test_the_liveness_probe_looks_at_progress_not_at_existence(shop: Shop) -> None:
    assert duepost("doctor", "--worker", env=shop.env).returncode == 1
    with shop.workers() as workers:
        probe = duepost("doctor", "--worker", env=shop.env)
        assert (probe.returncode, probe.stdout.count("\n")) == (0, 1)
        [(pid,)] = shop.query("SELECT pid FROM duepost.worker WHERE gone_at IS NULL")
        os.kill(int(str(pid)), signal.SIGSTOP)
        time.sleep(0.1)
        shop.query("UPDATE duepost.worker SET progressed_at = progressed_at - interval '61 s'")
        probe = duepost("doctor", "--worker", env=shop.env)
        assert probe.returncode == 1
        assert "no progress for" in probe.stdout
        assert str(pid) in probe.stdout
        os.kill(int(str(pid)), signal.SIGCONT)
        wait_until(lambda: duepost("doctor", "--worker", env=shop.env).returncode == 0, state=shop.logs)
        assert workers.stop() == 0
    away = {**shop.env, "DUEPOST_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    probe = duepost("doctor", "--worker", env=away)
    assert (probe.returncode, probe.stdout.split()[0]) == (0, "warning")


def test_many_idle_workers_leave_the_server_alone_and_hold_one_lock_each(shop: Shop) -> None:
    with shop.workers("first", processes=2), shop.workers("second", processes=2):
        shop.send("view", range(50))
        shop.wait_until_empty()
        assert shop.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(4,)]
        assert shop.query(
            "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE '%listen%' AND pid <> pg_backend_pid()"
        ) == [(0,)]
    assert set(shop.done().values()) == {1}


def test_senders_and_workers_may_race(shop: Shop) -> None:
    def send(start: int) -> None:
        shop.send("order", range(start, start + 100))
        shop.actors.database.close()

    with shop.workers(processes=2, threads=8):
        threads = [threading.Thread(target=send, args=(start,)) for start in range(0, 800, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: shop.done().total() == 800, state=shop.logs)
        shop.wait_until_empty()
    assert shop.done() == Counter(range(800))


def files_of_the_page() -> dict[str, str]:
    """The files that docs/broker.md shows, by name."""
    page = (ROOT / "docs" / "broker.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```python (\w+\.py)\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def test_what_the_page_of_the_broker_shows_runs(url: str, tmp_path: Path) -> None:
    for name, code in files_of_the_page().items():
        (tmp_path / name).write_text(code, encoding="utf-8")
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id integer PRIMARY KEY, confirmed boolean)")
    env = {**environment(url, "smtp://127.0.0.1:1"), "DATABASE_URL": url}
    command = [sys.executable, "-m", "dramatiq", "shop", "--processes", "1", "--threads", "2"]
    with Process(command, env, tmp_path / "log", cwd=tmp_path) as workers:
        sent = subprocess.run(
            [sys.executable, "send.py"],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (sent.stdout, sent.returncode) == ("6\n", 0), sent.stderr + workers.output

        def confirmed() -> bool:
            with connection.cursor() as cursor:
                cursor.execute("SELECT confirmed FROM orders WHERE id = 7")
                return cursor.fetchall() == [(True,)]

        wait_until(confirmed, state=lambda: workers.output)
        assert workers.stop() == 0
    connection.close()

"""Messages to endpoints: how many a second to one, how many functions take, and what one dead endpoint does to others.

The last is measured side by side in one run: a hundred endpoints that work, first by themselves, then with one more
beside them that takes connections and never answers. Lateness is from due to the ledger's time.

Run: python benchmarks/messages.py
"""

import argparse
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.site import (  # noqa: E402 - the path comes first
    Bar,
    bars_table,
    execute,
    finished,
    fresh_database,
    machine,
    migrated,
    now,
    percentile,
    running,
    seconds_to_last,
    server,
    sink,
    wait_for,
)
from models.database.connections import Database  # noqa: E402

ENDPOINT = """
    SELECT duepost.set_endpoint(name => %(name)s, format => 'webhook', url => %(url)s, allow_private => true)
"""

SCHEDULE = """
    SELECT duepost.schedule_message(
        kind => 'benchmark', endpoint => %(endpoint)s, payload => jsonb_build_object('n', n, 'text', repeat('x', 1000))
    )
    FROM generate_series(1, %(count)s) AS n
"""

#: To a hundred endpoints, each message due at its own moment.
FLOW = """
    SELECT duepost.schedule_message(
        kind => 'flow', endpoint => 'works-' || (n %% 100), payload => jsonb_build_object('n', n),
        scheduled_at => now() + interval '1 s' + n * make_interval(secs => 1.0 / %(pace)s)
    )
    FROM generate_series(1, %(count)s) AS n
"""

LATENESS = """
    SELECT extract(epoch FROM finished_at - scheduled_at)::float * 1000 FROM duepost.delivery
    WHERE kind = 'flow' AND finished_at > %(since)s
"""

FUNCTION = (
    "CREATE SCHEMA app",
    "CREATE TABLE app.posts (message_id bigint, payload jsonb)",
    "CREATE FUNCTION app.post(message_id bigint, payload jsonb) RETURNS void LANGUAGE sql"  # noqa: ISC004
    " AS $f$ INSERT INTO app.posts VALUES ($1, $2) $f$",
    "SELECT duepost.set_endpoint(name => 'posts', format => 'function', function => 'app.post(bigint,jsonb)')",
)


@contextmanager
def http_sink() -> Iterator[int]:
    """The sink, in a process of its own; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(ROOT / "benchmarks" / "http_sink.py"), str(port)])
    try:
        wait_for(lambda: is_up(port))
        yield port
    finally:
        process.terminate()
        process.wait()


def is_up(port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def dead_server() -> Iterator[int]:
    """Takes connections, and never says a word; gives its port."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=200) as listener:

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        for each in held:
            each.close()


def rate(database: Database, endpoint: str, count: int) -> float:
    """Messages a second, from due to the last one's ledger."""
    begun = now(database)
    database.execute(SCHEDULE, {"endpoint": endpoint, "count": count})
    wait_for(lambda: finished(database, begun) == count)
    return count / seconds_to_last(database, begun)


def flow(database: Database, pace: int, seconds: int) -> list[float]:
    """How late each message of a flow was, in milliseconds."""
    begun, count = now(database), pace * seconds
    database.execute(FLOW, {"count": count, "pace": pace})
    wait_for(
        lambda: (
            database.execute(
                "SELECT count(*) FROM duepost.delivery WHERE kind = 'flow' AND finished_at > %(since)s",
                {"since": begun},
            )
            == [(count,)]
        ),
        pause=1.0,
    )
    return [float(str(late)) for (late,) in database.execute(LATENESS, {"since": begun})]


def main() -> None:
    """Measures in turns, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=3, help="turns; medians are shown")
    options.add_argument("--count", type=int, default=10_000, help="messages to one endpoint")
    options.add_argument("--pace", type=int, default=100, help="messages of the flow in a second")
    options.add_argument("--seconds", type=int, default=15, help="how long the flow goes on")
    given = options.parse_args()
    webhooks, functions, ratios = [], [], []
    with server() as postgres, http_sink() as port, dead_server() as dead, sink() as relay:
        for turn in range(given.turns):
            with (
                fresh_database(postgres.url, f"turn_{turn}") as url,
                migrated(url) as database,
                running(database, relay),
            ):
                execute(url, *FUNCTION)
                for name in ["one", *(f"works-{number}" for number in range(100))]:
                    database.execute(ENDPOINT, {"name": name, "url": f"http://127.0.0.1:{port}/{name}"})
                database.execute(ENDPOINT, {"name": "dead", "url": f"http://127.0.0.1:{dead}/"})
                webhooks.append(rate(database, "one", given.count))
                functions.append(rate(database, "posts", given.count // 5))
                alone = percentile(flow(database, given.pace, given.seconds), 0.99)
                database.execute(SCHEDULE, {"endpoint": "dead", "count": 1_000})
                time.sleep(1.0)
                beside = percentile(flow(database, given.pace, given.seconds), 0.99)
                ratios.append(beside / alone)
                print(
                    f"turn {turn + 1}: {webhooks[-1]:.0f}/s to one endpoint, {functions[-1]:.0f}/s to a function;"
                    f" p99 {alone:.0f} ms, and {beside:.0f} ms beside a dead endpoint",
                    file=sys.stderr,
                )
    print(f"Messages; median of {given.turns} turns. {machine()}\n")
    bars = [
        Bar("messages of 1 KB a second to one endpoint", 1_000, statistics.median(webhooks)),
        Bar("messages a second to one function", 500, statistics.median(functions)),
        Bar("p99 of a hundred endpoints beside a dead one, × that without it", 1.1, statistics.median(ratios), True),
    ]
    print(bars_table(bars))


if __name__ == "__main__":
    main()

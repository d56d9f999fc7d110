"""What the tests of scheduled messages share: endpoints of each format, and a claim as a worker makes it."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import psycopg2

from tests.postgres import Connection, run
from tests.waiting import wait_until

T = TypeVar("T")

#: An application's function that an endpoint calls, and an endpoint of each format, called like it.
ENDPOINTS = """
    CREATE FUNCTION public.post(bigint, jsonb) RETURNS void LANGUAGE sql AS '';
    SELECT duepost.set_endpoint('webhook', 'webhook', 'https://hooks.example.com/in'),
           duepost.set_endpoint('slack', 'slack', 'https://slack.example.com/services/T0/B0/x'),
           duepost.set_endpoint('mattermost', 'mattermost', 'https://chat.example.com/hooks/x'),
           duepost.set_endpoint('zulip', 'zulip', 'https://zulip.example', 'key', options => '{"user": "bot@x.org"}'),
           duepost.set_endpoint('matrix', 'matrix', 'https://matrix.example.com', 't', options => '{"room": "!a/b:x"}'),
           duepost.set_endpoint('function', 'function', function => 'public.post')
"""

#: What a worker does as it claims an item.
CLAIM = """
    INSERT INTO duepost.in_hand (item_id, claim, worker_id, claimed_at)
    SELECT i.id, nextval('duepost.claim_number'), 1, now()
    FROM (SELECT id FROM duepost.item WHERE id = %s FOR NO KEY UPDATE SKIP LOCKED) AS i
    RETURNING item_id
"""


def schedule(
    connection: Connection, arguments: str = "", *, endpoint: str = "webhook", payload: str = '{"n": 1}'
) -> int:
    """Schedules one message; `arguments` are further ones, in SQL."""
    [(message_id,)] = run(
        connection,
        f"SELECT duepost.schedule_message('k', %s, %s{', ' if arguments else ''}{arguments})",
        endpoint,
        payload,
    )
    assert isinstance(message_id, int)
    return message_id


def error_of(connection: Connection, statement: str, *parameters: object) -> str:
    """The first line of what a bad argument raises; nothing of the statement is left."""
    run(connection, "SAVEPOINT before")
    try:
        run(connection, statement, *parameters)
    except psycopg2.errors.InvalidParameterValue as error:
        return str(error).partition("\n")[0]
    finally:
        run(connection, "ROLLBACK TO before")
    raise AssertionError("nothing was raised")


def while_it_waits(connection: Connection, call: Callable[[], T], watcher: Connection, go_on: Callable[[], None]) -> T:
    """Calls in another thread, waits until the call waits for a lock, goes on, and gives what the call gave."""
    with ThreadPoolExecutor(1) as pool:
        future: Future[T] = pool.submit(call)
        waiting = "SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND pid = %s"
        wait_until(lambda: future.done() or run(watcher, waiting, connection.info.backend_pid) == [(True,)])
        assert not future.done(), "it did not wait"
        go_on()
        return future.result(timeout=60)


def messages(connection: Connection, columns: str = "id") -> Sequence[tuple[object, ...]]:
    """All that is not finished, by id."""
    return run(connection, f"SELECT {columns} FROM duepost.scheduled_message ORDER BY id")

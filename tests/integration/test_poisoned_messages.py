"""Messages as a hand may have written or moved them: each runs or is a dead letter, and all others run."""

import json
import threading
from collections.abc import Callable, Iterator
from uuid import uuid4

import dramatiq
import pytest

from actors.queue.broker import PostgresBroker
from models import messages
from models.database.connections import Database
from tests.waiting import wait_until

PLAIN = {
    "queue_name": "default", "actor_name": "note", "args": ["poison"], "kwargs": {}, "options": {},
    "message_id": "00000000-0000-4000-8000-000000000000", "message_timestamp": 1,
}  # fmt: skip

#: What is different about a message.
WRITTEN: dict[str, object] = {
    "moved from a queue that is not here": {"queue_name": "elsewhere"},
    "of another id than its row": {"message_id": "11111111-1111-4111-8111-111111111111"},
    "of another id, and it fails": {"actor_name": "fail", "message_id": "11111111-1111-4111-8111-111111111111"},
    "with an id that is none": {"message_id": 5},
    "with an id that is none, and it fails": {"actor_name": "fail", "message_id": None},
    "throws what is no class": {"actor_name": "fail", "options": {"throws": "ValueError"}},
    "throws a list": {"actor_name": "fail", "options": {"throws": ["ValueError", 5]}},
    "retries that are no number": {"actor_name": "fail", "options": {"retries": "many"}},
    "more retries than may be": {"actor_name": "fail", "options": {"max_retries": "x"}},
    "a backoff that is no number": {"actor_name": "fail", "options": {"min_backoff": "x"}},
    "a time limit that is no number": {"options": {"time_limit": "x"}},
    "an age that is no number": {"options": {"max_age": "x"}},
    "a time that is none": {"message_timestamp": "yesterday"},
    "options that are none": {"options": None},
    "options that are a list": {"options": [1]},
    "arguments that are none": {"args": None},
    "arguments that are a number": {"args": 7},
    "keywords that are a list": {"kwargs": [1]},
    "an actor that is nobody": {"actor_name": None},
    "an actor that is a list": {"actor_name": ["note"]},
    "a pipe to nowhere": {"options": {"pipe_target": 5}},
    "callbacks that are none": {"options": {"on_success": 5, "on_failure": {"x": 1}}},
}


@pytest.fixture
def broker(database: Database) -> PostgresBroker:
    return PostgresBroker(database)


@pytest.fixture
def start_worker(broker: PostgresBroker) -> Iterator[Callable[[], dramatiq.Worker]]:
    started: list[dramatiq.Worker] = []

    def start() -> dramatiq.Worker:
        started.append(dramatiq.Worker(broker, worker_timeout=50, worker_threads=1))
        started[-1].start()
        return started[-1]

    yield start
    for worker in started:
        worker.stop()


def insert(database: Database, content: str) -> None:
    database.execute(
        "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
        " VALUES (%(id)s, 'default', 'queued', %(m)s)",
        {"id": str(uuid4()), "m": content},
    )


@pytest.mark.parametrize("written", WRITTEN.values(), ids=list(WRITTEN))
def test_a_message_that_was_written_by_hand_is_in_nobodys_way(
    broker: PostgresBroker, database: Database, start_worker: Callable[[], dramatiq.Worker], written: dict[str, object]
) -> None:
    noted: list[str] = []
    last = threading.Event()

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=1, max_backoff=2)
    def note(what: str) -> None:
        noted.append(what)
        if what == "last":
            last.set()

    @dramatiq.actor(broker=broker, max_retries=1, min_backoff=1, max_backoff=2)
    def fail(what: str) -> None:
        raise ValueError(what)

    insert(database, json.dumps({**PLAIN, **written}))
    worker = start_worker()
    wait_until(lambda: database.execute("SELECT count(*) FROM dramatiq.queue WHERE state = 'queued'") == [(0,)])
    note.send("last")
    assert last.wait(30), "the thread has ended"
    assert all(thread.is_alive() for thread in worker.workers)
    wait_until(lambda: database.execute("SELECT count(*) FROM dramatiq.queue WHERE state <> 'rejected'") == [(0,)])
    assert noted == ["poison", "last"] or len(messages.dead_letters(database, 10)) == 1

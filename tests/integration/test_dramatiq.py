"""What Dramatiq promises of every broker, on this one: real workers' threads, a real PostgreSQL."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import dramatiq
import pytest
from dramatiq.encoder import JSONEncoder, PickleEncoder
from dramatiq.errors import QueueJoinTimeout
from dramatiq.middleware import (
    AgeLimit,
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    Middleware,
    Pipelines,
    Retries,
    Shutdown,
    ShutdownNotifications,
    SkipMessage,
    TimeLimit,
    TimeLimitExceeded,
)
from dramatiq.middleware.threading import Interrupt, raise_thread_exception
from dramatiq.rate_limits.backends import StubBackend
from dramatiq.results import ResultFailure, ResultMissing, Results, ResultTimeout

from actors.queue.broker import PostgresBroker
from actors.queue.results import PostgresResults
from models.database import full_scan_throttle
from models.database.connections import Database
from tests.waiting import wait_until

#: Milliseconds that nothing here takes.
LONG = 30_000


class StartWorker(Protocol):
    def __call__(self, *, threads: int = 4, queues: set[str] | None = None) -> dramatiq.Worker: ...


@pytest.fixture
def broker(database: Database) -> PostgresBroker:
    broker = PostgresBroker(
        database,
        [
            AgeLimit(),
            TimeLimit(interval=20),
            ShutdownNotifications(),
            Callbacks(),
            Pipelines(),
            Retries(min_backoff=10, max_backoff=50),
            GroupCallbacks(StubBackend()),
        ],
    )
    broker.add_middleware(Results(backend=PostgresResults(database)))
    return broker


@pytest.fixture
def start_worker(broker: PostgresBroker) -> Iterator[StartWorker]:
    started: list[dramatiq.Worker] = []

    def start(*, threads: int = 4, queues: set[str] | None = None) -> dramatiq.Worker:
        worker = dramatiq.Worker(broker, queues=queues, worker_timeout=50, worker_threads=threads)
        worker.start()
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.stop()


def states(database: Database) -> dict[str, int]:
    return dict(database.execute("SELECT state::text, count(*) FROM dramatiq.queue GROUP BY state"))  # type: ignore[arg-type]


class Notes(list[object]):
    """What actors have done, in order."""

    def add(self, note: object) -> None:
        self.append(note)


@pytest.fixture
def notes() -> Notes:
    return Notes()


def test_actors_get_arguments_as_they_were_sent(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker)
    def note(*args: object, **kwargs: object) -> None:
        notes.add((args, kwargs))

    note.send(1, None, 2.5, "ä\u2028", [1, {"a": [True]}], key={"x": "y"})
    start_worker()
    broker.join("default", timeout=LONG)
    assert notes == [((1, None, 2.5, "ä\u2028", [1, {"a": [True]}]), {"key": {"x": "y"}})]


def test_join_waits_and_says_when_it_was_for_nothing(broker: PostgresBroker, start_worker: StartWorker) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    note.send()
    with pytest.raises(QueueJoinTimeout):
        broker.join("default", timeout=10)
    start_worker()
    broker.join("default", timeout=LONG)


def test_flush_empties_one_queue_or_all(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker, queue_name="one")
    def one() -> None: ...

    @dramatiq.actor(broker=broker, queue_name="two")
    def two() -> None: ...

    one.send()
    two.send()
    two.send_with_options(delay=LONG)
    broker.flush("one")
    assert database.execute("SELECT DISTINCT queue_name FROM dramatiq.queue") == [("two",)]
    broker.flush_all()
    assert states(database) == {}


def test_a_worker_reads_only_the_queues_it_was_given(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, queue_name="one")
    def one() -> None:
        notes.add("one")

    @dramatiq.actor(broker=broker, queue_name="two")
    def two() -> None:
        notes.add("two")

    two.send()
    one.send()
    start_worker(queues={"one"})
    broker.join("one", timeout=LONG)
    assert notes == ["one"]
    assert database.execute("SELECT queue_name, state::text FROM dramatiq.queue") == [("two", "queued")]


def test_urgent_messages_come_before_older_ones(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, priority=10)
    def ordinary(number: int) -> None:
        notes.add(number)

    @dramatiq.actor(broker=broker, priority=1)
    def urgent(number: int) -> None:
        notes.add(number)

    for number in range(100):
        ordinary.send(number)
    urgent.send(-1)
    start_worker(threads=1)
    broker.join("default", timeout=LONG)
    assert notes == [-1, *range(100)]


def test_a_message_may_have_a_priority_of_its_own(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, priority=10)
    def ordinary(number: int) -> None:
        notes.add(number)

    for number in range(20):
        ordinary.send_with_options(args=(number,), priority=20 - number)
    start_worker(threads=1)
    broker.join("default", timeout=LONG)
    assert notes == list(reversed(range(20)))


def test_it_keeps_its_place_while_full_scans_are_rare(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a busy machine: each full scan is expensive, and so the fourth would come after a long rest.
    monkeypatch.setattr(full_scan_throttle, "CHEAP", -1.0)
    monkeypatch.setattr(full_scan_throttle, "REST", 1e9)

    test_a_message_may_have_a_priority_of_its_own(broker, start_worker, notes)


def test_delayed_messages_wait_and_then_come(broker: PostgresBroker, start_worker: StartWorker) -> None:
    words: list[str] = []

    @dramatiq.actor(broker=broker)
    def note(word: str) -> None:
        words.append(word)

    begun = time.monotonic()
    note.send_with_options(args=("later",), delay=400)
    note.send("now")
    start_worker()
    broker.join("default", timeout=LONG)
    assert words == ["now", "later"]
    assert time.monotonic() - begun >= 0.4


def test_delayed_urgent_messages_do_not_hide_due_ones(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, priority=0)
    def urgent() -> None: ...

    @dramatiq.actor(broker=broker, priority=5)
    def ordinary() -> None:
        notes.add("done")

    for _ in range(50):
        urgent.send_with_options(delay=3_600_000)
    ordinary.send()
    start_worker()
    wait_until(lambda: notes == ["done"])


def test_a_failing_actor_is_retried_as_often_as_it_may_be(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, max_retries=3)
    def fail() -> None:
        notes.add(1)
        raise RuntimeError

    fail.send()
    start_worker()
    wait_until(lambda: states(database) == {"rejected": 1})
    assert len(notes) == 4
    assert database.execute("SELECT message #>> '{options,failure}' FROM dramatiq.queue") == [("RuntimeError",)]


def test_a_retry_at_once_is_never_lost_to_the_acknowledgement_before_it(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, max_retries=None)
    def twice(number: int) -> None:
        notes.add(number)
        if notes.count(number) < 3:
            raise dramatiq.Retry(delay=0)

    for number in range(200):
        twice.send(number)
    start_worker(threads=8)
    broker.join("default", timeout=LONG)
    assert len(notes) == 600
    assert all(notes.count(number) == 3 for number in range(200))


def test_expected_exceptions_are_not_retried(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, throws=LookupError)
    def fail() -> None:
        notes.add(1)
        raise LookupError

    fail.send()
    start_worker()
    wait_until(lambda: states(database) == {"rejected": 1})
    assert len(notes) == 1


def test_retry_when_decides_and_exhaustion_is_told(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker)
    def exhausted(message: dict[str, object], _: dict[str, object]) -> None:
        notes.add(message["actor_name"])

    @dramatiq.actor(broker=broker, retry_when=lambda retries, _: retries < 2, on_retry_exhausted=exhausted.actor_name)
    def fail() -> None:
        notes.add("tried")
        raise RuntimeError

    fail.send()
    start_worker()
    wait_until(lambda: notes == ["tried", "tried", "tried", "fail"])


def test_callbacks_follow_success_and_failure(broker: PostgresBroker, start_worker: StartWorker, notes: Notes) -> None:
    @dramatiq.actor(broker=broker)
    def succeeded(message: dict[str, object], result: object) -> None:
        notes.add(("succeeded", message["actor_name"], result))

    @dramatiq.actor(broker=broker)
    def failed(message: dict[str, object], error: dict[str, object]) -> None:
        notes.add(("failed", message["actor_name"], error["type"]))

    @dramatiq.actor(broker=broker, max_retries=0, store_results=True)
    def work(well: bool) -> int:
        if not well:
            raise RuntimeError
        return 7

    for well in (True, False):
        work.send_with_options(args=(well,), on_success=succeeded, on_failure=failed)
    start_worker()
    wait_until(lambda: len(notes) == 2)
    assert set(notes) == {("succeeded", "work", 7), ("failed", "work", "RuntimeError")}


def test_messages_that_are_too_old_are_dead_letters(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, max_age=1)
    def note() -> None:
        notes.add(1)

    note.send()
    time.sleep(0.01)
    start_worker()
    wait_until(lambda: states(database) == {"rejected": 1})
    assert notes == []


def test_an_actor_that_takes_too_long_is_interrupted(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, time_limit=100, max_retries=0)
    def slow() -> None:
        try:
            for _ in range(1000):
                time.sleep(0.01)
        except TimeLimitExceeded:
            notes.add("interrupted")
            raise

    slow.send()
    start_worker()
    # As `dramatiq` does: the time limits' thread begins with the process.
    broker.emit_after("process_boot")
    wait_until(lambda: notes == ["interrupted"])
    broker.emit_before("process_stop")


def test_an_actor_that_wants_to_know_is_told_of_the_shutdown_and_runs_again_later(
    broker: PostgresBroker, database: Database, notes: Notes
) -> None:
    running = threading.Event()

    @dramatiq.actor(broker=broker, notify_shutdown=True, max_retries=None)
    def slow() -> None:
        running.set()
        try:
            for _ in range(1000):
                time.sleep(0.01)
        except Shutdown:
            notes.add("told")
            raise

    slow.send()
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    assert running.wait(10)
    worker.stop()
    assert notes == ["told"]
    assert states(database) == {"queued": 1}


def test_results_are_stored_waited_for_and_expire(
    broker: PostgresBroker, database: Database, start_worker: StartWorker
) -> None:
    @dramatiq.actor(broker=broker, store_results=True)
    def add(a: int, b: int) -> int:
        return a + b

    backend = broker.get_results_backend()
    message = add.send(1, 2)
    with pytest.raises(ResultMissing):
        message.get_result(backend=backend)
    with pytest.raises(ResultTimeout):
        message.get_result(backend=backend, block=True, timeout=10)
    start_worker()
    assert message.get_result(backend=backend, block=True, timeout=LONG) == 3
    assert message.get_result(backend=backend) == 3
    database.execute("UPDATE dramatiq.result SET expires_at = now()")
    with pytest.raises(ResultMissing):
        message.get_result(backend=backend)


def test_a_failure_is_a_result_too(broker: PostgresBroker, start_worker: StartWorker) -> None:
    @dramatiq.actor(broker=broker, store_results=True, max_retries=0)
    def fail() -> None:
        raise RuntimeError("broken")

    message = fail.send()
    start_worker()
    with pytest.raises(ResultFailure, match="broken"):
        message.get_result(backend=broker.get_results_backend(), block=True, timeout=LONG)


def test_pipelines_hand_results_on(broker: PostgresBroker, start_worker: StartWorker) -> None:
    @dramatiq.actor(broker=broker, store_results=True)
    def add(a: int, b: int) -> int:
        return a + b

    steps = [add.message(1, 2), add.message_with_options(args=(3,)), add.message_with_options(args=(4,), delay=50)]
    pipe = dramatiq.pipeline(steps, broker=broker)
    pipe.run()
    start_worker()
    assert pipe.get_result(block=True, timeout=LONG) == 10
    assert list(pipe.get_results()) == [3, 6, 10]


def test_groups_collect_results_and_tell_when_all_is_done(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker, store_results=True)
    def square(number: int) -> int:
        return number * number

    @dramatiq.actor(broker=broker)
    def all_done() -> None:
        notes.add("all")

    group = dramatiq.group([square.message(number) for number in range(20)], broker=broker)
    group.add_completion_callback(all_done.message())
    group.run()
    start_worker()
    group.wait(timeout=LONG)
    assert list(group.get_results()) == [number * number for number in range(20)]
    wait_until(lambda: notes == ["all"])


class Aborted(Interrupt):
    """Raised in an actor that is to end."""


class Abortable(Middleware):
    """In the manner of dramatiq-abort: messages that wait are skipped, actors that run are interrupted."""

    def __init__(self) -> None:
        self.unwanted: set[str] = set()
        self.threads: dict[str, int] = {}

    def abort(self, message_id: str) -> None:
        self.unwanted.add(message_id)
        if message_id in self.threads:
            raise_thread_exception(self.threads[message_id], Aborted)

    def before_process_message(self, broker: dramatiq.Broker, message: dramatiq.Message[object]) -> None:
        if message.message_id in self.unwanted:
            raise SkipMessage
        self.threads[message.message_id] = threading.get_ident()

    def after_process_message(
        self,
        broker: dramatiq.Broker,
        message: dramatiq.Message[object],
        *,
        result: object = None,
        exception: BaseException | None = None,
    ) -> None:
        self.threads.pop(message.message_id, None)


def test_middleware_may_abort_what_waits_and_what_runs(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    abortable = Abortable()
    broker.add_middleware(abortable)

    @dramatiq.actor(broker=broker, throws=Aborted)
    def slow(name: str) -> None:
        notes.add(name)
        for _ in range(1000):
            time.sleep(0.01)

    waiting, running = slow.send("never begun"), slow.send("begun")
    abortable.abort(waiting.message_id)
    start_worker()
    wait_until(lambda: notes == ["begun"])
    abortable.abort(running.message_id)
    wait_until(lambda: states(database) == {"rejected": 1})
    assert database.execute("SELECT message #>> '{options,failure}' FROM dramatiq.queue") == [("Aborted",)]


class Hooks(Middleware):
    """Notes each hook of a message."""

    def __init__(self, notes: Notes, database: Database) -> None:
        self._notes, self._database = notes, database

    def __getattribute__(self, name: str) -> object:
        if name.startswith(("before_", "after_")) and name.endswith(("enqueue", "process_message", "_ack", "nack")):
            return lambda broker, message, *args, **kwargs: self._notes.add(name)
        return super().__getattribute__(name)


def test_hooks_keep_their_order(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None:
        notes.add("run")

    broker.add_middleware(Hooks(notes, database))
    note.send()
    assert notes == ["before_enqueue", "after_enqueue"]
    start_worker()
    wait_until(lambda: states(database) == {})
    assert notes[2:] == ["before_process_message", "run", "after_process_message", "before_ack", "after_ack"]


def test_middleware_may_change_a_message_before_it_is_stored(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    class Tenant(Middleware):
        def before_enqueue(self, broker: dramatiq.Broker, message: dramatiq.Message[object], delay: int | None) -> None:
            message.options["tenant"] = "acme"

    broker.add_middleware(Tenant())

    @dramatiq.actor(broker=broker)
    def note() -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        notes.add(message.options["tenant"])

    note.send()
    note.send_with_options(delay=20)
    start_worker()
    broker.join("default", timeout=LONG)
    assert notes == ["acme", "acme"]


def test_a_message_for_an_actor_that_nobody_knows_is_a_dead_letter_and_others_flow(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker)
    def known() -> None:
        notes.add("known")

    broker.enqueue(dramatiq.Message(queue_name="default", actor_name="unknown", args=(), kwargs={}, options={}))
    known.send()
    start_worker()
    wait_until(lambda: notes == ["known"] and states(database) == {"rejected": 1})


def test_what_is_no_message_is_a_dead_letter_and_others_flow(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker)
    def known() -> None:
        notes.add("known")

    for content in ('{"actor_name": "known"}', "[]", '"word"', "7"):
        database.execute(
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
            " VALUES (gen_random_uuid(), 'default', 'queued', %(content)s)",
            {"content": content},
        )
    known.send()
    start_worker()
    wait_until(lambda: notes == ["known"] and states(database) == {"rejected": 4})


def test_another_encoder_is_used(broker: PostgresBroker, start_worker: StartWorker, notes: Notes) -> None:
    @dramatiq.actor(broker=broker)
    def note(value: object) -> None:
        notes.add(value)

    dramatiq.set_encoder(PickleEncoder())
    try:
        note.send({1, 2, 3})
        start_worker()
        broker.join("default", timeout=LONG)
    finally:
        dramatiq.set_encoder(JSONEncoder())
    assert notes == [{1, 2, 3}]


def test_generic_actors_and_actor_classes_run(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dramatiq.broker.global_broker", broker)

    class Task(dramatiq.GenericActor):
        class Meta:
            abstract = True

        def perform(self, value: int) -> None:  # type: ignore[override]
            notes.add((type(self).__name__, value))

    class Special(Task):
        class Meta:
            queue_name = "special"

    Special.send(3)
    start_worker()
    broker.join("special", timeout=LONG)
    assert notes == [("Special", 3)]


def test_a_worker_may_be_paused_and_resumed(broker: PostgresBroker, start_worker: StartWorker, notes: Notes) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None:
        notes.add(1)

    worker = start_worker()
    worker.pause()
    note.send()
    time.sleep(0.3)
    assert notes == []
    worker.resume()
    broker.join("default", timeout=LONG)
    assert notes == [1]


def test_queues_that_are_declared_while_a_worker_runs_are_read(
    broker: PostgresBroker, start_worker: StartWorker, notes: Notes
) -> None:
    start_worker()

    @dramatiq.actor(broker=broker, queue_name="late")
    def late() -> None:
        notes.add("late")

    late.send()
    wait_until(lambda: notes == ["late"])


def test_the_default_middleware_is_dramatiqs(database: Database) -> None:
    broker = PostgresBroker(database.url)
    names = {type(each).__name__ for each in broker.middleware}
    assert {"AgeLimit", "TimeLimit", "ShutdownNotifications", "Callbacks", "Pipelines", "Retries"} <= names


def run_all(*calls: Callable[[], object]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_many_threads_may_send_at_once(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, notes: Notes
) -> None:
    @dramatiq.actor(broker=broker)
    def note(number: int) -> None:
        notes.add(number)

    def send(start: int) -> None:
        for number in range(start, start + 50):
            note.send(number)
        database.close()

    run_all(*(lambda start=start: send(start) for start in range(0, 400, 50)))
    start_worker()
    broker.join("default", timeout=LONG)
    assert set(notes) == set(range(400))
    assert len(notes) == 400

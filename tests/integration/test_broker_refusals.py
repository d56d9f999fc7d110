"""What jsonb cannot hold arrives all the same, or is refused; and nothing is acknowledged that was not stored."""

import base64
import json
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import dramatiq
import pytest
from dramatiq.encoder import Encoder, PickleEncoder
from dramatiq.middleware import (
    Callbacks,
    CurrentMessage,
    GroupCallbacks,
    Middleware,
    Pipelines,
    Retries,
    TimeLimitExceeded,
)
from dramatiq.rate_limits.backends import StubBackend
from dramatiq.results import Results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.queue.broker import MessageRefused, PostgresBroker
from actors.queue.encoding import LONGEST_TRACEBACK, decoded, encoded
from actors.queue.results import PostgresResults
from models import messages
from models.database.connections import Database
from models.errors import SchemaMismatch
from tests.waiting import wait_until

#: Texts that jsonb refuses.
UNSTORABLE = ("a\x00b", "caf\udce9", "\ud83d", "\udc00\ud800", "\\ud83d\udc00")

#: Values that jsonb refuses, or returns as something else.
ODD_VALUES = (
    *UNSTORABLE,
    1e22,
    -0.0,
    1e300,
    math.inf,
    -math.inf,
    {"NaN": [1e16, {"x": "\x00"}]},
    10**40,
    "\\u0000",
    "😀",
)

StartWorker = Callable[[], dramatiq.Worker]


@pytest.fixture
def broker(database: Database) -> PostgresBroker:
    return PostgresBroker(
        database,
        [
            GroupCallbacks(StubBackend()),
            Callbacks(),
            Pipelines(),
            Retries(min_backoff=10, max_backoff=20),
            Results(backend=PostgresResults(database)),
        ],
    )


@pytest.fixture
def start_worker(broker: PostgresBroker) -> Iterator[StartWorker]:
    started: list[dramatiq.Worker] = []

    def start() -> dramatiq.Worker:
        worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=2)
        worker.start()
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.stop()


def dead_letters(database: Database) -> list[tuple[str | None, str | None, int]]:
    return [(each.actor_name, each.failure, each.retries) for each in messages.dead_letters(database, 100)]


def is_done(database: Database) -> bool:
    return database.execute("SELECT count(*) FROM dramatiq.queue WHERE state <> 'rejected'") == [(0,)]


@pytest.mark.parametrize("value", ODD_VALUES, ids=ascii)
def test_arguments_arrive_as_they_were_sent(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, value: object
) -> None:
    got: list[object] = []

    @dramatiq.actor(broker=broker)
    def note(*values: object, **named: object) -> None:
        got.extend([*values, *named.values()])

    note.send(value, named=value)
    with database.transaction():
        note.send([value])
    start_worker()
    wait_until(lambda: len(got) == 3)
    assert [repr(each) for each in got] == [repr(value), repr(value), repr([value])]
    wait_until(lambda: is_done(database))
    assert dead_letters(database) == []


def test_what_is_not_a_number_arrives_too() -> None:
    message = decoded(encoded(dramatiq.Message("q", "a", (math.nan,), {}, {})))
    assert math.isnan(message.args[0])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(VALUES)
def test_whatever_json_can_say_comes_back_from_jsonb_as_it_was(database: Database, value: object) -> None:
    content = encoded(dramatiq.Message("q", "a", (value,), {}, {"retries": 3}))
    [(stored,)] = database.execute("SELECT %(content)s::jsonb::text", {"content": content})
    message = decoded(str(stored))
    assert message.args == (value,)
    assert types_of(message.args[0]) == types_of(value)
    assert message.options == {"retries": 3}


def types_of(value: object) -> object:
    if isinstance(value, list):
        return [types_of(each) for each in value]
    if isinstance(value, dict):
        return {name: types_of(each) for name, each in value.items()}
    return type(value), math.copysign(1, value) if isinstance(value, float) else None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"args": (1, object())}, r"^args\[1\]: .*object"),
        ({"kwargs": {"day": {1, 2}}}, r"^kwargs\['day'\]: .*set"),
        ({"options": {"tag": b"x"}}, r"^options\['tag'\]: .*bytes"),
        ({"message_id": "7"}, r"^message_id: '7'"),
        ({"options": {"priority": 2**40}}, r"^priority: 1099511627776"),
        ({"actor_name": "a\x00"}, r"^actor_name: "),
    ],
)
def test_what_cannot_be_stored_is_refused_when_it_is_sent_and_the_part_is_named(
    broker: PostgresBroker, database: Database, change: dict[str, Any], reason: str
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    message: dramatiq.Message[Any] = dramatiq.Message(**{**note.message().asdict(), **change})
    with pytest.raises(MessageRefused, match=reason):
        broker.enqueue(message)
    with database.transaction():
        with pytest.raises(MessageRefused, match=reason):
            broker.enqueue(message)
        note.send()
    assert database.execute("SELECT count(*) FROM dramatiq.queue") == [(1,)]


@pytest.mark.parametrize("delay", [math.nan, "soon"])
def test_a_delay_that_is_no_number_is_refused(broker: PostgresBroker, delay: Any) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    with pytest.raises(MessageRefused, match=r"^delay: "):
        broker.enqueue(note.message(), delay=delay)


@pytest.mark.parametrize("delay", [10**15, 10**18, 10**400, math.inf])
def test_a_delay_is_as_long_as_a_timestamp_can_hold_at_the_most(
    broker: PostgresBroker, database: Database, delay: Any
) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    broker.enqueue(note.message(), delay=delay)
    assert database.execute("SELECT state::text, eta > now() + interval '30000 years' FROM dramatiq.queue") == [
        ("queued", True)
    ]


def test_a_delay_before_now_is_none(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    note.send_with_options(delay=-(10**18))
    assert database.execute("SELECT eta > now() - interval '1 minute' FROM dramatiq.queue") == [(True,)]


def test_a_priority_that_cannot_be_stored_is_refused_where_it_is_declared(broker: PostgresBroker) -> None:
    with pytest.raises(ValueError, match="priority: 2147483648"):
        dramatiq.actor(broker=broker, priority=2**31)(lambda: None)


def test_a_database_that_has_not_seen_migrate_is_named(url: str, database: Database) -> None:
    database.execute("DROP SCHEMA dramatiq CASCADE")
    broker = PostgresBroker(database, [])

    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    with pytest.raises(SchemaMismatch, match="duepost migrate"):
        note.send()


@pytest.mark.parametrize(
    "text", [*UNSTORABLE, "plain", "long" * 1_000_000, "\x00" * 100_000], ids=lambda text: ascii(text)[:20]
)
def test_whatever_the_text_of_an_exception_holds_the_message_is_retried_and_then_a_dead_letter(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, text: str
) -> None:
    runs: list[int] = []

    @dramatiq.actor(broker=broker, max_retries=3)
    def fail() -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        runs.append(len(message.options.get("traceback", "")))
        raise RuntimeError(text)

    fail.send()
    start_worker()
    wait_until(lambda: bool(dead_letters(database)))
    assert dead_letters(database) == [("fail", "RuntimeError", 3)]
    assert len(runs) == 4
    assert 0 < runs[1] < 7 * LONGEST_TRACEBACK


@pytest.mark.parametrize("delay", [10**18, math.inf])
def test_a_retry_whose_delay_cannot_be_stored_waits_as_long_as_can_be(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, delay: Any
) -> None:
    @dramatiq.actor(broker=broker)
    def later() -> None:
        raise dramatiq.Retry("later", delay=delay)

    later.send()
    start_worker()
    wait_until(
        lambda: (
            database.execute(
                "SELECT count(*) FROM dramatiq.queue WHERE state = 'queued' AND eta > now() + interval '30000 years'"
            )
            == [(1,)]
        )
    )


class Spoils(Middleware):
    """Puts something into a retry's options that no encoder takes."""

    def before_enqueue(self, broker: dramatiq.Broker, message: dramatiq.Message[Any], delay: int | None) -> None:
        if message.options.get("retries"):
            message.options["spoilt"] = object()


@pytest.mark.parametrize("argument", ["plain", "a\x00b"])
def test_a_retry_that_cannot_be_stored_runs_again_as_it_was_and_its_retries_are_counted(
    broker: PostgresBroker,
    database: Database,
    start_worker: StartWorker,
    caplog: pytest.LogCaptureFixture,
    argument: str,
) -> None:
    broker.add_middleware(Spoils())
    runs: list[object] = []

    @dramatiq.actor(broker=broker, max_retries=2)
    def fail(value: str, things: list[object]) -> None:
        runs.append((value, list(things)))
        things.append(object())
        raise RuntimeError

    message = fail.send(argument, [1])
    start_worker()
    wait_until(lambda: bool(dead_letters(database)))
    assert runs == [(argument, [1])] * 3
    assert dead_letters(database) == [("fail", "RuntimeError", 2)]
    told = [record.getMessage() for record in caplog.records if "cannot be requeued" in record.getMessage()]
    assert (
        told == [f"Message {message.message_id} cannot be requeued as it is now (MessageRefused), but as it was."] * 2
    )


def test_a_step_of_a_pipeline_gets_what_the_one_before_returned(
    broker: PostgresBroker, database: Database, start_worker: StartWorker
) -> None:
    got: list[object] = []

    @dramatiq.actor(broker=broker)
    def first(place: int) -> object:
        return ODD_VALUES[place]

    @dramatiq.actor(broker=broker)
    def second(value: object = None) -> None:
        got.append(value)

    for place in range(len(ODD_VALUES)):
        dramatiq.pipeline([first.message(place), second.message()], broker=broker).run()
    start_worker()
    wait_until(lambda: len(got) == len(ODD_VALUES))
    assert sorted(map(repr, got)) == sorted(map(repr, ODD_VALUES))


def test_results_and_failures_come_back_as_they_were(broker: PostgresBroker, start_worker: StartWorker) -> None:
    @dramatiq.actor(broker=broker, store_results=True, max_retries=0)
    def give(place: int) -> object:
        return ODD_VALUES[place]

    @dramatiq.actor(broker=broker, store_results=True, max_retries=0)
    def fail() -> object:
        raise RuntimeError(UNSTORABLE[0])

    backend = broker.get_results_backend()
    sent = [give.send(place) for place in range(len(ODD_VALUES))]
    failing = fail.send()
    start_worker()
    got = [message.get_result(backend=backend, block=True, timeout=20_000) for message in sent]
    assert list(map(repr, got)) == list(map(repr, ODD_VALUES))
    with pytest.raises(dramatiq.results.ResultFailure, match="a\x00b"):
        failing.get_result(backend=backend, block=True, timeout=20_000)


def test_a_result_may_last_longer_than_a_timestamp_can_say(
    broker: PostgresBroker, database: Database, start_worker: StartWorker
) -> None:
    @dramatiq.actor(broker=broker, store_results=True, result_ttl=10**18)
    def give() -> str:
        return "x"

    message = give.send()
    start_worker()
    assert message.get_result(backend=broker.get_results_backend(), block=True, timeout=20_000) == "x"
    wait_until(lambda: is_done(database))
    assert dead_letters(database) == []


class FailsAtTheEnd(Middleware):
    """Middleware of somebody's that fails as it is told of a message's end."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def after_process_message(
        self, broker: object, message: object, *, result: object = None, exception: object = None
    ) -> None:
        raise self.error


def grouped(broker: PostgresBroker, actor: dramatiq.Actor[..., Any]) -> None:
    group = dramatiq.group([actor.message()], broker=broker)
    group.add_completion_callback(dramatiq.Message("default", "other", (), {}, {}, message_id="no UUID"))
    group.run()


#: What of a message's end cannot be stored: for each of Dramatiq's own middleware that stores something at it.
ENDS: dict[str, Callable[[PostgresBroker, dramatiq.Actor[..., Any]], object]] = {
    "pipelines": lambda broker, actor: dramatiq.pipeline([actor.message(), actor.message()], broker=broker).run(),
    "callbacks": lambda _, actor: actor.send_with_options(on_success="other"),
    "on_failure": lambda _, actor: actor.send_with_options(args=(True,), on_failure="other"),
    "results": lambda _, actor: actor.send_with_options(store_results=True),
    "groups": grouped,
}


@pytest.mark.parametrize("end", ENDS)
def test_a_message_is_a_dead_letter_if_what_follows_it_cannot_be_stored(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    @dramatiq.actor(broker=broker, max_retries=0)
    def give(fails: bool = False) -> object:
        if fails:
            raise TooBig
        return object()

    @dramatiq.actor(broker=broker)
    def other(*_: object) -> None: ...

    ENDS[end](broker, give)
    start_worker()
    wait_until(lambda: bool(dead_letters(database)))
    [(actor_name, failure, _)] = dead_letters(database)
    assert (actor_name, failure) in {
        ("give", "MessageRefused"), ("give", "TooBig"), ("give", "TypeError")
    }  # fmt: skip
    [letter] = messages.dead_letters(database, 1)
    told = [record.getMessage() for record in caplog.records if "it is a dead letter" in record.getMessage()]
    assert len(told) == 1
    assert letter.message_id in told[0]


class TooBig(Exception):
    """Whose text no row can hold."""

    def __str__(self) -> str:
        caller = sys._getframe(1).f_code.co_name
        return "x" * 260_000_000 if caller == "after_process_message" else "short"


ERRORS = pytest.mark.parametrize(
    "error", [RuntimeError("secret"), TimeLimitExceeded("now"), KeyboardInterrupt()], ids=repr
)


def told_of(caplog: pytest.LogCaptureFixture, message: dramatiq.Message[Any]) -> list[str]:
    """The lines of errors that name a message and give no traceback."""
    where = "after_process_message of "
    return [
        record.getMessage().removeprefix(f"Message {message.message_id}: ").replace(where, "")
        for record in caplog.records
        if where in record.getMessage() and record.levelno >= logging.ERROR and record.exc_info is None
    ]


@ERRORS
def test_middleware_that_only_looks_on_may_fail_at_a_messages_end(
    broker: PostgresBroker,
    database: Database,
    start_worker: StartWorker,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
) -> None:
    broker.add_middleware(FailsAtTheEnd(error))
    done: list[str] = []

    @dramatiq.actor(broker=broker)
    def note(word: str) -> None:
        done.append(word)

    message = note.send("one")
    start_worker()
    wait_until(lambda: done == ["one"] and is_done(database))
    assert dead_letters(database) == []
    assert told_of(caplog, message) == [f"{type(error).__name__} in FailsAtTheEnd."]


def test_dramatiqs_default_middleware_runs_in_a_worker_that_the_command_has_not_booted(database: Database) -> None:
    broker = PostgresBroker(database)
    done = threading.Event()

    @dramatiq.actor(broker=broker)
    def note() -> None:
        done.set()

    note.send()
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    assert done.wait(20)
    wait_until(lambda: is_done(database))
    worker.stop()
    assert dead_letters(database) == []


@ERRORS
def test_a_message_that_failed_and_that_middleware_failed_to_requeue_is_a_dead_letter(
    database: Database, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    broker = PostgresBroker(database, [FailsAtTheEnd(error)])

    @dramatiq.actor(broker=broker)
    def fail() -> None:
        raise LookupError

    message = fail.send()
    worker = dramatiq.Worker(broker, worker_timeout=50, worker_threads=1)
    worker.start()
    wait_until(lambda: bool(dead_letters(database)))
    worker.stop()
    assert dead_letters(database) == [("fail", "LookupError", 0)]
    assert told_of(caplog, message) == [f"{type(error).__name__} in FailsAtTheEnd; it is a dead letter."]


class SendsAtTheEnd(Middleware):
    """Middleware of somebody's that sends something on."""

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: object = None, exception: object = None
    ) -> None:
        broker.enqueue(dramatiq.Message("default", "note", (object(),), {}, {}))


def test_a_message_is_a_dead_letter_if_any_middleware_fails_to_send_on_what_follows_it(
    broker: PostgresBroker, database: Database, start_worker: StartWorker
) -> None:
    broker.add_middleware(SendsAtTheEnd())

    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    note.send()
    start_worker()
    wait_until(lambda: bool(dead_letters(database)))
    assert dead_letters(database) == [("note", "MessageRefused", 0)]


def test_a_message_that_waits_for_its_retry_is_no_dead_letter_because_other_middleware_fails(
    broker: PostgresBroker, database: Database, start_worker: StartWorker
) -> None:
    broker.add_middleware(FailsAtTheEnd(RuntimeError()), before=Retries)

    @dramatiq.actor(broker=broker)
    def fail() -> None:
        raise dramatiq.Retry(delay=3_600_000)

    fail.send()
    worker = start_worker()
    wait_until(lambda: database.execute("SELECT message #>> '{options,retries}' FROM dramatiq.queue") == [("1",)])
    worker.join()
    assert database.execute("SELECT state::text FROM dramatiq.queue") == [("queued",)]


def test_a_message_whose_end_was_interrupted_is_not_acknowledged(broker: PostgresBroker, database: Database) -> None:
    @dramatiq.actor(broker=broker)
    def note() -> None: ...

    note.send()
    broker.worker_session.start()
    consumer = broker.consume("default", prefetch=1, timeout=10)
    message = next(consumer)
    assert message is not None
    broker.emit_before("process_message", message)
    # As where an interrupt comes between two middleware: Dramatiq acknowledges all the same.
    consumer.ack(message)
    consumer.close()
    broker.worker_session.stop()
    assert database.execute("SELECT state::text FROM dramatiq.queue") == [("rejected",)]


class Cipher(Encoder):
    """An encoder of somebody's own."""

    def encode(self, data: Any) -> bytes:
        return PickleEncoder().encode(data)[::-1]

    def decode(self, data: bytes) -> Any:
        return PickleEncoder().decode(data[::-1])


@pytest.fixture(params=["json", "pickle", "own", "nul"])
def argument(request: pytest.FixtureRequest) -> Iterator[str]:
    """An argument, under each encoder, and one that is stored encoded under Dramatiq's own."""
    before = dramatiq.get_encoder()
    encoders = {"pickle": PickleEncoder(), "own": Cipher()}
    dramatiq.set_encoder(encoders.get(request.param, before))
    yield "\x00" if request.param == "nul" else "x"
    dramatiq.set_encoder(before)


def test_a_dead_letter_that_is_requeued_has_all_its_retries_again_whatever_the_encoder(
    broker: PostgresBroker, database: Database, start_worker: StartWorker, argument: str
) -> None:
    runs: list[str] = []

    @dramatiq.actor(broker=broker, max_retries=2)
    def fail(word: str) -> None:
        runs.append(word)
        raise RuntimeError

    message = fail.send(argument)
    start_worker()
    wait_until(lambda: dead_letters(database) == [("fail", "RuntimeError", 2)])
    with database.transaction() as cursor:
        assert messages.requeue(cursor, message.message_id)
    wait_until(lambda: dead_letters(database) == [("fail", "RuntimeError", 2)] and len(runs) == 6)
    assert runs == [argument] * 6


def test_a_message_of_the_release_before_is_read_under_another_encoder(
    broker: PostgresBroker, database: Database, start_worker: StartWorker
) -> None:
    done = threading.Event()

    @dramatiq.actor(broker=broker)
    def note(retries: int) -> None:
        message = CurrentMessage.get_current_message()
        assert message is not None
        assert message.options["retries"] == retries
        done.set()

    before = dramatiq.get_encoder()
    dramatiq.set_encoder(PickleEncoder())
    try:
        message = note.message_with_options(args=(2,), retries=2)
        content = json.dumps({"actor_name": "note", "encoded": base64.b64encode(message.encode()).decode()})
        database.execute(
            "INSERT INTO dramatiq.queue (message_id, queue_name, state, message)"
            " VALUES (%(id)s, 'default', 'queued', %(content)s)",
            {"id": str(uuid4()), "content": content},
        )
        start_worker()
        assert done.wait(20)
    finally:
        dramatiq.set_encoder(before)

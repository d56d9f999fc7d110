# mypy: disable-error-code="no-untyped-call"
# Dramatiq is typed in part.
"""Redaction: neither a log nor the broker's table gets to see an exception's message."""

import io
import logging
from collections.abc import Iterator

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Retries

from actors.alerts.redaction import PrivateRetries, PrivateTracebacks, install, private_traceback

SECRET = "ann@secret.example"


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """The root logger, as of a process of our own."""
    root = logging.RootLogger(logging.WARNING)
    monkeypatch.setattr(logging, "root", root)
    return root


@pytest.fixture
def log(root: logging.Logger) -> io.StringIO:
    """What a private root handler writes."""
    log = io.StringIO()
    root.addHandler(logging.StreamHandler(log))
    install()
    return log


def fail(secret: str = SECRET) -> None:
    raise ValueError(f"Key (address)=({secret}) already exists.")


def fail_because_of_another() -> None:
    try:
        fail()
    except ValueError as error:
        raise RuntimeError(SECRET) from error


def fail_while_handling_another() -> None:
    try:
        fail()
    except ValueError:
        raise KeyError(SECRET)  # noqa: B904 - that is what is tested


def fail_in_a_group() -> None:
    try:
        fail()
    except ValueError as error:
        raise ExceptionGroup(SECRET, [error, LookupError(SECRET)])  # noqa: B904 - that is what is tested


FAILURES = [fail, fail_because_of_another, fail_while_handling_another, fail_in_a_group]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_logged_exception_shows_no_message(log: io.StringIO, failure: type) -> None:
    try:
        failure()
    except Exception:
        logging.getLogger().exception("Failed to process message %s.", 7)
    assert SECRET not in log.getvalue()


def test_a_logged_exception_shows_where_it_came_from_and_its_type(log: io.StringIO) -> None:
    try:
        fail()
    except ValueError:
        logging.getLogger().exception("Failed to process message %s.", 7)
    first, head, caller, place, last = log.getvalue().splitlines()
    assert (first, head, last) == (
        "Failed to process message 7.",
        "Traceback (most recent call last):",
        "ValueError",
    )
    assert caller.startswith(f'  File "{__file__}", line ')
    assert place == f'  File "{__file__}", line {fail.__code__.co_firstlineno + 1}, in fail'


def test_a_traceback_shows_the_chain_of_causes() -> None:
    with pytest.raises(RuntimeError) as raised:
        fail_because_of_another()
    lines = private_traceback(raised.value).splitlines()
    assert [line for line in lines if line and not line.startswith(("  ", "Traceback"))] == [
        "ValueError",
        "The above exception was the direct cause of the following exception:",
        "RuntimeError",
    ]


def test_a_traceback_shows_what_was_being_handled() -> None:
    with pytest.raises(KeyError) as raised:
        fail_while_handling_another()
    lines = private_traceback(raised.value).splitlines()
    assert [line for line in lines if line and not line.startswith(("  ", "Traceback"))] == [
        "ValueError",
        "During handling of the above exception, another exception occurred:",
        "KeyError",
    ]


def test_a_traceback_shows_the_parts_of_a_group() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        fail_in_a_group()
    assert private_traceback(raised.value).endswith("LookupError")


def test_a_traceback_names_the_module_of_a_type_that_is_not_built_in() -> None:
    assert private_traceback(dramatiq.errors.Retry(SECRET)) == "dramatiq.errors.Retry"


def test_a_traceback_of_exceptions_that_cause_each_other_ends() -> None:
    first, second = ValueError(SECRET), KeyError(SECRET)
    first.__cause__, second.__cause__ = second, first
    assert private_traceback(first).splitlines()[0] == "KeyError"


def test_a_formatter_of_another_sort_finds_no_exception() -> None:
    error = ValueError(SECRET)
    record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "m", (), (ValueError, error, None))
    assert PrivateTracebacks().filter(record)
    assert record.exc_info is None


def test_a_record_without_exception_passes_as_it_is(log: io.StringIO) -> None:
    logging.getLogger().warning("Email %d.", 7)
    assert log.getvalue() == "Email 7.\n"


def test_installing_twice_adds_one_filter(root: logging.Logger) -> None:
    handler = logging.StreamHandler(io.StringIO())
    root.handlers = [handler]
    install()
    install()
    assert [type(each) for each in handler.filters] == [PrivateTracebacks]


def test_a_worker_process_that_boots_has_private_tracebacks(root: logging.Logger) -> None:
    handler = logging.StreamHandler(io.StringIO())
    root.handlers = [handler]
    StubBroker(middleware=[PrivateRetries()]).emit_after("process_boot")
    assert [type(each) for each in handler.filters] == [PrivateTracebacks]


@pytest.fixture
def broker() -> Iterator[StubBroker]:
    broker = StubBroker(middleware=[Retries(), PrivateRetries()])
    yield broker
    broker.close()


def run(broker: StubBroker, *errors: Exception, max_retries: int | None = None) -> list[dict[str, object]]:
    """Runs an actor that raises these errors in turn, then succeeds; gives the options of each retry."""
    waiting = list(errors)
    seen: list[dict[str, object]] = []

    class Options(dramatiq.Middleware):
        def before_process_message(self, _broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:
            seen.append(dict(message.options))

    broker.add_middleware(Options())

    @dramatiq.actor(broker=broker, max_retries=max_retries, min_backoff=1, max_backoff=1)
    def failing(_email_id: int) -> None:
        if waiting:
            raise waiting.pop(0)

    failing.send(7)
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    try:
        broker.join(failing.queue_name, timeout=10_000, fail_fast=False)
    finally:
        worker.stop()
    return seen[1:]


def test_a_message_that_is_retried_carries_the_type_of_the_exception_only(broker: StubBroker) -> None:
    [options] = run(broker, ValueError(SECRET))
    assert options["traceback"] == "ValueError"


def test_a_message_that_is_retried_carries_no_secret(broker: StubBroker) -> None:
    assert SECRET not in str(run(broker, ValueError(SECRET), KeyError(SECRET)))


def test_a_message_remembers_at_which_retry_each_type_first_happened(broker: StubBroker) -> None:
    *_, last = run(broker, ValueError(), ValueError(), KeyError(), ValueError())
    assert last["failures"] == {"ValueError": 1, "KeyError": 3}


def test_a_retry_that_was_asked_for_is_no_failure(broker: StubBroker) -> None:
    [options] = run(broker, dramatiq.errors.Retry(delay=1))
    assert (options["traceback"], options["failures"]) == ("Retry", {})


def test_a_message_that_is_given_up_carries_no_traceback(broker: StubBroker) -> None:
    run(broker, ValueError(SECRET), max_retries=0)
    [letter] = broker.dead_letters
    assert "traceback" not in letter.options


def test_a_message_that_is_sent_again_carries_no_traceback_and_no_trace(broker: StubBroker) -> None:
    options = {"traceback": SECRET, "_sentry_headers": {"baggage": "x"}}
    message: dramatiq.Message[object] = dramatiq.Message("default", "failing", (7,), {}, options)
    broker.declare_queue("default")
    assert broker.enqueue(message).options == {"failures": {}}

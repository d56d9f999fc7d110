"""What keeps an email's content out of the logs and out of the broker's table.

A driver puts row values into its exceptions' messages, a relay puts addresses into its replies: no
exception's message is fit to be written down.
"""

import logging
import sys
from collections.abc import Iterator
from traceback import walk_tb

import dramatiq
from dramatiq.errors import Retry

#: A message's option: for each type of exception, at which retry it first happened.
FAILURES = "failures"

#: Where Retries puts a traceback with the exception's message in it.
TRACEBACK = "traceback"

#: Where Sentry's integration puts a trace to be continued; ours never are.
SENTRY_HEADERS = "_sentry_headers"

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n"


class PrivateTracebacks(logging.Filter):
    """Gives log records tracebacks that tell where and what type, but no message and no source line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Replaces the record's exception by a text; lets every record pass."""
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = private_traceback(record.exc_info[1])
            # A formatter of another sort would take the exception itself.
            record.exc_info = None
        return True


def install() -> None:
    """Makes the tracebacks of all handlers of the root logger private; safe to repeat."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(each, PrivateTracebacks) for each in handler.filters):
            handler.addFilter(PrivateTracebacks())


def private_traceback(error: BaseException) -> str:
    """The traceback of an exception and of all that led to it: files, lines, functions and types only."""
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    cause, context = error.__cause__, error.__context__
    if cause is not None and id(cause) not in seen:
        yield from _lines(cause, seen)
        yield _CAUSE
    elif context is not None and not error.__suppress_context__ and id(context) not in seen:
        yield from _lines(context, seen)
        yield _CONTEXT
    if error.__traceback__ is not None:
        yield "Traceback (most recent call last):"
        for frame, line in walk_tb(error.__traceback__):
            yield f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}'
    yield _type_name(type(error))
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from (f"  | {line}" for line in _lines(part, seen))


def _type_name(type_: type[BaseException]) -> str:
    return type_.__qualname__ if type_.__module__ == "builtins" else f"{type_.__module__}.{type_.__qualname__}"


class PrivateRetries(dramatiq.Middleware):
    """Keeps exceptions' messages out of the messages that Retries requeues. Comes after Retries.

    What stays is the last exception's type, and at which retry each type first happened, for reports.
    """

    def after_process_boot(self, broker: dramatiq.Broker) -> None:  # noqa: ARG002
        """Logging is set up by now: its tracebacks become private."""
        install()

    def before_enqueue(
        self,
        broker: dramatiq.Broker,  # noqa: ARG002
        message: dramatiq.Message[object],
        delay: int | None,  # noqa: ARG002
    ) -> None:
        """Replaces the traceback by the type of the exception in flight."""
        message.options.pop(SENTRY_HEADERS, None)
        traceback, failed_with = message.options.pop(TRACEBACK, None), sys.exc_info()[0]
        if traceback is None:
            return
        failures = message.options[FAILURES] = dict(message.options.get(FAILURES, {}))
        if failed_with is not None:
            message.options[TRACEBACK] = failed_with.__name__
            if not issubclass(failed_with, Retry):
                failures.setdefault(failed_with.__name__, message.options.get("retries"))
        elif traceback.isidentifier():
            # Some brokers enqueue a delayed message a second time: it has been here before.
            message.options[TRACEBACK] = traceback

    def before_nack(self, broker: dramatiq.Broker, message: dramatiq.MessageProxy) -> None:  # noqa: ARG002
        """A message that is given up keeps no traceback either."""
        message.options.pop(TRACEBACK, None)

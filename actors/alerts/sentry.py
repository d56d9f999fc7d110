"""Sentry, where it is on: what is reported to it, and what of that leaves this process."""

from multiprocessing.util import Finalize
from typing import cast

import sentry_sdk
from sentry_sdk.crons import capture_checkin
from sentry_sdk.integrations.atexit import AtexitIntegration
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.integrations.dramatiq import DramatiqIntegration
from sentry_sdk.types import Event, Hint, MonitorConfig

from actors.alerts.redaction import FAILURES

#: The cron monitor that the scheduler checks in with.
MONITOR = "duepost-scheduler"

#: Minutes for margin and runtime: two ticks may be late before somebody is called.
MONITOR_CONFIG: MonitorConfig = {
    "schedule": {"type": "interval", "value": 1, "unit": "minute"},
    "timezone": "UTC",
    "checkin_margin": 5,
    "max_runtime": 10,
    "failure_issue_threshold": 2,
    "recovery_threshold": 1,
}

#: Seconds that a process which ends waits for its last events to go out.
FLUSH_TIMEOUT = 2.0

#: All that leaves of an event. Not: breadcrumbs, extra, request, user, logentry, threads, modules.
_EVENT_KEYS = (
    "contexts",
    "environment",
    "event_id",
    "exception",
    "fingerprint",
    "level",
    "message",
    "platform",
    "release",
    "sdk",
    "server_name",
    "tags",
    "timestamp",
    "transaction",
)
_TRACE_KEYS = (
    "environment",
    "event_id",
    "platform",
    "release",
    "sdk",
    "server_name",
    "spans",
    "start_timestamp",
    "tags",
    "timestamp",
    "transaction",
    "transaction_info",
    "type",
)
_EXCEPTION_KEYS = ("type", "module")
_MECHANISM_KEYS = ("type", "handled", "exception_id", "parent_id", "is_exception_group")
_FRAME_KEYS = ("filename", "abs_path", "function", "module", "lineno", "in_app")


def start(dsn: str, *, environment: str, release: str) -> None:
    """Turns Sentry on. Dramatiq's exceptions are reported by brokers that are built afterwards.

    Args:
        dsn: where to report.
        environment: such as `production`.
        release: such as `duepost@1.0.0`.

    Raises:
        sentry_sdk.utils.BadDsn: the DSN is not one; a ValueError.
    """
    sentry_sdk.init(
        dsn=dsn,
        environment=environment,
        release=release,
        # Without the logging integration: Dramatiq logs each exception too, which would report it twice.
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[DramatiqIntegration(), AtexitIntegration(callback=_say_nothing), DedupeIntegration()],
        before_send=_private,
        before_send_transaction=_private_trace,
        # With a body the integration withholds its retries too; `_private` keeps only ids of it.
        max_request_body_size="always",
        include_local_variables=False,
        include_source_context=False,
        max_breadcrumbs=0,
        traces_sample_rate=None,
        auto_session_tracking=False,
        spotlight=False,
    )
    # Dramatiq's workers are processes of multiprocessing, which ends them without running atexit's functions.
    Finalize(None, sentry_sdk.flush, kwargs={"timeout": FLUSH_TIMEOUT}, exitpriority=0)


def _say_nothing(_pending: int, _timeout: float) -> None:
    """Sentry's own words about pending events are for people at a terminal."""


def check_in() -> None:
    """The scheduler is alive."""
    if sentry_sdk.is_initialized():
        capture_checkin(monitor_slug=MONITOR, status="ok", monitor_config=MONITOR_CONFIG)


def _private(event: Event, hint: Hint) -> Event | None:
    """Leaves of an event only what is known to be private, and nothing of one that was reported before."""
    if event.get("type") == "check_in":
        return event
    message = _dramatiq_message(event)
    if _was_reported(message, hint):
        return None
    kept = cast("Event", {key: value for key, value in event.items() if key in _EVENT_KEYS})
    if "exception" in event:
        kept["exception"] = {"values": [_private_exception(each) for each in event["exception"]["values"]]}
    kept["contexts"] = {"dramatiq": _private_message(message)} if message else {}
    return kept


def _private_trace(event: Event, _hint: Hint) -> Event:
    """Leaves of a trace what it was made of: not the broker message in process, which Sentry's integration adds."""
    kept = cast("Event", {key: value for key, value in event.items() if key in _TRACE_KEYS})
    kept["contexts"] = {"trace": event.get("contexts", {}).get("trace", {})}
    return kept


def _private_exception(exception: dict[str, object]) -> dict[str, object]:
    """Type and place; not the message, into which drivers put row values."""
    kept: dict[str, object] = {key: exception[key] for key in _EXCEPTION_KEYS if key in exception}
    mechanism, stacktrace = exception.get("mechanism"), exception.get("stacktrace")
    if isinstance(mechanism, dict):
        kept["mechanism"] = {key: mechanism[key] for key in _MECHANISM_KEYS if key in mechanism}
    if isinstance(stacktrace, dict):
        frames = stacktrace.get("frames") or []
        kept["stacktrace"] = {"frames": [{key: frame[key] for key in _FRAME_KEYS if key in frame} for frame in frames]}
    return kept


def _private_message(message: dict[str, object]) -> dict[str, object]:
    args, options = message.get("args"), message.get("options")
    return {
        "actor": message.get("actor_name"),
        "queue": message.get("queue_name"),
        "message_id": message.get("message_id"),
        "ids": [each for each in args if isinstance(each, int)] if isinstance(args, (list, tuple)) else [],
        "retries": options.get("retries", 0) if isinstance(options, dict) else 0,
    }


def _dramatiq_message(event: Event) -> dict[str, object]:
    """The message in process, as Sentry's integration tells it; empty where there is none."""
    context = event.get("contexts", {}).get("dramatiq", {})
    message = context.get("data")
    return message if isinstance(message, dict) else {}


def _was_reported(message: dict[str, object], hint: Hint) -> bool:
    """Whether an exception only repeats what an earlier attempt at the same message has reported.

    Retries has counted the failure already when Sentry is asked: the first one comes with one retry.
    """
    options, raised = message.get("options"), hint.get("exc_info")
    if not isinstance(options, dict) or not raised:
        return False
    retries, failures = options.get("retries", 0), options.get(FAILURES)
    if isinstance(failures, dict):
        return bool(failures.get(raised[0].__name__, retries) < retries)
    return bool(retries > 1)

"""What an operator hears of an attempt, once it is committed. That an alert fails changes nothing of that."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import ParamSpec

from actors.alerts import alerts, traces
from actors.alerts.traces import Trace
from actors.content.templates import RenderError
from actors.delivery.conclude import Conclusion
from actors.delivery.rates import pace
from actors.delivery.route import described
from actors.metrics import Told, WorkerMetrics
from models.emails import ClaimedEmail, Lost
from models.items import Claimed, endpoint_of, is_endpoint, route_of
from models.scheduled_messages import ClaimedMessage
from models.words import State

logger = logging.getLogger(__name__)

P = ParamSpec("P")


def report(conclusion: Conclusion) -> None:
    """Tells of each failure once. A template's has an alert of its own; so has the relay's, as the circuit opens."""
    if conclusion.is_repeated:
        return
    decision, state = conclusion.decision, conclusion.state
    item = decision.item
    if conclusion.endpoint is not None:
        _report_message(conclusion, conclusion.endpoint)
        return
    for ruling in decision.undeliverable_rulings:
        _tell(alerts.undeliverable, item.id, item.kind, ruling, conclusion.route)
    if decision.is_unknown:
        _tell(alerts.unknown, item.id, item.kind, state)
    if state is not None:
        for ruling in decision.retried_rulings:
            _tell(alerts.retried, item.id, item.kind, ruling, conclusion.route)
    if conclusion.opened_circuit is not None:
        _tell(alerts.circuit_opened, conclusion.opened_circuit, conclusion.route)
    if conclusion.slowed_down is not None:
        refusal, pause = conclusion.slowed_down
        called = "The relay" if conclusion.route is None else f"The relay {conclusion.route}"
        logger.info("%s has had too much of us (%s): it gets nothing for %.0f s.", called, described(refusal), pause)
    for refusal, per_second in conclusion.slowed_domains:
        logger.info(
            "A domain has had too much of us (%s): it gets %s; duepost rate list.", described(refusal), pace(per_second)
        )


def count(metrics: WorkerMetrics, conclusion: Conclusion, way: str | None, seconds: float) -> None:
    """Counts an attempt that is committed. Nothing waits, and what fails of it changes nothing.

    Args:
        metrics: what counts.
        conclusion: what was committed.
        way: the relay's route; None where each item has its own.
        seconds: how long it took.
    """
    _tell(_count, metrics, conclusion, way, seconds)


def _count(metrics: WorkerMetrics, conclusion: Conclusion, way: str | None, seconds: float) -> None:
    item = conclusion.decision.item
    route = route_of(item.endpoint) if isinstance(item, ClaimedMessage) else way or ""
    told = [Told(each.phase, each.verdict, each.outcome) for each in conclusion.decision.results]
    late = _late(item, time.time() - seconds)
    late = None if late is None else late + seconds
    channel = "message" if isinstance(item, ClaimedMessage) else "email"
    metrics.concluded(channel, item.kind, route, told, seconds=seconds, late=late)


def _late(item: Claimed, claimed_at: float) -> float | None:
    """Seconds after its time at which an item was claimed; None where that is not known."""
    if isinstance(item, ClaimedEmail):
        # An email's date is the time that it was scheduled for, or when that was done, if it was later.
        return claimed_at - item.date_header.timestamp()
    return item.late_seconds if isinstance(item, ClaimedMessage) else None


def trace(taken: Trace, conclusion: Conclusion, way: str | None) -> None:
    """Sends the trace of an attempt that is committed. Nothing waits, and what fails of it changes nothing."""
    item = conclusion.decision.item
    is_message = isinstance(item, ClaimedMessage)
    rulings = conclusion.decision.rulings
    tags = {
        "message_id" if is_message else "email_id": item.id,
        "kind": item.kind,
        "route": route_of(item.endpoint) if isinstance(item, ClaimedMessage) else way,
        "verdict": rulings[-1].verdict if rulings else None,
        "phase": rulings[-1].phase if rulings else None,
    }
    if not item.attempts:
        # Later ones are behind a pause.
        taken.has_waited(_late(item, taken.begun) or 0.0)
    _tell(traces.send, taken, "send_message" if is_message else "send_email", tags)


def _report_message(conclusion: Conclusion, endpoint: str) -> None:
    decision, state, item = conclusion.decision, conclusion.state, conclusion.decision.item
    for ruling in decision.undeliverable_rulings:
        _tell(alerts.message_undeliverable, item.id, item.kind, ruling, endpoint)
    if decision.is_unknown:
        _tell(alerts.message_unknown, item.id, item.kind, state, endpoint)
    if state is not None:
        for ruling in decision.retried_rulings:
            _tell(alerts.message_retried, item.id, item.kind, ruling, endpoint)
    if conclusion.opened_circuit is not None:
        _tell(alerts.endpoint_failed, conclusion.opened_circuit, endpoint)
    if conclusion.disabled is not None:
        _tell(alerts.endpoint_disabled, decision.rulings[0], endpoint)
    if conclusion.slowed_down is not None:
        refusal, pause = conclusion.slowed_down
        logger.info(
            "The endpoint %s asks for a pause (%s): it gets nothing for %.0f s.", endpoint, described(refusal), pause
        )


def report_unknown(lost: Lost, state: State | None) -> None:
    """Says that nobody knows what came of a claim whose worker is gone."""
    if is_endpoint(lost.route):
        _tell(alerts.message_unknown, lost.id, lost.kind, state, endpoint_of(lost.route))
    else:
        _tell(alerts.unknown, lost.id, lost.kind, state)


def report_lost_claim(item: Claimed) -> None:
    """Says that a claim went to another worker while this one was away."""
    _tell(alerts.lost_claim, item.id, item.kind)


def report_render_failures(item: Claimed, failures: Mapping[str, RenderError]) -> None:
    """A template's failure is ours to mend: a line each time, an event when it is new; not for each user."""
    for text, failure in failures.items():
        is_new = text not in (item.last_error or "")
        _tell(alerts.render_error, item.id, item.kind, template=failure.template, line=failure.line, is_new=is_new)


def _tell(alert: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
    try:
        alert(*args, **kwargs)
    except Exception:  # whatever a reporter raises
        logger.exception("A report has failed.")

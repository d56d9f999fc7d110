"""`/metrics`: how it stands, from the database, for Prometheus."""

import hmac
import logging
import threading
import time
from collections.abc import Callable, Sequence

import psycopg2
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from actors.metrics import OTHER, Values
from models.database.connections import Database
from models.errors import DuepostError
from models.metrics import Gauges, gauges
from models.rates import RateState

LOGGER = logging.getLogger("duepost.web")

#: Seconds for which an answer is kept: however many ask, the database is asked once.
KEPT = 10.0

#: Seconds that a scrape waits while another one asks the database: it keeps no thread for longer.
TURN = 2.0

REFUSED = "This is for those who are logged in, or show DUEPOST_WEB_METRICS_TOKEN.\n"


class Busy(DuepostError):
    """The database is being asked, and takes long."""


class Metrics:
    """Answers scrapes.

    Args:
        database: where to look; its sessions can only read.
        token: what a scraper has to show; None: nobody is let in by one.
        is_let_in: whether somebody without a token may look.
    """

    def __init__(self, database: Database, token: str | None, is_let_in: Callable[[Request], bool]) -> None:
        self._database = database
        self._token = token
        self._is_let_in = is_let_in
        self._asking = threading.Lock()
        self._answer = b""
        self._until = 0.0

    def endpoint(self, request: Request) -> Response:
        """One scrape; 503 where the database does not answer, so that Prometheus calls this target down."""
        try:
            if not self._may(request):
                return PlainTextResponse(REFUSED, 401, {"www-authenticate": "Bearer"})
            return Response(self._current(), media_type=CONTENT_TYPE_LATEST)
        except (psycopg2.Error, DuepostError) as error:
            LOGGER.warning("metrics cannot be read: %s", type(error).__name__)
            return PlainTextResponse("The database does not answer.\n", 503)

    def _may(self, request: Request) -> bool:
        """A token that is shown has to be the right one, whoever shows it."""
        given = request.headers.getlist("authorization")
        if not given:
            return self._is_let_in(request)
        word, _, token = given[0].partition(" ")
        is_bearer = len(given) == 1 and word.lower() == "bearer"
        return is_bearer and self._token is not None and hmac.compare_digest(token.encode(), self._token.encode())

    def _current(self) -> bytes:
        """The numbers, from the database or as they were a moment ago.

        Raises:
            Busy: somebody else asks the database, and it takes long.
        """
        if not self._asking.acquire(timeout=TURN):
            raise Busy("another scrape waits for the database")
        try:
            if time.monotonic() >= self._until:
                self._answer = written(gauges(self._database))
                self._until = time.monotonic() + KEPT
            return self._answer
        finally:
            self._asking.release()


def written(found: Gauges) -> bytes:
    """The numbers as Prometheus reads them."""
    registry = CollectorRegistry()
    pending = Gauge("duepost_items_pending", "Items that are not finished.", ["channel", "state"], registry=registry)
    for channel, state, number in found.pending:
        pending.labels(channel, state).set(number)
    oldest = Gauge(
        "duepost_oldest_due_seconds", "For how long the oldest due item has waited.", ["channel"], registry=registry
    )
    for channel, seconds in found.oldest_due:
        oldest.labels(channel).set(seconds)
    circuit = Gauge(
        "duepost_route_circuit_open", "1: nothing leaves by this route but probes.", ["route"], registry=registry
    )
    label_of, circuits = Values(), dict[str, bool]()
    for name, is_open in found.circuits:
        label = label_of(name)
        circuits[label] = circuits.get(label, False) or is_open
    for label, is_open in circuits.items():
        circuit.labels(label).set(is_open)
    Gauge("duepost_workers", "Worker processes that are alive.", registry=registry).set(found.workers)
    if found.last_tick is not None:
        Gauge("duepost_last_tick_seconds", "Seconds since the scheduler's last pass.", registry=registry).set(
            found.last_tick
        )
    Gauge("duepost_dead_letters", "The broker's messages that failed for good.", registry=registry).set(
        found.dead_letters
    )
    came_back = Gauge(
        "duepost_came_back", "Bounces and complaints of the last day.", ["source", "effect"], registry=registry
    )
    for source, effect, number in found.came_back:
        came_back.labels(source, effect).set(number)
    _write_rates(registry, found.rates)
    Gauge("duepost_paused", "1: an operator has paused everything.", registry=registry).set(found.is_paused)
    return generate_latest(registry)


def _write_rates(registry: CollectorRegistry, states: Sequence[RateState]) -> None:
    """What is limited, by route and domain, the whole route's domain being empty.

    Domains are those that operators name, as far as labels go; the others are one: the relay has had too much of them.
    """
    labels = ["route", "domain"]
    limit = Gauge("duepost_rate_limit", "Items a second that may leave now.", labels, registry=registry)
    connections = Gauge("duepost_rate_connections", "Items that may be under way at once.", labels, registry=registry)
    current = Gauge("duepost_rate_current", "Items that leave a second now, about.", labels, registry=registry)
    waiting = Gauge("duepost_rate_waiting", "Items that wait for their turn.", labels, registry=registry)
    slowed = Gauge(
        "duepost_rate_slowed", "Domains that get less as the relay has had too much.", ["route"], registry=registry
    )
    route_of, domain_of = Values(), Values()
    for state in states:
        route, is_named = route_of(state.route), state.set_at is not None
        domain = state.domain and (domain_of(state.domain) if is_named else OTHER)
        slowed.labels(route).inc(state.learnt is not None)
        current.labels(route, domain).inc(state.current)
        waiting.labels(route, domain).inc(state.waiting)
        if OTHER not in (route, domain):
            if state.in_force is not None:
                limit.labels(route, domain).set(state.in_force)
            if state.connections is not None:
                connections.labels(route, domain).set(state.connections)

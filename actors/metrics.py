"""What a worker process counts for Prometheus, and where it is scraped.

Counting is a few additions in memory, once what came of an item is committed: no database, no lock of Duepost's. Labels
are words of ours and names that operators give; what an application calls its items is bounded, and never an address.
"""

import logging
import os
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from socketserver import TCPServer, ThreadingMixIn
from typing import Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Histogram, make_wsgi_app

logger = logging.getLogger(__name__)

#: Values of a label that come from applications or operators: what comes after that many is counted as `other`.
MOST_VALUES: Final = 100

#: Characters of such a value: a longer one is `other`.
LONGEST_VALUE: Final = 100

#: Stands for all the others.
OTHER: Final = "other"

#: Ports that a process tries, from the one that is set: as many worker processes of a machine can be scraped.
PORTS: Final = 32

#: Seconds that whoever asks may take for each piece of a request.
PATIENCE: Final = 10.0

#: Seconds: on time is within one; a relay that was away makes hours.
LATENESS_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 21_600, 86_400)

#: Seconds: a dialogue takes milliseconds; ten minutes for its last answer are legal.
ATTEMPT_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600)


class Values:
    """The values that one label may have: the first ones that come, as far as they are fit to be shown."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __call__(self, value: str) -> str:
        """The value itself, or `other`."""
        if value in self._known:
            return value
        if len(self._known) >= MOST_VALUES or not is_label(value):
            return OTHER
        # Two threads at once may bring one value more.
        self._known.add(value)
        return value


def is_label(value: str) -> bool:
    """Whether a name may be seen by whoever sees metrics: short, printable, and no address is in it."""
    return 0 < len(value) <= LONGEST_VALUE and value.isprintable() and "@" not in value


@dataclass(frozen=True, slots=True)
class Told:
    """What an attempt came to for one recipient; `verdict` and `outcome` are None where there was none."""

    phase: str
    verdict: str | None
    outcome: str | None


class WorkerMetrics:
    """The counters of one process. Any thread may count.

    Attributes:
        registry: what is scraped.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._outcomes = Counter(
            "duepost_outcomes",
            "Recipients whose item this process concluded, by how it ended.",
            ["channel", "kind", "outcome"],
            registry=self.registry,
        )
        self._attempts = Counter(
            "duepost_attempts",
            "Attempts of this process, by the phase in which they ended and what they came to.",
            ["channel", "route", "phase", "verdict"],
            registry=self.registry,
        )
        self._lateness = Histogram(
            "duepost_lateness_seconds",
            "From the time that an item was scheduled for until it was known to be sent.",
            ["channel"],
            buckets=LATENESS_BUCKETS,
            registry=self.registry,
        )
        self._seconds = Histogram(
            "duepost_attempt_seconds",
            "From an item's claim until what came of it was committed.",
            ["channel"],
            buckets=ATTEMPT_BUCKETS,
            registry=self.registry,
        )
        self._kinds, self._routes = Values(), Values()

    def concluded(
        self, channel: str, kind: str, route: str, told: Iterable[Told], *, seconds: float, late: float | None
    ) -> None:
        """An attempt is over, and what came of it is committed.

        Args:
            channel: `email` or `message`.
            kind: the item's kind.
            route: by which it went.
            told: what it came to for each recipient.
            seconds: how long it took.
            late: seconds after its time; None where that is not known.
        """
        kind, route = self._kinds(kind), self._routes(route)
        for each in told:
            if each.verdict is not None:
                self._attempts.labels(channel, route, each.phase, each.verdict).inc()
            if each.outcome is not None:
                self._outcomes.labels(channel, kind, each.outcome).inc()
            if late is not None and each.outcome == "sent":
                self._lateness.labels(channel).observe(max(late, 0.0))
        self._seconds.labels(channel).observe(max(seconds, 0.0))


class _Handler(WSGIRequestHandler):
    """Answers one request; nothing of it is logged, and one that does not go on is cut off."""

    timeout = PATIENCE

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Who scrapes is no news."""


class _Listener(ThreadingMixIn, WSGIServer):
    """A thread for each request; none keeps the process."""

    daemon_threads = True

    def server_bind(self) -> None:
        """Listens; unlike the library's, without asking DNS what this machine is called."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: object, client_address: object) -> None:
        """Somebody has hung up: that is their affair."""


class _Listener6(_Listener):
    """The same over IPv6."""

    address_family = socket.AF_INET6


class MetricsServer:
    """Serves what a process counts, at the first port that is free; one for each process of a machine.

    Args:
        metrics: what is served.
        host: the IP address to listen on.
        port: the first one that is tried.
    """

    def __init__(self, metrics: WorkerMetrics, host: str, port: int) -> None:
        self._metrics = metrics
        self._host = host
        self._port = port
        self._server: WSGIServer | None = None

    @property
    def port(self) -> int | None:
        """Where it listens; None where it does not."""
        return None if self._server is None else self._server.server_port

    def start(self) -> None:
        """Listens, and says where; where it cannot, it says why in one line, and the worker goes on without."""
        self._server = self._listen()
        if self._server is not None:
            logger.info("Metrics are served at %s port %d.", self._host, self._server.server_port)
            # A look every half second whether it is to end.
            threading.Thread(target=self._server.serve_forever, name="duepost-metrics", daemon=True).start()

    def stop(self) -> None:
        """Listens no more; quiet where it did not."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _listen(self) -> WSGIServer | None:
        app = make_wsgi_app(self._metrics.registry)
        last = min(self._port + PORTS, 65_536)
        failure: OSError | None = None
        for port in range(self._port, last):
            try:
                return make_server(self._host, port, app, _Listener6 if ":" in self._host else _Listener, _Handler)
            except OSError as error:
                failure = error
        reason = "" if failure is None or failure.errno is None else f": {os.strerror(failure.errno)}"
        logger.warning(
            "Metrics cannot be served at %s, ports %d to %d%s; the worker goes on without.",
            self._host, self._port, last - 1, reason,
        )  # fmt: skip
        return None

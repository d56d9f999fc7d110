"""What a worker process counts: by a real scrape, read by Prometheus' own parser."""

import socket
import urllib.request
from collections.abc import Iterator, Mapping

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.metrics import MOST_VALUES, PORTS, MetricsServer, Told, WorkerMetrics

HOST = "127.0.0.1"
SENT = Told("dot", "sent", "sent")


def free_port() -> int:
    """A port that nobody listens on, below those that the system gives out."""
    for port in range(21_000, 31_000, PORTS):
        with socket.socket() as tried:
            if tried.connect_ex((HOST, port)) != 0:
                return port
    raise AssertionError("no port is free")


@pytest.fixture
def metrics() -> WorkerMetrics:
    return WorkerMetrics()


@pytest.fixture
def server(metrics: WorkerMetrics) -> Iterator[MetricsServer]:
    server = MetricsServer(metrics, HOST, free_port())
    server.start()
    yield server
    server.stop()


def scrape(server: MetricsServer) -> Mapping[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://{HOST}:{server.port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert "@" not in text
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_was_concluded_is_scraped(metrics: WorkerMetrics, server: MetricsServer) -> None:
    refused = Told("rcpt", "undeliverable", "undeliverable")
    metrics.concluded("email", "welcome", "default", [SENT, refused], seconds=0.3, late=2.0)
    metrics.concluded("email", "welcome", "default", [Told("rcpt", "retry", None)], seconds=0.1, late=2.0)
    metrics.concluded("email", "welcome", "default", [Told("address", None, "cleared")], seconds=0.1, late=2.0)
    found = scrape(server)
    assert found["duepost_outcomes_total", "email", "welcome", "sent"] == 1
    assert found["duepost_outcomes_total", "email", "welcome", "undeliverable"] == 1
    assert found["duepost_outcomes_total", "email", "welcome", "cleared"] == 1
    assert found["duepost_attempts_total", "email", "dot", "default", "sent"] == 1
    assert found["duepost_attempts_total", "email", "rcpt", "default", "retry"] == 1
    assert ("duepost_attempts_total", "email", "address", "default", "None") not in found
    assert found["duepost_lateness_seconds_count", "email"] == 1
    assert found["duepost_lateness_seconds_sum", "email"] == 2
    assert found["duepost_attempt_seconds_count", "email"] == 3


@pytest.mark.parametrize(
    "kind",
    ["", "ann@example.com", 'a"} 1\nduepost_workers 99', "a\nb", "\\", "a" * 101, "nul\0", "\u202eevil", "\x1b[31m"],
)
def test_a_hostile_kind_adds_no_line_and_is_no_address(
    metrics: WorkerMetrics, server: MetricsServer, kind: str
) -> None:
    metrics.concluded("email", kind, "default", [SENT], seconds=0.1, late=None)
    found = scrape(server)
    shown = {key[2] for key in found if key[0] == "duepost_outcomes_total"}
    assert shown == {kind if kind == "\\" else "other"}
    assert not any(key[0] == "duepost_workers" for key in found)


def test_kinds_and_routes_are_bounded(metrics: WorkerMetrics, server: MetricsServer) -> None:
    for number in range(3 * MOST_VALUES):
        metrics.concluded("message", f"kind-{number}", f"endpoint:{number}", [SENT], seconds=0.1, late=None)
    metrics.concluded("message", "kind-0", "endpoint:0", [SENT], seconds=0.1, late=None)
    found = scrape(server)
    outcomes = {key[2]: value for key, value in found.items() if key[0] == "duepost_outcomes_total"}
    assert len(outcomes) == MOST_VALUES + 1
    assert outcomes["other"] == 2 * MOST_VALUES
    assert outcomes["kind-0"] == 2
    assert len({key[3] for key in found if key[0] == "duepost_attempts_total"}) == MOST_VALUES + 1


def test_a_clock_that_goes_back_counts_as_on_time(metrics: WorkerMetrics, server: MetricsServer) -> None:
    metrics.concluded("email", "welcome", "default", [SENT], seconds=-1, late=-50)
    assert scrape(server)["duepost_lateness_seconds_sum", "email"] == 0


def test_several_processes_of_a_machine_have_a_port_each(metrics: WorkerMetrics, server: MetricsServer) -> None:
    assert server.port is not None
    second = MetricsServer(metrics, HOST, server.port)
    second.start()
    try:
        assert second.port is not None
        assert server.port < second.port < server.port + PORTS
    finally:
        second.stop()


def test_where_no_port_is_free_one_line_says_so(metrics: WorkerMetrics, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        server = MetricsServer(metrics, "192.0.2.1", port)
        server.start()
    assert server.port is None
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Metrics cannot be served at 192.0.2.1, ports {port} to ")
    assert "the worker goes on without" in line
    server.stop()


def test_somebody_who_asks_and_says_no_more_keeps_nobody_else(server: MetricsServer) -> None:
    assert server.port is not None
    with socket.create_connection((HOST, server.port)) as silent:
        silent.sendall(b"GET /metr")
        assert ("duepost_attempt_seconds_count", "email") not in scrape(server)

"""What the tests share: real servers, fresh databases."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator

import hypothesis
import psycopg2
import pytest

from models.database.connections import Database
from tests.namespaces import Namespace, fresh_namespace, namespaces_are_allowed
from tests.postgres import Connection, PostgresServer, installed_binaries

# No test depends on speed.
hypothesis.settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("unhurried")

_servers: dict[str, PostgresServer] = {}

_STATE = tempfile.TemporaryDirectory(prefix="duepost-tests-")


def _server(name: str) -> PostgresServer:
    if name not in _servers:
        server = _servers[name] = PostgresServer(installed_binaries()[name])
        server.start()
    return _servers[name]


def pytest_configure() -> None:
    # Where a process has no DUEPOST_STATE_DIR: a journal of the tests' own workers lies in nobody's home.
    os.environ["XDG_STATE_HOME"] = _STATE.name
    # Where tests are run in the background, a shell lets them ignore Ctrl-C, and so would what they start.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Spells out lone surrogates in what a test has said: no process of the tests can hand them to another."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_sessionfinish() -> None:
    for server in _servers.values():
        server.stop("immediate")
        server.remove()
    _STATE.cleanup()


@pytest.fixture(scope="session", params=["embedded-18"] if os.environ.get("ONE_SERVER") else installed_binaries())
def each_server(request: pytest.FixtureRequest) -> PostgresServer:
    """Every PostgreSQL that is at hand, in turn; with ONE_SERVER=1 the embedded one alone."""
    return _server(request.param)


@pytest.fixture(scope="session")
def server() -> PostgresServer:
    """The embedded PostgreSQL."""
    return _server("embedded-18")


@pytest.fixture
def own_server(server: PostgresServer) -> Iterator[PostgresServer]:
    """A PostgreSQL of the test's own, to be stopped and started."""
    own = PostgresServer(server.binaries)
    own.start()
    yield own
    own.stop("immediate")
    own.remove()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network namespace of the test's own, whose link can be cut."""
    if not namespaces_are_allowed():
        pytest.skip("no right to make network namespaces here")
    with fresh_namespace() as namespace:
        yield namespace


@pytest.fixture
def far_server(server: PostgresServer, namespace: Namespace) -> Iterator[PostgresServer]:
    """A PostgreSQL in the namespace."""
    far = PostgresServer(server.binaries, namespace=namespace)
    far.start()
    yield far
    far.stop("immediate")
    far.remove()


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    """A fresh, migrated database on the embedded PostgreSQL."""
    with server.fresh_database() as url:
        yield url


@pytest.fixture
def each_url(each_server: PostgresServer) -> Iterator[str]:
    """A fresh, migrated database on each PostgreSQL."""
    with each_server.fresh_database() as url:
        yield url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """Duepost's own way to a fresh, migrated database."""
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def connect(url: str) -> Iterator[Callable[[], Connection]]:
    """Makes connections as an application would, outside of Duepost's code."""
    connections: list[Connection] = []

    def connect() -> Connection:
        connections.append(psycopg2.connect(url))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()

"""Real mail servers, each started once for a module of tests, and a fresh Duepost for each test."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.postgres import PostgresServer
from tests.processes import environment
from tests.servers.containment import machines_are_allowed
from tests.servers.dovecot import Dovecot
from tests.servers.exim import Exim
from tests.servers.haraka import Haraka
from tests.servers.install import NotInstalled, installed
from tests.servers.installation import OwnDatabase
from tests.servers.opensmtpd import Opensmtpd
from tests.servers.postfix import Postfix
from tests.servers.postgrey import Postgrey
from tests.servers.sendmail import Sendmail
from tests.servers.server import Server, free_port
from tests.servers.site import Site

MakeSite = Callable[..., Site]

#: What has to be installed for each server.
NEEDED = {
    "postfix": ("postfix", "postgrey"),
    "postgrey": ("postgrey",),
    "exim": ("exim",),
    "opensmtpd": ("opensmtpd",),
    "dovecot": ("dovecot", "postfix", "postgrey"),
    "sendmail": ("sendmail",),
    "haraka": ("npm",),
}

#: Those that need nothing but a folder.
PLAIN_ONES: dict[str, type[Server]] = {server.name: server for server in (Postgrey, Exim, Opensmtpd, Sendmail, Haraka)}


def need(*names: str) -> None:
    """Skips a test where nobody asks for real servers; where somebody does, one that is missing is a failure."""
    if not os.environ.get("REAL_SERVERS"):
        pytest.skip("`make servers` installs the real mail servers and runs this")
    missing = machines_are_allowed()
    try:
        for name in names:
            installed(name)
    except NotInstalled as error:
        missing = missing or str(error)
    if missing:
        pytest.fail(missing, pytrace=False)


@contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for a server, with a short path: Unix sockets are in it."""
    folder = Path(tempfile.mkdtemp(prefix="duepost-servers-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Servers:
    """The servers of a session of tests, each started when it is first asked for."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, Server] = {}

    def __getitem__(self, name: str) -> Server:
        """The running server; `postfix` comes with Postgrey, `dovecot` relays to `postfix`."""
        need(*NEEDED[name])
        if name not in self._running:
            self._running[name] = self._stack.enter_context(self._make(name))
        server = self._running[name]
        if not server.machine.is_running:
            # A test that failed has left it so.
            server.start()
        return server

    def _make(self, name: str) -> Server:
        folder = self._stack.enter_context(own_folder())
        if name == "postfix":
            return Postfix(folder, POSTGREY=str(self["postgrey"].ports["POSTGREY"]))
        if name == "dovecot":
            return Dovecot(folder, self["postfix"])
        return PLAIN_ONES[name](folder)


@pytest.fixture(scope="session")
def servers() -> Iterator[Servers]:
    """All servers."""
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.fixture
def postfix(servers: Servers) -> Postfix:
    """Postfix, and Postgrey behind one of its services."""
    server = servers["postfix"]
    assert isinstance(server, Postfix)
    return server


@pytest.fixture
def exim(servers: Servers) -> Exim:
    """Exim."""
    server = servers["exim"]
    assert isinstance(server, Exim)
    return server


@pytest.fixture
def opensmtpd(servers: Servers) -> Opensmtpd:
    """OpenSMTPD."""
    server = servers["opensmtpd"]
    assert isinstance(server, Opensmtpd)
    return server


@pytest.fixture
def dovecot(servers: Servers) -> Dovecot:
    """Dovecot Submission, in front of Postfix."""
    server = servers["dovecot"]
    assert isinstance(server, Dovecot)
    return server


@pytest.fixture
def sendmail(servers: Servers) -> Sendmail:
    """Sendmail."""
    server = servers["sendmail"]
    assert isinstance(server, Sendmail)
    return server


@pytest.fixture
def haraka(servers: Servers) -> Haraka:
    """Haraka."""
    server = servers["haraka"]
    assert isinstance(server, Haraka)
    return server


@pytest.fixture
def own_database(server: PostgresServer) -> Iterator[OwnDatabase]:
    """A migrated database on a server of the test's own, by TCP."""
    own = PostgresServer(server.binaries, port=free_port())
    own.start()
    try:
        with own.fresh_database() as url:
            yield OwnDatabase(own, url)
    finally:
        own.stop("immediate")
        own.remove()


@contextmanager
def sites(server: PostgresServer, folders: pytest.TempPathFactory) -> Iterator[MakeSite]:
    """Gives the function that makes sites; they end with the block."""
    with ExitStack() as stack:

        def make(relay: str, **settings: str) -> Site:
            url = stack.enter_context(server.fresh_database())
            folder = folders.mktemp("site")
            return Site(url, environment(url, relay, DUEPOST_TEMPLATES=str(folder), **settings), folder)

        yield make


@pytest.fixture
def make_site(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    """Makes sites: `make_site(relay's URL, **settings)`."""
    with sites(server, tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="module")
def make_module_site(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeSite]:
    """Makes sites that last as long as a module of tests."""
    with sites(server, tmp_path_factory) as make:
        yield make

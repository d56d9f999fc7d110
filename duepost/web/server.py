"""The console's server: it listens where nobody is let in who should not be, or not at all."""

import getpass
import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

from actors.content.templates import Templates
from actors.content.tokens import Tokens
from actors.liveness.time_limit import TimeLimit
from actors.settings import BadSettings, Settings
from duepost.bounces.providers import amazon
from duepost.bounces.providers.mailgun import Mailgun
from duepost.bounces.providers.postmark import Postmark
from duepost.bounces.providers.public_keys import ecdsa
from duepost.bounces.providers.sendgrid import SendGrid
from duepost.bounces.providers.ses import Ses
from duepost.bounces.providers.shape import Provider
from duepost.web.access import Gate, Logins
from duepost.web.boundary import LOOPBACK, Place, without_port
from duepost.web.console import build
from duepost.web.hooks import Hooks
from duepost.web.public import build_public
from models import unsubscribing
from models.database.connections import Database, Limits
from models.database.deadlines import Deadlines
from models.database.read_only import ReadOnlyDatabase
from models.errors import DuepostError

#: The port where nothing else is said, and the address.
PORT, HOST = 8025, "127.0.0.1"

#: The port of what is public, where `duepost up` serves it.
PUBLIC_PORT = 8026

#: Connections to PostgreSQL, for viewers and for all others.
CONNECTIONS = 8

#: A page that takes longer is of no use: seconds.
LIMITS = Limits(statement=10.0, lock=5.0)

#: Of what everybody asks for: many requests for one link wait for each other, and none is to be told to come again.
PUBLIC_LIMITS = Limits(statement=25.0, lock=20.0)

#: Seconds that requests get to finish when the server stops.
PATIENCE = 3

#: Connections of browsers at the most; further ones are told to come again.
MOST_CONNECTIONS = 200


class ServerError(DuepostError):
    """The console cannot listen; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where it listens."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        if self.host.lower() == "localhost":
            return True
        with suppress(ValueError):
            return ip_address(self.host.strip("[]")).is_loopback
        return False

    @property
    def url(self) -> str:
        """As a browser on this machine has it."""
        return f"http://[{self.host}]:{self.port}/" if ":" in self.host else f"http://{self.host}:{self.port}/"


def listen(host: str, port: int, what: str = "the console") -> socket.socket:
    """A socket that listens; `what` is who, for the error.

    Raises:
        ServerError: it cannot.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ServerError(f"{what} cannot listen on {host}:{port}: {reason}") from error


def listen_near(host: str, usual: int, port: int | None, what: str) -> socket.socket:
    """A socket that listens on this port; on the usual one where none is asked for, or on any where that is taken.

    Raises:
        ServerError: it cannot.
    """
    if port is not None:
        return listen(host, port, what)
    with suppress(ServerError):
        return listen(host, usual, what)
    return listen(host, 0, what)


def gate_of(settings: Settings, address: Address) -> Gate:
    """Who is let in: closed by default.

    Raises:
        BadSettings: others could reach it, and nobody would have to log in; or the file of logins is wrong.
    """
    url = settings.web_url
    if settings.web_users is None:
        if settings.web_user_header is not None:
            raise BadSettings("DUEPOST_WEB_USERS: must name the file with the roles of those whom the proxy names")
        if not address.is_loopback:
            raise BadSettings(
                f"DUEPOST_WEB_USERS: must be set, as others reach {address.host}: `duepost web --password NAME` makes "
                "a login"
            )
        if url is not None and without_port(url.partition("://")[2].partition("/")[0]) not in LOOPBACK:
            raise BadSettings(
                "DUEPOST_WEB_USERS: must be set, as others reach DUEPOST_WEB_URL: `duepost web --password NAME` makes "
                "a login"
            )
        return Gate(None, anonymous=_whoever())
    if url is None and not address.is_loopback:
        raise BadSettings("DUEPOST_WEB_URL: must say where browsers find the console, as others reach it")
    if (settings.web_user_header is None) != (not settings.web_proxies):
        raise BadSettings("DUEPOST_WEB_USER_HEADER: goes with DUEPOST_WEB_PROXIES: set both, or neither")
    return Gate(Logins(settings.web_users), header=settings.web_user_header, proxies=settings.web_proxies or ())


def build_console(settings: Settings, address: Address, database_url: str, mailbox: Path | None = None) -> ASGIApp:
    """The console with these settings.

    Raises:
        BadSettings: it would be open, or a setting is wrong.
    """
    gate = gate_of(settings, address)
    token = settings.web_metrics_token
    deadlines = Deadlines()
    viewer_url = settings.web_viewer_database_url
    reading = ReadOnlyDatabase(
        database_url if viewer_url is None else viewer_url.get_secret_value(),
        own_login=viewer_url is not None,
        application_name="duepost console (viewer)",
        limits=LIMITS,
        variable="DUEPOST_DATABASE_URL" if viewer_url is None else "DUEPOST_WEB_VIEWER_DATABASE_URL",
        most=CONNECTIONS,
        deadlines=deadlines,
    )
    # A viewer's session must be one that cannot write: else nobody is let in.
    if not gate.is_open and reading.may_write():
        raise BadSettings(f"{reading.variable}: its login may write: make it a member of duepost_viewer alone")
    return build(
        gate=gate,
        place=Place.at(settings.web_url, is_loopback=address.is_loopback),
        database=Database(
            database_url,
            application_name="duepost console",
            limits=LIMITS,
            most=CONNECTIONS,
            deadlines=deadlines,
        ),
        reading=reading,
        templates=Templates(
            settings.templates,
            TimeLimit(),
            min(settings.render_timeout, LIMITS.statement),
            trim_blocks=settings.trim_blocks,
            preparer=settings.html_preparer(),
        ),
        mailbox=mailbox,
        metrics_token=None if token is None else token.get_secret_value(),
    )


def build_public_links(settings: Settings, database_url: str, fetch: Callable[[str], bytes] = amazon.fetch) -> ASGIApp:
    """What everybody may ask for, with these settings; `fetch` asks Amazon for certificates.

    Raises:
        BadSettings: nobody knows where recipients reach it.
        DatabaseUnreachable: the secret of the links cannot be read.
    """
    if settings.public_url is None:
        raise BadSettings("DUEPOST_PUBLIC_URL: must be set, as it stands in emails, such as https://mail.example.com")
    database = Database(
        database_url, application_name="duepost public", limits=PUBLIC_LIMITS, most=CONNECTIONS, deadlines=Deadlines()
    )
    tokens = Tokens(unsubscribing.secret(database))
    hooks = Hooks(database, tokens, settings.bounce_address, providers_of(settings, fetch))
    return build_public(database, tokens, hooks, prefix=urlsplit(settings.public_url).path)


def providers_of(settings: Settings, fetch: Callable[[str], bytes] = amazon.fetch) -> list[Provider]:
    """The providers whose webhooks are taken: those with a setting that says who may call.

    Raises:
        BadSettings: such a setting is wrong.
    """
    found: list[Provider] = []
    if settings.ses_topics is not None:
        found.append(Ses(settings.ses_topics, fetch))
    if settings.mailgun_signing_key is not None:
        found.append(Mailgun(settings.mailgun_signing_key.get_secret_value().split()))
    if settings.sendgrid_public_key is not None:
        try:
            found.append(SendGrid([ecdsa(each) for each in settings.sendgrid_public_key.split()]))
        except ValueError as error:
            raise BadSettings(f"DUEPOST_SENDGRID_PUBLIC_KEY: {error}; must be the verification key") from None
    if settings.postmark_login is not None:
        found.append(Postmark(settings.postmark_login.get_secret_value().split()))
    return found


class Server:
    """Serves an application on a socket that listens.

    Args:
        app: the application.
        listener: the socket.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self._listener = listener
        # URLs hold ids, keys and, of operators, addresses: nothing of them is logged.
        logging.getLogger("uvicorn.access").disabled = True
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="off",
                log_config=None,
                access_log=False,
                # Who asks is the peer itself: only Gate believes a proxy, and only one that it was told of.
                proxy_headers=False,
                server_header=False,
                date_header=True,
                limit_concurrency=MOST_CONNECTIONS,
                timeout_graceful_shutdown=PATIENCE,
            )
        )
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: host and port."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    def run(self) -> None:
        """Serves until SIGINT or SIGTERM."""
        self._server.run(sockets=[self._listener])

    def start(self) -> None:
        """Serves in a thread of its own."""
        self._thread = threading.Thread(target=self.run, name="duepost-console", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when it has ended; quiet if it was not started."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(PATIENCE + 5)
            self._thread = None
        self._listener.close()


def _whoever() -> str:
    """Who uses this machine, for the journal."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"user {os.getuid()}@{socket.gethostname()}"

"""Everything on this machine: database, relay, workers, watch. What is configured is used, the rest is embedded."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote, urlsplit

from actors.content.addresses import parse_sender
from actors.queue.schema import queue_schema
from actors.settings import settings
from duepost.catching import Refusal
from duepost.children import Children, FolderLock, end_leftovers
from duepost.embedded import EmbeddedPostgres
from duepost.extras import needs
from duepost.http_catcher import HOST, HttpCatcher
from duepost.private import make_private
from models import control, endpoints
from models.database.connections import Database
from models.database.deadlines import Deadlines
from models.database.migrate import migrate
from models.endpoints import Setting

if TYPE_CHECKING:
    from duepost.catcher import Catcher
    from duepost.web.server import Server

#: What Duepost's own folder in a working directory is called.
HOME = ".duepost"

#: A script that opens the database with psql: its URL is long.
PSQL = "psql"

#: A file that holds the database's URL, for applications: `DATABASE_URL=$(cat .duepost/url)`.
URL = "url"

#: The folder of the workers' journals.
STATE = "state"

#: The endpoint of the catcher for messages.
CATCHER = "catcher"

#: The file that says where mail goes.
RELAY = "relay.json"

#: The sender where none is configured and nothing leaves this machine.
LOCAL_SENDER = "Duepost <duepost@localhost>"

#: Seconds that workers get to finish what they are sending when everything stops.
PATIENCE = 20.0


@dataclass
class Stack:
    """What `duepost up` and `duepost demo` run, in one folder that one of them at a time may use.

    Args:
        folder: where data, mailbox and logs are, for this user alone.
        templates: the workers' templates.
        use_relay: whether a configured relay may be used; else mail is always caught here.
        refusals: how the catcher plays a difficult relay.
        catcher_port: the mail catcher's port; 0 is any that is free.
        catches_messages: whether there is a catcher for messages, where the database is embedded.
    """

    folder: Path
    templates: Path
    use_relay: bool = True
    refusals: Sequence[Refusal] = ()
    catcher_port: int = 0
    catches_messages: bool = False
    postgres: EmbeddedPostgres | None = field(default=None, init=False)
    catcher: "Catcher | None" = field(default=None, init=False)
    http_catcher: HttpCatcher | None = field(default=None, init=False)
    deadlines: Deadlines = field(default_factory=Deadlines, init=False)
    database: Database = field(init=False)
    smtp_url: str = field(default="", init=False)
    public_url: str | None = field(default=None, init=False)
    _console: "Server | None" = field(default=None, init=False)
    _public: "Server | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.database = Database("", deadlines=self.deadlines)

    def __enter__(self) -> Self:
        """Starts database, relay and catchers and brings the schema up to date; the workers come later.

        Raises:
            FolderInUse: another process runs everything in this folder.
            EmbeddedError: the embedded PostgreSQL cannot be started.
            CatcherError: a catcher cannot be started.
            BadSettings: a relay is configured, but no sender.
        """
        for folder in [*self._private_folders, self.folder / STATE]:
            make_private(folder)
        self._lock = FolderLock(self.folder)
        self._lock.acquire()
        end_leftovers(self.folder)
        self._children = Children(self.folder)
        try:
            self._start_relay()
            self._record_relay()
            self._start_database()
            self._start_http_catcher()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops what was started, in order; data stays."""
        self.stop()

    def start_workers(self, *, processes: int, threads: int) -> None:
        """Starts the worker processes and the watch; their output goes to the folder's logs."""
        logs = self.folder / "logs"
        make_private(logs)
        self._children.start(
            "worker",
            duepost_command("worker", "--processes", str(processes), "--threads", str(threads)),
            self.environment,
            logs / "worker.log",
        )
        self._children.start("watch", duepost_command("trigger", "--watch"), self.environment, logs / "watch.log")

    def start_public(self, port: int | None) -> str:
        """Serves links in emails, and webhooks, in a thread of this process, and says their URL. Workers come later.

        Args:
            port: 0 is any that is free; None: the usual one, or any where that is taken.

        Raises:
            ServerError: it cannot listen there.
            BadSettings: a setting of it is wrong.
        """
        from duepost.web.server import HOST, PUBLIC_PORT, Address, Server, build_public_links, listen_near  # noqa: PLC0415

        listener = listen_near(HOST, PUBLIC_PORT, port, "what is public")
        address = Address(HOST, listener.getsockname()[1])
        self.public_url = settings().public_url or address.url.rstrip("/")
        ours = settings().model_copy(update={"public_url": self.public_url})
        self._public = Server(build_public_links(ours, self.database.url), listener)
        self._public.start()
        return address.url

    def start_console(self, port: int | None) -> str:
        """Serves the console, in a thread of this process, and says its URL.

        Args:
            port: 0 is any that is free; None: the usual one, or any where that is taken.

        Raises:
            ServerError: it cannot listen there.
            BadSettings: a setting of it is wrong.
        """
        # A web server is for this command alone.
        from duepost.web.server import HOST, PORT, Address, Server, build_console, listen_near  # noqa: PLC0415

        listener = listen_near(HOST, PORT, port, "the console")
        address = Address(HOST, listener.getsockname()[1])
        mailbox = self.mailbox if self.catcher is not None else None
        self._console = Server(build_console(settings(), address, self.database.url, mailbox), listener)
        self._console.start()
        return settings().web_url or address.url

    def ended(self) -> str | None:
        """The name of a process that has ended although it should run; None while all is well."""
        return self._children.poll()

    def stop(self) -> None:
        """Stops workers and watch, then the catchers, then the embedded PostgreSQL. Safe to repeat."""
        self._children.stop(timeout=PATIENCE)
        for server in (self._console, self._public):
            if server is not None:
                server.stop()
        self._console = self._public = None
        if self.catcher is not None:
            self.catcher.stop()
            self.catcher = None
        if self.http_catcher is not None:
            self.http_catcher.stop()
            self.http_catcher = None
        if self.postgres is not None:
            self.database.close()
            self.postgres.stop()
            self.postgres = None
        (self.folder / RELAY).unlink(missing_ok=True)
        self._lock.release()

    @property
    def mailbox(self) -> Path:
        """Where caught mail lies."""
        return self.folder / "mailbox"

    @property
    def caught_messages(self) -> Path:
        """Where caught messages lie."""
        return self.folder / "messages"

    @property
    def environment(self) -> Mapping[str, str]:
        """The settings of the processes: ours where nothing is configured."""
        # What is caught is caught whatever relay it was for.
        caught = settings().relays.values() if self.catcher is not None else ()
        ours = {
            **{relay.variable: self.smtp_url for relay in caught},
            "DUEPOST_DATABASE_URL": self.database.url,
            "DUEPOST_SMTP_URL": self.smtp_url,
            "DUEPOST_TEMPLATES": str(self.templates.resolve()),
            "DUEPOST_FROM": settings().sender or LOCAL_SENDER,
            "DUEPOST_STATE_DIR": str(settings().state_dir or self.folder.resolve() / STATE),
        }
        if self.public_url is not None:
            ours["DUEPOST_PUBLIC_URL"] = self.public_url
        return {**os.environ, **ours}

    @property
    def _private_folders(self) -> list[Path]:
        """The folder, and those above it that are Duepost's own too, the outermost first."""
        return [each for each in reversed(self.folder.parents) if HOME in each.parts] + [self.folder]

    def _start_relay(self) -> None:
        configured = settings().smtp_url
        if configured is not None and self.use_relay:
            settings().need_sender()
            self.smtp_url = configured.get_secret_value()
            return
        with needs("up", "the mail catcher"):
            from duepost.catcher import Catcher  # noqa: PLC0415 - no worker has it
        self.catcher = Catcher(self.mailbox, port=self.catcher_port, rules=self.refusals)
        self.smtp_url = self.catcher.start()

    def _record_relay(self) -> None:
        """Writes down where mail goes, for other commands in this folder: without the password."""
        draft = self.folder / f"{RELAY}.new"
        draft.write_text(json.dumps({"url": without_password(self.smtp_url), "is_catcher": self.catcher is not None}))
        draft.chmod(0o600)
        draft.replace(self.folder / RELAY)

    def _start_database(self) -> None:
        configured = settings().database_url
        if configured is not None:
            url = configured.get_secret_value()
        else:
            self.postgres = EmbeddedPostgres(self.folder / "postgres", private=self._private_folders)
            url = self.postgres.start()
            script = self.folder / PSQL
            script.write_text(f'#!/bin/sh\nexec {self.postgres.psql_command} "$@"\n')
            script.chmod(0o700)
            told = self.folder / URL
            told.write_text(f"{url}\n")
            told.chmod(0o600)
        self.database = Database(url, application_name="duepost", deadlines=self.deadlines)
        list(migrate(self.database, queue_schema=queue_schema(), retention_days=settings().retention_days))
        # Emails may be scheduled before the first worker has started.
        sender = parse_sender(self.environment["DUEPOST_FROM"])
        control.set_message_id_domain(self.database, sender.address.rpartition("@")[2])

    def _start_http_catcher(self) -> None:
        """Beside the embedded database alone: in any other, endpoints are for its operators to set."""
        if self.postgres is None or not self.catches_messages:
            return
        before = next((each for each in endpoints.known(self.database) if each.name == CATCHER), None)
        if before is not None and not (before.format == "webhook" and before.target.startswith(f"http://{HOST}:")):
            # Somebody has an endpoint of this name.
            return
        self.http_catcher = HttpCatcher(self.caught_messages)
        setting = Setting(
            format="webhook",
            url=self.http_catcher.start(),
            secret="new",  # noqa: S106 - it asks for one
            allow_private=True,
            rotate_for=timedelta(0),
        )
        with self.database.transaction() as cursor:
            secret = endpoints.set_endpoint(cursor, CATCHER, setting)
        if secret is not None:
            self.http_catcher.expect(secret)


def without_password(url: str) -> str:
    """A relay's URL as it may be written down: the user's name stays, the password does not."""
    parts = urlsplit(url)
    where = parts.netloc.rpartition("@")[2]
    return (
        f"{parts.scheme}://{quote(unquote(parts.username))}@{where}" if parts.username else f"{parts.scheme}://{where}"
    )


@dataclass(frozen=True, slots=True)
class RunningRelay:
    """Where the mail of a running `duepost up` goes; the URL holds no password."""

    url: str
    is_catcher: bool


def read_relay(folder: Path) -> RunningRelay | None:
    """What a `duepost up` in this folder has written down of its relay; None where it has not."""
    try:
        found = json.loads((folder / RELAY).read_text())
        return RunningRelay(str(found["url"]), bool(found["is_catcher"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def duepost_command(*arguments: str) -> list[str]:
    """The `duepost` command of this very installation; -P keeps the working directory's modules out."""
    return [sys.executable, "-P", "-m", "duepost", *arguments]

"""`duepost up`: everything on this machine, until Ctrl-C."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from psycopg2.extensions import parse_dsn

from actors.settings import settings
from duepost.catching import CatcherError
from duepost.children import FolderInUse
from duepost.commands.context import Failed
from duepost.commands.output import say
from duepost.stack import CATCHER, PSQL, URL, Stack
from models.errors import DuepostError

#: Where everything is, below the working directory.
FOLDER = Path(".duepost")

#: The catcher's port where it is free to choose: the one that mail catchers have.
PORT = 1025

#: Seconds between two looks at the processes.
INTERVAL = 0.5


class ProcessEnded(DuepostError):
    """A worker or the watch ended by itself."""


def up(
    processes: Annotated[int, typer.Option(help="Worker processes.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="ThreadPool of each worker process.", min=1)] = 8,
    port: Annotated[int, typer.Option(help="The mail catcher's port; 0 is any that is free.", min=0)] = PORT,
    web_port: Annotated[
        int | None,
        typer.Option(
            help="The console's port; 0 is any that is free, as is 8025 where that is taken.", min=0, max=65_535
        ),
    ] = None,
    public_port: Annotated[
        int | None,
        typer.Option(
            help="The port of links in emails and of webhooks; 0 is any that is free, as is 8026 where that is taken.",
            min=0,
            max=65_535,
        ),
    ] = None,
) -> None:
    """Runs everything on this machine: PostgreSQL and a mail catcher unless configured, workers, watch.

    Beside its own PostgreSQL it has a catcher for messages too, the endpoint "catcher": what is sent there stays on
    this machine, in .duepost/messages.

    Data stays in .duepost in the working directory; Ctrl-C ends it all in order, and so does one that ends by itself.

    Example: duepost up
    """
    stopped = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopped.set()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with hints(), Stack(FOLDER, settings().templates, catcher_port=port, catches_messages=True) as stack:
        # Workers write the links' URL into emails.
        public = stack.start_public(public_port)
        stack.start_workers(processes=processes, threads=threads)
        describe(stack, stack.start_console(web_port), public)
        while not stopped.wait(INTERVAL):
            ended = stack.ended()
            if ended is not None:
                raise ProcessEnded(f"the {ended} ended by itself: see {FOLDER / 'logs' / ended}.log")
        say("Stopping; emails that are being sent are finished first.")
    say("Stopped. The data stays in .duepost.")


@contextmanager
def hints() -> Iterator[None]:
    """What can be done where something is in the way."""
    try:
        yield
    except FolderInUse as error:
        told = f"kill {error.pid} ends it" if error.pid else "end it with Ctrl-C"
        raise Failed(
            f"{error}: a duepost up runs here already; use duepost list, stats and the others; {told}"
        ) from error
    except CatcherError as error:
        if "in use" not in str(error):
            raise
        raise Failed(f"{error}; duepost up --port 0 takes any port that is free") from error


def describe(stack: Stack, console: str, public: str) -> None:
    """Says where everything is and how to reach it."""
    lines = ["Duepost is up. Ctrl-C ends it; the data stays.", f"  console    {console}"]
    reached = "" if public.rstrip("/") == stack.public_url else f", reached by {stack.public_url}"
    lines += [f"  public     {public} (links in emails, webhooks{reached})"]
    if stack.postgres is not None:
        at = parse_dsn(stack.database.url)
        lines += [
            f"  database   {stack.database.url}",
            f"             host {at['host']}, port {at['port']}, user {at['user']}, database {at['dbname']}",
            f"             also in {stack.folder / URL}",
            f"  psql       {stack.folder / PSQL}",
        ]
    else:
        lines.append("  database   as DUEPOST_DATABASE_URL says")
    if stack.catcher is not None:
        lines += [f"  relay      {stack.smtp_url} (a catcher: nothing leaves this machine)"]
        lines += [f"  mailbox    {stack.mailbox.resolve()}"]
    else:
        lines.append("  relay      as DUEPOST_SMTP_URL says")
    tried = []
    if stack.http_catcher is not None:
        lines += [f"  endpoint   {CATCHER} ({stack.http_catcher.start()}: a catcher, too)"]
        lines += [f"  messages   {stack.caught_messages.resolve()}"]
        payload = '{"order": 42}'
        tried = [f"duepost message schedule --kind order_paid --endpoint {CATCHER} --payload '{payload}'"]
    lines += [
        f"  templates  {stack.templates.resolve()}",
        f"  logs       {(stack.folder / 'logs').resolve()}",
        "  try        duepost schedule --kind welcome --address ann@example.com --subject Hello --body-text World",
        *(f"             {command}" for command in tried),
        "             duepost list; duepost stats",
    ]
    for line in lines:
        say(line, to_copy=True)
    # A pipe, too, is to have it now.
    sys.stdout.flush()

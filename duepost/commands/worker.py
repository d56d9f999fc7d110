"""`duepost worker`: `dramatiq actors` of this installation."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from actors import tick
from actors.settings import settings
from duepost.commands.context import BadInput, operator_database
from models import emails
from models.database.preconditions import check_writable

#: The queues of Duepost's own actors.
QUEUES = (emails.QUEUE, tick.QUEUE)


def at_least_one(text: str) -> int:
    """A number of processes or threads.

    Raises:
        ArgumentTypeError: it is none, or below 1.
    """
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def writable(text: str) -> str:
    """A file's name, to which can be written.

    Raises:
        ArgumentTypeError: it cannot.
    """
    try:
        Path(text).open("ab").close()
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from None
    return text


class Options(argparse.ArgumentParser):
    """Dramatiq's flags that make sense here; what is wrong is bad input, as with every command."""

    def __init__(self, description: str) -> None:
        super().__init__(
            prog="duepost worker",
            description=description,
            usage="%(prog)s [OPTIONS]",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        add = self.add_argument
        add("--processes", "-p", type=at_least_one, metavar="N", help="worker processes (default: one for each CPU)")
        add("--threads", "-t", type=at_least_one, metavar="N", help="threads of each (default: 8)")
        add(
            "--queues",
            "-Q",
            nargs="*",
            metavar="QUEUE",
            choices=QUEUES,
            help=f"only these of {' and '.join(QUEUES)} (default: all)",
        )
        add("--log-file", type=writable, metavar="FILE", help="where the log goes (default: stderr)")
        add("--pid-file", metavar="FILE", help="where the master's process id is written")
        add("--worker-shutdown-timeout", type=int, metavar="MS", help="milliseconds to finish emails (default: 600000)")
        add("--skip-logging", action="store_true", help="leave logging to whoever has set it up")
        add("--use-spawn", action="store_true", help="start new processes instead of forking")
        add("--verbose", "-v", action="count", help="log more")
        add("--version", action="store_true", help="Dramatiq's version")

    def error(self, message: str) -> NoReturn:
        """A wrong flag.

        Raises:
            BadInput: always.
        """
        raise BadInput(f"worker: {message} (see `duepost worker --help`)")


def worker(context: typer.Context) -> None:
    """Runs the workers until they are stopped.

    Examples: duepost worker; duepost worker --processes 2 --threads 8
    """
    options = Options(context.command.help or "")
    _, others = options.parse_known_args(context.args)
    if others and others[0].startswith("-"):
        options.error(f"no such option: {others[0]}")
    if others:
        options.error(f"takes no {others[0]!r}: it runs Duepost's own actors")
    if "--version" not in context.args:
        settings().need_relay()
        settings().need_sender()
        database = operator_database()
        check_writable(database)
        os.environ["DUEPOST_DATABASE_URL"] = database.url
        database.close()
    sys.stdout.flush()
    arguments = ["-P", "-m", "dramatiq", "duepost.worker", *context.args]
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own interpreter, no shell

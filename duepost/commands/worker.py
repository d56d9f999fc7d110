"""`duepost worker`: `dramatiq actors` of this installation."""

import os
import sys

import typer

from actors.settings import settings
from duepost.commands.context import operator_database


def worker(context: typer.Context) -> None:
    """Runs the workers until they are stopped; every flag goes to dramatiq (--processes, --threads, --queues).

    Examples: duepost worker --processes 2 --threads 8; duepost worker --help
    """
    arguments = ["-P", "-m", "dramatiq", "duepost.worker", *context.args]
    if {"--help", "-h"} & set(context.args):
        typer.echo(f"{context.command.help}\n")
    elif "--version" not in context.args:
        settings().need_relay()
        settings().need_sender()
        database = operator_database()
        os.environ["DUEPOST_DATABASE_URL"] = database.url
        database.close()
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - our own interpreter, no shell

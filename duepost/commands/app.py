"""The command line: what there is, and what each exit status means."""

import contextlib
import sys
from typing import Annotated

import psycopg2
import typer

from actors.content.dkim_keys import BadKey
from actors.liveness.maintenance import TOO_OLD
from actors.queue.broker import BrokerUnreachable
from actors.settings import BadSettings
from actors.version import VERSION
from duepost.catching import CatcherError
from duepost.children import ChildError, FolderInUse
from duepost.commands import (
    bounces,
    dead_letters,
    demo,
    dkim,
    doctor,
    endpoint,
    erase,
    find,
    interrupts,
    jsonl,
    message,
    operate,
    rate,
    read,
    render,
    reopen,
    schedule,
    schema,
    suppress,
    trigger,
    up,
    web,
    worker,
)
from duepost.commands.context import BadInput, explain
from duepost.commands.output import give_up_output, prepare_streams, warn
from duepost.embedded import EmbeddedError
from duepost.extras import MissingExtra
from models.errors import DuepostError, ReleaseTooOld

#: Done.
OK = 0
#: The command could not do what it was asked for.
FAILED = 1
#: The command line, its input or a setting is wrong.
BAD_USAGE = 2
app = typer.Typer(
    name="duepost",
    help="Scheduled email and messages out of PostgreSQL. Settings come from the environment: DUEPOST_DATABASE_URL, "
    "DUEPOST_SMTP_URL, DUEPOST_FROM, DUEPOST_TEMPLATES, DUEPOST_DISABLED, SENTRY_DSN. Begin with `duepost demo`.",
    invoke_without_command=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.command()(demo.demo)
app.command()(up.up)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(worker.worker)
app.command()(trigger.trigger)
app.command()(schema.migrate)
app.command()(schedule.schedule)
app.command()(schedule.clear)
app.command()(schedule.reschedule)
app.command()(message.status)
app.add_typer(message.app, name="message")
app.add_typer(endpoint.app, name="endpoint")
app.add_typer(rate.app, name="rate")
app.command("list")(read.list_)
app.command()(read.show)
app.command()(find.find)
app.command()(find.why)
app.command()(find.forecast)
app.command()(find.top)
app.command()(find.journal)
app.command()(erase.forget)
app.command()(erase.export)
app.command()(read.stats)
app.command("dead-letters")(dead_letters.dead_letters)
app.command()(dead_letters.requeue)
app.command()(operate.retry)
app.command()(operate.resolve)
app.command()(reopen.reopen)
app.command()(operate.probe)
app.command()(operate.pause)
app.command()(operate.resume)
app.command()(operate.priority)
app.command()(suppress.suppress)
app.command()(suppress.unsuppress)
app.command()(bounces.bounces)
app.command()(render.render)
app.command()(doctor.doctor)
app.command()(dkim.dkim)
app.command()(web.web)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"duepost {VERSION}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the command itself; without a command there is the help."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: list[str] | None = None) -> None:
    """Runs the command and ends the process with its exit status; every error is one line on stderr."""
    prepare_streams()
    interrupts.listen()
    sys.exit(_status_of(arguments))


def _status_of(arguments: list[str] | None) -> int:
    """Runs the command; nobody who stops reading, or stops it, sees a traceback."""
    try:
        status = _ended(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):
            give_up_output()
        return interrupts.INTERRUPTED
    except BrokenPipeError:
        give_up_output()
        return FAILED
    except Exception as error:  # noqa: BLE001 - what is no error of the user's is raised again
        message, status = judged(error)
        warn(f"duepost: {message}")
        if isinstance(error, OSError):
            give_up_output()
    return status


def _ended(arguments: list[str] | None) -> int:
    """The status of a command that has done its work, or has said itself how it ended."""
    try:
        status = app(arguments, standalone_mode=False)
    except typer.Abort:
        return interrupts.INTERRUPTED
    except typer.Exit as end:
        return int(end.exit_code)
    return status if isinstance(status, int) else OK


def _path_of(error: Exception) -> str:
    """The command whose usage was wrong: `duepost list`, `duepost message edit`."""
    context = getattr(error, "ctx", None)
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name or "")
        context = context.parent
    return " ".join(["duepost", *names])


def judged(error: Exception) -> tuple[str, int]:
    """An error's text and exit status; what is a bug of ours is raised as it is."""
    if isinstance(error, psycopg2.Error):
        error = explain(error)
    if isinstance(error, UnicodeEncodeError):
        error = BadInput("an argument is not UTF-8")
    if hasattr(error, "format_message"):
        said = error.format_message().rstrip(".").replace("Value error, ", "")
        return f"{said} (see `{_path_of(error)} --help`)", BAD_USAGE
    if isinstance(error, BadSettings | BadKey | BadInput | jsonl.BadLine | MissingExtra):
        return str(error), BAD_USAGE
    if isinstance(error, ReleaseTooOld):
        return str(error), TOO_OLD
    if isinstance(error, DuepostError | EmbeddedError | CatcherError | ChildError | FolderInUse):
        return str(error), FAILED
    if isinstance(error, BrokerUnreachable):
        return str(error), FAILED
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part), FAILED
    raise error

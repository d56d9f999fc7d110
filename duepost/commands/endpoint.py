"""`duepost endpoint`: where messages may go. A secret is printed once, as it is made, and never again."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from actors.settings import settings
from duepost.commands.context import BadInput, Failed, Json, client_database, operator_database
from duepost.commands.endpoint_trial import Trial, try_endpoint
from duepost.commands.output import Table, print_json, print_table, say, warn
from duepost.commands.schedule import checked_json
from duepost.commands.wording import count
from models import endpoints
from models.database.connections import Database
from models.endpoints import KnownEndpoint, Setting

app = typer.Typer(help="Where messages may go: add, list, test, rotate, disable, enable, remove.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The endpoint's name, such as orders.")]

#: Seconds of an age's unit, as in 90m, 24h, 7d.
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Format(StrEnum):
    """How messages are written for it."""

    WEBHOOK = "webhook"
    SLACK = "slack"
    MATTERMOST = "mattermost"
    ZULIP = "zulip"
    MATRIX = "matrix"
    FUNCTION = "function"


Secret = Annotated[
    str | None,
    typer.Option(
        help="env:NAME or file:/path, which the workers read; - reads it from stdin; new makes one for a webhook."
    ),
]


@app.command()
def add(
    name: Name,
    format_: Annotated[Format | None, typer.Option("--format", help="How messages are written for it.")] = None,
    url: Annotated[str | None, typer.Option(help="Where to; - reads it from stdin, as some are secret.")] = None,
    secret: Secret = None,
    function: Annotated[
        str | None, typer.Option(help="Of format function: its name with its schema, such as app.post.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--option", help="name=value, such as room=!a:example.org; may be repeated.")
    ] = None,
    allow_private: Annotated[
        bool | None, typer.Option(help="Whether it may lead to private and loopback addresses.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Registers an endpoint, or changes what is given of one, and enables it. Prints the secret that it makes, once.

    Examples: duepost endpoint add orders --format webhook --url https://shop.example.com/hooks;
    duepost endpoint add board --format function --function app.post
    """
    if url == secret == "-":
        raise BadInput("--secret: only one of --url and --secret can come from stdin")
    setting = Setting(
        format=format_,
        url=_from_stdin(url),
        secret=_from_stdin(secret),
        function=function,
        options=_options(option) if option else None,
        allow_private=allow_private,
    )
    _set(name, setting, "is registered", as_json=as_json)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """Lists the endpoints: the server of each, where its secret is kept, whether it takes messages, how many wait.

    Examples: duepost endpoint list; duepost endpoint list --json
    """
    found = endpoints.known(client_database())
    if as_json:
        print_json([asdict(each) for each in found])
    elif found:
        columns = ("name", "format", "to", "secret", "state", "messages")
        print_table(
            Table(
                columns,
                [(e.name, e.format, e.target, e.secret or "", _state(e), e.pending) for e in found],
            )
        )
    else:
        say("There are no endpoints.")


@app.command("test")
def try_(
    name: Name,
    payload: Annotated[
        str | None,
        typer.Option(help="What is sent, in JSON, instead of a text that says what it is; - is stdin."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Sends one message to an endpoint now, as a worker does, and says what came back. Status 1 if it was not taken.

    Nothing is scheduled and nothing stored. A disabled endpoint is sent to as well. A function is called in a
    transaction that is rolled back. The secret is read, so this wants the rights of a worker.

    Examples: duepost endpoint test orders; duepost endpoint test board --payload '{"text": "Hello"}'
    """
    if settings().disabled:
        raise Failed("nothing is sent while DUEPOST_DISABLED is 1")
    text = None if payload is None else checked_json("--payload", _from_stdin(payload, whole=True) or "")
    database = operator_database()
    trial = try_endpoint(database, name, text)
    if trial is None:
        _find(database, name)
        raise Failed(f"endpoint {name} is gone")
    if as_json:
        _print_trial(trial)
    elif trial.is_taken:
        said = trial.sentence()
        say(f"{said[0].upper()}{said[1:]}.")
    if not trial.is_taken:
        raise typer.Exit(1) if as_json else Failed(trial.sentence())
    found = _find(database, name)
    if not as_json and (found.disabled_at is not None or found.circuit_reason is not None):
        warn(f"It is still {_state(found)}: `duepost endpoint enable {name}` has messages sent to it.")


@app.command()
def rotate(
    name: Name,
    secret: Secret = None,
    for_: Annotated[
        str, typer.Option("--for", help="How long the former secret is signed with too: 30m, 24h, 7d, 0s.")
    ] = "24h",
    as_json: Json = False,
) -> None:
    """Gives an endpoint another secret; a webhook's former one is signed with too for a while. Prints a new one, once.

    Examples: duepost endpoint rotate orders; duepost endpoint rotate orders --for 7d
    """
    found = _find(client_database(), name)
    if secret is None and found.format != Format.WEBHOOK:
        raise BadInput(f"--secret: must be given: a secret of {found.format} is made there, and not here")
    setting = Setting(secret=_from_stdin(secret) or "new", rotate_for=_age(for_))
    former = f"; the former one is signed with too for {for_}" if found.format == Format.WEBHOOK else ""
    _set(name, setting, f"has another secret{former}", as_json=as_json)


@app.command()
def disable(
    name: Name, reason: Annotated[str | None, typer.Option(help="Why; whoever schedules is told it.")] = None
) -> None:
    """Sends nothing to an endpoint any more, and schedules nothing; what waits for it stays.

    Example: duepost endpoint disable orders --reason "the shop moves house"
    """
    with client_database().transaction() as cursor:
        endpoints.disable(cursor, name, reason)
    say(f"Endpoint {name} is disabled; `duepost endpoint enable {name}` goes on.")


@app.command()
def enable(name: Name) -> None:
    """Sends to an endpoint again, with its circuit closed: what waits for it leaves.

    Example: duepost endpoint enable orders
    """
    database = client_database()
    _find(database, name)
    with database.transaction() as cursor:
        endpoints.set_endpoint(cursor, name, Setting())
    say(f"Endpoint {name} is enabled.")


@app.command()
def remove(name: Name, as_json: Json = False) -> None:
    """Removes an endpoint. Each message that waits for it ends as undeliverable; what is being sent just now goes on.

    Example: duepost endpoint remove orders
    """
    with client_database().transaction() as cursor:
        ended = endpoints.remove(cursor, name)
    if as_json:
        print_json({"name": name, "ended": ended})
    else:
        say(f"Endpoint {name} is removed; {count(ended, 'message')} ended as undeliverable.")


def _set(name: str, setting: Setting, what: str, *, as_json: bool) -> None:
    with client_database().transaction() as cursor:
        made = endpoints.set_endpoint(cursor, name, setting)
    if as_json:
        print_json({"name": name, "secret": made})
        return
    say(f"Endpoint {name} {what}.")
    if made is not None:
        say("Its secret, which is not shown again:")
        say(made, to_copy=True)


def _find(database: Database, name: str) -> KnownEndpoint:
    """The endpoint of a name.

    Raises:
        BadInput: there is none.
    """
    found = endpoints.known(database)
    for each in found:
        if each.name == name:
            return each
    known = f"; known are {', '.join(each.name for each in found)}" if found else ""
    raise BadInput(f"NAME: there is no endpoint {name}{known}")


def _state(each: KnownEndpoint) -> str:
    if each.disabled_at is not None:
        return f"disabled ({each.disabled_because})"
    if each.circuit_reason is not None:
        return f"circuit open ({each.circuit_reason})"
    return "enabled" if each.failing_since is None else f"failing since {each.failing_since:%Y-%m-%d %H:%M}"


def _print_trial(trial: Trial) -> None:
    ruling = trial.ruling
    print_json(
        {
            "name": trial.endpoint,
            "is_taken": trial.is_taken,
            "verdict": ruling.verdict,
            "scope": ruling.scope,
            "phase": ruling.phase,
            "status": ruling.code,
            "reply": ruling.reply,
            "seconds": round(trial.seconds, 3),
            "wire_id": trial.wire_id,
        }
    )


def _from_stdin(given: str | None, *, whole: bool = False) -> str | None:
    """What was given; for - the first line of stdin, or all of it."""
    if given != "-":
        return given
    return sys.stdin.read() if whole else sys.stdin.readline().strip()


def _options(given: Sequence[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise BadInput("--option: must be name=value")
        options[name] = value
    return options


def _age(text: str) -> timedelta:
    number, unit = text[:-1], text[-1:]
    if unit not in UNITS or not (number.isascii() and number.isdigit() and len(number) <= 6):
        raise BadInput("--for: must be an age such as 30m, 24h or 7d")
    return timedelta(seconds=int(number) * UNITS[unit])

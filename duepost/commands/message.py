"""`duepost message` and `duepost status`: the SQL functions of messages from a shell."""

import sys
from typing import Annotated

import typer

from duepost import client
from duepost.arguments import MESSAGE_ARGUMENTS
from duepost.commands.context import BadInput, Failed, Json, argument, client_database
from duepost.commands.items import check_channel
from duepost.commands.output import print_facts, print_json, say
from duepost.commands.schedule import (
    check_json,
    checked_json,
    given_parameters,
    moment_of,
    or_now,
    say_receipts,
    takes_options,
)
from duepost.commands.schedule_file import MESSAGES, FileOption, say_scheduled, schedule_file

app = typer.Typer(help="Messages to endpoints: schedule, edit, clear, reschedule.", no_args_is_help=True)

MessageId = Annotated[int, typer.Argument(help="The message's id.", min=1, max=2**63 - 1)]


@app.command()
@takes_options(MESSAGE_ARGUMENTS)
def schedule(*, file: FileOption = None, as_json: Json = False, **message: str | list[str] | None) -> None:
    """Schedules one message to an endpoint, or those of a file, and prints the ids. --payload - reads it from stdin.

    Examples: duepost message schedule --kind news --endpoint team --payload '{"text": "Hello"}';
    duepost message schedule --kind news --endpoint team --at 2026-12-24T18:00:00+01:00 --payload - < payload.json;
    duepost message schedule --file messages.jsonl
    """
    if file is not None:
        if given := given_parameters(MESSAGE_ARGUMENTS, message):
            raise BadInput(f"--file: goes without {', '.join(given)}: the lines say it all")
        say_scheduled(schedule_file(file, MESSAGES), "message", as_json=as_json)
        return
    parameters = given_parameters(MESSAGE_ARGUMENTS, {**message, "payload": _payload(message.get("payload"))})
    for name in ("kind", "endpoint", "payload"):
        if name not in parameters:
            raise BadInput(f"--{name}: must be given")
    if parameters.get("scheduled_at") == "now":
        del parameters["scheduled_at"]
    with argument("schedule"), client_database().transaction() as cursor:
        check_json(cursor, MESSAGE_ARGUMENTS, parameters)
        message_id = client.schedule_encoded_message(cursor, parameters)
    if as_json:
        print_json({"ids": [message_id]})
    else:
        say(str(message_id))


@app.command()
def edit(
    message_id: MessageId,
    payload: Annotated[str, typer.Option(help="What it says instead, in JSON; - reads it from stdin.")],
    as_json: Json = False,
) -> None:
    """Gives one message another payload. Prints edited, or too_late once a request of it may have arrived.

    Example: duepost message edit 42 --payload '{"text": "Hello again"}'
    """
    text = checked_json("--payload", str(_payload(payload)))
    with client_database().transaction() as cursor:
        check_json(cursor, MESSAGE_ARGUMENTS, {"payload": text})
        check_channel(cursor, message_id, "message", "it cannot be edited: duepost show")
        receipt = client.edit_encoded_message(cursor, message_id, text)
    _say_receipt(message_id, receipt, as_json=as_json)


@app.command()
def clear(
    message_id: Annotated[int | None, typer.Argument(help="One message's id.", min=1, max=2**63 - 1)] = None,
    user: Annotated[
        list[str] | None, typer.Option("--user", "--users", help="Takes this user off; may be repeated.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="Only messages of this kind.")] = None,
    as_json: Json = False,
) -> None:
    """Clears scheduled messages: one by id, or those of users. Prints a receipt for each.

    Receipts: cleared (never sent), user_removed (it still concerns others, and is sent), too_late.

    Examples: duepost message clear 42; duepost message clear --user ann --kind news
    """
    if (message_id is not None) == bool(user):
        raise BadInput("clear: give one of an id and --user")
    if message_id is not None and kind is not None:
        raise BadInput("--kind: goes with --user")
    with client_database().transaction() as cursor:
        if message_id is not None:
            check_channel(cursor, message_id, "message", "duepost clear")
            receipts = [(message_id, client.clear_scheduled_message(cursor, message_id))]
        else:
            receipts = client.clear_scheduled_messages(cursor, user or [], kind)
    say_receipts("message_id", receipts, as_json=as_json)


@app.command()
def reschedule(
    message_id: MessageId,
    at: Annotated[str, typer.Argument(help="When, in ISO 8601 with its zone, or now.")],
    as_json: Json = False,
) -> None:
    """Moves one message to another time. Prints rescheduled or too_late.

    Example: duepost message reschedule 42 2026-12-24T18:00:00+01:00
    """
    moment = moment_of(at)
    with client_database().transaction() as cursor:
        check_channel(cursor, message_id, "message", "duepost reschedule")
        receipt = client.reschedule_message(cursor, message_id, or_now(cursor, moment))
    _say_receipt(message_id, receipt, as_json=as_json)


def status(
    item_id: Annotated[int | None, typer.Argument(help="An email's or a message's id.", min=1, max=2**63 - 1)] = None,
    key: Annotated[str | None, typer.Option(help="Its key, instead.")] = None,
    as_json: Json = False,
) -> None:
    """Says where an email or a message stands, as an application may ask too: its state, its outcome, its times.

    Examples: duepost status 42; duepost status --key welcome-42
    """
    if (item_id is None) == (key is None):
        raise BadInput("status: give either an id or --key")
    with client_database().transaction() as cursor:
        found = client.status(cursor, item_id, key=key)
    if found is None:
        raise Failed("nothing is known of it" if item_id is None else f"nothing is known of {item_id}")
    if as_json:
        print_json(found._asdict())
    else:
        facts = found._asdict().items()
        print_facts([(name.replace("_", " "), str(value)) for name, value in facts if value is not None])


def _payload(given: object) -> object:
    return sys.stdin.read() if given == "-" else given


def _say_receipt(message_id: int, receipt: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"message_id": message_id, "receipt": receipt})
    else:
        say(receipt)

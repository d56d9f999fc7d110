"""`duepost schedule`, `clear` and `reschedule`: the SQL functions from a shell."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

import typer

from duepost import client
from duepost.arguments import (
    ARGUMENTS,
    Argument,
    Attachment,
    AttachmentAt,
    AttachmentsArgument,
    HeadersArgument,
    JsonArgument,
    ListArgument,
    LocalTimeArgument,
    TimeArgument,
    checked_local_time,
    checked_time,
    is_storable,
    texts,
)
from duepost.commands.acting import By, DryRun, Reason, Route, Words, carry_out, chosen, order_of
from duepost.commands.context import BadInput, EmailId, Json, argument, client_database
from duepost.commands.items import check_channel
from duepost.commands.output import print_json, say, warn
from duepost.commands.schedule_file import EMAILS, FileOption, read_as_json, say_scheduled, schedule_file
from duepost.operations import Doing, Filter
from models.database.connections import Cursor

#: Options that are not called as their argument is.
OPTIONS = {
    "users": ("--user", "--users"),
    "scheduled_at": ("--at", "--scheduled-at"),
    "headers": ("--header",),
    "attachments": ("--attach",),
}


def option_names(name: str) -> tuple[str, ...]:
    """Returns the names of an argument's option; the first is the one to tell."""
    return OPTIONS.get(name) or (f"--{name.replace('_', '-')}",)


def takes_options(arguments: Mapping[str, Argument]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command that takes `**item` an option for each argument of one, in front of its own last option."""

    def with_options(command: Callable[..., None]) -> Callable[..., None]:
        *first, last, _ = signature(command).parameters.values()
        options = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, argument))
            for name, argument in arguments.items()
        ]
        command.__signature__ = Signature([*first, *options, last])  # type: ignore[attr-defined]
        return command

    return with_options


def _option(name: str, argument: Argument) -> object:
    """Returns an argument's option, as a command's annotation has it."""
    match argument:
        case HeadersArgument():
            hint = " As 'Name: value'; may be repeated."
        case AttachmentsArgument():
            hint = (
                " A file, or CID=FILE for a picture that the HTML shows as cid:CID; a URL, file:///… or s3://…, is read"
                " when it is sent; may be repeated."
            )
        case ListArgument():
            hint = " One at a time; may be repeated."
        case TimeArgument():
            hint = " In ISO 8601 with its zone."
        case LocalTimeArgument():
            hint = " In ISO 8601 without a zone."
        case JsonArgument():
            hint = " In JSON."
        case _:
            hint = ""
    option = typer.Option(*option_names(name), help=argument.meaning + hint)
    if isinstance(argument, HeadersArgument | ListArgument | AttachmentsArgument):
        return Annotated[list[str] | None, option]
    return Annotated[str | None, option]


@takes_options(ARGUMENTS)
def schedule(
    *,
    file: FileOption = None,
    as_json: Json = False,
    **email: str | list[str] | None,
) -> None:
    """Schedules one email, or those of a file, and prints the ids.

    Examples: duepost schedule --kind welcome --address ann@example.com --template welcome --context '{"name": "Ann"}';
    duepost schedule --kind invoice --address ann@example.com --template invoice --attach invoice.pdf;
    duepost schedule --file emails.jsonl
    """
    arguments = given_parameters(ARGUMENTS, email)
    if file is not None:
        if arguments:
            raise BadInput(f"--file: goes without {', '.join(arguments)}: the lines say it all")
        say_scheduled(schedule_file(file, EMAILS), "email", as_json=as_json)
        return
    ids = _schedule_one(arguments)
    if as_json:
        print_json({"ids": ids})
    else:
        say(str(ids[0]))


def clear(
    email_id: Annotated[
        list[int] | None, typer.Argument(help="Emails' ids.", min=1, max=2**63 - 1, metavar="[ID]...")
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option("--user", "--users", help="Takes this user off; may be repeated.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Clears what is scheduled to this address.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only emails of this kind; alone: all of it.")] = None,
    route: Route = None,
    reply: Words = None,
    dry_run: DryRun = False,
    reason: Reason = None,
    by: By = None,
    as_json: Json = False,
) -> None:
    """Clears scheduled emails: by id, or those of users or of an address. Prints a receipt for each.

    Receipts: cleared (never sent), user_removed (the others still get it), too_late. With several ids, or --kind,
    --route or --reply alone, an operator acts: it is journalled, and what was left alone is told with its reason.

    Examples: duepost clear 42; duepost clear --user ann --kind reminder; duepost clear --kind digest --dry-run
    """
    is_operators = len(email_id or []) > 1 or dry_run or reason is not None or not (email_id or user or address)
    if is_operators and not user and address is None:
        wanted = chosen("clear", email_id, Filter(kind=kind, route=route, reply=reply), "--user, --address or --kind")
        carry_out(
            Doing.CLEAR, wanted, order_of(by, reason), word="cleared", one="{}: cleared", why="is not cleared",
            dry_run=dry_run, as_json=as_json,
        )  # fmt: skip
        return
    if [bool(email_id), bool(user), address is not None].count(True) != 1:
        raise BadInput("clear: give one of an id, --user or --address")
    if route is not None or reply is not None or dry_run:
        raise BadInput("clear: --route, --reply and --dry-run go without --user and --address")
    if email_id and kind is not None:
        raise BadInput("--kind: goes with --user or --address")
    with client_database().transaction() as cursor:
        if email_id:
            check_channel(cursor, email_id[0], "email", "duepost message clear")
            receipts = [(email_id[0], client.clear_scheduled_email(cursor, email_id[0]))]
        elif address is not None:
            receipts = client.clear_scheduled_emails_to(cursor, address, kind)
        else:
            receipts = client.clear_scheduled_emails(cursor, user or [], kind)
    say_receipts("email_id", receipts, as_json=as_json)


def say_receipts(name: str, receipts: Sequence[tuple[int, str]], *, as_json: bool) -> None:
    """Prints a receipt for each id, which JSON has by this name."""
    if as_json:
        print_json([{name: each, "receipt": receipt} for each, receipt in receipts])
        return
    for each, receipt in receipts:
        say(f"{each} {receipt}")
    if not receipts:
        warn("Nothing is scheduled.")


def reschedule(
    email_id: EmailId,
    at: Annotated[str, typer.Argument(help="When, in ISO 8601 with its zone, or now.")],
    as_json: Json = False,
) -> None:
    """Moves one email to another time. Prints rescheduled or too_late.

    Example: duepost reschedule 42 2026-12-24T18:00:00+01:00
    """
    moment = moment_of(at)
    with client_database().transaction() as cursor:
        check_channel(cursor, email_id, "email", "duepost message reschedule")
        receipt = client.reschedule_email(cursor, email_id, or_now(cursor, moment))
    if as_json:
        print_json({"email_id": email_id, "receipt": receipt})
    else:
        say(receipt)


def moment_of(at: str) -> datetime | str | None:
    """The moment that an argument AT means; None for now.

    Raises:
        BadInput: it is none.
    """
    if at == "now":
        return None
    with argument("AT"):
        return checked_time(at)


def or_now(cursor: Cursor, moment: datetime | str | None) -> datetime | str:
    """A moment, or now by the database's clock, which is the one that counts."""
    if moment is not None:
        return moment
    cursor.execute("SELECT now()")
    [now] = cursor.fetchone() or ()
    return now  # type: ignore[no-any-return]  # the driver's


def _schedule_one(arguments: dict[str, object]) -> list[int]:
    if "kind" not in arguments:
        raise BadInput("--kind: must be given")
    if arguments.get("scheduled_at") == "now":
        del arguments["scheduled_at"]
    with argument("schedule"), client_database().transaction() as cursor:
        if (files := arguments.pop("attachments", None)) is not None:
            arguments["attachments"] = json.dumps([_attach(cursor, str(file)) for file in files])  # type: ignore[attr-defined]
        check_json(cursor, ARGUMENTS, arguments)
        return [client.schedule_encoded(cursor, arguments)]


def _attach(cursor: Cursor, given: str) -> Attachment | AttachmentAt:
    """Stores a file, which is given as it is or behind its cid; one that is given by its URL is not read.

    Raises:
        BadInput: it cannot be read.
    """
    cid, equals, name = given.partition("=")
    if not equals or Path(given).is_file():
        cid, name = "", given
    if name.startswith(("file://", "s3://")):
        return client.attachment_at(cursor, unquote(name.rpartition("/")[2]), name, cid=cid or None)
    try:
        content = Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise BadInput(f"--attach: {name}: {getattr(error, 'strerror', None) or error}") from error
    return client.attachment(cursor, Path(name).name, content, cid=cid or None)


def given_parameters(arguments: Mapping[str, Argument], given: Mapping[str, object]) -> dict[str, object]:
    """Returns what options were given as parameters of the SQL function; what is wrong is named by the option."""
    return {name: _parameter(name, arguments[name], value) for name, value in given.items() if value not in (None, [])}


def _parameter(name: str, of: Argument, value: object) -> object:
    option = option_names(name)[0]
    match of, value:
        case HeadersArgument(), list(lines):
            return _headers(option, lines)
        case AttachmentsArgument(), _:
            # Files, which are stored in the transaction that schedules.
            return value
        case JsonArgument(), str(text):
            return checked_json(option, text)
        case TimeArgument(), str(text) if (name, text) != ("scheduled_at", "now"):
            with argument(option):
                return checked_time(text)
        case LocalTimeArgument(), str(text):
            with argument(option):
                return checked_local_time(text)
    return value


def checked_json(option: str, text: str) -> str:
    """Makes sure that a text is JSON, and returns it as it is: its numbers stay as they are written."""
    try:
        found = json.loads(text, parse_int=len)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{option}: not JSON: {error}") from error
    if not all(map(is_storable, texts(found))):
        raise BadInput(f"{option}: must not contain NUL or a lone surrogate")
    return text


def check_json(cursor: Cursor, arguments: Mapping[str, Argument], parameters: Mapping[str, object]) -> None:
    """Makes sure that what is JSON is so to PostgreSQL too, which has limits of its own, and names no argument.

    Raises:
        BadInput: one is not; its option is named.
    """
    for name, value in parameters.items():
        if isinstance(arguments[name], JsonArgument):
            read_as_json(cursor, str(value), partial(_bad_option, option_names(name)[0]))


def _bad_option(option: str, reason: str) -> BadInput:
    return BadInput(f"{option}: {reason}")


def _headers(option: str, lines: Sequence[str]) -> str:
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise BadInput(f"{option}: must be 'Name: value'")
        headers[name.strip()] = value.strip()
    return json.dumps(headers)

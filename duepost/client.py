"""The client: the functions of the contract, run in the caller's own transaction. Imports no worker code.

Each takes, in front of the arguments of its namesake in `duepost.contract`, a DB-API cursor, or SQLAlchemy's `Session`
or `Connection`.
"""

import functools
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Concatenate, ParamSpec, TypeVar, cast

from duepost import contract
from duepost.call import Call, Paramstyle, Row, Statement
from duepost.contract import Status
from duepost.handles import Cursor, Handle, asynchronous, check_cursor, is_sqlalchemy, values

P = ParamSpec("P")
R = TypeVar("R")

#: What the docstrings say of the first argument.
_HANDLE = "        cursor: a DB-API cursor of the application's own, or SQLAlchemy's Session or Connection."


def run(cursor: Handle, call: Statement[R]) -> R:
    """Makes a call in the transaction of a cursor, Session or Connection; commits nothing.

    Raises:
        TypeError: the cursor is none of these, asynchronous, or not on PostgreSQL.
        the driver's error: the database refuses the call.
    """
    return call.read(_by_sqlalchemy(cursor, call) if is_sqlalchemy(cursor) else _by_cursor(cursor, call))


def _by_sqlalchemy(handle: object, call: Statement[object]) -> list[Row]:
    from sqlalchemy import text  # noqa: PLC0415 - who has such a handle has loaded it

    found = handle.execute(text(call.text("named")), dict(call.parameters))  # type: ignore[attr-defined]
    return [values(row) for row in found.fetchall()]


def _by_cursor(handle: object, call: Statement[object]) -> list[Row]:
    check_cursor(handle)
    found = handle.execute(call.text("pyformat"), dict(call.parameters))  # type: ignore[attr-defined]
    if hasattr(found, "__await__"):
        if hasattr(found, "close"):
            # Never awaited, and not to be warned of.
            found.close()
        raise asynchronous(handle)
    return [values(row) for row in handle.fetchall()]  # type: ignore[attr-defined]


def documented(function: Callable[..., object], build: Callable[..., object], handle: str) -> None:
    """Gives a function the name, the docstring and the signature of what builds its call, with the handle in front."""
    functools.update_wrapper(function, build)
    function.__module__ = handle
    own = signature(build)
    function.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter("cursor", Parameter.POSITIONAL_OR_KEYWORD), *own.parameters.values()],
        return_annotation=own.return_annotation,
    )
    function.__doc__ = (build.__doc__ or "").replace("    Args:\n", f"    Args:\n{_HANDLE}\n", 1)


def in_transaction(build: Callable[P, Call[R]]) -> Callable[Concatenate[Handle, P], R]:
    """Makes the function that makes a call with a cursor, out of the one that builds the call."""

    def function(cursor: Handle, *args: P.args, **kwargs: P.kwargs) -> R:
        return run(cursor, build(*args, **kwargs))

    documented(function, build, __name__)
    return cast("Callable[Concatenate[Handle, P], R]", function)


attachment = in_transaction(contract.attachment)
attachment_at = in_transaction(contract.attachment_at)
schedule_email = in_transaction(contract.schedule_email)
schedule_emails = in_transaction(contract.schedule_emails)
clear_scheduled_email = in_transaction(contract.clear_scheduled_email)
clear_scheduled_emails = in_transaction(contract.clear_scheduled_emails)
clear_scheduled_emails_to = in_transaction(contract.clear_scheduled_emails_to)
reschedule_email = in_transaction(contract.reschedule_email)
add_to_batch = in_transaction(contract.add_to_batch)
remove_from_batch = in_transaction(contract.remove_from_batch)
schedule_message = in_transaction(contract.schedule_message)
schedule_messages = in_transaction(contract.schedule_messages)
edit_message = in_transaction(contract.edit_message)
clear_scheduled_message = in_transaction(contract.clear_scheduled_message)
clear_scheduled_messages = in_transaction(contract.clear_scheduled_messages)
reschedule_message = in_transaction(contract.reschedule_message)
clear_scheduled = in_transaction(contract.clear_scheduled)
status = in_transaction(contract.status)

#: The same where arguments are parameters already, for the command.
schedule_encoded = in_transaction(contract.schedule_encoded)
schedule_lines = in_transaction(contract.schedule_lines)
schedule_encoded_message = in_transaction(contract.schedule_encoded_message)
schedule_message_lines = in_transaction(contract.schedule_message_lines)
edit_encoded_message = in_transaction(contract.edit_encoded_message)

#: The functions of the contract, by name.
FUNCTIONS = (
    "attachment", "attachment_at", "schedule_email", "schedule_emails", "clear_scheduled_email",
    "clear_scheduled_emails",
    "clear_scheduled_emails_to", "reschedule_email", "add_to_batch", "remove_from_batch", "schedule_message",
    "schedule_messages", "edit_message", "clear_scheduled_message", "clear_scheduled_messages", "reschedule_message",
    "clear_scheduled", "status",
)  # fmt: skip


def statement(
    function: str | Callable[..., object],
    /,
    *args: object,
    paramstyle: Paramstyle = "pyformat",
    **arguments: object,
) -> tuple[str, dict[str, object] | list[object]]:
    """Returns the SQL of a call and its parameters, for a driver that Duepost does not know.

    Args:
        function: a function of the contract, or its name: `duepost.schedule_email`, `"schedule_email"`.
        *args: its arguments, without the cursor; they are checked as always.
        paramstyle: how the driver writes parameters: `pyformat` (`%(kind)s`), `format` (`%s`), `named` (`:kind`) or
            `numeric_dollar` (`$1`).
        **arguments: its arguments by name.

    Returns:
        the statement, and the parameters: by name, or in a list where the style has no names.

    Raises:
        TypeError: there is no such function, or what the function raises of its arguments.
        ValueError: there is no such style, or a time without a time zone.
    """
    name = function if isinstance(function, str) else getattr(function, "__name__", "")
    if name not in FUNCTIONS:
        raise TypeError(f"function: must be one of {', '.join(FUNCTIONS)}, not {name or function!r}")
    call: Call[object] = getattr(contract, name)(*args, **arguments)
    return call.statement(paramstyle)


__all__ = ["FUNCTIONS", "Cursor", "Handle", "Status", "run", "statement", *FUNCTIONS]  # noqa: PLE0604 - they are names

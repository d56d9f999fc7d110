"""`duepost forget` and `export`: what is kept of one person."""

from typing import Annotated

import typer

from duepost import operations
from duepost.commands.acting import By, Reason, order_of
from duepost.commands.context import BadInput, Failed, Json, operator_database
from duepost.commands.output import print_json, say

Whom = Annotated[str, typer.Argument(help="An address, however it is spelled, or a user's id.", metavar="ADDRESS|USER")]
IsUser = Annotated[bool, typer.Option("--user", help="It is a user's id, though it has an @.")]

#: What is said of each part.
PARTS = {
    "cleared": "scheduled items cleared",
    "ledger": "rows of the ledger without whom they were about, and the journal of their attempts",
    "kept": "undeliverable items no longer kept",
    "content": "copies of what was sent no longer kept",
    "suppression": "suppressions lifted",
    "recipient": "rows of duepost.recipient deleted",
    "orders": "orders of operators without whom they named",
}


def forget(whom: Whom, is_user: IsUser = False, reason: Reason = None, by: By = None, as_json: Json = False) -> None:
    """Erases what is kept of one mailbox or user; the ledger's rows stay, and count, without whom they were about.

    What is scheduled to them alone is cleared first. What is being sent, or waits for a person, is left: exit status 1.

    Examples: duepost forget ann@example.com --reason "asked on 2026-11-26"; duepost forget 42
    """
    address, user = _whom(whom, is_user=is_user)
    found = operations.forget(operator_database(), order_of(by, reason), address=address, user=user)
    if as_json:
        print_json(found)
    else:
        for part, words in PARTS.items():
            say(f"{found[part]} {words}")
    if found["left"]:
        raise Failed(
            f"{found['left']} left: being sent, or waiting for a person (duepost find); run duepost forget again "
            "afterwards"
        )


def export(whom: Whom, is_user: IsUser = False) -> None:
    """Prints, as JSON, all that is kept of one mailbox or user, and of nobody else.

    Examples: duepost export ann@example.com > ann.json; duepost export 42
    """
    address, user = _whom(whom, is_user=is_user)
    print_json(operations.export(operator_database(), address=address, user=user))


def _whom(whom: str, *, is_user: bool) -> tuple[str | None, str | None]:
    if not whom.strip():
        raise BadInput("ADDRESS|USER: must not be empty")
    return (None, whom) if is_user or "@" not in whom else (whom, None)

"""`duepost list`, `show` and `stats`: what is there to see."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from duepost.commands.context import EmailId, Failed, Json, operator_database, print_json
from models import control, reports, workers
from models.database import Database
from models.words import State

#: Characters of an error that a table shows.
SHORT = 60


def list_(
    state: Annotated[State | None, typer.Option(help="Only emails in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only emails of this kind.")] = None,
    limit: Annotated[int, typer.Option(help="At most so many.", min=1, max=1_000_000)] = 50,
    as_json: Json = False,
) -> None:
    """Lists what is not finished, the next due first.

    Examples: duepost list; duepost list --state unknown --json
    """
    found = reports.pending(operator_database(), state=state, kind=kind, limit=limit)
    if as_json:
        print_json([asdict(email) for email in found])
        return
    if not found:
        typer.echo("Nothing is pending.")
        return
    table = Table("id", "kind", "state", "due", "attempts", "last error")
    for email in found:
        error = (email.last_error or "").splitlines()[:1]
        table.add_row(
            str(email.id),
            email.kind,
            email.state,
            email.due_at.isoformat(sep=" ", timespec="seconds"),
            str(email.attempts),
            error[0][:SHORT] if error else "",
        )
    _print(table)


def show(email_id: EmailId, as_json: Json = False) -> None:
    """Shows one email's whole story: each attempt, each reply, and what happens next.

    Example: duepost show 42
    """
    database = operator_database()
    row = reports.email(database, email_id)
    ledger = reports.deliveries(database, email_id)
    attempts = reports.attempts(database, email_id)
    if row is None and not ledger:
        raise Failed(f"email {email_id}: there is no such email")
    row_or_ledger = row if row is not None else {**ledger[0], "state": "finished"}
    story = {
        "id": email_id,
        "kind": row_or_ledger["kind"],
        "state": row_or_ledger["state"],
        "email": {**row_or_ledger, "id": email_id},
        "deliveries": ledger,
        "attempts": attempts,
        "next": what_is_next(database, row),
    }
    if as_json:
        print_json(story)
        return
    _print(_facts(f"Email {email_id}", row if row is not None else ledger[0]))
    if attempts:
        table = Table("when", "user", "phase", "verdict", "reply", title="Attempts", title_justify="left")
        for each in attempts:
            table.add_row(*(str(each[name] or "") for name in ("when", "user_id", "phase", "verdict", "reply")))
        _print(table)
    for each in ledger:
        typer.echo(f"{each['outcome']}: {each['user_id'] or each['address'] or ''} {each['reply'] or ''}".rstrip())
    typer.echo(f"Next: {story['next']}")


def stats(as_json: Json = False) -> None:
    """Counts: what is pending by state, the ledger by outcome, the oldest due, the circuit, the workers.

    Example: duepost stats --json
    """
    database = operator_database()
    state = control.read(database)
    minute, hour = reports.sent_lately(database)
    found: dict[str, object] = {
        "pending": reports.pending_by_state(database),
        "outcomes": reports.outcomes(database),
        "oldest_due_seconds": reports.oldest_due(database),
        "circuit": "open" if state.circuit_open else "closed",
        "circuit_reason": state.circuit_reason,
        "probe_at": state.probe_at,
        "paused": state.paused,
        "workers": workers.present(database),
        "sent_last_minute": minute,
        "sent_last_hour": hour,
        "dead_letters": reports.dead_letters(database),
    }
    if as_json:
        print_json(found)
    else:
        _print(_facts("Duepost", found))


def what_is_next(database: Database, row: Mapping[str, object] | None) -> str:
    """What happens to an email next, in a sentence."""
    if row is None:
        return "nothing: it is finished"
    state = control.read(database)
    sentences = {
        State.SCHEDULED: f"it is due at {row['due_at']}",
        State.QUEUED: "a sender takes it",
        State.SENDING: f"worker {row['worker_id']} is sending it",
        State.UNKNOWN: f"a person decides: duepost resolve {row['id']} sent, or resend",
    }
    sentence = sentences[State(str(row["state"]))]
    if row["state"] in {State.SCHEDULED, State.QUEUED}:
        if row["expires_at"]:
            sentence += f", and expires at {row['expires_at']}"
        if state.paused:
            sentence += "; but Duepost is paused (duepost resume)"
        elif state.circuit_open:
            sentence += f"; but the circuit is open ({state.circuit_reason}), the next probe is at {state.probe_at}"
    return sentence


def _facts(title: str, facts: Mapping[str, object]) -> Table:
    table = Table("", "", title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{count} {word}" for word, count in value.items())  # noqa: PLW2901 - shown, not kept
        if value not in {None, ""} if not isinstance(value, list) else value:
            table.add_row(name.replace("_", " "), str(value))
    return table


def _print(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table)

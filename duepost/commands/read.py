"""`duepost list`, `show` and `stats`: what is there to see."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

import typer

from duepost import operations
from duepost.commands import ages, listing, story
from duepost.commands.context import BadInput, EmailId, Failed, Json, operator_database
from duepost.commands.output import Cell, Table, print_facts, print_json, print_table, say, visible
from duepost.commands.routes import next_probe, route_facts
from duepost.commands.wording import count, counts, span
from duepost.operations import Filter
from models import control, reports, routes, workers
from models.database.connections import Database
from models.reports import PendingEmail
from models.routes import RouteState
from models.words import Outcome, State

#: Seconds from now within which a moment is told as a span of time.
SOON = 86_400


def list_(
    state: Annotated[State | None, typer.Option(help="Only emails in this state.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only emails of this kind.")] = None,
    finished: Annotated[bool, typer.Option("--finished", help="The ledger instead, the newest first.")] = False,
    outcome: Annotated[Outcome | None, typer.Option(help="The ledger's with this outcome.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Due or finished no earlier: ISO 8601 with its zone, or an age such as 2h.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Due or finished earlier, written in the same way.")] = None,
    route: Annotated[str | None, typer.Option(help="Only by this route; endpoint:NAME for messages.")] = None,
    user: Annotated[str | None, typer.Option(help="Only about this user.")] = None,
    address: Annotated[str | None, typer.Option(help="Only to this mailbox.")] = None,
    limit: Annotated[int, typer.Option(help="At most this many.", min=1, max=1_000_000)] = 50,
    as_json: Json = False,
) -> None:
    """Lists what is not finished, emails and messages: what waits for a person first, then the next due.

    With --finished, --outcome, --since, --until, --route, --user or --address also the ledger, or the ledger alone.

    Examples: duepost list; duepost list --state unknown --json; duepost list --outcome undeliverable --since 2h
    """
    database = operator_database()
    wanted = Filter(
        kind=kind, state=state, outcome=outcome, since=ages.moment_of(since) if since else None,
        until=ages.moment_of(until, "--until") if until else None, route=route, user=user, address=address,
    )  # fmt: skip
    if finished or wanted != Filter(kind=kind, state=state):
        if state is not None and (finished or outcome is not None):
            raise BadInput("--state: goes without --finished and --outcome: it is of what is not finished")
        listing.print_found(database, wanted, limit, finished=finished, as_json=as_json)
        return
    found = reports.pending(database, state=state, kind=kind, limit=limit)
    if as_json:
        print_json([asdict(email) for email in found])
        return
    if not found:
        say("Nothing is pending.")
        return
    columns = ("id", "kind", "state", "due", "attempts", "last error", "endpoint")
    print_table(Table(columns, [_row(email) for email in found]))
    if len(found) == limit:
        all_of_them = reports.count_pending(database, state=state, kind=kind)
        if all_of_them > limit:
            # On stderr, so that a pipe holds the table alone.
            typer.echo(f"{limit} of {all_of_them}; --limit {all_of_them} lists all.", err=True)


def _row(email: PendingEmail) -> tuple[int | str | Cell, ...]:
    due = email.due_at.isoformat(sep=" ", timespec="seconds")
    return (
        email.id,
        email.kind,
        email.state,
        Cell(due, _due(email)),
        email.attempts,
        email.last_error or "",
        email.endpoint or "",
    )


def _due(email: PendingEmail) -> str:
    if email.state == State.UNKNOWN:
        return f"held {span(-email.due_in_seconds)}"
    if abs(email.due_in_seconds) > SOON:
        return f"{email.due_at:%Y-%m-%d %H:%M}"
    return f"in {span(email.due_in_seconds)}" if email.due_in_seconds > 0 else f"{span(-email.due_in_seconds)} ago"


def show(email_id: EmailId, as_json: Json = False) -> None:
    """Shows the whole story of one email or message: each attempt, each reply, and what happens next.

    Example: duepost show 42
    """
    database = operator_database()
    found = story.read(database, email_id)
    if found is None:
        raise Failed(f"{email_id}: there is no such email or message")
    if as_json:
        print_json(found.as_json())
        return
    for line in found.head():
        say(line)
    if found.attempts:
        say()
        print_table(Table(story.ATTEMPT_COLUMNS, found.attempt_rows()))
        say()
    for line in found.foot():
        say(line)


def stats(as_json: Json = False) -> None:
    """Counts: what is pending by state, what fails or waits for a person, the ledger, the circuit, the workers.

    Example: duepost stats --json
    """
    found = numbers(operator_database())
    if as_json:
        print_json(found)
    else:
        print_facts(described(found))


def numbers(database: Database, *, counts_ledger: bool = True) -> dict[str, object]:
    """What `duepost stats --json` prints. Spans are seconds. To count the ledger is to read all of it."""
    states, pause = routes.states(database), control.read_pause(database)
    stopped = next((state for state in states if state.circuit_open), None)
    minute, hour = reports.sent_lately(database)
    troubles = reports.troubles(database)
    waiting, in_hand = reports.queue_depth(database)
    suppressed = operations.suppression_number(database)
    return {
        "pending": reports.pending_by_state(database),
        "due": reports.due_count(database),
        "retrying": troubles.retrying,
        "retrying_seconds": troubles.retrying_seconds,
        "most_attempts": troubles.most_attempts,
        "failing_on_templates": troubles.on_templates,
        "failing_on_recipients": troubles.on_recipients,
        "oldest_unknown_seconds": troubles.unknown_seconds,
        "outcomes": reports.outcomes(database) if counts_ledger else None,
        "oldest_due_seconds": reports.oldest_due(database),
        "last_pass_seconds": reports.last_pass(database),
        "circuit": "open" if stopped else "closed",
        "circuit_reason": stopped.circuit_reason if stopped else None,
        "route": route_facts(states),
        "probe_at": stopped.probe_at if stopped else None,
        "routes": [_route(state) for state in states],
        "paused": pause is not None,
        "paused_by": pause.by if pause else None,
        "pause_reason": pause.reason if pause else None,
        "paused_seconds": pause.seconds if pause else None,
        "paused_kinds": [stop.name for stop in operations.paused_kinds(database)],
        "paused_routes": [stop.name for stop in operations.stopped_routes(database)],
        "workers": workers.present(database),
        "sent_last_minute": minute,
        "sent_last_hour": hour,
        "messages_waiting": waiting,
        "messages_in_hand": in_hand,
        "dead_letters": reports.dead_letters(database),
        "suppressed": suppressed.number,
        "suppressed_by_kind": suppressed.of_kinds,
    }


def _route(state: RouteState) -> dict[str, object]:
    return {
        "name": state.name,
        "target": state.target,
        "circuit": "open" if state.circuit_open else "closed",
        "reason": state.circuit_reason,
        "probe_at": state.probe_at,
        "fallback": state.fallback,
        "workers": state.workers,
        "connections": state.in_use,
        "allowed": state.allowed,
        "paused_until": state.paused_until,
    }


def _routes(found: object) -> str | None:
    """Each route in a few words, where there are several."""
    listed = found if isinstance(found, list) else []
    if len(listed) < 2:
        return None
    return "; ".join(
        f"{each['name']} ({each['target'] or 'no worker has registered it'}) {each['circuit']}"
        + (f" ({each['reason']}), {next_probe(each['probe_at'])}" if each["circuit"] == "open" else "")
        + (f", by {each['fallback']} meanwhile" if each["circuit"] == "open" and each["fallback"] else "")
        + f", {count(each['connections'], 'connection')}"
        for each in listed
    )


def described(found: Mapping[str, object]) -> list[tuple[str, str]]:
    """The same for people: what is not there is left out."""

    def seconds(name: str) -> str | None:
        value = found[name]
        return span(value) if isinstance(value, int | float) else None

    pending, outcomes = found["pending"], found["outcomes"]
    since = f"the oldest was due {seconds('retrying_seconds')} ago"
    retrying = f"{found['retrying']} (at most {count(int(str(found['most_attempts'])), 'attempt')}; {since})"
    lines = {
        "pending": counts(pending) if isinstance(pending, dict) else None,
        "due": f"{found['due']}",
        "oldest due": seconds("oldest_due_seconds"),
        "retrying": retrying if found["retrying"] else None,
        "failing on templates": f"{found['failing_on_templates']}" if found["failing_on_templates"] else None,
        "failing on recipients": f"{found['failing_on_recipients']}" if found["failing_on_recipients"] else None,
        "waiting for a person": f"for {seconds('oldest_unknown_seconds')}: duepost list --state unknown"
        if seconds("oldest_unknown_seconds")
        else None,
        "outcomes": counts(outcomes) if isinstance(outcomes, dict) else None,
        "sent": f"{found['sent_last_minute']} in the last minute, {found['sent_last_hour']} in the last hour",
        "last pass": f"{seconds('last_pass_seconds')} ago" if seconds("last_pass_seconds") else "none yet",
        "circuit": f"open ({found['circuit_reason']}); {next_probe(found['probe_at'])}"
        if found["circuit"] == "open"
        else "closed",
        "routes": _routes(found["routes"]),
        "relay": "; ".join(route) if isinstance(route := found["route"], list) and route else None,
        "paused": paused_words(found["paused_seconds"], found["paused_by"], found["pause_reason"])
        if found["paused"]
        else None,
        "paused kinds": _names(found["paused_kinds"]),
        "paused routes": _names(found["paused_routes"]),
        "workers": f"{found['workers']}",
        "messages": f"{found['messages_waiting']} waiting, {found['messages_in_hand']} in hand",
        "dead letters": f"{found['dead_letters']}",
        "suppressed": _suppressed(found),
    }
    return [(name, visible(value)) for name, value in lines.items() if value is not None]


def _suppressed(found: Mapping[str, object]) -> str:
    of_kinds = found["suppressed_by_kind"]
    return f"{found['suppressed']}" + (f", {of_kinds} of them of a kind" if of_kinds else "")


def _names(found: object) -> str | None:
    return ", ".join(map(str, found)) if isinstance(found, list) and found else None


def paused_words(seconds: object, by: object, reason: object) -> str:
    """Who has paused, since when and why, as far as that is known."""
    parts = [
        f"for {span(seconds)}" if isinstance(seconds, int | float) else "",
        f"by {by}" if by else "",
        f"({reason})" if reason else "",
    ]
    return " ".join(part for part in parts if part) or "by somebody"

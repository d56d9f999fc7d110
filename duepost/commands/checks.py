"""What the database tells of mail: does it flow, and does anything wait for a person?

Each check returns its health and a line that says what happened and which command is next: for `duepost doctor` and the
console's first page alike. None asks this machine for its settings.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

from actors.delivery.rates import pace as pace_words
from actors.settings import DEFAULT_RELAY, variable_of
from duepost import operations
from duepost.commands import server_checks
from duepost.commands.health import Health, Looked
from duepost.commands.pacing import more_with, waiting_words
from duepost.commands.read import paused_words
from duepost.commands.routes import circuit_words, route_facts
from duepost.commands.wording import count, span
from models import bounces as came_back
from models import control, rates, reports, routes, scheduled_messages, workers
from models.database.connections import Database
from models.scheduled_messages import EndpointState

#: Seconds for which an email may be due while all is well.
ON_TIME = 10.0

#: Seconds for which an email may be due while a backlog is worked off.
OVERDUE = 300.0

#: Seconds for which an email may be in sending while all is well; and while a relay takes as long as RFC 5321 allows.
LONG_SENDING, TOO_LONG_SENDING = 60.0, 1200.0

#: Seconds between two passes of the scheduler: a tick a minute, and one more that may be late.
PASS_TOLERANCE = 120.0

#: Seconds for which an email may be due behind somebody's pause, until the pause may have been forgotten.
HELD_BACK = 60.0

#: Seconds that a worker process may be silent about its progress; it says so every five.
PROGRESS_TOLERANCE = 60.0

#: Items that may expire within an hour, until that is more than a few that came too late.
FEW_EXPIRED = 9

#: Attempts from which on an email that is still retried is worth a look: it is about eight minutes old.
MANY_ATTEMPTS = 5

#: For how long a refused call of a webhook is told.
WEBHOOKS_LATELY = timedelta(days=3)

#: Failures that are named; of the others only the number is.
NAMED = 3


def workers_alive(database: Database) -> Looked:
    """Whether anybody can send: counts only workers whose session lives."""
    present = workers.present(database)
    if stuck := workers.stuck(database, PROGRESS_TOLERANCE):
        named = ", ".join(f"process {each.pid} on {each.host} for {span(each.seconds)}" for each in stuck[:NAMED])
        more = f" and {len(stuck) - NAMED} more" if stuck[NAMED:] else ""
        return Health.FAILED, (
            f"{present} running, {len(stuck)} without progress ({named}{more}): nothing is sent by "
            f"{'it' if len(stuck) == 1 else 'them'}; kill -9 {stuck[0].pid} there and start it again, others go on "
            "with what it had in hand"
        )
    if present:
        return Health.OK, f"{present} running"
    pending = sum(reports.pending_by_state(database).values())
    if killed := reports.killed_workers(database):
        return Health.FAILED, f"none is running, {killed} ended without leave: nothing is sent; run duepost worker"
    if pending:
        return Health.FAILED, f"none is running, {count(pending, 'email')} pending: nothing is sent; run duepost worker"
    return Health.WARNING, "none is running: nothing is sent; run duepost worker"


def tick(database: Database) -> Looked:
    """Whether passes of the scheduler come, as `duepost trigger` asks for them. Only a worker can do one."""
    seconds = reports.last_pass(database)
    if seconds is not None and seconds <= PASS_TOLERANCE:
        return Health.OK, f"the last pass of the scheduler was {span(seconds)} ago"
    next_step = "run duepost trigger each minute, or duepost trigger --watch"
    if workers.present(database) == 0:
        next_step = "a pass needs a worker: run duepost worker"
    due = reports.due_count(database)
    waits = f", and {count(due, 'email')} due" if due else ""
    if seconds is None:
        return (Health.FAILED if due else Health.WARNING), f"no pass of the scheduler yet{waits}; {next_step}"
    return Health.FAILED, f"the last pass of the scheduler was {span(seconds)} ago{waits}; {next_step}"


def delivery(database: Database, *, is_disabled: bool = False) -> Looked:
    """Whether what is due is sent, what keeps it, and how late the oldest is.

    Args:
        database: where.
        is_disabled: this machine's settings say that nothing is to be sent.
    """
    found = [*_stopped(database), *_halted(database, is_disabled=is_disabled), *_hanging(database)]
    if not found and not is_disabled:
        found += _held_by_rates(database)
    late = reports.oldest_due(database) or 0.0
    if late > ON_TIME:
        due = reports.due_count(database)
        lateness = f"{count(due, 'email')} due, the oldest for {span(late)}; look with duepost list"
        found.append((Health.FAILED if late > OVERDUE and not is_disabled else Health.WARNING, lateness))
    return _together(found) or (Health.OK, "on time")


def _together(found: Sequence[Looked]) -> Looked | None:
    """Several lines as one, what is worse first; None where there is none."""
    if not found:
        return None
    ordered = sorted(found, key=lambda each: each[0] is not Health.FAILED)
    return ordered[0][0], "; ".join(words for _, words in ordered)


def _stopped(database: Database) -> Iterator[Looked]:
    """Routes that nothing leaves by: their circuit is open, or no worker serves them."""
    states = routes.states(database)
    for state in states:
        if state.circuit_open:
            yield Health.FAILED, circuit_words(state, states)
    for route in reports.unserved_routes(database):
        if route.name != DEFAULT_RELAY:
            yield Health.FAILED, _unserved_words(route)


def _halted(database: Database, *, is_disabled: bool) -> Iterator[Looked]:
    """What somebody has ordered to wait, and how it goes on. It fails once emails wait for it: it may be forgotten."""
    if is_disabled:
        yield Health.WARNING, "DUEPOST_DISABLED is set: nothing is sent"
        return
    held = reports.held_back(database) or 0.0
    health, waits = Health.WARNING, ""
    if held > HELD_BACK:
        health, waits = Health.FAILED, f"; what waits for that has been due for {span(held)}"
    if control.is_paused(database):
        yield health, f"paused {_pause(database)}{waits}: duepost resume goes on"
        return
    halted = [("kind", each) for each in operations.paused_kinds(database)]
    halted += [("route", each) for each in operations.stopped_routes(database)]
    if halted:
        named = ", ".join(f"{scope} {each.name} {_paused_since(each)}" for scope, each in halted[:NAMED])
        more = f" and {len(halted) - NAMED} more" if halted[NAMED:] else ""
        scope, first = halted[0]
        yield health, f"paused: {named}{more}{waits}; duepost resume --{scope} {first.name} goes on"


def _paused_since(stop: operations.Stop) -> str:
    return paused_words((datetime.now(UTC) - stop.at).total_seconds(), stop.by, stop.reason)


def _hanging(database: Database) -> Iterator[Looked]:
    """What has been in sending for longer than a relay takes."""
    number, seconds = reports.sending(database)
    if seconds > LONG_SENDING:
        said = (
            f"{number} in sending, the oldest for {span(seconds)}: the relay, or a worker, hangs; see the workers' "
            "log, duepost list --state sending"
        )
        yield (Health.FAILED if seconds > TOO_LONG_SENDING else Health.WARNING), said


def _held_by_rates(database: Database) -> Iterator[Looked]:
    """Rates that are too small for what is scheduled: what waits for them is late, and goes on being late."""
    for state in rates.states(database):
        late = state.late_seconds or 0.0
        if late > ON_TIME and (state.seconds is None or state.seconds > ON_TIME):
            health = Health.FAILED if late > OVERDUE else Health.WARNING
            yield health, f"{waiting_words(state)}; the first is {span(late)} late; {more_with(state)}"


def pace(database: Database) -> Looked:
    """What the relay has shown of how much it takes."""
    states = routes.states(database)
    facts = route_facts(states)
    learnt = [each for each in rates.states(database) if each.learnt is not None]
    facts += [
        f"{each.domain or each.route} has had too much of us ({each.learnt_because}): it gets "
        f"{pace_words(each.in_force or 0)} now, and more by and by; duepost rate list"
        for each in learnt
    ]
    if not facts:
        return Health.OK, "the relay has shown no limit" if len(states) == 1 else "the relays have shown no limit"
    is_slowed = bool(learnt) or any(state.paused_until or state.ahead_off_at for state in states)
    return (Health.WARNING if is_slowed else Health.OK), "; ".join(facts)


def emails(database: Database) -> Looked:
    """Whether emails fail, or wait for a person."""
    found = reports.troubles(database)
    bad = []
    if found.unknown:
        verb = "is" if found.unknown == 1 else "are"
        bad.append(
            f"{found.unknown} {verb} unknown and {'waits' if found.unknown == 1 else 'wait'} for a person, "
            f"for {span(found.unknown_seconds or 0)}: duepost show {found.unknown_id}, then duepost resolve "
            f"{found.unknown_id} sent, or resend, or drop"
        )
    if found.on_templates:
        bad.append(_on_templates(database, found.on_templates))
    if bad:
        return Health.FAILED, "; ".join(bad)
    retried = found.retrying
    if retried and found.most_attempts >= MANY_ATTEMPTS:
        most, since = found.most_attempts, span(found.retrying_seconds or 0)
        return Health.WARNING, f"{retried} retried, one {most} times, the oldest was due {since} ago: duepost list"
    return Health.OK, f"{retried} retried" if retried else "none fails, none waits for a person"


def expired(database: Database) -> Looked:
    """Whether items have expired lately: what came too late to be sent at all is in nobody's list of what is late."""
    number, newest = reports.expired_lately(database)
    if not number:
        return Health.OK, "nothing has expired within the last hour"
    said = (
        f"{count(number, 'item')} expired within the last hour, and nobody gets "
        f"{'it' if number == 1 else 'them'}: duepost list --outcome expired --since 1h, duepost why {newest}"
    )
    return (Health.FAILED if number > FEW_EXPIRED else Health.WARNING), said


def endpoints(database: Database, *, is_disabled: bool = False) -> Looked:
    """Whether endpoints take messages; `is_disabled`: this machine's settings say that nothing is to be sent."""
    states = scheduled_messages.endpoint_states(database, ON_TIME)
    failed = [_endpoint_words(state) for state in states if state.disabled_because or state.circuit_reason]
    if failed:
        return Health.FAILED, "; ".join(failed[:NAMED]) + (
            f"; and {len(failed) - NAMED} more" if failed[NAMED:] else ""
        )
    late = [state for state in states if state.late_seconds is not None]
    if late and not is_disabled and not control.is_paused(database):
        worst = max(late, key=lambda state: state.late_seconds or 0)
        asked = f", which asks for a pause of {span(worst.pause_seconds)} more" if worst.pause_seconds else ""
        lateness = span(worst.late_seconds or 0)
        said = f"messages to {worst.name}{asked}, are due for {lateness}: duepost list"
        return (Health.FAILED if (worst.late_seconds or 0) > OVERDUE and not asked else Health.WARNING), said
    return Health.OK, "none is disabled, none fails"


def _endpoint_words(state: EndpointState) -> str:
    waiting = f"; its messages wait, the oldest due for {span(state.late_seconds)}" if state.late_seconds else ""
    if state.disabled_because:
        return (
            f"{state.name} is disabled ({state.disabled_because}){waiting}: duepost endpoint enable {state.name}, or "
            f"duepost endpoint remove {state.name}"
        )
    when = "is due" if (state.probe_seconds or 0) <= 0 else f"in {span(state.probe_seconds or 0)}"
    return (
        f"the circuit of {state.name} is open ({state.circuit_reason}){waiting}: mend it, then duepost endpoint enable "
        f"{state.name}; the next probe {when}"
    )


def recipients(database: Database) -> Looked:
    """Whether duepost.recipient, which may be the team's own view, fails for somebody."""
    if not reports.has_recipients(database):
        return Health.FAILED, (
            "there is no duepost.recipient, and emails to users fail: make the view (docs/sql.md, Users), then "
            "duepost retry --state scheduled"
        )
    number = reports.troubles(database).on_recipients
    if not number:
        return Health.OK, "duepost.recipient fails for nobody"
    named, first = _named(reports.recipient_failures(database, NAMED + 1))
    verb = "fails" if number == 1 else "fail"
    return Health.FAILED, (
        f"{count(number, 'email')} {verb} on duepost.recipient ({named}): duepost show {first} has all of it; "
        f"mend the view, then duepost retry {first}"
    )


def bounces(database: Database) -> Looked:
    """Whether what came back in the last day is about us, or could not be read."""
    found = came_back.lately(database)
    about_us, unreadable = found.get("about_us", 0), found.get("unreadable", 0)
    if not about_us and not unreadable:
        return Health.OK, f"{count(sum(found.values()), 'email')} came back within a day" if found else "none came back"
    said = [f"{about_us} came back because of us"] if about_us else []
    said += [f"{unreadable} cannot be read"] if unreadable else []
    return Health.WARNING, f"within a day {', '.join(said)}: duepost bounces --list"


def webhooks(database: Database) -> Looked:
    """Whether calls of providers are taken: one that is refused tells nobody else of a bounce."""
    since = datetime.now(UTC) - WEBHOOKS_LATELY
    found = came_back.webhooks(database)
    refused = [each for each in found if each.refused_at is not None and each.refused_at > since]
    taken = {each.source for each in found if each.accepted_at is not None and each.accepted_at > since}
    if not refused:
        return Health.OK, f"calls of {', '.join(sorted(taken))} are taken" if taken else "none has been called lately"
    said = "; ".join(
        f"{'a call' if each.source in taken else 'each call'} of {each.source} was refused: {each.refused_because}"
        for each in refused
    )
    is_closed = any(each.source not in taken for each in refused)
    return (Health.FAILED if is_closed else Health.WARNING), f"{said}; see docs/webhooks.md"


def queue(database: Database) -> Looked:
    """Whether messages of the broker fail, or have failed for good."""
    waiting, in_hand = reports.queue_depth(database)
    depth = f"{waiting} waiting, {in_hand} in hand"
    if failing := reports.failing_messages(database):
        named = ", ".join(f"{failure} {number} times" for failure, number in list(failing.items())[:NAMED])
        return Health.FAILED, f"{depth}; actors fail and are tried again ({named}): see the workers' log"
    if dead := reports.dead_letters(database):
        return (
            Health.WARNING,
            f"{depth}, {count(dead, 'dead letter')}: duepost dead-letters, then duepost requeue MESSAGE",
        )
    return Health.OK, depth


def grants(database: Database) -> Looked:
    """Whether this very role may do what workers and operators do."""
    own = reports.own_rights(database)
    if not own.lacking:
        return Health.OK, f"{own.role} has all rights of a worker"
    remedy = f"GRANT duepost_worker TO {own.role}, or run duepost migrate as the schema's owner"
    return Health.FAILED, f"{server_checks.lacks(own)}: {remedy}"


def _unserved_words(route: reports.UnservedRoute) -> str:
    """That nothing leaves by a route, as no worker serves it; with the variable that one needs."""
    wanted = [f"of kind {kind}" for kind in route.kinds[:NAMED]]
    wanted += [f"{count(route.due, 'email')} due"] if route.due else []
    return (
        f"no worker serves the route {route.name} ({', '.join(wanted)}): start one with {variable_of(route.name)}, or "
        "set another route in duepost.kind, and in duepost.scheduled_email for what is pending"
    )


def _on_templates(database: Database, number: int) -> str:
    named, first = _named(reports.template_failures(database, NAMED + 1))
    verb = "fails" if number == 1 else "fail"
    what = f"{count(number, 'email')} {verb} on templates ({named})"
    return f"{what}: duepost list; mend the file, then duepost retry {first}"


def _named(failures: Sequence[reports.Failure]) -> tuple[str, int | str]:
    """The most frequent reasons, and an email that has the first of them."""
    named = "; ".join(each.reason for each in failures[:NAMED])
    return named + ("; and others" if failures[NAMED:] else ""), failures[0].email_id if failures else "ID"


def _pause(database: Database) -> str:
    pause = control.read_pause(database)
    if pause is None:
        return "until now"
    return paused_words(pause.seconds, pause.by, pause.reason)

"""What `duepost doctor` looks at while the database answers: does mail flow, and does anything wait for a person?

Each check returns its health and a line that says what happened and which command is next.
"""

from collections.abc import Sequence

from actors.settings import DEFAULT_RELAY, settings, variable_of
from duepost import operations
from duepost.commands.health import Health
from duepost.commands.read import paused_words
from duepost.commands.routes import circuit_words, route_facts
from duepost.commands.wording import count, span
from models import bounces as came_back
from models import control, reports, routes, scheduled_messages, unsubscribing, workers
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

#: Attempts from which on an email that is still retried is worth a look: it is about eight minutes old.
MANY_ATTEMPTS = 5

#: Failures, or rights, that are named; of the others only the number is.
NAMED = 3

Looked = tuple[Health, str]


def workers_alive(database: Database) -> Looked:
    """Whether anybody can send: counts only workers whose session lives."""
    present = workers.present(database)
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
    seconds, due = reports.last_pass(database), reports.due_count(database)
    next_step = "run duepost trigger each minute, or duepost trigger --watch"
    if workers.present(database) == 0:
        next_step = "a pass needs a worker: run duepost worker"
    waits = f", and {count(due, 'email')} due" if due else ""
    if seconds is None:
        return (Health.FAILED if due else Health.WARNING), f"no pass of the scheduler yet{waits}; {next_step}"
    if seconds > PASS_TOLERANCE:
        return Health.FAILED, f"the last pass of the scheduler was {span(seconds)} ago{waits}; {next_step}"
    return Health.OK, f"the last pass of the scheduler was {span(seconds)} ago"


def delivery(database: Database) -> Looked:
    """Whether what is due is sent, and how late the oldest is."""
    states = routes.states(database)
    stopped = [circuit_words(state, states) for state in states if state.circuit_open]
    stopped += [_unserved_words(route) for route in reports.unserved_routes(database) if route.name != DEFAULT_RELAY]
    if stopped:
        return Health.FAILED, "; ".join(stopped)
    halted = _halted(database)
    if halted is not None:
        return Health.WARNING, halted
    number, seconds = reports.sending(database)
    if seconds > LONG_SENDING:
        said = (
            f"{number} in sending, the oldest for {span(seconds)}: the relay, or a worker, hangs; see the workers' log"
        )
        return (
            Health.FAILED if seconds > TOO_LONG_SENDING else Health.WARNING
        ), f"{said}, duepost list --state sending"
    late, due = reports.oldest_due(database) or 0.0, reports.due_count(database)
    if late <= ON_TIME:
        return Health.OK, "on time"
    lateness = f"{count(due, 'email')} due, the oldest for {span(late)}; look with duepost list"
    return (Health.FAILED if late > OVERDUE else Health.WARNING), lateness


def _halted(database: Database) -> str | None:
    """What somebody has ordered to wait, and how it goes on; None where nothing is."""
    if settings().disabled:
        return "DUEPOST_DISABLED is set: nothing is sent"
    if control.is_paused(database):
        return f"paused {_pause(database)}: duepost resume goes on"
    halted = [f"kind {each.name}" for each in operations.paused_kinds(database)]
    halted += [f"route {each.name}" for each in operations.stopped_routes(database)]
    if not halted:
        return None
    return f"paused: {', '.join(halted[:NAMED])}; duepost resume --{halted[0]} goes on"


def pace(database: Database) -> Looked:
    """What the relay has shown of how much it takes."""
    states = routes.states(database)
    facts = route_facts(states)
    if not facts:
        return Health.OK, "the relay has shown no limit" if len(states) == 1 else "the relays have shown no limit"
    is_slowed = any(state.paused_until or state.ahead_off_at for state in states)
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


def endpoints(database: Database) -> Looked:
    """Whether endpoints take messages."""
    states = scheduled_messages.endpoint_states(database, ON_TIME)
    failed = [_endpoint_words(state) for state in states if state.disabled_because or state.circuit_reason]
    if failed:
        return Health.FAILED, "; ".join(failed[:NAMED]) + (
            f"; and {len(failed) - NAMED} more" if failed[NAMED:] else ""
        )
    late = [state for state in states if state.late_seconds is not None]
    if late and not settings().disabled and not control.is_paused(database):
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


def links(database: Database) -> Looked:
    """Whether emails of kinds that recipients can unsubscribe from have their link."""
    kinds = unsubscribing.unsubscribable(database)
    if not kinds:
        return Health.OK, "no kind has links to unsubscribe"
    named = ", ".join(kinds[:NAMED]) + ("" if len(kinds) <= NAMED else f" and {len(kinds) - NAMED} more")
    if settings().public_url is None:
        return Health.FAILED, (
            f"recipients can unsubscribe from {named}, and DUEPOST_PUBLIC_URL is not set: these emails wait; set it "
            "for workers and for duepost web --public-listen"
        )
    return Health.OK, f"of {named} at {settings().public_url}"


def bounces(database: Database) -> Looked:
    """Whether what came back in the last day is about us, or could not be read."""
    found = came_back.lately(database)
    about_us, unreadable = found.get("about_us", 0), found.get("unreadable", 0)
    if not about_us and not unreadable:
        return Health.OK, f"{count(sum(found.values()), 'email')} came back within a day" if found else "none came back"
    said = [f"{about_us} came back because of us"] if about_us else []
    said += [f"{unreadable} cannot be read"] if unreadable else []
    return Health.WARNING, f"within a day {', '.join(said)}: duepost bounces --list"


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
    return Health.FAILED, f"{lacks(own)}: {remedy}"


def roles(database: Database) -> Looked:
    """Whether the roles that people grant are there, and may do what they are for."""
    known = reports.rights(database)
    missing = [each.role for each in known if not each.exists]
    unable = [lacks(each) for each in known if each.lacking]
    grant = "run duepost migrate as the schema's owner, which grants their rights"
    if unable:
        return Health.FAILED, f"{'; '.join(unable)}: {grant}"
    if missing:
        made = "; ".join(f"CREATE ROLE {name} NOLOGIN" for name in missing)
        return Health.WARNING, f"{', '.join(missing)}: not there; an administrator runs {made}; then {grant}"
    return Health.OK, ", ".join(each.role for each in known)


def lacks(known: reports.Rights) -> str:
    """What a role lacks, in words."""
    named, more = known.lacking[:NAMED], known.lacking[NAMED:]
    return f"{known.role} lacks {', '.join(named)}" + (f" and {len(more)} more" if more else "")


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

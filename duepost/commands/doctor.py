"""`duepost doctor`: is everything as it should be?"""

import socket
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

import psycopg2
import typer

from actors.content.templates import Templates
from actors.delivery.journal import trouble_with
from actors.liveness.time_limit import TimeLimit
from actors.settings import DEFAULT_RELAY, BadSettings, settings, variable_of
from duepost import stack
from duepost.commands import checks, findings, relay_check, server_checks
from duepost.commands.context import UP, Json, client_database, session_database, uses_up
from duepost.commands.health import STYLES, Finding, Health, checked
from duepost.commands.output import print_json, say_coloured
from duepost.commands.render import trial
from duepost.extras import needs
from models import control, reports, unsubscribing, workers
from models.database import preconditions
from models.database.connections import Database
from models.database.migrate import check_schema
from models.errors import DatabaseUnreachable, DuepostError

#: Seconds by which the clocks may differ.
CLOCK_TOLERANCE = 5.0

#: Characters of the longest word for a health.
WIDTH = 8


def doctor(
    as_json: Json = False,
    relay: Annotated[bool, typer.Option(help="Also ask the relay whether it takes an email; none is sent.")] = True,
    worker: Annotated[
        bool,
        typer.Option("--worker", help="Only this host's workers: is there progress? A liveness probe."),
    ] = False,
) -> None:
    """Checks database, session, schema, clock, roles, owner, locks, snapshots, retention, grants, workers and tick.

    And delivery, pace, emails, expired, endpoints, recipients, bounces, webhooks, queue, links, broker, sender, DKIM,
    relay, templates, attachments, journal, Sentry. A line each, with what to run next. Exit status 1 if any fails. With
    --worker a database that is away is no failure: workers wait for it.

    Examples: duepost doctor --json; duepost doctor --worker
    """
    found = [checked("worker", _progress)] if worker else list(examine(relay=relay))
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        for finding in found:
            line = f"{finding.check}: {finding.detail}"
            say_coloured(finding.health, STYLES[finding.health], line, width=WIDTH)
    if any(finding.health is Health.FAILED for finding in found):
        raise typer.Exit(1)


def examine(*, relay: bool) -> Iterator[Finding]:
    """All checks; those that need the database are left out where there is none."""
    database, reachable = _database()
    yield reachable
    migrated = None
    if database is not None:
        yield checked("session", _session)
        schema = checked("schema", lambda: _schema(database))
        yield schema
        yield checked("clock", lambda: _clock(database))
        if schema.health is Health.OK:
            migrated = database
            yield from findings.of_server(database)
            yield checked("retention", lambda: _retention(database))
            yield checked("grants", lambda: checks.grants(database))
            yield from findings.of_mail(database, is_disabled=settings().disabled)
            yield checked("links", lambda: _links(database))
        else:
            yield checked("snapshots", lambda: server_checks.snapshots(database))
    if settings().broker_url is not None:
        yield checked("broker", lambda: _broker(migrated))
    yield checked("sender", lambda: _sender(migrated))
    yield checked("dkim", _dkim)
    if relay:
        for name in settings().relays:
            check = "relay" if name == DEFAULT_RELAY else f"relay {name}"
            yield checked(check, partial(_relay, name))
    yield checked("templates", lambda: _templates(database))
    if settings().attachment_roots:
        yield checked("attachments", _attachments)
    yield _journal()
    yield _sentry()


def _database() -> tuple[Database | None, Finding]:
    try:
        database = client_database()
        server = reports.server(database)
    except BadSettings:
        raise
    except DuepostError as error:
        return None, Finding("database", Health.FAILED, str(error))
    try:
        preconditions.check_writable(database)
    except DuepostError as error:
        return database, Finding("database", Health.FAILED, str(error))
    return database, Finding("database", Health.OK, f"PostgreSQL {server.version}")


def _session() -> tuple[Health, str]:
    session_database().connect().close()
    past = "past the pooler, by DUEPOST_SESSION_DATABASE_URL" if settings().session_url else "PostgreSQL's own"
    return Health.OK, past


def _progress() -> tuple[Health, str]:
    host = socket.gethostname()
    try:
        found = workers.of_host(client_database(), host)
    except DatabaseUnreachable as error:
        return Health.WARNING, f"the database is away, and workers wait for it: {error}"
    wedged = [pid for pid, seconds in found.items() if seconds > checks.PROGRESS_TOLERANCE]
    if wedged:
        return Health.FAILED, f"no progress for {max(found.values()):.0f} s: process {', '.join(map(str, wedged))}"
    if not found:
        return Health.FAILED, f"no worker process on {host}"
    return Health.OK, f"{len(found)} on {host}, all making progress"


def _schema(database: Database) -> tuple[Health, str]:
    check_schema(database)
    return Health.OK, "up to date"


def _clock(database: Database) -> tuple[Health, str]:
    before = time.time()
    server = reports.server(database).clock
    after = time.time()
    off = max(before - server, server - after, 0.0)
    detail = f"{off:.1f} s apart from the database's"
    return (Health.OK if off <= CLOCK_TOLERANCE else Health.FAILED), detail


def _retention(database: Database) -> tuple[Health, str]:
    """Whether the ledger is kept for as long as the settings say."""
    asked, (days, is_owner) = settings().retention_days, control.keeping(database)
    if (reason := control.why_kept_longer(asked, days, is_owner=is_owner)) is not None:
        return Health.WARNING, reason
    return Health.OK, f"the ledger is kept {'for good' if asked is None else f'for {asked} days'}"


def _links(database: Database) -> tuple[Health, str]:
    """Whether emails of kinds that recipients can unsubscribe from have their link."""
    kinds = unsubscribing.unsubscribable(database)
    if not kinds:
        return Health.OK, "no kind has links to unsubscribe"
    named = ", ".join(kinds[: checks.NAMED]) + (
        "" if len(kinds) <= checks.NAMED else f" and {len(kinds) - checks.NAMED} more"
    )
    if settings().public_url is None:
        return Health.FAILED, (
            f"recipients can unsubscribe from {named}, and DUEPOST_PUBLIC_URL is not set: these emails wait; set it "
            "for workers and for duepost web --public-listen"
        )
    return Health.OK, f"of {named} at {settings().public_url}"


def _broker(database: Database | None) -> tuple[Health, str]:
    """Whether RabbitMQ carries messages, where it is to."""
    # An extra: who does without it need not have it.
    with needs("rabbitmq", "DUEPOST_BROKER_URL"):
        from duepost.commands import broker_check  # noqa: PLC0415

    return broker_check.examine(database)


def _sender(database: Database | None) -> tuple[Health, str]:
    if settings().sender is None and uses_up():
        return Health.OK, "the one of `duepost up`; DUEPOST_FROM is needed with a real relay"
    address = settings().need_sender().address
    if database is None or reports.message_id_domain(database) is not None:
        return Health.OK, address
    return Health.OK, f"{address}; until a worker has started once, Message-IDs end in @duepost.invalid"


def _dkim() -> tuple[Health, str]:
    """Whether emails are signed, and with keys that are of use. What is in the DNS is not looked at."""
    signer = settings().signer()
    if signer is None:
        return Health.OK, "off: DUEPOST_DKIM_KEYS is not set, the relay may sign"
    keys = signer.keys.check()
    named = "; ".join(
        f"{domain} by {', '.join(f'{key.selector} ({key.algorithm}, {key.bits} bits)' for key in its)}"
        for domain, its in list(keys.items())[: checks.NAMED]
    )
    more = f"; and {len(keys) - checks.NAMED} domains more" if len(keys) > checks.NAMED else ""
    sender = settings().sender and settings().need_sender().address.rpartition("@")[2]
    if sender and sender not in keys:
        what = "wait, as DUEPOST_DKIM_REQUIRED is set" if signer.is_required else "go unsigned"
        health = Health.FAILED if signer.is_required else Health.WARNING
        return health, f"emails from {sender}, the domain of DUEPOST_FROM, {what}: it has no key; {named}{more}"
    return Health.OK, f"{named}{more}; duepost dkim has the DNS records"


def _relay(name: str) -> tuple[Health, str]:
    if uses_up():
        return _relay_of_up()
    sender = settings().bounce_address or (settings().need_sender().address if settings().sender else None)
    return relay_check.examine(settings().need_relay(name), sender, variable_of(name))


def _relay_of_up() -> tuple[Health, str]:
    running = stack.read_relay(UP)
    if running is None:
        return Health.WARNING, "that of a `duepost up` of an older release: real mail may be sent"
    if running.is_catcher:
        return Health.OK, "the mail catcher of `duepost up`: nothing leaves this machine"
    return (
        Health.OK,
        f"{running.url} of `duepost up`: real mail is sent; it is tried where DUEPOST_SMTP_URL is set here, too",
    )


def _templates(database: Database | None) -> tuple[Health, str]:
    folder = settings().templates
    if not folder.is_dir():
        wanted = database is not None and _wanted(database)
        return (Health.FAILED if wanted else Health.WARNING), f"{folder}: there is no such folder"
    preparer = settings().html_preparer()
    templates = Templates(folder, TimeLimit(), trim_blocks=settings().trim_blocks, preparer=preparer)
    problems = templates.check() or (_unrendered(templates, database) if database is not None else [])
    if problems:
        return Health.FAILED, "; ".join(problems)
    return Health.OK, f"{folder}{'' if preparer is None else '; HTML is prepared for mail clients'}"


def _attachments() -> tuple[Health, str]:
    """Whether this host sees the folders that files are read in; no store is asked."""
    settings().file_reader()
    roots = settings().attachment_roots or ()
    for root in roots:
        if root.startswith("file://") and not Path(unquote(root.removeprefix("file://"))).is_dir():
            return Health.FAILED, f"DUEPOST_ATTACHMENT_ROOTS: {root}: there is no such folder"
    return Health.OK, " ".join(roots)


def _unrendered(templates: Templates, database: Database) -> list[str]:
    """What the newest emails of each kind will fail of: names of variables, never values."""
    try:
        recent = reports.recent_contexts(database)
    except psycopg2.Error:
        return []
    problems = [(each.kind, problem) for each in recent if (problem := trial(templates, each)) is not None]
    return [f"{kind}: {problem}; duepost render tries it" for kind, problem in problems]


def _wanted(database: Database) -> bool:
    try:
        return reports.templates_wanted(database)
    except psycopg2.Error:
        return False


def _journal() -> Finding:
    """Whether workers keep a journal: those of a `duepost up` here, or those with these settings, run by this user."""
    folder, whose = settings().state_folder, "workers that this user runs with these settings"
    if uses_up() and settings().state_dir is None:
        folder, whose = (UP / stack.STATE).resolve(), "the workers of `duepost up`"
    if folder is None:
        reason = "off"
    elif (trouble := trouble_with(folder)) is not None:
        reason = trouble
    else:
        return Finding("journal", Health.OK, f"kept in {folder} by {whose}")
    advice = "after a crash an email for each connection may come twice; DUEPOST_STATE_DIR names a folder"
    return Finding("journal", Health.WARNING, f"{reason}: {advice}")


def _sentry() -> Finding:
    if settings().sentry_dsn is None:
        return Finding("sentry", Health.WARNING, "off: SENTRY_DSN is not set, failures are only logged")
    return Finding("sentry", Health.OK, f"on, environment {settings().sentry_environment}")

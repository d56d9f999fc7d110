"""What the database tells of how it stands: what `duepost doctor` and the console's first page have in common.

What only a machine can tell of itself is the doctor's alone: settings, sender, relay, templates, journal, Sentry.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from duepost.commands import checks, server_checks
from duepost.commands.health import Finding, Health, Looked, checked
from models.database.connections import Database


def unwell(found: Iterable[Finding]) -> list[Finding]:
    """Those that are not well: first what has failed, in the order of the checks."""
    return sorted(
        (each for each in found if each.health is not Health.OK), key=lambda each: each.health is not Health.FAILED
    )


def of_server(database: Database) -> Iterator[Finding]:
    """Whether the database is as it should be, a finding each: it changes seldom, and to look costs more."""
    looks: Mapping[str, Callable[[Database], Looked]] = {
        "roles": server_checks.roles,
        "owner": server_checks.owner,
        "locks": server_checks.locks,
        "snapshots": server_checks.snapshots,
    }
    for check, look in looks.items():
        yield checked(check, partial(look, database))


def of_mail(database: Database, *, is_disabled: bool = False) -> Iterator[Finding]:
    """Whether mail flows, and whether something waits for a person, a finding each.

    Args:
        database: where; a member of duepost_viewer may look.
        is_disabled: this machine's settings say that nothing is to be sent: then that is why something is late.
    """
    looks: Mapping[str, Callable[[], Looked]] = {
        "workers": lambda: checks.workers_alive(database),
        "tick": lambda: checks.tick(database),
        "delivery": lambda: checks.delivery(database, is_disabled=is_disabled),
        "pace": lambda: checks.pace(database),
        "emails": lambda: checks.emails(database),
        "expired": lambda: checks.expired(database),
        "endpoints": lambda: checks.endpoints(database, is_disabled=is_disabled),
        "recipients": lambda: checks.recipients(database),
        "bounces": lambda: checks.bounces(database),
        "webhooks": lambda: checks.webhooks(database),
        "queue": lambda: checks.queue(database),
    }
    for check, look in looks.items():
        yield checked(check, look)

"""What the database tells of itself: roles, owner, locks, and what holds back its vacuum.

For `duepost doctor` and the console's first page alike, as checks.py is.
"""

from duepost.commands.health import Health, Looked
from models import reports
from models.database import preconditions
from models.database.connections import Database

#: Seconds for which a transaction may keep done rows from being removed.
OLD_SNAPSHOT = 60.0

#: Seconds for which somebody may keep others waiting for a table.
LONG_WAIT = 5.0

#: Rights that are named; of the others only the number is.
NAMED = 3


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


def owner(database: Database) -> Looked:
    """Whether all in the schemas is their owner's, and closed to others."""
    found = preconditions.trust_findings(database)
    return (Health.FAILED, "; ".join(found)) if found else (Health.OK, "all in the schemas is their owner's")


def locks(database: Database) -> Looked:
    """Whether a session keeps others waiting for a table."""
    found = preconditions.blockers(database, LONG_WAIT)
    if found:
        return Health.WARNING, f"{'; '.join(found)}: SELECT pg_terminate_backend(pid) ends it"
    return Health.OK, "nobody waits for a table"


def snapshots(database: Database) -> Looked:
    """Whether a transaction or a slot keeps done rows from being removed."""
    held = [
        holder if seconds is None else f"{holder} for {seconds:.0f} s"
        for holder, seconds in reports.horizons(database)
        if seconds is None or seconds > OLD_SNAPSHOT
    ]
    if held:
        return Health.WARNING, (
            "done rows cannot be removed, and pile up; end what holds them (SELECT pg_terminate_backend(pid)): "
            f"{'; '.join(held)}"
        )
    if not reports.sees_all_sessions(database):
        return Health.OK, "none of our own is old; those of others are seen by members of pg_read_all_stats"
    return Health.OK, f"none is older than {OLD_SNAPSHOT:.0f} s"

"""What the relay has shown of itself to the workers, in sentences."""

from collections.abc import Iterator
from datetime import datetime

from models import routes
from models.database.connections import Database
from models.routes import Shown


def route_facts(database: Database) -> list[str]:
    """What is known of each relay, a sentence each; empty while none has shown a limit."""
    return [sentence for shown in routes.known(database) for sentence in _sentences(shown)]


def _sentences(shown: Shown) -> Iterator[str]:
    if shown.paused_until is not None:
        yield (
            f"{shown.route} has had too much of us ({shown.paused_because}): "
            f"nothing is sent before {_moment(shown.paused_until)}"
        )
    if shown.connections is not None:
        plural = "" if shown.connections == 1 else "s"
        yield (
            f"{shown.route} allows {shown.connections} connection{plural} "
            f"({shown.connections_because}, learnt at {_moment(shown.connections_at)})"
        )
    if shown.ahead_off_at is not None:
        yield (
            f"{shown.route}: pipelining ahead is off since {_moment(shown.ahead_off_at)} ({shown.ahead_off_because}); "
            "take ?pipelining=ahead out of DUEPOST_SMTP_URL"
        )


def _moment(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d %H:%M:%S} UTC" if when is not None else "?"

"""What the actors of this process share. Building it does no I/O."""

import threading
import time
from datetime import timedelta

from dramatiq.middleware import Retries

from actors import reporting
from actors.broker import PostgresBroker
from actors.privacy import PrivateRetries
from actors.rendering import Templates
from actors.route import SharedRoute
from actors.settings import settings
from actors.smtp.connection import Connection
from actors.smtp.login import Logins
from actors.upkeep import Patience
from actors.version import RELEASE
from models.database import Database, Limits

#: Seconds that dialogues wait, before their content, for the worker's own session to be proven.
PROOF_PATIENCE = 10.0

_url = settings().database_url
# Sentry patches Dramatiq's Broker, so it comes before the broker.
_dsn = settings().sentry_dsn
reporting.start(
    _dsn.get_secret_value() if _dsn else None,
    environment=settings().sentry_environment,
    release=RELEASE,
)

database = Database(
    _url.get_secret_value() if _url else "",
    application_name="duepost worker",
    limits=Limits(statement=settings().statement_timeout),
    most=settings().database_connections,
)
broker = PostgresBroker(
    database,
    # Of Dramatiq's own no more than our actors have a use for: each is asked about every message. A limit of time would
    # cut dialogues short, as ten minutes after the dot are legal (RFC 5321 section 4.5.3.2.6); Prometheus opens a port.
    [Retries(), PrivateRetries()],
    session_url=settings().session_url,
    patience=Patience(idle=settings().stall_timeout, busy=settings().busy_timeout),
    dead_letters_kept=timedelta(days=settings().dead_letter_days),
)
templates = Templates(settings().templates, settings().render_timeout)


class Proof:
    """Of the worker's own session, right before content: waited for once, however many emails come to that point."""

    def __init__(self) -> None:
        self._until: float | None = None
        self._lock = threading.Lock()

    def is_there(self) -> bool:
        """Whether there is one. Never waits."""
        return broker.attendance.is_proven()

    def __call__(self) -> bool:
        """Waits for one; says whether it has come."""
        now = time.monotonic()
        with self._lock:
            if self._until is None or now > self._until + PROOF_PATIENCE:
                self._until = now + PROOF_PATIENCE
            patience = max(0.0, self._until - now)
        if not broker.attendance.wait_until_proven(patience):
            return False
        with self._lock:
            self._until = None
        return True


proof = Proof()


relay_route = SharedRoute(database, lambda: settings().need_relay().route, lambda: broker.attendance.worker_id)

relay_logins = Logins()


def relay_connection() -> Connection:
    """A connection to the relay, which is made once it is needed."""
    return Connection(
        settings().need_relay(),
        settings().timeouts,
        may_send=proof.is_there,
        may_send_soon=proof,
        route=relay_route,
        logins=relay_logins,
    )

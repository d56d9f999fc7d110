"""The broker for one's own Dramatiq actors on PostgreSQL.

import dramatiq
from duepost.broker import PostgresBroker

dramatiq.set_broker(PostgresBroker("postgresql://user@host/database"))

Importing it has no effects: no setting is read, nothing is reported, and Dramatiq's global broker stays as it is. None
of the email application is loaded, and `actors` and `models` stay the host's own.
"""

from duepost.app.actors.liveness.maintenance import Patience
from duepost.app.actors.queue.broker import BrokerUnreachable, ClaimLost, MessageRefused, PostgresBroker
from duepost.app.actors.queue.results import PostgresResults
from duepost.app.models.database.connections import Database, Limits
from duepost.app.models.errors import DatabaseUnreachable, NestedTransaction, SchemaMismatch

__all__ = [
    "BrokerUnreachable",
    "ClaimLost",
    "Database",
    "DatabaseUnreachable",
    "Limits",
    "MessageRefused",
    "NestedTransaction",
    "Patience",
    "PostgresBroker",
    "PostgresResults",
    "SchemaMismatch",
]

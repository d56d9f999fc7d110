"""Where Dramatiq keeps what actors return: a table beside the messages. Knows nothing of email."""

import threading

from dramatiq.encoder import Encoder
from dramatiq.middleware import CurrentMessage
from dramatiq.results.backend import Missing, ResultBackend

from actors.queue.waiting import wait_for_database
from models import messages
from models.database.connections import Database


class PostgresResults(ResultBackend):
    """A backend for Dramatiq's `Results` middleware.

    Waiting for a result polls, with Dramatiq's growing pauses. Results are deleted some minutes after they expire.

    Args:
        database: where the results are.
        stopping: set when the worker stops: then a database that is away is waited for no longer.
        namespace: keeps the results of two applications apart.
        encoder: how they are stored; Dramatiq's own by default.
    """

    def __init__(
        self,
        database: Database,
        *,
        stopping: threading.Event | None = None,
        namespace: str = "dramatiq-results",
        encoder: Encoder | None = None,
    ) -> None:
        super().__init__(namespace=namespace, encoder=encoder)
        self._database = database
        self._stopping = stopping or threading.Event()

    def _get(self, message_key: str) -> object:
        found = messages.result(self._database, message_key)
        return Missing if found is None else self.encoder.decode(found)

    def _store(self, message_key: str, result: dict[str, object], ttl: int) -> None:
        data = self.encoder.encode(result)

        def store() -> None:
            messages.store_result(self._database, message_key, data, ttl / 1000)

        if CurrentMessage.get_current_message() is None:
            store()
        else:
            # The work is done: its result is not to be lost because the database is away just now.
            wait_for_database(store, self._stopping)

"""Waiting for a database that is away."""

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from dramatiq.errors import ConnectionError as BrokerUnreachable

from models.errors import DatabaseUnreachable

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two tries while the database is away.
AWAY_PAUSE = 0.5


def wait_for_database(action: Callable[[], T], stopping: threading.Event) -> T:
    """Runs `action` until the database is there to take it.

    Raises:
        BrokerUnreachable: the worker is stopping, and the database is still away.
    """
    while True:
        try:
            return action()
        except DatabaseUnreachable as error:
            logger.warning("The database is away (%s); waiting for it.", error.reason)
            if stopping.wait(AWAY_PAUSE):
                raise BrokerUnreachable(error.reason) from error


__all__ = ["AWAY_PAUSE", "BrokerUnreachable", "wait_for_database"]

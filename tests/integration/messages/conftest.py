"""A database with an endpoint of each format."""

from collections.abc import Callable

import pytest

from tests.integration.messages.support import ENDPOINTS
from tests.postgres import Connection, run


@pytest.fixture
def application(application: Connection) -> Connection:
    """An application's open transaction, with an endpoint of each format, on every PostgreSQL at hand."""
    run(application, ENDPOINTS)
    return application


@pytest.fixture
def sessions(connect: Callable[[], Connection]) -> Callable[[], Connection]:
    """Makes sessions of a database that has the endpoints; their transactions are the test's."""
    first = connect()
    run(first, ENDPOINTS)
    first.commit()
    return connect

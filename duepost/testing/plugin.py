"""The pytest plugin: no set-up, and a database of its own for each test.

It is loaded wherever pytest runs, so it imports nothing before a fixture is asked for.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from duepost.testing import Kit, Refusal, Workers
    from duepost.testing.databases import Databases

#: Where tests have their databases, if not on an embedded server: its role may create databases.
VARIABLE = "DUEPOST_TEST_DATABASE_URL"


@pytest.fixture(scope="session")
def duepost_databases() -> "Iterator[Databases]":
    """Databases for tests: on the server of DUEPOST_TEST_DATABASE_URL, or on an embedded one of this session."""
    from duepost.testing.databases import Databases, embedded  # noqa: PLC0415

    with ExitStack() as stack:
        url = os.environ.get(VARIABLE)
        if not url:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="duepost-testing-"))
            # As root the server runs as another user, who has to reach its data.
            Path(folder).chmod(0o711)
            url = stack.enter_context(embedded(Path(folder)))
        databases = Databases(url)
        stack.callback(databases.close)
        yield databases


@pytest.fixture
def duepost_database_url(duepost_databases: "Databases") -> Iterator[str]:
    """The URL of a fresh database with Duepost's schema, dropped after the test."""
    with duepost_databases.fresh() as url:
        yield url


@pytest.fixture
def duepost_kit(duepost_database_url: str) -> "Iterator[Kit]":
    """A `Kit` on the fresh database, in a connection of its own that commits each statement."""
    import psycopg2  # noqa: PLC0415

    from duepost.testing import Kit  # noqa: PLC0415

    connection = psycopg2.connect(duepost_database_url)
    connection.autocommit = True
    try:
        yield Kit(connection.cursor())
    finally:
        connection.close()


@pytest.fixture
def duepost_workers(duepost_database_url: str) -> "Iterator[Callable[..., Workers]]":
    """Starts real workers on the fresh database: call it with the relay's `Refusal`s and the options of `Workers`."""
    from duepost.testing import Workers  # noqa: PLC0415

    with ExitStack() as stack:

        def start(*refusals: "Refusal", **options: object) -> "Workers":
            return stack.enter_context(
                Workers(duepost_database_url, refusals=refusals, **options)  # type: ignore[arg-type]
            )

        yield start

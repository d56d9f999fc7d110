"""Databases for tests: a template that is migrated once, and a clone of it for each test."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from duepost.extras import needs
from duepost.schema import install

#: How the names of databases begin that tests make.
PREFIX = "duepost_test_"


class Databases:
    """The databases of a session of tests on one server.

    Args:
        url: a libpq URL on that server, of a role that may create databases.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._template: str | None = None

    @contextmanager
    def fresh(self) -> Iterator[str]:
        """A database with Duepost's schema and nothing in it; gives its URL, and drops it at the end."""
        name = _fresh_name()
        self._execute(f"CREATE DATABASE {name} TEMPLATE {self.template}")
        try:
            yield self.url_of(name)
        finally:
            self._execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @property
    def template(self) -> str:
        """The name of the template, made when it is first asked for."""
        if self._template is None:
            name = _fresh_name()
            self._execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'")
            self._template = name
            install(self.url_of(name), extra="worker")
        return self._template

    def close(self) -> None:
        """Drops the template."""
        if self._template is not None:
            self._execute(f"DROP DATABASE IF EXISTS {self._template} WITH (FORCE)")
            self._template = None

    def url_of(self, name: str) -> str:
        """The URL of another database of this server."""
        parts = urlsplit(self._url)
        # With no host before the path, urlunsplit would leave out the slashes.
        return urlunsplit(parts._replace(path=f"/{name}"))

    def _execute(self, statement: str) -> None:
        with needs("testing", "a database for tests"):
            import psycopg2  # noqa: PLC0415 - a session without such tests needs none
        connection = psycopg2.connect(self._url)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


@contextmanager
def embedded(folder: Path) -> Iterator[str]:
    """A PostgreSQL server of a session of tests; gives its URL.

    Raises:
        MissingExtra: the embedded PostgreSQL is not installed.
    """
    with needs("testing", "the embedded PostgreSQL of tests"):
        from duepost.embedded import EmbeddedPostgres  # noqa: PLC0415 - heavy
    server = EmbeddedPostgres(folder / "postgres")
    try:
        yield server.start()
    finally:
        server.stop()


def _fresh_name() -> str:
    return f"{PREFIX}{uuid.uuid4().hex[:12]}"

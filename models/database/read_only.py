"""A way to the database for those who may look, and change nothing."""

from collections.abc import Mapping

from models.database.connections import Connection, Cursor, Database, Limits, Row
from models.database.deadlines import Deadlines
from models.database.statements import statements

SQL = statements(__file__)

#: The role that may only read.
ROLE = "duepost_viewer"

#: What goes before each transaction's first statement: the role has no right to write, whatever the transaction allows.
OPENING = f"SET LOCAL transaction_read_only = on; SET LOCAL ROLE {ROLE}; "

#: The same for a login that has no right to write itself.
OWN_LOGIN = "SET LOCAL transaction_read_only = on; "


class ReadOnlyDatabase(Database):
    """Each transaction of it can only read.

    Args:
        url: a libpq URL or connection string, of a login that may become `duepost_viewer`, or is a member of it alone.
        own_login: the login has no other rights: it stays what it is.
        application_name: what `pg_stat_activity` shows.
        limits: how long things may take.
        variable: the setting that the URL is from, for errors.
        most: how many connections at the most.
        deadlines: what hangs up on a server that does not answer; its own without it.
    """

    def __init__(
        self,
        url: str,
        *,
        own_login: bool = False,
        application_name: str = "duepost",
        limits: Limits | None = None,
        variable: str = "DUEPOST_DATABASE_URL",
        most: int | None = None,
        deadlines: Deadlines | None = None,
    ) -> None:
        super().__init__(
            url, application_name=application_name, limits=limits, variable=variable, most=most, deadlines=deadlines
        )
        self._reading = OWN_LOGIN if own_login else OPENING

    def may_write(self) -> bool:
        """Whether the role that it reads with has a right to change something."""
        return self.execute(SQL["may_write"]) == [(True,)]

    def _cursor(self, connection: Connection, limits: Limits) -> Cursor:
        cursor = super()._cursor(connection, limits)
        cursor.opening += self._reading
        return cursor

    def call(self, statement: str, parameters: Mapping[str, object]) -> list[Row]:
        """Asks in a transaction that can only read: here, too.

        Returns:
            its rows.
        """
        return self.execute(statement, parameters)

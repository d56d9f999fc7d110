"""What can go wrong that a caller may want to tell apart."""


class DuepostError(Exception):
    """The root of Duepost's own errors: the message says what, where, and what would be right."""


class DatabaseUnreachable(DuepostError):
    """No connection to PostgreSQL could be made."""

    @property
    def reason(self) -> str:
        """The type of what the driver said: its text may hold values of a row."""
        return type(self.__cause__ or self).__name__


class PooledSession(DatabaseUnreachable):
    """A session that has to last was given out by a pooler, which may give it to others."""


class NestedTransaction(DuepostError):
    """A transaction was opened inside another of the same thread or asyncio task."""


class SchemaMismatch(DuepostError):
    """The database's schema is not the one this code was written for."""


class ReleaseTooOld(SchemaMismatch):
    """The database has been upgraded by a later release, and this one can no longer work there."""


class UnfitDatabase(DuepostError):
    """The server or the database is such that Duepost cannot work there."""


class NotPermitted(DuepostError):
    """The database role lacks a membership."""


class MigrationRefused(DuepostError):
    """A migration cannot be applied as it stands."""

"""Duepost's schema, for those who have the client alone and a database of their own: Django, and tests."""

from duepost.extras import needs


def install(url: str, *, extra: str) -> None:
    """Makes the schema in a database, or brings it up to date, as `duepost migrate` does; commits.

    Args:
        url: a libpq URL, of a role that may own the schema.
        extra: what brings the workers' packages, for the error.

    Raises:
        MissingExtra: they are not installed.
    """
    with needs(extra, "Duepost's schema"):
        import duepost.app  # noqa: F401, PLC0415 - finds the workers' modules, whatever the host's are called
        from duepost.app.actors.queue.schema import queue_schema  # noqa: PLC0415
        from duepost.app.models.database.connections import Database  # noqa: PLC0415
        from duepost.app.models.database.deadlines import Deadlines  # noqa: PLC0415
        from duepost.app.models.database.migrate import migrate  # noqa: PLC0415
    database = Database(url, application_name="duepost migrate", deadlines=Deadlines())
    try:
        for _ in migrate(database, queue_schema=queue_schema()):
            pass
    finally:
        database.close()

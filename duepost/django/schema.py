"""Duepost's schema in the database of a Django project."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote, urlencode

from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections

from duepost import schema

#: Options of a database that libpq has too.
_LIBPQ = frozenset(
    {
        "application_name", "channel_binding", "connect_timeout", "gssencmode", "options", "passfile", "service",
        "sslcert", "sslcrl", "sslkey", "sslmode", "sslpassword", "sslrootcert", "target_session_attrs",
    }
)  # fmt: skip


def alias() -> str:
    """Which of the project's databases Duepost is in: the setting DUEPOST_DATABASE, or the default one."""
    return str(getattr(settings, "DUEPOST_DATABASE", DEFAULT_DB_ALIAS))


def need_postgres(using: str) -> None:
    """Returns if a database is PostgreSQL.

    Raises:
        ImproperlyConfigured: it is not.
    """
    vendor = connections[using].vendor
    if vendor != "postgresql":
        raise ImproperlyConfigured(
            f"Duepost needs PostgreSQL, and the database {using!r} is on {vendor}; the setting DUEPOST_DATABASE names "
            "the one of DATABASES that Duepost is in"
        )


def install(using: str) -> None:
    """Makes the schema in a database, or brings it up to date, as `duepost migrate` does; commits.

    It is a connection of its own: no transaction of Django's may be open.

    Raises:
        ImproperlyConfigured: the database is not PostgreSQL.
        MissingExtra: the workers' packages are not installed.
    """
    need_postgres(using)
    schema.install(url_of(connections[using].get_connection_params()), extra="django")


def bring_up_to_date(using: str, plan: Sequence[object] | None = None, **_: object) -> None:
    """After `manage.py migrate`: a new release of Duepost brings migrations and functions of its own.

    Args:
        using: the database that was migrated.
        plan: what was applied; None after `flush`, which changes no schema.
    """
    if plan is not None and using == alias() and connections[using].vendor == "postgresql":
        install(using)


def check_database(databases: Sequence[str] | None = None, **_: object) -> list[CheckMessage]:
    """What `manage.py check --database` says."""
    using = alias()
    if not databases or using not in databases:
        return []
    try:
        need_postgres(using)
    except ImproperlyConfigured as error:
        return [Error(str(error), id="duepost.E001")]
    return []


def url_of(parameters: Mapping[str, object]) -> str:
    """Returns the libpq URL of what Django connects with."""
    given = {name: str(parameters[name]) for name in ("host", "port", *_LIBPQ) if parameters.get(name)}
    user, password = (quote(str(parameters.get(name) or ""), safe="") for name in ("user", "password"))
    login = f"{user}:{password}@" if password else f"{user}@" if user else ""
    database = quote(str(parameters.get("dbname") or parameters.get("database") or ""), safe="")
    return f"postgresql://{login}/{database}?{urlencode(given, quote_via=quote)}"

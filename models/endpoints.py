"""What operators do with endpoints. Nothing here ever holds a secret but the one that is made, once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from models.database.connections import Cursor, Database
from models.database.statements import statements

SQL = statements(__file__)


@dataclass(frozen=True, slots=True)
class KnownEndpoint:
    """An endpoint as operators see it. Times are UTC.

    Attributes:
        name: what `schedule_message()` calls it.
        format: such as `webhook`.
        target: the server of its URL, or its function.
        secret: where that is kept: `stored`, `env:NAME` or `file:PATH`; None where it has none.
        rotated_until: until when a former secret is signed with too.
        allow_private: whether it may lead to private addresses.
        disabled_at: since when it takes nothing; None where it does.
        disabled_because: why.
        failing_since: the first failure after which nothing has succeeded; None where there is none.
        changed_at: when it was set last.
        pending: messages that wait for it, or are being sent to it.
        circuit_reason: why nothing but a probe is sent to it; None where its circuit is closed.
        probe_at: when that is looked at next.
    """

    name: str
    format: str
    target: str
    secret: str | None
    rotated_until: datetime | None
    allow_private: bool
    disabled_at: datetime | None
    disabled_because: str | None
    failing_since: datetime | None
    changed_at: datetime
    pending: int
    circuit_reason: str | None
    probe_at: datetime | None


@dataclass(frozen=True, slots=True)
class Setting:
    """What is set of an endpoint; None is what stays as it is. Its repr shows neither URL nor secret."""

    format: str | None = None
    url: str | None = None
    secret: str | None = None
    function: str | None = None
    options: Mapping[str, str] | None = None
    allow_private: bool | None = None
    rotate_for: timedelta | None = None

    def __repr__(self) -> str:
        return f"Setting(format={self.format!r})"


def set_endpoint(cursor: Cursor, name: str, setting: Setting) -> str | None:
    """Makes an endpoint or changes it, enables it and closes its circuit.

    Returns:
        the secret that was made for it; None where none was.

    Raises:
        psycopg2.Error: SQLSTATE 22023 for what is wrong, with the argument's name, and no secret.
    """
    parameters = {
        "name": name,
        "format": setting.format,
        "url": setting.url,
        "secret": setting.secret,
        "function": setting.function,
        "options": None if setting.options is None else json.dumps(setting.options),
        "allow_private": setting.allow_private,
        "rotate_for": setting.rotate_for,
    }
    cursor.execute(SQL["set"], parameters)
    [made] = cursor.fetchone() or (None,)
    return None if made is None else str(made)


def disable(cursor: Cursor, name: str, reason: str | None) -> None:
    """Nothing is sent to it any more, nor scheduled; what waits stays."""
    cursor.execute(SQL["disable"], {"name": name, "reason": reason})


def remove(cursor: Cursor, name: str) -> int:
    """Removes it; returns how many messages that waited for it have ended as undeliverable."""
    cursor.execute(SQL["remove"], {"name": name})
    [ended] = cursor.fetchone() or (0,)
    return int(ended)


def known(database: Database) -> list[KnownEndpoint]:
    """All endpoints, by name."""
    return [KnownEndpoint(*row) for row in database.execute(SQL["all"])]  # type: ignore[arg-type]  # its columns


class KnownFunction(NamedTuple):
    """What there is of an endpoint's function. All but the first, the schema's owner and the role is None without one.

    Attributes:
        exists: whether there is one of this name and signature.
        fits: whether it is a function, and not a procedure or the like.
        owner: whose it is.
        may_be_owned: whether its owner may act as the schema's owner: whoever owns it acts with the workers' rights.
        schema_owner: the owner of the schema `duepost`.
        may_be_called: whether this role may call it.
        role: who asks.
    """

    exists: bool
    fits: bool | None
    owner: str | None
    may_be_owned: bool | None
    schema_owner: str
    may_be_called: bool | None
    role: str


def function(database: Database, signature: str) -> KnownFunction:
    """Looks at the function of an endpoint."""
    [row] = database.execute(SQL["function"], {"function": signature})
    return KnownFunction(*row)  # type: ignore[arg-type]  # the statement's columns are the fields

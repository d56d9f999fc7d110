"""Tokens of this installation, once its secret has been read."""

from actors.content.tokens import Subscription, Tokens
from models import unsubscribing
from models.database.connections import Database

#: What stands before a token in a link's path: `duepost.web.public` answers there.
LINKS = "/u/"


class Seals:
    """Makes what only this installation can make: the links in emails. Any thread may call it.

    Args:
        database: whose secret it is.
        public_url: where recipients reach the links; None: there are none.
    """

    def __init__(self, database: Database, public_url: str | None) -> None:
        self._database = database
        self._public_url = public_url
        self._tokens: Tokens | None = None

    def read(self) -> None:
        """Reads the secret, once, where it is needed; may wait for the database.

        Raises:
            DatabaseUnreachable: the database is away.
        """
        if self._public_url is not None and self._tokens is None:
            self._tokens = Tokens(unsubscribing.secret(self._database))

    def link(self, about: Subscription) -> str | None:
        """The link by which a recipient unsubscribes; None where there are none, or the secret was not read."""
        if self._tokens is None or self._public_url is None:
            return None
        return f"{self._public_url}{LINKS}{self._tokens.link(about)}"

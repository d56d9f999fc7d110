"""Tokens of this installation, once its secret has been read."""

from actors.content.tokens import ALL, ReturnPath, Subscription, Tokens, digest_of
from models import unsubscribing
from models.database.connections import Database

#: What stands before a token in a link's path: `duepost.web.public` answers there.
LINKS = "/u/"


class Seals:
    """Makes what only this installation can make: the links in emails. Any thread may call it.

    Args:
        database: whose secret it is.
        public_url: where recipients reach the links; None: there are none.
        bounce_address: where bounces go to; None: to the sender.
    """

    def __init__(self, database: Database, public_url: str | None, bounce_address: str | None = None) -> None:
        self._database = database
        self._public_url = public_url
        self._bounce_address = bounce_address
        self._is_needed = public_url is not None or bounce_address is not None
        self._tokens: Tokens | None = None

    def read(self) -> None:
        """Reads the secret, once, where it is needed; may wait for the database.

        Raises:
            DatabaseUnreachable: the database is away.
        """
        if self._is_needed and self._tokens is None:
            self._tokens = Tokens(unsubscribing.secret(self._database))

    def link(self, about: Subscription) -> str | None:
        """The link by which a recipient unsubscribes; None where there are none, or the secret was not read."""
        if self._tokens is None or self._public_url is None:
            return None
        return f"{self._public_url}{LINKS}{self._tokens.link(about)}"

    def return_path(self, email_id: int, address: str | None) -> str | None:
        """The return path of an email to an address (None: to several who see each other); None: it is the sender's."""
        if self._tokens is None or self._bounce_address is None:
            return None
        about = ReturnPath(email_id, ALL if address is None else digest_of(address))
        return self._tokens.return_path(self._bounce_address, about)

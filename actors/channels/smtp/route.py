"""What the connections to one relay share: how many there may be, how fast they go, what goes behind a dot."""

from typing import Protocol

from actors.ruling import Ruling


class Route(Protocol):
    """What the connections to one relay share. Any thread may call this.

    What may ask the database is called where it is no harm to block.
    """

    def take_place(self) -> bool:
        """Whether one more connection may be opened; it holds a place until `leave_place`. May ask the database."""

    def leave_place(self, *, was_open: bool) -> None:
        """A connection is closed, or (not `was_open`) did not come about. Never blocks."""

    def opened(self) -> None:
        """A connection has come about: the relay has greeted us, and taken our login. Never blocks."""

    def is_full(self, refusal: Ruling) -> bool:
        """Whether a connection was refused for there being others, which work; else the relay is at fault.

        Called after `leave_place`. May ask the database.
        """

    def heard(self, ruling: Ruling) -> None:
        """A relay's answer about an email. Never blocks."""

    @property
    def goes_ahead(self) -> bool:
        """Whether the next email's envelope may go out behind a dot. Never blocks."""

    def stop_going_ahead(self, why: str) -> None:
        """Nothing goes out behind a dot any more, in any process before long. Never blocks."""

"""What all channels' items have in common, once a worker has claimed one."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

#: Routes of endpoints are named so; those of relays have no colon in their name.
ENDPOINT_PREFIX = "endpoint:"


class Flaw(NamedTuple):
    """What of an item, or of a user, cannot be read.

    Attributes:
        field: such as `context` or `recipient`.
        reason: what is wrong, without any value: it may be logged.
        detail: what the database says to it; may hold values, and is for the database only.
    """

    field: str
    reason: str
    detail: str = ""


class Recipient(NamedTuple):
    """Whom a claimed item still has to reach. `user_id` is None for an address, and for an endpoint.

    `flaw` is why nobody knows more of this user. `place` is that of one of several who see each other.
    """

    user_id: str | None
    address: str | None
    name: str | None = None
    locale: str | None = None
    timezone: str | None = None
    known: bool = True
    active: bool = True
    suppressed: bool = False
    flaw: "Flaw | None" = None
    place: int | None = None

    @property
    def key(self) -> str | None:
        """What tells it from the other recipients of its item; None where there can be no other."""
        return self.user_id if self.place is None else str(self.place)


class Kept(NamedTuple):
    """An item that a claim has kept from others, so that its conditions can be asked before it is claimed by itself.

    Attributes:
        id: its number.
        kind: its kind.
        kept_until: when it is due again if nobody claims it; it is still kept as long as the database has the same.
        due_at: when it was due before.
    """

    id: int
    kind: str
    kept_until: str
    due_at: str


class Checked(NamedTuple):
    """What an item's conditions have come to.

    Attributes:
        answer: `send`, `failed`, or why it is not claimed: it is obsolete, gone, or has been moved.
        said: what they have failed of.
        waits: users who are to get nothing now: for how many seconds, or why.
    """

    answer: str
    said: str | None
    waits: Mapping[str, float | str] = {}


def read_checked(answer: object, said: object, waits: object) -> Checked:
    """Reads what the database gives of it; `waits` is JSON in text."""
    found = json.loads(str(waits)) if waits is not None else {}
    return Checked(
        str(answer),
        None if said is None else str(said),
        {user: each.get("error") or float(each["seconds"]) for user, each in found.items()},
    )


def read_kept(item_id: object, kind: object, text: object) -> Kept:
    """Reads what a claim gives of such an item."""
    found = json.loads(str(text))
    return Kept(int(str(item_id)), str(kind), str(found["kept_until"]), str(found["due_at"]))


class Claimed(Protocol):
    """An item that this worker, and nobody else, is to deliver.

    `claim` is the number that its conclusion must name.
    """

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def claim(self) -> int:
        """The number of the claim: it only grows."""

    @property
    def kind(self) -> str:
        """Its kind."""

    @property
    def attempts(self) -> int:
        """How often it has been tried before."""

    @property
    def last_error(self) -> str | None:
        """What the last attempt failed of."""

    @property
    def priority(self) -> int:
        """Whom it goes ahead of: one of `Priority`."""

    @property
    def probe(self) -> bool:
        """Whether it looks whether its route takes items again."""

    @property
    def mailbox_full_seconds(self) -> float:
        """For how many seconds a mailbox has been full."""

    @property
    def recipients(self) -> Sequence[Recipient]:
        """Whom it is still to reach."""


def is_endpoint(route: str) -> bool:
    """Whether a route is an endpoint's, and not a relay's."""
    return route.startswith(ENDPOINT_PREFIX)


def route_of(endpoint: str) -> str:
    """The name of an endpoint's route."""
    return ENDPOINT_PREFIX + endpoint


def endpoint_of(route: str) -> str:
    """The endpoint of such a route."""
    return route.removeprefix(ENDPOINT_PREFIX)

"""What few emails have beside their row, as a claim gives it: `duepost.email_extras()` has the same keys."""

import json
from typing import NamedTuple

from models.items import Recipient


class SeenRecipient(NamedTuple):
    """One of several recipients who see each other.

    Attributes:
        place: its place in the email, from 1.
        field: the header that names it: to, cc or bcc.
        address: as it was given, without its name.
        name: the name beside it.
        is_to_go: whether it is still to get the email.
        is_suppressed: whether nothing is to be sent to it.
    """

    place: int
    field: str
    address: str
    name: str | None = None
    is_to_go: bool = True
    is_suppressed: bool = False


class StoredAttachment(NamedTuple):
    """A file that goes with an email, without its content: stored, or to be read at a URL.

    Attributes:
        filename: in any script.
        content_type: with its parameters.
        sha256: of the content, in hexadecimal; empty where it is at a URL.
        cid: what the HTML calls it.
        size: of the content, in bytes; 0 where it is at a URL.
        url: where it is read; None where it is stored.
    """

    filename: str
    content_type: str
    sha256: str = ""
    cid: str | None = None
    size: int = 0
    url: str | None = None


class Extras(NamedTuple):
    """What an email has that few have.

    Attributes:
        name: the name beside its one address.
        recipients: those who see each other, in their order; none where it has one address, or users.
        is_unsubscribable: whether recipients can unsubscribe from its kind.
        attachments: files that go with it, in their order.
    """

    name: str | None = None
    recipients: tuple[SeenRecipient, ...] = ()
    is_unsubscribable: bool = False
    attachments: tuple[StoredAttachment, ...] = ()

    @property
    def to_go(self) -> tuple[Recipient, ...]:
        """Those who are still to get it."""
        return tuple(
            Recipient(None, each.address, each.name, suppressed=each.is_suppressed, place=each.place)
            for each in self.recipients
            if each.is_to_go
        )


#: Of an email that has none.
NONE = Extras()


def read_extras(text: object) -> Extras:
    """Reads what a claim gives.

    Raises:
        ValueError: it is no JSON.
        TypeError: it is not of this form.
    """
    if text is None:
        return NONE
    found = json.loads(str(text))
    recipients = tuple(SeenRecipient(**each) for each in found.pop("recipients", ()))
    attachments = tuple(StoredAttachment(**each) for each in found.pop("attachments", ()))
    return Extras(recipients=recipients, attachments=attachments, **found)

"""Postmark: it signs nothing. A login in the webhook's URL is all that it shows.

So a call proves that whoever has made it knows the login, which goes with each call: TLS is what keeps it secret.
"""

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import Final

from duepost.bounces.meaning import SOFT
from duepost.bounces.providers.shape import (
    Call,
    Event,
    Reference,
    Refused,
    Verified,
    id_of,
    json_of,
    member,
    needed,
    status,
    text,
)  # fmt: skip

#: The metadata of an email that has what stands before the @ of its Message-ID, which Postmark replaces.
METADATA: Final = "duepost"

#: The types of bounces, by what they say of the next email: the address is dead; given up; of others nothing follows.
_HARD: Final = {"HardBounce": "5.1.1", "BadEmailAddress": "5.1.3"}
_SOFT: Final = frozenset(
    {"SoftBounce", "DnsError", "SpamNotification", "Unknown", "VirusNotification", "Blocked", "DMARCPolicy",
     "ManuallyDeactivated", "SMTPApiError"}
)  # fmt: skip


class Postmark:
    """Takes Postmark's webhooks.

    Args:
        logins: `user:password` each; several while it is changed.
    """

    name = "postmark"

    def __init__(self, logins: Sequence[str]) -> None:
        self._logins = [login.encode() for login in logins]

    @staticmethod
    def is_alike(call: Call) -> bool:
        """Whether a call looks like one of Postmark's, whoever has made it."""
        return b'"RecordType"' in call.body

    def verified(self, call: Call) -> Verified:
        """What a call holds: one event."""
        word, _, encoded = call.headers.get("authorization", "").partition(" ")
        try:
            given = base64.b64decode(encoded.strip(), validate=True) if word.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        if not any([hmac.compare_digest(each, given) for each in self._logins]):  # noqa: C419 - all, in one time
            raise Refused("the login is wrong")
        try:
            found = json_of(call.body)
        except ValueError:
            found = None
        return Verified([found])

    def read(self, raw: object) -> Sequence[Event]:
        """What an event tells."""
        record = needed(raw, "RecordType")
        if record == "SubscriptionChange":
            return _opted_out(raw)
        if record not in {"Bounce", "SpamComplaint"}:
            return ()
        address = needed(raw, "Email")
        source_id = id_of(raw, text(raw, "ID"))
        sort = "SpamComplaint" if record == "SpamComplaint" else needed(raw, "Type")
        if sort == "SpamComplaint":
            return (Event(source_id, _about(raw, address), complaint="abuse", who=(address,)),)
        action = "failed" if sort in _HARD else SOFT if sort in _SOFT else sort.lower()[:20]
        said = text(raw, "Details") or text(raw, "Description")
        return (Event(source_id, _about(raw, address), status(address, action, said, usual=_HARD.get(sort))),)


def _about(raw: object, address: str) -> Reference:
    return Reference(
        (address,),
        message_id=text(raw, "Metadata", METADATA) or None,
        relay_id=text(raw, "MessageID") or None,
    )


def _opted_out(raw: object) -> Sequence[Event]:
    """A recipient's own wish; what follows of bounces and complaints is told by events of their own."""
    is_wish = member(raw, "SuppressSending") is True and text(raw, "Origin") == "Recipient"
    if not is_wish or text(raw, "SuppressionReason") != "ManualSuppression":
        return ()
    address = needed(raw, "Recipient")
    return (Event(id_of(raw, ""), _about(raw, address), complaint="opt-out", who=(address,)),)

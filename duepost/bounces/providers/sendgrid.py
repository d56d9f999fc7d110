"""SendGrid: ECDSA over the time and the raw bytes of the body, by a key of the account's webhook.

A signature proves that all of the body is SendGrid's. Who reads the body and writes it again breaks it.
"""

from collections.abc import Sequence
from typing import Final

from duepost.bounces.meaning import SOFT
from duepost.bounces.providers.public_keys import Verify
from duepost.bounces.providers.shape import (
    Call,
    Event,
    Reference,
    Refused,
    Verified,
    id_of,
    is_recent,
    json_of,
    needed,
    status,
    text,
)  # fmt: skip

SIGNATURE: Final = "x-twilio-email-event-webhook-signature"
TIMESTAMP: Final = "x-twilio-email-event-webhook-timestamp"


class SendGrid:
    """Takes SendGrid's event webhook.

    Args:
        keys: verify by the webhook's key; several while it is changed.
    """

    name = "sendgrid"

    def __init__(self, keys: Sequence[Verify]) -> None:
        self._keys = keys

    @staticmethod
    def is_alike(call: Call) -> bool:
        """Whether a call looks like one of SendGrid's, whoever has made it."""
        return SIGNATURE in call.headers or b'"sg_event_id"' in call.body

    def verified(self, call: Call) -> Verified:
        """What a call holds: up to some thousand events."""
        signature, stamp = call.headers.get(SIGNATURE, ""), call.headers.get(TIMESTAMP, "")
        if not signature or not stamp:
            raise Refused("there is no signature")
        signed = stamp.encode() + call.body
        if not any(verify(signature, signed) for verify in self._keys):
            raise Refused("the signature is wrong")
        if not is_recent(stamp):
            raise Refused("the signature is too old, or a clock is wrong")
        try:
            found = json_of(call.body)
        except ValueError:
            found = None
        # What is SendGrid's and cannot be read is one event that cannot be.
        return Verified(found if isinstance(found, list) else [found])

    def read(self, raw: object) -> Sequence[Event]:
        """What an event tells."""
        event = needed(raw, "event")
        if event not in {"bounce", "dropped", "deferred", "spamreport", "unsubscribe", "group_unsubscribe"}:
            return ()
        address = needed(raw, "email")
        about = Reference(
            (address,),
            message_id=text(raw, "smtp-id") or None,
            # What the reply to the dot has is its first part.
            relay_id=text(raw, "sg_message_id").partition(".")[0] or None,
        )
        source_id = id_of(raw, text(raw, "sg_event_id"))
        if event in {"bounce", "dropped", "deferred"}:
            said = text(raw, "reason") or text(raw, "response")
            is_hard = event == "bounce" and text(raw, "type") in {"bounce", ""}
            action = "delayed" if event == "deferred" else "failed" if is_hard else SOFT
            usual = "5.1.1" if text(raw, "bounce_classification") == "Invalid Address" else None
            return (Event(source_id, about, status(address, action, said, text(raw, "status"), usual)),)
        return (Event(source_id, about, complaint="abuse" if event == "spamreport" else "opt-out", who=(address,)),)

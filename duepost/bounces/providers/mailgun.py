"""Mailgun: HMAC-SHA256 over a time and a token, which stand in the body; nothing signs the rest of it.

So a signature proves that Mailgun has made it, and not what it came with: whoever sees a call before it is used can
write another body around it. Hence a token counts once, and an event counts only about an email that we sent.
"""

import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

from duepost.bounces.meaning import SOFT
from duepost.bounces.providers.shape import (
    Call,
    Event,
    Reference,
    Refused,
    Verified,
    id_of,
    is_recent,
    json_of,
    member,
    needed,
    status,
    text,
)  # fmt: skip

#: Codes that are not a server's but Mailgun's own (605: it has bounced before, and was not tried).
_NOT_SMTP: Final = 600

#: Characters of a token that is kept.
LONGEST_TOKEN: Final = 200


class Mailgun:
    """Takes Mailgun's webhooks.

    Args:
        keys: the HTTP webhook signing key; several while it is changed.
    """

    name = "mailgun"

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in keys]

    @staticmethod
    def is_alike(call: Call) -> bool:
        """Whether a call looks like one of Mailgun's, whoever has made it."""
        return b'"event-data"' in call.body and b'"signature"' in call.body

    def verified(self, call: Call) -> Verified:
        """What a call holds: one event."""
        try:
            found = json_of(call.body)
        except ValueError:
            raise Refused("the body is not JSON") from None
        stamp, token, given = (member(found, "signature", name) for name in ("timestamp", "token", "signature"))
        if not (isinstance(token, str) and isinstance(given, str) and isinstance(stamp, str | int)):
            raise Refused("there is no signature")
        if not (token.isascii() and token.isprintable() and 1 <= len(token) <= LONGEST_TOKEN and given.isascii()):
            raise Refused("the signature is wrong")
        signed = f"{stamp}{token}".encode()
        expected = [hmac.digest(key, signed, sha256).hex() for key in self._keys]
        if not any([hmac.compare_digest(each, given.lower()) for each in expected]):  # noqa: C419 - all, in one time
            raise Refused("the signature is wrong")
        if not is_recent(str(stamp)):
            raise Refused("the signature is too old, or a clock is wrong")
        return Verified([member(found, "event-data")], token)

    def read(self, raw: object) -> Sequence[Event]:
        """What an event tells."""
        event = needed(raw, "event")
        if event not in {"failed", "complained", "unsubscribed"}:
            return ()
        address = needed(raw, "recipient")
        about = Reference(
            (address,),
            (text(raw, "envelope", "sender"),),
            text(raw, "message", "headers", "message-id") or None,
        )
        source_id = id_of(raw, text(raw, "id"))
        if event == "failed":
            said = text(raw, "delivery-status", "message") or text(raw, "delivery-status", "description")
            code, enhanced = (
                text(raw, "delivery-status", "code"), text(raw, "delivery-status", "enhanced-code"),
            )  # fmt: skip
            is_smtp = code.isdigit() and 200 <= int(code) < _NOT_SMTP
            words = f"{code} {said}" if is_smtp and not said.startswith(code) else said
            return (Event(source_id, about, status(address, _action(raw), words, enhanced if is_smtp else "")),)
        return (Event(source_id, about, complaint="abuse" if event == "complained" else "opt-out", who=(address,)),)


def _action(raw: object) -> str:
    if text(raw, "severity") == "temporary":
        return "delayed"
    # What Mailgun has not tried, as it has bounced before, says nothing new.
    is_hard = text(raw, "severity") == "permanent" and not text(raw, "reason").startswith("suppress")
    return "failed" if is_hard and text(raw, "delivery-status", "bounce-type") != "soft" else SOFT

"""Standard Webhooks: signed, and known by an id that is the same on every attempt.

Endpoint: any URL; secrets `whsec_` and base64 of 24 to 64 bytes. While one is rotated both sign, the current one first,
as some receivers look at the first alone. Payload: any JSON.
"""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

from actors.channels.http.request import Answer, Request
from actors.channels.http.verdicts import judge
from actors.content.formats.format import Endpoint, Message, blame_endpoint
from actors.content.formats.json_text import Json
from actors.ruling import Ruling

PREFIX: Final = "whsec_"

#: Bytes of a secret.
SHORTEST_SECRET, LONGEST_SECRET = 24, 64

_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")


def secret_key(secret: str) -> bytes:
    """Returns the bytes of a secret.

    Raises:
        ValueError: it is none; the message begins with `secret`, and does not repeat it.
    """
    encoded = secret.removeprefix(PREFIX)
    try:
        key = base64.b64decode(encoded, validate=True) if _BASE64.fullmatch(encoded) else b""
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or not SHORTEST_SECRET <= len(key) <= LONGEST_SECRET:
        raise ValueError(f"secret must be {PREFIX} and base64 of {SHORTEST_SECRET} to {LONGEST_SECRET} bytes") from None
    return key


class Webhook:
    """The format `webhook`."""

    resends_unknown = True

    def request(self, endpoint: Endpoint, message: Message, now: float) -> Request:
        """Makes a signed POST of the payload as it is."""
        url, body, timestamp = endpoint.parsed_url(), message.payload_json.encode(), str(int(now))
        signed = f"{message.wire_id}.{timestamp}.".encode() + body
        headers = (
            ("content-type", "application/json"),
            ("webhook-id", message.wire_id),
            ("webhook-timestamp", timestamp),
            ("webhook-signature", " ".join(_signature(key, signed) for key in _keys(endpoint))),
        )
        return Request("POST", url.path + url.query, headers, body)

    def judge(self, answer: Answer) -> Ruling:
        """The status says it all."""
        return judge(answer)

    def trial(self, options: Mapping[str, str], text: str) -> Mapping[str, Json]:  # noqa: ARG002 - they have none
        """An event of a type of its own, which receivers that do not know it pass over."""
        return {"type": "duepost.test", "data": {"text": text}}


def _keys(endpoint: Endpoint) -> list[bytes]:
    if not endpoint.secrets:
        blame_endpoint(endpoint.name, "no secret is set")
    try:
        return [secret_key(secret) for secret in endpoint.secrets]
    except ValueError as error:
        blame_endpoint(endpoint.name, str(error))


def _signature(key: bytes, signed: bytes) -> str:
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode("ascii")

"""What links and return paths carry: sealed with a secret of the installation, so that nobody reads it, or makes one.

A token is made of what it stands for and of nothing else: each attempt at an email has the same. It is sealed as in SIV
(RFC 5297), with HMAC-SHA256 for both parts: the first 16 bytes are the HMAC of the plain text, and the rest is the
plain text under a stream of HMACs that begins with them. So a token that opens was made here, and one of another
purpose does not open.
"""

import hmac
import json
import re
from base64 import b32decode, b32encode, urlsafe_b64decode, urlsafe_b64encode
from hashlib import sha256
from itertools import count
from typing import Final, NamedTuple

#: Bytes of a token's HMAC.
TAG: Final = 16

#: Characters of a link's token at the most: a line of a header has to hold the URL (RFC 5322 section 2.1.1).
LONGEST_TOKEN: Final = 870


#: Instead of the digest of one recipient: all who see each other.
ALL: Final = bytes(4)

#: Bytes of the HMAC in a return path, whose local part has 64 octets (RFC 5321 section 4.5.3.1.1); and characters of
#: its token: the email's number, the digest and the HMAC in base32.
PATH_TAG: Final = 10
PATH_TOKEN: Final = 36


class Subscription(NamedTuple):
    """What a link in an email is about.

    Attributes:
        email_id: the email that it stands in.
        kind: the kind that its recipient wants no more of.
        address: where it went.
        user_id: whose address it is; None where an address alone was named.
    """

    email_id: int
    kind: str
    address: str
    user_id: str | None = None


class ReturnPath(NamedTuple):
    """What a return path is about.

    Attributes:
        email_id: the email.
        digest: of its one recipient; of several who see each other `ALL`.
    """

    email_id: int
    digest: bytes

    def is_for(self, address: str) -> bool:
        """Whether it is about this address: in ASCII and in lower case."""
        return self.digest in (ALL, digest_of(address))


def digest_of(address: str) -> bytes:
    """What tells the recipients of an email apart, without showing them."""
    return sha256(address.lower().encode()).digest()[: len(ALL)]


class Tokens:
    """Makes and opens tokens. Safe to share between threads.

    Args:
        secret: the installation's, 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._mac_key = _hmac(secret, b"mac")
        self._stream_key = _hmac(secret, b"stream")

    def link(self, about: Subscription) -> str:
        """The token of a link: letters, digits, - and _. A user's id that makes it too long is not in it."""
        token = _as_text(self._sealed(b"unsubscribe", _packed(about)))
        if len(token) > LONGEST_TOKEN and about.user_id is not None:
            return self.link(about._replace(user_id=None))
        return token

    def subscription(self, token: str) -> Subscription | None:
        """What a link is about; None where it was not made here."""
        plain = self._opened(b"unsubscribe", _as_bytes(token))
        if plain is None:
            return None
        email_id, kind, address, user_id = json.loads(plain)
        return Subscription(email_id, kind, address, user_id)

    def return_path(self, bounce_address: str, about: ReturnPath) -> str:
        """The return path of an email: `bounces+TOKEN@example.com`; letters of one case, as not all servers keep it."""
        plain = about.email_id.to_bytes(8, "big") + about.digest
        token = b32encode(plain + self._path_tag(plain)).decode("ascii").rstrip("=").lower()
        local_part, _, domain = bounce_address.rpartition("@")
        return f"{local_part}+{token}@{domain}"

    def return_path_in(self, text: str, bounce_address: str) -> ReturnPath | None:
        """What a return path in a text is about; None where there is none that was made here."""
        local_part, _, domain = bounce_address.rpartition("@")
        pattern = rf"{re.escape(local_part)}\+([a-z2-7]{{{PATH_TOKEN}}})@{re.escape(domain)}(?![\w.-])"
        found = re.search(pattern, text, re.IGNORECASE | re.ASCII)
        if found is None:
            return None
        data = b32decode(found[1].upper() + "=" * (-PATH_TOKEN % 8))
        plain, tag = data[: 8 + len(ALL)], data[8 + len(ALL) :]
        if not hmac.compare_digest(tag, self._path_tag(plain)):
            return None
        return ReturnPath(int.from_bytes(plain[:8], "big"), plain[8:])

    def _path_tag(self, plain: bytes) -> bytes:
        return self._tag(b"return path", plain)[:PATH_TAG]

    def _sealed(self, purpose: bytes, plain: bytes) -> bytes:
        tag = self._tag(purpose, plain)
        return tag + self._under_stream(tag, plain)

    def _opened(self, purpose: bytes, sealed: bytes) -> bytes | None:
        tag, hidden = sealed[:TAG], sealed[TAG:]
        plain = self._under_stream(tag, hidden)
        return plain if len(tag) == TAG and hmac.compare_digest(tag, self._tag(purpose, plain)) else None

    def _tag(self, purpose: bytes, plain: bytes) -> bytes:
        return _hmac(self._mac_key, purpose + b"\0" + plain)[:TAG]

    def _under_stream(self, tag: bytes, data: bytes) -> bytes:
        stream = b""
        for block in count():
            if len(stream) >= len(data):
                break
            stream += _hmac(self._stream_key, tag + block.to_bytes(4, "big"))
        return bytes(one ^ other for one, other in zip(data, stream, strict=False))


def _packed(about: Subscription) -> bytes:
    return json.dumps(list(about), ensure_ascii=False, separators=(",", ":")).encode()


def _hmac(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, sha256)


def _as_text(data: bytes) -> str:
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def _as_bytes(token: str) -> bytes:
    """The bytes of a token; none where it is no token: whatever somebody puts into a URL."""
    if len(token) > LONGEST_TOKEN or not token.isascii():
        return b""
    data = b""
    try:
        data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return b""
    # One spelling: what decodes to the same bytes is another URL.
    return data if _as_text(data) == token else b""

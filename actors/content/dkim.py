"""DKIM signatures (RFC 6376, RFC 8463): a message and a key in, a header out. Pure: the same in gives the same out.

Header and body are canonicalised as *relaxed*. A header that is oversigned is named once more than it is there, so that
nobody can add another one.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

#: What is signed of a message's header unless something else is asked for.
SIGNED: Final = (
    "From",
    "To",
    "Cc",
    "Reply-To",
    "Subject",
    "Date",
    "Message-ID",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
    "In-Reply-To",
    "References",
)

#: What a reader shows, or acts on: of those that are signed, these are oversigned.
OVERSIGNED: Final = frozenset(
    {
        "from",
        "to",
        "cc",
        "reply-to",
        "subject",
        "date",
        "message-id",
        "list-unsubscribe",
        "list-unsubscribe-post",
    }
)

#: What changes on the way, or is a signature itself: never signed (RFC 6376 section 5.4.1).
UNSIGNED: Final = frozenset({"return-path", "received", "dkim-signature", "comments", "keywords", "bcc", "resent-bcc"})

#: Characters in a line of the signature's header (RFC 5322 section 2.1.1).
LINE: Final = 78

#: Octets of a body that are canonicalised at once, which takes less than a millisecond.
PIECE: Final = 65_536

_BLANKS = re.compile(rb"[ \t]+")
_FIELD_ENDS = re.compile(rb"\r\n(?![ \t])")


@dataclass(frozen=True, slots=True)
class Key:
    """A private key, and where its public one is found.

    Attributes:
        domain: whose mail it signs, as in an envelope: ASCII, in small letters.
        selector: the key's name below the domain.
        algorithm: `rsa-sha256` or `ed25519-sha256`.
        bits: the key's length.
        public: the public key, as the DNS record has it.
        sign: signs bytes as the algorithm says (RFC 8463 section 3: Ed25519 signs their digest).
    """

    domain: str
    selector: str
    algorithm: str
    bits: int
    public: str
    sign: Callable[[bytes], bytes] = field(repr=False)

    @property
    def record_name(self) -> str:
        """The DNS name of the public key."""
        return f"{self.selector}._domainkey.{self.domain}"

    @property
    def record(self) -> str:
        """The text of the TXT record there (RFC 6376 section 3.6.1)."""
        return f"v=DKIM1; k={self.algorithm.partition('-')[0]}; p={self.public}"


def signed(message: bytes, keys: Sequence[Key], names: Sequence[str], now: int) -> bytes:
    """A message with a signature by each key before it.

    Args:
        message: each line ends in CRLF.
        keys: of the From's domain.
        names: the headers that are signed where they are there.
        now: seconds since 1970, for the signatures' time.
    """
    head, _, body = message.partition(b"\r\n\r\n")
    fields = _FIELD_ENDS.split(head)
    covered = _covered(fields, names)
    digest = hashlib.sha256()
    for piece in relaxed_body(body):
        digest.update(piece)
    body_hash = _base64(digest.digest())
    return b"".join(_signature(key, fields, covered, body_hash, now) for key in keys) + message


def relaxed_body(body: bytes) -> Iterator[bytes]:
    """The body as it is hashed (RFC 6376 section 3.4.4), in pieces: a large one keeps no other thread waiting."""
    # White space at the end of its last line goes, and so do lines of nothing else behind it.
    body = body.rstrip(b" \t\r\n")
    start = 0
    while start < len(body):
        line_end = body.find(b"\r\n", start + PIECE)
        end = line_end + 2 if line_end >= 0 else len(body)
        yield _BLANKS.sub(b" ", body[start:end]).replace(b" \r\n", b"\r\n")
        start = end
    if body:
        yield b"\r\n"


def relaxed_field(written: bytes) -> bytes:
    """A field of the header as it is hashed, without its line end (RFC 6376 section 3.4.2)."""
    name, _, value = written.partition(b":")
    unfolded = _BLANKS.sub(b" ", value.replace(b"\r\n", b""))
    return name.strip().lower() + b":" + unfolded.strip(b" ")


def hashed(fields: Sequence[bytes], covered: Sequence[str], unsigned: bytes) -> bytes:
    """What is signed: the fields that are covered, each from the last one up, and the signature's own without `b=`."""
    left: dict[bytes, list[bytes]] = {}
    for each in map(relaxed_field, fields):
        left.setdefault(each.partition(b":")[0], []).append(each)
    chosen = [left[name].pop() for name in (each.lower().encode() for each in covered) if left.get(name)]
    return b"\r\n".join([*chosen, relaxed_field(unsigned)])


def _covered(fields: Sequence[bytes], names: Sequence[str]) -> list[str]:
    """The names of `h=`: each as often as it is there, and once more where it is oversigned."""
    there = [each.partition(b":")[0].strip().lower() for each in fields]
    return [name for name in names for _ in range(there.count(name.lower().encode()) + (name.lower() in OVERSIGNED))]


def _signature(key: Key, fields: Sequence[bytes], covered: Sequence[str], body_hash: str, now: int) -> bytes:
    tags = [
        "v=1;",
        f"a={key.algorithm};",
        "c=relaxed/relaxed;",
        f"d={key.domain};",
        f"s={key.selector};",
        f"t={now};",
        f"bh={body_hash};",
    ]
    pieces = [f"{name}:" for name in covered]
    pieces = [f"h={pieces[0]}", *pieces[1:-1], f"{pieces[-1].removesuffix(':')};"]
    unsigned = "\r\n".join([*_folded(["DKIM-Signature:", *tags], " "), *_folded(["", *pieces], ""), " b="])
    signature = _base64(key.sign(hashed(fields, covered, unsigned.encode())))
    room = LINE - len(" b=")
    lines = [signature[start : start + room] for start in range(0, len(signature), room)]
    return (unsigned + "\r\n ".join(lines) + "\r\n").encode()


def _folded(pieces: Sequence[str], between: str) -> Iterator[str]:
    """Lines of pieces, none of which is broken."""
    line = pieces[0] or " "
    for piece in pieces[1:]:
        glue = between if line.strip() else ""
        if len(line) + len(glue) + len(piece) > LINE and line.strip():
            yield line
            line, glue = " ", ""
        line += glue + piece
    yield line


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()

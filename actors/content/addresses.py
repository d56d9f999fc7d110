"""Addresses, as they go into an envelope. Nothing here asks the DNS.

The same rules as `models/functions/rules.sql`, in the worker's language: what SQL takes can be sent, and what could not
be is refused when it is scheduled. `tests/corpus/addresses.json` is tried on both sides.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from models.letters import DOMAIN_LETTERS, LOWER_CASE

# RFC 5322 section 3.2.3.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOT_ATOM = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")

# White space and what cannot be seen, of whatever script.
_UNSEEN = (
    r"\x80-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u180b-\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\u3164"
    r"\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff"
)
# A dot-atom in other scripts (RFC 6531 section 3.3).
_WORD = rf"[^\x00-\x20()<>@,;:\\\".\[\]\x7f{_UNSEEN}]+"
_WORDS = re.compile(rf"{_WORD}(?:\.{_WORD})*")

# RFC 5890 section 2.3.1.
_ASCII_LABEL = re.compile(r"[a-z0-9]+(?:-+[a-z0-9]+)*")
_ASCII_DOMAIN = re.compile(rf"{_ASCII_LABEL.pattern}(?:\.{_ASCII_LABEL.pattern})*")

_OTHER_LABEL = re.compile(r"(?!-|..--)(?:[a-z0-9-]|[^\x00-\x7f])+(?<!-)")
_DOMAIN_LETTERS = re.compile(
    "(?:[\\x00-\\x7f{}])*".format("".join(f"\\U{first:08x}-\\U{end - 1:08x}" for first, end in DOMAIN_LETTERS))
)
# Marks, which go on the letter before them.
_MARK = re.compile(
    r"[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u1ab0-\u1aff\u1dc0-\u1dff"
    r"\u20d0-\u20ff\u3099\u309a\ufe20-\ufe2f]"
)
# What is written from the right begins with a letter, and has no Latin in it (of RFC 5893 section 2).
_FROM_THE_RIGHT = re.compile(r"[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_NOT_FROM_THE_RIGHT = re.compile(r"[a-z\u00df-\u024f]|^[0-9\u0660-\u0669\u06f0-\u06f9]")
# RFC 5892 appendix A.3: between two l, as in Catalan.
_MISPLACED_DOT = re.compile(r"(?:^|[^l])\u00b7|\u00b7(?:$|[^l])")

_DOTS = str.maketrans("\u3002\uff0e\uff61", "...")

#: What may be around an address: white space, and what cannot be seen.
AROUND = (
    " \t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u202f\u205f\u2060\u2066\u2067\u2068\u2069"
    "\u3000\ufeff"
)

_MAILBOX = re.compile(r'(?P<name>"(?:[^"\\]|\\.)*" *|[^<>]*)<(?P<address>[^<>]*)>')
_QUOTED = re.compile(r'"(?P<text>(?:[^"\\]|\\.)*)"')
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

#: Octets (RFC 5321 section 4.5.3.1; RFC 3696, erratum 1690; RFC 1035 section 2.3.4).
LONGEST_LOCAL_PART = 64
LONGEST_ADDRESS = 254
LONGEST_DOMAIN = 253
LONGEST_LABEL = 63

#: Octets of a sender or Reply-To, name included.
LONGEST_MAILBOX = 1000


class UndeliverableAddress(ValueError):
    """No mail can be sent to this address. The message does not contain it."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Whom an email is from or to.

    Attributes:
        name: the display name, in any script; empty for none.
        address: the address, ASCII but for the local part of a recipient's.
    """

    name: str
    address: str


def ascii_address(address: str) -> str:
    """Returns an address that any relay takes: the domain in IDNA (RFC 5891), the rest as it stands.

    Raises:
        UndeliverableAddress: it is no address, or its local part is not ASCII, which needs SMTPUTF8 (RFC 6531).
    """
    found = envelope_address(address)
    if not found.isascii():
        raise UndeliverableAddress("the part of the address before the @ must be ASCII")
    return found


def envelope_address(address: str) -> str:
    """Returns an address as it goes into the envelope: the domain in IDNA (RFC 5891), the rest as it stands.

    Dotless and special-use domains are taken: whether one can be reached is for the relay to say. One whose local part
    is not ASCII needs a relay that offers SMTPUTF8 (RFC 6531).

    Raises:
        UndeliverableAddress: it is no address (RFC 5321 section 4.1.2).
    """
    local_part, at, domain = address.partition("@")
    is_plain = _DOT_ATOM.fullmatch(local_part) is not None
    # Domains repeat, and reading one takes longer than looking it up.
    known = ascii_domain(domain) if at and (is_plain or _WORDS.fullmatch(local_part)) else None
    octets = _octets(local_part)
    if known is None or octets > LONGEST_LOCAL_PART or octets + 1 + max(len(known), _octets(domain)) > LONGEST_ADDRESS:
        raise UndeliverableAddress("the address is malformed; it must be one such as ann@example.com")
    return f"{local_part}@{known}"


@lru_cache(maxsize=1_000)
def parse_sender(text: str) -> Mailbox:
    """Reads `Duepost <noreply@example.com>` or a bare address; the domain comes back in IDNA.

    Raises:
        ValueError: it is neither of the two, is too long, or holds a control character such as CR, LF or NUL. The
            message does not contain it.
    """
    if _CONTROL.search(text):
        raise ValueError("must be one line without control characters, such as Duepost <noreply@example.com>")
    if _octets(text) > LONGEST_MAILBOX:
        raise ValueError(f"must be at most {LONGEST_MAILBOX} bytes")
    text = text.strip(AROUND)
    mailbox = _MAILBOX.fullmatch(text)
    name, address = (mailbox["name"], mailbox["address"]) if mailbox else ("", text)
    try:
        return Mailbox(_unquoted(name.strip(AROUND)), ascii_address(address.strip(" ")))
    except UndeliverableAddress:
        raise ValueError(
            "must be an ASCII address such as noreply@example.com or Duepost <noreply@example.com>"
        ) from None


@lru_cache(maxsize=10_000)
def ascii_domain(domain: str) -> str | None:
    """Returns a domain in IDNA and lower case; None where it is none."""
    if not domain.isascii():
        if _octets(domain) > LONGEST_ADDRESS or not _DOMAIN_LETTERS.fullmatch(domain):
            return None
        # UTS 46 section 4.
        folded = unicodedata.normalize("NFKC", domain.translate(_DOTS))
        domain = unicodedata.normalize("NFC", folded.translate(LOWER_CASE))
    domain = domain.translate(LOWER_CASE)
    if _ASCII_DOMAIN.fullmatch(domain) and "xn--" not in domain:
        labels: list[str | None] = [*domain.split(".")]
    else:
        labels = [_ascii_label(label) for label in domain.split(".")]
    found = [label for label in labels if label is not None and len(label) <= LONGEST_LABEL]
    result = ".".join(found)
    return result if len(found) == len(labels) and len(result) <= LONGEST_DOMAIN else None


def _ascii_label(label: str) -> str | None:
    """A label of a mapped domain in ASCII; None where it is none."""
    if label.isascii():
        is_right = _ASCII_LABEL.fullmatch(label) and not (label.startswith("xn--") and not _is_punycode(label[4:]))
        return label if is_right else None
    if (
        not _OTHER_LABEL.fullmatch(label)
        or _MARK.match(label)
        or (_FROM_THE_RIGHT.search(label) and _NOT_FROM_THE_RIGHT.search(label))
        or _MISPLACED_DOT.search(label)
    ):
        return None
    return "xn--" + label.encode("punycode").decode("ascii")


def _is_punycode(encoded: str) -> bool:
    """Whether it stands for a label beyond ASCII (RFC 3492)."""
    try:
        label = encoded.encode("ascii").decode("punycode")
    except UnicodeError:
        return False
    return not label.isascii() and re.search(f"[{_UNSEEN}]", label) is None


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))


def _unquoted(name: str) -> str:
    quoted = _QUOTED.fullmatch(name)
    return re.sub(r"\\(.)", r"\1", quoted["text"]) if quoted else name

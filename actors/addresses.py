"""Addresses, as they go into an envelope. Nothing here asks the DNS."""

import re
from dataclasses import dataclass
from functools import lru_cache

import email_validator
from email_validator import EmailNotValidError, ValidatedEmail, validate_email

# The library's own switch: with this list it refuses `localhost`, `x.test` and `x.invalid` whatever is asked.
email_validator.SPECIAL_USE_DOMAIN_NAMES.clear()

_MAILBOX = re.compile(r"(?P<name>[^<>]*)<(?P<address>[^<>]*)>")
_QUOTED = re.compile(r'"(?P<text>(?:[^"\\]|\\.)*)"')
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


# RFC 5322 section 3.2.3.
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOT_ATOM = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")

#: Octets (RFC 5321 section 4.5.3.1; RFC 3696, erratum 1690).
LONGEST_LOCAL_PART = 64
LONGEST_ADDRESS = 254


class UndeliverableAddress(ValueError):
    """No mail can be sent to this address. The message does not contain it."""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """Whom an email is from or to.

    Attributes:
        name: the display name, in any script; empty for none.
        address: the address, ASCII.
    """

    name: str
    address: str


def ascii_address(address: str) -> str:
    """Gives an address as it goes into the envelope: the domain in IDNA (RFC 5891), the rest as it stands.

    Dotless and special-use domains are taken: whether one can be reached is for the relay to say.

    Raises:
        UndeliverableAddress: it is no address (RFC 5321 section 4.1.2), or its local part is not ASCII, which
            would need SMTPUTF8 (RFC 6531).
    """
    local_part, _, domain = address.rpartition("@")
    if _DOT_ATOM.fullmatch(local_part) and len(local_part) <= LONGEST_LOCAL_PART:
        # Domains repeat, and reading one takes a hundred times as long as looking it up.
        known = _ascii_domain(domain)
        if known is not None and len(local_part) + 1 + max(len(known), len(domain)) <= LONGEST_ADDRESS:
            return f"{local_part}@{known}"
    parsed = _parsed(address)
    if parsed is None or parsed.ascii_domain is None:
        raise UndeliverableAddress("the address is malformed; it must be one such as ann@example.com")
    if not local_part.isascii():
        raise UndeliverableAddress("the part of the address before the @ must be ASCII")
    return f"{local_part}@{parsed.ascii_domain}"


@lru_cache(maxsize=1_000)
def parse_sender(text: str) -> Mailbox:
    """Reads `Duepost <noreply@example.com>` or a bare address; the domain comes back in IDNA.

    Raises:
        ValueError: it is neither of the two, or holds a control character such as CR, LF or NUL. The message
            does not contain it.
    """
    if _CONTROL.search(text):
        raise ValueError("must be one line without control characters, such as Duepost <noreply@example.com>")
    text = text.strip()
    mailbox = _MAILBOX.fullmatch(text)
    name, address = (mailbox["name"], mailbox["address"]) if mailbox else ("", text)
    try:
        return Mailbox(_unquoted(name.strip()), ascii_address(address.strip()))
    except UndeliverableAddress:
        raise ValueError(
            "must be an ASCII address such as noreply@example.com or Duepost <noreply@example.com>"
        ) from None


@lru_cache(maxsize=10_000)
def _ascii_domain(domain: str) -> str | None:
    parsed = _parsed(f"a@{domain}")
    return parsed.ascii_domain if parsed else None


def _parsed(address: str) -> ValidatedEmail | None:
    try:
        return validate_email(address, check_deliverability=False, globally_deliverable=False)
    except EmailNotValidError:
        return None


def _unquoted(name: str) -> str:
    quoted = _QUOTED.fullmatch(name)
    return re.sub(r"\\(.)", r"\1", quoted["text"]) if quoted else name

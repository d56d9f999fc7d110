"""What all providers have in common: a call, who may make it, and the events that it tells."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Protocol

from duepost.bounces.reports import Status
from models.errors import DuepostError

#: Seconds for which a signed time is believed: providers try again for a day at the most (SendGrid), and clocks differ.
OLDEST: Final = 2 * 86_400.0
FUTURE: Final = 15 * 60.0

#: Characters of a text that is looked at.
MOST_TEXT: Final = 2_000

#: Recipients of one event.
MOST_RECIPIENTS: Final = 100

#: A code of a reply, or an enhanced one, anywhere in a text.
_CODE = re.compile(r"(?<![\d.])(?:[245]\d\d|[245]\.\d{1,3}\.\d{1,3})(?![\d.]*\d)")


class Refused(DuepostError):
    """The call is not the provider's, as far as can be shown; the message says why, for operators."""


class Unavailable(DuepostError):
    """It cannot be told now whether the call is the provider's: it is to come again."""


class BrokenEvent(DuepostError):
    """One event is not as its provider writes them."""


@dataclass(frozen=True, slots=True)
class Call:
    """A request, as it came.

    Attributes:
        body: its raw bytes.
        headers: by names in lower case.
    """

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Verified:
    """What a call that is the provider's holds.

    Attributes:
        events: each as it stands in the body: `Provider.read` says what it tells.
        token: of the signature, where that is to count once; None: the signature covers the body.
    """

    events: Sequence[object]
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """By what an event names an email of ours.

    Attributes:
        addresses: of its recipients.
        paths: its return path, where the provider tells it: it has our token.
        message_id: our Message-ID, or what stands before its @.
        relay_id: what the provider has called it in its reply to the dot.
    """

    addresses: Sequence[str] = ()
    paths: Sequence[str] = ()
    message_id: str | None = None
    relay_id: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """What a provider tells of one email and recipient.

    Attributes:
        id: what the provider calls it: the same is concluded once.
        about: the email.
        status: where it is about its delivery, as a report of a mailbox has it.
        complaint: where it is a complaint, of which sort (RFC 5965).
        who: who complains, where that is told.
    """

    id: str
    about: Reference = Reference()
    status: Status | None = None
    complaint: str = ""
    who: Sequence[str] = ()


class Provider(Protocol):
    """One provider.

    Attributes:
        name: in the URL, and in what is noted.
    """

    name: str

    def verified(self, call: Call) -> Verified:
        """What a call holds.

        Raises:
            Refused: it is not the provider's.
            Unavailable: that cannot be told now.
        """

    def read(self, raw: object) -> Sequence[Event]:
        """What one event tells, of each recipient; none where nothing follows of its sort.

        Raises:
            BrokenEvent: it is not as the provider writes them.
        """


# JSON ----------------------------------------------------------------------------------------------------------------


def json_of(body: bytes | str) -> object:
    """What a body holds.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        found: object = json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return found


def member(raw: object, *names: str) -> object:
    """What stands below these names; None where nothing does."""
    for name in names:
        if not isinstance(raw, dict):
            return None
        raw = raw.get(name)
    return raw


def text(raw: object, *names: str) -> str:
    """A text that stands there, or a number as one; empty where nothing does.

    Raises:
        BrokenEvent: something else stands there.
    """
    found = member(raw, *names)
    if found is None:
        return ""
    if isinstance(found, bool) or not isinstance(found, str | int | float):
        raise BrokenEvent(f"{'.'.join(names)} must be a text")
    return str(found)[:MOST_TEXT]


def needed(raw: object, *names: str) -> str:
    """A text that has to stand there.

    Raises:
        BrokenEvent: it does not.
    """
    found = text(raw, *names)
    if not found:
        raise BrokenEvent(f"{'.'.join(names)} is missing")
    return found


def items(raw: object, *names: str) -> Sequence[object]:
    """A list that stands there, as far as it is looked at; empty where there is none."""
    found = member(raw, *names)
    return found[:MOST_RECIPIENTS] if isinstance(found, list) else ()


def id_of(raw: object, given: str) -> str:
    """What an event is called: by its provider, else by what it holds."""
    return given or sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:32]


# What a server has said ----------------------------------------------------------------------------------------------


def bare(said: str) -> str:
    """What a server said, without `smtp;` before it."""
    return re.sub(r"^\s*(?:smtp|x-[\w-]+)\s*;\s*", "", said, flags=re.IGNORECASE)


def has_code(said: str) -> bool:
    """Whether a server's words have a code that the table of verdicts knows to judge."""
    return _CODE.search(said) is not None


def status(address: str, action: str, said: str, code: str = "", usual: str | None = None) -> Status:
    """What an event says of a recipient.

    Args:
        address: the recipient's.
        action: `failed`, `soft` or another one.
        said: what the last server said.
        code: its enhanced code, where the provider tells it.
        usual: the code that stands for the provider's own word where the server's words have none.
    """
    known = code if re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", code) else None
    words = bare(said)
    if known is None and usual is not None and not has_code(words):
        known = usual
    return Status((address,), action, known, words)


def is_recent(seconds: str) -> bool:
    """Whether a signed time (Unix, in whole seconds) is one that is believed."""
    if not re.fullmatch(r"\d{1,12}", seconds, re.ASCII):
        return False
    age = time.time() - int(seconds)
    return -FUTURE <= age <= OLDEST

"""What is submitted: the envelope, and the content as it goes over the wire."""

import re
from dataclasses import dataclass, field
from typing import Final

#: What ends the content (RFC 5321 section 4.1.1.4), after the line end that is the content's own.
END_OF_DATA: Final = b".\r\n"

_FORBIDDEN = re.compile(r"[^\x21-\x7e]|[<>]")
_FORBIDDEN_ANYWHERE = re.compile(r"[\x00-\x20\x7f-\x9f<>\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One email as it is handed to a relay.

    Attributes:
        sender: the return path, ASCII; empty for none.
        recipients: the addresses; at least one. Their local parts are ASCII, unless there is international content.
        content: headers and body; line ends of any sort.
        international: the same, in whose header addresses are named that are not ASCII: for a relay that offers
            SMTPUTF8 (RFC 6531). None where there are no such addresses.
        has_line_ends: whether each line of the content is known to end with CRLF.
        held: lives as long as this does: a share of memory.

    Raises:
        ValueError: an address could break out of its command (CR, LF, NUL, space, angle brackets), or is not
            ASCII without international content.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    international: bytes | None = None
    has_line_ends: bool = False
    held: object = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.recipients or not all(self.recipients):
            raise ValueError("an envelope needs at least one recipient, and none that is empty")
        forbidden = _FORBIDDEN if self.international is None else _FORBIDDEN_ANYWHERE
        if _FORBIDDEN.search(self.sender) or forbidden.search("".join(self.recipients)):
            raise ValueError("an address in an envelope must be ASCII without space, control character, < and >")


def normalise(content: bytes) -> bytes:
    """Makes every line end CRLF, the last line's too: a bare CR or LF opens the door to smuggling."""
    return b"\r\n".join([*content.splitlines(), b""])


def stuff_dots(content: bytes) -> bytes:
    """Doubles each dot that begins a line (RFC 5321 section 4.5.2); takes what `normalise` gave."""
    stuffed = content.replace(b"\r\n.", b"\r\n..")
    return b"." + stuffed if stuffed.startswith(b".") else stuffed

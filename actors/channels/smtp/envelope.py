"""What is submitted: the envelope, and the content as it goes over the wire."""

import re
from dataclasses import dataclass
from typing import Final

#: What ends the content (RFC 5321 section 4.1.1.4), after the line end that is the content's own.
END_OF_DATA: Final = b".\r\n"

_FORBIDDEN = re.compile(r"[^\x21-\x7e]|[<>]")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One email as it is handed to a relay.

    Attributes:
        sender: the return path, ASCII; empty for none.
        recipients: the addresses, ASCII; at least one.
        content: headers and body; line ends of any sort.

    Raises:
        ValueError: an address could break out of its command (CR, LF, NUL, space, angle brackets), or is not
            ASCII.
    """

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    def __post_init__(self) -> None:
        if not self.recipients or not all(self.recipients):
            raise ValueError("an envelope needs at least one recipient, and none that is empty")
        for address in (self.sender, *self.recipients):
            if _FORBIDDEN.search(address):
                raise ValueError("an address in an envelope must be ASCII without space, control character, < and >")


def normalise(content: bytes) -> bytes:
    """Makes every line end CRLF, the last line's too: a bare CR or LF opens the door to smuggling."""
    lines = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    return lines if not lines or lines.endswith(b"\r\n") else lines + b"\r\n"


def stuff_dots(content: bytes) -> bytes:
    """Doubles each dot that begins a line (RFC 5321 section 4.5.2); takes what `normalise` gave."""
    stuffed = content.replace(b"\r\n.", b"\r\n..")
    return b"." + stuffed if stuffed.startswith(b".") else stuffed

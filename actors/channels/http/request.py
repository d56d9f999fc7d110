"""What an HTTP session is handed, and what it hears. Frozen values; none of them shows a path, a header or a body."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from actors.ruling import Ruling

#: Seconds that one delivery may take from the first packet to the answer's last: Standard Webhooks asks for 15 to 30.
DEADLINE: Final = 20.0


@dataclass(frozen=True, slots=True)
class Target:
    """A server: what a connection is made to, and kept for.

    Attributes:
        host: a name or an IP address, in lower case, IPv6 without brackets.
        port: the TCP port.
        is_tls: whether it is spoken to over TLS, with its certificate checked.
        allows_private: whether it may have a private address. Connections are not shared across this.
    """

    host: str
    port: int
    is_tls: bool
    allows_private: bool = False

    @property
    def authority(self) -> str:
        """What the Host header says: the port only where it is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.is_tls else 80) else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Request:
    """One request, but for what the transport adds: Host, User-Agent, Accept-Encoding and Content-Length.

    Attributes:
        method: POST or PUT.
        target_path: the path and the query, as they are written.
        headers: names in lower case, and values.
        body: as it is sent.
    """

    method: str
    target_path: str = field(repr=False)
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server said to a request.

    Attributes:
        status: the status code, from 200 on.
        reason: the words behind it; for people.
        headers: names in lower case, and values, in their order.
        body: what was read of it: 64 KB at the most, as it came, never unpacked.
        is_whole: whether that is all of it.
        text: what people may be shown of the body, in a line: without words that the request had, as it may echo it.
        received_at: when its head had come, in seconds since 1970.
    """

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False)
    is_whole: bool
    text: str
    received_at: float

    def values(self, name: str) -> list[str]:
        """The values of a header, by its name in lower case."""
        return [value for key, value in self.headers if key == name]


@dataclass(frozen=True, slots=True)
class HttpPayload:
    """A request, where it goes, and who says what the answer means.

    Attributes:
        endpoint: the endpoint's name.
        target: its server.
        addresses: of the server, as the resolver gives them.
        request: what is asked.
        judge: says what an answer means; pure.
        deadline: seconds that all of it may take.
    """

    endpoint: str
    target: Target
    addresses: tuple[str, ...]
    request: Request
    judge: Callable[[Answer], Ruling] = field(repr=False)
    deadline: float = DEADLINE

    @property
    def recipients(self) -> tuple[str, ...]:
        """The endpoint alone."""
        return (self.endpoint,)

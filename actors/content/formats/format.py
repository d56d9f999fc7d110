"""What a format is: how a message becomes a request for an endpoint, and what its answer means."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from actors.channels.http.endpoint_url import BadUrl, EndpointUrl, parse_endpoint_url
from actors.channels.http.request import Answer, Request
from actors.content.formats.json_text import Json
from actors.ruling import Pace, Phase, Ruling, Scope, one_line
from models.words import Verdict


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where messages go. Its repr shows neither URL nor secrets.

    Attributes:
        name: what operators call it.
        format: the format's name.
        url: as `set_endpoint` took it.
        secrets: the current one first, then those that are being rotated out; each resolved.
        options: what the format needs besides, such as Zulip's `user`.
        allows_private: whether its server may have a private address.
    """

    name: str
    format: str
    url: str = field(repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    allows_private: bool = False

    def parsed_url(self) -> EndpointUrl:
        """The URL, taken apart.

        Raises:
            Unsendable: it is none that an endpoint may have.
        """
        try:
            return parse_endpoint_url(self.url, allows_private=self.allows_private)
        except BadUrl as error:
            blame_endpoint(self.name, str(error))

    def secret(self) -> str:
        """The current secret, which goes into a header.

        Raises:
            Unsendable: there is none, or it has a character that no header takes.
        """
        if not self.secrets:
            blame_endpoint(self.name, "no secret is set")
        secret = self.secrets[0]
        if not (secret.isascii() and secret.isprintable() and secret.strip()):
            blame_endpoint(self.name, "its secret is not one line of printable ASCII")
        return secret

    def option(self, name: str) -> str:
        """An option that the format cannot do without.

        Raises:
            Unsendable: it is not set.
        """
        value = self.options.get(name)
        if not value:
            blame_endpoint(self.name, f"its option {name} is not set")
        return value


@dataclass(frozen=True, slots=True)
class Message:
    """A claimed message.

    Attributes:
        id: the row's.
        wire_id: what receivers know it by, on every attempt: webhook-id, Matrix's transaction id.
        payload_json: the payload, as it is sent wherever the format takes JSON: byte for byte the same on each attempt.
    """

    id: int
    wire_id: str
    payload_json: str = field(repr=False)


class Unsendable(Exception):
    """No request can be made of a message; its text shows no secret and no payload.

    Attributes:
        ruling: what follows.
    """

    def __init__(self, ruling: Ruling) -> None:
        super().__init__(ruling.reply)
        self.ruling = ruling


class Format(Protocol):
    """A way to write messages. It has no state; any thread may call it, and it never waits."""

    @property
    def resends_unknown(self) -> bool:
        """Whether a message whose answer got lost is sent again: receivers throw a second one away by its id."""

    def request(self, endpoint: Endpoint, message: Message, now: float) -> Request:
        """Makes the request.

        Args:
            endpoint: where it goes.
            message: what is sent.
            now: seconds since 1970.

        Raises:
            Unsendable: the endpoint lacks something, or the payload is none of this format.
        """

    def judge(self, answer: Answer) -> Ruling:
        """Says what an answer means."""

    def trial(self, options: Mapping[str, str], text: str) -> Mapping[str, Json]:
        """Makes a payload that says no more than this text: for whoever tries an endpoint.

        Args:
            options: the endpoint's.
            text: what people are to read.
        """


def blame_endpoint(name: str, what: str) -> NoReturn:
    """An endpoint is at fault: its messages keep their place until it is mended.

    Raises:
        Unsendable: always.
    """
    raise Unsendable(Ruling(Verdict.RETRY, Scope.RELAY, Phase.ENDPOINT, reply=one_line(f"endpoint {name}: {what}")))


def blame_payload(what: str) -> NoReturn:
    """A message's payload is at fault: it waits, with long pauses, for somebody to edit or clear it.

    Raises:
        Unsendable: always.
    """
    raise Unsendable(Ruling(Verdict.RETRY, Scope.MESSAGE, Phase.RENDER, reply=f"payload {what}", pace=Pace.BROKEN))

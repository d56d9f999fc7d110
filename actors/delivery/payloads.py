"""Makes a channel's payload of a claimed message: the one place of this folder that knows what HTTP is handed."""

import json
import os
import time
from typing import Final, TypeAlias

from actors.channels.http.endpoint_url import BadUrl, parse_endpoint_url
from actors.channels.http.request import HttpPayload
from actors.channels.http.resolver import Resolver
from actors.content.formats.format import Endpoint, Message, Unsendable
from actors.content.formats.registry import FORMATS
from actors.content.secrets import FILE, resolve_secret
from actors.ruling import Phase, Ruling, Scope
from models.scheduled_messages import ClaimedMessage
from models.words import Verdict

#: What a message is handed to its channel as.
MessagePayload: TypeAlias = HttpPayload


#: Characters of a payload up to which making a request takes no noticeable time.
SMALL: Final = 20_000


class Payloads:
    """Makes requests of messages. May block: asks DNS, reads secrets. Any thread may call it.

    Args:
        resolver: finds the addresses of endpoints' servers.
    """

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    def are_quick(self, message: ClaimedMessage) -> bool:
        """Whether `make` takes no noticeable time, as far as is known. Never waits."""
        if message.url is None or message.format not in FORMATS:
            return True
        secrets = (message.secret, message.former_secret)
        if len(message.payload) > SMALL or any(each is not None and each.startswith(FILE) for each in secrets):
            return False
        try:
            return self._resolver.knows(parse_endpoint_url(message.url, allows_private=message.allow_private).target)
        except BadUrl:
            return True

    def make(self, message: ClaimedMessage) -> MessagePayload | Ruling:
        """The request, or why there is none. It is signed as of now."""
        if message.format is None or message.url is None:
            return Ruling(Verdict.UNDELIVERABLE, Scope.MESSAGE, Phase.ENDPOINT, reply="its endpoint was removed")
        if message.format not in FORMATS:
            said = f"endpoint {message.endpoint}: this release has no format {message.format}"
            return Ruling(Verdict.RETRY, Scope.RELAY, Phase.ENDPOINT, reply=said)
        try:
            endpoint = _endpoint(message, message.format, message.url)
            target = endpoint.parsed_url().target
            addresses = self._resolver.resolve(target)
            if isinstance(addresses, Ruling):
                return addresses
            writer = FORMATS[message.format]
            content = Message(message.id, message.wire_id, message.payload)
            request = writer.request(endpoint, content, time.time())
        except Unsendable as error:
            return error.ruling
        return HttpPayload(message.endpoint, target, addresses, request, writer.judge)


def _endpoint(message: ClaimedMessage, format_name: str, url: str) -> Endpoint:
    stored = [each for each in (message.secret, message.former_secret) if each is not None]
    options = json.loads(message.options or "{}")
    return Endpoint(
        message.endpoint,
        format_name,
        url,
        tuple(resolve_secret(message.endpoint, each, os.environ) for each in stored),
        {str(name): str(value) for name, value in options.items()},
        allows_private=message.allow_private,
    )

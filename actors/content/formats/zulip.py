"""Messages to Zulip's streams and people, by its API.

Endpoint: the organization's URL; the secret is a bot's API key, the option `user` its email address. Options `type`,
`to` and `topic` are used where a payload does not say them. Payload: an object with `content` (a string that is not
empty, at most 10,000 characters: Zulip cuts longer ones), and perhaps `type` (`stream`, which is the default, or
`channel`; `direct` or `private`), `to` (a stream's name or id; a list of addresses or ids of people) and `topic` (at
most 60 characters); nothing else. No deduplication: what may have arrived is held.
"""

import base64
import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode

from actors.channels.http.request import Answer, Request
from actors.channels.http.retry_after import capped
from actors.channels.http.verdicts import at_fault, judge, paused
from actors.content.formats.format import Endpoint, Message, blame_endpoint, blame_payload
from actors.content.formats.json_text import Json, json_object, number, word
from actors.ruling import Ruling, Scope
from models.words import Verdict

PATH: Final = "/api/v1/messages"

_KEYS: Final = frozenset({"type", "to", "topic", "content"})
_PRIVATE: Final = frozenset({"direct", "private"})

#: Errors that say the bot's login is wrong, or that it or its organization is switched off.
_ABOUT_US: Final = frozenset(
    {"UNAUTHORIZED", "INVALID_API_KEY", "UNAUTHENTICATED_USER", "USER_DEACTIVATED", "REALM_DEACTIVATED"}
)


class Zulip:
    """The format `zulip`."""

    resends_unknown = False

    def request(self, endpoint: Endpoint, message: Message, now: float) -> Request:  # noqa: ARG002 - nothing is signed
        """Makes a POST of a form, with the bot's login."""
        url = endpoint.parsed_url()
        path = url.path.rstrip("/").removesuffix(PATH) + PATH
        headers = (
            ("content-type", "application/x-www-form-urlencoded"),
            ("authorization", f"Basic {_login(endpoint)}"),
        )
        return Request("POST", path + url.query, headers, urlencode(_form(endpoint, message)).encode("ascii"))

    def judge(self, answer: Answer) -> Ruling:
        """The status, then `result` and `code`."""
        ruling, said = judge(answer), json_object(answer.body)
        if said is None:
            return _without_result(answer, ruling)
        code = word(said.get("code"))
        if ruling.verdict is Verdict.SENT and said.get("result") == "success":
            return ruling
        if code in _ABOUT_US:
            return at_fault(ruling, code)
        if code == "RATE_LIMIT_HIT" and ruling.retry_after is None:
            return paused(ruling, capped(number(said.get("retry-after"))))
        if ruling.verdict is Verdict.SENT:
            return ruling._replace(verdict=Verdict.UNDELIVERABLE, scope=Scope.MESSAGE, reply=code or "no success")
        return ruling._replace(reply=code or ruling.reply)

    def trial(self, options: Mapping[str, str], text: str) -> Mapping[str, Json]:
        """A text to where the options lead; without `to` there, to the bot itself."""
        if not options.get("to"):
            return {"type": "direct", "to": [options.get("user", "")], "content": text}
        is_private = options.get("type") in _PRIVATE
        return {"content": text} if is_private or options.get("topic") else {"content": text, "topic": "Duepost"}


def _without_result(answer: Answer, ruling: Ruling) -> Ruling:
    """What an answer means that is not Zulip's, or not all of it."""
    if ruling.verdict is not Verdict.SENT:
        return ruling
    if not answer.is_whole:
        return ruling._replace(verdict=Verdict.UNKNOWN, scope=Scope.MESSAGE, reply="the answer was cut short")
    return at_fault(ruling, "the answer is not Zulip's: is the URL the organization's?")


def _login(endpoint: Endpoint) -> str:
    user, key = endpoint.option("user"), endpoint.secret()
    if ":" in user:
        blame_endpoint(endpoint.name, "its option user is not an email address")
    return base64.b64encode(f"{user}:{key}".encode()).decode("ascii")


def _form(endpoint: Endpoint, message: Message) -> list[tuple[str, str]]:
    payload = json_object(message.payload_json)
    if payload is None or not payload.keys() <= _KEYS:
        blame_payload("must be an object with content, and perhaps type, to and topic")
    content = payload.get("content")
    if not isinstance(content, str) or not content.strip():
        blame_payload("must have content, a string that is not empty")
    said: Mapping[str, Json] = {**endpoint.options, **payload}
    kind = said.get("type", "stream")
    if not isinstance(kind, str):
        blame_payload("must have a string as type")
    form = [("type", kind), ("to", _to(said.get("to"), is_private=kind in _PRIVATE)), ("content", content)]
    topic = said.get("topic")
    if isinstance(topic, str) and kind not in _PRIVATE:
        form.append(("topic", topic))
    return form


def _to(to: Json, *, is_private: bool) -> str:
    """Who gets it: a stream by name or id, people as a list."""
    if isinstance(to, str | int) and not isinstance(to, bool) and is_private:
        to = [to]
    if isinstance(to, list) and to:
        return json.dumps(to)
    if isinstance(to, bool) or not isinstance(to, str | int) or not str(to):
        blame_payload("must have to: a stream's name or id, or a list of people")
    return str(to)

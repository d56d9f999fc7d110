"""Messages to a Matrix room: events with a transaction id, so that repeated attempts make one event.

Endpoint: the homeserver's URL; the secret is an access token, the option `room` the room's id (`!…`; no alias).
Payload: the event's content, an object such as `{"msgtype": "m.text", "body": "…"}`, at most 65,536 bytes. A homeserver
knows transaction ids by device: after a new login, with a new token, it no longer knows the old ones.
"""

from collections.abc import Mapping
from urllib.parse import quote

from actors.channels.http.request import Answer, Request
from actors.channels.http.retry_after import capped
from actors.channels.http.verdicts import judge, paused
from actors.content.formats.format import Endpoint, Message
from actors.content.formats.json_text import Json, json_object, number, word
from actors.ruling import Ruling, Scope, one_line
from models.words import Verdict


class Matrix:
    """The format `matrix`."""

    resends_unknown = True

    def request(self, endpoint: Endpoint, message: Message, now: float) -> Request:  # noqa: ARG002 - nothing is signed
        """Makes a PUT of the payload as it is."""
        url = endpoint.parsed_url()
        room, transaction = quote(endpoint.option("room"), safe=""), quote(message.wire_id, safe="")
        path = f"{url.path.rstrip('/')}/_matrix/client/v3/rooms/{room}/send/m.room.message/{transaction}"
        headers = (("content-type", "application/json"), ("authorization", f"Bearer {endpoint.secret()}"))
        return Request("PUT", path + url.query, headers, message.payload_json.encode())

    def judge(self, answer: Answer) -> Ruling:
        """The status; a 2xx counts only with an event's id."""
        ruling, said = judge(answer), json_object(answer.body) or {}
        if ruling.verdict is Verdict.SENT:
            if isinstance(said.get("event_id"), str):
                return ruling
            return ruling._replace(verdict=Verdict.UNKNOWN, scope=Scope.MESSAGE, reply="the answer has no event_id")
        if error := word(said.get("errcode")):
            ruling = ruling._replace(reply=one_line(error))
        if ruling.code == 429 and ruling.retry_after is None:
            return paused(ruling, capped(number(said.get("retry_after_ms")) / 1000))
        return ruling

    def trial(self, options: Mapping[str, str], text: str) -> Mapping[str, Json]:  # noqa: ARG002 - they have none
        """A notice, which no bot answers."""
        return {"msgtype": "m.notice", "body": text}

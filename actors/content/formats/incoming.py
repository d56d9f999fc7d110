"""Incoming webhooks of chats: JSON that is posted to a secret URL, and answered with `ok`."""

from actors.channels.http.request import Answer, Request
from actors.channels.http.verdicts import at_fault, judge
from actors.content.formats.format import Endpoint, Message
from actors.ruling import Ruling, Scope
from models.words import Verdict


def posted(endpoint: Endpoint, message: Message) -> Request:
    """Makes a POST of the payload as it is."""
    url = endpoint.parsed_url()
    headers = (("content-type", "application/json"),)
    return Request("POST", url.path + url.query, headers, message.payload_json.encode())


def judge_ok(answer: Answer) -> Ruling:
    """A 2xx counts only with `ok`: some other page answers as well, such as a login's."""
    ruling = judge(answer)
    if ruling.verdict is not Verdict.SENT or answer.body.strip() == b"ok":
        return ruling
    if not answer.is_whole:
        return ruling._replace(verdict=Verdict.UNKNOWN, scope=Scope.MESSAGE, reply="the answer was cut short")
    return at_fault(ruling, "the answer is not ok: is the URL that of an incoming webhook?")

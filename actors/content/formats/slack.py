"""Slack's incoming webhooks.

Endpoint: the webhook's URL, which is its secret. Payload: an object with at least one of `text` (a string that is not
empty, at most 40,000 characters), `blocks` (1 to 50; a section's `text.text` has at most 3,000 characters) and
`attachments` (1 to 100). No deduplication: what may have arrived is held.
"""

from collections.abc import Mapping

from actors.channels.http.request import Answer, Request
from actors.channels.http.retry_after import capped
from actors.channels.http.verdicts import paused
from actors.content.formats.format import Endpoint, Message
from actors.content.formats.incoming import judge_ok, posted
from actors.content.formats.json_text import Json, json_object, number
from actors.ruling import Ruling


class Slack:
    """The format `slack`."""

    resends_unknown = False

    def request(self, endpoint: Endpoint, message: Message, now: float) -> Request:  # noqa: ARG002 - nothing is signed
        """Makes a POST of the payload as it is."""
        return posted(endpoint, message)

    def judge(self, answer: Answer) -> Ruling:
        """The status, `ok`, and of a 429 what its body says where no header does."""
        ruling = judge_ok(answer)
        said = json_object(answer.body) if ruling.code == 429 and ruling.retry_after is None else None
        return ruling if said is None else paused(ruling, capped(number(said.get("retry_after"))))

    def trial(self, options: Mapping[str, str], text: str) -> Mapping[str, Json]:  # noqa: ARG002 - they have none
        """A text."""
        return {"text": text}

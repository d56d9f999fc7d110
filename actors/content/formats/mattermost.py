"""Mattermost's incoming webhooks.

Endpoint: the webhook's URL, which is its secret. Payload: an object with `text` (a string that is not empty, at most
16,383 characters) or `attachments` (a list that is not empty), or both. No deduplication: what may have arrived is
held.
"""

from collections.abc import Mapping
from typing import Final

from actors.channels.http.request import Answer, Request
from actors.channels.http.verdicts import at_fault
from actors.content.formats.format import Endpoint, Message
from actors.content.formats.incoming import judge_ok, posted
from actors.content.formats.json_text import Json, json_object, word
from actors.ruling import Ruling

#: Errors that say the webhook is wrong, removed or may not post, whatever their status: 400 and 501 among them.
_ABOUT_US: Final = frozenset(
    f"web.incoming_webhook.{what}.app_error"
    for what in ("invalid", "disabled", "user", "channel", "channel_locked", "permissions")
)


class Mattermost:
    """The format `mattermost`."""

    resends_unknown = False

    def request(self, endpoint: Endpoint, message: Message, now: float) -> Request:  # noqa: ARG002 - nothing is signed
        """Makes a POST of the payload as it is."""
        return posted(endpoint, message)

    def judge(self, answer: Answer) -> Ruling:
        """The status, `ok`, and the id of an error."""
        ruling = judge_ok(answer)
        said = json_object(answer.body) if answer.status >= 400 else None
        error = word(said.get("id")) if said is not None else ""
        return at_fault(ruling, error) if error in _ABOUT_US else ruling

    def trial(self, options: Mapping[str, str], text: str) -> Mapping[str, Json]:  # noqa: ARG002 - they have none
        """A text."""
        return {"text": text}

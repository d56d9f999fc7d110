"""All formats that go over HTTP, by name. They have no state."""

from collections.abc import Mapping
from typing import Final

from actors.content.formats.format import Format
from actors.content.formats.matrix import Matrix
from actors.content.formats.mattermost import Mattermost
from actors.content.formats.slack import Slack
from actors.content.formats.webhook import Webhook
from actors.content.formats.zulip import Zulip

FORMATS: Final[Mapping[str, Format]] = {
    "webhook": Webhook(),
    "slack": Slack(),
    "mattermost": Mattermost(),
    "zulip": Zulip(),
    "matrix": Matrix(),
}

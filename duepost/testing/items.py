"""What is scheduled, as a test sees it, and what matches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Item:
    """An email or a message that is not finished.

    Attributes:
        id: its id.
        channel: `email` or `message`.
        kind: what sort of email or message it is.
        scheduled_at: when it was to be sent, by the clock that the test has moved.
        due_at: when it is tried next.
        expires_at: after this moment it is not sent any more.
        users: ids of its users, in their order as texts.
        address: to whom an email goes; as a criterion, also one of several who see each other.
        addresses: to whom it goes, where they see each other; only those who are still to get it, here and below.
        cc: who gets it besides.
        bcc: who gets it and is named nowhere.
        template: the template's name.
        context: what that is rendered with.
        subject: the subject of an email without a template.
        body_text: its plain-text body.
        body_html: its HTML body.
        endpoint: where a message goes.
        payload: what it says.
        key: what made the call idempotent.
        sender: who sends an email, where it is not the default.
        reply_to: where replies go.
        headers: further header fields.
        state: `scheduled`, `queued`, `sending` or `unknown`.
        last_error: what the last attempt came to.
    """

    id: int
    channel: str
    kind: str
    scheduled_at: datetime
    due_at: datetime
    expires_at: datetime | None
    users: Sequence[str]
    address: str | None
    addresses: Sequence[str]
    cc: Sequence[str]
    bcc: Sequence[str]
    template: str | None
    context: Mapping[str, object] | None
    subject: str | None
    body_text: str | None
    body_html: str | None
    endpoint: str | None
    payload: object
    key: str | None
    sender: str | None
    reply_to: str | None
    headers: Mapping[str, str] | None
    state: str
    last_error: str | None

    def __str__(self) -> str:
        """The item in a line: what it is, to whom, when, and of what."""
        told = {
            "users": ", ".join(self.users),
            "address": self.address,
            "addresses": ", ".join(self.addresses),
            "cc": ", ".join(self.cc),
            "bcc": ", ".join(self.bcc),
            "endpoint": self.endpoint,
            "at": self.scheduled_at.isoformat(),
            "template": self.template,
            "context": self.context or None,
            "subject": self.subject,
            "payload": self.payload,
            "key": self.key,
            "state": self.state if self.state != "scheduled" else None,
            "last_error": self.last_error,
        }
        return f"{self.channel} {self.id} {self.kind}: " + ", ".join(
            f"{name} {value}" for name, value in told.items() if value
        )

    def matches(self, wanted: Mapping[str, object]) -> bool:
        """Whether it has all that is wanted, by attribute; `user` is one of its users.

        Of objects such as `context` and `payload` only the keys that are wanted have to be there.
        """
        return all(self._matches(name, value) for name, value in wanted.items())

    def _matches(self, name: str, wanted: object) -> bool:
        if name == "user":
            return str(wanted) in self.users
        if name == "users" and isinstance(wanted, Sequence):
            return sorted(map(str, wanted)) == sorted(self.users)
        if name == "address" and isinstance(wanted, str):
            everybody = (self.address or "", *self.addresses, *self.cc, *self.bcc)
            return wanted.lower() in {each.lower() for each in everybody}
        return is_part(wanted, getattr(self, name))


#: What may be asked of an item.
CRITERIA = (*(field.name for field in fields(Item)), "user")


def is_part(wanted: object, found: object) -> bool:
    """Whether what is wanted is what was found, or, key by key, a part of it."""
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        return all(key in found and is_part(value, found[key]) for key, value in wanted.items())
    return wanted == found

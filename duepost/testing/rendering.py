"""An email as a worker would hand it to the relay, as a parsed message."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING

from duepost.extras import needs

if TYPE_CHECKING:
    from duepost.app.actors.content.html import HtmlPreparer


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who gets a copy; a user without an address is not to be had."""

    user_id: str | None = None
    address: str | None = None
    name: str | None = None
    locale: str | None = None
    timezone: str | None = None
    active: bool = True

    @classmethod
    def of_row(cls, row: Mapping[str, object]) -> "Recipient":
        """The recipient of a row of `duepost.recipient`."""
        text = {name: None if row[name] is None else str(row[name]) for name in ("name", "locale", "timezone")}
        address = row["address"]
        return cls(
            user_id=str(row["user_id"]),
            address=None if address is None else str(address).strip(),
            active=bool(row["active"]),
            **text,
        )

    @property
    def told(self) -> Mapping[str, str | None]:
        """What templates see of it."""
        return {
            "user_id": self.user_id,
            "address": self.address,
            "name": self.name,
            "locale": self.locale,
            "timezone": self.timezone,
            "unsubscribe_url": None,
        }


class Renderer:
    """Builds messages with the workers' own code, which is loaded when the first one is built.

    Args:
        templates: the folder of templates; DUEPOST_TEMPLATES, or `templates`, if it is None.
        sender: whom emails are from that name nobody.
    """

    def __init__(self, templates: Path | str | None, sender: str) -> None:
        self._folder = Path(templates or os.environ.get("DUEPOST_TEMPLATES") or "templates")
        self._sender = sender
        self._preparer: HtmlPreparer | None = None

    def message(self, row: Mapping[str, object], recipient: Recipient) -> EmailMessage:
        """Renders an email for a recipient.

        Args:
            row: the email, as its table has it.
            recipient: who gets it; has an address, unless several get it together.

        Raises:
            RenderError: the template is missing or fails.
            ValueError: its content makes no message.
        """
        with needs("testing", "rendering"):
            import duepost.app  # noqa: F401, PLC0415 - finds the workers' modules, whatever the host's are called
            from duepost.app.actors.content.addresses import Mailbox, parse_sender  # noqa: PLC0415
            from duepost.app.actors.content.mime import build_message  # noqa: PLC0415
            from duepost.app.actors.content.templates import Content, Templates  # noqa: PLC0415
            from duepost.app.actors.liveness.time_limit import TimeLimit  # noqa: PLC0415

        if row["template"] is None:
            content = Content(row["subject"] or "", row["body_text"], row["body_html"])
        else:
            context = row["context"] if isinstance(row["context"], dict) else {}
            templates = Templates(
                self._folder, TimeLimit(), trim_blocks=_is_on("DUEPOST_TRIM_BLOCKS"), preparer=self._html_preparer()
            )
            content = templates.render(str(row["template"]), {**context, "recipient": recipient.told})
        seen = row["recipients"] if isinstance(row["recipients"], list) else []

        def named(field: str) -> list[Mailbox]:
            return [Mailbox(each["name"] or "", each["address"]) for each in seen if each["field"] == field]

        written = build_message(
            content=content,
            sender=parse_sender(str(row["sender"] or self._sender)),
            recipients=named("to") or ([Mailbox(recipient.name or "", recipient.address)] if recipient.address else []),
            copies=named("cc"),
            message_id=str(row["message_id_header"]),
            date=datetime.fromisoformat(str(row["date_header"])),
            reply_to=row["reply_to"],
            headers=row["headers"] or {},
        )
        return parsed(written)

    def _html_preparer(self) -> "HtmlPreparer | None":
        """What prepares HTML, where workers have it prepared.

        Raises:
            MissingLibrary: what it needs is not installed.
        """
        from duepost.app.actors.content.html import HtmlPreparer, check_libraries  # noqa: PLC0415
        from duepost.app.actors.content.templates import LONGEST_BODY, TIMEOUT  # noqa: PLC0415

        if self._preparer is None and _is_on("DUEPOST_PREPARE_HTML"):
            check_libraries()
            self._preparer = HtmlPreparer(TIMEOUT, LONGEST_BODY)
        return self._preparer


def _is_on(variable: str) -> bool:
    """Whether a switch of the environment is on, as workers read it."""
    return os.environ.get(variable, "").strip().lower() in {"1", "true", "yes", "on"}


def parsed(written: bytes) -> EmailMessage:
    """Returns an email that came over the wire as a message, its lines ended as Python's are."""
    found = message_from_bytes(written.replace(b"\r\n", b"\n"), policy=policy.default)
    assert isinstance(found, EmailMessage)  # noqa: S101 - the policy makes them
    return found

"""What the mail catcher of `duepost up` took: for people, and for tests that wait for an email."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import policy
from email.message import EmailMessage, MIMEPart
from email.parser import BytesParser
from pathlib import Path
from urllib.parse import quote

from starlette.responses import Response

from duepost.catcher import unpack
from duepost.web.answers import Refused
from duepost.web.desk import Asked
from duepost.web.screens import ROWS, framed

#: What an email's file is called: the moment, the process, a number. They sort by time.
NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{6}-\d+-\d+")

#: Seconds that a test may wait for an email, and between two looks.
LONGEST_WAIT, LOOK = 60.0, 0.1

#: Emails, the newest, that a search looks at.
MOST_SEARCHED = 2_000

_PARSER = BytesParser(policy=policy.default)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A part with a file's name, or one that no mail program shows."""

    number: int
    name: str
    content_type: str
    size: int


@dataclass(frozen=True, slots=True)
class Caught:
    """An email that was caught.

    Attributes:
        name: of its file, without the ending.
        recipients: of the envelope.
        at: when it came in (UTC).
        message: as it was parsed.
        source: its bytes.
    """

    name: str
    recipients: Sequence[str]
    at: datetime
    message: EmailMessage = field(repr=False)
    source: bytes = field(repr=False)

    @property
    def subject(self) -> str:
        """Its subject."""
        return self.header("Subject")

    @property
    def sender(self) -> str:
        """Whom its From header names."""
        return self.header("From")

    @property
    def text(self) -> str | None:
        """Its plain text."""
        return self._body("plain")

    @property
    def html(self) -> str | None:
        """Its HTML."""
        return self._body("html")

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All of them, in order."""
        return [(name, self._shown(name, number)) for number, name in enumerate(self.message.keys())]

    @property
    def attachments(self) -> list[Attachment]:
        """What is attached."""
        return [
            Attachment(number, part.get_filename() or "attachment", part.get_content_type(), len(_bytes(part)))
            for number, part in enumerate(self._attached())
        ]

    def attachment(self, number: int) -> tuple[str, bytes]:
        """The name and the bytes of one.

        Raises:
            Refused: there is no such attachment.
        """
        for at, part in enumerate(self._attached()):
            if at == number:
                return part.get_filename() or "attachment", _bytes(part)
        raise Refused(404, "There is no such attachment.")

    def header(self, name: str) -> str:
        """A header's value, the first; empty where there is none, or where nobody can read it."""
        try:
            return str(self.message.get(name, ""))
        except (ValueError, LookupError, AttributeError, IndexError, TypeError):
            return "(cannot be read)"

    def as_json(self) -> dict[str, object]:
        """As a test gets it."""
        return {
            "id": self.name,
            "at": self.at.isoformat(),
            "recipients": list(self.recipients),
            "from": self.sender,
            "subject": self.subject,
            "text": self.text,
            "html": self.html,
            "headers": self.headers,
            "attachments": [
                {"name": each.name, "content_type": each.content_type, "size": each.size} for each in self.attachments
            ],
        }

    def _shown(self, name: str, number: int) -> str:
        try:
            return str(self.message.values()[number])
        except (ValueError, LookupError, AttributeError, IndexError, TypeError):
            return f"({name} cannot be read)"

    def _body(self, sort: str) -> str | None:
        try:
            part = self.message.get_body((sort,))
            if part is None:
                return None
            return _bytes(part).decode(part.get_content_charset("utf-8"), "replace")
        except (ValueError, LookupError, AttributeError, TypeError):
            return None

    def _attached(self) -> Iterator[EmailMessage]:
        try:
            yield from (part for part in self.message.iter_attachments() if isinstance(part, EmailMessage))
        except (ValueError, LookupError, AttributeError, TypeError):
            return


@dataclass(frozen=True, slots=True)
class Inbox:
    """A mail catcher's folder.

    Args:
        folder: where each email is a file.
    """

    folder: Path

    def names(self) -> list[str]:
        """Of all emails, the newest first."""
        try:
            found = [path.stem for path in self.folder.iterdir() if path.suffix == ".eml"]
        except OSError:
            return []
        return sorted(filter(NAME.fullmatch, found), reverse=True)

    def read(self, name: str) -> Caught:
        """One email.

        Raises:
            Refused: there is no such email.
        """
        if not NAME.fullmatch(name):
            raise Refused(404, "There is no such email.")
        try:
            stored = (self.folder / f"{name}.eml").read_bytes()
        except OSError:
            raise Refused(404, "There is no such email, or no longer.") from None
        recipients, source = unpack(stored)
        moment = datetime.strptime(name[:26], "%Y-%m-%dT%H-%M-%S.%f").replace(tzinfo=UTC)
        return parsed(name, recipients, moment, source)

    def page(self, before: str, to: str, subject: str, limit: int) -> tuple[list[Caught], str | None]:
        """A page of emails that fit, and the name that the next one begins before; None where this is the last."""
        names = [name for name in self.names() if not before or name < before][:MOST_SEARCHED]
        found: list[Caught] = []
        for name in names:
            caught = self.read(name)
            if fits(caught, to, subject):
                found.append(caught)
            if len(found) == limit:
                return found, name if name != names[-1] else None
        return found, None

    def wait(self, after: str, to: str, subject: str, seconds: float) -> Caught | None:
        """The oldest email that fits and came after another one (any without it); None where none comes in time."""
        until = time.monotonic() + seconds
        seen: set[str] = set()
        while True:
            for name in reversed([name for name in self.names() if name > after and name not in seen]):
                seen.add(name)
                caught = self.read(name)
                if fits(caught, to, subject):
                    return caught
            if time.monotonic() >= until:
                return None
            time.sleep(LOOK)


def parsed(name: str, recipients: Sequence[str], at: datetime, source: bytes) -> Caught:
    """An email out of its bytes."""
    message = _PARSER.parsebytes(source)
    # The policy's own parser makes these.
    assert isinstance(message, EmailMessage)  # noqa: S101
    return Caught(name, recipients, at, message, source)


def fits(caught: Caught, to: str, subject: str) -> bool:
    """Whether an email is for this recipient, and has these words in its subject; what is empty fits all."""
    return (not to or to.lower() in {each.lower() for each in caught.recipients}) and subject in caught.subject


def _bytes(part: MIMEPart) -> bytes:
    content = part.get_payload(decode=True)
    if isinstance(content, bytes):
        return content
    try:
        return part.as_bytes()
    except (ValueError, LookupError, TypeError, AttributeError):
        return b""


@dataclass(frozen=True, slots=True)
class InboxScreens:
    """The screens of an inbox."""

    inbox: Inbox

    def listed(self, asked: Asked) -> Response:
        """The newest emails."""
        to, subject = asked.query.get("to", "").strip(), asked.query.get("subject", "")
        found, following = self.inbox.page(asked.query.get("before", ""), to, subject, ROWS)
        return asked.page("inbox.html", found=found, following=following, to=to, subject=subject, at=datetime.now(UTC))

    def one(self, asked: Asked) -> Response:
        """One email: HTML, text, headers, attachments, source."""
        return asked.page("caught.html", caught=self._caught(asked))

    def html(self, asked: Asked) -> Response:
        """Its HTML, in a frame that runs nothing and loads nothing."""
        return framed(self._caught(asked).html or "")

    def source(self, asked: Asked) -> Response:
        """Its bytes, as text."""
        return Response(self._caught(asked).source, media_type="text/plain; charset=utf-8")

    def attachment(self, asked: Asked) -> Response:
        """One attachment, to be saved: a browser opens none."""
        number = str(asked.path["number"])
        if not (number.isascii() and number.isdigit() and len(number) < 6):
            raise Refused(404, "There is no such attachment.")
        name, content = self._caught(asked).attachment(int(number))
        disposition = f"attachment; filename*=UTF-8''{quote(name, safe='', errors='replace')}"
        return Response(content, media_type="application/octet-stream", headers={"Content-Disposition": disposition})

    def waited(self, asked: Asked) -> Response:
        """The next email that fits, as JSON, as soon as there is one; 404 where none comes in time."""
        try:
            seconds = float(asked.query.get("seconds", "10"))
        except ValueError:
            seconds = -1.0
        if not 0 <= seconds <= LONGEST_WAIT:
            raise Refused(400, f"seconds: must be a number from 0 to {LONGEST_WAIT:g}.")
        query = asked.query
        caught = self.inbox.wait(query.get("after", ""), query.get("to", ""), query.get("subject", ""), seconds)
        content = {"error": "no such email came in time"} if caught is None else caught.as_json()
        body = json.dumps(content, ensure_ascii=True)
        return Response(body, 404 if caught is None else 200, media_type="application/json")

    def _caught(self, asked: Asked) -> Caught:
        return self.inbox.read(str(asked.path["name"]))

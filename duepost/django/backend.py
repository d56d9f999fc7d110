"""The email backend: what Django sends is scheduled, in the transaction that is open."""

from collections.abc import Sequence
from email.message import Message
from typing import NamedTuple

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import Error, connections, transaction

from duepost import client
from duepost.django.schema import alias, need_postgres

#: The kind of emails that name none: the setting DUEPOST_KIND, or this.
KIND = "django"

#: Headers of a message that say how to schedule it, and the arguments that they are.
ARGUMENT_HEADERS = {
    "x-duepost-kind": "kind",
    "x-duepost-key": "key",
    "x-duepost-scheduled-at": "scheduled_at",
    "x-duepost-expires-at": "expires_at",
}

#: Bytes that a header may have.
LONGEST_HEADER = 8_192


class Unsupported(ValueError):
    """A message has something that Duepost cannot send yet; the message names the field and what to do."""


class EmailBackend(BaseEmailBackend):  # type: ignore[misc]  # Django has no types
    """Schedules each message in the transaction that is open on the database that Duepost is in.

    A message is one email, which its recipients see together. None is sent before the transaction commits, and nothing
    if it rolls back.

    Args:
        fail_silently: whether a message that cannot be scheduled is passed over.
        using: the database's alias; the setting DUEPOST_DATABASE, or the default, if it is left out.
        kind: the kind of messages that name none.
        **options: what `django.core.mail.get_connection()` gives besides, such as `username`: of no use here.
    """

    def __init__(
        self, fail_silently: bool = False, *, using: str | None = None, kind: str | None = None, **options: object
    ) -> None:
        super().__init__(fail_silently=fail_silently, **options)
        self._using = using
        self._kind = kind

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """Schedules messages; returns how many.

        Raises:
            ImproperlyConfigured: the database is not PostgreSQL.
            Unsupported: a message has something that cannot be sent.
            django.db.Error: the database refuses one: SQLSTATE 22023, and the message begins with the argument.
        """
        return sum(self._schedule(message) for message in email_messages or ())

    def _schedule(self, message: EmailMessage) -> bool:
        """Schedules one message; says whether it has any recipient."""
        using = self._using or alias()
        need_postgres(using)
        try:
            email = email_of(message, self._kind or str(getattr(settings, "DUEPOST_KIND", KIND)))
            if email is None:
                return False
            # What fails is undone alone: the caller's transaction goes on.
            with transaction.atomic(using=using), connections[using].cursor() as cursor:
                if files := files_of(message):
                    email["attachments"] = [client.attachment(cursor, *file) for file in files]
                client.schedule_email(cursor, **email)  # type: ignore[arg-type]  # its arguments, by name
        except (Error, ValueError, TypeError):
            if not self.fail_silently:
                raise
            return False
        return True


def email_of(message: EmailMessage, kind: str) -> dict[str, object] | None:
    """Returns the email that a message is; None where it has no recipient.

    Raises:
        Unsupported: it has something that cannot be sent.
    """
    headers = {str(name): str(value) for name, value in message.extra_headers.items()}
    email: dict[str, object] = {"kind": kind, "subject": str(message.subject), **_bodies(message)}
    email |= {argument: headers.pop(name) for name in list(headers) if (argument := ARGUMENT_HEADERS.get(name.lower()))}
    email |= {"sender": _taken(headers, "from") or str(message.from_email)}
    if reply_to := _reply_to(message, headers):
        email["reply_to"] = reply_to
    recipients = _recipients(message, headers)
    return {**email, **recipients, "headers": headers} if recipients else None


def _recipients(message: EmailMessage, headers: dict[str, str]) -> dict[str, object]:
    """Whom it goes to, as arguments; none where there is nobody.

    What a header of the message's own says of them cannot be To or Cc: it goes along as X-Original-To, and then nobody
    is named in either.
    """
    fields = {
        "addresses": [str(each) for each in message.to if each],
        "cc": [str(each) for each in message.cc if each],
        "bcc": [str(each) for each in message.bcc if each],
    }
    given = {f"X-Original-{name}": _taken(headers, name.lower()) for name in ("To", "Cc")}
    headers |= {name: _checked(value) for name, value in given.items() if value}
    everybody = [each for field in fields.values() for each in field]
    if len(everybody) <= 1:
        return {"address": everybody[0]} if everybody else {}
    if any(given.values()):
        return {"addresses": [], "bcc": everybody}
    return {name: field for name, field in fields.items() if field or name == "addresses"}


class File(NamedTuple):
    """A file of a message, as `duepost.attachment()` takes it."""

    filename: str | None
    content: bytes
    content_type: str | None
    cid: str | None


def files_of(message: EmailMessage) -> list[File]:
    """Returns the files of a message: those that were attached by name, and parts that were made by hand."""
    files = [_part(each) if hasattr(each, "get_payload") else _file(*each) for each in message.attachments]
    return files + [
        File("invite.ics", _bytes(content), str(mimetype), None)
        for content, mimetype in getattr(message, "alternatives", None) or ()
        if str(mimetype).startswith("text/calendar")
    ]


def _file(filename: str | None, content: object, mimetype: str | None) -> File:
    if hasattr(content, "as_bytes"):
        content = content.as_bytes()
    elif isinstance(content, EmailMessage):
        content = content.message().as_bytes()
    return File(filename, _bytes(content), mimetype, None)


def _part(part: Message) -> File:
    """A part that was made by hand, such as a picture with a Content-ID."""
    cid = str(part["Content-ID"] or "").strip().strip("<>") or None
    if part.get_content_maintype() == "message":
        inner = part.get_payload()
        content = inner[0].as_bytes() if isinstance(inner, list) and inner else b""  # type: ignore[union-attr]
    else:
        content = _bytes(part.get_payload(decode=True) or b"")
    return File(part.get_filename(), content, part.get_content_type(), cid)


def _bytes(content: object) -> bytes:
    return content if isinstance(content, bytes) else str(content).encode()


def _bodies(message: EmailMessage) -> dict[str, str]:
    """The bodies: text, HTML or both.

    Raises:
        Unsupported: there is an alternative of another sort.
    """
    own = "body_html" if message.content_subtype == "html" else "body_text"
    bodies = {own: str(message.body)}
    for content, mimetype in getattr(message, "alternatives", None) or ():
        if str(mimetype).startswith("text/calendar"):
            # An invitation goes with the files.
            continue
        name = {"text/html": "body_html", "text/plain": "body_text"}.get(mimetype)
        if name is None or bodies.get(name, "").strip():
            raise Unsupported(f"alternatives: Duepost sends one text and one HTML, not {mimetype} besides")
        bodies[name] = content.decode() if isinstance(content, bytes) else str(content)
    return {name: body for name, body in bodies.items() if body.strip()} or {own: str(message.body)}


def _reply_to(message: EmailMessage, headers: dict[str, str]) -> str | None:
    given = _taken(headers, "reply-to")
    found = [given] if given else [str(each) for each in message.reply_to]
    if len(found) > 1:
        raise Unsupported("reply_to: Duepost takes one address")
    return found[0] if found else None


def _taken(headers: dict[str, str], name: str) -> str | None:
    """Takes a header out, whatever the case of its name."""
    for each in [each for each in headers if each.lower() == name]:
        return headers.pop(each)
    return None


def _checked(value: str) -> str:
    if len(value.encode()) > LONGEST_HEADER:
        raise Unsupported("to: a header is longer than one may be")
    return value

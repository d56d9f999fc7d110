"""The email backend: what Django sends is scheduled, in the transaction that is open."""

import re
from collections.abc import Sequence

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

#: An address with a name before it.
_NAMED = re.compile(r"(?s)(?P<name>.*)<(?P<address>[^<>]*)>\s*")


class Unsupported(ValueError):
    """A message has something that Duepost cannot send yet; the message names the field and what to do."""


class EmailBackend(BaseEmailBackend):  # type: ignore[misc]  # Django has no types
    """Schedules each message in the transaction that is open on the database that Duepost is in.

    A message to several recipients is an email for each. None of it is sent before the transaction commits, and nothing
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
            Unsupported: a message has attachments, or something else that cannot be sent.
            django.db.Error: the database refuses one: SQLSTATE 22023, and the message begins with the argument.
        """
        return sum(self._schedule(message) for message in email_messages or ())

    def _schedule(self, message: EmailMessage) -> bool:
        """Schedules one message, for all of its recipients or none; says whether it has any."""
        using = self._using or alias()
        need_postgres(using)
        try:
            emails = emails_of(message, self._kind or str(getattr(settings, "DUEPOST_KIND", KIND)))
            if not emails:
                return False
            # What fails is undone alone: the caller's transaction goes on.
            with transaction.atomic(using=using), connections[using].cursor() as cursor:
                client.schedule_emails(cursor, emails)
        except (Error, ValueError, TypeError):
            if not self.fail_silently:
                raise
            return False
        return True


def emails_of(message: EmailMessage, kind: str) -> list[dict[str, object]]:
    """Returns the emails of a message: one for each recipient, in `to`, `cc` and `bcc`, each of them once.

    Raises:
        Unsupported: it has something that cannot be sent.
    """
    if message.attachments:
        raise Unsupported("attachments: Duepost sends none yet; link to the file, or send this one by another backend")
    headers = {str(name): str(value) for name, value in message.extra_headers.items()}
    base: dict[str, object] = {"kind": kind, "subject": str(message.subject), **_bodies(message)}
    base |= {argument: headers.pop(name) for name in list(headers) if (argument := ARGUMENT_HEADERS.get(name.lower()))}
    base |= {"sender": _taken(headers, "from") or str(message.from_email)}
    if reply_to := _reply_to(message, headers):
        base["reply_to"] = reply_to
    visible = {
        "X-Original-To": _taken(headers, "to") or ", ".join(map(str, message.to)),
        "X-Original-Cc": _taken(headers, "cc") or ", ".join(map(str, message.cc)),
    }
    recipients = list(dict.fromkeys(bare(str(each)) for each in message.recipients() if each))
    if list(visible.values()) != [recipients[0] if recipients else "", ""]:
        headers |= {name: _checked(value) for name, value in visible.items() if value}
    key = base.pop("key", None)
    return [
        {
            **base,
            "address": address,
            "headers": headers,
            **({"key": key if len(recipients) == 1 else f"{key} {address}"} if key else {}),
        }
        for address in recipients
    ]


def bare(address: str) -> str:
    """Returns an address without the name before it."""
    named = _NAMED.fullmatch(address.strip())
    return named["address"].strip() if named else address.strip()


def _bodies(message: EmailMessage) -> dict[str, str]:
    """The bodies: text, HTML or both.

    Raises:
        Unsupported: there is an alternative of another sort.
    """
    own = "body_html" if message.content_subtype == "html" else "body_text"
    bodies = {own: str(message.body)}
    for content, mimetype in getattr(message, "alternatives", None) or ():
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
        raise Unsupported("to: more recipients than fit into a header; send a message to each of them")
    return value

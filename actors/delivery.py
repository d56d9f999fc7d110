"""An email on its way: rendered, and handed to the relay, one recipient after the other."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from actors import conclusion
from actors.addresses import AROUND, Mailbox, UndeliverableAddress, ascii_address, parse_sender
from actors.mime import UnsendableField, build_message
from actors.rendering import Content, RenderError
from actors.runtime import broker, database, templates
from actors.settings import BadSettings, settings
from actors.smtp.connection import Connection, Envelope, nobody
from actors.smtp.dialogue import Aside, Script
from actors.smtp.verdicts import Pace, Phase, Ruling, Scope
from actors.waiting import wait_for_database
from models import emails, undeliverable
from models.emails import ClaimedEmail, Recipient
from models.words import Verdict

#: Templates that were rendered in no time when they were rendered last: not worth a thread.
quick_templates: set[str] = set()

#: Seconds that are no time.
QUICK = 0.005


class Judged(NamedTuple):
    """A recipient, and what the attempt came to for it."""

    recipient: Recipient
    ruling: Ruling


class LostClaim(Exception):
    """The row went to another worker while this one was away: nothing may be concluded."""


@dataclass(eq=False, slots=True)
class Delivery:
    """A claimed email on its way.

    Attributes:
        email: it.
        judged: what has come of it so far.
        failures: what failed in rendering, by its text.
    """

    email: ClaimedEmail
    judged: list[Judged] = field(default_factory=list)
    failures: dict[str, RenderError] = field(default_factory=dict)
    _first: Envelope | Ruling | None = None

    def script(self, connection: Connection, following: Callable[[], Envelope | None] = nobody) -> Script[None]:
        """Attempts each recipient in turn; no transaction is open meanwhile. Ends early when the relay fails.

        Args:
            connection: over which.
            following: see `Connection.delivering`; asked with the last copy.
        """
        waiting = deque(self.email.recipients)
        while waiting:
            recipient = waiting.popleft()
            ruling = yield from self._attempt(recipient, connection, nobody if waiting else following)
            each = Judged(recipient, ruling)
            if waiting and ruling.scope is not Scope.RELAY:
                # Each copy that is out is on disk before the next one goes.
                yield Aside(partial(note, self.email, each))
            self.judged.append(each)
            if ruling.scope is Scope.RELAY:
                return

    def prepare(self) -> Envelope | None:
        """The first copy, made ahead; None where that takes time, or comes to nothing."""
        if self._first is None and self.email.recipients:
            composing = self._compose(self.email.recipients[0])
            try:
                next(composing)
            except StopIteration as made:
                self._first = made.value
            else:
                composing.close()
        return self._first if isinstance(self._first, Envelope) else None

    def _attempt(
        self, recipient: Recipient, connection: Connection, following: Callable[[], Envelope | None]
    ) -> Script[Ruling]:
        """Renders and delivers one copy."""
        composed, self._first = self._first, None
        if composed is None:
            composed = yield from self._compose(recipient)
        if isinstance(composed, Ruling):
            return composed
        [address] = composed.recipients
        return (yield from connection.delivering(composed, following))[address]

    def _compose(self, recipient: Recipient) -> Script[Envelope | Ruling]:
        """The copy for one recipient, or why there is none."""
        refusal = conclusion.refusal_without_asking(recipient)
        if refusal is not None:
            return refusal
        try:
            # What is around a stored address is no reason to drop mail.
            address = ascii_address((recipient.address or "").strip(AROUND))
        except UndeliverableAddress as error:
            return Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.ADDRESS, reply=str(error))
        email = self.email
        try:
            copy = Copy(email, recipient, address)
            if email.template is None or email.template in quick_templates:
                copy.make()
            else:
                # Whoever else is being spoken to does not wait for it.
                yield Aside(copy.make)
            return Envelope(copy.sender.address, (address,), copy.message)
        except RenderError as error:
            failure = error
        except UnsendableField as error:
            failure = RenderError(error.field, error.reason, None)
        except Exception as error:  # noqa: BLE001 - whatever one email's content does, others flow on
            failure = RenderError(email.template or "-", type(error).__name__, None)
        self.failures[str(failure)] = failure
        return Ruling(Verdict.RETRY, Scope.MESSAGE, Phase.RENDER, reply=str(failure), pace=Pace.BROKEN)


class Copy:
    """An email as one recipient gets it."""

    def __init__(self, email: ClaimedEmail, recipient: Recipient, address: str) -> None:
        self._email = email
        self._recipient = recipient
        self._address = address
        self.message = b""
        self.sender = sender_of(email)

    def make(self) -> None:
        """Renders it, and builds the message.

        Raises:
            RenderError: the template is missing or fails.
            ValueError: its content makes no message.
        """
        email = self._email
        begun = time.monotonic()
        quick_templates.discard(email.template or "")
        content = render(email, self._recipient)
        if email.template is not None and time.monotonic() - begun < QUICK:
            quick_templates.add(email.template)
        self.message = build_message(
            content=content,
            sender=self.sender,
            recipients=[Mailbox(self._recipient.name or "", self._address)],
            message_id=email.message_id_header,
            date=email.date_header,
            reply_to=email.reply_to,
            headers=email.headers or {},
        )


def sender_of(email: ClaimedEmail) -> Mailbox:
    """Returns whom the email is from.

    Raises:
        UnsendableField: the email's own sender is no address, or it has none and there is no default.
    """
    try:
        return parse_sender(email.sender) if email.sender else settings().need_sender()
    except (ValueError, BadSettings) as error:
        raise UnsendableField("sender", str(error)) from None


def render(email: ClaimedEmail, recipient: Recipient) -> Content:
    """The content as this recipient gets it.

    Raises:
        RenderError: the template is missing or fails.
    """
    if email.template is None:
        return Content(email.subject or "", email.body_text, email.body_html)
    whom = {
        "user_id": recipient.user_id,
        "address": recipient.address,
        "name": recipient.name,
        "locale": recipient.locale,
        "timezone": recipient.timezone,
    }
    return templates.render(email.template, {**(email.context or {}), "recipient": whom})


def note(email: ClaimedEmail, judged: Judged) -> None:
    """Puts one recipient's result on disk while others are still to go.

    Raises:
        LostClaim: the row is no longer this worker's.
    """
    result = conclusion.result(email, judged.recipient, judged.ruling)

    def write() -> bool:
        with database.transaction() as cursor:
            if not emails.lock_claimed(cursor, email):
                return False
            undeliverable.keep(cursor, email, [result], days=settings().keep_undeliverable_days)
            emails.settle(cursor, email, [result])
            return True

    if not wait_for_database(write, broker.stopping):
        raise LostClaim

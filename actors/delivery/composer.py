"""Makes a channel's payload of a claimed email: the one place of this folder that knows what SMTP is handed."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Final, NamedTuple, TypeAlias

from actors.channels.smtp.envelope import Envelope, normalise
from actors.content.addresses import AROUND, Mailbox, UndeliverableAddress, envelope_address, parse_sender
from actors.content.attachments import Attachment
from actors.content.dkim_keys import Signer
from actors.content.mime import UnsendableField, build_message
from actors.content.templates import Content, RenderTimeout, Templates
from actors.content.tokens import Subscription
from actors.delivery.room import Held
from actors.delivery.seals import Seals
from actors.liveness.time_limit import TimeLimit, TookTooLong
from models.emails import ClaimedEmail
from models.extras import SeenRecipient
from models.items import Recipient


class Files(NamedTuple):
    """The attachments of an email.

    Attributes:
        attachments: with their contents.
        held: the room that they take in memory, until the message has gone.
    """

    attachments: Sequence[Attachment] = ()
    held: Held | None = None


#: Of an email without any.
NO_FILES: Final = Files()

#: What an email is handed to its channel as.
EmailPayload: TypeAlias = Envelope

#: Signs a message, or leaves it as it is.
Sign: TypeAlias = Callable[[bytes], bytes]

#: Headers that say how to unsubscribe.
LINK_HEADERS: Final = frozenset({"list-unsubscribe", "list-unsubscribe-post"})

#: What Postmark has in its webhooks as the metadata `duepost`.
MARK: Final = "X-PM-Metadata-duepost"

#: A template that renders in less than this many seconds is rendered in the event loop's thread next time.
QUICK: Final = 0.005

#: Characters of an email's own bodies up to which building a message takes no noticeable time.
SMALL: Final = 50_000


class Composer:
    """Renders copies of emails, and remembers which templates are quick. Any thread may call it.

    Args:
        templates: what emails are rendered from.
        time_limit: ends what takes too long.
        seals: makes the links in emails.
        sender: whom emails are from that name nobody; None where that is not set.
        signer: signs them (DKIM); None where nobody does.
        is_marked: whether Postmark is to tell their Message-IDs, which it replaces, in its webhooks.
    """

    def __init__(
        self,
        templates: Templates,
        time_limit: TimeLimit,
        seals: Seals,
        *,
        sender: Mailbox | None,
        signer: Signer | None = None,
        is_marked: bool = False,
    ) -> None:
        self._templates = templates
        self._time_limit = time_limit
        self._seals = seals
        self._sender = sender
        self._signer = signer
        self._is_marked = is_marked
        #: Templates whose last rendering took less than `QUICK`: not worth a thread. Single operations of a set need
        #: no lock.
        self._quick: set[str] = set()

    @property
    def timeout(self) -> float:
        """Seconds that a template has at the most."""
        return self._templates.timeout

    def yielding(self) -> AbstractContextManager[None]:
        """Around what may take the processor for long: all other threads get it more often meanwhile."""
        return self._time_limit.yielding()

    @property
    def signs(self) -> bool:
        """Whether copies are signed, which takes about a millisecond, and may read files."""
        return self._signer is not None

    def is_quick(self, email: ClaimedEmail) -> bool:
        """Whether a copy is made in no time, as far as is known; but for its signature."""
        if email.extras.attachments:
            return False
        if email.template is not None:
            return email.template in self._quick
        return len(email.body_text or "") + len(email.body_html or "") <= SMALL

    def note_slow(self, email: ClaimedEmail) -> None:
        """Its template has taken long: the next one is rendered in a thread."""
        self._quick.discard(email.template or "")

    def compose(
        self, email: ClaimedEmail, addressed: Mapping[str, Recipient], seconds: float | None, files: Files = NO_FILES
    ) -> EmailPayload:
        """Renders a copy of an email, and builds the message; rendering takes no more than `seconds`.

        Args:
            email: it.
            addressed: whom the copy is for, by the address in its envelope: one, or all of those who see each other.
            seconds: None for all the time that a template has.
            files: its attachments.

        Raises:
            RenderTimeout: it takes longer.
            RenderError: the template is missing or fails.
            ValueError: its content makes no message.
        """
        sender, link = self._sender_of(email), self._link_of(email, addressed)
        sign = self._signing(sender)
        begun = time.monotonic()
        content = self._render(email, addressed, link, seconds)
        if email.template is not None:
            is_quick = time.monotonic() - begun < QUICK and not content.is_prepared
            learn = self._quick.add if is_quick else self._quick.discard
            learn(email.template)
        if self._is_marked:
            email = email._replace(headers=with_mark(email.headers or {}, email.message_id_header))
        back = self._seals.return_path(email.id, None if email.extras.recipients else next(iter(addressed)))
        if seconds is None:
            return built(email, addressed, sender, content, files, link, back, sign)
        try:
            with self._time_limit.limited(begun + seconds - time.monotonic()):
                return built(email, addressed, sender, content, files, link, back, sign)
        except TookTooLong:
            raise RenderTimeout("-", f"{TookTooLong.__name__}: building the message", None) from None

    def _sender_of(self, email: ClaimedEmail) -> Mailbox:
        """Returns whom the email is from.

        Raises:
            UnsendableField: the email's own sender is no address, or it has none and there is no default.
        """
        if email.sender:
            try:
                return parse_sender(email.sender)
            except ValueError as error:
                raise UnsendableField("sender", str(error)) from None
        if self._sender is None:
            raise UnsendableField("sender", "the email names none, and DUEPOST_FROM is not set")
        return self._sender

    def _signing(self, sender: Mailbox) -> Sign:
        """What the message goes through in the end.

        Raises:
            UnsendableField: it cannot be signed as it has to be.
        """
        if self._signer is None:
            return _as_it_is
        sign = self._signer.for_domain(sender.address.rpartition("@")[2])
        return lambda message: sign(normalise(message))

    def _link_of(self, email: ClaimedEmail, addressed: Mapping[str, Recipient]) -> str | None:
        """Returns the link by which the one recipient wants no more of this kind; None where the kind has none.

        Raises:
            UnsendableField: it has one, and nobody knows where recipients reach it.
        """
        if not email.extras.is_unsubscribable or email.extras.recipients:
            return None
        [(address, recipient)] = addressed.items()
        link = self._seals.link(Subscription(email.id, email.kind, address, recipient.user_id))
        if link is None:
            raise UnsendableField("unsubscribe", "the kind has it, and DUEPOST_PUBLIC_URL is not set")
        return link

    def _render(
        self, email: ClaimedEmail, addressed: Mapping[str, Recipient], link: str | None, seconds: float | None
    ) -> Content:
        """The content as this recipient gets it; one that several see names none of them.

        Raises:
            RenderTimeout: it takes more than these seconds.
            RenderError: the template is missing or fails.
        """
        if email.template is None:
            return Content(email.subject or "", email.body_text, email.body_html)
        [recipient] = addressed.values() if not email.extras.recipients else [Recipient(None, None)]
        whom = {
            "user_id": recipient.user_id,
            "address": recipient.address,
            "name": recipient.name,
            "locale": recipient.locale,
            "timezone": recipient.timezone,
            "unsubscribe_url": link,
        }
        return self._templates.render(email.template, {**(email.context or {}), "recipient": whom}, seconds)


def _as_it_is(message: bytes) -> bytes:
    return message


def built(
    email: ClaimedEmail,
    addressed: Mapping[str, Recipient],
    sender: Mailbox,
    content: Content,
    files: Files = NO_FILES,
    link: str | None = None,
    return_path: str | None = None,
    sign: Sign = _as_it_is,
) -> EmailPayload:
    """The message as it goes over the wire; bounces go to its sender where nothing else is said."""
    seen = email.extras.recipients
    recipients = _named(seen, "to") if seen else [Mailbox(each.name or "", to) for to, each in addressed.items()]
    copies = _named(seen, "cc") if seen else []
    headers = (email.headers or {}) if link is None else with_link(email.headers or {}, link)

    def message(recipients: Sequence[Mailbox], copies: Sequence[Mailbox], is_international: bool = False) -> bytes:
        return sign(
            build_message(
                content=content,
                sender=sender,
                recipients=recipients,
                copies=copies,
                message_id=email.message_id_header,
                date=email.date_header,
                reply_to=email.reply_to,
                headers=headers,
                attachments=files.attachments,
                is_international=is_international,
            )
        )

    # Without others who see each other, the recipients are those that it is addressed to.
    if "".join(addressed).isascii() and (not seen or all(map(_is_ascii, (*recipients, *copies)))):
        plain, named = message(recipients, copies), None
    else:
        # For a relay that does not offer SMTPUTF8, where nobody is named whom it cannot be told of.
        plain = message([*filter(_is_ascii, recipients)], [*filter(_is_ascii, copies)])
        named = message(recipients, copies, is_international=True)
    is_whole = bool(files.attachments)
    return Envelope(return_path or sender.address, tuple(addressed), plain, named, is_whole, files.held)


def _is_ascii(mailbox: Mailbox) -> bool:
    return mailbox.address.isascii()


def with_link(headers: Mapping[str, str], link: str) -> Mapping[str, str]:
    """An email's own headers with those of RFC 8058: one URI, and that a POST to it will do."""
    others = {name: value for name, value in headers.items() if name.lower() not in LINK_HEADERS}
    return {**others, "List-Unsubscribe": f"<{link}>", "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}


def with_mark(headers: Mapping[str, str], message_id: str) -> Mapping[str, str]:
    """An email's own headers with metadata for Postmark, which takes it out: our Message-ID, before its @."""
    return {**headers, MARK: message_id.lstrip("<").partition("@")[0]}


def _named(seen: Sequence[SeenRecipient], field: str) -> list[Mailbox]:
    """Who stands in a header, whether they have the email already or not, so that it is the same each time.

    One whose address cannot stand in it gets nothing, and is left out.
    """
    named = []
    for each in seen:
        if each.field == field:
            with suppress(UndeliverableAddress):
                named.append(Mailbox(each.name or "", envelope_address(each.address.strip(AROUND))))
    return named

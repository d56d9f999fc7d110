"""Amazon SES by SNS: RSA over the members of the message that count, by a certificate that lies at Amazon.

Anybody can have SNS send its own messages here, rightly signed: so a topic has to be on our list before anything else
is looked at. Two URLs stand in a message, and are asked for nothing that is not Amazon's: see `amazon.py`.
"""

import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from duepost.bounces.meaning import SOFT
from duepost.bounces.providers.amazon import is_certificate, is_confirmation
from duepost.bounces.providers.public_keys import rsa_of_certificate
from duepost.bounces.providers.shape import (
    BrokenEvent,
    Call,
    Event,
    Reference,
    Refused,
    Unavailable,
    Verified,
    id_of,
    items,
    json_of,
    member,
    needed,
    status,
    text,
)  # fmt: skip

LOGGER = logging.getLogger("duepost.web")

#: What is signed, in this order; what a message has not is left out.
_SIGNED: Final[Mapping[str, Sequence[str]]] = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
    "UnsubscribeConfirmation": ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"),
}
_OPTIONAL: Final = "Subject"

#: Certificates that are kept.
MOST_CERTIFICATES: Final = 16

#: Seconds that a call waits while another one fetches a certificate.
TURN: Final = 5.0

#: Bounces after which SES calls an address dead; the server's own code still has a say.
_HARD: Final = frozenset({"general", "noemail"})


class Ses:
    """Takes what SES publishes to topics of SNS.

    Args:
        topics: ARNs.
        fetch: asks Amazon for a URL, and nobody else; raises `Unavailable`.
    """

    name = "ses"

    def __init__(self, topics: Collection[str], fetch: Callable[[str], bytes]) -> None:
        self._topics = frozenset(topics)
        self._fetch = fetch
        self._certificates: dict[str, bytes] = {}
        self._fetching = threading.Lock()

    @staticmethod
    def is_alike(call: Call) -> bool:
        """Whether a call looks like one of SNS, whoever has made it."""
        return b'"TopicArn"' in call.body

    def verified(self, call: Call) -> Verified:
        """What a call holds: one event. A subscription to a topic of ours is confirmed."""
        try:
            found = json_of(call.body)
        except ValueError:
            raise Refused("the body is not JSON") from None
        topic = member(found, "TopicArn")
        if not isinstance(topic, str) or topic not in self._topics:
            raise Refused("the topic is not one of DUEPOST_SES_TOPICS")
        sort = member(found, "Type")
        if not isinstance(sort, str) or sort not in _SIGNED:
            raise Refused("SNS has no such type of message")
        signed = _signed(found, _SIGNED[sort])
        signature, url, version = (member(found, name) for name in ("Signature", "SigningCertURL", "SignatureVersion"))
        if not (isinstance(signature, str) and isinstance(url, str) and isinstance(version, str)):
            raise Refused("there is no signature")
        if version not in {"1", "2"}:
            raise Refused("the signature is of a version that is not known")
        if not is_certificate(url):
            raise Refused("the certificate does not lie at Amazon SNS")
        try:
            verify = rsa_of_certificate(self._certificate(url), is_sha1=version == "1")
        except ValueError as error:
            raise Refused(str(error)) from None
        if not verify(signature, signed):
            raise Refused("the signature is wrong")
        return self._taken(sort, topic, found)

    def _taken(self, sort: str, topic: str, found: object) -> Verified:
        if sort == "Notification":
            return Verified([found])
        if sort == "UnsubscribeConfirmation":
            LOGGER.warning("webhook ses: the subscription to %s was ended", topic)
            return Verified([])
        url = str(member(found, "SubscribeURL"))
        if not is_confirmation(url, topic):
            raise Refused("the subscription is not confirmed at Amazon SNS")
        self._fetch(url)
        LOGGER.warning("webhook ses: the subscription to %s is confirmed", topic)
        return Verified([])

    def _certificate(self, url: str) -> bytes:
        """Fetches a certificate once; whoever asks for many makes others wait, and no more."""
        if (known := self._certificates.get(url)) is not None:
            return known
        if not self._fetching.acquire(timeout=TURN):
            raise Unavailable("another call fetches a certificate")
        try:
            if (known := self._certificates.get(url)) is None:
                known = self._fetch(url)
                while len(self._certificates) >= MOST_CERTIFICATES:
                    self._certificates.pop(next(iter(self._certificates)))
                self._certificates[url] = known
            return known
        finally:
            self._fetching.release()

    def read(self, raw: object) -> Sequence[Event]:
        """What a notification, or an event that is published, tells."""
        try:
            message = json_of(str(member(raw, "Message")))
        except ValueError:
            # SNS and SES say so themselves, such as that the topic is in order.
            return ()
        if not isinstance(message, dict):
            return ()
        sort = text(message, "notificationType") or text(message, "eventType")
        source_id = id_of(raw, text(raw, "MessageId"))
        if sort == "Bounce":
            return _bounces(message, source_id)
        return _complaints(message, source_id) if sort == "Complaint" else ()


def _signed(found: object, names: Sequence[str]) -> bytes:
    lines = []
    for name in names:
        value = member(found, name)
        if value is None and name == _OPTIONAL:
            continue
        if not isinstance(value, str):
            raise Refused("what is signed is not whole")
        lines += [name, value]
    try:
        return "".join(f"{line}\n" for line in lines).encode()
    except UnicodeEncodeError:
        raise Refused("what is signed is no text") from None


def _about(message: object) -> Reference:
    headers = {
        text(each, "name").lower(): text(each, "value") for each in items(message, "mail", "headers")
    }  # fmt: skip
    return Reference(
        [each for each in items(message, "mail", "destination") if isinstance(each, str)],
        (text(message, "mail", "source"),),
        headers.get("message-id"),
        text(message, "mail", "messageId") or None,
    )


def _bounces(message: object, source_id: str) -> Sequence[Event]:
    is_hard = (
        text(message, "bounce", "bounceType").lower() == "permanent"
        and text(message, "bounce", "bounceSubType").lower() in _HARD
    )
    recipients = items(message, "bounce", "bouncedRecipients")
    if not recipients:
        raise BrokenEvent("bounce.bouncedRecipients is missing")
    about, action = _about(message), "failed" if is_hard else SOFT
    return [
        Event(
            f"{source_id}/{place}",
            _with(about, needed(each, "emailAddress")),
            status(
                needed(each, "emailAddress"), action, text(each, "diagnosticCode"), text(each, "status"),
                usual="5.1.1" if is_hard else None,
            ),
        )
        for place, each in enumerate(recipients)
    ]  # fmt: skip


def _complaints(message: object, source_id: str) -> Sequence[Event]:
    recipients = items(message, "complaint", "complainedRecipients")
    who = [needed(each, "emailAddress") for each in recipients]
    if not who:
        raise BrokenEvent("complaint.complainedRecipients is missing")
    # Where several are named, SES does not know which of them it was.
    sort = text(message, "complaint", "complaintFeedbackType") or "abuse"
    about = _about(message)
    for each in who:
        about = _with(about, each)
    return (Event(source_id, about, complaint=sort.lower(), who=who),)


def _with(about: Reference, address: str) -> Reference:
    return Reference((address, *about.addresses), about.paths, about.message_id, about.relay_id)

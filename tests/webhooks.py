"""Calls as providers make them: bodies in our own words, signed with keys of the test."""

import base64
import hmac
import http.client
import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import uuid4

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from duepost.bounces.providers.shape import Unavailable

TOPIC = "arn:aws:sns:eu-west-1:123456789012:bounces"
CERTIFICATE = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123456789abcdef.pem"
CONFIRMATION = f"https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=abc"
MAILGUN_KEY = "key-0123456789abcdef"
POSTMARK_LOGIN = "postmark:0123456789abcdef"

Json = dict[str, object]
Headers = Mapping[str, str]


class Sns:
    """Amazon's side: a key with its certificate, and what is asked for there."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(self.key.public_key())
            .serial_number(1).not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
            .sign(self.key, hashes.SHA256())
        )  # fmt: skip
        self.pages = {CERTIFICATE: certificate.public_bytes(serialization.Encoding.PEM), CONFIRMATION: b"<ok/>"}
        self.asked: list[str] = []

    def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if url not in self.pages:
            raise Unavailable("404")
        return self.pages[url]

    def message(self, message: object, version: str = "2", **changes: object) -> Json:
        """What SNS posts, signed; `changes` are part of what is signed."""
        found: Json = {
            "Type": "Notification", "MessageId": str(uuid4()), "TopicArn": TOPIC,
            "Message": message if isinstance(message, str) else json.dumps(message),
            "Timestamp": "2026-11-26T10:00:00.000Z", "SignatureVersion": version, "SigningCertURL": CERTIFICATE,
            **changes,
        }  # fmt: skip
        return self.signed(found)

    def signed(self, found: Json) -> Json:
        names = ["Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
        text = "".join(f"{name}\n{found[name]}\n" for name in names if name in found)
        algorithm = hashes.SHA1() if found["SignatureVersion"] == "1" else hashes.SHA256()
        signature = self.key.sign(text.encode(), padding.PKCS1v15(), algorithm)
        return {**found, "Signature": base64.b64encode(signature).decode()}

    def subscription(self, **changes: object) -> Json:
        found: Json = {"Type": "SubscriptionConfirmation", "Token": "abc", "SubscribeURL": CONFIRMATION, **changes}
        return self.message("confirm", "2", **found)


def ses_bounce(
    address: str, relay_id: str = "", *, sort: str = "Permanent", subtype: str = "General", code: str = "5.1.1",
    said: str = "smtp; 550 5.1.1 user unknown", source: str = "us@example.com",
) -> Json:  # fmt: skip
    recipient = {"emailAddress": address, "action": "failed", "status": code, "diagnosticCode": said}
    return {
        "notificationType": "Bounce",
        "bounce": {
            "bounceType": sort, "bounceSubType": subtype, "feedbackId": "f-1",
            "bouncedRecipients": [{name: value for name, value in recipient.items() if value}],
        },
        "mail": {"messageId": relay_id, "source": source, "destination": [address]},
    }  # fmt: skip


class SendGridKey:
    """A key of a webhook."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = self._key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.public = base64.b64encode(public).decode()

    def headers(self, body: bytes, age: float = 0) -> dict[str, str]:
        stamp = str(int(time.time() - age))
        signature = self._key.sign(stamp.encode() + body, ec.ECDSA(hashes.SHA256()))
        return {
            "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
            "X-Twilio-Email-Event-Webhook-Timestamp": stamp,
        }


def sendgrid(event: str, address: str, **members: object) -> Json:
    return {"event": event, "email": address, "timestamp": 1, "sg_event_id": uuid4().hex, **members}


def mailgun(data: object, *, age: float = 0, token: str | None = None, key: str = MAILGUN_KEY) -> Json:
    stamp, token = str(int(time.time() - age)), token or uuid4().hex
    signature = hmac.digest(key.encode(), f"{stamp}{token}".encode(), sha256).hex()
    return {"signature": {"timestamp": stamp, "token": token, "signature": signature}, "event-data": data}


def mailgun_failed(address: str, message_id: str, **members: object) -> Json:
    return {
        "event": "failed", "severity": "permanent", "reason": "bounce", "id": uuid4().hex, "recipient": address,
        "delivery-status": {"code": 550, "message": "5.1.1 no such user"},
        "message": {"headers": {"message-id": message_id, "to": address}}, **members,
    }  # fmt: skip


def postmark(record: str, address: str, **members: object) -> Json:
    return {"RecordType": record, "ID": int(time.time_ns() % 10**12), "Email": address, **members}


def basic(login: str = POSTMARK_LOGIN) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def call(port: int, provider: str, body: bytes | object, headers: Headers | None = None, method: str = "POST") -> int:
    """The status of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, f"/hooks/{provider}", raw, {"Host": "mail.example.com", **(headers or {})})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()

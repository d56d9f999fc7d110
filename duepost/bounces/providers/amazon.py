"""The two things that are asked for at Amazon SNS: a certificate, and the confirmation of a subscription.

Both URLs stand in what somebody has sent us. Nothing is asked for but what is SNS's own by its host and its path; an
answer that leads elsewhere is not followed.
"""

import http.client
import re
import ssl
from typing import Final
from urllib.parse import parse_qs, urlsplit

from duepost.bounces.providers.shape import Unavailable

#: Seconds that an answer may take, and its bytes.
PATIENCE: Final = 10.0
MOST_BYTES: Final = 64 * 1024

_HOST: Final = r"https://sns\.[a-z]{2}(?:-[a-z0-9]{1,20}){1,5}\.amazonaws\.com"
_CERTIFICATE = re.compile(_HOST + r"/SimpleNotificationService-[A-Za-z0-9]{1,64}\.pem", re.ASCII)
_CONFIRMATION = re.compile(_HOST + r"/\?[!-~]{1,2000}", re.ASCII)


def is_certificate(url: str) -> bool:
    """Whether this is where SNS has its certificates."""
    return _CERTIFICATE.fullmatch(url) is not None


def is_confirmation(url: str, topic: str) -> bool:
    """Whether this is where SNS has a subscription to this topic confirmed."""
    if _CONFIRMATION.fullmatch(url) is None:
        return False
    asked = parse_qs(urlsplit(url).query)
    return asked.get("Action") == ["ConfirmSubscription"] and asked.get("TopicArn") == [topic]


def fetch(url: str) -> bytes:
    """What lies at a URL of SNS; without a proxy, and without going where an answer leads.

    Raises:
        Unavailable: it cannot be had.
    """
    parts = urlsplit(url)
    return get(parts.hostname or "", 443, f"{parts.path}?{parts.query}" if parts.query else parts.path)


def get(host: str, port: int, target: str, context: ssl.SSLContext | None = None) -> bytes:
    """The answer's body, by TLS.

    Args:
        host: whose certificate it has to be.
        port: the port.
        target: path and query.
        context: what is trusted; None: what the system trusts.

    Raises:
        Unavailable: there is no answer of status 200, or it is too long.
    """
    connection = http.client.HTTPSConnection(
        host, port, timeout=PATIENCE, context=context or ssl.create_default_context()
    )  # fmt: skip
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        body = answer.read(MOST_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{host} does not answer: {type(error).__name__}") from None
    finally:
        connection.close()
    if answer.status != 200 or len(body) > MOST_BYTES:
        raise Unavailable(f"{host} answers {answer.status}")
    return body

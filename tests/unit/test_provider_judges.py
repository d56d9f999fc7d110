"""What is verified and asked for, judged by providers' own code, and by servers that lead elsewhere."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from sendgrid import EventWebhook

from duepost.bounces.providers import amazon
from duepost.bounces.providers.public_keys import ecdsa
from duepost.bounces.providers.shape import Unavailable, has_code
from tests.authority import Authority
from tests.webhooks import SendGridKey, sendgrid


def test_sendgrid_s_own_verifier_says_the_same_of_each_signature() -> None:
    key, other = SendGridKey(), SendGridKey()
    body = json.dumps([sendgrid("bounce", "jörg@example.com")], ensure_ascii=False) + "\r\n"
    headers = key.headers(body.encode())
    signature, stamp = headers.values()
    for payload, public in ((body, key.public), (body.strip(), key.public), (body, other.public), ("", key.public)):
        theirs = EventWebhook(public).verify_signature(payload, signature, stamp)
        assert ecdsa(public)(signature, (stamp + payload).encode()) is theirs
        assert theirs is (payload == body and public == key.public)


class Page:
    """A server that answers each request with these bytes; a context manager's worth of one test."""

    def __init__(self, context: ssl.SSLContext, answer: bytes) -> None:
        self._context, self._answer = context, answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.asked: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                with suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
                    self.asked.append(connection.recv(65_536).partition(b"\r\n")[0])
                    connection.sendall(self._answer)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.made(tmp_path)


@pytest.fixture
def elsewhere(authority: Authority) -> Iterator[Page]:
    page = Page(authority.server(), b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
    yield page
    page.close()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes", b"yes"),
        (b"HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1:PORT/\r\nContent-Length: 0\r\n\r\n", None),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 70_000, None),
        (b"nonsense\r\n\r\n", None),
        (b"", None),
    ],
)
def test_what_is_asked_for_is_not_looked_for_elsewhere(
    authority: Authority, elsewhere: Page, answer: bytes, body: bytes | None
) -> None:
    page = Page(authority.server(), answer.replace(b"PORT", str(elsewhere.port).encode()))
    trusted = ssl.create_default_context(cafile=str(authority.file))
    try:
        if body is None:
            with pytest.raises(Unavailable):
                amazon.get("127.0.0.1", page.port, "/a?b", trusted)
        else:
            assert amazon.get("127.0.0.1", page.port, "/a?b", trusted) == body
        assert page.asked == [b"GET /a?b HTTP/1.1"]
        assert elsewhere.asked == []
        with pytest.raises(Unavailable, match="SSLCertVerificationError"):
            amazon.get("127.0.0.1", page.port, "/")
    finally:
        page.close()


@pytest.mark.parametrize(
    ("said", "has"),
    [
        ("550 5.1.1 no", True),
        ("smtp;550", True),
        ("status 5.7.1", True),
        ("no such user", False),
        ("from 10.550.1.2", False),
    ],
)
def test_a_code_is_one_wherever_it_stands_and_an_address_is_none(said: str, has: bool) -> None:
    assert has_code(said) is has

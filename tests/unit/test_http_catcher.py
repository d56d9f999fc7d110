"""The catcher for messages: keeps what is signed, and refuses all else."""

import base64
import hashlib
import hmac
import http.client
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from actors.content.formats.format import Endpoint, Message
from actors.content.formats.webhook import Webhook
from duepost.http_catcher import LARGEST_BODY, HttpCatcher

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()


@pytest.fixture
def catcher(tmp_path: Path) -> Iterator[HttpCatcher]:
    catcher = HttpCatcher(tmp_path / "messages", kept=3)
    catcher.start()
    catcher.expect(SECRET)
    yield catcher
    catcher.stop()


def send(catcher: HttpCatcher, number: int, payload: str = '{"total": 19.90}', secret: str = SECRET) -> int:
    """Sends a message as the format webhook does; returns the status."""
    url = catcher.start()
    request = Webhook().request(
        Endpoint("catcher", "webhook", url, (secret,), allows_private=True),
        Message(number, f"msg_a_{number}", payload),
        0,
    )
    return ask(url, request.method, dict(request.headers), request.body)


def ask(url: str, method: str, headers: dict[str, str], body: bytes) -> int:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    connection.request(method, "/", body, headers)
    status = connection.getresponse().status
    connection.close()
    return status


def stored(catcher: HttpCatcher) -> list[Path]:
    return sorted(catcher.folder.iterdir())


def test_a_message_is_a_file_with_its_id_headers_and_payload_and_without_its_signature(catcher: HttpCatcher) -> None:
    assert send(catcher, 1) == 204
    [path] = stored(catcher)
    text = path.read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["id"] == found["headers"]["webhook-id"] == "msg_a_1"
    assert found["payload"] == {"total": 19.9}
    assert '{"total": 19.90}' in text, "the payload stands as it came"
    assert "signature" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(catcher.folder.stat().st_mode) == 0o700


def test_what_is_not_signed_with_its_secret_is_refused_and_leaves_nothing(catcher: HttpCatcher) -> None:
    url = catcher.start()
    assert send(catcher, 1, secret=OTHER) == 401
    assert ask(url, "POST", {"webhook-id": "msg_a_1"}, b"{}") == 401
    assert ask(url, "POST", {}, b"{}") == 401
    assert ask(url, "GET", {}, b"") == 501
    assert stored(catcher) == []


def test_an_id_that_is_no_id_is_refused_though_it_is_signed(catcher: HttpCatcher) -> None:
    key = bytes(range(32))
    signature = base64.b64encode(hmac.digest(key, b"../x.0.{}", hashlib.sha256)).decode()
    headers = {"webhook-id": "../x", "webhook-timestamp": "0", "webhook-signature": f"v1,{signature}"}
    assert ask(catcher.start(), "POST", headers, b"{}") == 401


def test_a_body_that_is_too_large_is_refused_before_it_is_read(catcher: HttpCatcher) -> None:
    assert ask(catcher.start(), "POST", {"content-length": str(LARGEST_BODY + 1)}, b"") == 413


def test_before_it_has_a_secret_it_takes_nothing(tmp_path: Path) -> None:
    catcher = HttpCatcher(tmp_path / "messages")
    try:
        catcher.start()
        assert send(catcher, 1) == 401
    finally:
        catcher.stop()


def test_the_last_messages_are_kept_also_those_of_an_earlier_run(catcher: HttpCatcher) -> None:
    for number in range(1, 5):
        assert send(catcher, number) == 204
    catcher.stop()
    catcher.start()
    catcher.expect(SECRET)
    assert send(catcher, 5) == 204
    assert [json.loads(path.read_text())["id"] for path in stored(catcher)] == ["msg_a_3", "msg_a_4", "msg_a_5"]


def test_a_message_that_comes_twice_is_there_twice(catcher: HttpCatcher) -> None:
    assert [send(catcher, 1), send(catcher, 1)] == [204, 204]
    assert len(stored(catcher)) == 2


def test_it_listens_on_this_machine_alone(catcher: HttpCatcher) -> None:
    assert urlsplit(catcher.start()).hostname == "127.0.0.1"


def test_where_its_folder_cannot_be_stored_in_the_message_is_to_be_sent_later(catcher: HttpCatcher) -> None:
    catcher.folder.rmdir()
    assert send(catcher, 1) == 503

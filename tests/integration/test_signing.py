"""DKIM in a worker: where it is done, what the relay gets, and what follows where a key or the relay is in the way."""

import base64
import re
import threading
from email import message_from_bytes
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from actors.content.dkim import signed
from actors.content.dkim_keys import DkimKeys
from actors.delivery.lanes import Blocking, Lane
from actors.ruling import Phase
from tests.app_harness import Harness
from tests.relays import ScriptedRelay, accept, close


@pytest.fixture
def keys(tmp_path: Path) -> DkimKeys:
    """Of example.com, which the harness sends from."""
    folder = tmp_path / "keys" / "example.com"
    folder.mkdir(parents=True)
    form = PrivateFormat.PKCS8
    (folder / "r1.pem").write_bytes(
        rsa.generate_private_key(65_537, 2048).private_bytes(Encoding.PEM, form, NoEncryption())
    )
    (folder / "e1.pem").write_text(base64.b64encode(b"7" * 32).decode())
    return DkimKeys(folder.parent)


@pytest.fixture
def signing(harness: Harness, keys: DkimKeys, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setenv("DUEPOST_DKIM_KEYS", str(keys.folder))
    harness.restart()
    return harness


def verified(content: bytes, keys: DkimKeys) -> list[bool]:
    own = keys.of("example.com")
    records = {f"{key.record_name}.".encode(): key.record.encode() for key in own}
    judge = dkim.DKIM(content)
    return [judge.verify(idx=place, dnsfunc=lambda name, timeout=5: records.get(name)) for place in range(len(own))]


def test_what_the_relay_gets_is_signed(signing: Harness, relay: ScriptedRelay, keys: DkimKeys) -> None:
    signing.template("hello", subject="Hello", text="Dear {{ recipient.address }},\n.\n", html="<p>Hello</p>")
    signing.schedule(body_text=".\n..\n a \n\n", sender="Shop <shop@example.com>")
    [(attachment,)] = signing.query("SELECT duepost.attachment('Prüfbericht.pdf', decode(repeat('00', 5000), 'hex'))")
    signing.schedule(attachments=[attachment], sender="shop@example.com")
    signing.schedule(template="hello", context={}, sender="shop@example.com")
    signing.schedule(address=None, addresses=["ann@example.com"], cc=["bob@example.com"], sender="shop@example.com")
    signing.deliver()
    assert len(relay.messages) == 4
    for message in relay.messages:
        assert verified(message.content, keys) == [True, True]


def test_what_is_signed_is_the_html_as_it_was_prepared(
    signing: Harness, relay: ScriptedRelay, keys: DkimKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DUEPOST_PREPARE_HTML", "1")
    signing.restart()
    signing.template("hello", subject="Hello", html="<style>p{color:red}</style><p>Grüße</p>")
    signing.schedule(template="hello", context={}, sender="shop@example.com")
    signing.deliver()
    [message] = relay.messages
    html = next(each for each in message_from_bytes(message.content).walk() if each.get_content_type() == "text/html")
    assert b'<p style="color: red;">' in html.get_payload(decode=True)
    assert verified(message.content, keys) == [True, True]


@pytest.mark.parametrize("offered", [("8BITMIME", "SMTPUTF8"), ()])
def test_both_contents_are_signed(
    signing: Harness, relay: ScriptedRelay, keys: DkimKeys, offered: tuple[str, ...]
) -> None:
    relay.extensions = offered
    signing.schedule(
        address=None, addresses=["ann@example.com", "jörg@example.com"], sender="shop@example.com", subject="ß"
    )
    signing.deliver()
    [message] = relay.messages
    assert message.content.isascii() is not bool(offered)
    assert verified(message.content, keys) == [True, True]


def test_signing_is_done_off_the_loops_thread(
    signing: Harness, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def noted(*arguments: object) -> bytes:
        threads.append(threading.current_thread().name)
        return signed(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("actors.content.dkim_keys.signed", noted)
    signing.template("hello", subject="Hello", text="Hello\n")
    for _ in range(3):
        signing.schedule(template="hello", context={}, sender="shop@example.com")
        signing.schedule(sender="shop@example.com")
        signing.deliver()
    assert len(relay.messages) == 6
    # Where one takes long, as on a machine that is busy, it goes on elsewhere.
    assert set(threads) <= {"duepost-trial", "duepost-sign", "duepost-short", "duepost-long"}
    assert len(threads) >= 6


def test_who_signs_nothing_makes_small_copies_at_once(harness: Harness) -> None:
    email = harness.claim(harness.schedule())
    assert email is not None
    assert not isinstance(harness.app.routes["default"].email_work.attempt(email).advance(), Blocking)


def test_a_small_copy_is_signed_in_a_lane_of_its_own(signing: Harness) -> None:
    email = signing.claim(signing.schedule(sender="shop@example.com"))
    assert email is not None
    step = signing.app.routes["default"].email_work.attempt(email).advance()
    assert isinstance(step, Blocking)
    assert step.lane is Lane.SIGN


def test_a_second_copy_differs_in_time_and_signature_alone(
    signing: Harness, relay: ScriptedRelay, keys: DkimKeys
) -> None:
    email_id = signing.schedule(sender="shop@example.com")
    relay.on(Phase.DOT, accept(), close(), times=1)
    signing.deliver()
    signing.make_due(email_id)
    signing.deliver()
    assert len(relay.messages) == 2
    for message in relay.messages:
        assert verified(message.content, keys) == [True, True]
    first, second = (re.sub(rb" t=\d+;|(?<=\r\n) b=[^:]*?(?=\r\n\S)", b"", each.content) for each in relay.messages)
    assert first == second


def test_a_domain_without_a_key_waits_where_one_is_required(
    signing: Harness, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsigned = signing.schedule(sender="shop@example.org")
    signing.deliver()
    [message] = relay.messages
    assert message_from_bytes(message.content)["DKIM-Signature"] is None
    assert signing.ledger(unsigned) == ["sent"]
    monkeypatch.setenv("DUEPOST_DKIM_REQUIRED", "1")
    signing.restart()
    waiting = signing.schedule(sender="shop@example.org")
    other = signing.schedule(sender="shop@example.com")
    signing.deliver()
    assert signing.ledger(other) == ["sent"]
    assert signing.ledger(waiting) == []
    [attempt] = signing.attempts(waiting)
    assert "there is no DKIM key of example.org" in str(attempt["reply"])

"""What the mail catcher took, as the console shows it."""

import base64
import json
import smtplib
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path

import pytest

from duepost.catcher import Catcher
from tests.integration.web.site import ConsoleSite, Start
from tests.integration.web.test_screens import foreign_markup


@pytest.fixture
def catcher(tmp_path: Path) -> Iterator[Catcher]:
    with Catcher(tmp_path / "mailbox") as catcher:
        yield catcher


@pytest.fixture
def inbox(start: Start, catcher: Catcher) -> ConsoleSite:
    """A console with an inbox."""
    return start(mailbox=catcher.mailbox)


def send(catcher: Catcher, content: EmailMessage | bytes, to: str = "ann@example.com") -> None:
    port = int(catcher.start().rpartition(":")[2])
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.sendmail("b@example.com", [to], content if isinstance(content, bytes) else content.as_bytes())


def email(subject: str = "Hello", html: str = "<p>Hi</p>") -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "Shop <b@example.com>", "ann@example.com", subject
    message.set_content("World\n")
    message.add_alternative(html, subtype="html")
    message.add_attachment(b"\x00\x01", maintype="text", subtype="html", filename="ev\u00edl.html")
    return message


def test_an_email_is_shown_with_html_text_headers_source_and_attachments(inbox: ConsoleSite, catcher: Catcher) -> None:
    send(catcher, email(html="<script>mark()</script><p>Hi</p>"))
    browser = inbox.browser()
    listed = browser.get("/inbox")
    [name] = [path.stem for path in catcher.mailbox.glob("*.eml")]
    assert f"inbox/{name}" in listed.text
    page = browser.get(f"/inbox/{name}")
    for words in ("World", "ann@example.com", "Shop <b@example.com>", "ev\u00edl.html", "Hello"):
        assert words in page.words
    assert foreign_markup(page) == []
    frame = browser.get(f"/inbox/{name}/html")
    assert "<script>mark()</script>" in frame.text
    assert frame.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    source = browser.get(f"/inbox/{name}/source")
    assert "Subject: Hello" in source.text
    assert source.headers["content-type"].startswith("text/plain")
    saved = browser.get(f"/inbox/{name}/attachments/0")
    assert saved.headers["content-disposition"].startswith("attachment; ")
    assert saved.headers["content-type"] == "application/octet-stream"
    assert saved.text == "\x00\x01"
    assert browser.get(f"/inbox/{name}/attachments/1").status == 404


def test_a_test_waits_for_an_email(inbox: ConsoleSite, catcher: Catcher) -> None:
    browser = inbox.browser()
    send(catcher, email("Another"))
    later = threading.Timer(0.3, send, (catcher, email("Hello Ann"), "ann@example.com"))
    later.start()
    answer = browser.get("/inbox/wait?to=ANN@example.com&subject=Hello&seconds=30")
    found = json.loads(answer.text)
    assert (answer.status, found["subject"], found["recipients"], found["text"]) == (
        200, "Hello Ann", ["ann@example.com"], "World\n",
    )  # fmt: skip
    later.join()
    assert browser.get(f"/inbox/wait?after={found['id']}&seconds=0").status == 404
    assert browser.get("/inbox/wait?seconds=3600").status == 400


def test_an_email_that_cannot_be_parsed_is_shown_as_far_as_it_goes(inbox: ConsoleSite, catcher: Catcher) -> None:
    odd = [
        b"", b"no header at all", b"Subject: =?utf-8?b?/////?=\r\nFrom: <<<>>\r\nTo: @@@\r\n\r\n\xff\xfe",
        b"Content-Type: text/html; charset=nonsense\r\nSubject: <script>mark()</script>\r\n\r\n<b>\xe9</b>",
        b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\nContent-Type: message/rfc822\r\n\r\n",
        b"Content-Type: multipart/mixed\r\n\r\nno boundary",
        b"Content-Transfer-Encoding: base64\r\n\r\n" + base64.b64encode(b"a")[:-1],
        b"Subject: a\r\nSubject: b\r\nContent-Disposition: attachment; filename*=utf-8''%ff%00..%2f\r\n\r\nx",
        b"Date: nonsense\r\nMessage-ID: <\r\nReferences: <a@[\r\nContent-Type: a/b/c\r\n\r\nx",
    ]  # fmt: skip
    for content in odd:
        send(catcher, content)
    browser = inbox.browser()
    assert browser.get("/inbox").status == 200
    for path in catcher.mailbox.glob("*.eml"):
        for rest in ("", "/html", "/source"):
            answer = browser.get(f"/inbox/{path.stem}{rest}")
            assert answer.status == 200, (path.read_bytes(), answer.words)
            assert rest or foreign_markup(answer) == []
        assert browser.get(f"/inbox/{path.stem}/attachments/0").status in {200, 404}
    assert json.loads(browser.get("/inbox/wait?seconds=0").text)


def test_only_emails_are_read_from_the_folder(inbox: ConsoleSite, catcher: Catcher) -> None:
    (catcher.mailbox / "x.eml").write_bytes(b"x")
    (catcher.mailbox.parent / "secret").write_bytes(b"x")
    for name in ("x", "..", "%2e%2e%2fsecret", "2026", "a" * 300):
        assert inbox.browser().get(f"/inbox/{name}").status == 404


def test_without_a_catcher_there_is_no_inbox(console: ConsoleSite) -> None:
    assert console.browser().get("/inbox").status == 404
    assert "Inbox" not in console.browser().get("/").words

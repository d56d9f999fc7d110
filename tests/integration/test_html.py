"""HTML that is prepared for mail clients, as a relay gets it: styles on elements, a text, a preview, a language."""

from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest

from actors.ruling import Phase
from duepost.testing import Kit
from tests.app_harness import Harness
from tests.integration.commands.shell import Shell
from tests.relays import ScriptedRelay, accept, close

LAYOUT = """<!DOCTYPE html>
<html><head><style>.b{color:red} .b:hover{color:blue}</style></head><body>
<table><tr><td><p class="b">{{ _("Hello") }} {{ recipient.name }}</p></td></tr></table>
<img src="cid:logo" alt="Shop">
<p><a href="{{ recipient.unsubscribe_url }}">Unsubscribe</a></p>
</body></html>
"""
PREVIEW = "{{ count }} new & <b>\n"


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")


@pytest.fixture
def preparing(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setenv("DUEPOST_PREPARE_HTML", "1")
    monkeypatch.setenv("DUEPOST_PUBLIC_URL", "https://mail.example.com")
    harness.restart()
    for ending, text in {"subject.txt": "Hi", "html": LAYOUT, "preview.txt": PREVIEW}.items():
        write(harness.templates, f"digest.he.{ending}", text)
    harness.query("INSERT INTO duepost.kind (kind, unsubscribe) VALUES ('digest', true)")
    return harness


def parts(message: bytes) -> dict[str, str]:
    """What is shown of a message, by type."""
    found = message_from_bytes(message, policy=policy.default)
    assert isinstance(found, EmailMessage)
    texts = [each for each in found.walk() if each.get_content_maintype() == "text"]
    return {each.get_content_type(): each.get_content().replace("\r\n", "\n") for each in texts}


def test_an_email_of_a_template_is_prepared_and_a_second_attempt_has_the_same_bytes(
    preparing: Harness, relay: ScriptedRelay
) -> None:
    preparing.recipient("ann", "ann@example.com", "Ann")
    preparing.query("UPDATE duepost.recipient SET locale = 'he_IL'")
    with preparing.application.transaction() as cursor:
        cursor.execute("SELECT duepost.attachment('l.png', '\\x89504e470d0a1a0a', cid => 'logo')")
        [(logo,)] = cursor.fetchall()
    email_id = preparing.schedule(
        kind="digest", users=["ann"], template="digest", context={"count": 3}, attachments=[logo]
    )
    relay.on(Phase.DOT, accept(), close(), times=1)
    preparing.deliver()
    preparing.make_due()
    preparing.deliver()
    assert preparing.ledger(email_id) == ["sent"]
    first, second = (each.content for each in relay.messages)
    assert first == second
    shown = parts(first)
    assert '<html lang="he" dir="rtl">' in shown["text/html"]
    assert '<body dir="rtl">\n<div style="display:none' in shown["text/html"]
    assert ">3 new &amp; &lt;b&gt;\n" in shown["text/html"]
    assert '<p class="b" style="color: red;">Hello Ann</p>' in shown["text/html"]
    assert ".b:hover{color:blue}" in shown["text/html"]
    assert shown["text/plain"].startswith("Hello Ann\n")
    assert "Unsubscribe <https://mail.example.com/u/" in shown["text/plain"]
    assert "new" not in shown["text/plain"]
    assert all(len(line) <= 78 for line in first.partition(b"\r\n\r\n")[2].split(b"\r\n"))


def test_html_of_an_application_s_own_is_sent_as_it_was_given(preparing: Harness, relay: ScriptedRelay) -> None:
    given = "<style>p{color:red}</style><P>x &copy;</P>\n"
    preparing.schedule(body_text=None, body_html=given)
    preparing.deliver()
    assert parts(relay.messages[0].content) == {"text/html": given}


def test_html_that_cannot_be_prepared_stops_its_email_alone(preparing: Harness, relay: ScriptedRelay) -> None:
    write(preparing.templates, "deep.subject.txt", "Hi")
    write(preparing.templates, "deep.html", "<style>p{color:red}</style>{{ ('<i>' * 4000) | safe }}")
    bad, good = preparing.schedule(template="deep"), preparing.schedule()
    preparing.deliver()
    assert preparing.ledger(good) == ["sent"]
    assert len(relay.messages) == 1
    [(error,)] = preparing.query("SELECT last_error FROM duepost.item WHERE id = %(id)s", id=bad)
    assert str(error).startswith("render: deep.html: the HTML cannot be prepared: its text cannot be read")


def test_commands_and_the_kit_show_what_is_sent(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harness: Harness
) -> None:
    write(tmp_path, "welcome.subject.txt", "Hi")
    write(
        tmp_path,
        "welcome.html",
        '<style>p{color:red}</style><p>{{ recipient.locale }} <a href="https://x.example/a">b</a>',
    )
    shell = Shell(url, DUEPOST_TEMPLATES=str(tmp_path), DUEPOST_PREPARE_HTML="1")
    assert shell.run("render", "welcome", "--locale", "de-AT") == "Subject: Hi\n\nde-AT b <https://x.example/a>\n"
    assert '<p style="color: red;">de-AT ' in shell.run("render", "welcome", "--locale", "de-AT", "--html")
    assert shell.findings(status=None)["templates"] == ("ok", f"{tmp_path}; HTML is prepared for mail clients")
    monkeypatch.setenv("DUEPOST_PREPARE_HTML", "1")
    with harness.application.transaction() as cursor:
        cursor.execute(
            "SELECT duepost.schedule_email(kind => 'a', address => 'ann@example.com', template => 'welcome')"
        )
        [email] = Kit(cursor, templates=tmp_path).drain()
    assert set(parts(email.as_bytes())) == {"text/plain", "text/html"}

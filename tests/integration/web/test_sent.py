"""What was sent can be looked at for as long as its kind has it kept: as it was sent, by those who may."""

import re

import pytest

from actors.channels.smtp.envelope import normalise
from actors.ruling import Phase
from duepost import operations
from duepost.operations import Order
from models import kept_content
from tests.app_harness import Harness
from tests.integration.web.site import ConsoleSite, Start
from tests.relays import ScriptedRelay, reply

HTML = "<p>Dear {{ recipient.name }}</p><script>mark()</script><img src='https://example.com/pixel'>"


def keep(harness: Harness, kind: str = "welcome") -> None:
    harness.query(
        "INSERT INTO duepost.kind (kind, keep_content) VALUES (%(kind)s, '1 day')"
        " ON CONFLICT (kind) DO UPDATE SET keep_content = EXCLUDED.keep_content",
        kind=kind,
    )


def stored(harness: Harness) -> list[tuple[object, object, bytes]]:
    rows = harness.query("SELECT email_id, user_id, content FROM duepost.kept_content ORDER BY email_id, user_id")
    return [(item_id, user, bytes(content)) for item_id, user, content in rows if isinstance(content, memoryview)]


def test_what_is_kept_is_what_the_relay_was_handed(harness: Harness, relay: ScriptedRelay) -> None:
    keep(harness)
    item_id = harness.schedule(body_html="<p>World</p>")
    harness.deliver()
    [message] = relay.messages
    [(kept_id, user, content)] = stored(harness)
    assert (kept_id, user) == (item_id, None)
    assert normalise(content) == message.content
    assert harness.ledger(item_id) == ["sent"]


def test_each_user_s_own_copy_is_kept(harness: Harness, relay: ScriptedRelay) -> None:
    keep(harness)
    harness.template("hi", subject="Hi {{ recipient.name }}", text="Dear {{ recipient.name }}")
    for name in ("ann", "bob", "cid"):
        harness.recipient(name, f"{name}@example.com", name.title())
    item_id = harness.schedule(users=["ann", "bob", "cid"], template="hi")
    harness.deliver()
    assert len(relay.messages) == 3
    found = stored(harness)
    assert [each[:2] for each in found] == [(item_id, "ann"), (item_id, "bob"), (item_id, "cid")]
    for (_, user, content), message in zip(found, relay.messages, strict=True):
        assert normalise(content) == message.content
        assert f"Dear {str(user).title()}".encode() in content


def test_of_kinds_that_do_not_ask_for_it_nothing_is_kept_and_nothing_more_is_asked(
    harness: Harness, relay: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a plain conclusion has gained a statement")

    keep(harness, "invoice")
    harness.schedule()
    monkeypatch.setattr("actors.delivery.conclude.Conclusions.write", never)
    harness.deliver()
    assert len(relay.messages) == 1
    assert stored(harness) == []


def test_a_kind_that_has_just_stopped_to_ask_for_it_has_nothing_kept(harness: Harness, relay: ScriptedRelay) -> None:
    keep(harness)
    first = harness.schedule()
    harness.deliver()
    harness.query("UPDATE duepost.kind SET keep_content = NULL")
    harness.schedule()
    harness.deliver()
    assert len(relay.messages) == 2
    assert [each[0] for each in stored(harness)] == [first]


def test_who_did_not_get_it_has_no_copy_kept(harness: Harness, relay: ScriptedRelay) -> None:
    keep(harness)
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"), when=lambda line: "bob" in line)
    for name in ("ann", "bob"):
        harness.recipient(name, f"{name}@example.com")
    item_id = harness.schedule(users=["ann", "bob"])
    harness.deliver()
    assert harness.ledger(item_id) == ["sent", "undeliverable"]
    assert [each[1] for each in stored(harness)] == ["ann"]


def test_it_is_gone_once_its_time_is_over(harness: Harness) -> None:
    keep(harness)
    item_id = harness.schedule()
    harness.deliver()
    assert len(kept_content.copies(harness.database, item_id)) == 1
    harness.query("UPDATE duepost.kept_content SET kept_until = now() - interval '1 s'")
    assert kept_content.copies(harness.database, item_id) == ()
    assert kept_content.content(harness.database, item_id, None) is None
    harness.query("UPDATE duepost.control SET maintained_at = NULL")
    harness.app.scheduler.keep_house()
    assert stored(harness) == []


@pytest.mark.parametrize("by", ["address", "user"])
def test_who_has_a_person_forgotten_has_what_was_sent_to_them_erased_too(harness: Harness, by: str) -> None:
    keep(harness)
    for name in ("ann", "bob"):
        harness.recipient(name, f"{name}@example.com")
    harness.schedule(users=["ann", "bob"])
    harness.deliver()
    whom = {"address": "ANN@example.com"} if by == "address" else {"user": "ann"}
    exported = operations.export(harness.database, **whom)["sent"]
    assert isinstance(exported, list)
    assert [("Subject: Hello" in each["content"]) for each in exported] == [True]
    told = operations.forget(harness.database, Order("olga", "command", None), **whom)
    assert told["content"] == 1
    assert [each[1] for each in stored(harness)] == ["bob"]


@pytest.fixture
def shown(harness: Harness, start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[ConsoleSite, int]:
    """A console with logins, and an email that was sent of which what was sent is kept; its template has changed."""
    keep(harness)
    harness.template("hi", subject="Hi {{ recipient.name }}", text="As it was", html=HTML)
    harness.recipient("u1", "ann@private-domain.example", "Ann")
    item_id = harness.schedule(users=["u1"], template="hi")
    harness.deliver()
    harness.template("hi", subject="Other", text="As it is today", html="<p>today</p>")
    users = tmp_path_factory.mktemp("logins") / "users"
    users.write_text("vera:viewer:-\nsue:support:-\nolga:operator:-\n")
    site = start(DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_USER_HEADER="X-User", DUEPOST_WEB_PROXIES="127.0.0.1")
    return site, item_id


def test_an_operator_sees_it_as_it_was_sent_not_as_today_s_template_has_it(shown: tuple[ConsoleSite, int]) -> None:
    site, item_id = shown
    browser = site.named("olga")
    page = browser.get(f"/items/{item_id}")
    assert "cannot be shown once an item is concluded" not in page.words
    [path] = re.findall(r'href="\.\./(items/\d+/sent[^"]*)"', page.text)
    sent = browser.get("/" + path.replace("&amp;", "&"))
    assert sent.status == 200
    assert "Hi Ann" in sent.words
    assert "As it was" in sent.words
    assert "today" not in sent.words
    [frame] = re.findall(r'<iframe [^>]*\bsandbox title="[^"]*" src="\.\./\.\./([^"]*)"', sent.text)
    html = browser.get("/" + frame.replace("&amp;", "&"))
    assert "Dear Ann" in html.text
    policy = html.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none'")


@pytest.mark.parametrize("name", ["vera", "sue"])
def test_who_may_not_see_what_items_say_learns_no_more_than_that_it_is_kept(
    shown: tuple[ConsoleSite, int], name: str
) -> None:
    site, item_id = shown
    browser = site.named(name)
    page = browser.get(f"/items/{item_id}")
    assert "What was sent is kept" in page.words
    assert "private-domain" not in page.text
    for path in (f"/items/{item_id}/sent?user=u1", f"/items/{item_id}/sent/html?user=u1"):
        answer = browser.get(path)
        assert answer.status == 403
        assert "As it was" not in answer.text


def test_support_sees_it_with_the_item_s_own_permit(shown: tuple[ConsoleSite, int]) -> None:
    site, item_id = shown
    browser = site.named("sue")
    form = browser.get(f"/items/{item_id}/reveal").form("reveal")
    page = browser.follow(browser.post(f"/items/{item_id}/reveal", {**form, "reason": "asked"}))
    [path] = re.findall(r'href="\.\./(items/\d+/sent[^"]*)"', page.text)
    sent = browser.get("/" + path.replace("&amp;", "&"))
    assert "As it was" in sent.words
    [frame] = re.findall(r'<iframe [^>]*\bsrc="\.\./\.\./([^"]*)"', sent.text)
    assert "Dear Ann" in browser.get("/" + frame.replace("&amp;", "&")).text


def test_a_viewer_s_session_cannot_read_it(shown: tuple[ConsoleSite, int]) -> None:
    site, _ = shown
    [(may,)] = site.query("SELECT has_column_privilege('duepost_viewer', 'duepost.kept_content', 'content', 'SELECT')")
    assert may is False


def test_what_is_not_kept_is_not_found(console: ConsoleSite) -> None:
    item_id = console.schedule()
    assert console.browser().get(f"/items/{item_id}/sent").status == 404
    assert console.browser().get("/items/999/sent?user=x").status == 404

"""What a template says is sent to an operator as a test: as it was shown, once, and marked as what it is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.app_harness import Harness
from tests.integration.web.site import Answer, Browser, ConsoleSite, Start
from tests.relays import ScriptedRelay

SHOWN = {"name": "hi", "context": json.dumps({"plan": "gold"}), "user": "", "item": ""}


@pytest.fixture
def site(start: Start, tmp_path: Path) -> ConsoleSite:
    """A console with logins and a template."""
    folder = tmp_path / "console"
    folder.mkdir()
    (folder / "hi.subject.txt").write_text("Your plan: {{ plan }}")
    (folder / "hi.html").write_text("<p>{{ plan }} for {{ recipient.name }}</p>")
    users = folder / "users"
    users.write_text("vera:viewer:-\nsue:support:-\nolga:operator:-\n")
    return start(
        DUEPOST_TEMPLATES=str(folder),
        DUEPOST_WEB_USERS=str(users),
        DUEPOST_WEB_USER_HEADER="X-User",
        DUEPOST_WEB_PROXIES="127.0.0.1",
    )


def form_of(browser: Browser) -> dict[str, str]:
    """The form that an operator gets, filled in."""
    page = browser.get("/templates?name=hi&context=%7B%22plan%22%3A+%22gold%22%7D")
    assert "Send a test to me" in page.words
    asked = browser.get("/templates/send?name=hi&context=%7B%22plan%22%3A+%22gold%22%7D")
    assert asked.status == 200
    return {**asked.form("templates/send"), "to": "olga@example.com"}


def items(site: ConsoleSite) -> list[tuple[object, ...]]:
    return site.query(
        "SELECT i.id, i.kind, e.address, e.subject, e.body_html FROM duepost.item AS i"
        " JOIN duepost.email AS e ON e.item_id = i.id"
    )


def actions(site: ConsoleSite) -> list[tuple[object, ...]]:
    return site.query("SELECT action, by_whom, asked, ended_at IS NOT NULL FROM duepost.operator_action")


def test_what_was_shown_is_scheduled_once_however_often_the_form_is_sent(site: ConsoleSite) -> None:
    browser = site.named("olga")
    form = form_of(browser)
    answers: list[Answer] = [browser.post("/templates/send", form) for _ in range(3)]
    [(item_id, *row)] = items(site)
    assert row == ["duepost.test", "olga@example.com", "Your plan: gold", "<p>gold for Ann Example</p>"]
    assert {(each.status, each.location) for each in answers} == {(303, f"/items/{item_id}")}
    asked = {"ids": [item_id], "template": "hi", "address": "olga@example.com"}
    assert actions(site) == [("send_test", "olga", asked, True)]
    assert "send_test by olga" in browser.get(f"/items/{item_id}").words


def test_it_arrives_with_its_mark(site: ConsoleSite, harness: Harness, relay: ScriptedRelay) -> None:
    browser = site.named("olga")
    browser.post("/templates/send", form_of(browser))
    harness.deliver()
    [message] = relay.messages
    assert message.recipients == ("olga@example.com",)
    assert b"X-Duepost-Test: 1\r\n" in message.content
    assert site.query("SELECT count(*) FROM duepost.kind") == [(0,)], "no kind has gained a policy"


@pytest.mark.parametrize("name", ["vera", "sue"])
def test_who_is_no_operator_sends_nothing(site: ConsoleSite, name: str) -> None:
    form = form_of(site.named("olga"))
    browser = site.named(name)
    assert browser.post("/templates/send", form).status == 403
    assert browser.get("/templates/send?name=hi").status == 403
    assert "Send a test" not in browser.get("/templates?name=hi&context=%7B%22plan%22%3A+%22gold%22%7D").words
    assert items(site) == []
    assert actions(site) == []


def test_a_look_sends_nothing_and_neither_does_another_origin(site: ConsoleSite) -> None:
    browser = site.named("olga")
    form = form_of(browser)
    assert (
        browser.post("/templates/send", form, Origin="https://evil.example", Sec_Fetch_Site="cross-site").status == 403
    )
    assert items(site) == []


WRONG: list[tuple[str, Callable[[dict[str, str]], dict[str, str]]]] = [
    ("no address", lambda form: {**form, "to": " "}),
    ("an address that is none", lambda form: {**form, "to": "olga"}),
    ("a header in the address", lambda form: {**form, "to": "a@example.com\r\nBcc: b@example.com"}),
    ("two addresses", lambda form: {**form, "to": "a@example.com, b@example.com"}),
    ("no token", lambda form: {**form, "token": ""}),
    ("a template that fails", lambda form: {**form, "context": "{}"}),
    ("no such template", lambda form: {**form, "name": "../../etc/passwd"}),
    ("a context that is none", lambda form: {**form, "context": "["}),
]


@pytest.mark.parametrize("change", [each[1] for each in WRONG], ids=[each[0] for each in WRONG])
def test_what_cannot_be_sent_is_refused_and_leaves_nothing(
    site: ConsoleSite, change: Callable[[dict[str, str]], dict[str, str]]
) -> None:
    browser = site.named("olga")
    answer = browser.post("/templates/send", change(form_of(browser)))
    assert answer.status == 400, answer.words
    assert items(site) == []
    assert actions(site) == []

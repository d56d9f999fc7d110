"""Prepared HTML as a real server stored it: what readers, a judge of spam and a browser make of it."""

import email
import email.policy
import json
from collections.abc import Iterator
from contextlib import ExitStack
from email.message import EmailMessage
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import duepost
from tests.servers.browsers import chromium
from tests.servers.conftest import MakeSite, Servers, need, own_folder
from tests.servers.judges import readers, spamassassin
from tests.servers.test_judges import OF_THE_WAY

if TYPE_CHECKING:
    from playwright.sync_api import Page

#: What templates of the field have: an XHTML doctype, tables for the layout, what Outlook alone reads, small screens.
LAYOUT = """<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" "http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:v="urn:schemas-microsoft-com:vml">
<head>
<meta http-equiv="Content-Type" content="text/html; charset=utf-8" />
<title>{{ title }}</title>
<style type="text/css">
body { margin: 0; font-family: "Helvetica Neue", Arial, sans-serif }
.button a { color: #b00000 } .button a:hover { color: #000000 }
.wide { width: 600px }
@media only screen and (max-width: 620px) { .wide { width: 100% !important } }
</style>
<!--[if mso]><style>.wide { width: 600px !important }</style><![endif]-->
</head>
<body>
<!--[if mso]><table width="600"><tr><td><![endif]-->
<table class="wide" role="presentation"><tr><td>
<h1>{{ title }}</h1>
<p>{{ text }}</p>
<table><tr><th>{{ item }}</th><th>€</th></tr><tr><td>{{ item }} A</td><td>12</td></tr></table>
<table role="presentation"><tr><td class="button">
<a href="https://shop.example/start?a=1&amp;b=2">{{ title }}</a></td></tr></table>
</td></tr></table>
<!--[if mso]></td></tr></table><![endif]-->
</body>
</html>
"""

LETTERS = {
    "de": {"title": "Grüße aus dem Laden", "text": "Ihre Bestellung ist heute angekommen. " * 9, "item": "Menge"},
    "he": {"title": "שלום לך", "text": "ההזמנה שלך הגיעה היום אל החנות. " * 9, "item": "פריט"},
}
PREVIEWS = {"de": "Die Bestellung <42> & mehr", "he": "ההזמנה הגיעה"}
READERS = ("mailparser", "postal-mime")


@pytest.fixture(scope="module")
def stored(servers: Servers, make_module_site: MakeSite) -> dict[str, Path]:
    """The file that Postfix has of each letter, which a worker has sent; beside it what `duepost render` said."""
    postfix = servers["postfix"]
    site = make_module_site(postfix.url(), DUEPOST_FROM="Example <noreply@example.com>", DUEPOST_PREPARE_HTML="1")
    ids = {}
    for language, letter in LETTERS.items():
        files = {"subject.txt": "{{ title }}", "html": LAYOUT, "preview.txt": PREVIEWS[language]}
        for ending, text in files.items():
            (site.folder / f"order.{language}.{ending}").write_text(text, encoding="utf-8")
        site.query(
            "INSERT INTO duepost.recipient (user_id, address, locale) VALUES (%s, 'ann@example.com', %s)",
            language,
            language,
        )
        [(ids[language],)] = site.query(
            "SELECT duepost.schedule_email(kind => 'order', users => ARRAY[%s], template => 'order', context => %s)",
            language,
            json.dumps(letter),
        )
    with site.running():
        site.wait_until_finished()
    assert site.outcomes() == {"sent": len(ids)}, site.report()
    postfix.wait_until_stored()
    headers = {row[0]: str(row[1]) for row in site.query("SELECT email_id, message_id_header FROM duepost.delivery")}
    found = {
        str(email.message_from_bytes(file.read_bytes())["Message-ID"]).strip(): file for file in postfix.messages()
    }
    stored = {}
    for language, letter in LETTERS.items():
        stored[language] = found[headers[ids[language]]]
        said = duepost("render", "order", "--user", language, "--context", json.dumps(letter), "--json", env=site.env)
        assert json.loads(said.stdout)["html"] == parts(stored[language])["text/html"], said.stderr
    return stored


def parts(file: Path) -> dict[str, str]:
    """What Python reads of a message, by type."""
    message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert [part.defects for part in message.walk()] == [[] for _ in message.walk()]
    return {
        part.get_content_type(): part.get_content().replace("\r\n", "\n").removesuffix("\n")
        for part in message.walk()
        if not part.is_multipart()
    }


def test_readers_see_the_text_that_the_html_says_without_its_preview(stored: dict[str, Path]) -> None:
    need("npm")
    found = readers(list(stored.values()))
    for place, (language, letter) in enumerate(LETTERS.items()):
        text = (
            f"{letter['title']}\n\n{letter['text'].strip()}\n\n{letter['item']}    €\n{letter['item']} A  12\n\n"
            f"{letter['title']} <https://shop.example/start?a=1&b=2>"
        )
        assert parts(stored[language])["text/plain"] == text
        for reader in READERS:
            assert found[reader][place]["text"].replace("\r\n", "\n").strip() == text
            html = found[reader][place]["html"].replace("\r\n", "\n").strip()
            assert html == parts(stored[language])["text/html"].strip()


def test_no_line_is_longer_than_78_characters(stored: dict[str, Path]) -> None:
    for file in stored.values():
        head, _, content = file.read_bytes().partition(b"Message-ID:")
        assert max(len(line) for line in content.split(b"\n")) <= 78, head


def test_spamassassin_has_nothing_against_it(stored: dict[str, Path]) -> None:
    need("spamassassin")
    with own_folder() as folder:
        found = dict(zip(stored, spamassassin(folder, list(stored.values())), strict=True))
    assert {language: rules - OF_THE_WAY for language, rules in found.items()} == {
        language: set() for language in stored
    }


@pytest.fixture(scope="module")
def page() -> "Iterator[Page]":
    need("chromium", "playwright")
    with ExitStack() as stack:
        browser = stack.enter_context(chromium(stack.enter_context(own_folder())))
        yield browser.new_page()


def test_a_browser_shows_it_in_its_direction_and_without_the_preview(stored: dict[str, Path], page: "Page") -> None:
    shown = {}
    for language, file in stored.items():
        page.set_content(
            parts(file)["text/html"].replace("<style", "<x-style hidden").replace("</style>", "</x-style>")
        )
        link = page.locator("a")
        assert PREVIEWS[language] not in page.locator("body").inner_text()
        assert page.locator("body > div").first.text_content().startswith(PREVIEWS[language])
        assert not page.locator("body > div").first.is_visible()
        shown[language] = link.evaluate(
            "one => [getComputedStyle(one).direction, getComputedStyle(one).color, document.documentElement.lang,"
            " document.compatMode]"
        )
    red = "rgb(176, 0, 0)"
    assert shown == {"de": ["ltr", red, "de", "CSS1Compat"], "he": ["rtl", red, "he", "CSS1Compat"]}

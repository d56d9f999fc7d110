"""What a real server has stored of representative emails is read by others, and no judge has anything against them."""

import email
import email.policy
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path

import pytest

from tests.servers.conftest import MakeSite, Servers, need, own_folder
from tests.servers.judges import Read, Rspamd, readers, spamassassin


@dataclass(frozen=True)
class Letter:
    """An email that somebody sends, and what a reader is to see; `name` is that of the recipient."""

    subject: str
    text: str
    html: str = ""
    name: str = ""
    headers: dict[str, str] = field(default_factory=dict)


TEXT = (
    "Hello,\n\nyour order 4711 left our warehouse this morning and will be with you on Friday.\n"
    "You find the invoice in your account.\n\nKind regards\nThe people of Example\n"
)
HTML = (
    "<!DOCTYPE html>\n<html><head><title>Your order</title></head><body><p>Hello,</p>\n"
    "<p>your order 4711 left our warehouse this morning and will be with you on Friday.</p>\n"
    "<p>You find the invoice in your account.</p>\n<p>Kind regards<br>The people of Example</p></body></html>\n"
)
LONG_LINE = "This is a paragraph that nobody has broken into lines. " * 40
UNSUBSCRIBE = {
    "List-Unsubscribe": "<https://www.example.com/unsubscribe?who=" + "0123456789abcdef" * 6 + ">",
    "List-Id": "News of Example <news.example.com>",
    "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
}

LETTERS = {
    "plain": Letter("Your order is on its way", TEXT),
    "text and HTML": Letter("Your order is on its way", TEXT, HTML),
    "a name": Letter("Your order is on its way", TEXT, name="Ann Example"),
    "a name with a comma and quotes": Letter("Your order", TEXT, name='Example, Ann "Annie"'),
    "a long name": Letter("Your order", TEXT, name="Maximiliana Alexandrina Theodora Example of the Long Valley"),
    "a name that is not ASCII": Letter("Your order", TEXT, name="Zoë Müller-Łukasiewicz"),
    "a long name that is not ASCII": Letter(
        "Your order", TEXT, name="Élisabeth Gwenaëlle Françoise de la Croix-Désirée et de Saint-Exupéry"
    ),
    "a name in Japanese": Letter("ご注文の品を発送しました", "ご注文ありがとうございます。\n", name="山田 太郎"),
    "one accent": Letter("Your order of the café", TEXT.replace("warehouse", "café")),
    "Cyrillic": Letter(
        "Ваш заказ отправлен", "Здравствуйте!\n\nВаш заказ отправлен сегодня утром.\n", name="Анна Примерова"
    ),
    "a long subject": Letter("Your order of many things that we could not list here is on its way " * 2 + "now", TEXT),
    "an emoji": Letter("Your order is on its way 🚚", TEXT + "🚚\n"),
    "lists": Letter("News of the week", TEXT, HTML, headers=UNSUBSCRIBE),
    "long lines": Letter(
        "A long line", LONG_LINE + "\n" + TEXT, HTML.replace("<p>Hello", f"<p>{LONG_LINE}</p><p>Hello")
    ),
    "dots": Letter("Dots", ".\n..\n.a line\n" + TEXT),
    "From": Letter("From", "From here on\n" + TEXT),
}
NAMES = list(LETTERS)

#: What rspamd says of the words that somebody wrote: another alphabet is shortest in base64, and one accent in a short
#: subject looks to it like a mixture of two.
OF_THE_WORDS = {
    "a name in Japanese": {"MIME_BASE64_TEXT"},
    "Cyrillic": {"MIME_BASE64_TEXT"},
    "one accent": {"R_MIXED_CHARSET"},
}

#: What the judges say of the way here and not of the message: it came from this machine, without TLS, and HTML is HTML.
OF_THE_WAY = {"ALL_TRUSTED", "NO_RELAYS", "NO_RECEIVED", "UNPARSEABLE_RELAY", "HTML_MESSAGE", "RCVD_NO_TLS_LAST"}


@pytest.fixture(scope="module")
def stored(servers: Servers, make_module_site: MakeSite) -> dict[str, Path]:
    """The file that Postfix has of each letter, which a worker has sent."""
    postfix = servers["postfix"]
    site = make_module_site(postfix.url(), DUEPOST_FROM="Example <noreply@example.com>")
    headers = {}
    for number, (name, letter) in enumerate(LETTERS.items()):
        address = f"letter-{number}@example.com"
        site.query(
            "INSERT INTO duepost.recipient (user_id, address, name) VALUES (%s, %s, %s)",
            str(number), address, letter.name or None,
        )  # fmt: skip
        [(email_id,)] = site.query(
            "SELECT duepost.schedule_email(kind => 'letter', users => ARRAY[%s], subject => %s, body_text => %s,"
            " body_html => %s, headers => %s::jsonb)",
            str(number), letter.subject, letter.text, letter.html or None,
            json.dumps(letter.headers) if letter.headers else None,
        )  # fmt: skip
        headers[name] = email_id
    with site.running():
        site.wait_until_finished()
    assert site.outcomes() == {"sent": len(LETTERS)}, site.report()
    postfix.wait_until_stored()
    ids = {row[0]: str(row[1]) for row in site.query("SELECT email_id, message_id_header FROM duepost.delivery")}
    files = {}
    for file in postfix.messages():
        files[str(email.message_from_bytes(file.read_bytes())["Message-ID"]).strip()] = file
    return {name: files[ids[email_id]] for name, email_id in headers.items()}


@pytest.fixture(scope="module")
def read(stored: dict[str, Path]) -> dict[str, dict[str, Read]]:
    """What npm's readers say of each letter."""
    need("npm")
    found = readers(list(stored.values()))
    return {reader: dict(zip(stored, letters, strict=True)) for reader, letters in found.items()}


def same(text: str) -> str:
    """A text as it is compared: line breaks are a reader's own affair, and so are those at the end."""
    return text.replace("\r\n", "\n").rstrip("\n")


def shown_name(content: bytes) -> str:
    """The recipient's name by Python's older reader.

    The newer one puts a blank between two encoded words of a phrase, where RFC 2047 section 6.2 has none.
    """
    phrase, _ = parseaddr(str(email.message_from_bytes(content)["To"]))
    return str(make_header(decode_header(phrase)))


@pytest.mark.parametrize("name", NAMES)
def test_pythons_parser_finds_no_defect_and_what_was_written(name: str, stored: dict[str, Path]) -> None:
    message = email.message_from_bytes(stored[name].read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    letter = LETTERS[name]
    assert [part.defects for part in message.walk()] == [[] for _ in message.walk()]
    assert {header: value.defects for header, value in message.items() if value.defects} == {}
    assert message["Subject"] == letter.subject
    assert shown_name(stored[name].read_bytes()) == letter.name
    text = message.get_body(("plain",))
    assert text is not None
    assert same(text.get_content()) == same(letter.text)
    html = message.get_body(("html",))
    assert same(html.get_content() if html else "") == same(letter.html)
    assert {header: message[header] for header in letter.headers} == letter.headers


@pytest.mark.parametrize("name", NAMES)
def test_no_line_is_longer_than_the_standard_allows(name: str, stored: dict[str, Path]) -> None:
    longest = max(len(line) for line in stored[name].read_bytes().split(b"\n"))
    assert longest <= 998


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reader", ["mailparser", "postal-mime"])
def test_npms_readers_see_what_was_written(reader: str, name: str, read: dict[str, dict[str, Read]]) -> None:
    seen, letter = read[reader][name], LETTERS[name]
    assert seen["subject"] == letter.subject
    assert seen["to"] == [f"{letter.name}|letter-{NAMES.index(name)}@example.com"]
    assert same(seen["text"]) == same(letter.text)
    assert same(seen["html"]) == same(letter.html)


@pytest.fixture(scope="module")
def spamassassin_says(stored: dict[str, Path]) -> dict[str, set[str]]:
    """The rules of SpamAssassin that each letter meets."""
    need("spamassassin")
    with own_folder() as folder:
        return dict(zip(stored, spamassassin(folder, list(stored.values())), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_spamassassin_has_nothing_against_it(name: str, spamassassin_says: dict[str, set[str]]) -> None:
    assert spamassassin_says[name] - OF_THE_WAY == set()


@pytest.fixture(scope="module")
def rspamd() -> Iterator[Rspamd]:
    """A running rspamd."""
    need("rspamd")
    with ExitStack() as stack:
        yield stack.enter_context(Rspamd(stack.enter_context(own_folder())))


@pytest.mark.parametrize("name", NAMES)
def test_rspamd_has_nothing_against_it(name: str, rspamd: Rspamd, stored: dict[str, Path]) -> None:
    symbols = rspamd.symbols(stored[name].read_bytes())
    assert {symbol for symbol, score in symbols.items() if score > 0} <= OF_THE_WAY | OF_THE_WORDS.get(name, set())

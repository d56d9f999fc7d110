"""What is attached arrives by a real server, and is read by others as it was given."""

import email
import email.policy
import hashlib
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path

import pytest
from icalendar import Calendar

from tests.servers.conftest import MakeSite, Servers, need, own_folder
from tests.servers.judges import Read, readers, spamassassin

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 100
PNG = b"\x89PNG\r\n\x1a\n" + bytes(57)
INVITATION = (
    """BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//Example//EN
METHOD:REQUEST
BEGIN:VEVENT
UID:42@example.com
SEQUENCE:3
DTSTAMP:20260101T000000Z
DTSTART:20300101T090000Z
SUMMARY:Grüße
END:VEVENT
END:VCALENDAR
""".replace("\n", "\r\n").encode()
)  # fmt: skip


@dataclass(frozen=True)
class File:
    """What is attached, and what its type is then."""

    name: str
    content: bytes = PDF
    kind: str = "application/pdf"
    cid: str | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


LETTERS = {
    "plain": [File("invoice.pdf")],
    "umlauts": [File("Prüfbericht Q1.pdf")],
    "Japanese": [File("日本語" * 40 + ".pdf")],
    "long": [File(("word " * 59) + "a.pdf")],
    "quotes": [File('a "q" \\ b;c.pdf')],
    "emoji": [File("🚚 Lieferung.pdf")],
    "sizes": [File(f"{size}.bin", bytes(size), "application/octet-stream") for size in (0, 1, 56, 57, 58)],
    "text": [File("a.csv", b"\xef\xbb\xbfa;b\r\nc;d\n", "text/csv"), File("b.txt", "Grüße\r\n".encode(), "text/plain")],
    "picture": [File("logo.png", PNG, "image/png", "logo@example.com"), File("a.pdf")],
}
HTML = '<p>Hello <img src="cid:logo@example.com"></p>'


@pytest.fixture(scope="module")
def stored(servers: Servers, make_module_site: MakeSite) -> dict[str, Path]:
    """The file that Postfix has of each letter, and of an invitation, which a worker has sent."""
    postfix = servers["postfix"]
    site = make_module_site(postfix.url(), DUEPOST_FROM="Example <noreply@example.com>")
    ids = {}
    for name, files in {**LETTERS, "invitation": [File("i.ics", INVITATION)]}.items():
        attach = ", ".join("duepost.attachment(%s, %s, cid => %s)" for _ in files)
        [(email_id,)] = site.query(
            "SELECT duepost.schedule_email(kind => 'letter', address => 'ann@example.com', subject => 'Your files',"
            f" body_text => 'Hello', body_html => %s, attachments => jsonb_build_array({attach}))",
            HTML if name == "picture" else None,
            *(value for each in files for value in (each.name, each.content, each.cid)),
        )
        ids[name] = email_id
    with site.running():
        site.wait_until_finished()
    assert site.outcomes() == {"sent": len(ids)}, site.report()
    postfix.wait_until_stored()
    headers = {row[0]: str(row[1]) for row in site.query("SELECT email_id, message_id_header FROM duepost.delivery")}
    found = {
        str(email.message_from_bytes(file.read_bytes())["Message-ID"]).strip(): file for file in postfix.messages()
    }
    return {name: found[headers[email_id]] for name, email_id in ids.items()}


@pytest.fixture(scope="module")
def read(stored: dict[str, Path]) -> dict[str, dict[str, Read]]:
    """What npm's readers say of each."""
    need("npm")
    found = readers(list(stored.values()))
    return {reader: dict(zip(stored, letters, strict=True)) for reader, letters in found.items()}


def parsed(file: Path) -> EmailMessage:
    message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert [part.defects for part in message.walk()] == [[] for _ in message.walk()]
    return message


@pytest.mark.parametrize("name", LETTERS)
def test_python_reads_each_file_as_it_was_given(name: str, stored: dict[str, Path]) -> None:
    parts = [part for part in parsed(stored[name]).walk() if part.get_filename()]
    found = [
        (part.get_filename(), part.get_content_type(), hashlib.sha256(part.get_payload(decode=True)).hexdigest())  # type: ignore[arg-type]
        for part in parts
    ]
    assert found == [(each.name, each.kind, each.sha256) for each in LETTERS[name]]


@pytest.mark.parametrize("name", LETTERS)
@pytest.mark.parametrize("reader", ["mailparser", "postal-mime"])
def test_npms_readers_read_each_file_as_it_was_given(reader: str, name: str, read: dict[str, dict[str, Read]]) -> None:
    found = [tuple(each) for each in read[reader][name]["files"]]
    assert found == [(each.name, each.kind, each.cid, each.sha256) for each in LETTERS[name]]


@pytest.mark.parametrize("name", LETTERS)
def test_no_line_is_longer_than_78_characters(name: str, stored: dict[str, Path]) -> None:
    head, _, content = stored[name].read_bytes().partition(b"Message-ID:")
    assert max(len(line) for line in content.split(b"\n")) <= 78, head


def test_an_invitation_is_read_with_its_method_and_its_uid(stored: dict[str, Path]) -> None:
    *_, part = parsed(stored["invitation"]).walk()
    assert part.get_content_type() == "text/calendar"
    assert part.get_params() == [("text/calendar", ""), ("charset", "utf-8"), ("method", "REQUEST")]
    content = part.get_payload(decode=True)
    assert content == INVITATION
    calendar = Calendar.from_ical(content)
    assert calendar["METHOD"] == "REQUEST"
    [event] = calendar.walk("VEVENT")
    assert (event["UID"], event["SEQUENCE"], event["SUMMARY"]) == ("42@example.com", 3, "Grüße")


def test_spamassassin_has_nothing_against_files(stored: dict[str, Path]) -> None:
    need("spamassassin")
    with own_folder() as folder:
        found = dict(zip(stored, spamassassin(folder, list(stored.values())), strict=True))
    about = {name: {rule for rule in rules if "MIME" in rule or "BOUNDARY" in rule} for name, rules in found.items()}
    assert about == {name: set() for name in stored}

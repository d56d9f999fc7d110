"""Attachments: stored once in the application's transaction, there when they are sent, gone after their last email."""

import hashlib
import json
from contextlib import closing
from email import message_from_bytes, policy
from email.message import EmailMessage

import psycopg2
import pytest

import duepost
from actors.ruling import Phase
from duepost import operations
from duepost.operations import Order
from models import attachments, undeliverable
from models.words import Reopening
from tests.app_harness import Harness
from tests.postgres import Connection
from tests.relays import ScriptedRelay, accept, close, reply

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
MIB = 2**20


def attach(harness: Harness, *files: tuple[str, bytes], **more: object) -> list[duepost.Attachment]:
    with harness.application.transaction() as cursor:
        return [duepost.attachment(cursor, name, content, **more) for name, content in files]  # type: ignore[arg-type]


def contents(harness: Harness) -> int:
    [(count,)] = harness.query("SELECT count(*) FROM duepost.attachment_content")
    return int(str(count))


def drop(harness: Harness) -> None:
    """Two passes of what deletes contents: one to see, and one to act."""
    for _ in range(2):
        attachments.drop(harness.database)


def read(relay: ScriptedRelay, place: int = 0) -> EmailMessage:
    parsed = message_from_bytes(relay.messages[place].content, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def files(message: EmailMessage) -> list[tuple[str | None, str, str]]:
    """Names, types and hashes of what is attached."""
    return [
        (part.get_filename(), part.get_content_type(), hashlib.sha256(part.get_payload(decode=True)).hexdigest())  # type: ignore[arg-type]
        for part in message.iter_attachments()
    ]


def test_a_file_arrives_as_it_was_given(each_harness: Harness, relay: ScriptedRelay) -> None:
    harness = each_harness
    email_id = harness.schedule(attachments=attach(harness, ("Prüfbericht.pdf", PDF), ("", b"a;b\r\n")))
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert files(read(relay)) == [
        ("Prüfbericht.pdf", "application/pdf", hashlib.sha256(PDF).hexdigest()),
        ("attachment", "application/octet-stream", hashlib.sha256(b"a;b\r\n").hexdigest()),
    ]


def test_a_file_of_a_template_for_users_goes_to_each(harness: Harness, relay: ScriptedRelay) -> None:
    harness.template("welcome", subject="Hi", html='<p>{{ recipient.name }}<img src="cid:logo">')
    for user in ("ann", "bob"):
        harness.recipient(user, f"{user}@example.com", user)
    email_id = harness.schedule(
        users=["ann", "bob"], template="welcome", attachments=attach(harness, ("logo.png", PDF), cid="logo")
    )
    harness.deliver()
    assert harness.ledger(email_id) == ["sent", "sent"]
    assert len({read(relay, place).get_content_type() for place in range(2)}) == 1
    assert read(relay).get_content_type() == "multipart/related"


def test_an_attempt_has_the_same_bytes_as_the_one_before(harness: Harness, relay: ScriptedRelay) -> None:
    harness.schedule(attachments=attach(harness, ("a.pdf", PDF), ("Prüfbericht.txt", b"x")), body_html="<p>")
    relay.on(Phase.DOT, accept(), close(), times=1)
    harness.deliver()
    harness.make_due()
    harness.deliver()
    first, second = relay.messages
    assert first.content == second.content


BAD = [
    ("a\r\nb", b"", {}, "filename: must be one line"),
    ("a", b"", {"content_type": "pdf"}, "content_type: must be one such as application/pdf"),
    ("a", b"", {"content_type": "text/plain\r\nX: y"}, "content_type: must be one line"),
    ("a", b"", {"content_type": "multipart/mixed"}, "content_type: must be no multipart"),
    ("a", b"", {"content_type": "message/partial"}, "content_type: must be no multipart"),
    ("a", b"", {"content_type": "text/plain; name=x"}, "content_type: must have no name"),
    ("a", b"", {"cid": "a b"}, "cid: must consist of"),
    ("a", b"", {"cid": "a>"}, "cid: must consist of"),
    ("a", b"", {"cid": ""}, "cid: must consist of"),
    ("a", bytes(25 * MIB + 1), {}, "content: must be at most 26214400 bytes (25 MiB), is 26214401"),
    (
        "a.ics",
        b"METHOD:REQUEST\r\nUID:1\r\n",
        {"content_type": "text/calendar; method=CANCEL"},
        "content_type: its method",
    ),
    ("a.ics", b"UID:1\r\n", {"content_type": "text/calendar; method=CANCEL"}, "content_type: its method"),
    ("a.ics", b"METHOD:REQUEST\r\nUID:\r\n", {}, "content: a calendar with a METHOD needs a UID"),
    ("a.ics", b"\xff", {"content_type": "text/calendar; method=CANCEL"}, "content: an invitation must be UTF-8"),
]


@pytest.mark.parametrize(("name", "content", "more", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_file_that_cannot_be_sent_is_refused(
    application: Connection, name: str, content: bytes, more: dict[str, str], message: str
) -> None:
    with application.cursor() as cursor, pytest.raises(psycopg2.Error) as refused:
        duepost.attachment(cursor, name, content, **more)
    assert (refused.value.pgcode, str(refused.value).startswith(message)) == ("22023", True), refused.value


TYPES = [
    ("a.pdf", b"x", None, "application/pdf"),
    ("a", b"%PDF-1.4", None, "application/pdf"),
    ("photo.png", b"\xff\xd8\xff\xe0", None, "image/jpeg"),
    ("A.CSV", b"a", None, "text/csv; charset=utf-8"),
    ("a.csv", b"\xe9", None, "text/csv"),
    ("a.csv", b"\xe9", "text/csv; charset=latin-1", "text/csv; charset=latin-1"),
    ("a.docx", b"PK\x03\x04", None, "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ("a.bin", b"PK\x03\x04", None, "application/zip"),
    ("a.xyz", b"x", None, "application/octet-stream"),
    ("a.pdf", b"x", "Application/X-Own ;a=b", "application/x-own; a=b"),
    ("a.ics", b"BEGIN:VCALENDAR\nMETHOD:REQUEST\nUID:1\n", None, "text/calendar; charset=utf-8; method=REQUEST"),
    ("a.ics", b"BEGIN:VCALENDAR\r\nmethod:publish\r\nUID:1\r\n", None, "text/calendar; charset=utf-8; method=publish"),
    ("a.ics", b"BEGIN:VCALENDAR\r\nUID:1\r\n", None, "text/calendar; charset=utf-8"),
    ("a", b"METHOD:CANCEL\r\nUID:1", 'text/calendar; method="cancel"', "text/calendar; charset=utf-8; method=CANCEL"),
]


@pytest.mark.parametrize(("name", "content", "given", "found"), TYPES, ids=lambda value: str(value)[:30])
def test_a_files_type_is_found_by_its_content_and_its_name(
    application: Connection, name: str, content: bytes, given: str | None, found: str
) -> None:
    with application.cursor() as cursor:
        assert duepost.attachment(cursor, name, content, given)["content_type"] == found


@pytest.mark.parametrize(
    ("content", "name"), [(b"%PDF-", "attachment.pdf"), (b"x", "attachment"), (b"\xff\xd8\xff", "attachment.jpg")]
)
@pytest.mark.parametrize("given", ["", "  ", None])
def test_a_file_without_a_name_gets_one(application: Connection, given: str | None, content: bytes, name: str) -> None:
    with application.cursor() as cursor:
        assert duepost.attachment(cursor, given, content)["filename"] == name


REFERENCE = {"filename": "a", "content_type": "text/plain", "size": 1, "sha256": "0" * 64}
MANY = "SELECT duepost.schedule_emails(%s)"
ONE = "SELECT duepost.schedule_email('k', 'a@example.com', subject => 's', body_text => 'b', attachments => %s)"
WRONG = [
    ({}, "attachments: must be a list"),
    ([1], "attachments[0]: must be what duepost.attachment() returns"),
    ([{**REFERENCE, "sha256": "x"}], "attachments[0]: must be what"),
    ([{**REFERENCE, "more": 1}], "attachments[0]: must be what"),
    ([{**REFERENCE, "filename": "a\nb"}], "attachments[0]: filename: must be one line"),
    ([{**REFERENCE, "content_type": "x"}], "attachments[0]: content_type: must be"),
    ([REFERENCE, {**REFERENCE, "cid": "<"}], "attachments[1]: cid: must consist of"),
    ([{**REFERENCE, "cid": "a"}] * 2, "attachments[1]: cid: is that of an earlier one"),
    ([{**REFERENCE, "content_type": "text/calendar; method=X"}] * 2, "attachments[1]: an email holds one invitation"),
    ([REFERENCE] * 101, "attachments: must be at most 100, are 101"),
    ([REFERENCE], "attachments[0]: its content is not stored any more"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("are_many", [False, True])
def test_what_is_no_reference_is_refused_with_its_place(
    application: Connection, given: object, message: str, *, are_many: bool
) -> None:
    email = {"kind": "k", "address": "a@example.com", "subject": "s", "body_text": "b", "attachments": given}
    with application.cursor() as cursor, pytest.raises(psycopg2.Error) as refused:
        cursor.execute(*(MANY, [json.dumps([email, email])]) if are_many else (ONE, [json.dumps(given)]))
    place = "emails[0]: " if are_many else ""
    assert (refused.value.pgcode, str(refused.value).startswith(place + message)) == ("22023", True), refused.value


def test_files_that_are_too_much_together_are_refused(application: Connection) -> None:
    with application.cursor() as cursor:
        given = [duepost.attachment(cursor, "a", bytes([number]) * 10 * MIB) for number in range(3)]
        with pytest.raises(
            psycopg2.Error, match=r"^attachments: must be at most 26214400 bytes \(25 MiB\) together, are 31457280"
        ):
            duepost.schedule_email(
                cursor, kind="k", address="a@example.com", subject="s", body_text="b", attachments=given
            )


def test_a_picture_that_the_html_shows_and_nobody_gave_is_refused(application: Connection) -> None:
    with application.cursor() as cursor:
        given = [duepost.attachment(cursor, "a.png", b"x", cid="logo")]
        with pytest.raises(psycopg2.Error, match=r"^body_html: shows cid:lgo, and no attachment has that cid"):
            duepost.schedule_email(
                cursor,
                kind="k",
                address="a@example.com",
                subject="s",
                body_html='<img src="cid:lgo">',
                attachments=given,
            )


def test_a_content_is_stored_once_and_deleted_after_its_last_email(harness: Harness) -> None:
    given = attach(harness, ("a.pdf", PDF))
    given += attach(harness, ("b.pdf", PDF))
    emails = [harness.schedule(attachments=given, scheduled_at="2030-01-01T00:00:00Z") for _ in range(3)]
    assert contents(harness) == 1
    for email_id in emails[:2]:
        harness.query("SELECT duepost.clear_scheduled_email(%(id)s)", id=email_id)
        drop(harness)
        assert contents(harness) == 1
    harness.query("SELECT duepost.reschedule_email(%(id)s, now())", id=emails[2])
    harness.deliver()
    assert harness.ledger(emails[2]) == ["sent"]
    drop(harness)
    assert contents(harness) == 0
    assert harness.query("SELECT FROM duepost.email_attachment") == []


def test_what_was_stored_and_not_used_is_kept_for_a_day(harness: Harness) -> None:
    given = attach(harness, ("a.pdf", PDF))
    drop(harness)
    harness.schedule(attachments=given, scheduled_at="2030-01-01T00:00:00Z")
    attach(harness, ("b.pdf", b"%PDF-2"))
    harness.query("UPDATE duepost.attachment_content SET keep_until = keep_until - interval '1 day'")
    drop(harness)
    assert contents(harness) == 1


def test_a_content_stays_while_an_undeliverable_email_is_kept(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.DOT, reply("554 5.6.0 no"), times=1)
    email_id = harness.schedule(attachments=attach(harness, ("a.pdf", PDF)))
    harness.deliver()
    assert harness.ledger(email_id) == ["undeliverable"]
    drop(harness)
    assert contents(harness) == 1
    with harness.application.transaction() as cursor:
        assert undeliverable.reopen(cursor, email_id) is Reopening.REOPENED
    drop(harness)
    harness.deliver()
    assert files(read(relay))[0][0] == "a.pdf"
    drop(harness)
    assert contents(harness) == 0


def test_a_content_goes_with_the_undeliverable_email_that_is_kept_no_longer(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("554 5.6.0 no"))
    harness.schedule(attachments=attach(harness, ("a.pdf", PDF)))
    harness.deliver()
    harness.query("UPDATE duepost.undeliverable_email SET kept_until = now() - interval '1 s'")
    undeliverable.forget(harness.database)
    drop(harness)
    assert contents(harness) == 0


class Other:
    """Another session, in a transaction of its own."""

    def __init__(self, harness: Harness) -> None:
        self.connection = psycopg2.connect(harness.application.url)
        self.cursor = self.connection.cursor()

    def close(self) -> None:
        self.connection.close()


def test_a_content_that_a_transaction_is_about_to_use_is_not_deleted(harness: Harness) -> None:
    attach(harness, ("a.pdf", PDF))
    harness.query("UPDATE duepost.attachment_content SET keep_until = now() - interval '1 s'")
    other = Other(harness)
    with closing(other):
        given = duepost.attachment(other.cursor, "a.pdf", PDF)
        drop(harness)
        duepost.schedule_email(
            other.cursor, kind="k", address="a@example.com", subject="s", body_text="b", attachments=[given]
        )
        drop(harness)
        other.connection.commit()
    drop(harness)
    assert contents(harness) == 1
    harness.deliver()
    drop(harness)
    assert contents(harness) == 0


def test_transactions_that_store_the_same_file_again_do_not_wait_for_each_other(harness: Harness) -> None:
    attach(harness, ("a.pdf", PDF))
    harness.query("UPDATE duepost.attachment_content SET keep_until = now() + interval '1 h'")
    one, other = Other(harness), Other(harness)
    with closing(one), closing(other):
        other.cursor.execute("SET lock_timeout = '2 s'")
        first = duepost.attachment(one.cursor, "a.pdf", PDF)
        assert duepost.attachment(other.cursor, "a.pdf", PDF) == first


def test_a_key_means_the_same_files(application: Connection) -> None:
    email = {"kind": "k", "address": "a@example.com", "subject": "s", "body_text": "b", "key": "once"}
    with application.cursor() as cursor:
        given = [duepost.attachment(cursor, "a.pdf", PDF)]
        first = duepost.schedule_email(cursor, **email, attachments=given)  # type: ignore[arg-type]
        again = [duepost.attachment(cursor, "a.pdf", PDF)]
        assert duepost.schedule_email(cursor, **email, attachments=again) == first  # type: ignore[arg-type]
        with pytest.raises(psycopg2.errors.UniqueViolation):
            duepost.schedule_email(cursor, **email)  # type: ignore[arg-type]


def test_an_email_larger_than_the_relay_takes_is_undeliverable_without_a_byte_sent(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.extensions = ("SIZE 100000",)
    email_ids = [harness.schedule(attachments=attach(harness, ("a", bytes(size)))) for size in (74_000, 70_000)]
    harness.deliver()
    assert [harness.ledger(email_id) for email_id in email_ids] == [["undeliverable"], ["sent"]]
    assert sum(line.startswith("C: MAIL") for line in relay.transcript) == 1


def test_a_person_who_is_forgotten_takes_their_files_along(harness: Harness) -> None:
    harness.recipient("zoe", "zoe@example.com")
    harness.schedule(users=["zoe"], attachments=attach(harness, ("a.pdf", PDF)), scheduled_at="2030-01-01T00:00:00Z")
    harness.schedule(attachments=attach(harness, ("b.pdf", b"%PDF-2")), scheduled_at="2030-01-01T00:00:00Z")
    operations.forget(harness.database, Order("ann", "command", "asked for"), address=None, user="zoe")
    assert contents(harness) == 1

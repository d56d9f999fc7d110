"""Attachments by reference: read when they are sent, from where that is allowed, and to nobody else's cost."""

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from email import message_from_bytes, policy
from email.message import EmailMessage, Message
from functools import partial
from pathlib import Path

import psycopg2
import pytest

import duepost
from actors.content import files, libraries
from actors.content.files import FileReader, UnreadFile, check_libraries
from actors.content.libraries import MissingLibrary
from actors.delivery.lanes import THREADS, Lane
from actors.ruling import Phase
from actors.settings import BadSettings, settings
from duepost import operations
from duepost.operations import Order
from models import attachments, undeliverable
from models.words import Reopening
from tests.app_harness import Harness
from tests.integration.commands.shell import Shell
from tests.integration.test_containment import send_together
from tests.postgres import Connection
from tests.relays import ScriptedRelay, accept, close, reply
from tests.waiting import wait_until

PDF = b"%PDF-1.7\n" + bytes(range(256)) * 40
MIB = 2**20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of files that may be attached."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(PDF)
    return folder


@pytest.fixture
def reading(harness: Harness, root: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """An application that attaches what is in that folder."""
    monkeypatch.setenv("DUEPOST_ATTACHMENT_ROOTS", root.as_uri())
    harness.restart()
    return harness


def at(harness: Harness, path: Path | str, filename: str = "Rechnung März.pdf", **more: str) -> duepost.AttachmentAt:
    url = path.as_uri() if isinstance(path, Path) else path
    with harness.application.transaction() as cursor:
        return duepost.attachment_at(cursor, filename, url, **more)


def read(relay: ScriptedRelay, place: int = 0) -> EmailMessage:
    parsed = message_from_bytes(relay.messages[place].content, policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def type_of(part: Message) -> str:
    """The type of a part, with its charset."""
    charset = part.get_content_charset()
    return part.get_content_type() + (f"; charset={charset}" if charset else "")


def contents(relay: ScriptedRelay, place: int = 0) -> list[tuple[str | None, str, bytes]]:
    """Names, types and contents of what is attached."""
    return [
        (part.get_filename(), type_of(part), bytes(part.get_payload(decode=True)))
        for part in read(relay, place).iter_attachments()
    ]


def error_of(harness: Harness, email_id: int) -> str:
    [(error,)] = harness.query("SELECT last_error FROM duepost.item WHERE id = %(id)s", id=email_id)
    return str(error)


def test_a_file_is_read_when_the_email_is_sent(reading: Harness, relay: ScriptedRelay, root: Path) -> None:
    (root / "sub").mkdir()
    with reading.application.transaction() as cursor:
        stored = duepost.attachment(cursor, "b.txt", b"stored")
    given = [at(reading, root / "sub" / "Grüße 7%.txt", ""), stored, at(reading, root / "a.pdf")]
    email_id = reading.schedule(attachments=given)
    (root / "sub" / "Grüße 7%.txt").write_text("späterer Inhalt", encoding="utf-8")
    reading.deliver()
    assert reading.ledger(email_id) == ["sent"]
    assert contents(relay) == [
        ("attachment.txt", "text/plain; charset=utf-8", "späterer Inhalt".encode()),
        ("b.txt", "text/plain; charset=utf-8", b"stored"),
        ("Rechnung März.pdf", "application/pdf", PDF),
    ]
    assert reading.query("SELECT count(*) FROM duepost.attachment_content") == [(1,)]


def test_an_empty_file_and_a_picture_that_the_html_shows_are_sent(
    reading: Harness, relay: ScriptedRelay, root: Path
) -> None:
    (root / "empty.csv").touch()
    given = [at(reading, root / "empty.csv", "e.csv"), at(reading, root / "a.pdf", "a.png", cid="logo")]
    email_id = reading.schedule(attachments=given, body_text=None, body_html='<p><img src="cid:logo">')
    reading.deliver()
    assert reading.ledger(email_id) == ["sent"]
    assert contents(relay) == [("e.csv", "text/csv; charset=utf-8", b"")]
    assert [part.get_content_type() for part in read(relay).walk()] == [
        "multipart/mixed", "multipart/related", "text/html", "image/png", "text/csv",
    ]  # fmt: skip


BAD = [
    ("", {}, "url: must be given"),
    ("https://x.example/a.pdf", {}, "url: must begin with file:/// or s3://bucket/"),
    ("/srv/a.pdf", {}, "url: must begin with"),
    ("FILE:///srv/a.pdf", {}, "url: must begin with"),
    ("file://host/srv/a.pdf", {}, "url: must name no host"),
    ("file:///", {}, "url: must name a file"),
    ("file:///srv/", {}, "url: must name a file"),
    ("file:///srv//a.pdf", {}, "url: must have no segment that is empty, . or .."),
    ("file:///srv/../etc/passwd", {}, "url: must have no segment"),
    ("file:///srv/..", {}, "url: must have no segment"),
    ("file:///srv/%2e%2E/a.pdf", {}, "url: must have no segment"),
    ("file:///srv/.%2e/a.pdf", {}, "url: must have no segment"),
    ("file:///srv/./a.pdf", {}, "url: must have no segment"),
    ("file:///srv/a%2Fb.pdf", {}, "url: must have no / in a name"),
    ("file:///srv/a%00.pdf", {}, "url: must not contain control characters"),
    ("file:///srv/a%0Ab.pdf", {}, "url: must not contain control characters"),
    ("file:///srv/a\nb.pdf", {}, "url: must be one line"),
    ("file:///srv/100%.pdf", {}, "url: must be percent-encoded"),
    ("file:///srv/a.pdf?x=1", {}, "url: must have no query and no fragment"),
    ("s3://bucket/a.pdf#x", {}, "url: must have no query and no fragment"),
    ("s3://user:secret@bucket/a.pdf", {}, "url: must have no user and no password"),
    ("s3://Bucket/a.pdf", {}, "url: must name a bucket"),
    ("s3:///a.pdf", {}, "url: must name a bucket"),
    ("s3://bucket", {}, "url: must name a file"),
    ("s3://bucket/", {}, "url: must name a file"),
    ("s3://bucket/a/../b.pdf", {}, "url: must have no segment"),
    ("file:///" + "a" * 2000, {}, "url: must be at most 2000 characters, is 2008"),
    ("file:///srv/a.pdf", {"filename": "a\r\nb"}, "filename: must be one line"),
    ("file:///srv/a.pdf", {"cid": "a b"}, "cid: must consist of"),
    ("file:///srv/a.pdf", {"content_type": "pdf"}, "content_type: must be one such as"),
    ("file:///srv/a.ics", {"content_type": "text/calendar; method=REQUEST"}, "content_type: must have no method"),
]


@pytest.mark.parametrize(("url", "more", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_reference_that_cannot_be_read_is_refused_by_the_function_and_by_hand(
    application: Connection, url: str, more: Mapping[str, str], message: str
) -> None:
    given = {"filename": "a.pdf", "url": url, **more}
    with application.cursor() as cursor, pytest.raises(psycopg2.Error) as refused:
        duepost.attachment_at(cursor, **given)
    assert (refused.value.pgcode, str(refused.value).startswith(message)) == ("22023", True), refused.value
    application.rollback()
    by_hand = {"content_type": "application/pdf", **given}
    with application.cursor() as cursor, pytest.raises(psycopg2.Error) as refused:
        duepost.schedule_email(
            cursor,
            kind="k",
            address="a@example.com",
            subject="s",
            body_text="b",
            attachments=[by_hand],  # type: ignore[list-item]
        )
    assert (refused.value.pgcode, str(refused.value).startswith(f"attachments[0]: {message}")) == ("22023", True)


@pytest.mark.parametrize("more", [{"size": 1}, {"sha256": "0" * 64}, {"url": None}, {"filename": 1}, {"x": 1}])
def test_a_reference_that_is_none_is_refused(application: Connection, more: Mapping[str, object]) -> None:
    given = {"filename": "a", "url": "s3://bucket/a", "content_type": "a/b", **more}
    statement = "SELECT duepost.schedule_email('k', 'a@x.org', subject => 's', body_text => 'b', attachments => %s)"
    with (
        application.cursor() as cursor,
        pytest.raises(psycopg2.Error, match=r"attachments\[0\]: must be what duepost.attachment_at"),
    ):
        cursor.execute(statement, [json.dumps([given])])


def test_where_nothing_may_be_read_the_email_waits_and_its_error_names_the_setting(harness: Harness) -> None:
    email_id, other = harness.schedule(attachments=[at(harness, "file:///srv/a.pdf")]), harness.schedule()
    harness.deliver()
    assert harness.ledger(other) == ["sent"]
    assert error_of(harness, email_id) == (
        "render: attachments[0]: is to be read at its URL, and DUEPOST_ATTACHMENT_ROOTS is not set"
    )


def bind_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")


def write_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 * 1024 * MIB)


#: What somebody has put into the folder.
PUT: Mapping[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to(path.parent.parent / "secret.txt"),
    "folder-link": lambda path: path.symlink_to(path.parent.parent),
    "loop": lambda path: path.symlink_to(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "fifo": os.mkfifo,
    "socket": bind_socket,
    "folder": Path.mkdir,
    "huge": write_sparse,
}

#: Where that is not what the URL names, relative to the folder.
NAMED = {
    "outside": "../secret.txt",
    "beside": "../files-other",
    "folder-link": "folder-link/secret.txt",
    "below-a-file": "a.pdf/b",
}


def hostile(root: Path, name: str) -> str:
    """Makes what nobody should attach; gives its URL."""
    (root.parent / "secret.txt").write_text("secret")
    (root.parent / "files-other").write_text("secret")
    if name in PUT:
        PUT[name](root / name)
    return Path(os.path.normpath(root / NAMED.get(name, name))).as_uri()


HOSTILE = {
    "outside": "its file lies outside of DUEPOST_ATTACHMENT_ROOTS",
    "beside": "its file lies outside of DUEPOST_ATTACHMENT_ROOTS",
    "link": "its file lies outside of DUEPOST_ATTACHMENT_ROOTS",
    "folder-link": "its file lies outside of DUEPOST_ATTACHMENT_ROOTS",
    "device": "its file lies outside of DUEPOST_ATTACHMENT_ROOTS",
    "loop": "its file cannot be read: OSError",
    "fifo": "its file is no regular file",
    "socket": "its file is no regular file",
    "folder": "its file is no regular file",
    "huge": "the files are more than 25 MiB together",
    "missing": "its file does not exist",
    "below-a-file": "its file does not exist",
}


def test_what_must_not_or_cannot_be_read_stops_its_email_alone(
    reading: Harness, relay: ScriptedRelay, root: Path
) -> None:
    urls = {name: hostile(root, name) for name in HOSTILE}

    def schedule_others(count: int) -> list[int]:
        several = [reading.schedule(attachments=[at(reading, root / "a.pdf")]) for _ in range(count)]
        return [*several, reading.schedule()]

    others = schedule_others(24)
    emails = {name: reading.schedule(attachments=[at(reading, url)]) for name, url in urls.items()}
    others += schedule_others(24)
    # Where too many are being read, some wait for a while.
    while reading.query("UPDATE duepost.item SET due_at = now() WHERE attempts = 0 RETURNING id"):
        reading.enqueue()
        send_together(reading)
    assert [reading.ledger(each) for each in others] == [["sent"]] * 50
    assert {name: error_of(reading, each) for name, each in emails.items()} == {
        name: f"render: attachments[0]: {reason}" for name, reason in HOSTILE.items()
    }
    assert len(relay.messages) == 50


def test_a_link_within_the_folder_is_followed(reading: Harness, relay: ScriptedRelay, root: Path) -> None:
    (root / "latest").symlink_to("a.pdf")
    email_id = reading.schedule(attachments=[at(reading, root / "latest")])
    reading.deliver()
    assert reading.ledger(email_id) == ["sent"]
    assert contents(relay)[0][2] == PDF


def test_files_that_are_too_much_with_what_is_stored_are_not_sent(
    reading: Harness, relay: ScriptedRelay, root: Path
) -> None:
    (root / "b").write_bytes(bytes(15 * MIB))
    with reading.application.transaction() as cursor:
        stored = duepost.attachment(cursor, "a", bytes(10 * MIB))
        less = duepost.attachment(cursor, "a", bytes(10 * MIB - 1))
    fits = reading.schedule(attachments=[stored, at(reading, root / "b")])
    (root / "c").write_bytes(bytes(15 * MIB + 2))
    email_id = reading.schedule(attachments=[less, at(reading, root / "c")])
    # One that is made is too large for the relay, which is quicker than 35 MB.
    relay.extensions = ("SIZE 100000",)
    reading.deliver()
    assert reading.ledger(fits) == ["undeliverable"]
    assert error_of(reading, email_id) == "render: attachments[1]: the files are more than 25 MiB together"


def test_an_email_larger_than_the_relay_takes_is_undeliverable(
    reading: Harness, relay: ScriptedRelay, root: Path
) -> None:
    relay.extensions = ("SIZE 100000",)
    (root / "b").write_bytes(bytes(74_000))
    email_id = reading.schedule(attachments=[at(reading, root / "b")])
    reading.deliver()
    assert reading.ledger(email_id) == ["undeliverable"]
    assert not relay.messages


def test_a_file_that_is_gone_is_waited_for(reading: Harness, relay: ScriptedRelay, root: Path) -> None:
    relay.on(Phase.DOT, reply("451 4.3.0 later"), times=1)
    email_id = reading.schedule(attachments=[at(reading, root / "a.pdf")])
    reading.deliver()
    (root / "a.pdf").unlink()
    reading.make_due()
    reading.deliver()
    assert error_of(reading, email_id) == "render: attachments[0]: its file does not exist"
    (root / "a.pdf").write_bytes(b"%PDF-2")
    reading.make_due()
    reading.deliver()
    # Nobody had it: the file as it is now goes out.
    assert reading.ledger(email_id) == ["sent"]
    assert contents(relay, -1)[0][2] == b"%PDF-2"


def test_a_file_that_has_changed_does_not_go_to_those_who_are_left(
    reading: Harness, relay: ScriptedRelay, root: Path
) -> None:
    for user in ("ann", "bob"):
        reading.recipient(user, f"{user}@example.com")
    relay.on(Phase.RCPT, reply("451 4.3.0 later"), when=lambda line: "bob@" in line, times=1)
    email_id = reading.schedule(users=["ann", "bob"], attachments=[at(reading, root / "a.pdf")])
    reading.deliver()
    assert len(relay.messages) == 1
    (root / "a.pdf").write_bytes(b"%PDF-2")
    reading.make_due()
    reading.deliver()
    assert error_of(reading, email_id) == (
        "render: attachments[0]: its file is another one than that which recipients have, or may have, already"
    )
    (root / "a.pdf").write_bytes(PDF)
    reading.make_due()
    reading.deliver()
    assert reading.ledger(email_id) == ["sent", "sent"]
    first, second = (each.content.partition(b"MIME-Version")[2] for each in relay.messages if each.content)
    assert first == second


def test_an_email_that_may_have_arrived_is_sent_again_with_the_same_bytes_only(
    reading: Harness, relay: ScriptedRelay, root: Path
) -> None:
    relay.on(Phase.DOT, accept(), close(), times=1)
    email_id = reading.schedule(attachments=[at(reading, root / "a.pdf")])
    reading.deliver()
    (root / "a.pdf").write_bytes(b"%PDF-2")
    reading.make_due()
    reading.deliver()
    assert "is another one than that" in error_of(reading, email_id)
    (root / "a.pdf").write_bytes(PDF)
    reading.make_due()
    reading.deliver()
    first, second = relay.messages
    assert first.content == second.content


def test_a_file_that_fails_is_not_read_for_each_recipient(
    reading: Harness, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    ask = files._Process.ask

    def note(process: files._Process, request: dict[str, object], seconds: float) -> dict[str, object]:
        asked.append(request)
        return ask(process, request, seconds)

    monkeypatch.setattr(files._Process, "ask", note)
    users = [f"u{number}" for number in range(5)]
    for user in users:
        reading.recipient(user, f"{user}@example.com")
    email_id = reading.schedule(users=users, attachments=[at(reading, root / "missing")])
    reading.deliver()
    assert len(reading.attempts(email_id)) == 5
    assert len(asked) == 1


def test_what_is_remembered_of_files_goes_with_its_email(reading: Harness, relay: ScriptedRelay, root: Path) -> None:
    relay.on(Phase.DOT, reply("554 5.6.0 no"), times=1)
    email_id = reading.schedule(attachments=[at(reading, root / "a.pdf")])
    reading.deliver()
    assert reading.ledger(email_id) == ["undeliverable"]
    attachments.drop(reading.database)
    assert reading.query("SELECT count(*) FROM duepost.email_file") == [(1,)]
    with reading.application.transaction() as cursor:
        assert undeliverable.reopen(cursor, email_id) is Reopening.REOPENED
    reading.deliver()
    assert contents(relay)[0][2] == PDF
    attachments.drop(reading.database)
    assert reading.query("SELECT count(*) FROM duepost.email_file") == [(0,)]


def test_a_person_is_forgotten_with_the_urls_of_their_files(harness: Harness) -> None:
    harness.recipient("zoe", "zoe@example.com")
    given = [at(harness, "s3://bucket/zoe.pdf")]
    harness.schedule(users=["zoe"], attachments=given, scheduled_at="2030-01-01T00:00:00Z")
    operations.forget(harness.database, Order("ann", "command", "asked for"), address=None, user="zoe")
    assert harness.query("SELECT count(*) FROM duepost.email WHERE attachments IS NOT NULL") == [(0,)]


def test_emails_without_such_files_ask_nothing_more(
    reading: Harness, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(attachments, "pin", lambda *given: asked.append(given))
    monkeypatch.setattr(files, "_Process", lambda: asked.append("a process"))
    with reading.application.transaction() as cursor:
        stored = duepost.attachment(cursor, "a", b"x")
    emails = [reading.schedule(), reading.schedule(attachments=[stored])]
    reading.deliver()
    assert [reading.ledger(each) for each in emails] == [["sent"], ["sent"]]
    assert asked == []


@pytest.fixture
def silent_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A store that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        yield server


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[files._Process]:
    """The processes that read, in the order in which they were started."""
    started: list[files._Process] = []
    begin = files._Process.__init__

    def note(process: files._Process) -> None:
        begin(process)
        started.append(process)

    monkeypatch.setattr(files._Process, "__init__", note)
    return started


def test_a_store_that_never_answers_holds_up_its_own_email(
    harness: Harness,
    silent_store: socket.socket,
    started: list[files._Process],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert silent_store.getsockname()
    monkeypatch.setenv("DUEPOST_ATTACHMENT_ROOTS", "s3://bucket/")
    monkeypatch.setenv("DUEPOST_ATTACHMENT_TIMEOUT", "600")
    harness.restart()
    waiting = [harness.schedule(attachments=[at(harness, f"s3://bucket/{number}.pdf")]) for number in range(12)]
    others = [harness.schedule() for _ in range(20)]
    harness.enqueue()
    messages = list(iter(partial(next, harness.consumer()), None))
    threads = [threading.Thread(target=harness.process, args=[each]) for each in messages]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: [harness.ledger(each) for each in others] == [["sent"]] * 20)
        wait_until(lambda: len(started) == THREADS[Lane.FILES])
        assert harness.query("SELECT count(*) FROM duepost.attempt WHERE email_id = ANY (%(ids)s)", ids=waiting) == [
            (0,)
        ]
    finally:
        while any(thread.is_alive() for thread in threads):
            for process in started:
                process._process.kill()
            for thread in threads:
                thread.join(0.01)
    assert {error_of(harness, each) for each in waiting} == {
        "render: attachments[0]: the process that reads it has ended"
    }


def test_a_store_that_never_answers_costs_the_time_that_is_set_and_no_process(
    silent_store: socket.socket, started: list[files._Process]
) -> None:
    assert silent_store.getsockname()
    reader = FileReader(["s3://bucket/"], 0.5)
    with pytest.raises(UnreadFile, match="does not come in time"), reader.reading(["s3://bucket/a.pdf"]):
        pass
    assert [process.is_alive() for process in started] == [False]


def test_processes_that_cannot_be_ended_are_bounded_in_number(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill = files._Process.kill
    stuck: list[files._Process] = []

    def hang(process: files._Process, _seconds: float | None = None) -> bool:
        stuck.append(process)
        return False

    monkeypatch.setattr(files._Process, "kill", hang)
    reader = FileReader([root.as_uri()], 10.0)
    for _ in range(files.MOST_STUCK):
        # Whose reader fails has a process that is ended.
        with pytest.raises(KeyError), reader.reading([(root / "a.pdf").as_uri()]):
            raise KeyError
    with pytest.raises(UnreadFile, match="8 processes that read files hang"), reader.reading(["file:///a"]):
        pass
    assert len(stuck) == files.MOST_STUCK
    for process in stuck:
        assert kill(process)
    monkeypatch.undo()
    with reader.reading([(root / "a.pdf").as_uri()]) as found:
        assert len(found.take()[0]) == found.length
    reader.close()


def test_a_process_that_has_ended_while_it_waited_is_replaced(root: Path) -> None:
    reader = FileReader([root.as_uri()], 10.0)
    for _ in range(2):
        with reader.reading([(root / "a.pdf").as_uri()]) as found:
            found.take()
        [idle] = reader._idle
        idle._process.kill()
        idle._process.wait()
    reader.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_this_user_may_not_read_is_told_so(root: Path) -> None:
    (root / "a.pdf").chmod(0)
    reader = FileReader([root.as_uri()], 10.0)
    with pytest.raises(UnreadFile, match="may not be read"), reader.reading([(root / "a.pdf").as_uri()]):
        pass


WRONG_ROOTS = [
    "/srv/files", "file:///", "file://host/srv", "file:srv", "file:///srv/../etc/", "file:///srv/%2e%2e/", "file:///srv//a",
    "s3://", "s3://B/", "s3://bucket/a/../b", "s3://user:pw@bucket/", "https://x.example/", "file:///srv/ nonsense",
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG_ROOTS)
def test_roots_that_are_none_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("DUEPOST_ATTACHMENT_ROOTS", value)
    settings.cache_clear()
    with pytest.raises(BadSettings, match=r"^DUEPOST_ATTACHMENT_ROOTS: must be URLs of folders, with spaces, such as"):
        settings()
    settings.cache_clear()


def test_roots_are_read_with_commas_and_spaces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUEPOST_ATTACHMENT_ROOTS", " file:///srv/a%20b/,s3://bucket  s3://bucket/invoices/ ")
    settings.cache_clear()
    assert settings().attachment_roots == ("file:///srv/a%20b/", "s3://bucket", "s3://bucket/invoices/")
    settings.cache_clear()


def test_a_store_without_its_library_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "s3fs" else name)
    check_libraries(["file:///srv/"])
    with pytest.raises(
        MissingLibrary,
        match=r"DUEPOST_ATTACHMENT_ROOTS: s3:// needs s3fs, which is not installed: pip install 'duepost\[s3\]'",
    ):
        check_libraries(["file:///srv/", "s3://bucket/"])
    monkeypatch.setenv("DUEPOST_ATTACHMENT_ROOTS", "s3://bucket/")
    settings.cache_clear()
    with pytest.raises(BadSettings, match="needs s3fs"):
        settings().file_reader()
    settings.cache_clear()


def test_the_doctor_looks_for_the_folders(url: str, root: Path) -> None:
    shell = Shell(url, DUEPOST_ATTACHMENT_ROOTS=f"{root.as_uri()} s3://bucket/")
    assert shell.findings(status=None)["attachments"] == ("ok", f"{root.as_uri()} s3://bucket/")
    shell = Shell(url, DUEPOST_ATTACHMENT_ROOTS=f"{root.as_uri()}-none")
    assert shell.findings(status=None)["attachments"] == (
        "failed", f"DUEPOST_ATTACHMENT_ROOTS: {root.as_uri()}-none: there is no such folder",
    )  # fmt: skip


def test_a_command_attaches_by_url(url: str, tmp_path: Path) -> None:
    shell = Shell(url)
    given = ("--attach", "s3://bucket/M%C3%A4rz%207.pdf", "--attach", f"logo={(tmp_path / 'l.png').as_uri()}")
    body = ("--subject", "s", "--body-html", '<img src="cid:logo">')
    shell.run("schedule", "--kind", "k", "--address", "ann@example.com", *body, *given)
    [(found,)] = shell.query("SELECT attachments FROM duepost.email")
    assert found == [
        {"filename": "März 7.pdf", "content_type": "application/pdf", "url": "s3://bucket/M%C3%A4rz%207.pdf"},
        {"filename": "l.png", "content_type": "image/png", "cid": "logo", "url": (tmp_path / "l.png").as_uri()},
    ]

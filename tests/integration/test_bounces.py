"""What follows from emails that come back: only what is ours, only once, and only what the table says."""

import json
import re
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from io import BufferedRWPair
from pathlib import Path
from typing import Self

import pytest

from actors.content.tokens import ALL, ReturnPath, Tokens, digest_of
from actors.ruling import Phase
from actors.settings import BadSettings, settings
from duepost.bounces.mailboxes import MailboxError, opened
from duepost.bounces.meaning import Effect, meaning_of
from duepost.bounces.reports import Sort, Status, read
from tests.app_harness import Harness
from tests.integration.commands.shell import Shell
from tests.relays import ScriptedRelay, reply

BASE = "bounces@example.com"
SECRET = bytes(range(32))

REPORT = """\
Return-Path: <>
From: MAILER-DAEMON@mx.example.net (Mail Delivery System)
To: {to}
Subject: Undelivered Mail
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/{outer}; report-type=delivery-status; boundary="B"

--B
Content-Type: text/plain

Sorry.

--B
Content-Type: {part}

Reporting-MTA: dns; mx.example.net
Arrival-Date: Thu, 26 Nov 2026 10:00:00 +0000

{groups}

--B
Content-Type: message/rfc822

From: us@example.com
To: ann@example.com
Subject: Hello

World
--B--
"""


def group(
    address: str, action: str = "failed", status: str = "5.1.1", said: str = "smtp; 550 5.1.1 no such user"
) -> str:
    return f"Final-Recipient: {address}\nAction: {action}\nStatus: {status}\nDiagnostic-Code: {said}"


def report(
    to: str, *groups: str, outer: str = "report", part: str = "message/delivery-status", ends: str = "\n"
) -> bytes:
    text = REPORT.format(to=to, groups="\n\n".join(groups), outer=outer, part=part)
    return text.replace("\n", ends).encode()


@pytest.fixture
def box(tmp_path: Path) -> Path:
    for folder in ("new", "cur", "tmp"):
        (tmp_path / "box" / folder).mkdir(parents=True)
    return tmp_path / "box"


@pytest.fixture
def bounced(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """Workers whose emails come back to a mailbox of ours."""
    monkeypatch.setenv("DUEPOST_BOUNCE_ADDRESS", BASE)
    harness.restart()
    return harness


@pytest.fixture
def run(bounced: Harness, url: str, box: Path) -> Callable[..., dict[str, int]]:
    """Puts emails into the mailbox, runs the command, and gives what it counted."""
    shell = Shell(url, DUEPOST_BOUNCE_ADDRESS=BASE, DUEPOST_BOUNCE_MAILBOX=str(box))

    def run(*emails: bytes) -> dict[str, int]:
        number = len(list(box.rglob("*")))
        for place, each in enumerate(emails):
            (box / "new" / f"{number + place}.host").write_bytes(each)
        found = json.loads(shell.run("bounces", "--json"))
        return {name: number for name, number in found.items() if number and name != "messages"}

    return run


def send(harness: Harness, relay: ScriptedRelay, **arguments: object) -> str:
    """The return path of an email that a relay has taken."""
    harness.schedule(**arguments)
    harness.deliver()
    return relay.messages[-1].sender


def suppressed(harness: Harness) -> list[tuple[object, ...]]:
    return harness.query("SELECT address, kind, source FROM duepost.suppression")


# The return path -----------------------------------------------------------------------------------------------------


def test_each_recipient_has_a_return_path_of_its_own_and_the_same_each_time(
    bounced: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("451 4.3.0 later"), times=1)
    bounced.schedule()
    bounced.deliver()
    bounced.make_due()
    bounced.deliver()
    senders = re.findall(r"MAIL FROM:<([^>]*)>", "\n".join(relay.transcript))
    assert len(senders) == 2
    assert len(set(senders)) == 1
    assert re.fullmatch(r"bounces\+[a-z2-7]{36}@example\.com", senders[0])
    assert len(senders[0].partition("@")[0]) <= 64
    assert b"From: Duepost <noreply@example.com>" in relay.messages[0].content
    assert send(bounced, relay, address="bob@example.com") != senders[0]


def test_without_a_bounce_address_it_is_the_sender(harness: Harness, relay: ScriptedRelay) -> None:
    assert send(harness, relay) == "noreply@example.com"


def test_a_return_path_opens_whatever_case_it_comes_in_and_forged_ones_do_not() -> None:
    tokens = Tokens(SECRET)
    about = ReturnPath(2**40, digest_of("Ann@example.com"))
    path = tokens.return_path(BASE, about)
    for text in (path, path.upper(), f"<{path}>", f"for <{path}>; Thu"):
        assert tokens.return_path_in(text, BASE) == about
    assert about.is_for("ann@example.com")
    assert not about.is_for("bob@example.com")
    assert ReturnPath(1, ALL).is_for("anybody@example.com")
    token = path.partition("+")[2].partition("@")[0]
    for place in range(0, 36, 5):
        changed = token[:place] + ("a" if token[place] != "a" else "b") + token[place + 1 :]
        assert tokens.return_path_in(path.replace(token, changed), BASE) is None
    for text in ("", BASE, path.replace("example.com", "example.com.evil"), path[:-1] + "x", "bounces+x@example.com"):
        assert tokens.return_path_in(text, BASE) is None
    assert Tokens(bytes(32)).return_path_in(path, BASE) is None


# What follows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("outer", "part"),
    [
        ("report", "message/delivery-status"),
        ("mixed", "message/delivery-status"),
        ("report", "message/global-delivery-status"),
    ],
)
def test_a_dead_address_is_suppressed_once(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]], ends: str, outer: str, part: str
) -> None:
    path = send(bounced, relay)
    raw = report(path, group("rfc822; Ann@EXAMPLE.com"), outer=outer, part=part, ends=ends)
    assert run(raw, raw) == {"suppressed": 1, "repeated": 1}
    assert suppressed(bounced) == [("ann@example.com", None, "bounce")]
    bounced.query("DELETE FROM duepost.suppression")
    assert run(raw) == {"repeated": 1}, "a report that is sent again changes nothing"
    assert suppressed(bounced) == []


@pytest.mark.parametrize(
    ("action", "status", "said", "effect"),
    [
        ("failed", "5.1.1", "smtp; 550 5.1.1 no such user", "suppressed"),
        ("failed", "5.1.1", "", "suppressed"),
        ("failed", "5.1.10", "smtp; 550 5.1.10 RESOLVER.ADR.RecipientNotFound", "suppressed"),
        ("failed", "5.2.1", "smtp; 550-5.2.1 The user is receiving mail at a rate that 550 5.2.1 prevents", "failed"),
        ("failed", "5.2.2", "smtp; 552 5.2.2 mailbox full", "failed"),
        ("failed", "4.4.7", "smtp; 451 4.4.1 no answer", "failed"),
        ("failed", "4.4.7", "", "failed"),
        ("failed", "5.7.1", "smtp; 550 5.7.1 message rejected by policy", "failed"),
        ("failed", "5.7.1", "smtp; 554 5.7.1 blocked using zen.spamhaus.org", "about_us"),
        ("failed", "5.7.23", "smtp; 550 5.7.23 SPF validation failed", "about_us"),
        ("failed", "5.1.1", "smtp; 550 5.7.1 Client host [192.0.2.1] blocked using a blacklist", "about_us"),
        ("delayed", "4.4.1", "smtp; 450 busy", "nothing"),
        ("delivered", "2.0.0", "", "nothing"),
        ("relayed", "2.0.0", "", "nothing"),
        ("expanded", "2.0.0", "", "nothing"),
        ("delayed", "5.1.1", "smtp; 550 5.1.1 no such user", "nothing"),
    ],
)
def test_the_table_decides_what_a_status_means(action: str, status: str, said: str, effect: str) -> None:
    assert meaning_of(Status(("ann@example.com",), action, status, said.removeprefix("smtp; "))).effect == Effect(
        effect
    )


def test_two_recipients_of_one_report_have_each_their_own(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]]
) -> None:
    path = send(bounced, relay, address=None, addresses=["ann@example.com", "bob@example.com", "cem@example.com"])
    raw = report(
        path,
        group("rfc822; ann@example.com"),
        group("rfc822; bob@example.com", "delayed", "4.4.1", "smtp; 450 busy"),
        group("rfc822; eve@example.com"),
    )
    assert run(raw) == {"suppressed": 1, "nothing": 1, "unbelieved": 1}
    assert suppressed(bounced) == [("ann@example.com", None, "bounce")]


def test_where_somebody_forwards_it_to_does_not_count_for_the_address_that_we_know(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]]
) -> None:
    assert run(report(send(bounced, relay), group("rfc822; ann@gmail.example"))) == {"failed": 1}
    assert suppressed(bounced) == []


def test_an_address_in_other_scripts_is_read_as_rfc_6533_writes_it() -> None:
    for written in ("utf-8; jörg@münchen.example", r"utf-8; j\x{F6}rg@m\x{FC}nchen.example"):
        [status] = read(report("x@example.com", group(written), part="message/global-delivery-status")).statuses
        assert status.addresses == ("jörg@münchen.example",)


@pytest.mark.parametrize(
    "to",
    [
        "bounces@example.com", "bounces+" + "a" * 36 + "@example.com", "noreply@example.com", "", "\N{SNOWMAN}@x.org",
    ],
)  # fmt: skip
def test_what_has_no_token_of_ours_has_no_effect(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]], to: str
) -> None:
    send(bounced, relay)
    assert run(report(to, group("rfc822; ann@example.com"))) == {"unbelieved": 1}
    assert suppressed(bounced) == []


def test_a_token_of_another_recipient_or_two_tokens_or_an_old_one_have_no_effect(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]]
) -> None:
    ann, bob = send(bounced, relay), send(bounced, relay, address="bob@example.com")
    assert run(report(bob, group("rfc822; ann@example.com"))) == {"failed": 1}
    assert run(report(f"{ann}, {bob}", group("rfc822; ann@example.com"))) == {"unbelieved": 1}
    bounced.query("UPDATE duepost.delivery SET finished_at = now() - interval '31 days'")
    assert run(report(ann, group("rfc822; ann@example.com"))) == {"unbelieved": 1}
    assert suppressed(bounced) == []


def test_answers_say_nothing_whatever_they_quote(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]]
) -> None:
    path = send(bounced, relay)
    quoted = report(path, group("rfc822; ann@example.com"))
    person = f"From: Ann <ann@example.com>\nTo: {path}\nSubject: Re: Hello\n\n> 550 5.1.1 no such user\n".encode()
    absent = f"From: Ann <ann@example.com>\nTo: {path}\nAuto-Submitted: auto-replied (vacation)\n\nAway.\n".encode()
    forwarded = (
        (
            f'From: Ann <a@example.com>\nTo: {path}\nContent-Type: multipart/mixed; boundary="Q"\n\n--Q\n\nSee.\n--Q\n'
            "Content-Type: message/rfc822\n\n"
        ).encode()
        + quoted
        + b"\n--Q--\n"
    )
    assert run(person, absent, forwarded) == {"nothing": 3}
    assert suppressed(bounced) == []


def test_what_cannot_be_read_is_counted_and_shown_and_keeps_nobody(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]], url: str
) -> None:
    path = send(bounced, relay)
    old = (
        f"Return-Path: <>\nFrom: MAILER-DAEMON@x.example\nTo: {path}\nSubject: failure notice\n\n550 no user\n".encode()
    )
    odd = [
        b"",
        b"\0\xff" * 1_000,
        b"Content-Type: multipart/report\n\n" + b"--\n" * 5_000,
        b"From: MAILER-DAEMON\n: x\n\n",
    ]
    found = run(old, *odd, report(path, group("rfc822; ann@example.com")))
    assert found["suppressed"] == 1
    assert found["unreadable"] >= 1
    assert "failure notice" in Shell(url).run("bounces", "--list")


FEEDBACK = """\
From: fbl@provider.example
To: {to}
Content-Type: multipart/report; report-type=feedback-report; boundary="B"
MIME-Version: 1.0

--B
Content-Type: text/plain

A complaint.
--B
Content-Type: message/feedback-report

Feedback-Type: {sort}
User-Agent: x/1
Version: 1

--B
Content-Type: message/rfc822

Return-Path: <{path}>
From: us@example.com
Message-ID: <1@example.com>
Subject: Hello

World
--B--
"""


@pytest.mark.parametrize(
    ("sort", "kind", "expected"),
    [
        ("abuse", "digest", [("ann@example.com", "digest", "complaint")]),
        ("abuse", "reset", [("ann@example.com", None, "complaint")]),
        ("opt-out", "digest", [("ann@example.com", "digest", "complaint")]),
        ("not-spam", "digest", []),
        ("virus", "digest", []),
    ],
)
def test_a_complaint_is_about_the_email_that_it_reports(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]], sort: str, kind: str,
    expected: list[tuple[object, ...]],
) -> None:  # fmt: skip
    path = send(bounced, relay, kind=kind)
    bounced.query("INSERT INTO duepost.kind (kind, unsubscribe) VALUES ('digest', true)")
    raw = FEEDBACK.format(to="fbl@example.com", sort=sort, path=path).encode()
    run(raw, raw)
    assert suppressed(bounced) == expected
    assert run(FEEDBACK.format(to="fbl@example.com", sort=sort, path=BASE).encode()) == {"unbelieved": 1}


def test_nothing_that_is_sent_to_it_makes_reading_fail() -> None:
    for raw in (
        b"",
        b"\r\n\r\n",
        b"Content-Type: message/delivery-status\n\n",
        b"\xff" * 100,
        b"To: " + b"a@b," * 9_999,
    ):
        assert read(raw).sort in set(Sort)


# The mailbox ---------------------------------------------------------------------------------------------------------


def test_what_is_concluded_is_marked_and_nothing_else(
    bounced: Harness, relay: ScriptedRelay, run: Callable[..., dict[str, int]], box: Path, url: str
) -> None:
    raw = report(send(bounced, relay), group("rfc822; ann@example.com"))
    (box / "cur" / "1.host:2,").write_bytes(raw)
    (box / "cur" / "2.host:2,RS").write_bytes(raw)
    bounced.query("ALTER FUNCTION duepost.note_bounce RENAME TO gone")
    shell = Shell(url, DUEPOST_BOUNCE_ADDRESS=BASE, DUEPOST_BOUNCE_MAILBOX=str(box))
    assert "the database lacks the function note_bounce" in shell.run("bounces", status=1)
    assert sorted(each.name for each in (box / "cur").iterdir()) == ["1.host:2,", "2.host:2,RS"]
    bounced.query("ALTER FUNCTION duepost.gone RENAME TO note_bounce")
    assert run() == {"suppressed": 1}
    assert sorted(each.name for each in (box / "cur").iterdir()) == ["1.host:2,S", "2.host:2,RS"]
    assert run() == {}


def test_a_mailbox_that_is_not_there_or_not_set_is_said_in_a_line(url: str, tmp_path: Path) -> None:
    nowhere = Shell(url, DUEPOST_BOUNCE_ADDRESS=BASE, DUEPOST_BOUNCE_MAILBOX=str(tmp_path / "none"))
    assert "is no Maildir" in nowhere.run("bounces", status=1)
    away = Shell(url, DUEPOST_BOUNCE_ADDRESS=BASE, DUEPOST_BOUNCE_MAILBOX="imaps://ann:s3cret@127.0.0.1:1/INBOX")
    said = away.run("bounces", status=1)
    assert said.startswith("duepost: IMAP: ")
    assert "s3cret" not in said
    assert Shell(url).run("bounces", status=2).startswith("duepost: DUEPOST_BOUNCE_ADDRESS: must be set")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ADDRESS", "nobody"), ("ADDRESS", "Ann <a@example.com>"), ("ADDRESS", "b" * 28 + "@example.com"),
        ("MAILBOX", "imap://u:p@mail.example.com"), ("MAILBOX", "pop3://u:p@h"), ("MAILBOX", "imaps://h/INBOX"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"DUEPOST_BOUNCE_{name}", value)
    settings.cache_clear()
    with pytest.raises(BadSettings, match=rf"^DUEPOST_BOUNCE_{name}: must be"):
        settings()
    settings.cache_clear()


class ImapServer:
    """A server with one folder, as far as it is asked here; a context manager."""

    def __init__(self, *emails: bytes) -> None:
        self.emails = dict(enumerate(emails, start=7))
        self.seen: set[int] = set()
        self.asked: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, connection.makefile("rwb") as wire:
                    self._talk(wire)

    def _talk(self, wire: BufferedRWPair) -> None:
        wire.write(b"* OK ready\r\n")
        wire.flush()
        while line := wire.readline():
            tag, _, command = line.decode("latin-1").strip().partition(" ")
            self.asked.append(command)
            word = command.upper()
            if word.startswith("CAPABILITY"):
                wire.write(b"* CAPABILITY IMAP4rev1\r\n")
            elif word.startswith("SELECT"):
                wire.write(b"* %d EXISTS\r\n" % len(self.emails))
            elif word.startswith("UID SEARCH"):
                unseen = " ".join(str(uid) for uid in self.emails if uid not in self.seen)
                wire.write(f"* SEARCH {unseen}\r\n".encode())
            elif word.startswith("UID FETCH"):
                content = self.emails[int(command.split()[2])]
                wire.write(b"* 1 FETCH (BODY[]<0> {%d}\r\n%s)\r\n" % (len(content), content))
            elif word.startswith("UID STORE"):
                self.seen.add(int(command.split()[2]))
            elif word.startswith("LOGIN") and "refused" in command:
                wire.write(f"{tag} NO no\r\n".encode())
                wire.flush()
                continue
            wire.write(f"{tag} OK done\r\n".encode())
            wire.flush()


def test_a_folder_of_an_imap_server_is_read_and_what_is_concluded_is_marked_as_seen() -> None:
    with ImapServer(b"one", b"two\r\n" * 3) as server:
        with opened(f"imap://ann:s3%20cret@127.0.0.1:{server.port}/Bounces") as mailbox:
            assert list(mailbox.waiting()) == [("7", b"one"), ("8", b"two\r\n" * 3)]
            assert server.seen == set(), "to look marks nothing"
            mailbox.mark("7")
            assert list(mailbox.waiting()) == [("8", b"two\r\n" * 3)]
        assert server.seen == {7}
        assert any("SELECT" in each.upper() and "Bounces" in each for each in server.asked)
        assert all("PEEK" in each for each in server.asked if "FETCH" in each)


def test_an_imap_server_that_refuses_or_speaks_no_tls_is_said_in_a_line_without_the_password() -> None:
    with ImapServer() as server:
        for scheme in ("imap", "imaps", "imap+starttls"):
            place = f"{scheme}://ann:refused@127.0.0.1:{server.port}/INBOX"
            with pytest.raises(MailboxError, match=r"^IMAP: ") as caught, opened(place):
                pass
            assert "refused" not in str(caught.value)

"""The mail catcher: keeps what it is given, refuses what it is told to."""

import contextlib
import logging
import smtplib
import socket
import threading
import time
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from duepost.catcher import Catcher
from duepost.catching import CatcherError, Refusal

MESSAGE = b"Subject: hello\r\n\r\n.a dot\r\nend\r\n"


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@contextlib.contextmanager
def client(url: str) -> Iterator[smtplib.SMTP]:
    connection = smtplib.SMTP(*address(url), local_hostname="localhost", timeout=10)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture
def catcher(tmp_path: Path) -> Iterator[Catcher]:
    with Catcher(tmp_path / "mail") as catcher:
        yield catcher


def with_rules(tmp_path: Path, *rules: Refusal) -> Catcher:
    return Catcher(tmp_path / "mail", rules=rules)


def rcpt(connection: smtplib.SMTP, recipient: str) -> tuple[int, bytes]:
    return connection.docmd(f"RCPT TO:<{recipient}>")


def test_what_comes_in_is_what_messages_gives(catcher: Catcher) -> None:
    with client(catcher.start()) as connection:
        connection.sendmail("me@example.com", ["a@example.com", '"b,c"@example.com'], MESSAGE)
    assert list(catcher.messages()) == [(["a@example.com", '"b,c"@example.com'], MESSAGE)]


def test_a_message_that_starts_like_the_envelope_is_not_taken_for_it(catcher: Catcher) -> None:
    forged = b"X-RcptTo: forged@example.com\r\n\r\nbody\r\n"
    with client(catcher.start()) as connection:
        connection.sendmail("me@example.com", ["a@example.com"], forged)
    assert list(catcher.messages()) == [(["a@example.com"], forged)]


def test_a_stored_email_is_a_file_that_any_mail_program_opens(catcher: Catcher) -> None:
    with client(catcher.start()) as connection:
        connection.sendmail("me@example.com", ["a@example.com", "b@example.com"], MESSAGE)
    (path,) = catcher.mailbox.iterdir()
    email = message_from_bytes(path.read_bytes())
    assert path.suffix == ".eml"
    assert email["X-RcptTo"].split() == ["a@example.com,", "b@example.com"]
    assert email["Subject"] == "hello"


def test_messages_come_oldest_first_and_outlive_the_catcher(tmp_path: Path) -> None:
    for round_ in range(2):
        with Catcher(tmp_path) as catcher, client(catcher.start()) as connection:
            for number in range(3):
                connection.sendmail("me@example.com", [f"{round_}{number}@example.com"], MESSAGE)
    recipients = [recipients[0] for recipients, _ in Catcher(tmp_path).messages()]
    assert recipients == [f"{round_}{number}@example.com" for round_ in range(2) for number in range(3)]


def test_an_international_address_is_kept(catcher: Catcher) -> None:
    with client(catcher.start()) as connection:
        connection.ehlo()
        connection.command_encoding = "utf-8"
        connection.sendmail("me@example.com", ["jürgen@bücher.example"], MESSAGE, ["SMTPUTF8"])
    assert [recipients for recipients, _ in catcher.messages()] == [["jürgen@bücher.example"]]


def test_dead_recipients_are_refused_for_ever(tmp_path: Path) -> None:
    catcher = with_rules(tmp_path, Refusal("dead*", "550 5.1.1 no such mailbox"))
    with catcher, client(catcher.start()) as connection:
        connection.ehlo()
        connection.mail("me@example.com")
        for _ in range(3):
            assert rcpt(connection, "DEAD.letter@example.com") == (550, b"5.1.1 no such mailbox")
        assert rcpt(connection, "living@example.com")[0] == 250


def test_each_greylisted_address_is_put_off_once(tmp_path: Path) -> None:
    catcher = with_rules(tmp_path, Refusal("greylisted*", "451 4.7.1 greylisted, try again", times=1))
    with catcher, client(catcher.start()) as connection:
        connection.ehlo()
        connection.mail("me@example.com")
        first = [rcpt(connection, f"greylisted{number}@example.com")[0] for number in range(3)]
        again = [rcpt(connection, f"greylisted{number}@example.com")[0] for number in range(3)]
    assert (first, again) == ([451] * 3, [250] * 3)


def test_a_used_up_rule_leaves_the_address_to_the_next(tmp_path: Path) -> None:
    catcher = with_rules(tmp_path, Refusal("a@*", "451 4.7.1 later", times=1), Refusal("a@*", "550 5.1.1 never"))
    with catcher, client(catcher.start()) as connection:
        connection.ehlo()
        connection.mail("me@example.com")
        assert [rcpt(connection, "a@example.com")[0] for _ in range(3)] == [451, 550, 550]


def test_greylisting_is_counted_right_by_racing_clients(tmp_path: Path) -> None:
    catcher = with_rules(tmp_path, Refusal("*", "451 4.7.1 later", times=10))
    codes: list[int] = []

    def ask(url: str) -> None:
        with client(url) as connection:
            connection.ehlo()
            connection.mail("me@example.com")
            codes.extend(rcpt(connection, "a@example.com")[0] for _ in range(10))

    with catcher:
        threads = [threading.Thread(target=ask, args=(catcher.start(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(codes) == [250] * 30 + [451] * 10


@pytest.mark.parametrize("reply", ["250 fine", "550", "550 two\r\nlines", "no code"])
def test_a_reply_that_refuses_nothing_is_no_refusal(reply: str) -> None:
    with pytest.raises(ValueError, match="400 to 599"):
        Refusal("*", reply)


def test_a_refusal_happens_at_least_once() -> None:
    with pytest.raises(ValueError, match="at least once"):
        Refusal("*", "550 5.1.1 no", times=0)


def test_a_pipelining_client_is_served(catcher: Catcher) -> None:
    with client(catcher.start()) as connection:
        connection.ehlo()
        assert connection.has_extn("pipelining")
        assert connection.esmtp_features["size"] == str(32 * 1024 * 1024)
        for _ in range(2):
            connection.send(b"MAIL FROM:<me@example.com>\r\nRCPT TO:<a@example.com>\r\nDATA\r\n")
            assert [connection.getreply()[0] for _ in range(3)] == [250, 250, 354]
            connection.send(MESSAGE.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            assert connection.getreply()[0] == 250
    assert list(catcher.messages()) == [(["a@example.com"], MESSAGE)] * 2


def test_a_full_disk_is_a_temporary_fault(catcher: Catcher) -> None:
    with client(catcher.start()) as connection:
        catcher.mailbox.rmdir()
        with pytest.raises(smtplib.SMTPDataError) as refused:
            connection.sendmail("me@example.com", ["a@example.com"], MESSAGE)
    assert refused.value.smtp_code == 452


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            CatcherError, match=rf"^the mail catcher cannot listen on 127.0.0.1:{port}: Address .* in use$"
        ):
            Catcher(tmp_path, port=port).start()


def test_a_mailbox_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CatcherError, match="file/mail cannot be made: Not a directory"):
        Catcher(tmp_path / "file" / "mail").start()


def test_it_stops_at_once_with_clients_connected(tmp_path: Path) -> None:
    catcher = Catcher(tmp_path)
    with client(catcher.start()) as idle, client(catcher.start()) as in_data:
        idle.ehlo()
        in_data.ehlo()
        in_data.mail("me@example.com")
        in_data.rcpt("a@example.com")
        assert in_data.docmd("DATA")[0] == 354
        in_data.send(b"Subject: half\r\n")
        began = time.monotonic()
        catcher.stop()
        assert time.monotonic() - began < 1
        with pytest.raises((smtplib.SMTPServerDisconnected, ConnectionError)):
            idle.noop()
    assert list(catcher.messages()) == []


def test_it_stops_right_after_it_started_and_starts_again_on_its_port(tmp_path: Path) -> None:
    catcher = Catcher(tmp_path)
    _, port = address(catcher.start())
    catcher.stop()
    catcher.stop()
    for _ in range(5):
        with Catcher(tmp_path, port=port) as again:
            assert address(again.start())[1] == port


def test_it_stops_cleanly_while_clients_arrive(tmp_path: Path) -> None:
    for _ in range(10):
        catcher = Catcher(tmp_path)
        server = address(catcher.start())
        clients = [socket.create_connection(server) for _ in range(20)]
        catcher.stop()
        for connection in clients:
            connection.close()


def test_a_client_that_hangs_up_in_the_middle_is_no_news(catcher: Catcher, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(20):
        with socket.create_connection(address(catcher.start())) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            connection.sendall(b"EHLO localhost\r\n" * 50)
    catcher.stop()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_no_address_is_logged(catcher: Catcher, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with client(catcher.start()) as connection:
        connection.sendmail("me@example.com", ["private@example.com"], MESSAGE)
    assert "private" not in caplog.text


def test_it_takes_hundreds_of_messages_over_one_connection(catcher: Catcher) -> None:
    with client(catcher.start()) as connection:
        connection.ehlo()
        for _ in range(300):
            connection.send(b"MAIL FROM:<me@example.com>\r\nRCPT TO:<a@example.com>\r\nDATA\r\n")
            assert [connection.getreply()[0] for _ in range(3)] == [250, 250, 354]
            connection.send(MESSAGE + b".\r\n")
            assert connection.getreply()[0] == 250

"""Hostile input, from the SQL functions to the bytes on the wire; `tests/corpus/hostile.json` keeps what was tried."""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_bytes, policy
from pathlib import Path

import psycopg2
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.channels.smtp.replies import MalformedReply, ReplyParser
from actors.content.templates import RenderError, Templates
from actors.liveness.time_limit import TimeLimit
from duepost.commands.jsonl import EMAILS, BadLine, read_items
from tests.app_harness import Harness
from tests.integration.conftest import settings_of
from tests.recorder import END_OF_CONTENT, ByteRecorder

CORPUS = json.loads((Path(__file__).parent.parent / "corpus" / "hostile.json").read_text(encoding="utf-8"))

#: Pieces that break something somewhere, strung together in any order with any text between them.
hostile_text = st.lists(st.sampled_from(CORPUS["fragments"]) | st.text(max_size=20), max_size=6).map("".join)
hostile_address = st.sampled_from(CORPUS["addresses"]) | hostile_text

#: What a bad argument may raise: ours, and PostgreSQL's and the driver's own for what is no text or JSON at all.
REFUSALS = {"22023", "22021", "22P05", "22P02", "A string literal cannot contain NUL (0x00) characters."}

HEADERS = {
    "date", "from", "to", "reply-to", "subject", "message-id", "mime-version", "auto-submitted", "content-type",
    "content-transfer-encoding", "x-tag",
}  # fmt: skip

thorough = settings(
    max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None
)


@pytest.fixture
def recorder() -> Iterator[ByteRecorder]:
    with ByteRecorder() as recorder:
        yield recorder


@pytest.fixture
def recorded(url: str, recorder: ByteRecorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    """Scheduler and sender, and the recorder as the relay."""
    for name, value in settings_of(url, recorder.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    harness = Harness(url, tmp_path)
    yield harness
    harness.close()


def stored(harness: Harness) -> object:
    return harness.query(
        "SELECT (SELECT count(*) FROM duepost.scheduled_email), (SELECT count(*) FROM duepost.scheduled_email_user),"
        " (SELECT count(*) FROM duepost.email_key)"
    )


def schedule(harness: Harness, **arguments: object) -> int | None:
    """Schedules, or finds it refused with nothing stored."""
    before = stored(harness)
    fault = ""
    try:
        return harness.schedule(**arguments)
    except ValueError as error:
        fault = str(error)
    except psycopg2.Error as error:
        fault = str(error.pgcode)
    assert fault in REFUSALS or fault.endswith("must not contain NUL or a lone surrogate")
    assert stored(harness) == before
    return None


def check_wire(content: bytes, before: list[bytes]) -> None:
    """One message by anybody's reading, with the headers that it is to have and no other."""
    assert content.count(END_OF_CONTENT) == 1
    assert content.endswith(END_OF_CONTENT)
    assert re.search(rb"\r(?!\n)|(?<!\r)\n|\0", content) is None, "no bare CR or LF, no NUL"
    assert max(map(len, content.split(b"\r\n"))) <= 998
    assert all(byte < 128 for byte in content)
    message = message_from_bytes(content[: -len(END_OF_CONTENT)], policy=policy.SMTP)
    assert {name.lower() for name in message} <= HEADERS
    assert len(message) == len({name.lower() for name in message}), "each header once"
    commands = [command.split()[0].upper() for command in before]
    assert set(commands) <= {b"EHLO", b"MAIL", b"RCPT", b"DATA", b"RSET", b"NOOP", b"QUIT"}
    assert [command for command in before if command.startswith(b"RCPT")][-1] == b"RCPT TO:<ann@example.com>\r\n"
    assert not any(b"evil" in command or b"victim" in command for command in before)


@given(subject=hostile_text, text=hostile_text, html=hostile_text | st.none(), tag=hostile_text)
@thorough
def test_whatever_is_in_an_email_one_message_goes_over_the_wire(
    recorded: Harness, recorder: ByteRecorder, subject: str, text: str, html: str | None, tag: str
) -> None:
    before = len(recorder.contents)
    email_id = schedule(recorded, subject=subject, body_text=text, body_html=html, headers={"X-Tag": tag})
    recorded.deliver()
    assert len(recorder.contents) == before + (email_id is not None)
    if email_id is not None:
        assert recorded.ledger(email_id) == ["sent"]
        check_wire(recorder.contents[-1], recorder.commands)


@given(address=hostile_address, sender=hostile_address | st.none(), reply_to=hostile_address | st.none())
@thorough
def test_whatever_is_given_as_an_address_no_command_is_smuggled(
    recorded: Harness, recorder: ByteRecorder, address: str, sender: str | None, reply_to: str | None
) -> None:
    before = len(recorder.commands)
    email_id = schedule(recorded, address=address, sender=sender, reply_to=reply_to)
    recorded.deliver()
    said = recorder.commands[before:]
    assert sum(command.startswith(b"RCPT") for command in said) <= (email_id is not None)
    assert all(re.fullmatch(rb"[ -~]+\r\n", command) for command in said)
    recorded.query("UPDATE duepost.scheduled_email SET due_at = now() + interval '1 day'")


class Keeper:
    """What aiosmtpd hands on; the names are its own."""

    def __init__(self) -> None:
        self.envelopes: list[Envelope] = []

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.envelopes.append(envelope)
        return "250 2.0.0 ok"


@pytest.fixture
def aiosmtpd(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Harness, Keeper]]:
    """Scheduler and sender, and a stock aiosmtpd as the relay."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    keeper = Keeper()
    controller = Controller(keeper, hostname="127.0.0.1", port=port)
    controller.start()
    for name, value in settings_of(url, f"smtp://127.0.0.1:{port}", tmp_path).items():
        monkeypatch.setenv(name, value)
    harness = Harness(url, tmp_path)
    yield harness, keeper
    harness.close()
    controller.stop()


def test_aiosmtpd_takes_one_message_with_the_body_as_it_was_meant(aiosmtpd: tuple[Harness, Keeper]) -> None:
    harness, keeper = aiosmtpd
    bodies = [text for text in CORPUS["fragments"] if "\0" not in text]
    for text in bodies:
        assert schedule(harness, body_text=f"before{text}after") is not None
    # Where the machine is slow, a limit of time puts one off.
    for _ in bodies:
        harness.make_due()
        harness.deliver()
    assert len(keeper.envelopes) == len(bodies)
    read = []
    for envelope in keeper.envelopes:
        assert envelope.rcpt_tos == ["ann@example.com"]
        assert isinstance(envelope.content, bytes)
        message = message_from_bytes(envelope.content, policy=policy.SMTP)
        read.append(re.sub(r"\r\n", "\n", str(message.get_content())).rstrip("\n"))
    meant = [re.sub(r"\r\n|\r|\n", "\n", f"before{text}after").rstrip("\n") for text in bodies]
    assert sorted(read) == sorted(meant)


@given(name=st.sampled_from(CORPUS["template_names"]) | hostile_text)
@thorough
def test_no_template_name_leads_out_of_the_folder(recorded: Harness, tmp_path: Path, name: str) -> None:
    for ending in ("subject.txt", "txt"):
        (tmp_path / f"secret.{ending}").write_text("secret")
    inside = tmp_path / "inside"
    inside.mkdir(exist_ok=True)
    with pytest.raises(RenderError):
        Templates(inside, TimeLimit()).render(name, {})
    email_id = schedule(recorded, template=name)
    if email_id is not None:
        assert re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name), "it looks like a name"
        recorded.deliver()
        assert "TemplateNotFound" in str(recorded.row(email_id)["last_error"]) or name == "secret"


@given(line=st.sampled_from(CORPUS["lines"]) | st.lists(st.sampled_from(CORPUS["lines"])).map("".join) | hostile_text)
def test_a_line_of_a_file_is_an_email_or_one_clear_error(line: str) -> None:
    emails: list[object] = []
    fault = None
    try:
        emails += read_items([line], "emails.jsonl", EMAILS)
    except BadLine as error:
        fault = str(error)
    assert len(emails) <= 1
    assert fault is None or re.fullmatch(r"emails\.jsonl: line 1: .+", fault)


@given(st.lists(st.sampled_from(CORPUS["replies"]).map(str.encode) | st.binary(max_size=40), max_size=6))
def test_a_relays_reply_is_read_or_refused_and_never_breaks_the_reader(pieces: list[bytes]) -> None:
    parser = ReplyParser()
    with suppress(MalformedReply):
        for piece in pieces:
            parser.feed(piece)
            while (reply := parser.next_reply()) is not None:
                assert 200 <= reply.code <= 599
                assert reply.text.isprintable()

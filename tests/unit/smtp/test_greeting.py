import base64
import socket

import pytest

from actors.smtp.dialogue import Send, StartTls
from actors.smtp.greeting import Offer, farewell, greet, hello_name
from actors.smtp.relay import Relay, Security
from actors.smtp.verdicts import Phase, Ruling, Scope
from models.words import Verdict
from tests.unit.smtp.talk import Break, Talk, as_reply, talk

HELLO = "250-relay\n250-PIPELINING\n250 8BITMIME"
HELLO_TLS = "250-relay\n250 STARTTLS"
HELLO_LOGIN = "250-relay\n250 AUTH LOGIN PLAIN"
REMOTE = Relay("mail.example.com", 25)
LOCAL_LOGIN = Relay("127.0.0.1", 25, Security.OPPORTUNISTIC, "ada", "pass")
LOGIN = Relay("mail.example.com", 25, Security.OPPORTUNISTIC, "ada", "pass")


def hello(relay: Relay, *answers: str | Break) -> Talk[Offer | Ruling]:
    return talk(greet(relay, "me.example.com"), *answers)


def refused(said: Talk[Offer | Ruling], phase: Phase) -> bool:
    ruling = said.result
    assert isinstance(ruling, Ruling), ruling
    return (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, phase)


def test_a_relay_that_greets_back_is_ready() -> None:
    said = hello(REMOTE, "220 hello", HELLO)
    assert said.result == Offer(pipelining=True, eightbitmime=True)
    assert said.written == b"EHLO me.example.com\r\n"


@pytest.mark.parametrize("banner", ["421 busy", "554 go away", "354 what", *Break])
def test_a_banner_that_does_not_welcome_is_the_relays_fault(banner: str | Break) -> None:
    assert refused(hello(REMOTE, banner), Phase.BANNER)


@pytest.mark.parametrize("reply", ["500 what", "502 no", "550 no"])
def test_a_relay_that_knows_no_ehlo_gets_helo(reply: str) -> None:
    said = hello(REMOTE, "220 hello", reply, "250 relay")
    assert said.result == Offer()
    assert said.writes[1] == b"HELO me.example.com\r\n"


@pytest.mark.parametrize("replies", [["421 busy"], ["502 no", "550 no"], ["502 no", Break.CLOSED], [Break.TIMEOUT]])
def test_a_refused_hello_is_the_relays_fault(replies: list[str | Break]) -> None:
    assert refused(hello(REMOTE, "220 hello", *replies), Phase.EHLO)


def test_starttls_is_used_when_offered_and_what_was_offered_before_is_forgotten() -> None:
    said = hello(REMOTE, "220 hello", "250-relay\n250-SIZE 1\n250 STARTTLS", "220 go", HELLO)
    assert said.result == Offer(pipelining=True, eightbitmime=True)
    assert [action for action in said.actions if isinstance(action, Send | StartTls)][1:] == [
        Send(b"STARTTLS\r\n", Phase.STARTTLS),
        StartTls(),
        Send(b"EHLO me.example.com\r\n", Phase.EHLO),
    ]


@pytest.mark.parametrize("reply", ["454 not now", "500 what", "354 what", *Break])
def test_a_starttls_that_is_offered_and_refused_never_falls_back_to_plain_text(reply: str | Break) -> None:
    said = hello(REMOTE, "220 hello", HELLO_TLS, reply)
    assert refused(said, Phase.STARTTLS)
    assert said.writes[-1] == b"STARTTLS\r\n"


def test_a_failed_handshake_never_falls_back_to_plain_text() -> None:
    script = greet(REMOTE, "me")
    said = talk(script, "220 hello", HELLO_TLS, "220 go", breaks=lambda action: isinstance(action, StartTls))
    assert refused(said, Phase.STARTTLS)
    assert said.writes[-1] == b"STARTTLS\r\n"


@pytest.mark.parametrize("replies", [[HELLO], ["502 no", "250 relay"]])
def test_tls_that_is_required_and_not_offered_is_the_relays_fault(replies: list[str]) -> None:
    said = hello(Relay("mail", 587, Security.REQUIRED), "220 hello", *replies)
    assert refused(said, Phase.STARTTLS)
    assert b"STARTTLS" not in said.written


def test_implicit_tls_comes_before_the_banner_and_once() -> None:
    said = hello(Relay("mail", 465, Security.IMPLICIT), "220 hello", HELLO_TLS)
    assert said.actions[0] == StartTls()
    assert b"STARTTLS" not in said.written


def test_auth_plain_comes_first() -> None:
    said = hello(LOCAL_LOGIN, "220 hello", HELLO_LOGIN, "235 welcome")
    assert isinstance(said.result, Offer)
    assert said.writes[-1] == b"AUTH PLAIN " + base64.b64encode(b"\0ada\0pass") + b"\r\n"


def test_auth_login_is_spoken_where_plain_is_not() -> None:
    said = hello(LOCAL_LOGIN, "220 hello", "250-relay\n250 AUTH LOGIN", "334 VXNlcg==", "334 UGFzcw==", "235 welcome")
    assert isinstance(said.result, Offer)
    assert said.writes[1:] == [b"AUTH LOGIN\r\n", b"YWRh\r\n", b"cGFzcw==\r\n"]


@pytest.mark.parametrize(
    "reply",
    ["454 4.7.0 not now", "504 x", "530 x", "534 5.7.9 x", "535 5.7.8 wrong", "538 x", "334 x", *Break],
)
def test_a_refused_login_is_our_fault_or_the_relays_and_drops_nothing(reply: str | Break) -> None:
    assert refused(hello(LOCAL_LOGIN, "220 hello", HELLO_LOGIN, reply), Phase.AUTH)
    assert refused(hello(LOCAL_LOGIN, "220 hello", "250-relay\n250 AUTH LOGIN", "334 x", "334 x", reply), Phase.AUTH)


@pytest.mark.parametrize("replies", [[HELLO], ["250-relay\n250 AUTH CRAM-MD5 XOAUTH2"], ["502 no", "250 relay"]])
def test_a_login_that_the_relay_cannot_take_is_the_relays_fault(replies: list[str]) -> None:
    said = hello(LOCAL_LOGIN, "220 hello", *replies)
    assert refused(said, Phase.AUTH)
    assert b"AUTH" not in said.written


def test_a_login_is_never_sent_unencrypted_to_another_machine() -> None:
    said = hello(LOGIN, "220 hello", HELLO_LOGIN)
    assert refused(said, Phase.AUTH)
    assert b"AUTH" not in said.written


def test_a_login_is_sent_encrypted() -> None:
    assert isinstance(hello(LOGIN, "220 hello", HELLO_TLS, "220 go", HELLO_LOGIN, "235 in").result, Offer)


def test_an_offer_is_read_whatever_its_case_and_order() -> None:
    reply = as_reply("250-relay PIPELINING\n250-size 1000\n250-AUTH=LOGIN\n250-auth plain cram-md5\n250-\n250 StartTLS")
    assert Offer.from_reply(reply) == Offer(
        starttls=True, size=True, size_limit=1000, logins=frozenset({"LOGIN", "PLAIN", "CRAM-MD5"})
    )


@pytest.mark.parametrize(
    ("line", "limit"), [("SIZE", 0), ("SIZE 0", 0), ("SIZE many", 0), ("SIZE -1", 0), ("SIZE 9", 9)]
)
def test_a_size_without_a_number_is_no_limit(line: str, limit: int) -> None:
    offer = Offer.from_reply(as_reply(f"250-relay\n250 {line}"))
    assert (offer.size, offer.size_limit) == (True, limit)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("web-1.example.com", "web-1.example.com"),
        ("web", "[127.0.0.1]"),
        ("web_1.example.com", "[127.0.0.1]"),
        ("a.b\r\nQUIT", "[127.0.0.1]"),
        ("", "[127.0.0.1]"),
        (f"{'a' * 300}.example", "[127.0.0.1]"),
    ],
)
def test_the_name_for_ehlo_is_a_domain_or_an_address_literal(
    monkeypatch: pytest.MonkeyPatch, host: str, name: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert hello_name() == name


@pytest.mark.parametrize("answer", ["221 bye", "500 what", *Break])
def test_a_farewell_takes_any_answer(answer: str | Break) -> None:
    assert talk(farewell(), answer).written == b"QUIT\r\n"

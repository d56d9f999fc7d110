import base64
import socket
from dataclasses import replace

import pytest

from actors.channels.smtp.dialogue import Send, StartTls
from actors.channels.smtp.greeting import Offer, farewell, greet, hello_name, is_hello_name
from actors.channels.smtp.login import Attempts, Logins
from actors.channels.smtp.relay import Relay, Security
from actors.ruling import Phase, Ruling, Scope
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
        StartTls(is_checked=False),
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
    assert said.actions[0] == StartTls(Phase.CONNECT)
    assert b"STARTTLS" not in said.written


def test_auth_plain_comes_first() -> None:
    said = hello(LOCAL_LOGIN, "220 hello", HELLO_LOGIN, "235 welcome")
    assert isinstance(said.result, Offer)
    assert said.writes[-1] == b"AUTH PLAIN " + base64.b64encode(b"\0ada\0pass") + b"\r\n"


def test_auth_login_is_spoken_where_plain_is_not() -> None:
    said = hello(LOCAL_LOGIN, "220 hello", "250-relay\n250 AUTH LOGIN", "334 VXNlcg==", "334 UGFzcw==", "235 welcome")
    assert isinstance(said.result, Offer)
    assert said.writes[1:] == [b"AUTH LOGIN\r\n", b"YWRh\r\n", b"cGFzcw==\r\n"]


def offering(*mechanisms: str) -> str:
    return f"250-relay\n250 AUTH {' '.join(mechanisms)}"


@pytest.mark.parametrize(
    "reply", ["454 4.7.0 not now", "504 x", "530 x", "534 5.7.9 x", "535 5.7.8 wrong", "538 x", *Break]
)
def test_a_refused_login_is_our_fault_or_the_relays_and_drops_nothing(reply: str | Break) -> None:
    assert refused(hello(LOCAL_LOGIN, "220 hello", offering("PLAIN"), reply), Phase.AUTH)
    assert refused(hello(LOCAL_LOGIN, "220 hello", offering("LOGIN"), "334 x", "334 x", reply), Phase.AUTH)


@pytest.mark.parametrize("reply", ["500 x", "504 x", "530 x", "534 5.7.9 x", "535 5.7.8 wrong", "538 x", "553 5.3.0 x"])
def test_a_mechanism_that_is_refused_is_followed_by_the_next_one_that_is_offered(reply: str) -> None:
    said = hello(LOCAL_LOGIN, "220 hello", HELLO_LOGIN, reply, "334 VXNlcg==", "334 UGFzcw==", "235 welcome")
    assert isinstance(said.result, Offer)
    assert said.writes[2:] == [b"AUTH LOGIN\r\n", b"YWRh\r\n", b"cGFzcw==\r\n"]


def test_a_login_that_every_mechanism_is_refused_for_names_them_and_the_codes_and_no_word_of_the_relays() -> None:
    said = hello(
        LOCAL_LOGIN, "220 hello", offering("CRAM-MD5", "PLAIN", "LOGIN", "XOAUTH2"),
        "535 5.7.8 AGFkYQBwYXNz is wrong", "504 LOGIN what", "334 PDFAcmVsYXk+", "501 5.5.2 YWRhIA== is wrong",
    )  # fmt: skip
    assert refused(said, Phase.AUTH)
    assert isinstance(said.result, Ruling)
    assert said.result.reply == "the login is refused with 535 5.7.8 (tried: PLAIN, LOGIN, CRAM-MD5)"
    assert (said.result.code, said.result.enhanced_code) == (535, "5.7.8")


@pytest.mark.parametrize("reply", ["454 4.7.0 not now", "421 4.7.0 bye", *Break])
def test_a_login_that_cannot_be_had_now_is_not_tried_by_every_mechanism(reply: str | Break) -> None:
    said = hello(LOCAL_LOGIN, "220 hello", HELLO_LOGIN, reply)
    assert refused(said, Phase.AUTH)
    assert said.written.count(b"AUTH") == 1


def test_cram_md5_answers_the_challenge() -> None:
    relay = Relay("127.0.0.1", 25, Security.OPPORTUNISTIC, "tim", "tanstaaftanstaaf")
    challenge = "PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+"
    said = hello(relay, "220 hello", offering("CRAM-MD5", "XOAUTH2"), f"334 {challenge}", "235 welcome")
    assert isinstance(said.result, Offer)
    # The example of RFC 2195.
    assert said.writes[-1] == b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw\r\n"


def test_a_challenge_that_is_none_is_cancelled() -> None:
    said = hello(LOCAL_LOGIN, "220 hello", offering("CRAM-MD5"), "334 what?!", "501 cancelled")
    assert refused(said, Phase.AUTH)
    assert said.writes[-1] == b"*\r\n"


def test_plain_is_said_once_more_where_the_relay_asks_for_it() -> None:
    said = hello(LOCAL_LOGIN, "220 hello", offering("PLAIN"), "334 ", "235 welcome")
    assert isinstance(said.result, Offer)
    assert said.writes[-1] == b"AGFkYQBwYXNz\r\n"


def test_an_exchange_that_never_ends_is_cancelled_before_the_next_one() -> None:
    said = hello(LOCAL_LOGIN, "220 hello", HELLO_LOGIN, "334 x", "334 x", "501 cancelled", "334 x", "334 x", "235 in")
    assert isinstance(said.result, Offer)


def test_a_relay_that_hangs_up_on_a_refused_login_gets_the_next_mechanism_over_another_connection() -> None:
    attempts = Attempts()
    cut = talk(greet(LOCAL_LOGIN, "me", attempts), "220 hello", HELLO_LOGIN, "535 no", Break.CLOSED)
    assert refused(cut, Phase.AUTH)
    assert attempts.is_cut_off
    again = talk(greet(LOCAL_LOGIN, "me", attempts), "220 hello", HELLO_LOGIN, "334 x", "334 x", "235 welcome")
    assert isinstance(again.result, Offer)
    assert b"PLAIN" not in again.written
    another = Attempts(attempts.logins)
    third = talk(greet(LOCAL_LOGIN, "me", another), "220 hello", HELLO_LOGIN, "334 x", "334 x", "235 welcome")
    assert b"PLAIN" not in third.written


def test_a_login_that_failed_meanwhile_is_not_tried_over_another_connection() -> None:
    logins = Logins()
    first, second = Attempts(logins), Attempts(logins)
    failed = talk(greet(LOCAL_LOGIN, "me", first), "220 hello", HELLO_LOGIN, "535 no", "535 no")
    assert failed.written.count(b"AUTH") == 2
    shared = talk(greet(LOCAL_LOGIN, "me", second), "220 hello", HELLO_LOGIN)
    assert shared.result == failed.result
    assert b"AUTH" not in shared.written
    # One that is begun later finds the password put right.
    later = talk(greet(LOCAL_LOGIN, "me", Attempts(logins)), "220 hello", HELLO_LOGIN, "235 welcome")
    assert isinstance(later.result, Offer)


def test_what_was_taken_once_and_is_refused_is_tried_by_no_other_mechanism_until_the_next_login() -> None:
    logins = Logins()
    talk(greet(LOCAL_LOGIN, "me", Attempts(logins)), "220 hello", HELLO_LOGIN, "235 welcome")
    beside = Attempts(logins)
    changed = talk(greet(LOCAL_LOGIN, "me", Attempts(logins)), "220 hello", HELLO_LOGIN, "535 5.7.8 no")
    assert refused(changed, Phase.AUTH)
    assert changed.written.count(b"AUTH") == 1
    assert b"AUTH" not in talk(greet(LOCAL_LOGIN, "me", beside), "220 hello", HELLO_LOGIN).written
    probe = talk(
        greet(LOCAL_LOGIN, "me", Attempts(logins)), "220 hello", HELLO_LOGIN, "535 no", "334 x", "334 x", "235 in"
    )
    assert isinstance(probe.result, Offer)


def test_a_server_that_has_no_time_for_a_login_is_asked_again_by_the_same_mechanism() -> None:
    logins = Logins()
    talk(greet(LOCAL_LOGIN, "me", Attempts(logins)), "220 hello", HELLO_LOGIN, "535 no", "334 x", "334 x", "235 in")
    talk(greet(LOCAL_LOGIN, "me", Attempts(logins)), "220 hello", HELLO_LOGIN, "454 4.7.0 later")
    again = talk(greet(LOCAL_LOGIN, "me", Attempts(logins)), "220 hello", HELLO_LOGIN, "334 x", "334 x", "235 in")
    assert b"PLAIN" not in again.written


def test_a_relay_that_hangs_up_on_every_login_is_left_alone_in_the_end() -> None:
    attempts = Attempts()
    talk(greet(LOCAL_LOGIN, "me", attempts), "220 hello", HELLO_LOGIN, "535 no", Break.CLOSED)
    last = talk(greet(LOCAL_LOGIN, "me", attempts), "220 hello", HELLO_LOGIN, Break.CLOSED)
    assert not attempts.is_cut_off
    assert isinstance(last.result, Ruling)
    assert last.result.code == 535


@pytest.mark.parametrize("replies", [[HELLO], ["250-relay\n250 AUTH NTLM XOAUTH2"], ["502 no", "250 relay"]])
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


@pytest.mark.parametrize("host", ["web", "web_1.example.com", "a.b\r\nQUIT", "", f"{'a' * 300}.example", "localhost"])
def test_the_name_for_ehlo_is_the_connections_own_address_where_the_host_has_no_full_name(
    monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert hello_name(REMOTE, "192.0.2.7") == "[192.0.2.7]"
    assert hello_name(REMOTE, "2001:db8::7") == "[IPv6:2001:db8::7]"


def test_the_name_for_ehlo_is_the_hosts_full_name_unless_another_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "web-1.example.com")
    assert hello_name(REMOTE, "192.0.2.7") == "web-1.example.com"
    assert hello_name(replace(REMOTE, hello="mail.example.com"), "192.0.2.7") == "mail.example.com"
    assert hello_name(replace(REMOTE, hello="[192.0.2.9]"), "192.0.2.7") == "[192.0.2.9]"


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("mail.example.com", True),
        ("mail", True),
        ("[192.0.2.1]", True),
        ("[IPv6:2001:db8::1]", True),
        ("[ipv6:::1]", True),
        ("", False),
        ("mail example", False),
        ("-mail.example.com", False),
        ("mail..example.com", False),
        ("mail.example.com.", False),
        ("mail_1.example.com", False),
        ("192.0.2.1", False),
        ("[2001:db8::1]", False),
        ("[IPv6:192.0.2.1]", False),
        ("[999.0.2.1]", False),
        ("[mail]", False),
        ("a\r\nQUIT", False),
        ("mail.example.com\n", False),
        (f"{'a' * 64}.example.com", False),
        (".".join(["a" * 60] * 5), False),
        ("m\u00fcnchen.example", False),
    ],
)
def test_a_name_for_ehlo_is_a_domain_or_an_address_in_brackets(name: str, is_one: bool) -> None:
    assert is_hello_name(name) is is_one


def test_a_port_without_a_banner_gets_a_hint() -> None:
    said = hello(REMOTE, Break.TIMEOUT)
    assert refused(said, Phase.BANNER)
    assert isinstance(said.result, Ruling)
    assert "smtps://" in said.result.reply
    implicit = hello(Relay("mail", 465, Security.IMPLICIT), Break.TIMEOUT)
    assert isinstance(implicit.result, Ruling)
    assert "smtps://" not in implicit.result.reply


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST.", "::1", "::ffff:127.0.0.1", "mail.localhost"])
def test_starttls_is_not_used_to_this_machine_unless_it_is_asked_for(host: str) -> None:
    said = hello(Relay(host, 25), "220 hello", "250-relay\n250-AUTH PLAIN\n250 STARTTLS")
    assert isinstance(said.result, Offer)
    assert b"STARTTLS" not in said.written
    asked = hello(Relay(host, 587, Security.REQUIRED), "220 hello", HELLO_TLS, "220 go", HELLO)
    assert StartTls(is_checked=True) in asked.actions


def test_a_login_that_this_machine_takes_with_tls_only_gets_it() -> None:
    said = hello(LOCAL_LOGIN, "220 hello", HELLO_TLS, "220 go", HELLO_LOGIN, "235 welcome")
    assert isinstance(said.result, Offer)
    assert StartTls(is_checked=False) in said.actions


def test_a_certificate_is_checked_where_tls_is_asked_for_or_a_password_goes() -> None:
    assert not REMOTE.is_checked
    assert LOGIN.is_checked
    assert not LOCAL_LOGIN.is_checked
    for security in (Security.REQUIRED, Security.IMPLICIT):
        for host in ("mail.example.com", "127.0.0.1"):
            assert Relay(host, 1, security).is_checked


@pytest.mark.parametrize("answer", ["221 bye", "500 what", *Break])
def test_a_farewell_takes_any_answer(answer: str | Break) -> None:
    assert talk(farewell(), answer).written == b"QUIT\r\n"

"""Whatever a relay repeats of our login, nobody gets to see it."""

from base64 import b64encode
from contextlib import closing
from dataclasses import replace

import pytest

from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.relay import Relay, Timeouts
from actors.channels.smtp.secrets import hider
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict
from tests.relays import ScriptedRelay, garbage, reply
from tests.smtp_client import Client

USER, PASSWORD = "ada", "hunter2-hunter2"
BOTH = b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()
EMAIL = Envelope("from@example.com", ("ada@example.com",), b"hello\n")
PATIENT = Timeouts(connect=20, command=20, block=20, dot=20)

ECHOES = [
    BOTH,
    BOTH[:17],
    BOTH.lower(),
    BOTH.rstrip("="),
    b64encode(PASSWORD.encode()).decode(),
    b64encode(USER.encode()).decode(),
    PASSWORD,
    PASSWORD.upper(),
    f"{USER}:{PASSWORD}",
    f"xx{BOTH}xx",
]


def shows_it(text: str) -> bool:
    pieces = (PASSWORD, BOTH[:12], b64encode(PASSWORD.encode()).decode()[:12], "YWRh")
    return any(piece.lower() in text.lower() for piece in pieces)


def told(relay: ScriptedRelay) -> Ruling:
    where = replace(Relay.from_url(relay.url), username=USER, password=PASSWORD)
    with closing(Client(where, PATIENT)) as connection:
        return connection.deliver(EMAIL)["ada@example.com"]


@pytest.mark.parametrize("echo", ECHOES)
def test_the_login_is_taken_out_of_a_text_plain_or_encoded_whole_or_cut(echo: str) -> None:
    hide = hider(USER, PASSWORD)
    assert hide is not None
    for text in (f"unrecognized: {echo}", f'"{echo}"', f"({echo}) what?", f"AUTH PLAIN {echo}", echo):
        assert not shows_it(hide(text)), text


@pytest.mark.parametrize(
    "text", ["5.7.1 <bob@example.com>: Relay access denied", "550 5.1.1 no such user", "Sender address rejected", ""]
)
def test_other_words_stay(text: str) -> None:
    hide = hider(USER, PASSWORD)
    assert hide is not None
    assert hide(text) == text


def test_a_short_password_hides_no_parts_of_words() -> None:
    hide = hider("app", "pw")
    assert hide is not None
    assert hide("5.1.1 pwned apple, pw") == "5.1.1 pwned apple, ***"


def test_a_password_that_is_a_word_of_the_relays_changes_no_verdict() -> None:
    with ScriptedRelay(auth=(USER, "relay")) as relay:
        relay.on(Phase.RCPT, reply("554 5.7.1 Relay access denied"))
        where = Relay.from_url(relay.url)
        with closing(Client(where, PATIENT)) as connection:
            ruling = connection.deliver(EMAIL)["ada@example.com"]
        assert (ruling.verdict, ruling.scope) == (Verdict.RETRY, Scope.RELAY)
        assert ruling.reply == "5.7.1 *** access denied"


@pytest.mark.parametrize("mechanisms", ["PLAIN", "LOGIN", "CRAM-MD5", "PLAIN LOGIN CRAM-MD5"])
@pytest.mark.parametrize("echo", ECHOES)
def test_of_the_reply_to_a_login_only_the_codes_are_kept(echo: str, mechanisms: str) -> None:
    with ScriptedRelay(auth=(USER, PASSWORD), mechanisms=mechanisms) as relay:
        relay.on(Phase.AUTH, reply(f"500-5.5.1 unrecognized\n500 5.5.1 AUTH PLAIN {echo}"))
        ruling = told(relay)
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, Phase.AUTH)
    assert (ruling.code, ruling.enhanced_code) == (500, "5.5.1")
    assert "unrecognized" not in ruling.reply
    assert not shows_it(str(ruling))


def test_a_reply_to_a_login_that_cannot_be_read_is_not_kept() -> None:
    with ScriptedRelay(auth=(USER, PASSWORD), mechanisms="PLAIN") as relay:
        relay.on(Phase.AUTH, garbage(f"what is {BOTH[::-1]} {PASSWORD[::-1]}?\r\n".encode()))
        ruling = told(relay)
    assert ruling.phase is Phase.AUTH
    assert "what is" not in ruling.reply


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT])
@pytest.mark.parametrize("echo", ECHOES)
def test_a_login_that_comes_back_later_is_not_kept_either(phase: Phase, echo: str) -> None:
    with ScriptedRelay(auth=(USER, PASSWORD)) as relay:
        relay.on(phase, reply(f"550-5.5.1 {echo}\n550 5.5.1 unrecognized: {echo}"))
        ruling = told(relay)
        assert ruling.phase is phase
        assert "unrecognized" in ruling.reply
        assert not shows_it(str(ruling))


def test_garbage_that_has_the_login_is_not_kept() -> None:
    with ScriptedRelay(auth=(USER, PASSWORD)) as relay:
        relay.on(Phase.MAIL, garbage(f"what is {PASSWORD} {BOTH}?\r\n".encode()))
        ruling = told(relay)
        assert "cannot be understood" in ruling.reply
        assert not shows_it(str(ruling))

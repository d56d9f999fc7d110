"""Replies as servers say them: whom each is about, in whatever phase it comes."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import judge
from actors.ruling import Pace, Phase, Ruling, Scope
from models.words import Verdict

CORPUS = Path(__file__).parents[2] / "corpus" / "replies.txt"
BEHIND_MAIL = (Phase.RCPT, Phase.DATA, Phase.DOT)


class Case(NamedTuple):
    section: str
    recipient: str
    reply: Reply


def corpus() -> list[Case]:
    section, found = "", []
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        if named := re.fullmatch(r"\[(.+)\]", line):
            section = named[1]
        elif line and not line.startswith("#"):
            found.append(case(section, line))
    return found


def case(section: str, line: str) -> Case:
    recipient = "bob@example.net"
    if line.startswith("to="):
        [(recipient, line)] = re.findall(r"^to=(.*?) (\d{3}[ -].*)$", line)
    lines = line.split("\\n")
    assert len({each[:3] for each in lines}) == 1, line
    return Case(section, recipient, Reply(int(line[:3]), tuple(each[4:] for each in lines)))


def is_ours(ruling: Ruling) -> bool:
    return (ruling.verdict, ruling.scope, ruling.suppress) == (Verdict.RETRY, Scope.RELAY, False)


def is_dropped(ruling: Ruling, *, dead: bool = False) -> bool:
    scope = Scope.RECIPIENT if ruling.phase is Phase.RCPT else Scope.MESSAGE
    is_dead = dead and ruling.phase is Phase.RCPT
    return (ruling.verdict, ruling.scope, ruling.suppress) == (Verdict.UNDELIVERABLE, scope, is_dead)


def waits(ruling: Ruling, pace: Pace) -> bool:
    return (ruling.verdict, ruling.pace, ruling.suppress) == (Verdict.RETRY, pace, False) and (
        ruling.scope is not Scope.RELAY
    )


EXPECTED: dict[str, tuple[tuple[Phase, ...], Callable[[Ruling], bool]]] = {
    "us": ((Phase.MAIL, *BEHIND_MAIL), is_ours),
    "us-5xx": ((Phase.MAIL, *BEHIND_MAIL), is_ours),
    "dead": (BEHIND_MAIL, lambda ruling: is_dropped(ruling, dead=True)),
    "recipient": (BEHIND_MAIL, is_dropped),
    "message": ((Phase.DATA, Phase.DOT), is_dropped),
    "size": (BEHIND_MAIL, is_dropped),
    "full": (BEHIND_MAIL, lambda ruling: waits(ruling, Pace.MAILBOX_FULL)),
    "later": (BEHIND_MAIL, lambda ruling: waits(ruling, Pace.NORMAL)),
    "greylisted": (BEHIND_MAIL, lambda ruling: waits(ruling, Pace.GREYLISTED)),
}


def of(section: str) -> pytest.MarkDecorator:
    """The test is for each reply of a section."""
    return pytest.mark.parametrize(
        "found", [each for each in corpus() if each.section == section], ids=lambda found: found.reply.text
    )


@pytest.mark.parametrize("found", corpus(), ids=lambda found: f"{found.section}: {found.reply.code} {found.reply.text}")
def test_a_reply_means_the_same_in_every_phase_in_which_it_may_come(found: Case) -> None:
    phases, fits = EXPECTED[found.section]
    for phase in phases:
        ruling = judge(phase, found.reply, (found.recipient,))
        assert fits(ruling), (phase, ruling)


@pytest.mark.parametrize(
    "found", [each for each in corpus() if each.section == "us-5xx"], ids=lambda found: found.reply.text
)
def test_how_fast_we_send_only_puts_an_email_off_where_the_relay_calls_it_temporary(found: Case) -> None:
    reply = Reply(450, tuple(re.sub(r"^5\.", "4.", line) for line in found.reply.lines))
    for phase in BEHIND_MAIL:
        assert waits(judge(phase, reply), Pace.NORMAL), phase


@pytest.mark.parametrize(
    "found", [each for each in corpus() if each.section == "size"], ids=lambda found: found.reply.text
)
def test_too_large_is_the_emails_end_at_mail_too(found: Case) -> None:
    ruling = judge(Phase.MAIL, found.reply)
    assert (ruling.verdict, ruling.scope) == (Verdict.UNDELIVERABLE, Scope.MESSAGE)


@pytest.mark.parametrize("code", [550, 551, 552, 553, 554, 556, 571])
@pytest.mark.parametrize(
    "words",
    [
        "Relay access denied",
        "Sender address rejected: Access denied",
        "Helo command rejected: need fully-qualified hostname",
        "Client host [192.0.2.1] blocked using list.example.org",
        "Daily sending limit exceeded",
        "authentication required",
    ],
)
def test_what_is_about_us_is_so_with_any_5xx_code(code: int, words: str) -> None:
    for phase in (Phase.MAIL, *BEHIND_MAIL):
        for text in (words, f"5.7.1 {words}", f"5.0.0 <bob@example.net>: {words}", words.upper()):
            assert is_ours(judge(phase, Reply(code, (text,)))), (phase, text)


@pytest.mark.parametrize("enhanced", ["5.1.7", "5.1.8", "5.7.60", "5.2.252", "5.4.5", "5.1.90"])
def test_some_enhanced_codes_are_about_us_without_a_word(enhanced: str) -> None:
    for phase in (Phase.MAIL, *BEHIND_MAIL):
        assert is_ours(judge(phase, Reply(550, (f"{enhanced} x",))))

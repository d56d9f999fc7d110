"""The dialogue's second part: one transaction, from MAIL to the reply to the dot, ruled for each recipient.

PIPELINING (RFC 2920) is no more than the size of the window: how many commands go out before replies are read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, NamedTuple

from actors.channels.smtp.dialogue import NO_OTHER_LIMIT, Script, Send, StartContent, Stopped, ask, receive
from actors.channels.smtp.envelope import END_OF_DATA, Envelope, normalise, stuff_dots
from actors.channels.smtp.greeting import Offer
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.verdicts import is_out_of_place, judge, judge_failure, judge_not_ascii, judge_too_big
from actors.ruling import Phase, Ruling

#: Commands in a window with PIPELINING; with more, both sides may come to wait for the other one to read.
WINDOW: Final = 100

#: What relays say to MAIL and to RCPT, and never to the end of data (RFC 3463 section 3.2).
_OF_ANOTHER_COMMAND: Final = frozenset({"2.1.0", "2.1.5"})

#: Seconds for the reply to a MAIL behind a dot. The relay was prompt until then: it has lost what was there, and is to
#: be asked again over a fresh connection.
ANSWER_BEHIND: Final = 10.0


class Fitness(Enum):
    """What a connection is good for after a transaction."""

    READY = auto()
    NEEDS_RESET = auto()
    USELESS = auto()


@dataclass(frozen=True, slots=True)
class Submitted:
    """What a transaction came to.

    Attributes:
        rulings: one for each recipient.
        fitness: what the connection is good for now.
        untouched: the relay had gone before it answered anything: a fresh connection may repeat it all.
        is_lost_behind: what came behind another email's dot was lost or refused, or answered by what was meant for
            that; nothing of the content went out, and a fresh connection may repeat it all.
    """

    rulings: dict[str, Ruling]
    fitness: Fitness
    untouched: bool = False
    is_lost_behind: bool = False


def reset() -> Script[bool]:
    """Gives up what is left of a transaction; says whether the relay agreed."""
    try:
        reply = yield from ask(b"RSET", Phase.MAIL)
    except Stopped:
        return False
    return reply.positive


class _Command(NamedTuple):
    phase: Phase
    line: str
    recipient: str = ""


class Transaction:
    """One email's; its envelope may go out behind the dot of the email before it, in the same write.

    RFC 2920 section 3.1 has the content of one message begin a group that goes on with the next one's MAIL: one round
    trip an email instead of two.

    Args:
        envelope: what and to whom.
        offer: what the relay can do.

    Attributes:
        behind: what goes out with this one's dot, in its write; to be set before the content is started.
    """

    def __init__(self, envelope: Envelope, offer: Offer) -> None:
        self.envelope = envelope
        self.behind = b""
        self._offer = offer
        self._is_international = envelope.international is not None and offer.smtputf8
        content = envelope.international if self._is_international else None
        content = envelope.content if content is None else content
        self._content = content if envelope.has_line_ends else normalise(content)
        #: Those whom this relay can be told of; the others are ruled for at once. Without international content there
        #: are none.
        self._recipients = list(dict.fromkeys(envelope.recipients))
        self._rulings: dict[str, Ruling] = {}
        if envelope.international is not None and not offer.smtputf8:
            self._rulings = {each: judge_not_ascii() for each in self._recipients if not each.isascii()}
            self._recipients = [each for each in self._recipients if each not in self._rulings]
        self._accepted: list[str] = []
        self._answered = False
        self._refused = False
        self._go_ahead = False
        self._is_opened = False
        self._is_at_content = False

    @property
    def can_open_behind(self) -> bool:
        """Whether the envelope can go out behind the dot of the email before."""
        return bool(self._offer.pipelining and self._recipients and not self._is_too_big and len(self._windows()) == 1)

    def open_behind(self) -> bytes:
        """The envelope, which has to go out behind the dot of the email before: it is not sent again."""
        self._is_opened = True
        return _written(self._windows()[0])

    def run(self) -> Script[Submitted]:
        """What is said, but for an envelope that went out before."""
        try:
            fitness = yield from self._run()
        except Stopped as stopped:
            self._rule(stopped.ruling)
            gone = stopped.hung_up or (stopped.ruling.code, stopped.ruling.phase) == (421, Phase.MAIL)
            untouched = gone and not self._answered
            is_lost_behind = self._is_opened and not self._is_at_content and not untouched
            return Submitted(self._rulings, Fitness.USELESS, untouched, is_lost_behind)
        return Submitted(self._rulings, fitness)

    @property
    def _is_too_big(self) -> bool:
        limit = self._offer.size_limit
        return bool(limit) and len(self._content) > limit

    def _run(self) -> Script[Fitness]:
        if not self._recipients:
            return Fitness.READY
        if self._is_too_big:
            self._rule(judge_too_big(len(self._content), self._offer.size_limit))
            return Fitness.READY
        yield from self._send_envelope()
        if not self._go_ahead:
            return Fitness.NEEDS_RESET
        if self._refused:
            return Fitness.USELESS
        self._is_at_content = True
        if not self._accepted:
            return (yield from self._send_nothing())
        return (yield from self._send_content())

    def _send_envelope(self) -> Script[None]:
        for window in self._windows():
            if self._is_pointless(window[0]):
                return
            if not self._is_opened:
                yield Send(_written(window), window[0].phase)
            for command in window:
                most = ANSWER_BEHIND if self._is_behind_a_dot(command) else NO_OTHER_LIMIT
                reply = yield from receive(command.phase, most)
                self._take(command, reply)
                self._answered = True

    def _windows(self) -> list[list[_Command]]:
        commands = [
            _Command(Phase.MAIL, f"MAIL FROM:<{self.envelope.sender}>{self._parameters()}"),
            *(_Command(Phase.RCPT, f"RCPT TO:<{to}>", to) for to in self._recipients),
            _Command(Phase.DATA, "DATA"),
        ]
        step = WINDOW if self._offer.pipelining else 1
        return [commands[start : start + step] for start in range(0, len(commands), step)]

    def _parameters(self) -> str:
        size = f" SIZE={len(self._content)}" if self._offer.size else ""
        eight_bit = self._offer.eightbitmime and not self._content.isascii()
        return size + (" BODY=8BITMIME" if eight_bit else "") + (" SMTPUTF8" if self._is_international else "")

    def _is_pointless(self, command: _Command) -> bool:
        return self._refused or (command.phase is Phase.DATA and not self._accepted)

    def _is_behind_a_dot(self, command: _Command) -> bool:
        return self._is_opened and command.phase is Phase.MAIL

    def _take(self, command: _Command, reply: Reply) -> None:
        """Takes the reply to a command of the envelope.

        Raises:
            Stopped: relay and client are out of step, or the relay hangs up.
        """
        in_step = self._is_pointless(command) or not is_out_of_place(command.phase, reply)
        # Behind a dot a refusal may be one of its content, said twice, or of being there at all: so it is asked again.
        is_doubtful = self._is_behind_a_dot(command) and not reply.positive
        if reply.code == 421 or not in_step or is_doubtful:
            raise Stopped(judge(command.phase, reply))
        if command.phase is Phase.DATA:
            self._take_data(reply)
        elif reply.positive:
            self._accepted += [command.recipient] if command.phase is Phase.RCPT else []
        elif command.phase is Phase.RCPT:
            self._rulings.setdefault(command.recipient, judge(Phase.RCPT, reply, (command.recipient,)))
        else:
            self._refused = True
            self._rule(judge(Phase.MAIL, reply))

    def _take_data(self, reply: Reply) -> None:
        self._go_ahead = reply.intermediate
        if not self._go_ahead:
            self._rule(judge(Phase.DATA, reply, self.envelope.recipients))

    def _send_nothing(self) -> Script[Fitness]:
        """Ends a message without recipients (RFC 2920 section 3.1); whatever the reply, nothing is sent."""
        yield Send(END_OF_DATA, Phase.DOT)
        yield from receive(Phase.DOT)
        return Fitness.NEEDS_RESET

    def _send_content(self) -> Script[Fitness]:
        content = stuff_dots(self._content)
        # Right before the content: nothing that takes time comes after it.
        yield StartContent()
        end = END_OF_DATA + self.behind
        yield Send(content, Phase.BODY)
        # Apart from the content, so that a failure is before the dot or after it and never in between.
        yield Send(end, Phase.DOT)
        reply = yield from receive(Phase.DOT)
        if end != END_OF_DATA and _belongs_behind(reply):
            raise Stopped(judge_failure(Phase.DOT, f"the reply belongs to what lay behind: {reply.code} {reply.text}"))
        self._rule(judge(Phase.DOT, reply, self.envelope.recipients))
        if reply.positive:
            return Fitness.READY
        return Fitness.USELESS if reply.intermediate or reply.code == 421 else Fitness.NEEDS_RESET

    def _rule(self, ruling: Ruling) -> None:
        """Rules for every recipient that has no ruling yet."""
        for recipient in self.envelope.recipients:
            self._rulings.setdefault(recipient, ruling)


def _belongs_behind(reply: Reply) -> bool:
    """Whether a reply plainly is to a command that lay behind the dot, so that the dot's own is missing."""
    return reply.code == 503 or reply.enhanced_code in _OF_ANOTHER_COMMAND


def _written(commands: Sequence[_Command]) -> bytes:
    return "".join(f"{command.line}\r\n" for command in commands).encode()

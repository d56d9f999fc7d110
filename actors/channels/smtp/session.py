"""Hands emails to a relay over one connection, one email after the other."""

import time
from dataclasses import replace
from functools import partial
from typing import Final

from actors.channels.channel import Dialogue, Permit, Rulings
from actors.channels.smtp.connecting import Connected, part, spoken
from actors.channels.smtp.dialogue import Action, StartContent, Stopped, played
from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.relay import Pipelining, Timeouts
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.route import Route
from actors.channels.smtp.transaction import Fitness, Submitted, Transaction, reset
from actors.channels.smtp.verdicts import judge_failure
from actors.channels.smtp.wire import Wire
from actors.channels.starting import wait_for_permit
from actors.ruling import Limit, Phase, Ruling
from models.words import Verdict

#: Emails after which a connection is renewed: some relays count, and answer the next one with a 421.
MAX_EMAILS: Final = 100

#: Seconds without an email after which a connection is renewed: relays and firewalls begin to forget it.
MAX_IDLE: Final = 30.0

#: Seconds without an email after which a relay that has gone says nothing about the email.
STALE: Final = 1.0

#: Seconds within which a relay has to have answered the last dot for an email to be pipelined behind the next one.
PROMPT: Final = 0.5

#: After this many losses in a row, each of the first email that a connection pipelined, stop pipelining to this relay.
MAX_LOSSES: Final = 2


class Manners:
    """What this process has seen of one relay, over whatever connection. Changed by the thread that drives dialogues.

    Attributes:
        is_prompt: it answered the last dot within `PROMPT`.
        losses: how many connections in a row have lost the first email that they pipelined.
    """

    def __init__(self) -> None:
        self.is_prompt = False
        self.losses = 0


class SmtpSession:
    """A connection to a relay, greeted and logged in. One thread at a time has it.

    Args:
        connected: it.
        pipelining: whether the next email's envelope may go out with a dot.
        timeouts: how long each step may take.
        permit: asked when the relay waits for content.
        route: what it shares with others to the same relay; it holds a place there.
        manners: what is known of the relay.
    """

    def __init__(
        self,
        connected: Connected,
        *,
        pipelining: Pipelining,
        timeouts: Timeouts,
        permit: Permit,
        route: Route,
        manners: Manners,
    ) -> None:
        self._wire: Wire | None = connected.wire
        self._offer = connected.offer
        if pipelining is Pipelining.OFF:
            self._offer = replace(connected.offer, pipelining=False)
        self._pipelines = self._offer.pipelining and pipelining is Pipelining.AHEAD
        self._timeouts = timeouts
        self._permit = permit
        self._route = route
        self._manners = manners
        self._refusal: Ruling | None = None
        self._needs_reset = False
        self._emails = 0
        self._used_at = time.monotonic()
        #: The transaction that is spoken about, and when its content was started; None before that.
        self._current: Transaction | None = None
        self._content_at: float | None = None
        self._is_prompt = manners.is_prompt
        #: What is to go out with the next dot, and what has gone out with the last one.
        self._offered: Transaction | None = None
        self._begun: Transaction | None = None
        #: An email that had begun went another way: this ends with the dot before it.
        self._is_spent = False
        self._has_pipelined = False

    def deliver(self, envelope: Envelope) -> Dialogue[Rulings | None]:
        """Submits one email.

        Returns:
            A ruling for each recipient; None where nothing was said about the email, as a connection that was kept
            turned out dead or used up, and no content can have gone over it.
        """
        wire = self._wire
        if wire is None:
            raise ValueError("the session has ended")
        is_kept = self._emails > 0 or time.monotonic() - self._used_at > STALE
        try:
            submitted = yield from self._submit(wire, envelope)
        except BaseException:
            # A worker that is stopped here leaves the relay in mid-transaction.
            self.abandon()
            raise
        if submitted is None or (is_kept and _says_nothing(submitted)):
            self.abandon()
            return None
        # A relay may say as late as at MAIL that there are too many connections.
        self._refusal = next((each for each in submitted.rulings.values() if Limit.SESSIONS in each.limits), None)
        if self._refusal is not None:
            self.abandon()
            return submitted.rulings
        for ruling in submitted.rulings.values():
            self._route.heard(ruling)
        return submitted.rulings

    def pipeline(self, envelope: Envelope) -> bool:
        """Has the next email's envelope go out with the dot of the one before, if the relay takes that well."""
        is_too_late = self._content_at is not None or self._offered is not None
        is_last = self._emails + 1 >= MAX_EMAILS
        if is_too_late or is_last or not (self._pipelines and self._is_prompt and self._route.goes_ahead):
            return False
        transaction = Transaction(envelope, self._offer)
        if transaction.can_open_behind:
            self._offered = transaction
        return self._offered is not None

    def withdraw(self) -> None:
        """The email that was pipelined goes another way; if its envelope is out, this ends with the dot before it."""
        self._is_spent = self._begun is not None
        self._offered = self._begun = None

    @property
    def is_open(self) -> bool:
        """Whether it stands, as far as is known without looking."""
        return self._wire is not None

    @property
    def is_ready(self) -> bool:
        """Whether it takes one more email: it stands, is quiet, young, and nothing is out that was pipelined."""
        is_young = self._emails < MAX_EMAILS and time.monotonic() - self._used_at <= MAX_IDLE
        return self._wire is not None and self._begun is None and is_young and self._wire.is_quiet()

    @property
    def idle_since(self) -> float:
        """When an email last went over it, or it was opened, by the monotonic clock."""
        return self._used_at

    @property
    def refusal(self) -> Ruling | None:
        """What the relay said of too many connections, where it said that about an email."""
        return self._refusal

    def fileno(self) -> int:
        """What a selector waits for; -1 once it has ended."""
        return -1 if self._wire is None else self._wire.fileno()

    def close(self) -> None:
        """Quits politely but briefly; failures are ignored."""
        try:
            if self._wire is not None:
                part(self._wire)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Closes it at once, in mid-dialogue."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
            self._route.leave_place(was_open=True)

    def _submit(self, wire: Wire, envelope: Envelope) -> Dialogue[Submitted | None]:
        """One transaction; None where the relay does not forget the one before."""
        if self._needs_reset and not (yield from self._reset(wire)):
            return None
        begun, self._begun = self._begun, None
        self._current = begun or Transaction(envelope, self._offer)
        submitted = yield from played(self._current.run(), partial(self._do, wire))
        self._note_doubt(submitted)
        self._emails += 1
        self._used_at = time.monotonic()
        if self._content_at is not None:
            self._is_prompt = self._manners.is_prompt = self._used_at - self._content_at < PROMPT
        self._needs_reset = submitted.fitness is Fitness.NEEDS_RESET and self._begun is None
        if begun is not None:
            self._note_loss(submitted)
        self._current = self._content_at = self._offered = None
        if submitted.fitness is Fitness.USELESS or self._is_spent:
            self.abandon()
        return submitted

    def _do(self, wire: Wire, action: Action) -> Dialogue[Reply | None]:
        return self._start_content(wire) if isinstance(action, StartContent) else spoken(wire, action)

    def _start_content(self, wire: Wire) -> Dialogue[None]:
        """Waits until this worker may start content. What goes out with the dot is fixed before.

        Raises:
            Stopped: it may not, or the relay does not wait.
        """
        self._content_at = time.monotonic()
        if self._current is not None and self._offered is not None and self._route.goes_ahead:
            self._current.behind = self._offered.open_behind()
            self._begun = self._offered
        self._offered = None
        why_not = yield from wait_for_permit(self._permit, wire.is_quiet, "the relay")
        if why_not is not None:
            raise Stopped(judge_failure(Phase.BODY, why_not))

    def _reset(self, wire: Wire) -> Dialogue[bool]:
        """Has the relay forget what is left of the last transaction; says whether it has."""
        wire.timeouts = self._timeouts.brief
        self._needs_reset = not (yield from played(reset(), partial(spoken, wire)))
        wire.timeouts = self._timeouts
        return not self._needs_reset

    def _note_loss(self, submitted: Submitted) -> None:
        """Whether what was pipelined arrived; a relay that is still there, and lost it, will again."""
        codes = {ruling.code for ruling in submitted.rulings.values()}
        if submitted.is_lost_behind and all(code is None or code // 100 != 4 for code in codes):
            said = ", ".join(str(code) for code in codes if code is not None)
            self._route.stop_going_ahead(f"said to what lay behind a dot: {said or 'nothing'}")
        if not submitted.untouched:
            self._has_pipelined, self._manners.losses = True, 0
        elif not self._has_pipelined:
            # Where others went well, it is the connection that came to its end.
            self._manners.losses += 1
        if self._manners.losses >= MAX_LOSSES:
            self._route.stop_going_ahead("hung up on what lay behind a dot")

    def _note_doubt(self, submitted: Submitted) -> None:
        """A dot that has no reply of its own, with something behind it: some relays take the email, and then fail."""
        lay_behind = self._begun is not None or self._is_spent
        if lay_behind and any(
            ruling.phase is Phase.DOT and ruling.verdict is Verdict.UNKNOWN for ruling in submitted.rulings.values()
        ):
            self._route.stop_going_ahead("no reply to a dot that something lay behind")


def _says_nothing(submitted: Submitted) -> bool:
    """Whether nothing was said about the email: a fresh connection may repeat it all."""
    is_used_up = any(Limit.SESSION_USED_UP in ruling.limits for ruling in submitted.rulings.values())
    return submitted.untouched or submitted.is_lost_behind or is_used_up

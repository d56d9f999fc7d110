"""Hands emails to a relay over a connection that is kept, one email after the other."""

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

from actors.channels.smtp.dialogue import Action, Aside, Receive, Script, Send, StartTls, Stopped
from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.greeting import Offer, farewell, greet, hello_name
from actors.channels.smtp.limits import is_connection_limit, is_message_limit
from actors.channels.smtp.login import Attempts, Logins
from actors.channels.smtp.rehearsal import Inspection, rehearse, verdict_on
from actors.channels.smtp.relay import Pipelining, Relay, Timeouts
from actors.channels.smtp.replies import Reply
from actors.channels.smtp.route import NoPlace, NoRoute, Route
from actors.channels.smtp.tls import checking, unchecked
from actors.channels.smtp.transaction import Fitness, Submitted, Transaction, reset
from actors.channels.smtp.wire import Wire
from actors.ruling import Phase, Ruling
from models.words import Verdict

__all__ = ["Connection", "Envelope"]

#: Emails after which a connection is renewed: some relays count, and answer the next one with a 421.
MAX_EMAILS: Final = 100

#: Seconds without an email after which a connection is renewed: relays and firewalls begin to forget it.
MAX_IDLE: Final = 30.0

#: Seconds without an email after which a relay that has gone says nothing about the email.
STALE: Final = 1.0

#: Seconds within which a relay has to have taken the last content for an email to go out behind the next one.
PROMPT: Final = 0.5

#: How often in a row a relay may hang up on what is behind a dot, before it gets nothing there any more.
MAX_LOSSES: Final = 2

#: Seconds for a reply to QUIT or RSET: nothing hangs on it.
BRIEFLY: Final = 2.0

T = TypeVar("T")


def _always() -> bool:
    return True


def nobody() -> Envelope | None:
    """No email goes out behind this one."""
    return None


class Connection:
    """A connection to a relay: opened when it is needed, kept between emails, renewed when in doubt.

    One thread at a time has it.

    Args:
        relay: where emails go.
        timeouts: how long each step may take.
        may_send: asked right before content is sent, and answers at once.
        may_send_soon: asked, aside, where that says no; may wait. False holds the content back, and the email is to be
            retried.
        tls: verifies certificates; by default against those that the system trusts.
        route: what it shares with others to the same relay; by default nothing.
        logins: what all that log in to it share in this process; by default nothing.
    """

    def __init__(
        self,
        relay: Relay,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 (frozen)
        *,
        may_send: Callable[[], bool] = _always,
        may_send_soon: Callable[[], bool] | None = None,
        tls: ssl.SSLContext | None = None,
        route: Route | None = None,
        logins: Logins | None = None,
    ) -> None:
        self._relay = relay
        self._timeouts = timeouts
        self._may_send = may_send
        self._may_send_soon = may_send_soon
        self._tls = tls
        self._logins = logins or Logins()
        self._route = route or NoRoute()
        self._has_place = False
        self._is_greeted = False
        self._wire: Wire | None = None
        self._refusal: Ruling | None = None
        self._offer = Offer()
        self._needs_reset = False
        self._emails = 0
        self._used_at = 0.0
        #: What has gone out behind the last dot.
        self._opened: Transaction | None = None
        self._is_forgone = False
        #: How often in a row what had gone out behind a dot was lost.
        self._losses = 0
        self._is_prompt = False
        self._content_at: float | None = None

    def deliver(self, envelope: Envelope, following: Callable[[], Envelope | None] = nobody) -> dict[str, Ruling]:
        """Submits one email, and waits; see `delivering`."""
        return self._drive(self.delivering(envelope, following))

    def delivering(
        self, envelope: Envelope, following: Callable[[], Envelope | None] = nobody
    ) -> Script[dict[str, Ruling]]:
        """Submits one email; what the relay or the network do wrong is in the rulings, never an exception.

        A kept connection that turns out dead before the relay answered anything is replaced once, in
        silence: no content can have gone over it.

        Args:
            envelope: what and to whom.
            following: asked at most once, when the content is about to go out: the email whose envelope is to go
                out with its dot. It has to be the next one that is delivered here, unless it is forgone.

        Returns:
            A ruling for each recipient.

        Raises:
            NoPlace: there may be no further connection now, and nothing was said of this email.
        """
        try:
            is_opened = self._opened is not None and self._opened.envelope is envelope
            if not is_opened and self._wire is not None and not self._is_fresh(self._wire):
                yield Aside(self._renew)
            kept = self._wire is not None
            submitted = yield from self._attempt(envelope, following)
            if kept and (submitted.untouched or submitted.is_lost_behind or _is_used_up(submitted)):
                self._drop()
                submitted = yield from self._attempt(envelope, following)
            yield from self._look_for_place(submitted)
        except BaseException:
            # A worker that is stopped here leaves the relay in mid-transaction.
            self._drop()
            raise
        for ruling in submitted.rulings.values():
            self._route.heard(ruling)
        return submitted.rulings

    def submitting(
        self, envelope: Envelope, following: Callable[[], Envelope | None] = nobody
    ) -> Script[dict[str, Ruling] | None]:
        """Submits one email over this very connection, which is open.

        Args:
            envelope: what and to whom.
            following: as with `delivering`.

        Returns:
            A ruling for each recipient; None where nothing was said about the email, as a connection that was kept
            turned out dead, or the relay takes fewer connections: it may go over another one.
        """
        kept = self._emails > 0 or time.monotonic() - self._used_at > STALE
        try:
            submitted = yield from self._attempt(envelope, following)
            if kept and (submitted.untouched or submitted.is_lost_behind or _is_used_up(submitted)):
                self._drop()
                return None
            yield from self._look_for_place(submitted)
        except NoPlace:
            self._drop()
            return None
        except BaseException:
            # A worker that is stopped here leaves the relay in mid-transaction.
            self._drop()
            raise
        for ruling in submitted.rulings.values():
            self._route.heard(ruling)
        return submitted.rulings

    def open(self) -> Ruling | None:
        """Makes it good for one more email: blocks while it is closed, reset, connected, greeted or logged in.

        Returns:
            None if it is, else what is wrong, always in relay scope.

        Raises:
            NoPlace: there may be no further connection now.
        """
        if self._wire is not None and not self._is_fresh(self._wire):
            self._renew()
        if self._wire is None:
            self._open()
        return self._refusal

    @property
    def is_ready(self) -> bool:
        """Whether it is open, and good for one more email as it is. Never waits."""
        return self._wire is not None and self._is_fresh(self._wire)

    def check(self) -> Ruling | None:
        """Connects, greets, logs in and quits.

        Returns:
            None if all is well, else what is wrong.
        """
        return self.inspect().refusal

    def inspect(self, sender: str | None = None, recipients: Sequence[str] = ()) -> Inspection:
        """Connects, greets, logs in, names a sender and recipients if there is one, forgets them, and quits.

        For a connection of its own, which ends with it: nothing is sent.

        Args:
            sender: the return path.
            recipients: to be named with it.
        """
        try:
            greeted = self._connect()
            if isinstance(greeted, Ruling) or self._wire is None:
                return Inspection(greeted if isinstance(greeted, Ruling) else None)
            encryption = self._wire.encryption
            answers = self._converse(self._wire, rehearse(sender, recipients)) if sender is not None else ()
            self._part(self._wire)
        except Stopped as stopped:
            return Inspection(stopped.ruling)
        finally:
            self._drop()
        return Inspection(verdict_on(answers), encryption, self._relay.is_checked, answers)

    @property
    def idle_since(self) -> float:
        """When an email last went over it, by the monotonic clock."""
        return self._used_at

    def forgo(self) -> None:
        """The email whose envelope went out behind the last dot goes another way: this connection ends with the dot."""
        self._is_forgone = self._opened is not None
        self._opened = None

    def abandon(self) -> None:
        """Closes it at once, in mid-dialogue."""
        self._drop()

    def close(self) -> None:
        """Quits politely but briefly; failures are ignored. The next email opens a new connection."""
        if self._wire is not None:
            try:
                self._part(self._wire)
            finally:
                self._drop()

    @property
    def wire(self) -> Wire | None:
        """What it speaks over; None while it is not open."""
        return self._wire

    def _attempt(self, envelope: Envelope, following: Callable[[], Envelope | None]) -> Script[Submitted]:
        if self._wire is None:
            yield Aside(self._open)
        if self._refusal is not None:
            return Submitted(dict.fromkeys(envelope.recipients, self._refusal), Fitness.USELESS)
        opened, self._opened = self._opened, None
        transaction = opened or Transaction(envelope, self._offer, self._may_send, self._may_send_soon)
        self._content_at = None
        submitted = yield from transaction.run(partial(self._open_next, following))
        self._note_doubt(submitted)
        self._emails += 1
        self._used_at = time.monotonic()
        if self._content_at is not None:
            self._is_prompt = self._used_at - self._content_at < PROMPT
        self._needs_reset = submitted.fitness is Fitness.NEEDS_RESET and self._opened is None
        if opened is not None:
            self._note_loss(submitted)
        if submitted.fitness is Fitness.USELESS or self._is_forgone:
            self._drop()
        return submitted

    def _note_loss(self, submitted: Submitted) -> None:
        """Whether what had gone out behind a dot arrived; a relay that is still there, and lost it, will again."""
        codes = {ruling.code for ruling in submitted.rulings.values()}
        if submitted.is_lost_behind and all(code is None or code // 100 != 4 for code in codes):
            said = ", ".join(str(code) for code in codes if code is not None)
            self._route.stop_going_ahead(f"said to what lay behind a dot: {said or 'nothing'}")
        self._losses = self._losses + 1 if submitted.untouched else 0
        if self._losses >= MAX_LOSSES:
            self._route.stop_going_ahead("hung up on what lay behind a dot")

    def _note_doubt(self, submitted: Submitted) -> None:
        """A dot that has no reply of its own, with something behind it: some relays take the email, and then fail."""
        lay_behind = self._opened is not None or self._is_forgone
        if lay_behind and any(
            ruling.phase is Phase.DOT and ruling.verdict is Verdict.UNKNOWN for ruling in submitted.rulings.values()
        ):
            self._route.stop_going_ahead("no reply to a dot that something lay behind")

    def _look_for_place(self, submitted: Submitted) -> Script[None]:
        """A relay may say as late as at MAIL that there are too many connections.

        Raises:
            NoPlace: it has said so.
        """
        refusal = next((ruling for ruling in submitted.rulings.values() if is_connection_limit(ruling)), None)
        if refusal is not None and refusal is not self._refusal:
            self._drop()
            yield Aside(partial(self._make_way, refusal))

    def _make_way(self, refusal: Ruling) -> None:
        if self._route.is_full(refusal):
            raise NoPlace

    def _open_next(self, following: Callable[[], Envelope | None]) -> bytes:
        """The next email's envelope, where there is one and this relay takes it behind the dot."""
        self._content_at = time.monotonic()
        goes_ahead = self._relay.pipelining is Pipelining.AHEAD and self._route.goes_ahead
        is_last = self._emails + 1 >= MAX_EMAILS
        is_good = self._offer.pipelining and self._is_prompt and goes_ahead and not is_last
        envelope = following() if is_good else None
        if envelope is None:
            return b""
        transaction = Transaction(envelope, self._offer, self._may_send, self._may_send_soon)
        opening = transaction.open_behind()
        if opening:
            self._opened = transaction
        return opening

    def _open(self) -> None:
        """Makes a connection, or has a refusal.

        Raises:
            NoPlace: there may be no further one now.
        """
        self._refusal = None
        if not self._route.take_place():
            raise NoPlace
        self._has_place = True
        self._emails, self._needs_reset = 0, False
        greeted = self._connect()
        if isinstance(greeted, Ruling):
            self._be_refused(greeted)
            return
        self._offer, self._used_at = greeted, time.monotonic()
        if self._relay.pipelining is Pipelining.OFF:
            self._offer = replace(greeted, pipelining=False)
        self._is_greeted = True
        self._route.opened()

    def _connect(self) -> Offer | Ruling:
        """A connection that is greeted and logged in, or why there is none.

        A relay that hangs up on a login that it refuses gets the next mechanism over a fresh one.
        """
        attempts = Attempts(self._logins)
        while True:
            try:
                self._wire = Wire(self._relay, self._timeouts)
            except Stopped as stopped:
                return stopped.ruling
            attempts.is_cut_off = False
            name = hello_name(self._relay, self._wire.own_address)
            greeted = self._converse(self._wire, greet(self._relay, name, attempts))
            if not attempts.is_cut_off:
                return greeted
            self._wire.close()

    def _be_refused(self, refusal: Ruling) -> None:
        self._drop()
        self._make_way(refusal)
        self._refusal = refusal

    def _is_fresh(self, wire: Wire) -> bool:
        """Whether the connection that is kept is good for one more email as it is."""
        return self._opened is None and self._is_young() and not self._needs_reset and wire.is_quiet()

    def _is_young(self) -> bool:
        return self._emails < MAX_EMAILS and time.monotonic() - self._used_at <= MAX_IDLE

    def _renew(self) -> None:
        """Gives up the connection that is kept unless it can be made good for one more email."""
        if self._wire is None:
            return
        if not self._is_young():
            self.close()
        elif self._opened is not None or not self._wire.is_quiet() or not self._is_reset(self._wire):
            self._drop()

    def _is_reset(self, wire: Wire) -> bool:
        """Whether nothing is left of the last transaction, if necessary by asking the relay to forget it."""
        if self._needs_reset:
            self._needs_reset = not self._converse(wire, reset(), brief=True)
        return not self._needs_reset

    def _part(self, wire: Wire) -> None:
        if wire.is_quiet():
            self._converse(wire, farewell(), brief=True)

    def _drop(self) -> None:
        self._opened, self._is_forgone = None, False
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._has_place:
            was_open, self._has_place, self._is_greeted = self._is_greeted, False, False
            self._route.leave_place(was_open=was_open)

    def _converse(self, wire: Wire, script: Script[T], *, brief: bool = False) -> T:
        """Does what a script asks for over a wire, and waits for all of it."""
        wire.timeouts = self._brief() if brief else self._timeouts
        try:
            return _played(script, partial(self._do, wire))
        finally:
            wire.timeouts = self._timeouts

    def _drive(self, script: Script[T]) -> T:
        return _played(script, self.do)

    def do(self, action: Action) -> Reply | None:
        """Does what `delivering` asks for, and waits.

        Raises:
            Stopped: it failed.
        """
        if isinstance(action, Aside):
            action.work()
            return None
        if self._wire is None:
            raise TypeError("there is no connection to speak over")
        return self._do(self._wire, action)

    def _do(self, wire: Wire, action: Action) -> Reply | None:
        if isinstance(action, Receive):
            return wire.receive(action.phase, action.most)
        if isinstance(action, Send):
            wire.send(action.data, action.phase)
        elif isinstance(action, StartTls):
            wire.start_tls(self._context(is_checked=action.is_checked), action.phase)
        else:
            action.work()
        return None

    def _context(self, *, is_checked: bool) -> ssl.SSLContext:
        if not is_checked:
            return unchecked()
        if self._tls is None:
            self._tls = checking(self._relay.certificates)
        return self._tls

    def _brief(self) -> Timeouts:
        return replace(self._timeouts, command=min(BRIEFLY, self._timeouts.command))


def _is_used_up(submitted: Submitted) -> bool:
    """Whether the relay takes no more emails over this connection."""
    return any(is_message_limit(ruling) for ruling in submitted.rulings.values())


def _played(script: Script[T], do: Callable[[Action], Reply | None]) -> T:
    """Does what a script asks for, until it ends."""
    try:
        action = next(script)
        while True:
            try:
                reply = do(action)
            except Exception as error:  # noqa: BLE001 - it is the script's
                action = script.throw(error)
            else:
                action = script.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result

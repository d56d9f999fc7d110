"""What an attempt means for the item as a whole. Plain values: no clock, no connection."""

from collections.abc import Sequence
from typing import NamedTuple

from actors.delivery.retry_policy import MAILBOX_FULL_FOR, retry_pause, throttled_pause
from actors.ruling import Limit, Pace, Phase, Ruling, Scope, Stage
from models.emails import Result
from models.items import Claimed, Recipient
from models.kept_content import Copy
from models.words import Outcome, Verdict


class Judged(NamedTuple):
    """A recipient, and what the attempt came to for it."""

    recipient: Recipient
    ruling: Ruling


class Decision(NamedTuple):
    """How a claimed item goes on, from the rulings on its recipients."""

    item: Claimed
    results: tuple[Result, ...]
    rulings: tuple[Ruling, ...]
    #: What was sent and is to be kept.
    copies: tuple[Copy, ...] = ()

    @classmethod
    def of(cls, item: Claimed, judged: Sequence[tuple[Recipient, Ruling]], copies: Sequence[Copy] = ()) -> "Decision":
        """From each attempted recipient and its ruling, and what was sent where that is kept."""
        return cls(
            item,
            tuple(result(item, recipient, ruling) for recipient, ruling in judged),
            tuple(ruling for _, ruling in judged),
            tuple(copies),
        )

    @property
    def is_finished(self) -> bool:
        """Every recipient has an outcome."""
        return len(self.results) == len(self.item.recipients) and all(each.outcome is not None for each in self.results)

    @property
    def is_plain(self) -> bool:
        """It moves to the ledger, and nothing else changes: nothing is kept, no circuit opens or is probed."""
        return (
            self.is_finished
            and not self.undeliverable
            and self.relay_failure is None
            and not self.item.probe
            and not self.copies
        )

    @property
    def undeliverable(self) -> list[Result]:
        """Results of recipients who cannot be reached."""
        return [each for each in self.results if each.outcome is Outcome.UNDELIVERABLE]

    @property
    def refusal(self) -> Ruling | None:
        """The last ruling by which the relay refused a recipient for good, unless it took the email for another."""
        if any(ruling.verdict is Verdict.SENT for ruling in self.rulings):
            return None
        refusals = [
            ruling for ruling in self.rulings if ruling.verdict is Verdict.UNDELIVERABLE and ruling.code is not None
        ]
        return refusals[-1] if refusals else None

    def as_relay_failure(self) -> "Decision":
        """The same where the relay's refusals are about us: nobody is dropped."""
        pairs = [
            (
                ruling._replace(verdict=Verdict.RETRY, scope=Scope.RELAY, suppress=False),
                each._replace(verdict=Verdict.RETRY, outcome=None),
            )
            if each.outcome is Outcome.UNDELIVERABLE and ruling.code is not None
            else (ruling, each)
            for ruling, each in zip(self.rulings, self.results, strict=True)
        ]
        return self._replace(rulings=tuple(ruling for ruling, _ in pairs), results=tuple(each for _, each in pairs))

    @property
    def is_unknown(self) -> bool:
        """For some recipient nobody knows whether the relay took it."""
        return any(ruling.verdict is Verdict.UNKNOWN for ruling in self.rulings)

    @property
    def relay_failure(self) -> Ruling | None:
        """The ruling that was the relay's fault or our settings', if there was one."""
        return next((ruling for ruling in self.rulings if ruling.scope is Scope.RELAY), None)

    @property
    def relay_answered(self) -> bool:
        """The relay has shown that it works."""
        return self.relay_failure is None and any(ruling.is_answer for ruling in self.rulings)

    @property
    def was_relay_asked(self) -> bool:
        """Whether the relay was spoken to; what fails while it is prepared says nothing of the relay."""
        return any(ruling.phase.stage is not Stage.PREPARE for ruling in self.rulings)

    @property
    def is_counted(self) -> bool:
        """Whether this was an attempt of the email's own: not if it failed before the email was named."""
        failure = self.relay_failure
        return failure is None or self.item.probe or failure.phase.stage is not Stage.CONNECT

    @property
    def pause(self) -> float | None:
        """Seconds until the email is due again; None where it keeps its place in line, as none of those has failed."""
        failure = self.relay_failure
        if failure is not None and failure.phase.stage is Stage.CONNECT:
            return None
        pending = [ruling for ruling, each in zip(self.rulings, self.results, strict=True) if each.outcome is None]
        attempts = self.item.attempts + 1
        waits = [ruling.wait for ruling in pending if ruling.wait is not None]
        failed = [
            throttled_pause(attempts) if Limit.RATE in ruling.limits else retry_pause(attempts, ruling.pace)
            for ruling in pending
            if ruling.wait is None
        ]
        return min([*waits, *([max(failed)] if failed else [])], default=None)

    @property
    def mailbox_is_full(self) -> bool:
        """Whether it is a full mailbox that the email waits for."""
        return any(ruling.pace is Pace.MAILBOX_FULL for ruling in self.rulings)

    @property
    def error(self) -> str:
        """Why the email is not finished, in a line. For the database only: it may hold an address."""
        pending = [ruling for ruling, each in zip(self.rulings, self.results, strict=True) if each.outcome is None]
        return "; ".join(dict.fromkeys(_described(ruling) for ruling in pending))[:1000]

    @property
    def dead_addresses(self) -> list[Result]:
        """Results whose address is not to be tried again."""
        return [
            each
            for ruling, each in zip(self.rulings, self.results, strict=True)
            if ruling.suppress and each.outcome is Outcome.UNDELIVERABLE
        ]

    @property
    def undeliverable_rulings(self) -> list[Ruling]:
        """Why recipients cannot be reached."""
        return [
            ruling
            for ruling, each in zip(self.rulings, self.results, strict=True)
            if each.outcome is Outcome.UNDELIVERABLE
        ]

    @property
    def retried_rulings(self) -> list[Ruling]:
        """Of attempts that failed at a recipient and are made again."""
        return [
            ruling
            for ruling, each in zip(self.rulings, self.results, strict=True)
            if ruling.verdict is Verdict.RETRY
            and each.outcome is None
            and ruling.scope is not Scope.RELAY
            and ruling.phase is not Phase.RENDER
            and ruling.wait is None
        ]


def result(item: Claimed, recipient: Recipient, ruling: Ruling) -> Result:
    """What a ruling means for one recipient of an item."""
    outcome = None
    if not recipient.active:
        outcome = Outcome.CLEARED
    elif recipient.suppressed:
        outcome = Outcome.SUPPRESSED
    elif ruling.verdict is Verdict.SENT:
        outcome = Outcome.SENT
    elif ruling.verdict is Verdict.UNDELIVERABLE or _full_for_too_long(item, ruling):
        outcome = Outcome.UNDELIVERABLE
    return Result(
        user_id=recipient.user_id,
        address=recipient.address,
        # Without an attempt there is none.
        verdict=ruling.verdict if recipient.active and not recipient.suppressed else None,
        outcome=outcome,
        phase=ruling.phase,
        code=ruling.code,
        enhanced_code=ruling.enhanced_code,
        reply=ruling.reply,
        place=recipient.place,
    )


def refusal_without_asking(recipient: Recipient) -> Ruling | None:
    """Why this recipient gets nothing, where that is clear without the relay."""
    reason = None
    if not recipient.known:
        reason = "there is no such user in duepost.recipient"
    elif not recipient.active:
        reason = "the user is inactive"
    elif not recipient.address:
        reason = "the user has no address"
    elif recipient.suppressed:
        reason = "the address is suppressed"
    if reason is None:
        return None
    return Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.ADDRESS, reply=reason)


def _full_for_too_long(item: Claimed, ruling: Ruling) -> bool:
    return ruling.pace is Pace.MAILBOX_FULL and item.mailbox_full_seconds > MAILBOX_FULL_FOR


def _described(ruling: Ruling) -> str:
    """The phase, then the reply with its code in front: people look for that first."""
    enhanced = "" if ruling.enhanced_code and ruling.enhanced_code in ruling.reply else ruling.enhanced_code
    said = " ".join(str(part) for part in (ruling.code, enhanced, ruling.reply) if part)
    return f"{ruling.phase}: {said}" if said else str(ruling.phase)

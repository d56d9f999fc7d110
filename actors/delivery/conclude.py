"""Concludes attempts: row, journal, ledger and acknowledgement in one transaction."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from actors.delivery.decision import Decision
from actors.delivery.in_flight import LostClaim
from actors.delivery.rates import SEVERAL_DOMAINS, is_too_much_for_domain
from actors.delivery.retry_policy import FIRST_PROBE, LONGEST_PROBE
from actors.delivery.route import SharedRoute, described
from actors.delivery.safety_net import DEAD_IN_A_ROW, is_everybody_refused
from actors.queue.broker import PostgresBroker
from actors.queue.consumer import ClaimedMessage
from actors.queue.waiting import wait_for_database
from actors.ruling import Ruling
from actors.tick import tick, tick_later
from models import circuits, emails, kept_content, rates, undeliverable
from models.database.connections import Cursor, Database
from models.emails import Lost
from models.items import Claimed, endpoint_of, is_endpoint
from models.words import State

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What was committed for an attempt, as facts.

    Attributes:
        decision: what was written.
        state: where the email stands now; None where it is finished.
        opened_circuit: the failure that the circuit was opened for, if it was.
        slowed_down: the refusal that the route pauses for, if it does, and for how many seconds.
        slowed_domains: for each domain that gets less from now on, why, and how many emails a second.
        is_repeated: it had been committed before, by a commit whose answer was lost: nothing was written.
        route: what the route is called, where there are several.
        endpoint: the endpoint, if it went to one.
        disabled: the endpoint that nothing is sent to any more.
    """

    decision: Decision
    state: State | None = None
    opened_circuit: Ruling | None = None
    slowed_down: tuple[Ruling, float] | None = None
    slowed_domains: tuple[tuple[Ruling, float], ...] = ()
    is_repeated: bool = False
    route: str | None = None
    endpoint: str | None = None
    disabled: str | None = None


class _LocksFirst(Exception):
    """What a conclusion has to lock comes before what it holds: another transaction locks all of it, in order."""

    def __init__(self, email_ids: Collection[int]) -> None:
        super().__init__(email_ids)
        self.email_ids = frozenset(email_ids)


class Conclusions:
    """Writes down what attempts came to. Any thread may call it; each call is a transaction of its own.

    Args:
        database: where the emails are.
        broker: whose messages are acknowledged with them.
        route: by which the emails were sent.
        keep_undeliverable_days: for how many days the content of undeliverable emails is kept.
        seen: how many emails a second go to a domain, about.
    """

    def __init__(
        self,
        database: Database,
        broker: PostgresBroker,
        route: SharedRoute,
        *,
        keep_undeliverable_days: int,
        seen: Callable[[str], float] = lambda _: 0.0,
    ) -> None:
        self._seen = seen
        self._database = database
        self._broker = broker
        self._route = route
        self._keep_undeliverable_days = keep_undeliverable_days

    def conclude(self, outcome: Decision) -> Conclusion:
        """Moves the row on, writes the journal and acknowledges the message, in one transaction.

        A circuit is closed afterwards, if this was its probe and went well.

        Returns:
            what was committed.

        Raises:
            LostClaim: the row is no longer this worker's, and nothing was changed.
        """

        def write() -> Conclusion:
            is_plain = outcome.is_plain and not self.writes_more
            if is_plain and self.conclude_together([(outcome, self._broker.message_in_process)]):
                return Conclusion(outcome)
            return self._write_in_order(outcome)

        conclusion = wait_for_database(write, self._broker.stopping)
        if conclusion.slowed_domains:
            # This process heeds it at once.
            self._route.wake()
        self.close_circuit_after(conclusion)
        return conclusion

    def close_circuit_after(self, conclusion: Conclusion) -> None:
        """Closes the circuit, once it is committed that its probe went well."""
        if (
            conclusion.decision.item.probe
            and conclusion.decision.relay_answered
            and circuits.close_circuit(self._database, self._route.name)
        ):
            logger.info("%s takes mail again; the circuit is closed.", self._route.called)
            tick(self._broker)

    def conclude_together(self, plain: Sequence[tuple[Decision, ClaimedMessage | None]]) -> set[int]:
        """Concludes emails of which nothing else is to be said, and acknowledges their messages.

        Returns:
            the ids of those that it did; what somebody else holds, or has, is left out.
        """
        done = emails.conclude_finished_each(
            self._database,
            [
                emails.Finished(outcome.item, outcome.results, message.claim if message and message.is_stored else None)
                for outcome, message in plain
            ],
        )
        for outcome, message in plain:
            if message is not None and outcome.item.id in done:
                message.mark_done()
        return done

    def conclude_lost(self, outcome: Decision, lost: Lost) -> State:
        """Writes down some recipients' results of a claim that nobody will conclude; nothing is known of the others.

        Returns:
            where the email stands now: scheduled for those others, or unknown.

        Raises:
            LostClaim: somebody else has ended it.
        """
        item = outcome.item
        with self._database.transaction() as cursor:
            if not emails.lock_claimed(cursor, item):
                raise LostClaim
            undeliverable.keep(cursor, item, outcome.results, days=self._keep_undeliverable_days)
            emails.record_outcomes(cursor, item, outcome.results)
            emails.journal(cursor, item, outcome.results)
            state = emails.conclude_lost(cursor, lost)
        if state is None:
            raise LostClaim
        return state

    def _write_in_order(self, outcome: Decision) -> Conclusion:
        """Writes a conclusion in a transaction of its own, in which rows are locked by ascending id."""
        locked: frozenset[int] = frozenset()
        while True:
            try:
                with self._database.transaction() as cursor:
                    if locked:
                        undeliverable.lock(cursor, locked)
                    return self.write(cursor, outcome, locked)
            except _LocksFirst as needed:
                locked |= needed.email_ids

    @property
    def writes_more(self) -> bool:
        """Whether what came of an item says something of its route beside whether it works."""
        return False

    def write_more(self, cursor: Cursor, outcome: Decision) -> str | None:  # noqa: ARG002 - for those who do
        """Writes that, in the transaction that concludes the item; the caller holds the row's lock.

        Returns:
            the endpoint that is disabled now, if one is.
        """
        return None

    def write(self, cursor: Cursor, outcome: Decision, locked: frozenset[int] = frozenset()) -> Conclusion:
        """Writes a conclusion in the caller's transaction, which locks the row until it ends; returns it as written.

        Raises:
            LostClaim: the row is no longer this worker's.
            _LocksFirst: others are to be locked before.
        """
        item = outcome.item
        if not emails.lock_claimed(cursor, item):
            return self._check_concluded(cursor, outcome)
        refusal = self._keep_undeliverable(cursor, outcome, locked)
        if refusal is not None:
            outcome = outcome.as_relay_failure()
        state: State | None = None
        kept_content.keep(cursor, item, outcome.copies)
        if outcome.is_finished:
            concluded = emails.conclude_finished(cursor, item, outcome.results)
        else:
            state = self._move_on(cursor, item, outcome)
            concluded = state is not None
        if not concluded:
            return self._check_concluded(cursor, outcome)
        if refusal is not None:
            undeliverable.reopen(cursor, item.id)
        for result in outcome.dead_addresses:
            emails.suppress(cursor, result)
        opened_circuit = self._open_circuit(cursor, item, outcome, refusal)
        slowed_domains, is_about_all = self._slow_domains(cursor, outcome)
        slowed_down = self._slow_down(cursor, outcome) if is_about_all else None
        disabled = self.write_more(cursor, outcome)
        self._broker.acknowledge_if_held(cursor)
        return Conclusion(
            outcome,
            state,
            opened_circuit,
            slowed_down,
            slowed_domains,
            route=self._route.label,
            endpoint=endpoint_of(self._route.name) if is_endpoint(self._route.name) else None,
            disabled=disabled,
        )

    def _keep_undeliverable(self, cursor: Cursor, outcome: Decision, locked: frozenset[int]) -> str | None:
        """Keeps an undeliverable email for some days; looks whether everybody is refused alike.

        The caller holds the row's lock, and those of `locked`.

        Returns:
            the words that everybody is refused with; then it is about us, and those who were dropped for it before are
            scheduled again. None where a refusal is the recipient's own.

        Raises:
            _LocksFirst: some of those come before the locked ones.
        """
        item = outcome.item
        if not outcome.undeliverable:
            return None
        undeliverable.keep(cursor, item, outcome.results, days=self._keep_undeliverable_days)
        if outcome.refusal is None:
            return None
        alike = undeliverable.refused_alike(cursor, item.id, DEAD_IN_A_ROW)
        addresses = {each.address for each in alike}
        if is_everybody_refused(addresses, says_dead=outcome.refusal.suppress):
            others = {each.email_id for each in alike} - {item.id}
            if any(each < max(locked | {item.id}) for each in others - locked):
                raise _LocksFirst(others | {item.id})
            for email_id in sorted(others):
                undeliverable.reopen(cursor, email_id)
        elif not (item.probe and undeliverable.is_refused_as_the_circuit_says(cursor, item.id)):
            return None
        return alike[0].refusal

    def _move_on(self, cursor: Cursor, item: Claimed, outcome: Decision) -> State | None:
        """Journals an attempt that has not finished the email, and makes it due later, or unknown.

        The caller holds the row's lock.

        Returns:
            where it stands now; None where the claim is no longer the row's.
        """
        emails.record_outcomes(cursor, item, outcome.results)
        emails.journal(cursor, item, outcome.results)
        if outcome.is_unknown:
            return emails.conclude_unknown(cursor, item, error=outcome.error)
        is_later = emails.conclude_later(
            cursor,
            item,
            pause=outcome.pause,
            counted=outcome.is_counted,
            mailbox_full=outcome.mailbox_is_full,
            error=outcome.error or None,
        )
        return State.SCHEDULED if is_later else None

    def _check_concluded(self, cursor: Cursor, outcome: Decision) -> Conclusion:
        """The claim is not the row's any more: fine if we concluded it ourselves, in a commit whose answer was lost.

        Raises:
            LostClaim: it went to another worker.
        """
        if not emails.was_concluded(cursor, outcome.item):
            raise LostClaim
        self._broker.acknowledge_if_held(cursor)
        return Conclusion(outcome, is_repeated=True)

    def _open_circuit(self, cursor: Cursor, item: Claimed, outcome: Decision, refusal: str | None) -> Ruling | None:
        """Opens the circuit, or puts off its next probe; the scheduler is asked to be there when that is due.

        A probe that the relay has not answered, for whatever reason, has failed. One that failed before the relay was
        asked, as of its template, was none: the next one is due at once.

        Args:
            cursor: of the transaction that concludes the email.
            item: it.
            outcome: what its attempt came to.
            refusal: the words that everybody is refused with, if so.

        Returns:
            the failure that it was opened for, if it was.
        """
        failure = outcome.relay_failure
        opened_for: Ruling | None = None
        if failure is not None and circuits.open_circuit(
            cursor,
            self._route.name,
            reason=described(failure) + (", all recipients alike" if refusal is not None else ""),
            first_pause=FIRST_PROBE,
            refusal=refusal,
        ):
            pause = FIRST_PROBE
            opened_for = failure
        elif item.probe and not outcome.was_relay_asked:
            circuits.probe_another(cursor, self._route.name)
            pause = 0.0
        elif item.probe and not outcome.relay_answered:
            reason = described(failure) if failure is not None else None
            pause = circuits.put_off_probe(cursor, self._route.name, reason=reason, longest=LONGEST_PROBE)
        else:
            return None
        tick_later(self._broker, pause)
        return opened_for

    def _slow_domains(self, cursor: Cursor, outcome: Decision) -> tuple[tuple[tuple[Ruling, float], ...], bool]:
        """Where the relay has had too much of us at a recipient's domain that gets less, and no other.

        Returns:
            the domains that get less from now on; and whether the route itself is to pause, as nothing was said about
            a recipient, or the same about those of several domains.
        """
        said: dict[str, Ruling] = {}
        for result, ruling in zip(outcome.results, outcome.rulings, strict=True):
            domain = (result.address or "").rpartition("@")[2].lower()
            if domain and is_too_much_for_domain(ruling):
                said[domain] = ruling
        learnt = {
            domain: rates.learn(
                cursor, self._route.name, domain, seen=self._seen(domain), because=described(said[domain])
            )
            for domain in sorted(said)
        }
        slowed = tuple((said[domain], each.per_second) for domain, each in learnt.items() if each.is_new)
        return slowed, not learnt or any(each.domains >= SEVERAL_DOMAINS for each in learnt.values())

    def _slow_down(self, cursor: Cursor, outcome: Decision) -> tuple[Ruling, float] | None:
        """Where the relay has had too much of us nothing is claimed for a while; then comes a pass of the scheduler."""
        refusal = next((ruling for ruling in outcome.rulings if self._route.is_too_much(ruling)), None)
        pause = self._route.slow_down(cursor, refusal) if refusal is not None else None
        if refusal is None or pause is None:
            return None
        tick_later(self._broker, pause)
        return refusal, pause

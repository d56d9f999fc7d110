"""Thousands of random steps: after each one the database says what a simple model says."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

import psycopg2
import psycopg2.errors
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from actors.delivery.in_flight import LostClaim
from actors.queue.consumer import ClaimedMessage
from actors.ruling import Phase
from actors.scheduler import probe_order
from models import circuits, emails
from models.emails import ClaimedEmail, DueEmail, Lost
from tests import operators
from tests.app_harness import Harness
from tests.chaos.model import ADDRESS, Email, Model, Verdict
from tests.integration.conftest import settings_of
from tests.relays import ScriptedRelay, accept, close, reply

#: How many lives of a whole database, of at most that many steps each.
LIVES = int(os.environ.get("MODEL_LIVES", "120"))
STEPS = 50

#: A failure is made as short as it gets, which takes minutes, where somebody asks for it.
PHASES = [each for each in HypothesisPhase if each is not HypothesisPhase.shrink or "MODEL_SHRINK" in os.environ]

USERS = ("ann", "bob", "cleo")
KINDS = ("resend", "hold")
TABLES = (
    "duepost.item, duepost.email, duepost.in_hand, duepost.scheduled_email_user, duepost.email_key, duepost.delivery,"
    " duepost.attempt, duepost.suppression, duepost.message, duepost.batch, duepost.batch_item, dramatiq.queue"
)

verdicts = st.lists(st.sampled_from(Verdict), min_size=len(USERS), max_size=len(USERS))
some_users = st.lists(st.sampled_from(USERS), min_size=1, unique=True)


class Life(RuleBasedStateMachine):
    """A database and its model, side by side. All runs in one thread: nothing happens behind the model's back."""

    harness: Harness
    relay: ScriptedRelay
    #: In which order the scheduler looked for a probe, in its last pass: by chance.
    probe_order: ClassVar[list[int]] = []

    ids: Bundle[int] = Bundle("ids")
    held: Bundle[tuple[ClaimedEmail, list[str]]] = Bundle("held")

    @initialize()
    def empty(self) -> None:
        self.model = Model()
        self.keys: dict[str, int] = {}
        self.relay.forget()
        self.taken_before = len(self.relay.messages)
        self.harness.query(f"TRUNCATE {TABLES}")
        self.harness.query("UPDATE duepost.control SET paused = false, swept_at = 'infinity'")
        circuits.close_circuit(self.harness.database, "default")

    @rule(
        target=ids,
        kind=st.sampled_from(KINDS),
        users=st.one_of(st.none(), some_users),
        due=st.sampled_from([True, True, True, False]),
        key=st.one_of(st.none(), st.sampled_from("abc")),
    )
    def schedule(self, kind: str, users: list[str] | None, due: bool, key: str | None) -> int:
        full_key = f"{key}-{kind}-{users}-{due}" if key else None
        to: dict[str, object] = {"users": users} if users else {"address": "zoe@example.com"}
        email_id = self.harness.schedule(
            kind=kind, scheduled_at="2001-01-01T00:00:00Z" if due else "2999-01-01T00:00:00Z", key=full_key, **to
        )
        if full_key in self.keys:
            assert email_id == self.keys[full_key], "the same key gives the same email"
            return email_id
        if full_key:
            self.keys[full_key] = email_id
        self.model.emails[email_id] = Email(kind, dict.fromkeys(users or [ADDRESS]), due)
        return email_id

    @precondition(lambda self: len(self.model.emails) > 1)
    @rule(users=some_users, kind=st.one_of(st.none(), st.sampled_from(KINDS)))
    def clear_users(self, users: list[str], kind: str | None) -> None:
        receipts = self.harness.query(
            "SELECT * FROM duepost.clear_scheduled_emails(%(users)s, %(kind)s)", users=users, kind=kind
        )
        assert receipts == self.model.clear_users(users, kind)

    @rule(email_id=ids)
    def clear_one(self, email_id: int) -> None:
        assert self.call("SELECT duepost.clear_scheduled_email(%(id)s)", id=email_id) == self.model.clear(email_id)

    @precondition(lambda self: len(self.model.emails) > 3)
    @rule()
    def clear_address(self) -> None:
        receipts = self.harness.query("SELECT * FROM duepost.clear_scheduled_emails_to('ZOE@example.com')")
        ids = sorted(email_id for email_id, email in self.model.emails.items() if ADDRESS in email.users)
        assert receipts == [(email_id, self.model.clear(email_id)) for email_id in ids]

    @rule(email_id=ids, due=st.booleans())
    def reschedule(self, email_id: int, due: bool) -> None:
        receipt = self.call(
            "SELECT duepost.reschedule_email(%(id)s, %(at)s)", id=email_id, at="2001-01-01" if due else "2999-01-01"
        )
        assert receipt == self.model.reschedule(email_id, due=due)

    @rule(email_id=ids)
    def become_due(self, email_id: int) -> None:
        self.harness.make_due(email_id)
        if email_id in self.model.emails and self.model.emails[email_id].state == "scheduled":
            self.model.emails[email_id].due = True

    @rule(email_id=ids)
    def retry_now(self, email_id: int) -> None:
        with self.harness.application.transaction() as cursor:
            done = emails.retry_now(cursor, email_id)
        email = self.model.emails.get(email_id)
        assert done == (email is not None and email.state == "scheduled")
        if done and email is not None:
            email.due = True

    @rule(email_id=ids)
    def expire(self, email_id: int) -> None:
        self.harness.query(
            "UPDATE duepost.scheduled_email SET scheduled_at = '2000-01-01', expires_at = '2000-06-01',"
            " due_at = least(due_at, now()) WHERE id = %(id)s",
            id=email_id,
        )
        if email_id in self.model.emails:
            email = self.model.emails[email_id]
            email.due = email.expired = True

    @precondition(lambda self: self.model.due_ids())
    @rule()
    def trigger(self) -> None:
        due = [
            int(str(email_id))
            for (email_id,) in self.harness.query(
                "SELECT id FROM duepost.scheduled_email WHERE state = 'scheduled' AND due_at <= now()"
                " ORDER BY due_at, id"
            )
        ]
        assert set(due) == self.model.due_ids()
        self.probe_order.clear()
        self.harness.enqueue()
        assert set(self.probe_order) <= set(due)
        self.model.trigger(self.probe_order if self.model.circuit_open else due)

    @rule(email_id=ids)
    def lose_messages(self, email_id: int) -> None:
        self.harness.query("DELETE FROM dramatiq.queue WHERE message -> 'args' = %(args)s", args=f"[{email_id}]")
        if email_id in self.model.emails and self.model.emails[email_id].state == "queued":
            # What the scheduler does with it, twice a minute.
            self.harness.query("UPDATE duepost.control SET swept_at = NULL, paused = true")
            self.harness.enqueue()
            self.harness.query(
                "UPDATE duepost.control SET swept_at = 'infinity', paused = %(paused)s", paused=self.model.paused
            )
            self.model.emails[email_id].state = "scheduled"

    @rule(email_id=ids)
    def double_message(self, email_id: int) -> None:
        self.harness.app.routes["default"].send_email.send(email_id)

    @rule(paused=st.sampled_from([False, False, True]))
    def pause(self, paused: bool) -> None:
        self.harness.query("UPDATE duepost.control SET paused = %(paused)s", paused=paused)
        self.model.paused = paused

    @precondition(lambda self: self.model.circuit_open)
    @rule()
    def let_probe_be_due(self) -> None:
        self.harness.query("UPDATE duepost.route SET probe_at = now()")
        self.model.probe_is_due = True

    @precondition(lambda self: self.model.has_queued or self.model.due_ids())
    @rule(verdicts=verdicts)
    def send(self, verdicts: list[Verdict]) -> None:
        """The whole of it, as a worker thread does."""
        self.trigger_if_idle()
        for message, is_mark in self.next_message():
            [email_id] = message.args
            held = self.users_of(email_id)
            if self.model.claim(email_id, is_mark=is_mark):
                self.prepare(email_id, held, verdicts)
            self.harness.process(message)

    @precondition(lambda self: self.model.has_queued or self.model.due_ids())
    @rule(target=held)
    def claim(self) -> tuple[ClaimedEmail, list[str]] | MultipleResults[tuple[ClaimedEmail, list[str]]]:
        """Begins, and goes on later."""
        self.trigger_if_idle()
        for message, is_mark in self.next_message():
            [email_id] = message.args
            users = self.users_of(email_id)
            email = self.harness.claim(email_id)
            assert (email is not None) == self.model.claim(email_id, is_mark=is_mark)
            if email is not None:
                assert [recipient.user_id or ADDRESS for recipient in email.recipients] == users
                return email, users
        return multiple()

    @rule(claim=consumes(held), verdicts=verdicts, again=st.booleans())
    def conclude(self, claim: tuple[ClaimedEmail, list[str]], verdicts: list[Verdict], again: bool) -> None:
        """Goes on to the end; `again` where the answer to the commit was lost."""
        email, users = claim
        self.prepare(email.id, users, verdicts)
        judged = list(self.harness.deliveries(email))
        self.harness.conclude(email, judged)
        if again:
            self.harness.conclude(email, judged)

    @rule(claim=consumes(held), copies=st.integers(0, len(USERS)), comes_back=st.booleans())
    def die(self, claim: tuple[ClaimedEmail, list[str]], copies: int, comes_back: bool) -> None:
        """Ends after that many copies, and is taken for gone; what then comes back concludes nothing."""
        email, users = claim
        self.relay.forget()
        judged = list(islice(self.harness.deliveries(email), copies))
        done = users[:copies]
        self.model.take(email.id, done, [Verdict.SENT] * len(done))
        for user in done[: len(users) - 1]:
            self.model.emails[email.id].users[user] = "sent"
        self.harness.app.rescuer.mark_lost(Lost(email.id, email.claim, email.kind, 0, "default"))
        self.model.lose(email.id)
        if comes_back:
            self.harness.query("UPDATE duepost.scheduled_email SET attempts = 0 WHERE id = %(id)s", id=email.id)
            self.model.emails[email.id].attempts = 0
            with pytest.raises(LostClaim):
                self.harness.conclude(email, judged)

    @rule(email_id=ids, arrived=st.booleans())
    def resolve(self, email_id: int, arrived: bool) -> None:
        with self.harness.application.transaction() as cursor:
            done = (operators.resolve_sent if arrived else operators.resolve_resend)(cursor, email_id)
        resolve = self.model.resolve_sent if arrived else self.model.resolve_resend
        assert done == (email_id in self.model.emails and resolve(email_id))

    @invariant()
    def database_is_as_the_model(self) -> None:
        rows = self.harness.query(
            """
            SELECT e.id, e.kind, e.state, e.attempts, e.unknowns, e.probe, e.due_at <= now() OR e.state <> 'scheduled',
                   coalesce((
                       SELECT jsonb_object_agg(u.user_id, u.outcome)
                       FROM duepost.scheduled_email_user AS u WHERE u.email_id = e.id
                   ), '{"": null}')
            FROM duepost.scheduled_email AS e
            """
        )
        assert {row[0]: row[1:] for row in rows} == {
            email_id: (
                email.kind, email.state, email.attempts, email.unknowns, email.probe,
                email.due or email.state != "scheduled", email.users,
            )
            for email_id, email in self.model.emails.items()
        }  # fmt: skip

    @invariant()
    def ledger_is_as_the_model(self) -> None:
        rows = self.harness.query("SELECT email_id, outcome, user_id FROM duepost.delivery")
        assert Counter(rows) == self.model.ledger

    @invariant()
    def circuit_is_as_the_model(self) -> None:
        assert self.harness.query("SELECT c.paused, r.circuit_open FROM duepost.control c, duepost.route r") == [
            (self.model.paused, self.model.circuit_open)
        ]

    @invariant()
    def relay_took_what_the_model_says(self) -> None:
        taken = Counter(message.recipients[0] for message in self.relay.messages[self.taken_before :])
        expected: Counter[str] = Counter()
        for (_, user), count in self.model.copies.items():
            expected[f"{user or 'zoe'}@example.com"] += count
        assert taken == expected

    def call(self, statement: str, **parameters: object) -> object:
        try:
            [(answer,)] = self.harness.query(statement, **parameters)
        except psycopg2.errors.InvalidParameterValue:
            return "refused"
        return answer

    def trigger_if_idle(self) -> None:
        if not self.model.has_queued:
            self.trigger()

    def users_of(self, email_id: int) -> list[str]:
        email = self.model.emails.get(email_id)
        return email.to_go if email else []

    def next_message(self) -> Iterator[tuple[ClaimedMessage, bool]]:
        """The next message, if there is one, and whether its email is queued by it; acknowledged afterwards."""
        consumer = self.harness.app.broker.consume("duepost_send", prefetch=1, timeout=1)
        message = next(consumer)
        if message is not None:
            keys = "SELECT key IS NOT NULL FROM dramatiq.queue WHERE message_id = %(id)s"
            [(is_mark,)] = self.harness.query(keys, id=message.message_id)
            yield message, bool(is_mark)
            consumer.ack(message)
        consumer.close()

    def prepare(self, email_id: int, users: list[str], verdicts: list[Verdict]) -> None:
        """Tells the relay and the model what is to happen to each copy; after the relay's own fault there is none."""
        happening = verdicts[: len(users)]
        if Verdict.RELAY in happening:
            happening = happening[: happening.index(Verdict.RELAY) + 1]
        self.relay.forget()
        for user, verdict in reversed(list(zip(users, happening, strict=False))):
            ACTS[verdict](self.relay, f"<{user or 'zoe'}@example.com>")
        attempted = users[: len(happening)]
        self.model.take(email_id, attempted, happening)
        self.model.conclude(email_id, attempted, happening)


def at_the_dot(*actions: object) -> Callable[[ScriptedRelay, str], None]:
    """Does this at the next dot."""
    return lambda relay, _address: relay.on(Phase.DOT, *actions, times=1)  # type: ignore[arg-type]


ACTS: dict[Verdict, Callable[[ScriptedRelay, str], None]] = {
    Verdict.SENT: at_the_dot(reply("250 2.0.0 taken")),
    Verdict.REFUSED: lambda relay, address: relay.on(
        Phase.RCPT, reply("550 5.7.1 no"), when=lambda line: address in line, times=1
    ),
    Verdict.LATER: lambda relay, address: relay.on(
        Phase.RCPT, reply("450 4.2.0 later"), when=lambda line: address in line, times=1
    ),
    Verdict.LOST: at_the_dot(accept(), close()),
    Verdict.CUT: at_the_dot(close()),
    Verdict.RELAY: lambda relay, address: relay.on(
        Phase.RCPT, reply("530 5.7.0 log in first"), when=lambda line: address in line, times=1
    ),
}


def test_the_database_does_what_a_simple_model_does(
    url: str, relay: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings_of(url, relay.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    harness = Harness(url, tmp_path)
    for user in USERS:
        harness.recipient(user, f"{user}@example.com")
    harness.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('resend', 'resend'), ('hold', 'hold')")

    def recorded(page: Sequence[DueEmail]) -> list[DueEmail]:
        order = probe_order(page)
        Life.probe_order[:] = [due.id for due in order]
        return order

    monkeypatch.setattr("actors.scheduler.probe_order", recorded)

    class ThisLife(Life):
        pass

    ThisLife.harness, ThisLife.relay = harness, relay
    try:
        run_state_machine_as_test(
            ThisLife,
            settings=settings(
                max_examples=LIVES,
                stateful_step_count=STEPS,
                deadline=None,
                phases=PHASES,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        harness.close()

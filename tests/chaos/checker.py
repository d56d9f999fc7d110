"""Compares, from outside, what was asked, what the relay took and what the ledger says."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tests.chaos.clients import Asked
from tests.chaos.relay import Taken

#: Seconds by which two clocks of one machine may be read apart.
CLOCK = 0.005

Query = Callable[..., Sequence[tuple[object, ...]]]


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the ledger."""

    user: str
    outcome: str
    unknowns: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the database and the relay say once all has come to an end."""

    ledger: Mapping[int, Sequence[Row]]
    held: Mapping[int, int]
    noted: Mapping[tuple[int, str], str]
    stuck: Mapping[int, str]
    taken: Sequence[Taken]

    @classmethod
    def of(cls, query: Query, taken: Sequence[Taken], apart: Sequence[str] = ()) -> "Evidence":
        """Asks the database, but not of the kinds that are checked `apart`."""
        ledger: dict[int, list[Row]] = defaultdict(list)
        for email_id, user, outcome, unknowns in query(
            "SELECT email_id, coalesce(user_id, ''), outcome, unknowns FROM duepost.delivery WHERE channel = 'email'"
            " AND kind <> ALL (%s::text[]) ORDER BY finished_at",
            list(apart),
        ):
            ledger[int(str(email_id))].append(Row(str(user), str(outcome), int(str(unknowns))))
        pending = query(
            "SELECT id, state, unknowns FROM duepost.scheduled_email WHERE kind <> ALL (%s::text[])", list(apart)
        )
        return cls(
            ledger,
            {int(str(email_id)): int(str(unknowns)) for email_id, state, unknowns in pending if state == "unknown"},
            {
                (int(str(email_id)), str(user)): str(outcome)
                for email_id, user, outcome in query(
                    "SELECT email_id, user_id, outcome FROM duepost.scheduled_email_user WHERE outcome IS NOT NULL"
                )
            },
            {int(str(email_id)): str(state) for email_id, state, _ in pending if state != "unknown"},
            taken,
        )


def check(emails: Mapping[int, Asked], evidence: Evidence) -> list[str]:
    """All that is not as it was promised; nothing if all is well."""
    wrong: list[str] = [f"email {email_id} is still {state}" for email_id, state in evidence.stuck.items()]
    copies: dict[tuple[str, str], list[Taken]] = defaultdict(list)
    for each in evidence.taken:
        copies[each.key, each.address].append(each)
    known = {asked.key for asked in emails.values()}
    wrong += [f"{key}: the relay took what nobody had asked for" for key, _ in copies if key not in known]
    wrong += [
        f"email {email_id}: in the ledger, but nobody had asked" for email_id in set(evidence.ledger) - set(emails)
    ]
    for asked in emails.values():
        for user, address in asked.addresses.items():
            wrong += [
                f"email {asked.email_id} ({asked.key}, {user or 'address'}): {fault}"
                for fault in faults(asked, user, copies[asked.key, address], evidence)
            ]
    return wrong


def faults(asked: Asked, user: str, copies: Sequence[Taken], evidence: Evidence) -> Iterable[str]:
    """What is wrong about one recipient of one email."""
    rows = [row for row in evidence.ledger.get(asked.email_id, []) if row.user == user]
    whole = [
        row
        for row in evidence.ledger.get(asked.email_id, [])
        if row.user == "" and row.outcome in {"cleared", "expired"}
    ]
    unknowns = max([row.unknowns for row in [*rows, *whole]] + [evidence.held.get(asked.email_id, 0)])
    # What was undeliverable may have been reopened: another row follows it.
    if any(row.outcome != "undeliverable" for row in rows[:-1]) or len(whole) > 1:
        yield f"{len(rows)} rows in the ledger"
    if len(copies) > 1 + unknowns:
        yield f"{len(copies)} copies, {unknowns} named as unknown"
    if len({copy.content for copy in copies}) > 1 or len({copy.message_id for copy in copies}) > 1:
        yield "its copies differ"
    for copy in copies:
        if copy.at < asked.not_before(copy.at) - CLOCK:
            yield f"left {asked.not_before(copy.at) - copy.at:.3f} s early"
    if user in asked.cleared and copies:
        yield "cleared, and sent all the same"
    outcome = rows[-1].outcome if rows else evidence.noted.get((asked.email_id, user))
    if outcome == "sent" and not copies:
        yield "lost: the ledger says sent, the relay never took it"
    if outcome in {"undeliverable", "cleared", "expired"} and copies and not unknowns:
        yield f"{outcome}, but the relay took it"
    was_taken_off = user in asked.cleared or user in asked.either or asked.unsure
    is_accounted = bool(outcome) or bool(whole) or asked.email_id in evidence.held or was_taken_off
    if not is_accounted and asked.email_id not in evidence.stuck:
        yield "nobody knows what became of it"

"""What operators look for: pending items and the ledger in one list, one person, causes, what comes. It only reads.

A list is read in pages by the place where the last one ended, never by counting rows from the beginning: rows of one
moment are told apart by their ids, so that none is lost or given twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from enum import StrEnum

import psycopg2

from models import bounces, suppression
from models.bounces import Bounce
from models.database.connections import Database, Limits
from models.database.statements import statements
from models.errors import DatabaseUnreachable
from models.suppression import Suppression
from models.words import Outcome, Priority, State

SQL = statements(__file__)

#: Rows of the ledger that a page looks at, at the most, where only their time leads to them: about 0.2 s.
BUDGET = 50_000

#: Counts up to this many are exact.
EXACT = 10_000

#: Seconds that a team's own view of its users may take to be asked for an address.
VIEW_PATIENCE = 1.0

#: Rows that a grouping by cause looks at, the newest.
MOST_FAILED = 20_000

#: Items of each route that a forecast counts.
MOST_FORECAST = 200_000

#: Items of each line that are looked at for what follows after an outage, and deliveries for how fast it was.
MOST_AFTER_OUTAGE = 2_000_000

#: What a kind's pause puts before the route of an item that has fallen due.
PARKED = "paused:"

_LATEST = 2**63 - 1


class Section(StrEnum):
    """The parts of a list, in order."""

    HELD = "held"
    DUE = "due"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of a list ended: the moment (UTC) and the id of its last row."""

    section: Section
    at: datetime | None = None
    id: int = 0

    def __str__(self) -> str:
        """As a URL has it: `due~2026-12-24T18:00:00.000001+00:00~42`."""
        return f"{self.section}~{self.at.isoformat() if self.at else ''}~{self.id}"

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that `str()` has given.

        Raises:
            ValueError: it is none.
        """
        section, at, item_id = text.split("~")
        moment = datetime.fromisoformat(at) if at else None
        if moment is not None and moment.tzinfo is None:
            raise ValueError(f"{at} has no zone")
        number = int(item_id)
        if not -1 < number <= _LATEST:
            raise ValueError(f"{number} is no id")
        return cls(Section(section), moment, number)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which items. Everything that is given must hold; nothing given means all.

    Attributes:
        ids: these.
        key: the one with this idempotency key.
        user: about this user.
        address: to this mailbox, however it is spelled.
        kind: of this kind.
        channel: `email` or `message`.
        state: not finished, and in this state.
        outcome: finished with it, for one recipient at least.
        route: leaving by it; `endpoint:NAME` for messages.
        failed: which have failed before, and are not finished; or which did not arrive, and are.
        reply: with these words in the last error or reply.
        since: due or finished no earlier (UTC).
        until: due or finished earlier (UTC).
    """

    ids: tuple[int, ...] = ()
    key: str | None = None
    user: str | None = None
    address: str | None = None
    kind: str | None = None
    channel: str | None = None
    state: State | None = None
    outcome: Outcome | None = None
    route: str | None = None
    failed: bool = False
    reply: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def asked(self) -> dict[str, object]:
        """What is given of it, as JSON has it."""
        names = ("key", "user", "address", "kind", "channel", "state", "outcome", "route", "reply")
        found: dict[str, object] = {name: str(getattr(self, name)) for name in names if getattr(self, name) is not None}
        if self.ids:
            found["ids"] = list(self.ids)
        if self.failed:
            found["failed"] = True
        for name in ("since", "until"):
            moment = getattr(self, name)
            if moment is not None:
                found[name] = moment.isoformat()
        return found


@dataclass(frozen=True, slots=True)
class Found:
    """One row of a list: an item that is not finished, or one conclusion of an item. Times are UTC.

    Attributes:
        state: None where it is finished.
        outcomes: how many recipients it ended how for; empty while it is not finished.
        route: by which it leaves, or has left; `endpoint:NAME` for messages.
        is_kind_paused: an operator has paused its kind.
        address: the email's own, or that of one of its recipients.
        users: the first three.
        recipients: how many it goes, or went, to.
        words: the last error, or the reply of a recipient whom it did not reach.
    """

    id: int
    channel: str
    kind: str
    state: State | None
    outcomes: Mapping[str, int]
    scheduled_at: datetime
    due_at: datetime | None
    expires_at: datetime | None
    finished_at: datetime | None
    attempts: int
    unknowns: int
    key: str | None
    route: str
    endpoint: str | None
    is_kind_paused: bool
    address: str | None
    users: tuple[str, ...]
    recipients: int
    words: str | None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list.

    Attributes:
        items: in order: what waits for a person, then the next due, then the newest finished.
        next: where the next page begins; None where this is the last.
        searched_back_to: up to when the ledger was looked through where the page is short for it; the next one goes on.
    """

    items: tuple[Found, ...]
    next: Place | None
    searched_back_to: datetime | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """How many; `is_estimate` where only the planner knows, or where there are at least that many."""

    number: int
    is_estimate: bool

    def __str__(self) -> str:
        return f"about {self.number:,}" if self.is_estimate else f"{self.number:,}"


def find(database: Database, wanted: Filter, after: Place | None = None, limit: int = 50) -> Page:
    """A page of what fits, pending items and the ledger in one list."""
    wanted, is_known = _resolved(database, wanted)
    if not is_known:
        return Page((), None)
    sections = [each for each in Section if _may_be_in(wanted, each)]
    if after is not None:
        sections = [each for each in sections if list(Section).index(each) >= list(Section).index(after.section)]
    found: list[Found] = []
    for section in sections:
        begin = after if after is not None and after.section is section else Place(section)
        missing = limit - len(found)
        if section is Section.FINISHED:
            part = _finished(database, wanted, begin, missing)
        else:
            part = _pending(database, wanted, begin, missing)
        found += part.items
        if part.next is not None:
            return Page(tuple(found), part.next, part.searched_back_to)
    return Page(tuple(found), None)


def pending_ids(
    database: Database, wanted: Filter, section: Section, after: Place, limit: int, *, upto: int = _LATEST
) -> list[tuple[datetime, int]]:
    """The next places of a section of what is not finished: due time (UTC) and id; none with an id above `upto`."""
    parameters = {
        **_conditions(wanted),
        "held": section is Section.HELD,
        # A page begins where what is asked for begins: the index is read from there.
        "after_at": after.at or wanted.since or "-infinity",
        "after_id": after.id if after.at else 0,
        "upto": upto,
        "limit": limit,
        "source": _source(wanted, section),
    }
    name = "pending_by_time" if parameters["source"] is None else "pending_of"
    statement = SQL["pending_by_time"] if name == "pending_by_time" else SQL["pending_of"]
    return [(_moment(at), int(str(item_id))) for at, item_id in database.execute(statement, parameters)]


def all_pending(database: Database, wanted: Filter, size: int, upto: int) -> list[int]:
    """The ids of all that is not finished and fits, `size` read at once; none above `upto`."""
    wanted, is_known = _resolved(database, wanted)
    found: list[int] = []
    for section in (Section.HELD, Section.DUE):
        after = Place(section)
        while is_known and _may_be_in(wanted, section):
            places = pending_ids(database, wanted, section, after, size, upto=upto)
            found += [item_id for _, item_id in places]
            if len(places) < size:
                break
            after = Place(section, *places[-1])
    return found


def _resolved(database: Database, wanted: Filter) -> tuple[Filter, bool]:
    """The same with the id in place of the key; whether there can be anything."""
    if wanted.key is None:
        return wanted, True
    rows = database.execute(SQL["id_of_key"], {"key": wanted.key})
    ids = {int(str(row[0])) for row in rows}
    if wanted.ids:
        ids &= set(wanted.ids)
    fields = {name: getattr(wanted, name) for name in Filter.__slots__}
    return Filter(**{**fields, "ids": tuple(sorted(ids)), "key": None}), bool(ids)


def _may_be_in(wanted: Filter, section: Section) -> bool:
    if section is Section.FINISHED:
        return wanted.state is None
    if wanted.outcome is not None:
        return False
    if section is Section.HELD:
        return wanted.state in (None, State.UNKNOWN)
    return wanted.state is not State.UNKNOWN


def _source(wanted: Filter, section: Section) -> str | None:
    """Where the fewest rows are to be looked at; None where only time leads to them."""
    if wanted.ids:
        return "ids"
    if wanted.address is not None:
        return "address"
    if wanted.user is not None:
        return "user"
    if section is Section.HELD:
        return "held"
    if wanted.state in (State.SENDING, State.QUEUED):
        return str(wanted.state)
    return "failed" if wanted.failed or wanted.reply is not None else None


def _conditions(wanted: Filter) -> dict[str, object]:
    return {
        "ids": list(wanted.ids) or None,
        "user": wanted.user,
        "address": wanted.address,
        "kind": wanted.kind,
        "channel": wanted.channel,
        "state": wanted.state,
        "outcome": wanted.outcome,
        "route": wanted.route,
        "failed": wanted.failed,
        "reply": wanted.reply,
        "since": wanted.since,
        "until": wanted.until,
    }


def _pending(database: Database, wanted: Filter, begin: Place, limit: int) -> Page:
    places = pending_ids(database, wanted, begin.section, begin, limit + 1)
    more, places = len(places) > limit, places[:limit]
    cards = {}
    if places:
        rows = database.execute(SQL["pending_cards"], {"ids": [item_id for _, item_id in places]})
        cards = {card.id: card for card in map(_pending_card, rows)}
    items = tuple(cards[item_id] for _, item_id in places if item_id in cards)
    last = Place(begin.section, *places[-1]) if places else begin
    return Page(items, last if more else None)


def _pending_card(row: Sequence[object]) -> Found:
    (item_id, channel, kind, state, scheduled_at, due_at, expires_at, attempts, unknowns, key, route, endpoint, address,
     users, recipients, last_error, is_kind_paused) = row  # fmt: skip
    return Found(
        id=int(str(item_id)), channel=str(channel), kind=str(kind), state=State(str(state)), outcomes={},
        scheduled_at=_moment(scheduled_at), due_at=_moment(due_at), expires_at=_moment_or_none(expires_at),
        finished_at=None, attempts=int(str(attempts)), unknowns=int(str(unknowns)), key=_text(key),
        route=str(route).removeprefix(PARKED), endpoint=_text(endpoint), is_kind_paused=bool(is_kind_paused),
        address=_text(address), users=_texts(users), recipients=int(str(recipients)), words=_text(last_error),
    )  # fmt: skip


def _finished(database: Database, wanted: Filter, begin: Place, limit: int) -> Page:
    before: dict[str, object] = {"before_at": begin.at or wanted.until or "infinity", "before_id": begin.id}
    if begin.at is None:
        before["before_id"] = _LATEST if wanted.until is None else 0
    conditions = {**_conditions(wanted), **before}
    horizon = None
    if _is_led_by_time_alone(wanted):
        rows = database.execute(SQL["ledger_horizon"], {**conditions, "budget": BUDGET})
        horizon = _moment(rows[0][0]) if rows else None
    rows = database.execute(SQL["ledger_page"], {**conditions, "horizon": horizon, "limit": limit + 1})
    places = [(_moment(at), int(str(item_id))) for at, item_id in rows]
    more, places = len(places) > limit, places[:limit]
    cards = {}
    if places:
        rows = database.execute(SQL["ledger_cards"], {"ids": [item_id for _, item_id in places]})
        cards = {(card.finished_at, card.id): card for card in map(_ledger_card, rows)}
    items = tuple(cards[place] for place in places if place in cards)
    if more:
        return Page(items, Place(Section.FINISHED, *places[-1]) if places else begin)
    if horizon is not None:
        # All of the horizon's own moment has been looked at.
        return Page(items, Place(Section.FINISHED, horizon, 0), horizon)
    return Page(items, None)


def _is_led_by_time_alone(wanted: Filter) -> bool:
    """Whether rows of the ledger may fit so rarely that a page looks at many that do not."""
    is_led = wanted.ids or wanted.user or wanted.address or wanted.failed or wanted.outcome not in (None, Outcome.SENT)
    return not is_led and any((wanted.kind, wanted.channel, wanted.route, wanted.reply))


def _ledger_card(row: Sequence[object]) -> Found:
    (item_id, finished_at, channel, kind, scheduled_at, attempts, unknowns, key, route, endpoint, address, users,
     recipients, words, *counts) = row  # fmt: skip
    outcomes = {str(outcome): int(str(number)) for outcome, number in zip(Outcome, counts, strict=True)}
    return Found(
        id=int(str(item_id)), channel=str(channel), kind=str(kind), state=None,
        outcomes={outcome: number for outcome, number in outcomes.items() if number},
        scheduled_at=_moment(scheduled_at), due_at=None, expires_at=None, finished_at=_moment(finished_at),
        attempts=int(str(attempts)), unknowns=int(str(unknowns)), key=_text(key), route=str(route),
        endpoint=_text(endpoint), is_kind_paused=False, address=_text(address), users=_texts(users),
        recipients=int(str(recipients)), words=_text(words),
    )  # fmt: skip


def count_pending(database: Database, wanted: Filter, *, upto: int = _LATEST) -> Count:
    """How many items that are not finished fit; beyond `EXACT` an estimate: the planner's for all, else at least."""
    wanted, is_known = _resolved(database, wanted)
    if not is_known:
        return Count(0, is_estimate=False)
    number = 0
    for section in (Section.HELD, Section.DUE):
        if _may_be_in(wanted, section):
            number += len(pending_ids(database, wanted, section, Place(section), EXACT + 1 - number, upto=upto))
        if number > EXACT:
            estimate = _estimate(database, SQL["estimated_pending"]) if wanted == Filter() else 0
            return Count(max(estimate, EXACT), is_estimate=True)
    return Count(number, is_estimate=False)


def count_finished(database: Database) -> Count:
    """How many rows the ledger has, a row for each recipient: the planner's estimate."""
    return Count(_estimate(database, SQL["estimated_finished"]), is_estimate=True)


def _estimate(database: Database, statement: str) -> int:
    [(number,)] = database.execute(statement)
    return int(str(number))


def highest_id(database: Database) -> tuple[int, datetime]:
    """The highest id that was given until now, and the database's time (UTC)."""
    [(item_id, at)] = database.execute(SQL["highest_id"])
    return int(str(item_id)), _moment(at)


# One item ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Content:
    """What an item that is not finished says; `identifier` is its Message-ID, or its id at the endpoint."""

    template: str | None
    context: object
    subject: str | None
    body_text: str | None
    body_html: str | None
    headers: object
    sender: str | None
    reply_to: str | None
    identifier: str
    payload: object


@dataclass(frozen=True, slots=True)
class User:
    """A user of an item that is not finished; `outcome` where it is finished for this one."""

    user_id: str
    address: str | None
    outcome: Outcome | None
    unknown: bool
    code: int | None
    enhanced_code: str | None
    reply: str | None


@dataclass(frozen=True, slots=True)
class Try:
    """What an attempt came to for a recipient. Times are UTC."""

    claim: int
    started_at: datetime
    finished_at: datetime
    worker_id: int
    user_id: str | None
    phase: str | None
    verdict: str
    code: int | None
    enhanced_code: str | None
    reply: str | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How an item ended for a recipient. The time is UTC."""

    finished_at: datetime
    outcome: Outcome
    user_id: str | None
    address: str | None
    code: int | None
    enhanced_code: str | None
    reply: str | None
    route: str
    attempts: int
    unknowns: int


@dataclass(frozen=True, slots=True)
class Action:
    """What an operator has done: a row of duepost.operator_action. Times are UTC.

    Attributes:
        by: who, as they are called where they gave the order; `login` is the database role.
        via: `command`, `console` or `sql`.
        asked: which items, by a filter or their ids, and what else was asked for.
        ended_at: None where it is under way, or was cut off.
        done: to how many items something was done.
        skipped: how many were left as they were, by reason.
    """

    id: int
    action: str
    by: str
    via: str
    login: str
    reason: str | None
    asked: Mapping[str, object]
    began_at: datetime
    ended_at: datetime | None
    done: int
    skipped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Item:
    """All that is known of one item.

    Attributes:
        found: its row while it is not finished, else its latest conclusion.
        content: None once it is concluded: what was sent is kept by nobody.
        users: of an item that is not finished.
        tries: each attempt, for each recipient, in order.
        endings: each row of the ledger, in order.
        actions: what operators have done to it by its id, the newest first.
        bounces: what came back of it, in order.
    """

    found: Found
    content: Content | None
    users: tuple[User, ...]
    tries: tuple[Try, ...]
    endings: tuple[Ending, ...]
    actions: tuple[Action, ...]
    bounces: tuple[Bounce, ...] = ()


def item(database: Database, item_id: int) -> Item | None:
    """One item, of either channel; None where there is none."""
    page = find(database, Filter(ids=(item_id,)), limit=1)
    if not page.items:
        return None
    this = {"id": item_id}
    content = [Content(*row) for row in database.execute(SQL["content"], this)]  # type: ignore[arg-type]  # its columns
    return Item(
        found=page.items[0],
        content=content[0] if content else None,
        users=tuple(
            User(user_id, address, Outcome(str(outcome)) if outcome else None, *rest)  # type: ignore[arg-type]
            for user_id, address, outcome, *rest in database.execute(SQL["users_of"], this)
        ),
        tries=tuple(Try(*row) for row in database.execute(SQL["tries"], this)),  # type: ignore[arg-type]  # its columns
        endings=tuple(
            Ending(at, Outcome(str(outcome)), *rest)  # type: ignore[arg-type]  # its columns
            for at, outcome, *rest in database.execute(SQL["endings"], this)
        ),
        actions=tuple(_action(row) for row in database.execute(SQL["actions_on"], this)),
        bounces=tuple(bounces.of_email(database, item_id)),
    )


def journal(
    database: Database, *, before: int = _LATEST, action: str | None = None, by: str | None = None, limit: int = 50
) -> tuple[Action, ...]:
    """What operators have done, the newest first; the next page is what is before the last one's id."""
    parameters = {"before": before, "action": action, "by_whom": by, "limit": limit}
    return tuple(_action(row) for row in database.execute(SQL["journal"], parameters))


def _action(row: Sequence[object]) -> Action:
    return Action(*row)  # type: ignore[arg-type]  # the statement's columns are the fields


# A person ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipient:
    """What duepost.recipient says of a user."""

    user_id: str
    address: str | None
    name: str | None
    locale: str | None
    timezone: str | None
    active: bool | None


@dataclass(frozen=True, slots=True)
class Person:
    """Everything planned and past for a person.

    Attributes:
        addresses: those that were asked for, or that are known of the user.
        recipients: what duepost.recipient says of the users.
        is_view_unread: duepost.recipient took too long, or failed: users who have had no email yet may be missing.
        suppressions: of those addresses.
        planned: the next due, what waits for a person first; `more_planned` says that there are more.
        past: the newest; `more_past` says that there are more.
    """

    users: tuple[str, ...]
    addresses: tuple[str, ...]
    recipients: tuple[Recipient, ...]
    is_view_unread: bool
    suppressions: tuple[Suppression, ...]
    planned: tuple[Found, ...]
    more_planned: bool
    past: tuple[Found, ...]
    more_past: bool


def person(
    database: Database, *, address: str | None = None, user: str | None = None, key: str | None = None, limit: int = 50
) -> Person:
    """Everything past and planned for an address, a user, or whom the item of a key goes to."""
    users = {user} if user is not None else set()
    addresses = {address} if address is not None else set()
    if key is not None:
        for each in find(database, Filter(key=key), limit=10).items:
            users.update(each.users)
            addresses.update([each.address] if each.address else [])
    is_view_unread = False
    for mailbox in sorted(addresses):
        users.update(str(row[0]) for row in database.execute(SQL["users_with_address"], {"address": mailbox}))
        known = _of_view(database, SQL["recipients_with_address"], {"address": mailbox})
        is_view_unread |= known is None
        users.update(str(row[0]) for row in known or [])
    recipients = []
    for name in sorted(users):
        known = _of_view(database, SQL["recipient"], {"user": name})
        is_view_unread |= known is None
        recipients += [Recipient(name, *row) for row in known or []]  # type: ignore[arg-type]  # its columns
    if address is None:
        addresses.update(each.address for each in recipients if each.address)
    filters = [Filter(user=each) for each in sorted(users)] + [Filter(address=each) for each in sorted(addresses)]
    planned = [_both(database, each, limit) for each in filters]
    past = [_finished(database, each, Place(Section.FINISHED), limit) for each in filters]
    all_planned = {each.id: each for page in planned for each in page.items}
    all_past = {(each.id, each.finished_at): each for page in past for each in page.items}
    first = sorted(all_planned.values(), key=lambda each: (each.state is not State.UNKNOWN, each.due_at, each.id))
    newest = sorted(all_past.values(), key=lambda each: (each.finished_at, each.id), reverse=True)
    return Person(
        users=tuple(sorted(users)),
        addresses=tuple(sorted(addresses)),
        recipients=tuple(recipients),
        is_view_unread=is_view_unread,
        suppressions=suppression.of_addresses(database, sorted(addresses)),
        planned=tuple(first[:limit]),
        more_planned=len(first) > limit or any(page.next for page in planned),
        past=tuple(newest[:limit]),
        more_past=len(newest) > limit or any(page.next for page in past),
    )


def _both(database: Database, wanted: Filter, limit: int) -> Page:
    """What is not finished, held or not."""
    held = _pending(database, wanted, Place(Section.HELD), limit)
    due = _pending(database, wanted, Place(Section.DUE), limit)
    return Page(held.items + due.items, held.next or due.next)


def _of_view(database: Database, statement: str, parameters: Mapping[str, object]) -> list[tuple[object, ...]] | None:
    """What duepost.recipient gives; None where it takes too long, or fails: it may be a team's own view."""
    try:
        return database.execute(statement, parameters, limits=Limits(statement=VIEW_PATIENCE))
    except (DatabaseUnreachable, psycopg2.Error):
        return None


# Causes, and what comes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cause:
    """Items that are kept, or have failed, by the same words of the same relay or endpoint. Times are UTC.

    Attributes:
        state: `retrying`, `unknown`, or the outcome of what is finished.
        words: what they have in common: the error without addresses and numbers.
        example: one of the errors in full, and `example_id` one of the items.
        items: how many.
        since: the oldest one's time: scheduled for, or finished.
        filter: finds them (and those of the same kind and route with another error).
    """

    state: str
    channel: str
    kind: str
    route: str
    words: str
    items: int
    example_id: int
    example: str | None
    since: datetime
    filter: Filter


def failures(database: Database, *, since: datetime | None = None, limit: int = 50) -> tuple[Cause, ...]:
    """What keeps items, and what has failed since then (a day ago unless it is said), by cause, most frequent first.

    Of each of the two no more than `MOST_FAILED` rows are looked at, so that beyond that the numbers are too low.
    """
    moment = since or datetime.now(UTC) - timedelta(days=1)
    causes = []
    parameters = {"budget": MOST_FAILED, "limit": limit}
    for channel, kind, route, is_held, words, number, item_id, at, _, example in database.execute(
        SQL["failed_pending"], parameters
    ):
        by = str(route).removeprefix(PARKED)
        state = State.UNKNOWN if is_held else State.SCHEDULED
        wanted = Filter(kind=str(kind), route=by, state=state, failed=True)
        name = "unknown" if is_held else "retrying"
        causes.append(_cause(name, channel, kind, by, words, number, item_id, example, at, wanted))
    for channel, kind, route, outcome, words, number, _, item_id, at, _, example in database.execute(
        SQL["failed_finished"], {**parameters, "since": moment}
    ):
        wanted = Filter(kind=str(kind), route=str(route), outcome=Outcome(str(outcome)), since=moment)
        causes.append(_cause(str(outcome), channel, kind, route, words, number, item_id, example, at, wanted))
    causes.sort(key=lambda each: (-each.items, each.example_id))
    return tuple(causes[:limit])


def _cause(
    state: str, channel: object, kind: object, route: object, words: object, number: object, item_id: object,
    example: object, at: object, wanted: Filter,
) -> Cause:  # fmt: skip
    return Cause(
        state=state, channel=str(channel), kind=str(kind), route=str(route), words=str(words or ""),
        items=int(str(number)), example_id=int(str(item_id)), example=_text(example), since=_moment(at), filter=wanted,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Forecast:
    """How many items of a kind fall due in an hour (its beginning, UTC); what is overdue counts for this one."""

    hour: datetime
    kind: str
    items: int


def forecast(database: Database, hours: int = 24) -> tuple[Forecast, ...]:
    """What falls due in the next hours, by kind; of each route no more than `MOST_FORECAST` items are counted."""
    rows = database.execute(SQL["forecast"], {"hours": hours, "budget": MOST_FORECAST})
    return tuple(Forecast(_moment(hour), str(kind), int(str(number))) for hour, kind, number in rows)


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits of a kind and a priority when sending goes on.

    Attributes:
        priority: in which line it waits.
        kind: its kind.
        items: how many are sent then.
        too_late: how many are not, as they have expired by then.
        oldest: since when the oldest is due (UTC).
    """

    priority: Priority
    kind: str
    items: int
    too_late: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class CatchUp:
    """How what waits is worked off once sending goes on: in lines, urgent first, normal seven times as often as bulk.

    Attributes:
        rate: items a second; None where nothing says how many.
        waiting: what waits, in the order of the lines, the oldest first.
        done_after: by priority, seconds until the last of its line is sent; without a rate none.
    """

    rate: float | None
    waiting: tuple[Waiting, ...]
    done_after: Mapping[Priority, float]


def after_outage(database: Database, seconds: float, rate: float | None = None) -> CatchUp:
    """What is sent, and what is not, if nothing is sent until then; of each line at most `MOST_AFTER_OUTAGE` items.

    Args:
        database: where.
        seconds: until sending goes on, from now.
        rate: items a second; None: as many as in the busiest minute of the last hour in which something was sent.
    """
    rows = database.execute(SQL["after_outage"], {"seconds": seconds, "budget": MOST_AFTER_OUTAGE})
    waiting = tuple(
        Waiting(Priority(int(str(priority))), str(kind), int(str(items)), int(str(too_late)), _moment(oldest))
        for priority, kind, items, too_late, oldest in rows
    )
    if rate is None:
        [(found,)] = database.execute(SQL["sent_lately"], {"budget": MOST_AFTER_OUTAGE})
        rate = None if found is None else float(str(found))
    return CatchUp(rate, waiting, _done_after(waiting, rate) if rate else {})


def _done_after(waiting: Sequence[Waiting], rate: float) -> dict[Priority, float]:
    """Seconds until each line is at its end; a line in which nothing waits has none."""
    urgent, normal, bulk = (sum(each.items for each in waiting if each.priority is line) for line in Priority)
    begins = urgent / rate
    # As long as both wait, of eight one is bulk.
    normal_ends = normal / rate + min(bulk / rate, normal / rate / 7)
    bulk_ends = (normal + bulk) / rate if bulk / rate > normal / rate / 7 else 8 * bulk / rate
    ends = {Priority.URGENT: begins, Priority.NORMAL: begins + normal_ends, Priority.BULK: begins + bulk_ends}
    numbers = {Priority.URGENT: urgent, Priority.NORMAL: normal, Priority.BULK: bulk}
    return {line: seconds for line, seconds in ends.items() if numbers[line]}


@dataclass(frozen=True, slots=True)
class Stop:
    """A kind or a route that an operator has paused: since when (UTC), who, and why."""

    name: str
    at: datetime
    by: str | None
    reason: str | None


def paused_kinds(database: Database) -> tuple[Stop, ...]:
    """Kinds of which nothing is sent, as an operator has said."""
    return tuple(Stop(*row) for row in database.execute(SQL["paused_kinds"]))  # type: ignore[arg-type]  # its columns


def stopped_routes(database: Database) -> tuple[Stop, ...]:
    """Routes by which nothing leaves, as an operator has said."""
    return tuple(Stop(*row) for row in database.execute(SQL["stopped_routes"]))  # type: ignore[arg-type]  # its columns


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind's policy; each is None where the default holds. The time is UTC."""

    name: str
    on_unknown: str | None
    expire_after: timedelta | None
    route: str | None
    late_after: timedelta | None
    catch_up: str | None
    on_outcome: str | None
    keep_content: timedelta | None
    priority: str | None
    guard: str | None
    quiet_from: time | None
    quiet_to: time | None
    timezone: str | None
    unsubscribe: bool | None
    at_most_per_day: int | None
    paused_at: datetime | None
    paused_by: str | None
    pause_reason: str | None


def kinds(database: Database) -> tuple[Kind, ...]:
    """Kinds that have a policy, or of which something is pending or was concluded lately; at most 1,000."""
    return tuple(Kind(*row) for row in database.execute(SQL["kinds"]))  # type: ignore[arg-type]  # its columns


def _moment(value: object) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is no moment")
    return value


def _moment_or_none(value: object) -> datetime | None:
    return value if isinstance(value, datetime) else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(each) for each in value) if isinstance(value, list) else ()

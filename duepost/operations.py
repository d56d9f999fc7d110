"""What operators see and do: the one module behind the command and the web console.

Reading: lists, one item, one person, causes, what comes. What is read is frozen values; times are UTC. A member of
duepost_viewer may read all of it, and nothing that is secret: no endpoint's URL or key.

Acting: to one item, several, or all that fit; each call is one row of duepost.operator_action, with who and why, and
says what was done, and what was left as it was for which reason. A member of duepost_operator may.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from duepost import client
from models import erasure, finding, kept_content, suppression
from models import operations as orders
from models.database.connections import Database
from models.finding import (
    Action,
    CatchUp,
    Cause,
    Content,
    Count,
    Ending,
    Filter,
    Forecast,
    Found,
    Item,
    Kind,
    Page,
    Person,
    Place,
    Section,
    Stop,
    Try,
    User,
)
from models.kept_content import Kept
from models.operations import Doing, Order
from models.suppression import Scopes, Suppression
from models.words import Outcome, Priority, State

__all__ = [
    "REASONS",
    "Action",
    "CatchUp",
    "Cause",
    "Content",
    "Count",
    "Doing",
    "Ending",
    "Filter",
    "Forecast",
    "Found",
    "Item",
    "Kept",
    "Kind",
    "Order",
    "Outcome",
    "Page",
    "Person",
    "Place",
    "Preview",
    "Report",
    "Scopes",
    "Section",
    "State",
    "Stop",
    "Suppression",
    "TakenIn",
    "Try",
    "User",
    "act",
    "after_outage",
    "all_suppressions",
    "count_finished",
    "count_pending",
    "export",
    "failures",
    "find_items",
    "forecast",
    "forget",
    "import_suppressions",
    "item",
    "journal",
    "kept_copies",
    "kept_copy",
    "kinds",
    "one_suppression",
    "pause",
    "paused_kinds",
    "person",
    "preview",
    "probe",
    "reopenable",
    "resume",
    "send_test",
    "stopped_routes",
    "suppress",
    "suppressed",
    "suppression_number",
    "suppressions",
    "unsuppress",
]


def find_items(database: Database, wanted: Filter, after: Place | None = None, limit: int = 50) -> Page:
    """A page of what fits, emails and messages, pending ones and the ledger in one list.

    What waits for a person comes first, then what is pending by due time, then what is finished, the newest first. A
    page may be short, even empty, and still have a next one: the ledger was looked through up to `searched_back_to`.

    Args:
        database: where; a member of duepost_viewer may.
        wanted: what has to fit.
        after: where the last page ended (`Page.next`); None: from the beginning.
        limit: the number of rows that a page has at most.
    """
    return finding.find(database, wanted, after, limit)


def count_pending(database: Database, wanted: Filter = Filter()) -> Count:  # noqa: B008 - frozen
    """How many items that are not finished fit: exact up to 10,000, an estimate beyond."""
    return finding.count_pending(database, wanted)


def count_finished(database: Database) -> Count:
    """How many rows the ledger has, one for each recipient: an estimate, as the planner has it."""
    return finding.count_finished(database)


def item(database: Database, item_id: int) -> Item | None:
    """All that is known of one email or message: its content while it is not concluded, each attempt, how it ended."""
    return finding.item(database, item_id)


def kept_copies(database: Database, item_id: int) -> tuple[Kept, ...]:
    """Of what was sent of an email that which is kept (`duepost.kind.keep_content`): for whom, and until when."""
    return kept_content.copies(database, item_id)


def kept_copy(database: Database, item_id: int, user: str | None) -> bytes | None:
    """What was sent to one of them, as it was sent; None where it is not kept. Not for members of duepost_viewer."""
    return kept_content.content(database, item_id, user)


def person(
    database: Database, *, address: str | None = None, user: str | None = None, key: str | None = None, limit: int = 50
) -> Person:
    """Everything planned and past for an address, a user, or whom the item of a key goes to: one of the three."""
    return finding.person(database, address=address, user=user, key=key, limit=limit)


def failures(database: Database, since: datetime | None = None, limit: int = 50) -> tuple[Cause, ...]:
    """What keeps items now, and what did not arrive since then (a day ago by default), grouped by cause."""
    return finding.failures(database, since=since, limit=limit)


def after_outage(database: Database, seconds: float, rate: float | None = None) -> CatchUp:
    """What is sent, in which order and until when, and what is not, if nothing is sent for these seconds from now.

    Args:
        database: where.
        seconds: until sending goes on.
        rate: items a second; None: as many as lately.
    """
    return finding.after_outage(database, seconds, rate)


def forecast(database: Database, hours: int = 24) -> tuple[Forecast, ...]:
    """What falls due in each of the next hours, by kind."""
    return finding.forecast(database, hours)


def journal(
    database: Database, *, before: int | None = None, action: str | None = None, by: str | None = None, limit: int = 50
) -> tuple[Action, ...]:
    """What operators have done, the newest first; `before` is the id of the last one of the page before."""
    return finding.journal(database, before=before or 2**63 - 1, action=action, by=by, limit=limit)


def suppressed(database: Database, addresses: Sequence[str]) -> tuple[Suppression, ...]:
    """The suppressions of these addresses that hold now."""
    return suppression.of_addresses(database, addresses)


def suppressions(database: Database, after: tuple[datetime, int] | None = None, limit: int = 50) -> list[Suppression]:
    """A page of those that hold now, the newest first; `after` is the moment and the id of the last one before."""
    return suppression.newest(database, after, limit)


def suppression_number(database: Database) -> Scopes:
    """How many suppressions hold now: of all emails, and of a kind."""
    return suppression.number(database)


def one_suppression(database: Database, suppression_id: int) -> Suppression | None:
    """A suppression by its number."""
    return suppression.one(database, suppression_id)


def all_suppressions(database: Database) -> Iterator[Suppression]:
    """All that hold now, in the order in which they were stored; read a page at a time."""
    return suppression.all_in_order(database)


def kinds(database: Database) -> tuple[Kind, ...]:
    """Kinds with a policy, and those of which something is pending or was concluded lately."""
    return finding.kinds(database)


def paused_kinds(database: Database) -> tuple[Stop, ...]:
    """Kinds that an operator has paused."""
    return finding.paused_kinds(database)


def stopped_routes(database: Database) -> tuple[Stop, ...]:
    """Routes that an operator has paused."""
    return finding.stopped_routes(database)


# Acting --------------------------------------------------------------------------------------------------------------

#: Why an item was left as it was, as people are told.
REASONS: Mapping[str, str] = {
    "finished": "finished meanwhile",
    "sending": "being sent just now",
    "queued": "about to be sent",
    "scheduled": "not waiting for a person",
    "unknown": "waiting for a person: resolve it",
    "may_have_arrived": "may have arrived already",
    "not_found": "there is no such item",
    "tried_since": "tried again since",
    "changed_since": "fitted no more when the action began",
    "locked": "held by another transaction: try again",
    "refused": "not allowed for it (its expires_at is earlier)",
    "failed": "failed in the database: its log has it",
    "expired": "its time is over (expires_at)",
    "not_kept": "its content is not kept any more (DUEPOST_KEEP_UNDELIVERABLE_DAYS)",
    "not_undeliverable": "nothing of it is undeliverable",
    "too_late": "being sent to others just now: try again",
    "already": "it was so already",
    "circuit_closed": "the circuit is closed",
}

#: Ids that a report names for each reason.
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Preview:
    """What an action would be about: what a dialog shows, and hands in again.

    Attributes:
        number: how many items fit now.
        upto: the highest id there is: what comes later is left alone.
        as_of: the database's time: what is tried later is left alone.
    """

    number: Count
    upto: int
    as_of: datetime


@dataclass(frozen=True, slots=True)
class Report:
    """What an action has done.

    Attributes:
        action_id: its row in the journal.
        done: to how many items.
        done_ids: the first of them.
        skipped: how many were left as they were, by reason; `REASONS` has the words.
        examples: the first ids for each reason.
        receipts: for each item `done`, or why nothing was done to it.
        is_repeat: the order was known by its token: nothing was done again, and the numbers are the first one's.
    """

    action_id: int
    done: int
    done_ids: tuple[int, ...]
    skipped: Mapping[str, int]
    examples: Mapping[str, tuple[int, ...]]
    receipts: Mapping[int, str]
    is_repeat: bool = False


def preview(database: Database, doing: Doing, wanted: Filter) -> Preview:
    """How many items an action would be about now; it changes nothing, and a viewer may ask."""
    upto, as_of = finding.highest_id(database)
    if wanted.ids:
        number = Count(len(set(wanted.ids)), is_estimate=False)
    elif doing is Doing.REOPEN:
        number = Count(len(orders.reopenable(database, wanted)), is_estimate=False)
    else:
        number = finding.count_pending(database, _narrowed(doing, wanted), upto=upto)
    return Preview(number, upto, as_of)


def act(
    database: Database,
    doing: Doing,
    wanted: Filter,
    order: Order,
    *,
    at: datetime | None = None,
    seen: Preview | None = None,
    tell: Callable[[int, int], None] = lambda _done, _all: None,
) -> Report:
    """Does something to all that fit; items that come after it began are left alone.

    Which items those are is read once, before the first is touched: the given ids as they are, or what a filter finds:
    for a retry what has failed and is scheduled, for a resolution what waits for a person, for a reopening what is kept
    of undeliverable items, else all that is not finished. They are locked one by one by ascending id, `BATCH` in a
    transaction.

    Args:
        database: where; no transaction may be open.
        doing: what.
        wanted: to which items.
        order: who, why.
        at: to which time they are moved, for `Doing.RESCHEDULE`.
        seen: what somebody was shown who has agreed to it; what was tried since is left alone, and what fits no more is
            counted.
        tell: hears after each batch how many of how many have been looked at.
    """
    asked = wanted.asked()
    if at is not None:
        asked["scheduled_at"] = at.isoformat()
    if seen is not None:
        asked["as_of"] = seen.as_of.isoformat()
    upto = seen.upto if seen is not None else finding.highest_id(database)[0]
    ids = _ids(database, doing, wanted, upto)
    action_id, is_new = orders.begin(database, doing, order, asked)
    if not is_new:
        first = orders.recorded(database, action_id)
        return Report(action_id, first.done, (), first.skipped, {}, {}, is_repeat=True)
    gone = 0
    if seen is not None and not seen.number.is_estimate:
        gone = max(seen.number.number - len(ids), 0)
    receipts: dict[int, str] = {}
    for begin in range(0, len(ids), orders.BATCH):
        receipts.update(orders.act(database, action_id, ids[begin : begin + orders.BATCH]))
        tell(min(begin + orders.BATCH, len(ids)), len(ids))
    orders.end(database, action_id, gone)
    return _report(action_id, receipts, gone)


def reopenable(database: Database, wanted: Filter) -> list[int]:
    """What is kept of undeliverable items and fits, by ascending id."""
    return orders.reopenable(database, wanted)


def _report(action_id: int, receipts: Mapping[int, str], gone: int) -> Report:
    done = [item_id for item_id, receipt in receipts.items() if receipt == "done"]
    skipped = Counter(receipt for receipt in receipts.values() if receipt != "done")
    if gone:
        skipped["changed_since"] += gone
    examples = {
        reason: tuple(item_id for item_id, receipt in receipts.items() if receipt == reason)[:EXAMPLES]
        for reason in skipped
    }
    return Report(action_id, len(done), tuple(done[:EXAMPLES]), dict(skipped), examples, receipts)


def _ids(database: Database, doing: Doing, wanted: Filter, upto: int) -> list[int]:
    """By ascending id."""
    if wanted.ids:
        return sorted(set(wanted.ids))
    if doing is Doing.REOPEN:
        return orders.reopenable(database, wanted)
    return orders.pending(database, _narrowed(doing, wanted), upto)


def _narrowed(doing: Doing, wanted: Filter) -> Filter:
    """What an action can be about, where a filter does not say it."""
    if wanted.ids or wanted.state is not None:
        return wanted
    fields = {name: getattr(wanted, name) for name in Filter.__slots__}
    if doing is Doing.RETRY:
        return Filter(**{**fields, "state": State.SCHEDULED, "failed": True})
    if doing in (Doing.RESOLVE_SENT, Doing.RESOLVE_RESEND, Doing.RESOLVE_DROP):
        return Filter(**{**fields, "state": State.UNKNOWN})
    return wanted


def pause(database: Database, order: Order, *, kind: str | None = None, route: str | None = None) -> bool:
    """Stops everything, a kind or a route: nothing is enqueued or claimed; what is being sent is finished.

    Returns:
        whether it was going on until now.
    """
    return _set_pause(database, order, kind, route, is_on=True)


def resume(database: Database, order: Order, *, kind: str | None = None, route: str | None = None) -> bool:
    """Goes on with everything, a kind or a route.

    Returns:
        whether it was paused until now.
    """
    return _set_pause(database, order, kind, route, is_on=False)


def _set_pause(database: Database, order: Order, kind: str | None, route: str | None, *, is_on: bool) -> bool:
    scope = "kind" if kind is not None else "route" if route is not None else "all"
    answer = orders.set_pause(database, scope, kind if kind is not None else route, is_on=is_on, order=order)
    return answer != "already"


def set_priority(
    database: Database, order: Order, kind: str, priority: Priority, tell: Callable[[int], None] = lambda _: None
) -> int:
    """Makes a kind urgent, normal or bulk: what is scheduled from now on, and what is pending of it; gives how many.

    What has a priority of its own keeps it. Safe to repeat, and to go on with where it was interrupted.
    """
    orders.set_priority(database, kind, priority, order)
    return orders.follow_priority(database, kind, tell)


def note(database: Database, action: str, order: Order, wanted: Filter) -> int:
    """Writes down what somebody has done that changes no item, such as looking at one in full; gives its number."""
    action_id, is_new = orders.begin(database, action, order, wanted.asked())
    if is_new:
        orders.end(database, action_id)
    return action_id


#: Emails that somebody sends to see how they look: of a kind of their own, and with a header that says so.
TEST_KIND = "duepost.test"
TEST_HEADER = "X-Duepost-Test"


def send_test(
    database: Database, order: Order, *, address: str, template: str, subject: str, text: str | None, html: str | None
) -> int:
    """Schedules what a template says, as somebody has just seen it, to an address of theirs; gives the email's id.

    It is due at once, of the kind `TEST_KIND`, so that no kind's policy has to do with it. The journal has it. Safe to
    repeat: the order's token is its key.

    Raises:
        psycopg2.Error: an argument is none that can be sent (22023).
    """
    with database.transaction() as cursor:
        email_id = client.schedule_email(
            cursor,
            kind=TEST_KIND,
            address=address,
            subject=subject,
            body_text=text,
            body_html=html,
            headers={TEST_HEADER: "1"},
            key=f"{TEST_KIND}:{order.token}",
        )
        orders.note(cursor, "send_test", order, {"ids": [email_id], "template": template, "address": address})
    return email_id


def probe(database: Database, order: Order, route: str | None = None) -> int:
    """The next probe of an open circuit is due at once, of one route or of all.

    Returns:
        how many routes' circuits are open. Ask for a tick then, so that it is made at once.
    """
    return orders.request_probe(database, route, order)


# Who gets nothing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TakenIn:
    """What became of suppressions that were taken in.

    Attributes:
        stored: how many are stored.
        already: how many were so already.
        refused: what is wrong with the others, by their place from 0.
    """

    stored: int
    already: int
    refused: Mapping[int, str]


def suppress(
    database: Database, order: Order, address: str, *, kind: str | None = None, until: datetime | None = None
) -> str:
    """Nothing goes to an address any more, of all emails or of a kind; the order's reason is kept with it.

    Returns:
        `suppressed`, `changed` (its reason or end was another), `already`, or `repeated` (the order's token is known).
    """
    return suppression.suppress(database, order.parameters(), address, kind=kind, until=until)


def unsuppress(database: Database, order: Order, address: str, *, kind: str | None = None) -> str:
    """Lifts the suppression of an address: that of all emails, or of a kind, and no other.

    Returns:
        `lifted`, `not_suppressed`, or `repeated` (the order's token is known).
    """
    return suppression.unsuppress(database, order.parameters(), address, kind=kind)


def import_suppressions(
    database: Database,
    order: Order,
    rows: Sequence[Mapping[str, str | None]],
    *,
    file: str,
    tell: Callable[[int], object] = lambda _number: None,
) -> TakenIn:
    """Stores suppressions, in batches that are a transaction each; those that are wrong are left out, and named.

    Args:
        database: where.
        order: who, why.
        rows: each with `address`, and what else of `kind`, `reason`, `source`, `until` and `suppressed_at` there is.
        file: what they come from, for the journal.
        tell: hears after each batch how many it had.
    """
    action_id, _ = orders.begin(database, "suppress", order, {"file": file, "rows": len(rows)})
    receipts: dict[int, str] = {}
    for begin in range(0, len(rows), suppression.BATCH):
        batch = rows[begin : begin + suppression.BATCH]
        taken = suppression.take_in(database, action_id, batch)
        receipts.update({begin + place: receipt for place, receipt in taken.items()})
        tell(len(batch))
    orders.end(database, action_id)
    known = Counter(receipts.values())
    return TakenIn(
        known[suppression.STORED],
        known[suppression.ALREADY],
        {
            place: receipt
            for place, receipt in sorted(receipts.items())
            if receipt not in (suppression.STORED, suppression.ALREADY)
        },
    )


# One person's data --------------------------------------------------------------------------------------------------


def forget(
    database: Database, order: Order, *, address: str | None = None, user: str | None = None
) -> Mapping[str, int]:
    """Erases what is kept of one mailbox or user, and clears what is scheduled to them alone.

    Rows of the ledger and of the journal stay, without whom they were about. The order itself names nobody. Safe to
    repeat.

    Returns:
        how many of each: `cleared`, `ledger`, `kept`, `content`, `suppression`, `recipient`, `orders`; and `left`: what
        is being sent, or waits for a person.
    """
    action_id, _ = orders.begin(database, "forget", order, {"forgotten": True})
    found = erasure.forget(database, action_id, address=address, user=user)
    orders.end(database, action_id)
    return found


def export(database: Database, *, address: str | None = None, user: str | None = None) -> dict[str, object]:
    """All that is kept of one mailbox or user, as JSON has it; what is about others of the same email is left out."""
    known = person(database, address=address, user=user, limit=1)
    items = []
    after: Place | None = None
    while True:
        page = find_items(database, Filter(address=address, user=user), after, 500)
        items += [_exported(database, each.id, address, user) for each in page.items]
        after = page.next
        if after is None:
            break
    return {
        "address": address,
        "user": user,
        "recipients": [asdict(each) for each in known.recipients if user is None or each.user_id == user],
        "suppressions": [asdict(each) for each in known.suppressions],
        "items": list({each["id"]: each for each in items}.values()),
        "kept_for_reopening": erasure.kept_for_reopening(database, address=address, user=user),
        "sent": kept_content.of_person(database, address=address, user=user),
    }


def _exported(database: Database, item_id: int, address: str | None, user: str | None) -> dict[str, object]:
    """One item, as far as it is about one person."""
    found = finding.item(database, item_id)
    if found is None:
        return {"id": item_id}

    def is_theirs(user_id: str | None, at: str | None) -> bool:
        return user_id == user if user is not None else at is not None and at.lower() == str(address).lower()

    endings = [each for each in found.endings if is_theirs(each.user_id, each.address)]
    users = {each.user_id for each in endings} if user is None else {user}
    return {
        "id": item_id,
        "channel": found.found.channel,
        "kind": found.found.kind,
        "state": found.found.state,
        "scheduled_at": found.found.scheduled_at,
        "key": found.found.key,
        "address": found.found.address if found.found.state is not None else None,
        "content": asdict(found.content) if found.content else None,
        "attempts": [asdict(each) for each in found.tries if each.user_id in users],
        "endings": [asdict(each) for each in endings],
    }

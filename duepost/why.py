"""Why an item stands where it stands: what happened, what is next and when, and what would change it, in sentences."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from duepost import operations
from duepost.commands import story
from duepost.commands.pacing import more_with, rate_waited_for
from duepost.commands.wording import count, counts, moment, suppression_words
from duepost.operations import Found, Item, Outcome, State, Try
from models import rates, reports, undeliverable
from models.database.connections import Database
from models.rates import WAITS

#: Recipients and actions that are named, at the most.
NAMED = 5


@dataclass(frozen=True, slots=True)
class Why:
    """An item's story in sentences, without a full stop at the end of `next`.

    Attributes:
        happened: what has happened so far, in order.
        next: what is next, and when.
        change: what would change it, each with the command.
    """

    id: int
    happened: tuple[str, ...]
    next: str
    change: tuple[str, ...]


def why(database: Database, item_id: int) -> Why | None:
    """The sentences about an email or a message; None where there is none."""
    found = operations.item(database, item_id)
    if found is None:
        return None
    row = reports.email(database, item_id)
    return Why(
        item_id,
        tuple(_happened(found)),
        story.what_is_next(database, item_id, row),
        tuple(_change(database, found)),
    )


def _happened(item: Item) -> Iterator[str]:
    found = item.found
    sort = "Message" if found.channel == "message" else "Email"
    yield f"{sort} {found.id} ({found.kind}) to {_whom(item)} {_standing(item)}."
    until = f"; it expires at {moment(found.expires_at)}" if found.expires_at else ""
    yield f"It was scheduled for {moment(found.scheduled_at)}{until}."
    yield from _attempts(item.tries, found)
    for each in item.endings[:NAMED] if len(item.endings) > 1 or item.found.state is None else ():
        whom = " ".join(part for part in (each.user_id, f"<{each.address}>" if each.address else None) if part)
        reply = f": {_reply(each.code, each.reply)}" if each.reply and each.outcome is not Outcome.SENT else ""
        yield f"{whom or 'It'}: {each.outcome} at {moment(each.finished_at)}{reply}."
    if len(item.endings) > NAMED:
        yield f"And {len(item.endings) - NAMED} more: duepost show {found.id}."
    for back in item.bounces[:NAMED]:
        said = f": {back.reply}" if back.reply else ""
        whom = back.address or "somebody"
        yield f"It came back from {whom} at {moment(back.received_at)} ({back.event}, {back.effect}){said}."
    for action in item.actions[:NAMED]:
        reason = f" ({action.reason})" if action.reason else ""
        yield f"{action.by} has ordered {action.action.replace('_', ' ')} at {moment(action.began_at)}{reason}."


def _whom(item: Item) -> str:
    found = item.found
    if found.endpoint:
        return f"the endpoint {found.endpoint}"
    if found.users:
        more = found.recipients - len(found.users)
        return ", ".join(found.users) + (f" and {more} more" if more > 0 else "")
    return found.address or "an address that is not kept"


def _standing(item: Item) -> str:
    found = item.found
    if found.state is None:
        when = f"at {moment(found.finished_at)}"
        if found.recipients == 1:
            return f"has ended: {next(iter(found.outcomes), 'finished')}, {when}"
        return f"has ended {when}: {counts(found.outcomes)}"
    so_far = Counter(str(user.outcome) for user in item.users if user.outcome)
    words = {
        State.SCHEDULED: _scheduled(found.words),
        State.QUEUED: "is about to be sent",
        State.SENDING: "is being sent",
        State.UNKNOWN: "may have arrived or not: nobody knows",
    }
    return words[found.state] + (f"; so far {counts(so_far)}" if so_far else "")


def _scheduled(words: str | None) -> str:
    if not words:
        return "is scheduled"
    return words.removeprefix(WAITS) if words.startswith(WAITS) else "failed, and is to be tried again"


def _attempts(tries: tuple[Try, ...], found: Found) -> Iterator[str]:
    number = max(len({each.claim for each in tries}), found.attempts)
    if not number:
        yield "Nothing has been tried yet."
        return
    if not tries:
        yield f"There were {count(number, 'attempt')}, of which nothing is kept."
        return
    last = tries[-1]
    of = f"The last of {number} attempts" if number > 1 else "The attempt"
    where = f" at {last.phase}" if last.phase else ""
    reply = f": {_reply(last.code, last.reply)}" if last.reply else ""
    yield f"{of}, at {moment(last.finished_at)} by worker {last.worker_id}, came to {last.verdict}{where}{reply}."
    if found.unknowns:
        yield f"{count(found.unknowns, 'time')} nobody knew whether it had arrived."


def _reply(code: int | None, reply: str | None) -> str:
    text = str(reply or "")
    return text if code is None or text.startswith(str(code)) else f"{code} {text}"


def _change(database: Database, item: Item) -> Iterator[str]:
    found = item.found
    match found.state:
        case State.SCHEDULED:
            yield from _of_rate(database, found)
            yield from _of_scheduled(found)
        case State.QUEUED:
            yield f"duepost {_noun(found)}clear {found.id} clears it, if its attempt has not begun"
        case State.SENDING:
            yield "nothing, until this attempt has ended: within minutes, also where its worker dies"
        case State.UNKNOWN:
            yield f"duepost resolve {found.id} sent: it has arrived, and the ledger says so"
            yield f"duepost resolve {found.id} resend: it is sent once more, and may arrive twice"
            yield f"duepost resolve {found.id} drop: it is never sent again"
        case _:
            yield from _of_finished(database, item)


def _noun(found: Found) -> str:
    return "message " if found.channel == "message" else ""


def _of_rate(database: Database, found: Found) -> Iterator[str]:
    words = found.words or ""
    if words.startswith(WAITS) and (state := rate_waited_for(rates.states(database), found.route, words)) is not None:
        yield more_with(state)


def _of_scheduled(found: Found) -> Iterator[str]:
    yield f"duepost retry {found.id} makes it due now"
    yield f"duepost {_noun(found)}reschedule {found.id} TIME moves it"
    if found.unknowns:
        yield f"duepost resolve {found.id} sent, or drop, ends it: it may have arrived already"
    else:
        yield f"duepost {_noun(found)}clear {found.id} clears it: it is never sent"


def _of_finished(database: Database, item: Item) -> Iterator[str]:
    found = item.found
    until = undeliverable.kept_until(database, found.id)
    if until is not None:
        yield f"duepost reopen {found.id} schedules it once more, until {moment(until)}"
    elif found.outcomes.get(Outcome.UNDELIVERABLE):
        yield "nothing of this one: its content is not kept any more; schedule another"
    elif any(found.outcomes.get(each) for each in (Outcome.CLEARED, Outcome.EXPIRED, Outcome.OBSOLETE)):
        yield "nothing of this one: it was never sent; schedule another"
    elif found.outcomes.get(Outcome.SUPPRESSED):
        yield "nothing of this one: its address gets nothing; lift that, and schedule another"
    else:
        yield "nothing: it has been taken at the other end"
    ended = (Outcome.UNDELIVERABLE, Outcome.SUPPRESSED)
    addresses = [each.address for each in item.endings if each.address and each.outcome in ended]
    for each in operations.suppressed(database, addresses[:NAMED]):
        if each.kind in (None, found.kind):
            scope = f" --kind {each.kind}" if each.kind is not None else ""
            yield f"{suppression_words(each)}; duepost unsuppress {each.address}{scope} lifts it"

"""What can be looked at."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from starlette.responses import Response

from duepost import operations
from duepost.commands import findings, story
from duepost.commands.pacing import jam_words
from duepost.operations import Filter, Forecast, Item
from duepost.web.access import Role
from duepost.web.answers import Refused
from duepost.web.boundary import CONTENT_POLICY
from duepost.web.charts import last_hour
from duepost.web.desk import Asked
from duepost.web.doings import item_actions
from duepost.web.filters import filter_of, number_of, place_of, query_of, words_of
from duepost.web.pages import link
from models import control, endpoints, rates, reports, routes

#: Rows of a page.
ROWS = 50

#: How far ahead a forecast looks.
HOURS = 24

#: What makes a permit of Gate known in the URL of an item.
PERMIT = "permit"


def now(asked: Asked) -> Response:
    """The first page: what waits for a person, what goes out, what is in the way."""
    database = asked.database
    states = routes.states(database)
    leads = _leads(asked, [state.name for state in states if state.circuit_open])
    found = [*findings.of_mail(database), *asked.server_findings.read(database)]
    return asked.page(
        "now.html",
        findings=[(each, leads.get(each.check, ())) for each in findings.unwell(found)],
        pending=reports.pending_by_state(database),
        due=reports.due_count(database),
        oldest_due=reports.oldest_due(database),
        last_pass=reports.last_pass(database),
        states=states,
        unserved=reports.unserved_routes(database),
        working=reports.workers(database),
        hour=last_hour(asked.minutes.read(database)),
    )


def _leads(asked: Asked, open_circuits: Sequence[str]) -> Mapping[str, Sequence[tuple[str, str]]]:
    """Where a finding of each check leads: words, and a path from the console's first page."""
    delivery = [("Routes and workers", "routes"), ("Kinds", "kinds"), ("What is due", link("items", state="scheduled"))]
    if asked.visitor.role >= Role.OPERATOR:
        if control.is_paused(asked.database):
            delivery.insert(0, ("Resume everything", link("confirm", action="resume", scope="all")))
        delivery += [
            (f"Probe {name} now", link("confirm", action="probe", scope="route", route=name)) for name in open_circuits
        ]
    return {
        "workers": [("Workers", "routes")],
        "delivery": delivery,
        "pace": [("Routes and workers", "routes")],
        "emails": [("See why", "failures"), ("What waits for a person", link("items", state="unknown"))],
        "expired": [("See which", link("items", outcome="expired"))],
        "endpoints": [("Endpoints", "routes")],
        "recipients": [("See why", "failures")],
    }


def items(asked: Asked) -> Response:
    """What is pending and the ledger, in one list."""
    wanted = filter_of(asked, asked.query)
    page = operations.find_items(asked.database, wanted, place_of(asked.query.get("after", "")), ROWS)
    query = query_of(wanted)
    return asked.page(
        "items.html",
        found=page.items,
        following=None if page.next is None else str(page.next),
        searched_back_to=page.searched_back_to,
        query=query,
        given=asked.query,
        described=words_of(wanted) if query else "",
        pending=operations.count_pending(asked.database, wanted),
        states=list(operations.State),
        outcomes=list(operations.Outcome),
        at=datetime.now(UTC),
    )


def item(asked: Asked) -> Response:
    """One item's whole story."""
    found = _item(asked)
    is_shown = is_shown_in_full(asked, found.found.id)
    told = story.read(asked.database, found.found.id)
    return asked.page(
        "item.html",
        is_masked=not is_shown,
        item=found,
        head=[] if told is None else [line for line in told.head() if is_shown or not _is_content(line)],
        foot=[] if told is None else list(told.foot()),
        next=told.next if told is not None else "",
        is_shown=is_shown,
        permit=asked.query.get(PERMIT, ""),
        kept=operations.kept_copies(asked.database, found.found.id),
        context=None if found.content is None else _as_json(found.content.context),
        payload=None if found.content is None else _as_json(found.content.payload),
        may_reveal=asked.visitor.role is Role.SUPPORT and not is_shown,
        may_act=asked.visitor.role >= Role.OPERATOR,
        item_actions=item_actions(found.found.state, found.found.outcomes),
    )


def content(asked: Asked) -> Response:
    """An item's own HTML, for a frame that runs nothing, loads nothing and leads nowhere."""
    found = _item(asked)
    if not is_shown_in_full(asked, found.found.id):
        raise Refused(403, "What an item says is shown to those who may see it in full.")
    if found.content is None or found.content.body_html is None:
        raise Refused(404, "This item has no HTML of its own, or is concluded.")
    return framed(found.content.body_html)


#: Elements that no policy keeps from opening connections (a preconnect), or that lead elsewhere.
_LEADING_ELEMENTS = re.compile(r"<(?=link|meta|base|i?frame|object|embed)", re.IGNORECASE)

#: Where links lead: a browser may connect there as soon as a button of the mouse is pressed, whatever is then refused.
_LEADING_ATTRIBUTES = re.compile(r"(?<=[\s\"'/])((?:xlink:)?href)(?=\s*=)", re.IGNORECASE)


def framed(html: str) -> Response:
    """Foreign HTML with a policy of its own; what a policy does not reach has another name."""
    tame = _LEADING_ATTRIBUTES.sub(r"data-\1", _LEADING_ELEMENTS.sub("<off-", html))
    return Response(
        tame.encode("utf-8", "backslashreplace"),
        media_type="text/html; charset=utf-8",
        headers={"Content-Security-Policy": CONTENT_POLICY},
    )


def person(asked: Asked) -> Response:
    """Everything past and planned for an address, a user, or whom an item goes to."""
    given = {
        name: asked.query[name].strip() for name in ("address", "user", "key") if asked.query.get(name, "").strip()
    }
    if asked.visitor.role < Role.SUPPORT and any("@" in value for value in given.values()):
        raise Refused(403, "A viewer looks for no address: it would stand in the URL.")
    if not given and asked.query.get("item"):
        given = _whom(asked, number_of(asked.query["item"]))
    if len(given) > 1:
        raise Refused(400, "Look for one of the three: an address, a user, or a key.")
    found = None
    if given:
        found = operations.person(
            asked.database, address=given.get("address"), user=given.get("user"), key=given.get("key"), limit=ROWS
        )
    return asked.page("person.html", found=found, given=given, at=datetime.now(UTC))


def failures(asked: Asked) -> Response:
    """What keeps items, and what did not arrive in the last day, by cause."""
    causes = operations.failures(asked.database, limit=100)
    return asked.page("failures.html", causes=[(cause, query_of(cause.filter)) for cause in causes])


def forecast(asked: Asked) -> Response:
    """What falls due in the next day, by kind."""
    found = operations.forecast(asked.database, HOURS)
    kinds = sorted({each.kind for each in found})
    return asked.page(
        "forecast.html",
        kinds=kinds,
        hours=_by_hour(found),
        most=max_of(found),
        jams=[jam_words(each) for each in rates.jams(asked.database, HOURS)],
    )


def kinds(asked: Asked) -> Response:
    """Kinds, and what holds for each."""
    return asked.page("kinds.html", kinds=operations.kinds(asked.database), may_act=asked.visitor.role >= Role.OPERATOR)


def ways(asked: Asked) -> Response:
    """Routes, rates, endpoints and workers."""
    return asked.page(
        "ways.html",
        states=routes.states(asked.database),
        rates=rates.states(asked.database),
        stopped={each.name: each for each in operations.stopped_routes(asked.database)},
        endpoints=endpoints.known(asked.database),
        working=reports.workers(asked.database),
        unserved=reports.unserved_routes(asked.database),
        may_act=asked.visitor.role >= Role.OPERATOR,
    )


def suppression(asked: Asked) -> Response:
    """Addresses that get nothing, of all emails or of a kind, the newest first."""
    after = asked.query.get("after", "")
    found = operations.suppressions(asked.database, _suppression_place(after), ROWS)
    last = found[-1] if len(found) == ROWS else None
    return asked.page(
        "suppression.html",
        found=found,
        following=None if last is None else f"{last.suppressed_at.isoformat()}~{last.id}",
        total=operations.suppression_number(asked.database) if not after else None,
        may_act=asked.visitor.role >= Role.OPERATOR,
    )


def journal(asked: Asked) -> Response:
    """What operators have done, the newest first."""
    before = number_of(asked.query["before"]) if asked.query.get("before") else None
    found = operations.journal(asked.database, before=before, by=asked.query.get("by") or None, limit=ROWS)
    return asked.page(
        "journal.html",
        found=[(each, _as_json(each.asked)) for each in found],
        by=asked.query.get("by", ""),
        following=found[-1].id if len(found) == ROWS else None,
    )


def is_shown_in_full(asked: Asked, item_id: int) -> bool:
    """Whether this visitor sees this item's addresses and content: operators do, support with a permit."""
    if asked.visitor.role >= Role.OPERATOR:
        return True
    permit = asked.query.get(PERMIT, "")
    return asked.visitor.role >= Role.SUPPORT and asked.gate.is_permitted(asked.visitor, item_id, permit)


def _item(asked: Asked) -> Item:
    found = operations.item(asked.database, number_of(str(asked.path["id"])))
    if found is None:
        raise Refused(404, "There is no such item: it was never scheduled, or the ledger has dropped it by its age.")
    return found


def _is_content(line: str) -> bool:
    """Whether a line of the story tells what the item says: a batch's items."""
    return line.startswith(("  ", "Batch "))


def _whom(asked: Asked, item_id: int) -> dict[str, str]:
    """Whom an item goes to: its first user, else its address."""
    page = operations.find_items(asked.database, Filter(ids=(item_id,)), limit=1)
    if not page.items:
        raise Refused(404, "There is no such item.")
    [found] = page.items
    if found.users:
        return {"user": found.users[0]}
    return {} if found.address is None else {"address": found.address}


def _as_json(value: object) -> str | None:
    return None if value is None or value == {} else json.dumps(value, ensure_ascii=False, indent=2, default=str)


def _by_hour(found: tuple[Forecast, ...]) -> list[tuple[datetime, Mapping[str, int], int]]:
    """Each of the next 24 hours, with what falls due of each kind, and of all."""
    numbers: dict[datetime, dict[str, int]] = defaultdict(dict)
    for each in found:
        numbers[each.hour][each.kind] = each.items
    first = min([datetime.now(UTC).replace(minute=0, second=0, microsecond=0), *numbers])
    hours = [first + timedelta(hours=number) for number in range(HOURS)]
    return [(hour, numbers.get(hour, {}), sum(numbers.get(hour, {}).values())) for hour in hours]


def max_of(found: tuple[Forecast, ...]) -> int:
    """The number of the busiest hour; 1 where there is none."""
    sums: dict[datetime, int] = defaultdict(int)
    for each in found:
        sums[each.hour] += each.items
    return max([1, *sums.values()])


def _suppression_place(text: str) -> tuple[datetime, int] | None:
    if not text:
        return None
    at, _, last_id = text.partition("~")
    try:
        return datetime.fromisoformat(at), number_of(last_id)
    except ValueError:
        raise Refused(400, "after: this is no place in the list.") from None

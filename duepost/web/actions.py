"""What can be done: asked first, with the filter and the number; then done once, however often it is sent."""

from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlencode

from starlette.responses import Response

from duepost import operations
from duepost.commands.context import ask_for_pass
from duepost.operations import Count, Doing, Filter, Order, Preview
from duepost.web import screens
from duepost.web.access import fresh_key
from duepost.web.answers import Refused
from duepost.web.desk import Asked
from duepost.web.doings import MEANINGS, WORDS
from duepost.web.filters import filter_of, number_of, query_of, words_of

#: What is done to everything, a kind or a route, and not to items.
SWITCHES = frozenset({"pause", "resume", "probe"})

#: Fields of a URL that are no part of a filter.
_OTHERS = frozenset({"action", "scope", "ids"})

#: Characters of a reason.
LONGEST_REASON = 500


def confirm(asked: Asked) -> Response:
    """Asks before something is done: names the filter and the number. Looks only."""
    action = asked.query.get("action", "")
    if action in SWITCHES:
        scope, name = _scope(asked.query)
        what = "everything" if scope == "all" else f"the {scope} {name}"
        return _dialog(asked, action, f"{action.capitalize()} {what}", fields={"scope": scope, "name": name})
    doing = _doing(action)
    wanted = _wanted(asked)
    seen = operations.preview(asked.database, doing, wanted)
    fields = {
        "filter": urlencode(query_of(wanted)),
        "number": str(seen.number.number),
        "is_estimate": "1" if seen.number.is_estimate else "",
        "upto": str(seen.upto),
        "as_of": seen.as_of.isoformat(),
    }
    number = seen.number
    plural = "item" if number.number == 1 and not number.is_estimate else "items"
    return _dialog(
        asked, action, f"{WORDS[doing]}: {number} {plural}", fields=fields, described=words_of(wanted),
        is_empty=number.number == 0, back=("items", query_of(wanted)),
    )  # fmt: skip


def act(asked: Asked) -> Response:
    """Does it, and leads to what was done."""
    action, reason = asked.value("action"), asked.value("reason").strip()[:LONGEST_REASON]
    token = asked.value("token")
    if not 16 <= len(token) <= 100:
        raise Refused(400, "The form is not whole: begin again.")
    order = Order(by=asked.visitor.name, via="console", reason=reason or None, token=token)
    if action in SWITCHES:
        scope, name = asked.value("scope"), asked.value("name")
        if scope not in {"all", "kind", "route"}:
            raise Refused(400, "The form is not whole: begin again.")
        _switch(asked, action, order, kind=name if scope == "kind" else None, route=name if scope == "route" else None)
        return asked.go({"kind": "kinds", "route": "routes"}.get(scope, ""))
    doing = _doing(action)
    report = operations.act(
        asked.database,
        doing,
        filter_of(asked, dict(parse_qsl(asked.value("filter"), keep_blank_values=True))),
        order,
        at=moment_of(asked.value("at")) if doing is Doing.RESCHEDULE else None,
        seen=_seen(asked),
    )
    return asked.go(f"done/{report.action_id}")


def _switch(asked: Asked, action: str, order: Order, *, kind: str | None, route: str | None) -> None:
    """Pauses, resumes, or asks for the next probe of an open circuit at once."""
    if action == "probe":
        operations.probe(asked.database, order, route)
        ask_for_pass(asked.database)
    elif action == "pause":
        operations.pause(asked.database, order, kind=kind, route=route)
    else:
        operations.resume(asked.database, order, kind=kind, route=route)


def done(asked: Asked) -> Response:
    """What an action has done, and what it has left alone, and why."""
    action_id = number_of(str(asked.path["id"]))
    found = [each for each in operations.journal(asked.database, before=action_id + 1, limit=1) if each.id == action_id]
    if not found:
        raise Refused(404, "There is no such action.")
    [action] = found
    return asked.page(
        "done.html",
        action=action,
        words=WORDS.get(action.action, action.action),
        skipped=[(number, operations.REASONS.get(why, why)) for why, number in action.skipped.items()],
    )


def ask_to_reveal(asked: Asked) -> Response:
    """Asks why an item is to be shown in full."""
    return asked.page("reveal.html", item_id=number_of(str(asked.path["id"])), token=fresh_key())


def reveal(asked: Asked) -> Response:
    """Writes down who wants to see an item in full, and why; and shows it."""
    item_id, reason = number_of(str(asked.path["id"])), asked.value("reason").strip()[:LONGEST_REASON]
    if not reason or not asked.value("token"):
        raise Refused(400, "Say why: others read it in the journal.")
    order = Order(by=asked.visitor.name, via="console", reason=reason, token=asked.value("token"))
    operations.note(asked.database, "reveal", order, Filter(ids=(item_id,)))
    permit = asked.gate.permit(asked.visitor, item_id)
    return asked.go(f"items/{item_id}?{urlencode({screens.PERMIT: permit})}")


def _dialog(
    asked: Asked, action: str, title: str, *, fields: Mapping[str, str], described: str = "", is_empty: bool = False,
    back: tuple[str, Mapping[str, str]] = ("", {}),
) -> Response:  # fmt: skip
    return asked.page(
        "confirm.html",
        title=title,
        meaning=MEANINGS[action],
        fields={"action": action, "token": fresh_key(), **fields},
        described=described,
        is_empty=is_empty,
        takes_time=action == Doing.RESCHEDULE,
        back=back[0],
        back_query=back[1],
        at=datetime.now(UTC),
    )


def _wanted(asked: Asked) -> Filter:
    """The items that were ticked, or all that match."""
    ticked = asked.request.query_params.getlist("ids")
    if asked.query.get("scope") != "all":
        if not ticked:
            raise Refused(400, "No item is ticked: tick some, or choose all that match.")
        return filter_of(asked, {"id": ",".join(ticked)})
    wanted = filter_of(asked, {name: value for name, value in asked.query.items() if name not in _OTHERS})
    if not wanted.asked():
        raise Refused(400, "Say which items: a filter that fits all of them is none.")
    return wanted


def _scope(query: Mapping[str, str]) -> tuple[str, str]:
    scope = query.get("scope", "")
    if scope == "all":
        return scope, ""
    if scope in {"kind", "route"} and query.get(scope):
        return scope, query[scope]
    raise Refused(400, "Say what is to be paused: all, a kind, or a route.")


def _doing(action: str) -> Doing:
    try:
        return Doing(action)
    except ValueError:
        raise Refused(400, f"{action or 'nothing'} is not what can be done.") from None


def _seen(asked: Asked) -> Preview:
    """What the dialog had shown."""
    try:
        return Preview(
            number=Count(int(asked.value("number")), is_estimate=bool(asked.value("is_estimate"))),
            upto=int(asked.value("upto")),
            as_of=datetime.fromisoformat(asked.value("as_of")),
        )
    except ValueError:
        raise Refused(400, "The form is not whole: begin again.") from None


def moment_of(text: str, field: str = "When") -> datetime:
    """A moment that somebody has typed; in UTC where they say no zone.

    Raises:
        Refused: it is none.
    """
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except ValueError:
        raise Refused(400, f"{field}: must be a time such as 2026-12-24T18:00, in UTC or with its zone.") from None

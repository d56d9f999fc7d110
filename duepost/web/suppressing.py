"""Who gets nothing is changed here: an address is suppressed, otherwise so, or no more."""

from starlette.responses import Response

from duepost import operations
from duepost.operations import Order
from duepost.web.access import fresh_key
from duepost.web.actions import LONGEST_REASON, moment_of
from duepost.web.answers import Refused
from duepost.web.desk import Asked
from duepost.web.filters import number_of


def ask(asked: Asked) -> Response:
    """Asks whom, of what, until when and why; of one that is there with what it says. Looks only."""
    given = None
    if asked.query.get("id"):
        given = operations.one_suppression(asked.database, number_of(asked.query["id"]))
        if given is None:
            raise Refused(404, "It is not suppressed any more.")
    lift = given is not None and asked.query.get("lift") == "1"
    return asked.page("suppress.html", given=given, lift=lift, token=fresh_key())


def change(asked: Asked) -> Response:
    """Does it, once, and leads to the list."""
    token, reason = asked.value("token"), asked.value("reason").strip()[:LONGEST_REASON]
    if not 16 <= len(token) <= 100:
        raise Refused(400, "The form is not whole: begin again.")
    order = Order(by=asked.visitor.name, via="console", reason=reason or None, token=token)
    address, kind = asked.value("address").strip(), asked.value("kind").strip() or None
    if asked.value("lift") == "1":
        operations.unsuppress(asked.database, order, address, kind=kind)
    else:
        until = asked.value("until").strip()
        operations.suppress(
            asked.database, order, address, kind=kind, until=moment_of(until, "Until") if until else None
        )
    return asked.go("suppression")

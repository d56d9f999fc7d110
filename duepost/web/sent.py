"""What was sent, of kinds that have it kept for a while: as it was sent, never rendered once more."""

from datetime import UTC, datetime

from starlette.responses import Response

from duepost import operations
from duepost.web.answers import Refused
from duepost.web.desk import Asked
from duepost.web.filters import number_of
from duepost.web.inbox import Caught, parsed
from duepost.web.screens import PERMIT, framed, is_shown_in_full


def one(asked: Asked) -> Response:
    """What one recipient was sent: text, HTML in a frame, headers."""
    item_id, sent = _sent(asked)
    query = {"user": asked.query.get("user"), "permit": asked.query.get(PERMIT)}
    return asked.page("sent.html", is_masked=False, item_id=item_id, sent=sent, query=query)


def html(asked: Asked) -> Response:
    """Its HTML, for a frame that runs nothing, loads nothing and leads nowhere."""
    return framed(_sent(asked)[1].html or "")


def _sent(asked: Asked) -> tuple[int, Caught]:
    item_id = number_of(str(asked.path["id"]))
    if not is_shown_in_full(asked, item_id):
        raise Refused(403, "What an item says is shown to those who may see it in full.")
    source = operations.kept_copy(asked.database, item_id, asked.query.get("user"))
    if source is None:
        raise Refused(404, "What was sent is not kept, or no longer.")
    return item_id, parsed(str(item_id), (), datetime.now(UTC), source)

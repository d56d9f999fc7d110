"""The messages of the bundled sample: to the catcher, which checks signatures, and to a function of the database."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from duepost import client
from duepost.stack import CATCHER
from models import endpoints
from models.database.connections import Cursor, Database
from models.database.statements import statements
from models.endpoints import Setting

SQL = statements(__file__)

#: The endpoint of the demo's own function.
BOARD = "board"

#: What the one that is edited says in the end.
EDITED: Mapping[str, object] = {"order": 42, "total": "18.90"}

#: Messages of each sort.
WEBHOOKS, POSTS = 12, 8

#: Seconds until those are due that are changed before.
LATER = 2


@dataclass(frozen=True, slots=True)
class PlannedMessage:
    """One message of the demo: the arguments of schedule_message, what is done to it, and what is expected of it.

    Attributes:
        what: what it shows, in a few words.
        edit: the payload that it is given after it was scheduled.
        is_cleared: whether it is cleared.
    """

    what: str
    endpoint: str
    payload: Mapping[str, object]
    edit: Mapping[str, object] | None = None
    is_cleared: bool = False
    expected: Mapping[str, int] = field(default_factory=lambda: {"sent": 1})


def plan() -> list[PlannedMessage]:
    """The sample's messages."""
    orders = [{"order": number, "total": f"{number}.90"} for number in range(1, WEBHOOKS + 1)]
    return [
        *(PlannedMessage("webhook, signed", CATCHER, order) for order in orders),
        PlannedMessage("webhook, edited in time", CATCHER, {"order": 42, "total": "19.90"}, edit=EDITED),
        PlannedMessage("webhook, cleared in time", CATCHER, {"order": 43}, is_cleared=True, expected={"cleared": 1}),
        *(PlannedMessage("function, exactly once", BOARD, {"text": f"Good morning {n}"}) for n in range(POSTS)),
    ]


def introduce(database: Database) -> None:
    """Makes the demo's function, and registers it as an endpoint."""
    with database.transaction() as cursor:
        cursor.execute(SQL["make_board"])
        endpoints.set_endpoint(cursor, BOARD, Setting(format="function", function="duepost_demo.post"))


def schedule(cursor: Cursor, planned: PlannedMessage, seconds: float) -> int:
    """Schedules a message in the caller's transaction, for some seconds from now; returns its id."""
    parameters = {"endpoint": planned.endpoint, "payload": json.dumps(planned.payload), "seconds": seconds}
    cursor.execute(SQL["schedule"], parameters)
    [message_id] = cursor.fetchone() or (0,)
    return int(str(message_id))


def change(cursor: Cursor, message_id: int, planned: PlannedMessage) -> str:
    """Edits or clears a message; returns what was done, and the receipt."""
    if planned.edit is not None:
        return (
            f"message {message_id} is edited: the receipt says {client.edit_message(cursor, message_id, planned.edit)}"
        )
    return f"message {message_id} is cleared: the receipt says {client.clear_scheduled_message(cursor, message_id)}"


def caught(folder: Path) -> list[tuple[str, Mapping[str, object]]]:
    """What the catcher for messages has taken: ids and payloads."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [(str(each["id"]), each["payload"]) for each in found]


def posted(database: Database, message_ids: Iterable[int]) -> list[int]:
    """The ids of those messages in the function's table, as often as they are there."""
    return [int(str(each)) for (each,) in database.execute(SQL["posted"], {"ids": list(message_ids)})]


def check(database: Database, folder: Path, messages: Mapping[int, PlannedMessage]) -> tuple[str, bool]:
    """Compares what has arrived with what was planned.

    Returns:
        a line that says so, and whether all is as it should be.
    """
    wanted = [planned.edit or planned.payload for planned in _of(messages, CATCHER) if not planned.is_cleared]
    arrived = caught(folder)
    ids = [message_id for message_id, planned in messages.items() if planned.endpoint == BOARD]
    posts = posted(database, ids)
    is_well = (
        len({wire_id for wire_id, _ in arrived}) == len(arrived)
        and sorted(map(str, wanted)) == sorted(str(payload) for _, payload in arrived)
        and sorted(posts) == sorted(ids)
    )
    if is_well:
        took = f"took {len(arrived)} signed messages, each once"
        return f"The catcher {folder} {took}; the function took {len(posts)}, each exactly once.", True
    took = f"took {len(arrived)} messages of {len(wanted)}"
    return f"The catcher {folder} {took}, the function {len(posts)} of {len(ids)}.", False


def _of(messages: Mapping[int, PlannedMessage], endpoint: str) -> Sequence[PlannedMessage]:
    return [planned for planned in messages.values() if planned.endpoint == endpoint]

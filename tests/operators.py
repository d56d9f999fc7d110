"""An operator's decision about one item, in a transaction of the test's own."""

from functools import partial

from models.database.connections import Cursor


def _resolve(resolution: str, cursor: Cursor, item_id: int) -> bool:
    """Whether it was unknown, or to be sent once more after nobody knew, and is resolved."""
    cursor.execute("SELECT duepost.resolve_item(%(id)s, %(how)s)", {"id": item_id, "how": resolution})
    return cursor.fetchone() == ("done",)


resolve_sent = partial(_resolve, "sent")
resolve_resend = partial(_resolve, "resend")
resolve_drop = partial(_resolve, "drop")

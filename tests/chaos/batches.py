"""Applications that gather events into emails and messages, and take some out; and what must have come of each."""

import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from duepost import client
from tests.chaos.clients import Asking
from tests.chaos.relay import Taken

#: The kind of emails and messages that gather, the endpoint, the template, and where emails go.
KIND, ENDPOINT, TEMPLATE, DOMAIN = "gathered", "gathered", "gathered", "gathered.example"

#: Batches that all clients share, of each channel.
BATCHES = 4

Query = Callable[..., Sequence[tuple[object, ...]]]


class Answer(StrEnum):
    """What a client knows of an item."""

    #: There was no answer: it may be there or not.
    UNSURE = "unsure"
    ADDED = "added"
    REMOVED = "removed"


def set_up(query: Query, templates: Path) -> None:
    """Makes the application's table, function and endpoint, and the template. The schema `app` is there."""
    query("CREATE TABLE app.gathered (message_id bigint, payload jsonb)")
    query(
        "CREATE FUNCTION app.gather(message_id bigint, payload jsonb) RETURNS void LANGUAGE plpgsql AS $f$ BEGIN"
        " INSERT INTO app.gathered VALUES (message_id, payload);"
        " IF random() < 0.1 THEN RAISE EXCEPTION 'the application says no'; END IF; END $f$"
    )
    query("SELECT duepost.set_endpoint(name => %s, format => 'function', function => 'app.gather')", ENDPOINT)
    (templates / f"{TEMPLATE}.subject.txt").write_text("{{ items | length }} items")
    (templates / f"{TEMPLATE}.txt").write_text("{% for item in items %}item {{ item }}.\n{% endfor %}")


@dataclass
class BatchBook:
    """What is known of each item, by its key."""

    items: dict[str, Answer] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, key: str, answer: Answer) -> None:
        """One more answer."""
        with self.lock:
            self.items[key] = answer


class BatchClient(Asking):
    """One application, at its own pace, until it is told to stop. Nobody else takes its items out."""

    def __init__(self, url: str, book: BatchBook, name: str) -> None:
        super().__init__(url, book, name, pause=0.06)
        self._book = book
        self._own: list[tuple[str, str]] = []
        self._count = 0

    def act(self) -> None:
        """Adds or removes."""
        self.random.choices([self._add, self._remove], [3, 1])[0]()

    def _add(self) -> None:
        self._count += 1
        key, number = f"{self.name}-{self._count}", self.random.randrange(BATCHES)
        is_message = self.random.random() < 0.5
        batch = f"{'messages' if is_message else 'emails'}-{number}"
        target: dict[str, Any] = (
            {"endpoint": ENDPOINT} if is_message else {"template": TEMPLATE, "address": f"{batch}@{DOMAIN}"}
        )
        wait = self.random.choice(["0", "100 ms", "300 ms", "1 s"])
        self._book.note(key, Answer.UNSURE)
        self.ask(
            lambda cursor: client.add_to_batch(
                cursor, batch, key, item_key=key, kind=KIND, wait=wait, longest_wait="1 s", **target
            )
        )
        self._book.note(key, Answer.ADDED)
        self._own.append((batch, key))

    def _remove(self) -> None:
        if not self._own:
            return
        batch, key = self.random.choice(self._own[-10:])
        before = self._book.items[key]
        self._book.note(key, Answer.UNSURE)
        receipt = self.ask(lambda cursor: client.remove_from_batch(cursor, batch, key))
        self._book.note(key, Answer.REMOVED if receipt in {"removed", "cleared"} else before)


def is_gathered(copy: Taken) -> bool:
    """Whether a copy at the relay is of a batch."""
    return copy.address.endswith(f"@{DOMAIN}")


def check(book: BatchBook, query: Query, taken: Sequence[Taken]) -> list[str]:
    """What went wrong, a line each."""
    homes, wrong = _homes(query, taken)
    wrong += book.errors
    places = Counter(item for items in homes.values() for item in items)
    for key, answer in book.items.items():
        right = {Answer.ADDED: {1}, Answer.REMOVED: {0}, Answer.UNSURE: {0, 1}}[answer]
        if places[key] not in right:
            where = [home for home, items in homes.items() if key in items]
            wrong.append(f"item {key} ({answer}) is in {places[key]} emails and messages: {where}")
    wrong += [f"item {key}: nobody has added it" for key in places.keys() - book.items.keys()]
    left = query("SELECT batch FROM duepost.batch UNION ALL SELECT email_id::text FROM duepost.batch_item")
    return wrong + [f"batch {batch} is left" for (batch,) in left]


def summary(book: BatchBook, query: Query) -> str:
    """How many items were added and removed, and what gathered them."""
    counts = Counter(book.items.values())
    rows = query(
        "SELECT channel, outcome, count(*) FROM duepost.delivery WHERE kind = %s GROUP BY 1, 2 ORDER BY 1, 2", KIND
    )
    gathered = ", ".join(f"{count} {channel}s {outcome}" for channel, outcome, count in rows)
    return f"{', '.join(f'{count} items {answer}' for answer, count in sorted(counts.items()))}; {gathered}"


def _homes(query: Query, taken: Sequence[Taken]) -> tuple[Mapping[str, Sequence[str]], list[str]]:
    """The items of each email and message that was delivered, or was tried and is kept; and what is wrong of those."""
    wrong: list[str] = []
    homes: dict[str, Sequence[str]] = {}
    for message_id, payload in query("SELECT message_id, payload FROM app.gathered"):
        home = f"message {message_id}"
        if home in homes:
            wrong.append(f"{home} was taken twice")
        homes[home] = _strings(payload)
    ids = {
        str(header): f"email {number}"
        for number, header in query(
            "SELECT email_id, message_id_header FROM duepost.delivery WHERE kind = %s AND channel = 'email'"
            " UNION ALL SELECT id, message_id_header FROM duepost.scheduled_email WHERE kind = %s",
            KIND, KIND,
        )
    }  # fmt: skip
    kept = query(
        "SELECT id, context -> 'items' FROM duepost.scheduled_email WHERE kind = %s"
        " UNION ALL SELECT id, email -> 'context' -> 'items' FROM duepost.undeliverable_email WHERE kind = %s"
        "   AND channel = 'email'",
        KIND, KIND,
    )  # fmt: skip
    homes |= {f"email {number}": _strings(items) for number, items in kept}
    for copy in filter(is_gathered, taken):
        found = ids.get(copy.message_id)
        items = re.findall(r"item (\S+)\.", copy.content.decode())
        if found is None:
            wrong.append(f"{copy.message_id}: the relay took what is not in the ledger")
        elif list(homes.setdefault(found, items)) != items:
            wrong.append(f"{found}: its copies differ: {homes[found]}, {items}")
    pending = query("SELECT id, channel FROM duepost.item WHERE kind = %s AND NOT is_held", KIND)
    return homes, wrong + [f"{channel} {number} of a batch is stuck" for number, channel in pending]


def _strings(items: object) -> list[str]:
    return [str(item) for item in items] if isinstance(items, list) else []

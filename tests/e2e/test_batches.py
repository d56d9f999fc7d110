"""Eight clients add to batches and take out of them while workers are killed: each item is in one email, or message."""

import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from email import message_from_bytes
from typing import Any

import psycopg2

from duepost import client
from tests.e2e.conftest import Site
from tests.waiting import wait_until

CLIENTS = 8
BATCHES = 5
KILLS = 3

#: How many emails or messages leave between two kills.
SENT = 15

#: What a batch goes to, by its name.
Target = Callable[[str], Mapping[str, Any]]


class Client(threading.Thread):
    """Adds items, each with a key of its own, and takes some out again, until it is told to stop."""

    def __init__(self, url: str, number: int, target: Target) -> None:
        super().__init__(name=f"client-{number}")
        self._target = target
        self._url = url
        self._number = number
        self._random = random.Random(number)
        self.stopping = threading.Event()
        #: What became of each item: `added`, or what its removal was answered with.
        self.items: dict[str, str] = {}
        self.errors: list[str] = []

    def run(self) -> None:
        connection = psycopg2.connect(self._url)
        try:
            while not self.stopping.wait(0.005):
                with connection, connection.cursor() as cursor:
                    key, answer = self._step(cursor)
                self.items[key] = answer
        except psycopg2.Error as error:
            self.errors.append(str(error))
        finally:
            connection.close()

    def _step(self, cursor: psycopg2.extensions.cursor) -> tuple[str, str]:
        """One call; gives the item's key, and what is known of it once the transaction has committed."""
        added = [key for key, answer in self.items.items() if answer == "added"][-20:]
        if added and self._random.random() < 0.4:
            key = self._random.choice(added)
            return key, client.remove_from_batch(cursor, self._batch_of(key), key)
        key = f"{self._number}-{len(self.items)}"
        batch = self._batch_of(key)
        client.add_to_batch(
            cursor, batch, key, item_key=key, kind="digest", wait="100 ms", longest_wait="400 ms", **self._target(batch)
        )
        return key, "added"

    def _batch_of(self, key: str) -> str:
        return f"batch-{int(key.partition('-')[2]) % BATCHES}"


def sent_items(site: Site) -> dict[str, list[str]]:
    """The items of each email that the relay took, by Message-ID; copies of one are the same, byte for byte."""
    contents: dict[str, set[bytes]] = {}
    for message in site.relay.messages:
        message_id = str(message_from_bytes(message.content)["Message-ID"])
        contents.setdefault(message_id, set()).add(message.content)
    assert all(len(copies) == 1 for copies in contents.values()), "a copy is the same email"
    return {message_id: re.findall(r"item (\S+)\.", copies.pop().decode()) for message_id, copies in contents.items()}


def kill_now_and_then(site: Site, stack: ExitStack, count_sent: Callable[[], int]) -> None:
    """Two machines with two processes each; one of the two is killed, and started again, several times."""
    stack.enter_context(site.watch())
    machines = [stack.enter_context(site.workers(f"machine-{n}", processes=2)) for n in range(2)]
    for kill in range(KILLS):
        enough = count_sent() + SENT
        wait_until(
            lambda enough=enough: count_sent() >= enough,  # type: ignore[misc]
            timeout=90, what="emails or messages", state=site.logs,
        )  # fmt: skip
        machines[kill % 2].kill()
        machines[kill % 2] = stack.enter_context(site.workers(f"machine-{kill % 2}-{kill}", processes=2))


def add_and_remove(site: Site, target: Target, count_sent: Callable[[], int]) -> dict[str, str]:
    """Has the clients add and remove while workers are killed, until all is finished; gives each item's answer."""
    clients = [Client(site.url, number, target) for number in range(CLIENTS)]
    with ExitStack() as stack:
        for each in clients:
            each.start()
        try:
            kill_now_and_then(site, stack, count_sent)
        finally:
            for each in clients:
                each.stopping.set()
            for each in clients:
                each.join(timeout=60)

        def is_finished() -> bool:
            # What two kills in a row have caught waits for a person, who has it sent once more.
            site.query("UPDATE duepost.item SET is_held = false, due_at = now() WHERE is_held")
            return not site.query("SELECT id FROM duepost.item LIMIT 1")

        wait_until(
            is_finished, timeout=90, what="all to be finished", state=lambda: (site.pending(), site.logs()[-3000:])
        )
    assert [each.errors for each in clients] == [[]] * CLIENTS
    return {key: answer for each in clients for key, answer in each.items.items()}


def check(site: Site, answers: Mapping[str, str], gathered: Mapping[str, list[str]]) -> None:
    """Each item is in exactly one of what was sent, or was removed and is in none."""
    places = Counter(item for items in gathered.values() for item in items)
    assert {
        key: places[key] for key, answer in answers.items() if answer in {"removed", "cleared"} and places[key]
    } == {}
    kept = {key for key, answer in answers.items() if answer in {"added", "too_late"}}
    assert {key: places[key] for key in kept if places[key] != 1} == {}
    assert set(places) == kept
    assert Counter(answers.values()).keys() >= {"added", "removed"}, "there was something to be seen"
    assert max(len(items) for items in gathered.values()) > 1, "items were gathered"
    # In the order of joining: each client's own are in the order of its calls.
    for items in gathered.values():
        for number in range(CLIENTS):
            own = [int(item.partition("-")[2]) for item in items if item.startswith(f"{number}-")]
            assert own == sorted(own)
    assert site.query("SELECT (SELECT count(*) FROM duepost.batch), (SELECT count(*) FROM duepost.batch_item)") == [
        (0, 0)
    ]


def test_each_item_is_in_exactly_one_email_or_removed_and_in_none(site: Site) -> None:
    (site.folder / "digest.subject.txt").write_text("{{ items | length }} items")
    (site.folder / "digest.txt").write_text("{% for item in items %}item {{ item }}.\n{% endfor %}")
    answers = add_and_remove(
        site,
        lambda batch: {"template": "digest", "address": f"{batch}@example.com"},
        lambda: len(site.relay.messages),
    )
    check(site, answers, sent_items(site))


def test_each_item_is_in_exactly_one_message_or_removed_and_in_none(site: Site) -> None:
    site.query("CREATE SCHEMA app")
    site.query("CREATE TABLE app.posts (message_id bigint, payload jsonb)")
    site.query(
        "CREATE FUNCTION app.post(bigint, jsonb) RETURNS void LANGUAGE sql AS"
        " $f$ INSERT INTO app.posts VALUES ($1, $2) $f$"
    )
    site.query("SELECT duepost.set_endpoint(name => 'posts', format => 'function', function => 'app.post')")

    def count_sent() -> int:
        [(count,)] = site.query("SELECT count(*) FROM app.posts")
        return int(str(count))

    answers = add_and_remove(site, lambda _: {"endpoint": "posts"}, count_sent)
    posts = site.query("SELECT message_id, payload FROM app.posts")
    check(site, answers, {str(message_id): list(payload) for message_id, payload in posts})  # type: ignore[call-overload]
    assert len({message_id for message_id, _ in posts}) == len(posts)

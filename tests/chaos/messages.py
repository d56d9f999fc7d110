"""Applications that schedule, edit and clear messages; an endpoint that misbehaves; and what must have come of it."""

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import psycopg2

from tests.chaos.clients import Asking
from tests.http_servers import Action, ScriptedServer, answer, close, hang, reset

#: The endpoints: a function of the application's, and a server that misbehaves.
POSTS, HOOK = "posts", "hook"

#: Messages that the server may get in any second.
RATE = 12

Query = Callable[..., Sequence[tuple[object, ...]]]

#: What the server does now and then instead of taking a request.
FAULTS: tuple[Action, ...] = (
    answer("HTTP/1.1 500 Internal Server Error"),
    answer("HTTP/1.1 503 Service Unavailable", "retry-after: 1"),
    answer("HTTP/1.1 429 Too Many Requests", "retry-after: 1"),
    answer("HTTP/1.1 404 Not Found"),
    answer("HTTP/1.1 302 Found", "location: http://169.254.169.254/"),
    answer("HTTP/1.1 200 OK", "content-length: 1000"),
    close(),
    reset(),
    hang(),
)

#: The statuses by which a request is taken.
TAKEN = ("HTTP/1.1 204", "HTTP/1.1 200")


def set_up(query: Query, hook: ScriptedServer) -> None:
    """Makes the application's table and function, and both endpoints."""
    query("CREATE SCHEMA app")
    query("CREATE TABLE app.posts (message_id bigint, payload jsonb)")
    query(
        "CREATE FUNCTION app.post(message_id bigint, payload jsonb) RETURNS void LANGUAGE plpgsql AS $f$ BEGIN"
        " INSERT INTO app.posts VALUES (message_id, payload);"
        " IF random() < 0.1 THEN RAISE EXCEPTION 'the application says no'; END IF; END $f$"
    )
    query("SELECT duepost.set_endpoint(name => %s, format => 'function', function => 'app.post(bigint,jsonb)')", POSTS)
    query(
        "SELECT duepost.set_endpoint(name => %s, format => 'webhook', url => %s, allow_private => true)",
        HOOK, hook.url,
    )  # fmt: skip
    query("SELECT duepost.set_rate(route => %s, per_second => %s)", f"endpoint:{HOOK}", RATE)


@dataclass
class Asked:
    """A message as it was asked for, by its key, and what was promised since.

    `payloads` are those that may be delivered: one, unless an answer got lost.
    """

    key: str
    endpoint: str
    payloads: set[int]
    cleared: bool = False
    unsure: bool = False


@dataclass
class MessageBook:
    """All that was asked."""

    messages: dict[str, Asked] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class MessageClient(Asking):
    """One application, at its own pace, until it is told to stop. Nobody else edits or clears its messages."""

    def __init__(self, url: str, book: MessageBook, name: str) -> None:
        super().__init__(url, book, name, pause=0.08)
        self._book = book
        self._own: list[tuple[int, Asked]] = []
        self._count = 0

    def act(self) -> None:
        """Schedules, edits or clears."""
        self.random.choices([self._schedule, self._edit, self._clear], [6, 2, 1])[0]()

    def _ask(self, statement: str, *parameters: object) -> object:
        def call(cursor: psycopg2.extensions.cursor) -> object:
            cursor.execute(statement, parameters)
            [(found,)] = cursor.fetchall()
            return found

        return self.ask(call)

    def _schedule(self) -> None:
        self._count += 1
        endpoint = self.random.choice((POSTS, HOOK))
        asked = Asked(f"{self.name}-{self._count}", endpoint, {self._count})
        with self._book.lock:
            self._book.messages[asked.key] = asked
        found = self._ask(
            "SELECT duepost.schedule_message(kind => 'event', endpoint => %s, payload => %s::jsonb, key => %s,"
            " scheduled_at => now() + make_interval(secs => %s))",
            endpoint, json.dumps({"n": self._count}), asked.key, self.random.choice((0.0, 0.0, 0.5, 2.0)),
        )  # fmt: skip
        self._own.append((int(str(found)), asked))

    def _edit(self) -> None:
        if not self._own:
            return
        message_id, asked = self.random.choice(self._own[-20:])
        self._count += 1
        # Until there is an answer it may be either.
        before = set(asked.payloads)
        asked.payloads.add(self._count)
        receipt = self._ask("SELECT duepost.edit_message(%s, %s::jsonb)", message_id, json.dumps({"n": self._count}))
        asked.payloads = {self._count} if receipt == "edited" else before

    def _clear(self) -> None:
        if not self._own:
            return
        message_id, asked = self.random.choice(self._own[-20:])
        was_unsure, asked.unsure = asked.unsure, True
        receipt = self._ask("SELECT duepost.clear_scheduled_message(%s)", message_id)
        asked.unsure = was_unsure
        asked.cleared = asked.cleared or receipt == "cleared"


class Mischief(threading.Thread):
    """Has the server misbehave now and then, until it is told to stop."""

    def __init__(self, hook: ScriptedServer, seed: int) -> None:
        super().__init__(daemon=True)
        self.stopping = threading.Event()
        self._hook = hook
        self._random = random.Random(seed)

    def run(self) -> None:
        """Scripts a fault for some request to come."""
        while not self.stopping.wait(self._random.uniform(0.1, 0.6)):
            self._hook.script(self._random.choice(FAULTS))


def check(book: MessageBook, query: Query, hook: ScriptedServer) -> list[str]:
    """What went wrong, a line each."""
    ids = {str(key): int(str(number)) for key, number in query("SELECT key, email_id FROM duepost.email_key")}
    outcomes: dict[int, str] = {}
    for number, outcome in query("SELECT email_id, outcome FROM duepost.delivery WHERE channel = 'message'"):
        outcomes[int(str(number))] = str(outcome)
    held = {int(str(number)) for (number,) in query("SELECT id FROM duepost.scheduled_message WHERE state = 'unknown'")}
    posts = Counter(int(str(number)) for (number,) in query("SELECT message_id FROM app.posts"))
    said = {int(str(number)): int(str(n)) for number, n in query("SELECT message_id, payload ->> 'n' FROM app.posts")}
    bodies: dict[int, set[bytes]] = {}
    for each in hook.requests:
        bodies.setdefault(int(each.headers["webhook-id"].rpartition("_")[2]), set()).add(each.body)
    requests = Counter(int(each.headers["webhook-id"].rpartition("_")[2]) for each in hook.requests)
    attempts = Counter(
        int(str(number)) for (number,) in query("SELECT email_id FROM duepost.attempt WHERE phase <> 'lost'")
    )
    lost = Counter(int(str(number)) for (number,) in query("SELECT email_id FROM duepost.attempt WHERE phase = 'lost'"))
    wrong = [*book.errors, *_too_fast(sorted(each.moment for each in hook.requests))]
    for asked in book.messages.values():
        message_id = ids.get(asked.key)
        if message_id is not None:
            found = _Found(
                outcomes.get(message_id), message_id in held, posts[message_id], said.get(message_id),
                bodies.get(message_id, set()), requests[message_id], attempts[message_id] + lost[message_id],
            )  # fmt: skip
            wrong += [f"message {message_id} ({asked.endpoint}): {each}" for each in _faults(asked, found)]
    return wrong


def _too_fast(moments: Sequence[float]) -> Iterator[str]:
    for first, last in zip(moments, moments[RATE:], strict=False):
        if last - first < 1.0:
            yield f"{RATE + 1} requests within {last - first:.3f} s"


@dataclass(frozen=True)
class _Found:
    outcome: str | None
    is_held: bool
    posts: int
    said: int | None
    bodies: set[bytes]
    requests: int
    attempts: int


def _faults(asked: Asked, found: _Found) -> list[str]:
    faults = []
    if found.outcome is None and not found.is_held:
        faults.append("stuck: neither in the ledger nor held")
    if asked.cleared and (found.posts or found.requests):
        faults.append("cleared, and delivered all the same")
    if asked.cleared and found.outcome != "cleared":
        faults.append(f"cleared, and {found.outcome} in the ledger")
    if found.outcome == "cleared" and not (asked.cleared or asked.unsure):
        faults.append("nobody was told that it is cleared")
    return faults + (_of_posts(asked, found) if asked.endpoint == POSTS else _of_hook(asked, found))


def _of_posts(asked: Asked, found: _Found) -> list[str]:
    faults = []
    if found.is_held:
        faults.append("a function's outcome is never unknown")
    if found.posts != (found.outcome == "sent"):
        faults.append(f"taken {found.posts} times, and {found.outcome} in the ledger")
    if found.said is not None and found.said not in asked.payloads:
        faults.append(f"said {found.said}, and {asked.payloads} was promised")
    return faults


def _of_hook(asked: Asked, found: _Found) -> list[str]:
    faults = []
    if found.outcome == "sent" and not found.requests:
        faults.append("sent in the ledger, and no request has come")
    if len(found.bodies) > 1:
        faults.append("its requests differ")
    if found.requests > found.attempts:
        faults.append(f"{found.requests} requests in {found.attempts} attempts")
    if any(json.loads(body).get("n") not in asked.payloads for body in found.bodies):
        faults.append(f"said {found.bodies}, and {asked.payloads} was promised")
    return faults


def summary(query: Query) -> Mapping[str, int]:
    """The ledger of messages, by outcome."""
    rows = query("SELECT outcome, count(*) FROM duepost.delivery WHERE channel = 'message' GROUP BY 1")
    return {str(outcome): int(str(count)) for outcome, count in rows}

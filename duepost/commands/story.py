"""One email's story in sentences: what `duepost show` tells."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from actors.settings import variable_of
from duepost.commands.output import Cell
from duepost.commands.pacing import rate_waited_for, waiting_words
from duepost.commands.routes import next_probe
from duepost.commands.wording import count, counts, moment, seconds_until, span
from models import control, endpoints, finding, rates, reports, routes, undeliverable, workers
from models.database.connections import Database
from models.rates import WAITS
from models.routes import RouteState
from models.words import State

Row = Mapping[str, object]

ATTEMPT_COLUMNS = ("when", "user", "phase", "verdict", "reply")

#: How many of a batch's items are shown, and how many characters of each.
MOST_ITEMS, LONGEST_ITEM = 20, 200

#: How a failure to render begins in an email's last error: what follows names file and line.
RENDER = "render: "

#: What is to be mended where that is no file.
PLACES = {"recipient": "duepost.recipient", "sender": "DUEPOST_FROM"}


@dataclass(frozen=True, slots=True)
class Story:
    """One email: its row while it is not finished, its ledger, its attempts, and what happens next."""

    id: int
    row: Row | None
    ledger: Sequence[Row]
    attempts: Sequence[Row]
    next: str

    @property
    def facts(self) -> Row:
        """What both the row and the ledger know."""
        return self.row if self.row is not None else {**self.ledger[0], "state": "finished"}

    def as_json(self) -> dict[str, object]:
        """The whole story."""
        return {
            "id": self.id,
            "kind": self.facts["kind"],
            "state": self.facts["state"],
            "email": {**self.facts, "id": self.id},
            "deliveries": self.ledger,
            "attempts": self.attempts,
            "next": self.next,
        }

    def head(self) -> Iterator[str]:
        """Who and what, before the attempts."""
        facts = self.facts
        sort = "Email" if facts.get("endpoint") is None else "Message"
        yield f"{sort} {self.id} ({facts['kind']}) is {self._standing()}."
        if facts.get("endpoint"):
            yield f"Endpoint: {facts['endpoint']}"
        if self.row is not None and self._recipients():
            yield f"To: {self._recipients()}"
        yield f"Scheduled for {moment(facts['scheduled_at'])}; {self._tries()}"
        if self.row is not None and facts.get("expires_at"):
            yield f"Expires at {moment(facts['expires_at'])}."
        for name, words in (("template", "Template"), ("sender", "From"), ("reply_to", "Reply-To"), ("key", "Key")):
            if facts.get(name):
                yield f"{words}: {facts[name]}"
        yield from self._gathered()
        for name, words in (("message_id_header", "Message-ID"), ("wire_id", "Id at the endpoint")):
            if facts.get(name):
                yield f"{words}: {facts[name]}"
        if facts.get("last_error") and not self._is_told(facts["last_error"]):
            said = str(facts["last_error"])
            yield f"It {said.removeprefix(WAITS)}" if said.startswith(WAITS) else f"Last error: {said}"

    def _gathered(self) -> Iterator[str]:
        """The items of its batch, in order."""
        items = self.facts.get("items")
        if not isinstance(items, list):
            return
        yield f"Batch {self.facts['batch']}, {count(len(items), 'item')}:"
        for place, each in enumerate(items[:MOST_ITEMS], 1):
            key = f" ({each['item_key']})" if each["item_key"] is not None else ""
            text = json.dumps(each["item"], ensure_ascii=False)
            yield f"  {place}{key}: {text if len(text) <= LONGEST_ITEM else text[:LONGEST_ITEM] + '…'}"
        if len(items) > MOST_ITEMS:
            yield f"  … and {len(items) - MOST_ITEMS} more: duepost show {self.id} --json has all"

    def attempt_rows(self) -> list[tuple[str | Cell, ...]]:
        """A row for each attempt and recipient."""
        return [
            (
                Cell(str(each["when"]), moment(each["when"])),
                str(each["user_id"] or ""),
                str(each["phase"] or ""),
                str(each["verdict"]),
                reply_of(each),
            )
            for each in self.attempts
        ]

    def foot(self) -> Iterator[str]:
        """How it ended for whom, and what happens next."""
        for each in self.ledger:
            yield self._ending(each)
        yield f"Next: {self.next}"

    def _standing(self) -> str:
        if self.row is not None:
            done = Counter(str(user["outcome"]) for user in self._users() if user["outcome"])
            return str(self.row["state"]) + (f"; so far {counts(done)}" if done else "")
        return f"finished: {counts(Counter(str(each['outcome']) for each in self.ledger))}"

    def _users(self) -> Sequence[Row]:
        users = self.row.get("users") if self.row is not None else None
        return users if isinstance(users, list) else []

    def _recipients(self) -> str:
        if self._users():
            return ", ".join(_user(user) for user in self._users())
        return str(self.facts.get("address") or "")

    def _tries(self) -> str:
        # One that the relay or our settings were at fault for does not count for the pauses; the journal has it.
        journalled = len({each["claim"] for each in self.attempts})
        attempts, unknowns = max(int(str(self.facts["attempts"])), journalled), int(str(self.facts["unknowns"]))
        unknown = f" It was unknown {count(unknowns, 'time')} whether it arrived." if unknowns else ""
        return f"{count(attempts, 'attempt')} so far.{unknown}"

    def _is_told(self, error: object) -> bool:
        """Whether the attempts say the same."""
        return any(each["reply"] and str(each["reply"]) in str(error) for each in self.attempts)

    def _ending(self, each: Row) -> str:
        whom = " ".join(str(each[name]) for name in ("user_id", "address") if each[name])
        told = {(attempt["user_id"], attempt["reply"]) for attempt in self.attempts}
        reply = "" if (each["user_id"], each["reply"]) in told else reply_of(each)
        ended = f"{each['outcome']} at {moment(each['finished_at'])}"
        return ": ".join(part for part in (whom, ended, reply) if part)


def read(database: Database, email_id: int) -> Story | None:
    """The story of an email; None where there is no such email."""
    row, ledger = reports.email(database, email_id), reports.deliveries(database, email_id)
    if row is None and not ledger:
        return None
    return Story(email_id, row, ledger, reports.attempts(database, email_id), what_is_next(database, email_id, row))


def reply_of(row: Row) -> str:
    """A relay's reply with its code first, once."""
    code, text = str(row["code"] or ""), str(row["reply"] or "")
    enhanced = str(row.get("enhanced_code") or "")
    if not text:
        return f"{code} {enhanced}".strip()
    return text if not code or text.startswith(code) else f"{code} {text}"


def what_is_next(database: Database, email_id: int, row: Row | None) -> str:
    """What happens to an email next, in a sentence."""
    if row is None:
        until = undeliverable.kept_until(database, email_id)
        again = f"; duepost reopen {email_id} schedules it once more, until {moment(until)}" if until else ""
        return f"nothing: it is finished{again}"
    state = State(str(row["state"]))
    if state is State.SENDING:
        return f"worker {row['worker_id']} is sending it"
    if state is State.UNKNOWN:
        held = seconds_until(row["due_at"])
        since = f", since {span(-held)}" if held is not None else ""
        return f"it waits for a person{since}: duepost resolve {row['id']} sent, or resend, or drop"
    return "; ".join([_when(row, state), *_obstacles(database, row)])


def _when(row: Row, state: State) -> str:
    seconds = seconds_until(row["due_at"])
    if seconds is None or seconds > 0:
        when = f"it is due at {moment(row['due_at'])}" + (f", in {span(seconds)}" if seconds is not None else "")
    elif state is State.QUEUED:
        when = f"a sender takes it; it has been due for {span(-seconds)}"
    else:
        when = f"it is due, overdue by {span(-seconds)}: the scheduler's next pass enqueues it"
    return when + (f", and it expires at {moment(row['expires_at'])}" if row["expires_at"] else "")


def _obstacles(database: Database, row: Row) -> Iterator[str]:
    """What keeps it from being sent, each with what to do."""
    error = str(row["last_error"] or "")
    if RENDER in error:
        place = error.partition(RENDER)[2].partition(":")[0]
        yield f"mend {PLACES.get(place, place)}, then duepost retry {row['id']}"
    if control.is_paused(database):
        yield "but Duepost is paused (duepost resume)"
    else:
        yield from _stops(database, row)
        if row.get("endpoint"):
            yield from _endpoint_obstacles(database, str(row["endpoint"]))
        else:
            yield from _route_obstacles(routes.states(database), _route_of(row))
        yield from _rate_obstacles(database, row)
    if workers.present(database) == 0:
        yield "but no worker is running (duepost worker)"


def _route_of(row: Row) -> str:
    return str(row["route"]).removeprefix(finding.PARKED)


def _stops(database: Database, row: Row) -> Iterator[str]:
    """What an operator has paused of it."""
    if any(stop.name == row["kind"] for stop in finding.paused_kinds(database)):
        yield f"but its kind is paused (duepost resume --kind {row['kind']})"
    if any(stop.name == _route_of(row) for stop in finding.stopped_routes(database)):
        yield f"but its route is paused (duepost resume --route {_route_of(row)})"


def _endpoint_obstacles(database: Database, name: str) -> Iterator[str]:
    found = next((each for each in endpoints.known(database) if each.name == name), None)
    if found is None:
        yield f"but its endpoint {name} is removed: its next attempt ends it"
    elif found.disabled_at is not None:
        yield f"but its endpoint is disabled ({found.disabled_because}): duepost endpoint enable {name}"
    elif found.circuit_reason is not None:
        yield f"but the circuit of its endpoint is open ({found.circuit_reason}), {next_probe(found.probe_at)}"


def _route_obstacles(states: Sequence[RouteState], name: str) -> Iterator[str]:
    state = next((each for each in states if each.name == name), None)
    if state is None:
        yield f"but no worker serves its route {name}: start one with {variable_of(name)}"
    elif state.circuit_open:
        where = "" if len(states) == 1 else f" of {name}"
        why = f"({state.circuit_reason}, see duepost doctor)"
        yield f"but the circuit{where} is open {why}, {next_probe(state.probe_at)}"
        if state.fallback is not None:
            yield f"meanwhile it leaves by {state.fallback}, if that takes mail"


def _rate_obstacles(database: Database, row: Row) -> Iterator[str]:
    """What it waits for by its reason; and that its whole route has more due than may leave."""
    error, seconds = str(row["last_error"] or ""), seconds_until(row["due_at"])
    is_due = seconds is not None and seconds <= 0
    if not is_due and not error.startswith(WAITS):
        return
    states = rates.states(database)
    found = rate_waited_for(states, _route_of(row), error) if error.startswith(WAITS) else None
    if found is None and is_due:
        found = next((each for each in states if not each.domain and each.route == _route_of(row)), None)
    if found is not None and found.waiting:
        yield f"{waiting_words(found)}: see duepost rate list"


def _user(user: Row) -> str:
    outcome = f" ({user['outcome']})" if user["outcome"] else ""
    address = f" <{user['address']}>" if user.get("address") else ""
    return f"{user['user_id']}{address}{outcome}"

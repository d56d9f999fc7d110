"""What workers share about a relay: how many connections it allows, how fast it takes email, what it cannot bear."""

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from actors.channels.channel import NoPlace
from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.relay import Relay
from actors.delivery import route as module
from actors.delivery.route import SharedRoute
from actors.ruling import Phase, Ruling, Scope
from duepost.commands.routes import route_facts
from models import routes, workers
from models.database.connections import Database
from models.routes import RouteState
from models.words import Verdict
from models.workers import Process
from tests.relays import Action, ScriptedRelay, close, reply, reset
from tests.smtp_client import Client

RELAY = "marketing"


class Worker:
    """A worker's route, and its connections over it."""

    def __init__(self, database: Database, relay: ScriptedRelay | None, number: int) -> None:
        self.id = number
        self.relay = Relay.from_url(relay.url) if relay is not None else None
        self.route = SharedRoute(database, RELAY, lambda: number)
        self.connections: list[Client] = []

    def open(self) -> Ruling | None:
        """One more connection, with an email over it; returns why there is none.

        Raises:
            NoPlace: there may be no further one.
        """
        assert self.relay is not None
        connection = Client(self.relay, route=self.route)
        [ruling] = connection.deliver(letter()).values()
        if ruling.verdict is not Verdict.SENT:
            return ruling
        self.connections.append(connection)
        return None

    def close(self) -> None:
        """Hangs up everywhere."""
        while self.connections:
            self.connections.pop().close()


def letter() -> Envelope:
    return Envelope("from@example.com", ("ada@example.com",), b"Subject: hi\r\n\r\nhi\r\n")


@pytest.fixture(autouse=True)
def nothing_lingers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay of these tests counts no connection that was closed."""
    monkeypatch.setattr(module, "LINGERING", 0.0)


@pytest.fixture
def registered(database: Database) -> Iterator[Callable[[], int]]:
    """Registers living workers."""
    with closing(database.connect()) as session:
        yield lambda: workers.register(session, Process("host", 1))


@pytest.fixture
def few(relay: ScriptedRelay) -> ScriptedRelay:
    """A relay that takes two connections at once."""
    relay.limit = 2
    return relay


@pytest.fixture
def ada(database: Database, few: ScriptedRelay, registered: Callable[[], int]) -> Iterator[Worker]:
    worker = Worker(database, few, registered())
    yield worker
    worker.close()


@pytest.fixture
def bob(database: Database, few: ScriptedRelay, registered: Callable[[], int]) -> Iterator[Worker]:
    worker = Worker(database, few, registered())
    yield worker
    worker.close()


def state(database: Database) -> RouteState:
    [found] = [each for each in routes.states(database) if each.name == RELAY]
    return found


def limit(database: Database) -> object:
    rows = database.execute("SELECT connections FROM duepost.route WHERE name = %(name)s", {"name": RELAY})
    return rows[0][0] if rows else None


def test_one_connection_too_many_teaches_how_many_there_may_be(database: Database, ada: Worker) -> None:
    assert [ada.open(), ada.open()] == [None, None]
    assert limit(database) is None
    with pytest.raises(NoPlace):
        ada.open()
    assert limit(database) == 2
    assert state(database).allowed_because == "banner 421 4.7.0"


def test_what_is_known_is_not_asked_of_the_relay_again(database: Database, ada: Worker, few: ScriptedRelay) -> None:
    for _ in range(2):
        ada.open()
    for _ in range(5):
        with pytest.raises(NoPlace):
            ada.open()
    assert few.surplus == 1


def test_others_connections_count(database: Database, ada: Worker, bob: Worker, few: ScriptedRelay) -> None:
    for _ in range(2):
        ada.open()
    with pytest.raises(NoPlace):
        bob.open()
    assert (limit(database), few.surplus) == (2, 1)


def test_who_wants_some_gets_its_share(database: Database, ada: Worker, bob: Worker, few: ScriptedRelay) -> None:
    for _ in range(2):
        ada.open()
    with pytest.raises(NoPlace):
        bob.open()
    ada.route.look()
    assert ada.route.most(8) == 1
    ada.connections.pop().close()
    with pytest.raises(NoPlace):
        bob.open()
    ada.route.look()
    assert bob.open() is None
    bob.route.look()
    for worker in (ada, bob):
        with pytest.raises(NoPlace):
            worker.open()
    assert few.surplus == 1


def test_with_one_place_for_two_workers_it_goes_to_who_asks_when_it_is_free(
    database: Database, ada: Worker, bob: Worker, few: ScriptedRelay
) -> None:
    few.limit = 1
    assert ada.open() is None
    with pytest.raises(NoPlace):
        bob.open()
    assert limit(database) == 1
    ada.close()
    ada.route.look()
    assert bob.open() is None
    with pytest.raises(NoPlace):
        ada.open()
    assert few.surplus == 1


def test_a_worker_that_is_gone_holds_no_place(database: Database, ada: Worker, bob: Worker, few: ScriptedRelay) -> None:
    for _ in range(2):
        ada.open()
    with pytest.raises(NoPlace):
        bob.open()
    ada.close()
    database.execute("UPDATE duepost.worker SET gone_at = now() WHERE id = %(id)s", {"id": ada.id})
    assert [bob.open(), bob.open()] == [None, None]


def test_one_more_is_tried_after_a_quiet_time_and_a_refusal_makes_the_next_try_later(
    database: Database, ada: Worker, few: ScriptedRelay
) -> None:
    for _ in range(2):
        ada.open()
    with pytest.raises(NoPlace):
        ada.open()

    def try_again() -> object:
        database.execute(
            "UPDATE duepost.route SET raise_at = now() - interval '1 s', connections_at = now() - interval '1 h'"
            " WHERE connections IS NOT NULL"
        )
        with pytest.raises(NoPlace):
            ada.open()
        return database.execute("SELECT connections, raise_pause FROM duepost.route WHERE connections IS NOT NULL")

    assert try_again() == [(2, 240)]
    assert try_again() == [(2, 480)]
    assert few.surplus == 3
    few.limit = 3
    database.execute("UPDATE duepost.route SET raise_at = now() - interval '1 s' WHERE connections IS NOT NULL")
    assert ada.open() is None
    assert limit(database) == 3


def test_a_relay_that_takes_none_at_all_is_at_fault_and_nothing_is_learnt(
    database: Database, ada: Worker, few: ScriptedRelay
) -> None:
    few.limit = 0
    ruling = ada.open()
    assert ruling is not None
    assert (ruling.scope, ruling.phase, ruling.code) == (Scope.RELAY, Phase.BANNER, 421)
    assert limit(database) is None


def test_what_seemed_to_be_a_limit_as_the_relay_went_away_is_forgotten(
    database: Database, ada: Worker, few: ScriptedRelay
) -> None:
    for _ in range(2):
        ada.open()
    with pytest.raises(NoPlace):
        ada.open()
    few.limit = 0
    ada.close()
    ruling = ada.open()
    assert ruling is not None
    assert ruling.scope is Scope.RELAY
    assert limit(database) is None


@pytest.mark.parametrize(
    "away",
    [[close()], [reset()], [reply("554 5.7.1 no")], [reply("450 4.3.2 busy")]],
    ids=["closed", "reset", "554", "450"],
)
def test_a_refusal_without_a_reason_is_a_limit_once_others_have_worked_since(
    database: Database, ada: Worker, few: ScriptedRelay, away: list[Action]
) -> None:
    few.turn_away = away
    for _ in range(2):
        ada.open()
    with pytest.raises(NoPlace):
        ada.open()
    assert limit(database) is None
    ada.connections[0].deliver(letter())
    with pytest.raises(NoPlace):
        ada.open()
    assert limit(database) == 2


def test_a_refusal_without_a_reason_while_nothing_works_is_the_relays_fault_after_a_while(
    database: Database, ada: Worker, few: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    few.turn_away = [close()]
    for _ in range(2):
        ada.open()
    with pytest.raises(NoPlace):
        ada.open()
    monkeypatch.setattr(module, "UNCLEAR_FOR", 0.0)
    ruling = ada.open()
    assert ruling is not None
    assert ruling.scope is Scope.RELAY


def test_an_answer_over_another_workers_connection_counts(
    database: Database, ada: Worker, bob: Worker, few: ScriptedRelay
) -> None:
    few.turn_away = [close()]
    for _ in range(2):
        ada.open()
    with pytest.raises(NoPlace):
        bob.open()
    ada.connections[0].deliver(letter())
    ada.route.look()
    with pytest.raises(NoPlace):
        bob.open()
    assert limit(database) == 2


@pytest.mark.parametrize(
    "text",
    [
        "421 4.7.0 Too many concurrent SMTP connections; please try again later.",
        "421 4.3.2 The maximum number of concurrent connections has exceeded a limit, closing transmission channel",
        "421-4.7.0 Too many connections from your address,\n421 4.7.0 see https://example.com/limits",
    ],
)
@pytest.mark.parametrize("phase", [Phase.EHLO, Phase.MAIL])
def test_a_limit_that_is_said_later_is_one_too(
    database: Database, ada: Worker, few: ScriptedRelay, phase: Phase, text: str
) -> None:
    few.limit = None
    for _ in range(2):
        ada.open()
    few.on(phase, reply(text), close())
    with pytest.raises(NoPlace):
        ada.open()
    assert limit(database) == 2


def test_a_connection_that_was_closed_a_moment_ago_may_still_count(
    database: Database, ada: Worker, few: ScriptedRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LINGERING", 60.0)
    for _ in range(2):
        ada.open()
    ada.connections.pop().close()
    few.limit = 1
    for _ in range(module.TRIES - 1):
        with pytest.raises(NoPlace):
            ada.open()
        assert limit(database) is None
    with pytest.raises(NoPlace):
        ada.open()
    assert limit(database) == 1


def test_what_cannot_be_behind_a_dot_is_known_to_all_and_until_somebody_forgets_it(
    database: Database, ada: Worker, bob: Worker
) -> None:
    assert not ada.route.goes_ahead
    for worker in (ada, bob):
        worker.open()
        worker.route.look()
        assert worker.route.goes_ahead
    ada.route.stop_going_ahead("hung up on what lay behind a dot")
    assert not ada.route.goes_ahead
    ada.route.look()
    bob.route.look()
    assert not bob.route.goes_ahead
    assert state(database).ahead_off_because == "hung up on what lay behind a dot"
    database.execute("UPDATE duepost.route SET ahead_off_at = NULL, ahead_off_because = NULL")
    for worker in (ada, bob):
        worker.route.look()
        assert worker.route.goes_ahead


def test_pauses_double_while_refused_and_shrink_while_it_goes_well(database: Database) -> None:
    def slow_down() -> float | None:
        with database.transaction() as cursor:
            return routes.slow_down(cursor, RELAY, because="mail 450 4.7.1", jitter=1.0)

    def is_paused() -> object:
        return database.execute("SELECT duepost.is_route_blocked('marketing')")[0][0]

    def later(seconds: float) -> None:
        database.execute("UPDATE duepost.route SET paused_until = now() - make_interval(secs => %(s)s)", {"s": seconds})

    assert not is_paused()
    assert slow_down() == 1
    assert is_paused()
    assert slow_down() is None
    for expected in (2, 4, 8, 16, 32, 64, 128, 256, 300, 300):
        later(0)
        assert slow_down() == pytest.approx(expected, rel=0.01)
    later(300)
    assert not is_paused()
    assert slow_down() == pytest.approx(300, rel=0.01)
    later(900)
    assert slow_down() == pytest.approx(75, rel=0.01)
    later(3600)
    assert slow_down() == 1


def test_a_pause_from_before_the_clock_was_set_back_is_over(database: Database) -> None:
    with database.transaction() as cursor:
        routes.slow_down(cursor, RELAY, because="mail 450", jitter=1.0)
    database.execute("UPDATE duepost.route SET paused_until = now() + interval '1 h'")
    assert database.execute("SELECT duepost.is_route_blocked('marketing')") == [(False,)]


def test_an_operator_reads_what_a_relay_has_shown_of_itself(database: Database) -> None:
    assert route_facts(routes.states(database)) == []
    with database.transaction() as cursor:
        routes.slow_down(cursor, RELAY, because="mail 450 4.7.1", jitter=1.0)
    routes.stop_going_ahead(database, RELAY, "no reply to a dot that something lay behind")
    database.execute(
        "UPDATE duepost.route SET connections = 2, connections_at = '2026-01-02', raise_at = now(),"
        " connections_because = 'banner 421 4.7.0', target = 'relay.example.com:25' WHERE name = 'marketing'"
    )
    paused, allows, off = route_facts(routes.states(database))
    assert paused.startswith(
        "marketing (relay.example.com:25) has had too much of us (mail 450 4.7.1): nothing is sent before 2"
    )
    assert allows == (
        "marketing (relay.example.com:25) allows 2 connections (banner 421 4.7.0, learnt at 2026-01-02 00:00:00 UTC)"
    )
    assert "pipelining ahead is off since" in off
    assert off.endswith("take ?pipelining=ahead out of DUEPOST_SMTP_URL_MARKETING")

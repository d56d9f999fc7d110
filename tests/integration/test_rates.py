"""Rates: what is learnt of a relay's replies, by domain; how places are counted; what people see of it."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from actors.ruling import Phase
from duepost.commands import checks
from duepost.commands.health import Health
from duepost.why import why
from models import messages, rates
from models.rates import Held, Want
from tests.app_harness import Harness
from tests.integration.commands.shell import Shell
from tests.processes import duepost
from tests.relays import ScriptedRelay, reply

SLOW = "slow.example"
NONE = Held(0, 0)

#: What providers say of one domain, or of a mailbox there.
TOO_MUCH = [
    "421 4.7.28 Our system has detected an unusual rate of mail from your address",
    "421 4.7.28 Service not available, closing transmission channel",
    "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents it",
    "451 4.7.650 The mail server [203.0.113.4] has been temporarily rate limited due to IP reputation",
]


def learnt(harness: Harness) -> list[tuple[object, ...]]:
    return harness.query(
        "SELECT domain, learnt::float FROM duepost.destination WHERE learnt IS NOT NULL ORDER BY domain"
    )


def in_force(harness: Harness) -> float | None:
    limit = rates.limits(harness.database, "default").get(SLOW)
    return None if limit is None else limit.per_second


@pytest.mark.parametrize("said", TOO_MUCH)
def test_a_domain_that_has_too_much_gets_less_and_no_other_domain_does(
    harness: Harness, relay: ScriptedRelay, said: str
) -> None:
    relay.on(Phase.RCPT, reply(said), when=lambda line: SLOW in line)
    ids = [harness.schedule(address=f"ann@{domain}") for domain in (SLOW, "one.example", SLOW, "two.example", SLOW)]
    harness.deliver()
    assert [harness.ledger(each) for each in ids] == [[], ["sent"], [], ["sent"], []]
    # Halved once, however many of them said so.
    assert learnt(harness) == [(SLOW, 1.0)]
    assert harness.query("SELECT paused_until, circuit_open FROM duepost.route") == [(None, False)]
    assert harness.query("SELECT count(*) FROM duepost.suppression") == [(0,)]
    shell = Shell(harness.database.url)
    health, detail = shell.findings(status=None)["pace"]
    assert health == "warning"
    assert f"{SLOW} has had too much of us (rcpt 4" in detail
    assert SLOW in shell.run("top")


def test_what_is_said_of_several_domains_is_about_all_that_leaves_by_the_relay(
    harness: Harness, relay: ScriptedRelay
) -> None:
    relay.on(Phase.DOT, reply("454 4.7.0 Throttling failure: Maximum sending rate exceeded"))
    for number in range(2):
        harness.schedule(address=f"ann@domain-{number}.example")
    harness.deliver()
    assert harness.query("SELECT paused_until FROM duepost.route") == [(None,)]
    harness.schedule(address="ann@domain-2.example")
    harness.deliver()
    assert [number for _, number in learnt(harness)] == [1.0] * 3
    [(because,)] = harness.query("SELECT paused_because FROM duepost.route WHERE paused_until > now()")
    assert str(because).startswith("dot 454 4.7.0")


def test_a_domain_is_halved_once_in_a_while_down_to_a_floor_and_comes_back_by_steps(harness: Harness) -> None:
    def too_much() -> bool:
        with harness.database.transaction() as cursor:
            return rates.learn(cursor, "default", SLOW, seen=64.0, because="rcpt 421 4.7.28").is_new

    def pass_by(seconds: float) -> None:
        harness.query("UPDATE duepost.destination SET learnt_at = learnt_at - make_interval(secs => %(s)s)", s=seconds)

    assert [too_much(), too_much(), in_force(harness)] == [True, False, 32.0]
    pass_by(31)
    assert in_force(harness) == 38.4
    assert [too_much(), in_force(harness)] == [True, 19.2]
    # From there step by step to what there was at first, and on to twice that; then it is over.
    found = []
    while (pace := in_force(harness)) is not None:
        found.append(pace)
        pass_by(30)
    assert found[:3] == [19.2, 23.04, 27.648]
    assert len(found) == 11
    assert 64 < found[-1] < 128
    for _ in range(20):
        too_much()
        pass_by(31)
    assert in_force(harness) == 0.12
    # One that is still to come is from before the clock was set back.
    harness.query("UPDATE duepost.destination SET learnt_at = now() + interval '1 h'")
    assert in_force(harness) is None


def test_places_are_for_all_workers_together_and_those_of_a_dead_one_are_free_soon(harness: Harness) -> None:
    harness.query("SELECT duepost.set_rate(domain => 'slow.example', per_second => 3, connections => 2)")
    mine = harness.worker_session.worker_id
    [(other,)] = harness.query("INSERT INTO duepost.worker (host, pid) VALUES ('h', 1) RETURNING id")

    def take(worker_id: object, number: int, held: Held = NONE) -> int:
        want = Want((SLOW,), number)
        [granted] = rates.take_places(harness.database, "default", int(str(worker_id)), {SLOW: held}, [want])
        return granted

    assert [take(other, 1), take(mine, 5)] == [1, 1]
    # One of mine is over, and its place is not free yet: a second dialogue may begin, a third place is there.
    assert [take(mine, 5, Held(1, 0)), take(mine, 5, Held(2, 0)), take(mine, 1, NONE)] == [1, 0, 1]
    # An answer that was lost does no harm: what is told is all that counts.
    assert [take(mine, 5, NONE), take(mine, 5, NONE)] == [1, 1]
    harness.query("UPDATE duepost.worker SET gone_at = now() WHERE id = %(id)s", id=other)
    assert take(mine, 5, NONE) == 1
    harness.query("UPDATE duepost.worker SET gone_at = now() - interval '3 s' WHERE id = %(id)s", id=other)
    assert take(mine, 5, NONE) == 2
    assert take(other, 1) == 0, "who was called gone gets nothing"


def test_an_email_waits_as_scheduled_for_its_turn_and_expires_on_time(harness: Harness, relay: ScriptedRelay) -> None:
    harness.query("SELECT duepost.set_rate(domain => 'slow.example', per_second => 0.01, reason => 'a test')")
    first = harness.schedule(address=f"ann@{SLOW}")
    harness.deliver()
    assert harness.ledger(first) == ["sent"]
    later = harness.schedule(address=f"bob@{SLOW}")
    short = harness.schedule(address=f"eve@{SLOW}", expires_at=datetime.now(UTC) + timedelta(seconds=200))
    harness.deliver()
    assert len(relay.messages) == 1
    waiting = harness.query(
        "SELECT id, attempts, due_at > now(), due_at <= coalesce(expires_at, now() + interval '301 s')"
        " FROM duepost.scheduled_email ORDER BY id"
    )
    assert waiting == [(later, 0, True, True), (short, 0, True, True)]
    shell = Shell(harness.database.url)
    assert "waits for the rate of slow.example: one in 100 s" in shell.run("why", str(later))
    assert "2 emails" not in shell.run("retry", "--state", "scheduled", "--dry-run"), "waiting is no failure"
    listed = shell.run("rate", "list")
    assert "slow.example\t0.01" in listed
    assert "a test" in listed
    assert shell.run("rate", "remove", "SLOW.example").startswith("SLOW.example by default: no limit")
    assert shell.run("rate", "remove", SLOW, status=1).count("\n") == 1
    assert "NaN" not in shell.run("rate", "set", SLOW, "--per-second", "nan", status=2)
    assert "remove rate" in shell.run("journal")


def wait_for_slow(harness: Harness, count: int, *, late: str = "20 min") -> list[int]:
    """Emails that wait for the rate of a domain, long after their time, as senders leave them."""
    ids = [harness.schedule(address=f"ann{number}@{SLOW}") for number in range(count)]
    harness.query(
        "UPDATE duepost.item SET scheduled_at = scheduled_at - %(late)s::interval, due_at = now() + interval '200 s',"
        " last_error = 'rate: waits for the rate of slow.example: one in 100 s' WHERE id = ANY (%(ids)s)",
        late=late, ids=ids,
    )  # fmt: skip
    return ids


def test_what_waits_for_a_rate_is_counted_by_route_and_domain(harness: Harness) -> None:
    harness.query("SELECT duepost.set_rate(domain => 'slow.example', per_second => 0.01, connections => 2)")
    harness.query("SELECT duepost.set_rate(per_second => 2.5)")
    wait_for_slow(harness, 3)
    due = [harness.schedule() for _ in range(5)]
    harness.schedule(scheduled_at=datetime.now(UTC) + timedelta(days=1))
    harness.query("UPDATE duepost.item SET due_at = now() - interval '1 min' WHERE id = ANY (%(ids)s)", ids=due)
    harness.query(
        "UPDATE duepost.item SET due_at = now() + interval '1 min', last_error = 'rate: waits for the rate of the route"
        " default: 2.5 a second' WHERE id = %(id)s",
        id=due[0],
    )
    # One is under way, and another one failed for a reason of its own.
    harness.query(
        "UPDATE duepost.item SET last_error = 'rcpt: 451 rate: waits for the rate' WHERE id = %(id)s", id=due[1]
    )
    assert harness.claim(due[2]) is not None
    route, domain = rates.states(harness.database)
    assert (route.domain, route.waiting, route.seconds) == ("", 4, 2.0)
    assert (domain.domain, domain.waiting, domain.seconds) == (SLOW, 3, 300.0)
    assert 1200 <= (domain.late_seconds or 0) < 1500
    assert (domain.connections, domain.learnt, domain.current) == (2, None, 0.0)


def test_the_doctor_and_why_name_the_rate_that_is_too_small_and_the_command(harness: Harness) -> None:
    harness.query("SELECT duepost.set_rate(domain => 'slow.example', per_second => 0.01)")
    first, *_ = wait_for_slow(harness, 3, late="1 min")
    health, words = checks.delivery(harness.database)
    assert health is Health.WARNING
    harness.query("UPDATE duepost.item SET scheduled_at = scheduled_at - interval '20 min'")
    health, words = checks.delivery(harness.database)
    assert health is Health.FAILED
    said = "3 emails wait for the rate of slow.example, one in 100 s, which takes 5 min"
    assert said in words
    assert "the first is 21 min late; duepost rate set slow.example --per-second N lets more leave" in words
    assert checks.delivery(harness.database, is_disabled=True)[1].count("rate of") == 0
    shell = Shell(harness.database.url)
    told = shell.run("why", str(first))
    assert said in told
    assert "duepost rate set slow.example --per-second N lets more leave" in told
    assert "\t3\t" in shell.run("rate", "list")
    assert "3 waiting, which takes 5 min" in shell.run("top")
    # What was learnt of replies is forgotten by another command.
    harness.query("SELECT duepost.remove_rate(domain => 'slow.example')")
    with harness.database.transaction() as cursor:
        rates.learn(cursor, "default", SLOW, seen=0.2, because="rcpt 421 4.7.28")
    _, words = checks.delivery(harness.database)
    assert "as the relay has had too much (rcpt 421 4.7.28)" not in words, "three take three seconds"
    harness.query("UPDATE duepost.destination SET learnt = 0.1, learnt_from = 64")
    _, words = checks.delivery(harness.database)
    assert "as the relay has had too much (rcpt 421 4.7.28), which takes 30 s" in words
    assert "duepost rate remove slow.example forgets what was learnt" in words


def next_of(harness: Harness, item_id: int) -> str:
    found = why(harness.database, item_id)
    assert found is not None
    return found.next


def test_why_says_that_more_is_due_on_the_route_than_may_leave(harness: Harness) -> None:
    first, *_ = [harness.schedule() for _ in range(30)]
    assert "rate" not in next_of(harness, first)
    harness.query("SELECT duepost.set_rate(per_second => 0.1)")
    said = next_of(harness, first)
    assert (
        "30 emails wait for the rate of the route default, one in 10 s, which takes 5 min: see duepost rate list"
        in said
    )
    later = harness.schedule(scheduled_at=datetime.now(UTC) + timedelta(days=1))
    assert "rate" not in next_of(harness, later)


def test_the_forecast_says_where_a_rate_is_too_small_for_what_falls_due(harness: Harness) -> None:
    midnight = (datetime.now(UTC) + timedelta(hours=5)).replace(minute=0, second=0, microsecond=0)
    for domain in (SLOW, "other.example"):
        for _ in range(10):
            harness.schedule(address=f"ann@{domain}", scheduled_at=midnight)
    harness.schedule(address=f"ann@{SLOW}", scheduled_at=midnight + timedelta(hours=1))
    harness.schedule(users=["7"], scheduled_at=midnight)
    assert rates.jams(harness.database, 24) == []
    harness.query("SELECT duepost.set_rate(domain => 'Slow.Example', per_second => 0.002)")
    harness.query("SELECT duepost.set_rate(per_second => 1)")
    [jam] = rates.jams(harness.database, 24)
    # Ten take 5,000 s, and the eleventh falls due meanwhile.
    assert (jam.domain, jam.begins, jam.items, jam.is_least) == (SLOW, midnight, 11, False)
    assert jam.ends - jam.begins == timedelta(seconds=5500)
    assert rates.jams(harness.database, 3) == []
    shell = Shell(harness.database.url)
    told = duepost("forecast", "--json", env=shell.env)
    assert [each["items"] for each in json.loads(told.stdout)] == [21, 1]
    assert told.stderr.count("\n") == 1
    assert "At one in 500 s the 11 emails that are due from" in told.stderr
    assert "take 91 min" in told.stderr
    assert "duepost rate set slow.example --per-second N changes it" in told.stderr
    # What is overdue counts from now on; of the whole route, users' emails count too.
    harness.query("UPDATE duepost.item SET due_at = now() - interval '3 h'")
    harness.query("SELECT duepost.set_rate(per_second => 0.001)")
    whole, slow = rates.jams(harness.database, 24)
    assert (whole.domain, whole.items, slow.items) == ("", 22, 11)
    assert (whole.ends - whole.begins, slow.ends - slow.begins) == (timedelta(seconds=22000), timedelta(seconds=5500))
    assert abs(whole.begins - datetime.now(UTC)) < timedelta(minutes=5)


def test_what_waits_for_an_endpoints_rate_is_named_with_its_command(harness: Harness) -> None:
    harness.query(
        "SELECT duepost.set_endpoint(name => 'ops.chat-1', format => 'slack', url => 'https://hooks.example.com/x')"
    )
    assert harness.query("SELECT duepost.set_rate(route => 'endpoint:ops.chat-1', per_second => 0.1)") == [("set",)]
    assert harness.query("SELECT duepost.set_rate(route => 'endpoint:ops.chat-1', per_second => 0.1)") == [("already",)]
    rows = harness.query(
        "SELECT duepost.schedule_message(kind => 'event', endpoint => 'ops.chat-1',"
        " payload => jsonb_build_object('text', 'Hi')) FROM generate_series(1, 30)"
    )
    ids = [each for (each,) in rows]
    harness.query(
        "UPDATE duepost.item SET scheduled_at = now() - interval '20 min', due_at = now() + interval '200 s',"
        " last_error = 'rate: waits for the rate of the route endpoint:ops.chat-1: one in 10 s' WHERE id <> %(id)s",
        id=ids[0],
    )
    [state] = rates.states(harness.database)
    assert (state.route, state.domain, state.per_second, state.waiting) == ("endpoint:ops.chat-1", "", 0.1, 30)
    shell = Shell(harness.database.url)
    said = "30 messages wait for the rate of the route endpoint:ops.chat-1, one in 10 s, which takes 5 min"
    health, words = checks.delivery(harness.database)
    assert health is Health.FAILED
    assert said in words
    assert "duepost rate set --route endpoint:ops.chat-1 --per-second N lets more leave" in words
    for each in ids[:2]:
        assert said in shell.run("why", str(each))
    assert "endpoint:ops.chat-1\t(all)\t0.1" in shell.run("rate", "list")
    assert "rate of endpoint:ops.chat-1" in shell.run("top")
    harness.query("UPDATE duepost.item SET due_at = date_trunc('hour', now(), 'UTC') + interval '2 h'")
    harness.query("SELECT duepost.set_rate(route => 'endpoint:ops.chat-1', per_second => 0.001)")
    [jam] = rates.jams(harness.database, 24)
    assert (jam.route, jam.domain, jam.items) == ("endpoint:ops.chat-1", "", 30)
    told = shell.run("rate", "remove", "--route", "endpoint:ops.chat-1")
    assert told == "The route endpoint:ops.chat-1: no limit from now on.\n"
    # One that is removed takes its rate with it.
    shell.run("rate", "set", "--route", "endpoint:ops.chat-1", "--connections", "2")
    harness.query("SELECT duepost.remove_endpoint('ops.chat-1')")
    assert rates.states(harness.database) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--route", "endpoint:none"], "route: there is no endpoint of this name"),
        (["--route", "endpoint:"], "route: must be the name of a relay, such as default, or endpoint:NAME"),
        (["--route", "endpoint:posts"], "route: a function of this database has no rate"),
        (["--route", "Endpoint:chat"], "route: must be the name of a relay, such as default, or endpoint:NAME"),
        (["a.example", "--route", "endpoint:chat"], "domain: must not be given: an endpoint has none"),
    ],
)
def test_what_is_no_endpoint_with_a_rate_is_refused_in_a_line(
    harness: Harness, arguments: list[str], words: str
) -> None:
    harness.query(
        "SELECT duepost.set_endpoint(name => 'chat', format => 'slack', url => 'https://hooks.example.com/x')"
    )
    harness.query(
        "INSERT INTO duepost.endpoint (name, format, function) VALUES ('posts', 'function', 'app.post(bigint)')"
    )
    said = Shell(harness.database.url).run("rate", "set", *arguments, "--per-second", "1", status=2)
    assert said.count("\n") == 1
    assert words in said
    assert rates.states(harness.database) == []


def move_clock(harness: Harness, by: timedelta) -> None:
    """What a move of the database's clock makes of the times that were written before it, as far as rates read them."""
    harness.query(
        """
        UPDATE duepost.item SET due_at = due_at - %(by)s, scheduled_at = scheduled_at - %(by)s;
        UPDATE duepost.destination
        SET turns_until = turns_until - %(by)s, urgent_at = urgent_at - %(by)s, learnt_at = learnt_at - %(by)s;
        UPDATE duepost.rate SET set_at = set_at - %(by)s;
        UPDATE dramatiq.queue SET eta = eta - %(by)s, mtime = mtime - %(by)s;
        """,
        by=by,
    )
    if by < timedelta():
        messages.follow_clock_back(harness.database)
        rates.follow_clock_back(harness.database, -by.total_seconds())


@pytest.mark.parametrize("hours", [-12, -1, 1, 12])
def test_rates_hold_when_the_databases_clock_is_moved_and_nothing_waits_for_hours(
    harness: Harness, relay: ScriptedRelay, hours: int
) -> None:
    harness.query("SELECT duepost.set_rate(domain => 'slow.example', per_second => 0.01)")
    moment = datetime.now(UTC) - timedelta(days=2)
    ids = [harness.schedule(address=f"ann{number}@{SLOW}", scheduled_at=moment) for number in range(3)]
    other = harness.schedule(address="ann@fast.example", scheduled_at=moment)
    reserved = harness.schedule(address=f"late@{SLOW}", scheduled_at=datetime.now(UTC) + timedelta(days=30))
    harness.query("UPDATE duepost.item SET due_at = now() WHERE id <> %(id)s", id=reserved)
    # One who waits is put off by hand; its reason stays.
    harness.query("UPDATE duepost.item SET last_error = 'rate: waits for the rate of slow.example: x'")
    harness.deliver()
    assert harness.ledger(other) == ["sent"]
    assert len(relay.messages) == 2, "in a hundred seconds one goes there"
    before = harness.query("SELECT learnt FROM duepost.destination WHERE domain = %(d)s", d=SLOW)
    move_clock(harness, timedelta(hours=hours))
    waiting = harness.query(
        "SELECT count(*) FROM duepost.item WHERE id = ANY (%(ids)s) AND due_at <= now() + interval '301 s'", ids=ids
    )
    assert waiting == [(2,)], "nothing waits until the clock comes round again"
    assert harness.query(
        "SELECT due_at > now() + interval '28 days' FROM duepost.item WHERE id = %(id)s", id=reserved
    ) == [(True,)]
    # Nobody gets a place before its time: the hundred seconds are counted by the worker's own clock.
    harness.query("UPDATE duepost.item SET due_at = now() WHERE id = ANY (%(ids)s)", ids=ids)
    harness.deliver()
    assert len(relay.messages) == 2
    [(soon,)] = harness.query(
        "SELECT bool_and(due_at BETWEEN now() AND now() + interval '301 s') FROM duepost.item WHERE id = ANY (%(ids)s)",
        ids=ids,
    )
    assert soon is True
    assert harness.query("SELECT learnt FROM duepost.destination WHERE domain = %(d)s", d=SLOW) == before
    mine = harness.worker_session.worker_id
    took = rates.take_places(harness.database, "default", mine, {SLOW: Held(1, 0)}, [Want((SLOW,), 5, 5)])
    assert took == [0]
    assert rates.take_places(harness.database, "default", mine, {SLOW: NONE}, [Want((SLOW,), 5, 5)]) == [1]


def test_turns_are_moved_page_by_page_and_each_once(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "PAGE", 2)
    ids = wait_for_slow(harness, 5, late="2 h")
    move_clock(harness, timedelta(hours=-1))
    rates.follow_clock_back(harness.database, 3600)
    rows = harness.query(
        "SELECT id FROM duepost.item WHERE due_at BETWEEN now() + interval '100 s' AND now() + interval '201 s'"
    )
    assert sorted(int(str(each)) for (each,) in rows) == ids


def test_wants_of_one_question_share_what_there_is(harness: Harness) -> None:
    mine = harness.worker_session.worker_id
    wants = [Want(("", SLOW), 2), Want(("",), 9), Want(("", SLOW), 5)]

    def take() -> list[int]:
        return rates.take_places(harness.database, "default", mine, {"": NONE, SLOW: NONE}, wants)

    assert take() == [2, 9, 5], "nothing is limited"
    harness.query("SELECT duepost.set_rate(domain => 'slow.example', per_second => 3)")
    assert take() == [2, 9, 1]
    harness.query("SELECT duepost.set_rate(per_second => 5)")
    assert take() == [2, 3, 0]

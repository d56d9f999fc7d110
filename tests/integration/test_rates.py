"""Rates: what is learnt of a relay's replies, by domain; how places are counted; what people see of it."""

from datetime import UTC, datetime, timedelta

import pytest

from actors.ruling import Phase
from models import rates
from models.rates import Held, Want
from tests.app_harness import Harness
from tests.integration.commands.shell import Shell
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

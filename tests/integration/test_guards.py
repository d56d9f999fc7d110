"""A kind's guard is asked before an item is sent: no means obsolete, and what it fails of is that item's alone."""

import psycopg2
import psycopg2.errors
import pytest

from actors.delivery.conditions import SLOW, Speeds
from actors.delivery.lanes import Lane
from tests.app_harness import Harness
from tests.relays import ScriptedRelay


def guard(harness: Harness, body: str, *, kind: str = "reminder", name: str = "app.still_wanted") -> None:
    """Registers a guard with this body for a kind."""
    harness.query("CREATE SCHEMA IF NOT EXISTS app")
    harness.query("CREATE TABLE IF NOT EXISTS app.asked (id bigint, users text[], context jsonb)")
    body = body.replace("%", "%%")
    harness.query(
        f"CREATE OR REPLACE FUNCTION {name}(id bigint, users text[], context jsonb) RETURNS boolean LANGUAGE plpgsql"
        f" AS $f$ BEGIN {body} END $f$"
    )
    harness.query(
        "INSERT INTO duepost.kind (kind, guard) VALUES (%(kind)s, %(name)s)"
        " ON CONFLICT (kind) DO UPDATE SET guard = excluded.guard",
        kind=kind, name=name,
    )  # fmt: skip


def sent_to(relay: ScriptedRelay) -> list[str]:
    return sorted(each for message in relay.messages for each in message.recipients)


def refused(harness: Harness, name: str) -> str:
    """With what a guard of this name is refused."""
    with pytest.raises(psycopg2.errors.InvalidParameterValue) as raised:
        harness.query("INSERT INTO duepost.kind (kind, guard) VALUES ('k', %(name)s)", name=name)
    return str(raised.value).partition("\n")[0]


def test_no_means_obsolete_and_the_ledger_names_the_guard(each_harness: Harness, relay: ScriptedRelay) -> None:
    harness = each_harness
    guard(harness, "RETURN id % 2 = 0;")
    ids = [harness.schedule(kind="reminder", address=f"a{number}@example.com") for number in range(4)]
    harness.deliver()
    assert {each: harness.ledger(each) for each in ids} == {
        each: ["sent" if each % 2 == 0 else "obsolete"] for each in ids
    }
    assert len(relay.messages) == 2
    replies = harness.query("SELECT DISTINCT reply FROM duepost.delivery WHERE outcome = 'obsolete'")
    assert replies == [("the guard app.still_wanted said no",)]
    assert harness.query("SELECT count(*) FROM duepost.in_hand") == [(0,)]
    assert harness.query("SELECT outcome FROM duepost.status(%(id)s)", id=ids[0]) == [
        ("obsolete" if ids[0] % 2 else "sent",)
    ]


def test_it_is_told_whom_the_item_is_for_and_what_it_says(harness: Harness) -> None:
    guard(harness, "INSERT INTO app.asked VALUES (id, users, context); RETURN true;")
    harness.recipient("1", "ann@example.com")
    harness.recipient("2", "bob@example.com")
    harness.template("t", subject="s", text="b")
    both = harness.schedule(kind="reminder", users=["2", "1"], template="t", context={"event": "Concert"})
    plain = harness.schedule(kind="reminder")
    harness.deliver()
    assert harness.query("SELECT id, users, context FROM app.asked ORDER BY id") == [
        (both, ["1", "2"], {"event": "Concert"}), (plain, [], {}),
    ]  # fmt: skip
    assert harness.ledger(both) == ["sent", "sent"]


def test_it_is_told_of_the_items_of_a_batch(harness: Harness) -> None:
    guard(harness, "INSERT INTO app.asked VALUES (id, users, context); RETURN true;", kind="digest")
    harness.template("t", subject="s", text="{{ items | length }}")
    for number in (1, 2):
        harness.query(
            "SELECT duepost.add_to_batch('b', %(item)s::jsonb, 'digest', 'ann@example.com',"
            " template => 't', wait => '0')",
            item=str(number),
        )
    harness.deliver()
    assert harness.query("SELECT context FROM app.asked") == [({"items": [1, 2]},)]
    assert harness.query("SELECT outcome FROM duepost.delivery") == [("sent",)]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("RAISE EXCEPTION 'no such order';", "P0001: no such order"),
        ("RETURN NULL;", "it gave NULL"),
        ("PERFORM pg_sleep(20); RETURN true;", "it took longer than 2 s"),
        ("RETURN 1 / 0 = 1;", "22012: division by zero"),
    ],
    ids=["raises", "gives NULL", "takes too long", "divides by zero"],
)
def test_what_it_fails_of_is_a_retry_of_that_item_alone(
    harness: Harness, relay: ScriptedRelay, body: str, said: str
) -> None:
    guard(harness, body)
    guard(harness, "RETURN true;", kind="other", name="app.other")
    bad = harness.schedule(kind="reminder", address="bad@example.com")
    good = [harness.schedule(kind=kind, address=f"{kind}@example.com") for kind in ("other", "welcome")]
    harness.deliver()
    assert sent_to(relay) == ["other@example.com", "welcome@example.com"]
    assert [harness.ledger(each) for each in good] == [["sent"], ["sent"]]
    row = harness.row(bad)
    assert (row["state"], row["attempts"]) == ("scheduled", 1)
    assert str(row["last_error"]).startswith("guard: app.still_wanted: ")
    assert said in str(row["last_error"])
    [attempt] = harness.attempts(bad)
    assert (attempt["verdict"], attempt["phase"]) == ("retry", "guard")
    pause = harness.query(
        "SELECT extract(epoch FROM i.due_at - a.finished_at)::float FROM duepost.item AS i"
        " JOIN duepost.attempt AS a ON a.email_id = i.id"
    )
    assert 11 < float(str(pause[0][0])) < 19


def test_one_that_is_gone_is_a_retry_and_works_once_it_is_back(harness: Harness, relay: ScriptedRelay) -> None:
    guard(harness, "RETURN true;")
    email_id = harness.schedule(kind="reminder")
    harness.query("ALTER FUNCTION app.still_wanted RENAME TO elsewhere")
    harness.deliver()
    assert relay.messages == []
    assert "it is gone" in str(harness.row(email_id)["last_error"])
    harness.query("ALTER FUNCTION app.elsewhere RENAME TO still_wanted")
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]


def test_what_it_has_written_stays_with_the_claim_and_goes_with_its_failure(harness: Harness) -> None:
    guard(harness, "INSERT INTO app.asked VALUES (id); RETURN id % 2 = 0 OR 1 / (id % 2 - 1) = 0;")
    ids = [harness.schedule(kind="reminder") for _ in range(2)]
    harness.deliver()
    assert harness.query("SELECT id FROM app.asked") == [(each,) for each in ids if each % 2 == 0]


def test_it_is_asked_again_for_each_attempt(harness: Harness, relay: ScriptedRelay) -> None:
    guard(harness, "RETURN (SELECT count(*) FROM app.asked) = 0;")
    email_id = harness.schedule(kind="reminder", scheduled_at="2999-01-01T00:00:00Z")
    harness.query("INSERT INTO app.asked VALUES (1)")
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["obsolete"]


def test_a_message_has_a_guard_too(harness: Harness) -> None:
    guard(
        harness, "INSERT INTO app.asked VALUES (id, users, context); RETURN context ->> 'text' <> 'old';", kind="post"
    )
    harness.query("CREATE TABLE app.posts (id bigint)")
    harness.query(
        "CREATE FUNCTION app.post(bigint, jsonb) RETURNS void LANGUAGE sql AS 'INSERT INTO app.posts VALUES ($1)'"
    )
    harness.query("SELECT duepost.set_endpoint('posts', 'function', function => 'app.post')")
    ids = [
        harness.query("SELECT duepost.schedule_message('post', 'posts', %(p)s::jsonb, users => ARRAY['7'])", p=payload)[
            0
        ][0]
        for payload in ('{"text": "old"}', '{"text": "new"}')
    ]
    harness.deliver()
    rows = harness.query("SELECT email_id, outcome, nullif(reply, '') FROM duepost.delivery ORDER BY 1")
    assert rows == [(ids[0], "obsolete", "the guard app.still_wanted said no"), (ids[1], "sent", None)], rows
    assert harness.query("SELECT id FROM app.posts") == [(ids[1],)]
    assert harness.query("SELECT DISTINCT users FROM app.asked") == [(["7"],)]


def test_what_no_worker_could_ask_is_refused_when_the_kind_is_set(harness: Harness) -> None:
    harness.query("CREATE SCHEMA app")
    harness.query("CREATE FUNCTION app.text(bigint, text[], jsonb) RETURNS text LANGUAGE sql AS $$ SELECT 'x' $$")
    harness.query("CREATE FUNCTION app.other(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT true'")
    harness.query("CREATE FUNCTION app.many(bigint, text[], jsonb) RETURNS SETOF boolean LANGUAGE sql AS 'SELECT true'")
    assert refused(harness, "still_wanted") == "guard: must be a name with its schema, such as app.still_wanted"
    assert refused(harness, "app.none") == "guard: there is none of this name that takes (bigint, text[], jsonb)"
    assert refused(harness, "app.other").startswith("guard: there is none of this name")
    assert refused(harness, "app.text") == "guard: must return boolean"
    assert refused(harness, "app.many") == "guard: must not return a set"
    assert refused(harness, "duepost.has_claim").startswith("guard: there is none of this name")


def test_an_item_that_somebody_holds_meanwhile_is_left_alone(harness: Harness, relay: ScriptedRelay) -> None:
    guard(harness, "PERFORM duepost.clear_scheduled_email(id); RETURN true;")
    email_id = harness.schedule(kind="reminder")
    harness.deliver()
    assert harness.ledger(email_id) == ["cleared"]
    assert relay.messages == []


def test_one_that_is_kept_from_others_is_due_again_if_its_worker_ends(harness: Harness) -> None:
    guard(harness, "RETURN true;")
    email_id = harness.schedule(kind="reminder")
    due_at = harness.row(email_id)["due_at"]
    assert harness.query(
        "SELECT id, claim FROM duepost.claim_emails_v3(ARRAY[%(id)s]::bigint[], 1, 'default')", id=email_id
    ) == [(email_id, None)]
    assert 5 < harness.due_in(email_id) <= 10
    harness.make_due()
    harness.deliver()
    assert harness.ledger(email_id) == ["sent"]
    assert due_at is not None


def test_a_kind_without_a_guard_is_claimed_as_before(harness: Harness) -> None:
    guard(harness, "RETURN true;")
    plain, asked = harness.schedule(), harness.schedule(kind="reminder")
    rows = harness.query(
        "SELECT id, claim IS NOT NULL FROM duepost.claim_emails_v3(ARRAY[%(a)s, %(b)s]::bigint[], 1, 'default')",
        a=plain, b=asked,
    )  # fmt: skip
    assert rows == [(plain, True), (asked, False)]


def test_a_slow_kind_has_one_place_and_a_lane_of_its_own() -> None:
    speeds = Speeds()
    assert [speeds.admit("slow") for _ in range(2)] == [0.0, 0.0]
    assert speeds.admit("slow") >= 1.0
    speeds.ended("slow", 2.0)
    assert speeds.lane("slow") is Lane.SLOW_CONDITIONS
    assert speeds.admit("slow") >= 2.0
    assert speeds.lane("quick") is Lane.CONDITIONS
    assert speeds.admit("quick") == 0.0
    speeds.ended("quick", SLOW / 2)
    assert [speeds.admit("quick") for _ in range(60)] == [0.0] * 60


def test_beside_a_slow_guard_the_others_are_sent(harness: Harness, relay: ScriptedRelay) -> None:
    guard(harness, "PERFORM pg_sleep(20); RETURN true;", kind="slow", name="app.slow")
    guard(harness, "RETURN true;", kind="quick", name="app.quick")
    slow = [harness.schedule(kind="slow", address=f"s{number}@example.com") for number in range(3)]
    for kind in ("quick", "welcome"):
        harness.schedule(kind=kind, address=f"{kind}@example.com")
    harness.deliver()
    assert sent_to(relay) == ["quick@example.com", "welcome@example.com"]
    assert [harness.ledger(each) for each in slow] == [[]] * len(slow)
    assert harness.query("SELECT count(*) FROM duepost.in_hand") == [(0,)]
    assert harness.query("SELECT count(*) FROM duepost.item WHERE due_at <= now()") == [(0,)]

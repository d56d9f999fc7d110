"""Priorities: what is urgent overtakes all else, what is bulk keeps nothing waiting, and nothing stands still."""

from collections import Counter

import psycopg2.errors
import pytest

from actors.delivery.due_line import DueLine
from duepost import operations
from duepost.operations import Order
from models import emails
from models.emails import BULK_PRIORITY, LATE_PRIORITY, PRIORITY, URGENT_PRIORITY
from models.words import Priority
from tests.app_harness import Harness
from tests.relays import ScriptedRelay

ORDER = Order("ann", "command", "after the outage")


def fill(harness: Harness, kind: str, count: int, *, priority: str | None = None, late: str = "1 h") -> list[int]:
    """Emails of a kind that have been due for a while, in one transaction; their ids in due order."""
    rows = harness.query(
        "SELECT duepost.schedule_email(kind => %(kind)s, address => 'a' || i || '@example.com', subject => 's',"
        " body_text => 'b', priority => %(priority)s) FROM generate_series(1, %(count)s) AS i",
        kind=kind, count=count, priority=priority,
    )  # fmt: skip
    ids = [int(str(email_id)) for (email_id,) in rows]
    harness.query("UPDATE duepost.item SET due_at = now() - %(late)s::interval WHERE kind = %(k)s", late=late, k=kind)
    return ids


def claimed(harness: Harness, size: int, times: int = 1) -> Counter[str]:
    """Of which kinds a worker claims how many."""
    line, worker_id = DueLine(), harness.worker_session.worker_id
    found: Counter[str] = Counter()
    for _ in range(times):
        claim = line.claim(
            size, lambda places, _: emails.claim_due(harness.database, size, worker_id, "default", places)
        )
        assert claim.found <= size
        found.update(email.kind for email in claim.emails)
    return found


def test_an_email_has_its_own_priority_or_that_of_its_kind(harness: Harness) -> None:
    harness.query("INSERT INTO duepost.kind (kind, priority) VALUES ('reset', 'urgent'), ('digest', 'bulk')")
    for kind, own, expected in (
        ("welcome", None, Priority.NORMAL),
        ("welcome", "bulk", Priority.BULK),
        ("reset", None, Priority.URGENT),
        ("digest", None, Priority.BULK),
        ("digest", "normal", Priority.NORMAL),
    ):
        email_id = harness.schedule(kind=kind, **({} if own is None else {"priority": own}))
        assert harness.query("SELECT priority FROM duepost.item WHERE id = %(id)s", id=email_id) == [(expected,)]
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match="priority: must be urgent, normal or bulk"):
        harness.schedule(priority="high")


def test_what_is_urgent_is_claimed_first_then_normal_seven_times_as_often_as_bulk(harness: Harness) -> None:
    fill(harness, "digest", 200, priority="bulk", late="2 h")
    fill(harness, "news", 200)
    fill(harness, "reset", 5, priority="urgent", late="1 s")
    found = claimed(harness, 32)
    assert found["reset"] == 5
    found = claimed(harness, 32, times=4)
    # Of each claim three to five are bulk.
    assert sum(found.values()) == 128
    assert 4 * 3 <= found["digest"] <= 4 * 5


def test_a_line_alone_has_the_whole_claim_and_a_flood_of_urgent_ones_leaves_an_eighth(harness: Harness) -> None:
    fill(harness, "digest", 100, priority="bulk")
    assert claimed(harness, 32) == {"digest": 32}
    fill(harness, "reset", 100, priority="urgent")
    found = claimed(harness, 32)
    assert found["digest"] in (4, 5)
    assert found["reset"] == 32 - found["digest"]
    # One that is alone goes before all others, however small a claim is.
    harness.query("DELETE FROM duepost.item WHERE kind = 'reset'")
    fill(harness, "reset", 1, priority="urgent")
    assert claimed(harness, 1) == {"reset": 1}


def test_messages_in_the_queue_have_the_order_of_their_priorities(harness: Harness) -> None:
    fill(harness, "digest", 2, priority="bulk")
    fill(harness, "news", 2)
    harness.schedule(kind="welcome")
    fill(harness, "reset", 2, priority="urgent")
    harness.enqueue()
    rows = harness.query(
        "SELECT i.kind, m.priority FROM dramatiq.queue AS m JOIN duepost.item AS i ON i.id = m.key"
        " ORDER BY m.priority, i.id"
    )
    assert rows == [
        ("reset", URGENT_PRIORITY), ("reset", URGENT_PRIORITY), ("welcome", PRIORITY),
        ("news", LATE_PRIORITY), ("news", LATE_PRIORITY), ("digest", BULK_PRIORITY), ("digest", BULK_PRIORITY),
    ]  # fmt: skip


def test_beside_enough_that_waits_only_what_is_urgent_is_enqueued(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emails, "are_enough_waiting", lambda *_: True)
    harness.schedule()
    urgent = harness.schedule(priority="urgent")
    harness.enqueue()
    assert harness.query("SELECT key FROM dramatiq.queue") == [(urgent,)]


def test_the_lookout_finds_what_is_urgent_first_and_on_busy_routes_nothing_else(harness: Harness) -> None:
    bulk = harness.schedule(priority="bulk")
    plain = harness.schedule()
    urgent = harness.schedule(priority="urgent")
    harness.query("UPDATE duepost.item SET due_at = now()")
    found = emails.due_now(harness.database, ["default"])["default"]
    assert found == [(urgent, Priority.URGENT), (plain, Priority.NORMAL), (bulk, Priority.BULK)]
    assert emails.due_now(harness.database, [], ["default"]) == {"default": [(urgent, Priority.URGENT)]}
    assert emails.oldest_due(harness.database, "default") == urgent


def test_what_is_pending_of_a_kind_follows_when_an_operator_changes_its_priority(harness: Harness) -> None:
    fill(harness, "digest", 3)
    fill(harness, "news", 2)
    own = harness.schedule(kind="digest", priority="urgent")
    told: list[int] = []
    assert operations.set_priority(harness.database, ORDER, "digest", Priority.BULK, told.append) == 3
    assert told == [3]
    rows = harness.query("SELECT kind, priority, count(*) FROM duepost.item GROUP BY 1, 2 ORDER BY 1, 2")
    assert rows == [("digest", -1, 1), ("digest", 1, 3), ("news", 0, 2)]
    assert harness.query("SELECT id FROM duepost.item WHERE priority = -1") == [(own,)]
    harness.schedule(kind="digest")
    assert harness.query("SELECT count(*) FROM duepost.item WHERE priority = 1") == [(4,)]
    [(action, asked, done)] = harness.query("SELECT action, asked, done FROM duepost.operator_action")
    assert (action, asked, done) == ("set_priority", {"kind": "digest", "priority": "bulk"}, 1)


def test_emails_of_every_priority_are_delivered(harness: Harness, relay: ScriptedRelay) -> None:
    ids = [harness.schedule(priority=priority) for priority in ("bulk", "normal", "urgent")]
    harness.deliver()
    assert [harness.ledger(email_id) for email_id in ids] == [["sent"]] * 3

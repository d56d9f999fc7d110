"""Whatever one email's data does, it fails that email, with a reason; the others are sent, and once."""

import json
import logging
from collections import Counter, deque
from collections.abc import Sequence

import psycopg2
import pytest

from actors.delivery.dispatcher import Dispatcher
from actors.delivery.job import Job, OwnJob
from actors.queue.consumer import ClaimedMessage
from models import emails
from tests.app_harness import Harness
from tests.relays import ScriptedRelay

#: Contexts that PostgreSQL stores, as JSON, and what a worker says of them.
POISONS = {
    "digits": ('{"n": 1e5000}', "context: ValueError"),
    "negative digits": ('{"a": [{"n": -1e5000}]}', "context: ValueError"),
    "beyond a double": ('{"n": ' + "9" * 400 + ".5}", "context: OverflowError"),
    "deep lists": ('{"n": ' + "[" * 3000 + "]" * 3000 + "}", "context: RecursionError"),
    "deep objects": ('{"a":' * 2000 + "1" + "}" * 2000, "context: RecursionError"),
    "a list": ("[1, 2]", "context: TypeError"),
    "a number": ("1e5000", "context: ValueError"),
}


def received(relay: ScriptedRelay) -> Counter[str]:
    return Counter(recipient for message in relay.messages for recipient in message.recipients)


def row_of(harness: Harness, email_id: int) -> dict[str, object]:
    """What a person looks at, without the content: a test cannot read that either."""
    [(row,)] = harness.query(
        "SELECT to_jsonb(e) - 'context' - 'headers' FROM duepost.scheduled_email AS e WHERE id = %(id)s", id=email_id
    )
    assert isinstance(row, dict)
    return row


def poison(harness: Harness, content: str, column: str = "context") -> int:
    """One that was stored by a release, or by a hand, that did not look."""
    harness.template("hello", subject="Hello", text="Hello")
    email_id = harness.schedule(template="hello", address="poison@example.com")
    harness.query(
        f"UPDATE duepost.scheduled_email SET {column} = %(content)s::jsonb WHERE id = %(id)s",
        content=content, id=email_id,
    )  # fmt: skip
    return email_id


class ReadyInbox:
    """What waits in this process's memory is what the test has ready."""

    def __init__(self, jobs: Sequence[tuple[int, Job]]) -> None:
        self._jobs = deque(jobs)

    def has_more(self, *, are_urgent: bool = False) -> bool:
        return bool(self._jobs) and not are_urgent

    def next(self, *, is_urgent: bool = False) -> tuple[int, Job] | None:
        return self._jobs.popleft() if self._jobs and not is_urgent else None


def send_together(harness: Harness) -> None:
    """As a worker does whose memory holds them all."""
    consumer = harness.consumer()
    waiting: list[ClaimedMessage] = []
    while (message := next(consumer)) is not None:
        waiting.append(message)
    jobs = [(int(message.args[0]), OwnJob()) for message in waiting]
    together = Dispatcher(
        harness.app.routes["default"].email_work,
        ReadyInbox(jobs[1:]),
        harness.app.routes["default"].channel,
        8,
        harness.app.routes["default"].route,
    )
    together._waiting.append(jobs[0])
    together._drive_until_done()
    together.close()
    for _, job in jobs:
        job.wait()
    for message in waiting:
        consumer.ack(message)
    consumer.close()
    assert harness.query("SELECT count(*) FROM duepost.scheduled_email WHERE state = 'sending'") == [(0,)]


@pytest.mark.parametrize(("content", "said"), POISONS.values(), ids=list(POISONS))
def test_a_context_that_cannot_be_read_is_that_emails_failure_with_the_fields_name(
    harness: Harness, relay: ScriptedRelay, content: str, said: str
) -> None:
    others = [harness.schedule(address=f"a{number}@example.com") for number in range(3)]
    poisoned = poison(harness, content)
    others += [harness.schedule(address=f"b{number}@example.com") for number in range(3)]
    harness.enqueue()
    send_together(harness)
    assert [harness.ledger(each) for each in others] == [["sent"]] * 6
    assert set(received(relay).values()) == {1}
    row = row_of(harness, poisoned)
    assert (row["state"], row["attempts"]) == ("scheduled", 1)
    assert str(row["last_error"]).startswith(f"render: {said}")
    assert harness.due_in(poisoned) > 200
    assert len(harness.attempts(poisoned)) == 1


@pytest.mark.parametrize("content", ['{"X-A": 1e5000}', '["X-A"]', '{"X-A": ' + "[" * 3000 + "]" * 3000 + "}"])
def test_so_are_headers(harness: Harness, content: str) -> None:
    poisoned = poison(harness, content, "headers")
    other = harness.schedule()
    harness.deliver()
    assert harness.ledger(other) == ["sent"]
    assert str(row_of(harness, poisoned)["last_error"]).startswith("render: headers: ")


def test_one_among_300(harness: Harness, relay: ScriptedRelay) -> None:
    query = (
        "SELECT count(duepost.schedule_email(kind => 'k', address => %(to)s || i || '@example.com', subject => 's',"
        " body_text => 'b')) FROM generate_series(1, 150) AS i"
    )
    harness.query(query, to="a")
    poisoned = poison(harness, '{"n": 1e5000}')
    harness.query(query, to="b")
    harness.enqueue()
    send_together(harness)
    assert harness.query("SELECT outcome, count(*) FROM duepost.delivery GROUP BY 1") == [("sent", 300)]
    assert len(received(relay)) == 300
    assert set(received(relay).values()) == {1}
    assert row_of(harness, poisoned)["attempts"] == 1


@pytest.mark.parametrize("failure", [ValueError("9" * 30), RecursionError(), MemoryError(), psycopg2.DataError("x")])
def test_a_claim_that_is_committed_and_cannot_be_read_is_read_again_one_by_one(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    ids = [harness.schedule(kind=kind) for kind in ("welcome", "poison", "welcome")]
    harness.enqueue()
    claimed = emails._claimed

    def poisoned(head: list[object], *rest: object) -> object:
        if head[2] == "poison" and rest[0] != blank(rest):
            raise failure
        return claimed(head, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(emails, "_claimed", poisoned)
    send_together(harness)
    assert [harness.ledger(email_id) for email_id in ids] == [["sent"], [], ["sent"]]
    row = row_of(harness, ids[1])
    assert (row["state"], row["attempts"]) == ("scheduled", 1)
    assert row["last_error"] == f"render: row: {type(failure).__name__}: it cannot be read"


def blank(rest: tuple[object, ...]) -> object:
    content = rest[0]
    assert isinstance(content, tuple)
    return content if content[0] == 0.0 else None


@pytest.mark.parametrize(
    ("context", "said"),
    [
        ('{"n": 1e5000}', "context: a number must be between"),
        ('{"a": [1, {"b": -1e400}]}', "context: a number must be between"),
        ('{"n": ' + "[" * 101 + "]" * 101 + "}", "context: must be at most 100 levels deep"),
        ('{"n": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}", "context: must be at most 100 levels deep"),
    ],
)
def test_such_a_context_is_refused_when_it_is_scheduled(each_harness: Harness, context: str, said: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=f"^{said}"):
        each_harness.query(
            "SELECT duepost.schedule_email(kind => 'k', address => 'a@example.com', template => 't',"
            " context => %(context)s::jsonb)",
            context=context,
        )
    many = f'[{{"kind": "k", "address": "a@example.com", "template": "t", "context": {context}}}]'
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=rf"^emails\[0\]: {said}"):
        each_harness.query("SELECT duepost.schedule_emails(%(many)s::jsonb)", many=many)
    assert each_harness.query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


@pytest.mark.parametrize(
    "context",
    ['{"n": 1e307, "m": -1e307, "z": 1e-400}', '{"n": ' + "[" * 99 + "]" * 99 + "}", '{"n": "[[[[" }', '{"n": 1.5}'],
)
def test_what_is_within_the_limits_is_sent(each_harness: Harness, context: str) -> None:
    each_harness.template("t", subject="Hello", text="{{ n }}")
    email_id = each_harness.schedule(template="t", context=json.loads(context))
    each_harness.deliver()
    assert each_harness.ledger(email_id) == ["sent"]


#: Views of 40 users that fail for user 20 alone, and the SQLSTATE.
VIEWS = {
    "division by zero": ("(1 / (id - 20))::text || 'view' || id || '@example.com'", "22012"),
    "a cast": ("CASE WHEN id = 20 THEN ('x' || name)::int::text ELSE 'a' || id || '@example.com' END", "22P02"),
    "two rows of a subquery": (
        "(SELECT 'a' || id || '@example.com' FROM generate_series(1, CASE WHEN id = 20 THEN 2 ELSE 1 END))",
        "21000",
    ),
    "a function that raises": ("raise_for_20(id)", "P0001"),
}


def use_view(harness: Harness, address: str) -> None:
    harness.query("DROP TABLE duepost.recipient")
    harness.query("CREATE TABLE person (id int PRIMARY KEY, name text)")
    harness.query("INSERT INTO person SELECT i, 'User ' || i FROM generate_series(1, 40) AS i")
    harness.query(
        "CREATE FUNCTION raise_for_20(id int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
        " IF id = 20 THEN RAISE EXCEPTION E'secret of %%\\nmore', id; END IF;"
        " RETURN 'a' || id || '@example.com'; END $$"
    )
    harness.query(
        f"CREATE VIEW duepost.recipient AS SELECT id::text AS user_id, ({address}) AS address, name,"
        " NULL::text AS locale, NULL::text AS timezone, true AS active FROM person"
    )


@pytest.mark.parametrize(("address", "sqlstate"), VIEWS.values(), ids=list(VIEWS))
def test_a_view_that_fails_for_one_user_fails_that_user_only(
    each_harness: Harness, caplog: pytest.LogCaptureFixture, address: str, sqlstate: str
) -> None:
    harness = each_harness
    use_view(harness, address)
    ids = {user: harness.schedule(users=[str(user)]) for user in range(1, 41)}
    plain = [harness.schedule(address=f"plain{number}@example.com") for number in range(3)]
    several = harness.schedule(users=["1", "20", "3"])
    harness.enqueue()
    with caplog.at_level(logging.INFO):
        send_together(harness)
    assert [harness.ledger(each) for each in (*plain, *(ids[user] for user in ids if user != 20))] == [["sent"]] * 42
    row = row_of(harness, ids[20])
    assert (row["state"], row["attempts"]) == ("scheduled", 1)
    assert f"recipient: SQLSTATE {sqlstate}" in str(row["last_error"])
    assert harness.due_in(ids[20]) > 200
    assert "secret" not in caplog.text
    users = harness.query(
        "SELECT user_id, outcome FROM duepost.scheduled_email_user WHERE email_id = %(id)s ORDER BY 1", id=several
    )
    assert users == [("1", "sent"), ("20", None), ("3", "sent")]
    harness.make_due()
    harness.enqueue()
    send_together(harness)
    assert row_of(harness, ids[20])["attempts"] == 2
    assert harness.due_in(ids[20]) > 400


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE duepost.recipient",
        "ALTER TABLE duepost.recipient DROP COLUMN address",
        "ALTER TABLE duepost.recipient RENAME COLUMN user_id TO id",
    ],
)
def test_a_view_that_fails_wholly_holds_up_users_and_no_addresses(harness: Harness, damage: str) -> None:
    users = [harness.schedule(users=[str(number)]) for number in range(3)]
    plain = [harness.schedule(address=f"plain{number}@example.com") for number in range(3)]
    harness.query(damage)
    harness.enqueue()
    send_together(harness)
    assert [harness.ledger(each) for each in plain] == [["sent"]] * 3
    for each in users:
        assert row_of(harness, each)["attempts"] == 1
        assert "recipient: SQLSTATE 42" in str(row_of(harness, each)["last_error"])


def test_two_rows_for_a_user_are_one_copy_if_they_are_alike_and_else_an_error_that_says_so(
    harness: Harness, relay: ScriptedRelay
) -> None:
    harness.query("ALTER TABLE duepost.recipient DROP CONSTRAINT recipient_pkey")
    for address in ("same@example.com", "same@example.com"):
        harness.recipient("alike", address)
    for address in ("home@example.com", "work@example.com"):
        harness.recipient("ann", address)
    harness.recipient("bob", "bob@example.com")
    alike, ann, both = (harness.schedule(users=users) for users in (["alike"], ["ann"], ["ann", "bob"]))
    harness.deliver()
    assert received(relay) == {"same@example.com": 1, "bob@example.com": 1}
    assert harness.ledger(alike) == ["sent"]
    for each in (ann, both):
        assert "duepost.recipient has 2 rows for one user" in str(row_of(harness, each)["last_error"])


def test_users_of_other_types_are_read_and_what_is_too_long_or_void_is_that_users_failure(harness: Harness) -> None:
    harness.query("DROP TABLE duepost.recipient")
    harness.query(
        "CREATE TABLE duepost.recipient (user_id int, address varchar, name text, locale text, timezone text,"
        " active int)"
    )
    harness.query(
        "INSERT INTO duepost.recipient VALUES (1, 'one@example.com', NULL, NULL, NULL, 1),"
        " (2, 'two@example.com', repeat('x', 3000), NULL, NULL, 1), (3, NULL, NULL, NULL, NULL, NULL),"
        " (4, 'four@example.com', NULL, NULL, NULL, 7)"
    )
    one, two, three, four = (harness.schedule(users=[str(number)]) for number in range(1, 5))
    harness.enqueue()
    send_together(harness)
    assert harness.ledger(one) == ["sent"]
    assert "name has more than 2000 characters" in str(row_of(harness, two)["last_error"])
    assert harness.ledger(three) == ["undeliverable"]
    assert "active is neither true nor false" in str(row_of(harness, four)["last_error"])


def test_a_view_that_waits_for_a_lock_holds_up_no_address(harness: Harness) -> None:
    user, plain = harness.schedule(users=["1"]), harness.schedule()
    harness.enqueue()
    with psycopg2.connect(harness.database.url) as locker, locker.cursor() as cursor:
        cursor.execute("LOCK TABLE duepost.recipient IN ACCESS EXCLUSIVE MODE")
        send_together(harness)
        locker.rollback()
    locker.close()
    assert harness.ledger(plain) == ["sent"]
    assert "recipient: SQLSTATE 55P03" in str(row_of(harness, user)["last_error"])

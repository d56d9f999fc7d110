"""Whatever one email's data does, it fails that email, with a reason; the others are sent, and once."""

import json
import logging
from collections import Counter

import psycopg2
import pytest

from actors import crew, runtime, sender
from actors.consumer import ClaimedMessage
from models import emails
from tests.postroom import Postroom
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


def row_of(postroom: Postroom, email_id: int) -> dict[str, object]:
    """What a person looks at, without the content: a test cannot read that either."""
    [(row,)] = postroom.query(
        "SELECT to_jsonb(e) - 'context' - 'headers' FROM duepost.scheduled_email AS e WHERE id = %(id)s", id=email_id
    )
    assert isinstance(row, dict)
    return row


def poison(postroom: Postroom, content: str, column: str = "context") -> int:
    """One that was stored by a release, or by a hand, that did not look."""
    postroom.template("hello", subject="Hello", text="Hello")
    email_id = postroom.schedule(template="hello", address="poison@example.com")
    postroom.query(
        f"UPDATE duepost.scheduled_email SET {column} = %(content)s::jsonb WHERE id = %(id)s",
        content=content, id=email_id,
    )  # fmt: skip
    return email_id


def send_together(postroom: Postroom) -> None:
    """As a worker does whose memory holds them all."""
    consumer = runtime.broker.consume("duepost_send", prefetch=100_000, timeout=1)
    waiting: list[ClaimedMessage] = []
    while (message := next(consumer)) is not None:
        waiting.append(message)
    jobs = [(int(message.args[0]), crew.OwnJob()) for message in waiting]
    dispatcher = crew.Crew(Along(jobs[1:]), runtime.relay_connection, 8)
    dispatcher._waiting.append(jobs[0])
    dispatcher._work_until_done()
    dispatcher.close()
    for _, job in jobs:
        job.wait()
    for message in waiting:
        consumer.ack(message)
    consumer.close()
    assert postroom.query("SELECT count(*) FROM duepost.scheduled_email WHERE state = 'sending'") == [(0,)]


class Along(sender.Senders):
    """Senders that take along what a test has ready."""

    def __init__(self, jobs: list[tuple[int, crew.OwnJob]]) -> None:
        super().__init__()
        self.jobs = jobs

    def has_more(self) -> bool:
        return bool(self.jobs)

    def take_along(self) -> tuple[int, crew.OwnJob] | None:  # type: ignore[override]
        return self.jobs.pop(0) if self.jobs else None


@pytest.mark.parametrize(("content", "said"), POISONS.values(), ids=list(POISONS))
def test_a_context_that_cannot_be_read_is_that_emails_failure_with_the_fields_name(
    postroom: Postroom, relay: ScriptedRelay, content: str, said: str
) -> None:
    others = [postroom.schedule(address=f"a{number}@example.com") for number in range(3)]
    poisoned = poison(postroom, content)
    others += [postroom.schedule(address=f"b{number}@example.com") for number in range(3)]
    postroom.enqueue()
    send_together(postroom)
    assert [postroom.ledger(each) for each in others] == [["sent"]] * 6
    assert set(received(relay).values()) == {1}
    row = row_of(postroom, poisoned)
    assert (row["state"], row["attempts"]) == ("scheduled", 1)
    assert str(row["last_error"]).startswith(f"render: {said}")
    assert postroom.due_in(poisoned) > 200
    assert len(postroom.attempts(poisoned)) == 1


@pytest.mark.parametrize("content", ['{"X-A": 1e5000}', '["X-A"]', '{"X-A": ' + "[" * 3000 + "]" * 3000 + "}"])
def test_so_are_headers(postroom: Postroom, content: str) -> None:
    poisoned = poison(postroom, content, "headers")
    other = postroom.schedule()
    postroom.deliver()
    assert postroom.ledger(other) == ["sent"]
    assert str(row_of(postroom, poisoned)["last_error"]).startswith("render: headers: ")


def test_one_among_300(postroom: Postroom, relay: ScriptedRelay) -> None:
    query = (
        "SELECT count(duepost.schedule_email(kind => 'k', address => %(to)s || i || '@example.com', subject => 's',"
        " body_text => 'b')) FROM generate_series(1, 150) AS i"
    )
    postroom.query(query, to="a")
    poisoned = poison(postroom, '{"n": 1e5000}')
    postroom.query(query, to="b")
    postroom.enqueue()
    send_together(postroom)
    assert postroom.query("SELECT outcome, count(*) FROM duepost.delivery GROUP BY 1") == [("sent", 300)]
    assert len(received(relay)) == 300
    assert set(received(relay).values()) == {1}
    assert row_of(postroom, poisoned)["attempts"] == 1


@pytest.mark.parametrize("failure", [ValueError("9" * 30), RecursionError(), MemoryError(), psycopg2.DataError("x")])
def test_a_claim_that_is_committed_and_cannot_be_read_is_read_again_one_by_one(
    postroom: Postroom, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    ids = [postroom.schedule(kind=kind) for kind in ("welcome", "poison", "welcome")]
    postroom.enqueue()
    claimed = emails._claimed

    def poisoned(head: list[object], *rest: object) -> object:
        if head[2] == "poison" and rest[0] != blank(rest):
            raise failure
        return claimed(head, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(emails, "_claimed", poisoned)
    send_together(postroom)
    assert [postroom.ledger(email_id) for email_id in ids] == [["sent"], [], ["sent"]]
    row = row_of(postroom, ids[1])
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
def test_such_a_context_is_refused_when_it_is_scheduled(each_postroom: Postroom, context: str, said: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=f"^{said}"):
        each_postroom.query(
            "SELECT duepost.schedule_email(kind => 'k', address => 'a@example.com', template => 't',"
            " context => %(context)s::jsonb)",
            context=context,
        )
    many = f'[{{"kind": "k", "address": "a@example.com", "template": "t", "context": {context}}}]'
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=rf"^emails\[0\]: {said}"):
        each_postroom.query("SELECT duepost.schedule_emails(%(many)s::jsonb)", many=many)
    assert each_postroom.query("SELECT count(*) FROM duepost.scheduled_email") == [(0,)]


@pytest.mark.parametrize(
    "context",
    ['{"n": 1e307, "m": -1e307, "z": 1e-400}', '{"n": ' + "[" * 99 + "]" * 99 + "}", '{"n": "[[[[" }', '{"n": 1.5}'],
)
def test_what_is_within_the_limits_is_sent(each_postroom: Postroom, context: str) -> None:
    each_postroom.template("t", subject="Hello", text="{{ n }}")
    email_id = each_postroom.schedule(template="t", context=json.loads(context))
    each_postroom.deliver()
    assert each_postroom.ledger(email_id) == ["sent"]


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


def use_view(postroom: Postroom, address: str) -> None:
    postroom.query("DROP TABLE duepost.recipient")
    postroom.query("CREATE TABLE person (id int PRIMARY KEY, name text)")
    postroom.query("INSERT INTO person SELECT i, 'User ' || i FROM generate_series(1, 40) AS i")
    postroom.query(
        "CREATE FUNCTION raise_for_20(id int) RETURNS text LANGUAGE plpgsql AS $$ BEGIN"
        " IF id = 20 THEN RAISE EXCEPTION E'secret of %%\\nmore', id; END IF;"
        " RETURN 'a' || id || '@example.com'; END $$"
    )
    postroom.query(
        f"CREATE VIEW duepost.recipient AS SELECT id::text AS user_id, ({address}) AS address, name,"
        " NULL::text AS locale, NULL::text AS timezone, true AS active FROM person"
    )


@pytest.mark.parametrize(("address", "sqlstate"), VIEWS.values(), ids=list(VIEWS))
def test_a_view_that_fails_for_one_user_fails_that_user_only(
    each_postroom: Postroom, caplog: pytest.LogCaptureFixture, address: str, sqlstate: str
) -> None:
    postroom = each_postroom
    use_view(postroom, address)
    ids = {user: postroom.schedule(users=[str(user)]) for user in range(1, 41)}
    plain = [postroom.schedule(address=f"plain{number}@example.com") for number in range(3)]
    several = postroom.schedule(users=["1", "20", "3"])
    postroom.enqueue()
    with caplog.at_level(logging.INFO):
        send_together(postroom)
    assert [postroom.ledger(each) for each in (*plain, *(ids[user] for user in ids if user != 20))] == [["sent"]] * 42
    row = row_of(postroom, ids[20])
    assert (row["state"], row["attempts"]) == ("scheduled", 1)
    assert f"recipient: SQLSTATE {sqlstate}" in str(row["last_error"])
    assert postroom.due_in(ids[20]) > 200
    assert "secret" not in caplog.text
    users = postroom.query(
        "SELECT user_id, outcome FROM duepost.scheduled_email_user WHERE email_id = %(id)s ORDER BY 1", id=several
    )
    assert users == [("1", "sent"), ("20", None), ("3", "sent")]
    postroom.make_due()
    postroom.enqueue()
    send_together(postroom)
    assert row_of(postroom, ids[20])["attempts"] == 2
    assert postroom.due_in(ids[20]) > 400


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TABLE duepost.recipient",
        "ALTER TABLE duepost.recipient DROP COLUMN address",
        "ALTER TABLE duepost.recipient RENAME COLUMN user_id TO id",
    ],
)
def test_a_view_that_fails_wholly_holds_up_users_and_no_addresses(postroom: Postroom, damage: str) -> None:
    users = [postroom.schedule(users=[str(number)]) for number in range(3)]
    plain = [postroom.schedule(address=f"plain{number}@example.com") for number in range(3)]
    postroom.query(damage)
    postroom.enqueue()
    send_together(postroom)
    assert [postroom.ledger(each) for each in plain] == [["sent"]] * 3
    for each in users:
        assert row_of(postroom, each)["attempts"] == 1
        assert "recipient: SQLSTATE 42" in str(row_of(postroom, each)["last_error"])


def test_two_rows_for_a_user_are_one_copy_if_they_are_alike_and_else_an_error_that_says_so(
    postroom: Postroom, relay: ScriptedRelay
) -> None:
    postroom.query("ALTER TABLE duepost.recipient DROP CONSTRAINT recipient_pkey")
    for address in ("same@example.com", "same@example.com"):
        postroom.recipient("alike", address)
    for address in ("home@example.com", "work@example.com"):
        postroom.recipient("ann", address)
    postroom.recipient("bob", "bob@example.com")
    alike, ann, both = (postroom.schedule(users=users) for users in (["alike"], ["ann"], ["ann", "bob"]))
    postroom.deliver()
    assert received(relay) == {"same@example.com": 1, "bob@example.com": 1}
    assert postroom.ledger(alike) == ["sent"]
    for each in (ann, both):
        assert "duepost.recipient has 2 rows for one user" in str(row_of(postroom, each)["last_error"])


def test_users_of_other_types_are_read_and_what_is_too_long_or_void_is_that_users_failure(postroom: Postroom) -> None:
    postroom.query("DROP TABLE duepost.recipient")
    postroom.query(
        "CREATE TABLE duepost.recipient (user_id int, address varchar, name text, locale text, timezone text,"
        " active int)"
    )
    postroom.query(
        "INSERT INTO duepost.recipient VALUES (1, 'one@example.com', NULL, NULL, NULL, 1),"
        " (2, 'two@example.com', repeat('x', 3000), NULL, NULL, 1), (3, NULL, NULL, NULL, NULL, NULL),"
        " (4, 'four@example.com', NULL, NULL, NULL, 7)"
    )
    one, two, three, four = (postroom.schedule(users=[str(number)]) for number in range(1, 5))
    postroom.enqueue()
    send_together(postroom)
    assert postroom.ledger(one) == ["sent"]
    assert "name has more than 2000 characters" in str(row_of(postroom, two)["last_error"])
    assert postroom.ledger(three) == ["undeliverable"]
    assert "active is neither true nor false" in str(row_of(postroom, four)["last_error"])


def test_a_view_that_waits_for_a_lock_holds_up_no_address(postroom: Postroom) -> None:
    user, plain = postroom.schedule(users=["1"]), postroom.schedule()
    postroom.enqueue()
    with psycopg2.connect(postroom.database.url) as locker, locker.cursor() as cursor:
        cursor.execute("LOCK TABLE duepost.recipient IN ACCESS EXCLUSIVE MODE")
        send_together(postroom)
        locker.rollback()
    locker.close()
    assert postroom.ledger(plain) == ["sent"]
    assert "recipient: SQLSTATE 55P03" in str(row_of(postroom, user)["last_error"])

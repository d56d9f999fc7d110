"""Clearing: at any moment, with a receipt that is kept, without waiting for SMTP."""

import json
import random
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest

from duepost import client
from tests.postgres import Connection, run
from tests.waiting import wait_until

SENDING = "state = 'sending', claim = 1, worker_id = 1, claimed_at = now()"
QUEUED = "state = 'queued', message_id = gen_random_uuid()"

Receipts = list[tuple[int, str]]


def schedule(connection: Connection, *users: str, address: str = "ann@example.com", kind: str = "welcome") -> int:
    whom: dict[str, object] = {"users": users} if users else {"address": address}
    with connection.cursor() as cursor:
        return client.schedule_email(cursor, kind=kind, subject="Hello", body_text="World", **whom)  # type: ignore[arg-type]


def become(connection: Connection, email_id: int, change: str) -> None:
    run(connection, f"UPDATE duepost.scheduled_email SET {change} WHERE id = %s", email_id)


def record_outcome(connection: Connection, user: str, outcome: str = "sent") -> None:
    run(connection, "UPDATE duepost.scheduled_email_user SET outcome = %s WHERE user_id = %s", outcome, user)


def clear(connection: Connection, *users: str, kind: str | None = None) -> Receipts:
    with connection.cursor() as cursor:
        return client.clear_scheduled_emails(cursor, users, kind)


def clear_to(connection: Connection, address: str, kind: str | None = None) -> Receipts:
    with connection.cursor() as cursor:
        return client.clear_scheduled_emails_to(cursor, address, kind)


def clear_one(connection: Connection, email_id: int) -> str:
    with connection.cursor() as cursor:
        return client.clear_scheduled_email(cursor, email_id)


def pending(connection: Connection) -> list[tuple[object, ...]]:
    """Emails that are not finished, with their users."""
    return run(
        connection,
        "SELECT e.id, array_agg(u.user_id ORDER BY u.user_id) FILTER (WHERE u.user_id IS NOT NULL)"
        " FROM duepost.scheduled_email e LEFT JOIN duepost.scheduled_email_user u ON u.email_id = e.id"
        " GROUP BY e.id ORDER BY e.id",
    )


def ledger(connection: Connection) -> list[tuple[object, ...]]:
    return run(connection, "SELECT email_id, outcome, user_id FROM duepost.delivery ORDER BY email_id, user_id")


# By users ------------------------------------------------------------------------------------------------------------


def test_a_cleared_email_moves_to_the_ledger(application: Connection) -> None:
    email_id = schedule(application, "ann")
    assert clear(application, "ann") == [(email_id, "cleared")]
    assert pending(application) == []
    assert run(application, "SELECT count(*) FROM duepost.scheduled_email_user") == [(0,)]
    assert ledger(application) == [(email_id, "cleared", None)]


def test_the_ledger_says_what_was_cleared(application: Connection) -> None:
    with application.cursor() as cursor:
        email_id = client.schedule_email(
            cursor, kind="k", users=["ann"], subject="s", body_text="b", key="key", scheduled_at="2030-01-01T00:00Z"
        )
    expected = run(
        application,
        "SELECT id, kind, key, scheduled_at, message_id_header, attempts FROM duepost.scheduled_email WHERE id = %s",
        email_id,
    )
    clear(application, "ann")
    columns = "email_id, kind, key, scheduled_at, message_id_header, attempts"
    assert run(application, f"SELECT {columns} FROM duepost.delivery WHERE finished_at = now()") == expected


def test_a_user_of_several_is_removed_and_the_others_stay(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob", "cleo")
    assert clear(application, "ann") == [(email_id, "user_removed")]
    assert pending(application) == [(email_id, ["bob", "cleo"])]
    assert ledger(application) == []


def test_the_last_user_clears_the_email(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    assert [clear(application, user) for user in ("ann", "bob")] == [
        [(email_id, "user_removed")],
        [(email_id, "cleared")],
    ]


def test_all_users_at_once_clear_the_email(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    assert clear(application, "ann", "bob", "cleo", "ann") == [(email_id, "cleared")]


def test_who_is_removed_already_has_nothing_to_clear(application: Connection) -> None:
    schedule(application, "ann", "bob")
    clear(application, "ann")
    assert clear(application, "ann") == []


def test_each_email_has_a_receipt_of_its_own(application: Connection) -> None:
    alone = schedule(application, "ann")
    both = schedule(application, "ann", "bob")
    sending = schedule(application, "ann")
    become(application, sending, SENDING)
    schedule(application, "bob")
    assert clear(application, "ann") == [(alone, "cleared"), (both, "user_removed"), (sending, "too_late")]


def test_receipts_come_by_ascending_id(application: Connection) -> None:
    ids = [schedule(application, "ann") for _ in range(60)]
    run(application, "UPDATE duepost.scheduled_email SET due_at = now() + (1000 - id) * interval '1 s'")
    assert [email_id for email_id, _ in clear(application, "ann")] == ids


def test_a_clear_can_be_limited_to_a_kind(application: Connection) -> None:
    digest = schedule(application, "ann", kind="digest")
    reminder = schedule(application, "ann", kind="reminder")
    assert clear(application, "ann", kind="reminder") == [(reminder, "cleared")]
    assert pending(application) == [(digest, ["ann"])]


def test_user_ids_are_compared_to_the_letter(application: Connection) -> None:
    schedule(application, "ann")
    assert clear(application, "Ann", "ann ", "a%", "") == []


def test_nothing_is_cleared_for_nobody(application: Connection) -> None:
    schedule(application, "ann")
    assert clear(application, "bob") == []
    assert clear(application) == []


def test_a_clear_by_user_leaves_emails_to_an_address_alone(application: Connection) -> None:
    run(application, "INSERT INTO duepost.recipient (user_id, address) VALUES ('ann', 'ann@example.com')")
    email_id = schedule(application, address="ann@example.com")
    assert clear(application, "ann", "ann@example.com") == []
    assert pending(application) == [(email_id, None)]


# By address, by id ---------------------------------------------------------------------------------------------------


CORPUS = json.loads((Path(__file__).parent.parent / "corpus" / "addresses.json").read_text(encoding="utf-8"))


def test_a_clear_by_address_finds_every_spelling_of_the_mailbox_and_no_other(application: Connection) -> None:
    for spellings in CORPUS["spellings"]:
        stored = [each for each in spellings if run(application, "SELECT duepost.is_address(%s)", each) == [(True,)]]
        for spelling in spellings:
            ids = [schedule(application, address=address) for address in stored]
            assert clear_to(application, spelling) == [(email_id, "cleared") for email_id in ids]
    for one, other in CORPUS["apart"]:
        email_id = schedule(application, address=one)
        assert clear_to(application, other) == []
        assert clear_to(application, one) == [(email_id, "cleared")]


@pytest.mark.parametrize(
    "address",
    ["", " ", "nonsense", "ann@", "@example.com", "Ann", "Ann <ann>", "ann@example.com, bob@example.com",
     "ann@exa mple.com", "ann@a_b.example", "Ann <ann@example.com",
     "<a@x.example> <b@x.example>", "ann@i\u2764.example"],
)  # fmt: skip
def test_what_is_no_address_is_no_clear(application: Connection, address: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=r"^address: must be one address"):
        clear_to(application, address)


def test_a_clear_by_address_does_not_mind_letter_case(application: Connection) -> None:
    ids = [schedule(application, address=address) for address in ("Ann@Example.com", "ann@example.com")]
    assert clear_to(application, "ann@example.COM") == [(email_id, "cleared") for email_id in ids]
    assert run(application, "SELECT address FROM duepost.delivery ORDER BY email_id") == [
        ("Ann@Example.com",),
        ("ann@example.com",),
    ]


def test_a_clear_by_address_can_be_limited_to_a_kind(application: Connection) -> None:
    schedule(application, kind="digest")
    email_id = schedule(application, kind="reminder")
    assert clear_to(application, "ann@example.com", "reminder") == [(email_id, "cleared")]


def test_a_clear_by_address_leaves_others_alone(application: Connection) -> None:
    schedule(application, address="bob@example.com")
    schedule(application, "ann@example.com")
    assert clear_to(application, "ann@example.com") == []
    assert clear_to(application, "%@example.com") == []


def test_an_email_is_cleared_by_its_id_with_all_its_users(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    assert clear_one(application, email_id) == "cleared"
    assert pending(application) == []
    assert ledger(application) == [(email_id, "cleared", None)]


@pytest.mark.parametrize("email_id", [-1, 0, 999_999, 2**63 - 1])
def test_an_email_that_is_not_there_is_too_late(application: Connection, email_id: int) -> None:
    assert clear_one(application, email_id) == "too_late"


def test_an_email_can_be_cleared_once(application: Connection) -> None:
    email_id = schedule(application)
    assert [clear_one(application, email_id) for _ in range(2)] == ["cleared", "too_late"]
    assert len(ledger(application)) == 1


@pytest.mark.parametrize(
    ("argument", "call"),
    [
        ("users", "clear_scheduled_emails(NULL)"),
        ("users", "clear_scheduled_emails(ARRAY['ann', NULL])"),
        ("address", "clear_scheduled_emails_to(NULL)"),
        ("email_id", "clear_scheduled_email(NULL)"),
        ("email_id", "reschedule_email(NULL, now())"),
        ("scheduled_at", "reschedule_email(1, NULL)"),
    ],
)
def test_null_is_refused_rather_than_taken_for_nothing_or_all(
    application: Connection, argument: str, call: str
) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=f"^{argument}: "):
        run(application, f"SELECT * FROM duepost.{call}")


# In every state ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [QUEUED, "attempts = 3, last_error = 'busy', due_at = now() + interval '1 min'", f"{QUEUED}, attempts = 3"],
    ids=["queued", "between retries", "queued for a retry"],
)
def test_what_is_not_on_its_way_can_be_cleared(application: Connection, change: str) -> None:
    for_user, for_address, by_id = schedule(application, "ann"), schedule(application), schedule(application, "bob")
    for email_id in (for_user, for_address, by_id):
        become(application, email_id, change)
    assert clear(application, "ann") == [(for_user, "cleared")]
    assert clear_to(application, "ann@example.com") == [(for_address, "cleared")]
    assert clear_one(application, by_id) == "cleared"


@pytest.mark.parametrize(
    "change",
    [SENDING, "state = 'unknown', unknowns = 1", "unknowns = 1", f"{QUEUED}, unknowns = 1"],
    ids=["sending", "unknown", "to be resent", "queued to be resent"],
)
def test_what_may_be_on_its_way_is_too_late(application: Connection, change: str) -> None:
    for_users, for_address = schedule(application, "ann", "bob"), schedule(application)
    for email_id in (for_users, for_address):
        become(application, email_id, change)
    assert clear(application, "ann") == [(for_users, "too_late")]
    assert clear_to(application, "ann@example.com") == [(for_address, "too_late")]
    assert clear_one(application, for_users) == "too_late"
    assert pending(application) == [(for_users, ["ann", "bob"]), (for_address, None)]
    assert ledger(application) == []


@pytest.mark.parametrize("outcome", ["sent", "undeliverable"])
def test_for_who_has_an_outcome_already_it_is_too_late(application: Connection, outcome: str) -> None:
    email_id = schedule(application, "ann", "bob")
    record_outcome(application, "ann", outcome)
    assert clear(application, "ann") == [(email_id, "too_late")]
    assert pending(application) == [(email_id, ["ann", "bob"])]


def test_the_others_of_a_partly_sent_email_are_removed_and_the_ledger_keeps_who_has_it(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob", "cleo")
    record_outcome(application, "ann")
    assert clear(application, "bob") == [(email_id, "user_removed")]
    assert pending(application) == [(email_id, ["ann", "cleo"])]
    assert clear(application, "cleo") == [(email_id, "user_removed")]
    assert pending(application) == []
    assert ledger(application) == [(email_id, "sent", "ann")]


def test_where_some_have_it_and_others_are_taken_off_both_is_said(application: Connection) -> None:
    first, second = schedule(application, "ann", "bob", "cleo"), schedule(application, "ann", "bob")
    record_outcome(application, "ann")
    assert clear(application, "ann", "bob") == [
        (first, "user_removed"), (first, "too_late"), (second, "user_removed"), (second, "too_late"),
    ]  # fmt: skip
    assert pending(application) == [(first, ["ann", "cleo"])]
    assert ledger(application) == [(second, "sent", "ann")]


def test_a_partly_sent_email_is_not_called_cleared(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    record_outcome(application, "ann")
    assert clear_one(application, email_id) == "user_removed"
    assert ledger(application) == [(email_id, "sent", "ann"), (email_id, "cleared", None)]


def test_the_ledger_keeps_what_the_relay_said_of_whose_outcome_was_known(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    run(
        application,
        "UPDATE duepost.scheduled_email_user SET outcome = 'undeliverable', address = 'ann@example.com', code = 550,"
        " enhanced_code = '5.1.1', reply = 'no such user' WHERE user_id = 'ann'",
    )
    clear(application, "bob")
    assert run(application, "SELECT email_id, address, code, enhanced_code, reply FROM duepost.delivery") == [
        (email_id, "ann@example.com", 550, "5.1.1", "no such user")
    ]


# Among transactions --------------------------------------------------------------------------------------------------


def test_a_clear_that_is_rolled_back_never_happened(application: Connection) -> None:
    email_id = schedule(application, "ann", "bob")
    run(application, "SAVEPOINT before")
    assert clear_one(application, email_id) == "cleared"
    run(application, "ROLLBACK TO before")
    assert pending(application) == [(email_id, ["ann", "bob"])]
    assert ledger(application) == []


def test_others_do_not_see_a_clear_before_it_is_committed(connect: Callable[[], Connection]) -> None:
    application, other = connect(), connect()
    email_id = schedule(application, "ann")
    application.commit()
    clear(application, "ann")
    assert pending(other) == [(email_id, ["ann"])]
    application.commit()
    assert pending(other) == []


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_a_clear_works_in_a_snapshot(application: Connection, level: str) -> None:
    run(application, f"SET TRANSACTION ISOLATION LEVEL {level}")
    email_id = schedule(application, "ann", "bob")
    assert clear(application, "ann") == [(email_id, "user_removed")]
    assert clear_one(application, email_id) == "cleared"


def test_a_clear_never_waits_for_smtp(connect: Callable[[], Connection]) -> None:
    worker, application = connect(), connect()
    email_id = schedule(worker, "ann")
    become(worker, email_id, SENDING)
    worker.commit()
    # The relay is being spoken to. A lock that is not there at once would be an error.
    run(application, "SET lock_timeout = '1ms'")
    assert clear(application, "ann") == [(email_id, "too_late")]
    assert clear_one(application, email_id) == "too_late"


def while_held(holder: Connection, waiter: Connection, call: Callable[[], Receipts], ending: str) -> Receipts:
    """Calls while `holder` has locked the row; it ends once the call is seen waiting."""
    pid = waiter.get_backend_pid()
    with ThreadPoolExecutor(1) as pool:
        called: Future[Receipts] = pool.submit(call)
        wait_until(lambda: run(holder, "SELECT pg_blocking_pids(%s)", pid) != [([],)], what="the call to wait")
        getattr(holder, ending)()
        return called.result(timeout=30)


@pytest.mark.parametrize(("ending", "receipt"), [("commit", "too_late"), ("rollback", "cleared")])
def test_a_clear_that_meets_a_claim_goes_by_how_the_claim_ends(
    connect: Callable[[], Connection], ending: str, receipt: str
) -> None:
    worker, application = connect(), connect()
    email_id = schedule(worker, "ann")
    become(worker, email_id, QUEUED)
    worker.commit()
    become(worker, email_id, SENDING)
    assert while_held(worker, application, lambda: clear(application, "ann"), ending) == [(email_id, receipt)]


@pytest.mark.parametrize("others", [(), ("bob",)], ids=["alone", "with another"])
def test_of_two_that_clear_one_user_at_once_the_second_finds_nothing(
    connect: Callable[[], Connection], others: tuple[str, ...]
) -> None:
    first, second = connect(), connect()
    schedule(first, "ann", *others)
    first.commit()
    assert len(clear(first, "ann")) == 1
    assert while_held(first, second, lambda: clear(second, "ann"), "commit") == []


def test_of_two_that_clear_two_users_at_once_the_last_one_clears_the_email(connect: Callable[[], Connection]) -> None:
    first, second = connect(), connect()
    email_id = schedule(first, "ann", "bob")
    first.commit()
    assert clear(first, "ann") == [(email_id, "user_removed")]
    assert while_held(first, second, lambda: clear(second, "bob"), "commit") == [(email_id, "cleared")]
    second.commit()
    assert ledger(first) == [(email_id, "cleared", None)]


def test_whatever_runs_at_once_nothing_deadlocks(connect: Callable[[], Connection]) -> None:
    users = [f"user-{n}" for n in range(10)]
    addresses = [f"user-{n}@example.com" for n in range(3)]
    setup = connect()
    ids = [schedule(setup, *random.Random(n).sample(users, 4)) for n in range(40)]
    ids += [schedule(setup, address=address) for address in addresses * 5]
    setup.commit()

    def reschedule(connection: Connection, email_id: int) -> None:
        with connection.cursor() as cursor:
            client.reschedule_email(cursor, email_id, "2030-01-01T00:00Z")

    def torture(connection: Connection, seed: int) -> None:
        rng = random.Random(seed)
        acts: list[Callable[[], object]] = [
            lambda: clear(connection, *rng.sample(users, 5)),
            lambda: clear_to(connection, rng.choice(addresses)),
            lambda: clear_one(connection, rng.choice(ids)),
            lambda: reschedule(connection, rng.choice(ids)),
            lambda: ids.append(schedule(connection, *rng.sample(users, 4))),
            lambda: ids.append(schedule(connection, *rng.sample(users, 4))),
            lambda: ids.append(schedule(connection, address=rng.choice(addresses))),
        ]
        for _ in range(120):
            rng.choice(acts)()
            (connection.commit if rng.random() < 0.8 else connection.rollback)()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(torture, connect(), seed) for seed in range(6)]:
            done.result(timeout=60)
    assert run(
        setup,
        "SELECT id FROM duepost.scheduled_email e WHERE address IS NULL"
        " AND NOT EXISTS (SELECT FROM duepost.scheduled_email_user WHERE email_id = e.id)"
        " UNION ALL SELECT email_id FROM duepost.delivery GROUP BY email_id HAVING count(*) > 1",
    ) == []  # fmt: skip

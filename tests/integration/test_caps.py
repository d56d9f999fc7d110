"""Caps: of a kind a person gets a number a day at the most, however many workers send at once."""

import threading
from contextlib import closing

import psycopg2
import pytest

from models.database.connections import Row
from tests.app_harness import Harness
from tests.postgres import Connection
from tests.waiting import wait_until

BECAUSE = "at most 2 a day of the kind news"


@pytest.fixture(autouse=True)
def capped(harness: Harness) -> None:
    harness.query("INSERT INTO duepost.kind (kind, at_most_per_day) VALUES ('news', 2)")


def ended(harness: Harness, email_id: int) -> list[Row]:
    return harness.query(
        "SELECT user_id, outcome, reply FROM duepost.delivery WHERE email_id = %(id)s ORDER BY user_id", id=email_id
    )


@pytest.mark.parametrize("person", [{"users": ["ann"]}, {"address": "Ann@example.com"}], ids=["user", "mailbox"])
def test_beyond_the_cap_it_is_dropped_until_a_day_has_gone_by(harness: Harness, person: dict[str, object]) -> None:
    harness.recipient("ann", "ann@example.com")
    for number in range(3):
        if number == 1 and "address" in person:
            person = {"address": "ann@EXAMPLE.com"}
        last = harness.schedule(kind="news", **person)
        harness.deliver()
    assert [row[1:] for row in ended(harness, last)] == [("obsolete", BECAUSE)]
    assert harness.query("SELECT count(*) FROM duepost.delivery WHERE outcome = 'sent'") == [(2,)]
    others = [harness.schedule(kind="receipt", **person), harness.schedule(kind="news", address="bob@example.com")]
    harness.deliver()
    assert [harness.ledger(each) for each in others] == [["sent"], ["sent"]]
    harness.query(
        "UPDATE duepost.delivery SET finished_at = finished_at - interval '24 h' WHERE email_id < %(id)s", id=last
    )
    again = harness.schedule(kind="news", **person)
    harness.deliver()
    assert harness.ledger(again) == ["sent"]


def test_of_several_users_those_who_have_had_enough_are_left_out(harness: Harness) -> None:
    for user in ("ann", "bob"):
        harness.recipient(user, f"{user}@example.com")
    for _ in range(2):
        harness.schedule(kind="news", users=["ann"])
    harness.deliver()
    both = harness.schedule(kind="news", users=["ann", "bob"])
    harness.deliver()
    assert [row[:2] for row in ended(harness, both)] == [("ann", "obsolete"), ("bob", "sent")]


def check_and_claim(connection: Connection, email_id: int) -> str:
    """As a worker does it in one transaction, which is still open then."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT extras FROM duepost.claim_emails_v3(ARRAY[%s]::bigint[], 1, 'default')", (email_id,))
        connection.commit()
        cursor.execute("SELECT due_at FROM duepost.item WHERE id = %s", (email_id,))
        [kept_until] = cursor.fetchone() or (None,)
        cursor.execute("SELECT answer FROM duepost.check_conditions_v1(%s, %s, now(), NULL)", (email_id, kept_until))
        [answer] = cursor.fetchone() or (None,)
        if answer == "send":
            cursor.execute(
                "SELECT FROM duepost.claim_emails_v3(ARRAY[%s]::bigint[], 1, 'default', apart => true)", (email_id,)
            )
        return str(answer)


def test_two_workers_at_one_person_do_not_exceed_it_together(harness: Harness) -> None:
    harness.query("UPDATE duepost.kind SET at_most_per_day = 1")
    first, second = (harness.schedule(kind="news", users=["ann"]) for _ in range(2))
    answers: list[str] = []
    url = harness.database.url
    with closing(psycopg2.connect(url)) as one, closing(psycopg2.connect(url)) as other:
        assert check_and_claim(one, first) == "send"

        def run() -> None:
            answers.append(check_and_claim(other, second))
            other.commit()

        thread = threading.Thread(target=run)
        thread.start()
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        wait_until(lambda: harness.query(waits) != [(0,)], what="the second to wait for the first")
        one.commit()
        thread.join(30)
    assert answers == ["obsolete"]
    assert ended(harness, second) == [("ann", "obsolete", "at most 1 a day of the kind news")]


def test_what_several_see_together_has_no_cap(harness: Harness) -> None:
    several = ["ann@example.com", "bob@example.com"]
    ids = [harness.schedule(kind="news", address=None, addresses=several) for _ in range(3)]
    harness.deliver()
    assert {tuple(harness.ledger(each)) for each in ids} == {("sent", "sent")}

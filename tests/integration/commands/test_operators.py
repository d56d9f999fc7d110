"""`duepost find`, `why`, `list --finished`, `forecast`, `top`, `journal`, and actions by filter."""

from collections.abc import Iterator

import pytest

from tests.integration.commands.shell import Shell
from tests.postgres import PostgresServer

HOSTILE = "[red]k[/red]"


@pytest.fixture(scope="module")
def told(server: PostgresServer) -> Iterator[Shell]:
    """Five emails, one in each situation; nothing here changes them."""
    with server.fresh_database() as url:
        shell = Shell(url)
        shell.schedule(5)
        shell.query("SELECT duepost.clear_scheduled_email(1)")
        shell.query("UPDATE duepost.item SET is_held = true, unknowns = 1, attempts = 1 WHERE id = 2")
        shell.query("UPDATE duepost.item SET last_error = 'rcpt: 451 4.3.0 busy', attempts = 3 WHERE id = 3")
        shell.query("UPDATE duepost.item SET due_at = now() + interval '3 h' WHERE id IN (3, 4)")
        shell.query("UPDATE duepost.item SET kind = %s WHERE id = 4", HOSTILE)
        shell.query(
            "INSERT INTO duepost.delivery (email_id, kind, outcome, user_id, address, code, reply, attempts, unknowns,"
            " scheduled_at) VALUES (9, 'welcome', 'undeliverable', 'bob', 'bob@example.com', 550, '550 5.1.1 no [/x]',"
            " 1, 0, now()), (9, 'welcome', 'sent', 'eve', 'eve@example.com', 250, 'ok', 1, 0, now())"
        )
        yield shell


def test_a_person_is_found_and_what_is_unknown_is_no_success(told: Shell) -> None:
    by_address, by_user, nobody = (
        told.run("find", "--address", "ANN@example.com"),
        told.run("find", "--user", "bob"),
        told.run("find", "--user", "nobody", status=1),
    )
    rows = [line.split("\t") for line in by_address.splitlines()]
    assert [(row[0], row[2]) for row in rows[1:]] == [
        ("2", "unknown"), ("5", "scheduled"), ("3", "scheduled"), ("4", "scheduled"), ("1", "cleared"),
    ]  # fmt: skip
    assert HOSTILE in by_address, "what a kind holds is text"
    assert "1 sent, 1 undeliverable" in by_user
    assert nobody == "duepost: nothing is known of it\n"
    assert told.run("find", status=2).count("\n") == 1


@pytest.mark.parametrize(
    ("item_id", "said"),
    [
        (1, ["has ended: cleared", "it was never sent; schedule another"]),
        (2, ["nobody knows", "waits for a person", "duepost resolve 2 resend", "duepost resolve 2 drop"]),
        (3, ["failed, and is to be tried again", "3 attempts", "it is due at", "duepost retry 3", "duepost clear 3"]),
        (4, [HOSTILE, "Nothing has been tried yet.", "duepost reschedule 4 TIME"]),
        (9, ["1 sent, 1 undeliverable", "bob <bob@example.com>: undeliverable", "no [/x]", "not kept any more"]),
    ],
)
def test_why_says_what_happened_what_is_next_and_what_would_change_it(
    told: Shell, item_id: int, said: list[str]
) -> None:
    printed = told.run("why", str(item_id))
    for each in said:
        assert each in printed
    assert "Next: " in printed


def test_the_ledger_is_listed_by_outcome_and_time(told: Shell) -> None:
    finished, undeliverable, early = told.run_all(
        ["list", "--finished"], ["list", "--outcome", "undeliverable", "--since", "1h"], ["list", "--until", "2h"]
    )
    assert [line.split("\t")[0] for line in finished.splitlines()[1:]] == ["9", "1"]
    assert [line.split("\t")[0] for line in undeliverable.splitlines()[1:]] == ["9"]
    assert early == "Nothing fits.\n"


def test_the_forecast_and_one_frame_of_top_go_into_a_pipe(told: Shell) -> None:
    forecast, top = told.run_all(["forecast"], ["top"])
    assert [line.split("\t")[1:] for line in forecast.splitlines()] == [
        ["kind", "items"], ["welcome", "1"], [HOSTILE, "1"], ["welcome", "1"],
    ]  # fmt: skip
    assert "pending\t" in top
    assert "duepost why 3" in top


def test_many_are_cleared_by_filter_and_the_journal_says_who_and_why(url: str) -> None:
    shell = Shell(url)
    shell.schedule(3)
    shell.query("UPDATE duepost.item SET is_held = true WHERE id = 3")
    assert shell.run("clear", "--kind", "welcome", "--dry-run") == "3 would be looked at; nothing is changed.\n"
    assert shell.run("clear", "--kind", "welcome", "--reason", "a [/wrong] link", "--by", "ann") == (
        "2 emails: cleared.\n"
    )
    assert "email 3 cannot be retried: it is unknown" in shell.run("retry", "3", status=1)
    assert (
        shell.run("pause", "--kind", "welcome", "--by", "ann") == "Paused. `duepost resume --kind welcome` goes on.\n"
    )
    assert "Paused already, by ann" in shell.run("pause", "--kind", "welcome")
    journal = [line.split("\t") for line in shell.run("journal").splitlines()]
    assert [(row[2], row[4], row[6], row[7]) for row in journal[-1:]] == [("ann", "clear", "2", "1 unknown")]
    assert [row[4] for row in journal[1:]] == ["pause", "pause", "retry", "clear"]
    assert journal[-1][8] == "a [/wrong] link"


def test_after_a_restore_what_was_due_is_held_and_said(url: str) -> None:
    shell = Shell(url)
    shell.schedule()
    shell.schedule(at="now() + interval '1 h'")
    said = shell.run("migrate", "--after-restore", "--reason", "db1 lost", "--by", "ann")
    assert "1 held: they were due, and may have been sent after the backup was made; 1 are due later and stay." in said
    assert "duepost resolve --kind KIND" in said
    assert shell.query("SELECT id, state FROM duepost.scheduled_email ORDER BY id") == [
        (1, "unknown"),
        (2, "scheduled"),
    ]
    assert shell.query("SELECT action, by_whom, reason, done FROM duepost.operator_action") == [
        ("after_restore", "ann", "db1 lost", 1)
    ]
    assert "goes with --after-restore" in shell.run("migrate", "--due-by", "1h", status=2)


def test_a_person_is_exported_and_forgotten_from_a_shell(url: str) -> None:
    shell = Shell(url)
    shell.schedule(at="now() + interval '1 h'")
    assert "ann@example.com" in shell.run("export", "Ann@example.com")
    assert "1 scheduled items cleared" in shell.run("forget", "Ann@example.com", "--by", "eve")
    assert shell.query("SELECT outcome, address FROM duepost.delivery") == [("cleared", None)]
    assert shell.run("forget", " ", status=2).count("\n") == 1

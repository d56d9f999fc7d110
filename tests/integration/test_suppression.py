"""Who gets nothing: by address, for all emails or those of a kind, until a time; by hand, from relays, by CSV."""

import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg2
import pytest

from actors.ruling import Phase
from tests.app_harness import Harness
from tests.integration.commands.shell import Shell, at_once
from tests.relays import ScriptedRelay, reply

LATER = "2100-01-01T00:00:00+00:00"


def suppress(harness: Harness, address: str, **arguments: object) -> str:
    given = {"address": address, "by_whom": "ann", "via": "sql", **arguments}
    named = ", ".join(f"{name} => %({name})s{'::timestamptz' if name == 'until' else ''}" for name in given)
    [(answer,)] = harness.query(f"SELECT duepost.suppress({named})", **given)
    return str(answer)


def unsuppress(harness: Harness, address: str, **arguments: object) -> str:
    given = {"address": address, "by_whom": "ann", "via": "sql", **arguments}
    named = ", ".join(f"{name} => %({name})s" for name in given)
    [(answer,)] = harness.query(f"SELECT duepost.unsuppress({named})", **given)
    return str(answer)


def rows(harness: Harness) -> list[tuple[object, ...]]:
    return harness.query("SELECT address, kind, source FROM duepost.suppression ORDER BY address, kind NULLS FIRST")


def test_a_suppressed_address_gets_the_outcome_and_no_dialogue(harness: Harness, relay: ScriptedRelay) -> None:
    harness.recipient("ann", "Ann@example.com")
    assert suppress(harness, "ann@example.com", reason="asked by phone") == "suppressed"
    ids = [harness.schedule(), harness.schedule(users=["ann"])]
    harness.deliver()
    assert [harness.ledger(each) for each in ids] == [["suppressed"], ["suppressed"]]
    assert relay.transcript == []
    told = harness.query("SELECT address, code, reply, attempts FROM duepost.delivery ORDER BY email_id")
    assert [(code, attempts) for _, code, _, attempts in told] == [(None, 0)] * 2
    assert all("suppressed" in str(reply) for _, _, reply, _ in told)
    assert harness.query("SELECT count(*) FROM duepost.attempt") == [(0,)]


def test_a_kind_is_suppressed_and_the_others_go(harness: Harness, relay: ScriptedRelay) -> None:
    harness.recipient("ann", "ann@example.com")
    suppress(harness, "ANN@EXAMPLE.com", kind="digest")
    digests = [harness.schedule(kind="digest"), harness.schedule(kind="digest", users=["ann"])]
    resets = [harness.schedule(kind="reset"), harness.schedule(kind="reset", users=["ann"])]
    harness.deliver()
    assert [harness.ledger(each) for each in digests] == [["suppressed"]] * 2
    assert [harness.ledger(each) for each in resets] == [["sent"]] * 2
    assert len(relay.messages) == 2


def test_one_user_of_several_is_suppressed_and_the_others_get_it(harness: Harness, relay: ScriptedRelay) -> None:
    for user in ("ann", "bob", "cem"):
        harness.recipient(user, f"{user}@example.com")
    suppress(harness, "bob@example.com")
    email_id = harness.schedule(users=["ann", "bob", "cem"])
    harness.deliver()
    assert harness.ledger(email_id) == ["sent", "suppressed", "sent"]
    assert [each.recipients for each in relay.messages] == [("ann@example.com",), ("cem@example.com",)]


def test_a_suppression_ends_by_itself(harness: Harness) -> None:
    suppress(harness, "ann@example.com", until=LATER)
    before = harness.schedule()
    harness.deliver()
    harness.query("UPDATE duepost.suppression SET until = now() - interval '1 s'")
    after = harness.schedule()
    harness.deliver()
    assert [harness.ledger(before), harness.ledger(after)] == [["suppressed"], ["sent"]]
    assert suppress(harness, "ann@example.com", reason="again") == "suppressed", "what has ended is begun again"
    assert harness.query("SELECT until, reason FROM duepost.suppression") == [(None, "again")]


def test_what_is_said_twice_changes_nothing_and_other_words_change_it(harness: Harness) -> None:
    said = [
        suppress(harness, "ann@example.com", reason="a"), suppress(harness, " Ann <ANN@example.com>", reason="a"),
        suppress(harness, "ann@example.com", reason="b", until=LATER), suppress(harness, "ann@example.com", kind="k"),
    ]  # fmt: skip
    assert said == ["suppressed", "already", "changed", "suppressed"]
    assert [unsuppress(harness, "ann@example.com", kind="k"), unsuppress(harness, "ann@example.com", kind="k")] == [
        "lifted", "not_suppressed",
    ]  # fmt: skip
    assert rows(harness) == [("ann@example.com", None, "operator")]
    journal = harness.query("SELECT action, asked ->> 'kind', done FROM duepost.operator_action ORDER BY id")
    assert journal == [
        ("suppress", None, 1), ("suppress", None, 0), ("suppress", None, 1), ("suppress", "k", 1),
        ("unsuppress", "k", 1), ("unsuppress", "k", 0),
    ]  # fmt: skip


def test_an_order_that_comes_twice_is_carried_out_once(harness: Harness) -> None:
    token = "t" * 20
    assert suppress(harness, "ann@example.com", token=token) == "suppressed"
    assert unsuppress(harness, "ann@example.com") == "lifted"
    assert suppress(harness, "ann@example.com", token=token) == "repeated"
    assert rows(harness) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"address": "nobody"}, "address: must be one address"),
        ({"address": "a@example.com, b@example.com"}, "address: must be one address"),
        ({"address": "ann@example.com", "kind": ""}, "kind: must not be empty"),
        ({"address": "ann@example.com", "reason": "a\nb"}, "reason: must be one line"),
        ({"address": "ann@example.com", "until": "2001-01-01Z"}, "until: must be in the future"),
        ({"address": "ann@example.com", "until": "infinity"}, "until: must be a finite time"),
        ({"address": "ann@example.com", "by_whom": " "}, "by_whom: must say who acts"),
    ],
)
def test_a_bad_argument_is_named_and_stores_nothing(harness: Harness, arguments: Mapping[str, str], said: str) -> None:
    with pytest.raises(psycopg2.errors.InvalidParameterValue, match=f"^{said}"):
        suppress(harness, **arguments)
    assert rows(harness) == []
    assert harness.query("SELECT count(*) FROM duepost.operator_action") == [(0,)]


def test_what_a_relay_calls_dead_is_for_all_kinds_and_puts_an_end_off(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    suppress(harness, "ann@example.com", until=LATER)
    harness.query("UPDATE duepost.suppression SET until = now() - interval '1 s'")
    harness.schedule()
    harness.deliver()
    [row] = harness.query("SELECT kind, source, until, enhanced_code, reply FROM duepost.suppression")
    assert row == (None, "relay", None, "5.1.1", "5.1.1 no such user")


def test_a_reopening_lifts_what_a_relay_has_said_and_nothing_else(harness: Harness, relay: ScriptedRelay) -> None:
    relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    email_id = harness.schedule()
    harness.deliver()
    suppress(harness, "ann@example.com", kind="digest")
    harness.query("SELECT duepost.reopen_email(%(id)s)", id=email_id)
    assert rows(harness) == [("ann@example.com", "digest", "operator")]


# CSV -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(url: str) -> Shell:
    return Shell(url)


def test_what_is_exported_is_taken_in_again_as_it_was(shell: Shell, tmp_path: Path) -> None:
    shell.run("suppress", "ann@example.com", "--kind", "digest", "--reason", 'said "no, thanks"', "--until", "30d")
    shell.run("suppress", "Jörg@MÜNCHEN.example")
    exported = shell.run("suppress", "--export")
    found = list(csv.DictReader(io.StringIO(exported)))
    assert [(each["address"], each["kind"], each["reason"]) for each in found] == [
        ("ann@example.com", "digest", 'said "no, thanks"'), ("jörg@xn--mnchen-3ya.example", "", ""),
    ]  # fmt: skip
    ends = datetime.fromisoformat(found[0]["until"])
    assert timedelta(days=29) < ends - datetime.now(UTC) < timedelta(days=31)
    stored = "SELECT address, kind, source, reason, until, suppressed_at FROM duepost.suppression ORDER BY 1"
    before = shell.query(stored)
    shell.query("DELETE FROM duepost.suppression")
    file = tmp_path / "all.csv"
    file.write_text(exported, encoding="utf-8")
    assert shell.run("suppress", "--import", str(file)) == "2 suppressions taken.\n"
    assert shell.query(stored) == before
    assert shell.run("suppress", "--import", str(file)) == "0 suppressions taken; 2 were so already.\n"
    assert [each[0] for each in shell.query("SELECT done FROM duepost.operator_action ORDER BY id")] == [1, 1, 2, 0]


def test_lines_that_are_wrong_are_named_and_the_others_are_taken(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "dead.csv"
    file.write_bytes(
        b'\xef\xbb\xbfEmail;Reason;Until\r\n"a@example.com";"two\r\nlines";\r\n\r\nb@example.com;;2001-01-01T00:00Z\r\n'
        b"nobody;;\r\nc@example.com;left;\r\nd@example.com;;tomorrow\r\n"
    )
    said = shell.run("suppress", "--import", str(file), "--kind", "digest", status=1)
    assert [line.partition(f"{file}: ")[2] for line in said.splitlines()] == [
        "line 3: reason: must be one line: CR and LF are not allowed",
        "line 5: until: must be in the future",
        "line 6: address: must be one address such as ann@example.com",
        "line 8: until: must be a time in ISO 8601 with its zone",
        "4 lines not taken",
    ]
    assert shell.query("SELECT address, kind, source, reason FROM duepost.suppression") == [
        ("c@example.com", "digest", "import", "left")
    ]


@pytest.mark.parametrize(
    ("content", "taken"),
    [
        (b"ann@example.com\nbob@example.com\n", 2),
        (b"Address,Code,Error,Created\nann@example.com,550,No such mailbox,\n", 1),
        (b"email\tscope\nann@example.com\tdigest\n\nANN@example.com\tdigest\n", 1),
    ],
)
def test_files_of_others_are_taken_as_they_are(shell: Shell, tmp_path: Path, content: bytes, taken: int) -> None:
    file = tmp_path / "theirs.csv"
    file.write_bytes(content)
    assert shell.run("suppress", "--import", str(file)).startswith(f"{taken} suppression")
    assert shell.query("SELECT count(*) FROM duepost.suppression") == [(taken,)]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"name,phone\nAnn,1\n", b"address\n", b"address\n\xff@x.org\n"])
def test_a_file_without_addresses_is_bad_usage(shell: Shell, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "none.csv"
    file.write_bytes(content)
    assert shell.run("suppress", "--import", str(file), status=2).count("\n") == 1


def test_a_long_file_is_taken_in_batches_by_two_at_once(shell: Shell) -> None:
    """In two orders: they wait for each other, and not in a circle."""
    lines = "address\n" + "\n".join(f"a{number}@example.com" for number in range(2_500))
    backwards = "address\n" + "\n".join(f"a{number}@example.com" for number in reversed(range(2_500)))
    said = at_once(lambda text: shell.run("suppress", "--import", "-", stdin=text), [lines, backwards])
    assert sum(int(each.split()[0]) for each in said) == 2_500
    assert shell.query("SELECT count(*) FROM duepost.suppression") == [(2_500,)]


def test_the_command_says_what_is_so_and_where_else_it_is(shell: Shell) -> None:
    assert shell.run("suppress", "ann@example.com", "--kind", "digest") == (
        "ann@example.com is suppressed now: it gets no emails of kind digest.\n"
    )
    assert "is suppressed already" in shell.run("suppress", "ann@example.com", "--kind", "digest")
    assert shell.run("unsuppress", "ann@example.com", status=1) == (
        "duepost: ann@example.com: is not suppressed for all emails; it is for --kind digest\n"
    )
    assert "ann@example.com is suppressed for kind digest since" in shell.run("find", "--address", "Ann@example.com")
    assert "1, 1 of them of a kind" in shell.run("stats")
    assert shell.run("unsuppress", "ann@example.com", "--kind", "digest") == (
        "ann@example.com is not suppressed any more for kind digest.\n"
    )
    assert shell.run("suppress", status=2).count("\n") == 1
    assert shell.run("suppress", "a@example.com", "--export", status=2).count("\n") == 1

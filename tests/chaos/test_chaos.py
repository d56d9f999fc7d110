"""A short run in which everything goes wrong; `make chaos MINUTES=n` makes long ones."""

import os
from pathlib import Path

import pytest

from tests.chaos import various
from tests.chaos.clients import Asked
from tests.chaos.plan import plan
from tests.chaos.relay import Taken
from tests.chaos.run import Chaos, random_seed
from tests.postgres import installed_binaries


@pytest.fixture
def binaries() -> Path:
    return installed_binaries()["embedded-18"]


def test_nothing_is_lost_doubled_or_stuck(tmp_path: Path, binaries: Path) -> None:
    seed = int(os.environ.get("SEED", "0")) or random_seed()
    print(f"seed {seed}: SEED={seed} replays the plan")
    report = Chaos(seed, 25, tmp_path, binaries).run()
    print(report)
    assert report.wrong == [], f"{report}\n{report.log[-5000:]}"
    assert report.emails > 100
    assert report.outcomes.get("sent", 0) > 50


@pytest.mark.parametrize(
    ("bug", "symptom"),
    [
        ("conclude_before_the_dot", "the relay never took it"),
        ("clear_what_is_being_sent", "cleared, and sent all the same"),
    ],
)
def test_a_planted_bug_is_caught(tmp_path: Path, binaries: Path, bug: str, symptom: str) -> None:
    chaos = Chaos(4711, 20, tmp_path, binaries, module="tests.chaos.bugged", env={"CHAOS_BUG": bug})
    wrong = chaos.run().wrong
    assert any(symptom in each for each in wrong), wrong


def test_a_seed_gives_the_same_plan_again() -> None:
    assert plan(7, 60) == plan(7, 60)
    assert plan(7, 60) != plan(8, 60)


def test_a_promise_may_be_in_force_from_when_it_was_asked_for() -> None:
    asked = Asked("key", 1, "resend", {}, [(0.0, 0.0, 5.0), (10.0, 11.0, 20.0), (12.0, 14.0, 12.0)], None)
    assert [asked.not_before(moment) for moment in (9.0, 10.5, 11.5, 13.0, 15.0)] == [5.0, 5.0, 20.0, 12.0, 12.0]


def test_what_is_wrong_of_an_email_to_several_is_named() -> None:
    asked = various.Asked("key", frozenset({"a@x", "b@x", "c@x"}), frozenset({"c@x"}), None, 10.0, never={"b@x"})

    def copies(*addresses: str, at: float = 11.0, content: bytes = b"\r\n") -> list[Taken]:
        return [Taken(at, at, address, "key", "id", content) for address in addresses]

    def faults(taken: list[Taken], outcomes: dict[str, list[str]], unknowns: int = 0) -> list[str]:
        found = various.faults(asked, various.End(outcomes, unknowns, is_held=False), taken)
        return [fault.partition(";")[0] for fault in found]

    right = {"a@x": ["sent"], "b@x": ["suppressed"], "c@x": ["undeliverable", "sent"]}
    assert faults(copies("a@x", "c@x"), right) == []
    assert faults(copies("a@x", "c@x", "c@x"), right, unknowns=1) == []
    assert faults(copies("a@x", "c@x", "c@x"), right) == ["c@x: 2 copies, 0 named as unknown"]
    assert faults(copies("a@x", "b@x", "c@x"), right)[0] == "b@x: was to get nothing, and got it"
    assert faults(copies("a@x"), right) == ["c@x: lost: the ledger says sent, the relay never took it"]
    assert faults(copies("a@x", "c@x", at=9.0), right) == ["left early"]
    assert faults(copies("a@x", "c@x", content=b"Bcc: c@x"), right) == ["bcc stands in the content"]
    assert faults(copies("a@x") + copies("c@x", content=b"other"), right) == ["its copies differ"]
    assert faults(copies("a@x", "c@x"), right | {"b@x": []}) == ["b@x: nobody knows what became of it"]
    assert faults(copies("a@x", "c@x"), right | {"c@x": ["sent", "sent"]}) == [
        "c@x: several rows in the ledger: ['sent', 'sent']"
    ]

"""A short run in which everything goes wrong; `make chaos MINUTES=n` makes long ones."""

import os
from pathlib import Path

import pytest

from tests.chaos.clients import Asked
from tests.chaos.plan import plan
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

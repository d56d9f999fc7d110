"""When a retry is worth it."""

import random

import pytest

from actors.delivery.retry_policy import LONGEST_PAUSE, retry_pause
from actors.ruling import Pace


class Middle(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@pytest.mark.parametrize(
    ("attempts", "seconds"),
    [(1, 15), (2, 30), (3, 60), (4, 120), (8, 1920), (9, 3600), (10, 3600), (5000, 3600)],
)
def test_the_pause_starts_at_15_s_and_doubles_up_to_an_hour(attempts: int, seconds: float) -> None:
    assert retry_pause(attempts, Pace.NORMAL, Middle()) == seconds


def test_pauses_are_jittered_by_a_fifth_both_ways() -> None:
    pauses = [retry_pause(1, Pace.NORMAL, random.Random(seed)) for seed in range(500)]
    assert 12 <= min(pauses) < 12.2
    assert 17.8 < max(pauses) <= 18


@pytest.mark.parametrize(("pace", "least"), [(Pace.GREYLISTED, 300), (Pace.MAILBOX_FULL, 3600), (Pace.BROKEN, 300)])
def test_some_reasons_want_longer_pauses_that_jitter_does_not_undercut(pace: Pace, least: float) -> None:
    assert all(retry_pause(1, pace, random.Random(seed)) >= least for seed in range(200))


def test_a_broken_template_waits_longer_each_time_up_to_an_hour() -> None:
    assert [retry_pause(n, Pace.BROKEN, Middle()) for n in (1, 2, 3, 9)] == [300, 600, 1200, LONGEST_PAUSE]

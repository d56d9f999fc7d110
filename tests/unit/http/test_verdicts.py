"""What HTTP's answers and failures mean."""

import pytest

from actors.channels.http.verdicts import judge, judge_failure
from actors.ruling import Limit, Phase, Ruling, Scope
from models.words import Verdict
from tests.unit.http.answers import NOW, answer

LATER = (Verdict.RETRY, Scope.MESSAGE)
OURS = (Verdict.RETRY, Scope.RELAY)
REFUSED = (Verdict.UNDELIVERABLE, Scope.MESSAGE)


def meaning(ruling: Ruling) -> tuple[Verdict, Scope]:
    return ruling.verdict, ruling.scope


@pytest.mark.parametrize("status", [200, 201, 202, 203, 204, 205, 206, 207, 226, 250, 299])
def test_any_2xx_is_sent_whatever_its_body_does(status: int) -> None:
    for body, is_whole in ((b"", True), (b"\xff\xfe", True), (b"{", False)):
        assert judge(answer(status, body, is_whole=is_whole)).verdict is Verdict.SENT


@pytest.mark.parametrize("status", [408, 425, 429, *range(500, 511), *range(512, 1000)])
def test_what_may_be_different_soon_is_retried(status: int) -> None:
    assert meaning(judge(answer(status))) == LATER


@pytest.mark.parametrize("status", [*range(300, 400), 401, 403, 404, 405, 407, 411, 421, 426, 451, 511])
def test_what_says_that_the_url_the_secret_or_the_way_is_wrong_drops_nothing(status: int) -> None:
    assert meaning(judge(answer(status))) == OURS


@pytest.mark.parametrize("status", [400, 402, 406, 409, 410, 412, 413, 414, 415, 416, 417, 418, 422, 423, 431, 499])
def test_any_other_4xx_drops_the_message(status: int) -> None:
    assert meaning(judge(answer(status))) == REFUSED


def test_only_a_410_says_that_the_endpoint_is_gone() -> None:
    assert [status for status in range(200, 1000) if judge(answer(status)).is_gone] == [410]


def test_only_a_429_and_a_503_pause_the_endpoint() -> None:
    paused = [status for status in range(200, 1000) if judge(answer(status, b"", ("retry-after", "7"))).retry_after]
    limited = [status for status in range(200, 1000) if judge(answer(status)).limits is Limit.RATE]
    assert paused == limited == [429, 503]


def test_a_pause_is_kept_and_a_capped_one_is_written_down_as_such() -> None:
    assert judge(answer(429, "slow down", ("retry-after", "120"))).retry_after == 120
    capped = judge(answer(503, "", ("retry-after", "999999")))
    assert capped.retry_after == 86_400
    assert "24 h" in capped.reply
    assert judge(answer(503, "", ("retry-after", "1_000"))).retry_after is None


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("https://Other.example/SECRET?x=SECRET#SECRET", "redirects to other.example:"),
        ("http://user:SECRET@169.254.169.254/SECRET", "redirects to 169.254.169.254:"),
        ("//[::1]:8080/SECRET", "redirects to [::1]:"),
        ("https://other.example?SECRET", "redirects to other.example:"),
        ("/SECRET", "redirects to another path of the same host:"),
        ("SECRET", "redirects nowhere that is known:"),
        ("https://SE\u2028CRET/", "redirects nowhere that is known:"),
        ("javascript:SECRET", "redirects nowhere that is known:"),
        ("", "redirects nowhere that is known:"),
    ],
)
def test_of_a_redirect_only_the_host_is_named(location: str, said: str) -> None:
    reply = judge(answer(302, "see SECRET", ("location", location))).reply
    assert reply.startswith(said)
    assert "SECRET" not in reply


def test_a_redirect_without_a_location_is_one() -> None:
    assert judge(answer(304)).reply.startswith("redirects nowhere")


def test_an_answer_is_about_the_item_and_counts_as_one() -> None:
    assert judge(answer(400)).is_answer
    assert judge(answer(400, "bad", reason="Bad Request")).reply == "Bad Request: bad"


@pytest.mark.parametrize("phase", [Phase.ENDPOINT, Phase.RESOLVE, Phase.CONNECT, Phase.TLS, Phase.REQUEST])
def test_before_the_request_s_last_byte_a_failure_is_the_endpoint_s(phase: Phase) -> None:
    assert judge_failure(phase, "broken") == Ruling(*OURS, phase, reply="broken")


def test_after_the_request_s_last_byte_nobody_knows() -> None:
    ruling = judge_failure(Phase.RESPONSE, "broken")
    assert meaning(ruling) == (Verdict.UNKNOWN, Scope.MESSAGE)
    assert not ruling.is_answer


def test_the_time_of_an_answer_is_what_dates_are_compared_with() -> None:
    assert judge(answer(503, "", ("retry-after", "Thu, 01 Jan 2026 00:00:00 GMT"))).retry_after is None
    assert NOW > 1_700_000_000

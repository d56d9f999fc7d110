"""Several relays: each route has a circuit, a pace and a line of its own, and one's trouble is no other's."""

from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from actors.ruling import Phase
from models import emails, routes
from models.routes import RouteState
from tests.app_harness import Harness
from tests.integration.conftest import settings_of
from tests.relays import ScriptedRelay, reply

REFUSES = "554 5.7.1 go away"


@pytest.fixture
def other() -> Iterator[ScriptedRelay]:
    """The relay called marketing."""
    with ScriptedRelay() as other:
        yield other


@pytest.fixture
def two(
    url: str, relay: ScriptedRelay, other: ScriptedRelay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Harness]:
    """A process that serves two routes; digests leave by marketing."""
    for name, value in settings_of(url, relay.url, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DUEPOST_SMTP_URL_MARKETING", other.url)
    two = Harness(url, tmp_path)
    two.query("INSERT INTO duepost.kind (kind, route) VALUES ('digest', 'marketing')")
    yield two
    two.close()


@pytest.fixture
def with_fallback(two: Harness, monkeypatch: pytest.MonkeyPatch) -> Harness:
    """The default relay takes over for marketing."""
    monkeypatch.setenv("DUEPOST_SMTP_FALLBACK_MARKETING", "default")
    two.restart()
    return two


def received(relay: ScriptedRelay) -> list[str]:
    return sorted(recipient for message in relay.messages for recipient in message.recipients)


def state(harness: Harness, name: str) -> RouteState:
    [found] = [each for each in routes.states(harness.database) if each.name == name]
    return found


def routes_in_the_ledger(harness: Harness) -> dict[object, object]:
    return dict(harness.query("SELECT address, route FROM duepost.delivery"))  # type: ignore[arg-type]


def test_each_kind_leaves_by_its_route(two: Harness, relay: ScriptedRelay, other: ScriptedRelay) -> None:
    two.schedule(address="ann@example.com")
    two.schedule(address="bob@example.com", kind="digest")
    two.deliver()
    assert (received(relay), received(other)) == (["ann@example.com"], ["bob@example.com"])
    assert routes_in_the_ledger(two) == {"ann@example.com": None, "bob@example.com": "marketing"}


def test_only_the_circuit_of_the_route_that_fails_opens_and_the_other_goes_on(
    two: Harness, relay: ScriptedRelay, other: ScriptedRelay
) -> None:
    other.on(Phase.BANNER, reply(REFUSES))
    digests = [two.schedule(kind="digest") for _ in range(5)]
    two.deliver()
    assert (state(two, "marketing").circuit_open, state(two, "default").circuit_open) == (True, False)
    welcomes = [two.schedule() for _ in range(5)]
    two.deliver()
    assert [two.ledger(each) for each in welcomes] == [["sent"]] * 5
    assert [two.row(each)["state"] for each in digests] == ["scheduled"] * 5
    other.forget()
    two.query("UPDATE duepost.route SET probe_at = now() WHERE name = 'marketing'")
    two.deliver()
    two.deliver()
    assert not state(two, "marketing").circuit_open
    assert [two.ledger(each) for each in digests] == [["sent"]] * 5
    assert len(received(relay)) == len(received(other)) == 5


def test_while_a_circuit_is_open_its_emails_leave_by_the_fallback_and_after_a_good_probe_by_their_own_route(
    with_fallback: Harness, relay: ScriptedRelay, other: ScriptedRelay
) -> None:
    harness = with_fallback
    other.on(Phase.BANNER, reply(REFUSES))
    ids = [harness.schedule(kind="digest", address=f"a{number}@example.com") for number in range(3)]
    harness.deliver()
    assert state(harness, "marketing").circuit_open
    harness.deliver()
    assert [harness.ledger(each) for each in ids] == [["sent"]] * 3
    assert received(relay) == ["a0@example.com", "a1@example.com", "a2@example.com"]
    assert set(routes_in_the_ledger(harness).values()) == {None}
    assert state(harness, "marketing").circuit_open, "what another relay takes says nothing of this one"
    other.forget()
    harness.schedule(kind="digest", address="probe@example.com")
    harness.query("UPDATE duepost.route SET probe_at = now() WHERE name = 'marketing'")
    harness.deliver()
    assert received(other) == ["probe@example.com"]
    assert not state(harness, "marketing").circuit_open
    harness.schedule(kind="digest", address="after@example.com")
    harness.deliver()
    assert received(other) == ["after@example.com", "probe@example.com"]
    assert len(received(relay)) == 3


def test_a_failure_of_the_fallback_is_the_fallbacks(
    with_fallback: Harness, relay: ScriptedRelay, other: ScriptedRelay
) -> None:
    for each in (relay, other):
        each.on(Phase.BANNER, reply(REFUSES))
    email_id = with_fallback.schedule(kind="digest")
    for _ in range(3):
        with_fallback.deliver()
    assert (state(with_fallback, "marketing").circuit_open, state(with_fallback, "default").circuit_open) == (
        True,
        True,
    )
    assert with_fallback.row(email_id)["state"] == "scheduled"
    assert [way for way in routes.ways(with_fallback.database) if way.way is not None] == []


def test_ten_refused_alike_by_one_relay_open_its_circuit_whatever_another_accepts_meanwhile(
    two: Harness, relay: ScriptedRelay, other: ScriptedRelay
) -> None:
    other.on(Phase.RCPT, reply("554 5.7.1 we do not like this"))
    ids = []
    for number in range(10):
        ids.append(two.schedule(kind="digest", address=f"a{number}@example.com"))
        two.schedule(address=f"b{number}@example.com")
        two.deliver()
    assert state(two, "marketing").circuit_open
    assert not state(two, "default").circuit_open
    assert [two.row(each)["state"] for each in ids] == ["scheduled"] * 10
    assert len(received(relay)) == 10


def test_a_relay_that_had_too_much_of_us_slows_no_other(
    two: Harness, relay: ScriptedRelay, other: ScriptedRelay
) -> None:
    other.on(Phase.MAIL, reply("450 4.7.1 slow down, rate limit exceeded"))
    two.schedule(kind="digest")
    two.deliver()
    two.query("UPDATE duepost.route SET paused_until = now() + interval '1 s', pause = 60 WHERE name = 'marketing'")
    digest = two.schedule(kind="digest")
    welcome = two.schedule()
    two.deliver()
    assert two.ledger(welcome) == ["sent"]
    assert two.row(digest)["attempts"] == 0


def test_a_route_that_no_worker_has_registered_has_its_emails_wait(two: Harness) -> None:
    two.query("UPDATE duepost.kind SET route = 'nobodys'")
    email_id = two.schedule(kind="digest")
    two.deliver()
    assert two.row(email_id)["state"] == "scheduled"
    two.query("UPDATE duepost.scheduled_email SET route = 'default'")
    two.deliver()
    assert two.ledger(email_id) == ["sent"]


def test_what_is_queued_and_is_moved_leaves_by_its_new_route(
    two: Harness, relay: ScriptedRelay, other: ScriptedRelay
) -> None:
    two.schedule(kind="digest")
    two.enqueue()
    two.query("UPDATE duepost.scheduled_email SET route = 'default'")
    two.send()
    assert (received(relay), received(other)) == ([], [])
    two.deliver()
    assert (received(relay), received(other)) == (["ann@example.com"], [])


def test_a_message_of_another_route_claims_nothing(two: Harness) -> None:
    email_id = two.schedule(kind="digest")
    assert emails.claim_unread(two.database, [email_id], two.worker_session.worker_id, "default") == []
    [claimed] = emails.claim_unread(two.database, [email_id], two.worker_session.worker_id, "marketing")
    assert claimed.id == email_id


def test_a_route_whose_target_changes_is_another_relay_and_nothing_is_known_of_it(two: Harness) -> None:
    two.query(
        "UPDATE duepost.route SET circuit_open = true, probe_at = now(), circuit_reason = 'auth 535', connections = 1,"
        " connections_at = now(), raise_at = now() WHERE name = 'marketing'"
    )
    two.restart()
    assert state(two, "marketing").circuit_open, "it is the same relay"
    with ScriptedRelay() as third, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DUEPOST_SMTP_URL_MARKETING", third.url)
        two.restart()
        found = state(two, "marketing")
    assert (found.circuit_open, found.circuit_reason, found.allowed) == (False, None, None)
    assert found.workers == 1


def test_the_failure_of_one_routes_statement_stops_no_other(two: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    due_page = emails.due_page

    def fail(*given: object, route: str = "default", **more: object) -> object:
        if route == "default":
            raise psycopg2.DataError("broken")
        return due_page(*given, route=route, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(emails, "due_page", fail)
    welcome, digest = two.schedule(), two.schedule(kind="digest")
    with pytest.raises(psycopg2.DataError):
        two.enqueue()
    two.send()
    assert two.ledger(digest) == ["sent"]
    assert two.row(welcome)["state"] == "scheduled"


def test_a_long_line_of_one_route_does_not_hide_anothers(two: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.scheduler.PAGE", 5)
    for _ in range(12):
        two.schedule(kind="digest")
    welcome = two.schedule()
    pages = two.app.scheduler.due_pages([])
    first_round = [next(pages) for _ in range(4)]
    assert welcome in {each.id for _, page in first_round for each in page}
    pages.close()


def test_releases_before_write_policies_as_they_did(two: Harness) -> None:
    two.query(
        "INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('digest', 'hold')"
        " ON CONFLICT (kind) DO UPDATE SET on_unknown = excluded.on_unknown"
    )
    assert two.query("SELECT kind, on_unknown, route FROM duepost.kind") == [("digest", "hold", "marketing")]

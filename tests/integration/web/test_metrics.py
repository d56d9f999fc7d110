"""`/metrics` of the console: what it says of the database, and who may see it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from actors.metrics import MOST_VALUES
from models import metrics
from tests.integration.web.site import ConsoleSite, Start

TOKEN = "0123456789abcdef0123"


def samples(text: str) -> Mapping[tuple[str, ...], float]:
    """Each sample by its name and the values of its labels, as Prometheus reads it."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(console: ConsoleSite, **headers: str) -> Mapping[tuple[str, ...], float]:
    answer = console.browser().get("/metrics", **headers)
    assert answer.status == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return samples(answer.text)


SCHEDULE = """
SELECT duepost.schedule_email(
    kind => 'welcome', address => 'ann@example.com', subject => 'Secret', body_text => 'x',
    scheduled_at => now() + interval '1 hour' * i
) FROM generate_series(0, 2) AS i
"""


def test_a_scrape_tells_what_is_pending_and_for_how_long_it_has_been_due(console: ConsoleSite) -> None:
    console.database.execute(SCHEDULE)
    console.database.execute("UPDATE duepost.item SET due_at = now() - interval '100 s' WHERE due_at <= now()")
    console.database.execute("UPDATE duepost.item SET is_held = true WHERE due_at > now() + interval '90 min'")
    console.database.execute(
        "INSERT INTO duepost.bounce (source, event, effect) VALUES ('ses', 'failed', 'failed'), ('ses', 'x', 'failed')"
    )
    found = scraped(console)
    assert found["duepost_came_back", "failed", "ses"] == 2
    assert found["duepost_items_pending", "email", "scheduled"] == 2
    assert found["duepost_items_pending", "email", "unknown"] == 1
    assert found["duepost_items_pending", "message", "scheduled"] == 0
    assert 99 < found["duepost_oldest_due_seconds", "email"] < 160
    assert found["duepost_oldest_due_seconds", "message"] == 0
    assert found["duepost_workers",] == 0
    assert found["duepost_dead_letters",] == 0
    assert found["duepost_paused",] == 0


def test_an_open_circuit_is_told_with_a_hostile_name_kept_out(console: ConsoleSite) -> None:
    console.database.execute(
        """
        INSERT INTO duepost.route (name, circuit_open, circuit_opened_at, circuit_reason, probe_at, probe_pause)
        SELECT name, true, now(), 'refused', now(), 30
        FROM unnest(%(names)s::text[]) AS name
        ON CONFLICT (name) DO UPDATE SET circuit_open = true, circuit_opened_at = now(), circuit_reason = 'refused',
            probe_at = now(), probe_pause = 30
        """,
        {"names": ["default", 'a"}\\\n 1', "ann@example.com"]},
    )
    answer = console.browser().get("/metrics")
    found = samples(answer.text)
    assert found["duepost_route_circuit_open", "default"] == 1
    assert found["duepost_route_circuit_open", "other"] == 1
    assert "@" not in answer.text


def test_rates_are_told_by_names_that_operators_gave(console: ConsoleSite) -> None:
    console.database.execute(
        "SELECT duepost.set_rate(per_second => 14), duepost.set_rate('marketing', 'gmail.com', 0.5, 3),"
        " duepost.set_rate(domain => 'x.example', connections => 2)"
    )
    console.database.execute(
        "INSERT INTO duepost.destination (route, domain, learnt, learnt_from, learnt_at, learnt_because)"
        " SELECT 'marketing', domain, 0.25, 64, now(), 'rcpt 421 4.7.28'"
        " FROM unnest('{gmail.com,ann-example.example,bob-example.example}'::text[]) AS domain"
    )
    console.database.execute(
        "WITH worker AS (INSERT INTO duepost.worker (host, pid) VALUES ('h', 1) RETURNING id)"
        " INSERT INTO duepost.destination_worker (route, domain, worker_id, held, speaking)"
        " SELECT 'default', '', id, 9, 2 FROM worker UNION ALL SELECT 'marketing', 'gmail.com', id, 1, 0 FROM worker"
    )
    console.database.execute(SCHEDULE)
    console.database.execute("UPDATE duepost.item SET last_error = 'rate: waits for the rate of x.example: 2 at once'")
    answer = console.browser().get("/metrics")
    assert "ann-example" not in answer.text
    told = samples(answer.text)
    assert {key: value for key, value in told.items() if key[0] == "duepost_rate_limit"} == {
        ("duepost_rate_limit", "", "default"): 14,
        ("duepost_rate_limit", "gmail.com", "marketing"): 0.25,
    }
    assert told["duepost_rate_connections", "gmail.com", "marketing"] == 3
    assert told["duepost_rate_connections", "x.example", "default"] == 2
    assert told["duepost_rate_current", "", "default"] == 9
    assert told["duepost_rate_current", "gmail.com", "marketing"] == 0.25
    assert told["duepost_rate_waiting", "", "default"] == 1
    assert told["duepost_rate_waiting", "x.example", "default"] == 3
    assert told["duepost_rate_waiting", "other", "marketing"] == 0
    assert told["duepost_rate_slowed", "marketing"] == 3
    assert told["duepost_rate_slowed", "default"] == 0


def test_labels_of_rates_are_bounded(console: ConsoleSite) -> None:
    console.database.execute(
        "INSERT INTO duepost.rate (route, domain, per_second)"
        " SELECT 'default', 'd' || i || '.example', 1 FROM generate_series(1, 250) AS i"
    )
    found = scraped(console)
    assert len([key for key in found if key[0] == "duepost_rate_limit"]) == MOST_VALUES
    assert len([key for key in found if key[0] == "duepost_rate_waiting"]) == MOST_VALUES + 1


def test_an_answer_is_kept_for_some_seconds(console: ConsoleSite) -> None:
    before = scraped(console)
    console.database.execute(SCHEDULE)
    assert scraped(console) == before


def test_who_is_not_logged_in_sees_nothing_without_the_token(start: Start, tmp_path: Path) -> None:
    (users := tmp_path / "users").write_text("vera:viewer:-\n")
    console = start(
        DUEPOST_WEB_USERS=str(users), DUEPOST_WEB_USER_HEADER="X-User", DUEPOST_WEB_PROXIES="127.0.0.1",
        DUEPOST_WEB_METRICS_TOKEN=TOKEN,
    )  # fmt: skip
    for headers in (
        {},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer wrong", "X_User": "vera"},
        {"Authorization": "Bearer \xe9"},
    ):
        answer = console.browser().get("/metrics", **headers)
        assert answer.status == 401, headers
        assert "duepost_" not in answer.text
    assert scraped(console, X_User="vera")
    assert scraped(console, Authorization=f"Bearer {TOKEN}")
    # Prometheus asks by an address of the machine, whatever the console is called.
    assert scraped(console, Authorization=f"Bearer {TOKEN}", Host="192.0.2.7:8025")
    assert console.browser().get("/", Authorization=f"Bearer {TOKEN}").status == 403


def test_without_a_token_no_token_is_right(console: ConsoleSite) -> None:
    for shown in ("Bearer ", "Bearer None", f"Bearer {TOKEN}"):
        assert console.browser().get("/metrics", Authorization=shown).status == 401


def test_a_console_without_logins_shows_nothing_to_what_comes_by_a_proxy_or_another_name(console: ConsoleSite) -> None:
    assert console.browser().get("/metrics", X_Forwarded_For="192.0.2.1").status == 403
    assert console.browser().get("/metrics", Host="evil.example").status == 403


def test_where_the_database_does_not_answer_a_scrape_fails(console: ConsoleSite) -> None:
    console.database.execute("ALTER TABLE duepost.item RENAME TO moved")
    assert console.browser().get("/metrics").status == 503


@pytest.mark.parametrize("name", ["pending", "oldest_due", "circuits", "alive"])
def test_no_statement_reads_the_ledger(console: ConsoleSite, name: str) -> None:
    parameters = {"most": metrics.MOST_COUNTED}
    plan = console.database.execute(f"EXPLAIN {metrics.SQL[name]}", parameters)
    assert "delivery" not in str(plan)

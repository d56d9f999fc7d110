"""What an operator sees and does where there are several relays."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.ruling import Phase
from tests.integration.commands.shell import Shell
from tests.relays import ScriptedRelay, reply

#: What two workers have registered; the circuit of marketing is open, and mail takes its place for it.
REGISTERED = """
    INSERT INTO duepost.worker (host, pid) VALUES ('here', 1);
    SELECT duepost.register_route('default', 'mail.example.com:587', NULL, max(id)) FROM duepost.worker;
    SELECT duepost.register_route('marketing', 'bulk.example.com:25', 'default', max(id)) FROM duepost.worker;
    UPDATE duepost.route
    SET circuit_open = true, circuit_reason = 'auth 535 5.7.8', probe_at = now() + interval '5 min', probe_pause = 300
    WHERE name = 'marketing';
    INSERT INTO duepost.kind (kind, route) VALUES ('welcome', 'marketing');
"""


@pytest.fixture
def bulk() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as bulk:
        yield bulk


@pytest.fixture
def shell(url: str, tmp_path: Path, bulk: ScriptedRelay) -> Iterator[Shell]:
    """Commands that know two relays."""
    with ScriptedRelay() as relay:
        more = {"DUEPOST_TEMPLATES": str(tmp_path), "DUEPOST_SMTP_URL_MARKETING": bulk.url}
        shell = Shell(url, relay.url, **more)
        shell.query(REGISTERED)
        yield shell


def test_stats_have_a_line_for_each_and_all_of_it_as_json(shell: Shell) -> None:
    plain, as_json = shell.run_all(["stats"], ["stats", "--json"])
    found = json.loads(as_json)
    assert [each["name"] for each in found["routes"]] == ["default", "marketing"]
    marketing = found["routes"][1]
    assert marketing["probe_at"]
    assert {name: marketing[name] for name in marketing if name != "probe_at"} == {
        "name": "marketing",
        "target": "bulk.example.com:25",
        "circuit": "open",
        "reason": "auth 535 5.7.8",
        "fallback": "default",
        "workers": 1,
        "connections": 0,
        "allowed": None,
        "paused_until": None,
    }
    assert (found["circuit"], found["circuit_reason"]) == ("open", "auth 535 5.7.8")
    assert "default (mail.example.com:587) closed" in plain
    assert "marketing (bulk.example.com:25) open (auth 535 5.7.8)" in plain


def test_the_doctor_asks_each_relay_and_says_where_mail_goes_meanwhile(shell: Shell, bulk: ScriptedRelay) -> None:
    bulk.on(Phase.BANNER, reply("554 5.7.1 go away"))
    found = shell.findings(status=1)
    assert found["relay"][0] != "failed"
    assert found["relay marketing"][0] == "failed"
    health, detail = found["delivery"]
    assert health == "failed"
    assert "the circuit of marketing is open (auth 535 5.7.8): its emails leave by default meanwhile" in detail
    assert "duepost probe --route marketing" in detail


def test_an_email_shows_the_circuit_of_its_own_route(shell: Shell) -> None:
    shell.schedule()
    told = shell.run("show", "1")
    assert "the circuit of marketing is open" in told
    assert "meanwhile it leaves by default" in told
    shell.query("UPDATE duepost.scheduled_email SET route = 'default'")
    assert "circuit" not in shell.run("show", "1")


def test_a_route_that_nobody_serves_is_told_with_its_variable(shell: Shell) -> None:
    shell.query("UPDATE duepost.worker SET gone_at = now()")
    shell.schedule()
    _, detail = shell.findings(status=1)["delivery"]
    assert "no worker serves the route marketing (of kind welcome, 1 email due)" in detail
    assert "DUEPOST_SMTP_URL_MARKETING" in detail


def test_a_probe_may_be_asked_of_one(shell: Shell) -> None:
    shell.query(
        "UPDATE duepost.route SET circuit_open = true, probe_at = now() + interval '5 min', probe_pause = 300"
        " WHERE name = 'default'"
    )
    shell.run("probe", "--route", "marketing")
    assert shell.query("SELECT name FROM duepost.route WHERE probe_at <= now()") == [("marketing",)]
    assert "known are default, marketing" in shell.run("probe", "--route", "nobodys", status=2)
    shell.run("probe")
    assert shell.query("SELECT count(*) FROM duepost.route WHERE probe_at <= now()") == [(2,)]


def test_a_relay_that_takes_over_and_is_none_is_named(url: str) -> None:
    shell = Shell(url, DUEPOST_SMTP_FALLBACK="nobody")
    assert shell.run("stats", status=2).startswith("duepost: DUEPOST_SMTP_FALLBACK: there is no such relay")

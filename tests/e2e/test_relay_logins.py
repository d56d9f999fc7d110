"""A relay that refuses a login is asked few times, however much is due; one that takes another mechanism gets it."""

from collections import Counter

import pytest

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.relays import ScriptedRelay, last_word, reply
from tests.waiting import wait_until

CONNECTIONS = 8


@pytest.fixture
def relay() -> ScriptedRelay:
    """A relay that offers two mechanisms."""
    return ScriptedRelay(auth=("ada", "hunter2"), mechanisms="PLAIN LOGIN")


def logins(relay: ScriptedRelay) -> Counter[str]:
    """How often each mechanism was tried."""
    return Counter(line.split()[2] for line in relay.transcript if line.startswith("C: AUTH "))


def circuit_reason(site: Site) -> str:
    [(is_open, reason)] = site.query("SELECT circuit_open, circuit_reason FROM duepost.route")
    return str(reason) if is_open else ""


def wait_until_the_circuit_opens(site: Site) -> None:
    wait_until(lambda: circuit_reason(site), timeout=60)


def put_off_probes(site: Site) -> None:
    """A probe is a login too, and no part of this: an open circuit is probed in an hour only."""
    site.query(
        "CREATE FUNCTION put_off_probe() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF NEW.circuit_open THEN NEW.probe_at := now() + interval '1 h'; END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER put_off_probe BEFORE INSERT OR UPDATE ON duepost.route"
        " FOR EACH ROW EXECUTE FUNCTION put_off_probe()"
    )


@pytest.mark.parametrize("hangs_up", [False, True], ids=["stays", "hangs up"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_thousand_due_make_few_logins_at_a_relay_that_refuses_them(
    site: Site, relay: ScriptedRelay, processes: int, hangs_up: bool
) -> None:
    no = last_word if hangs_up else reply
    relay.on(Phase.AUTH, no("535 5.7.8 authentication failed"))
    put_off_probes(site)
    site.schedule(1000)
    with relay, site.workers(processes=processes, DUEPOST_SMTP_CONNECTIONS=str(CONNECTIONS)), site.watch():
        wait_until_the_circuit_opens(site)
        wait_until(lambda: site.query("SELECT 1 FROM duepost.scheduled_email WHERE state = 'sending'") == [])
        assert relay.wait_until_idle()
    assert set(logins(relay)) == {"PLAIN", "LOGIN"}
    assert sum(logins(relay).values()) <= CONNECTIONS * processes
    assert site.outcomes() == {}
    assert sum(site.pending().values()) == 1000


def test_a_password_that_is_changed_in_mid_run_is_tried_no_oftener_than_there_are_connections(
    site: Site, relay: ScriptedRelay
) -> None:
    put_off_probes(site)
    with relay, site.workers(DUEPOST_SMTP_CONNECTIONS=str(CONNECTIONS)), site.watch():
        site.schedule(50)
        site.wait_until_finished(50)
        before = logins(relay)
        relay.on(Phase.AUTH, reply("535 5.7.8 authentication failed"))
        relay.on(Phase.MAIL, last_word("421 4.4.2 bye"), times=CONNECTIONS)
        site.schedule(1000)
        wait_until_the_circuit_opens(site)
        wait_until(lambda: site.query("SELECT 1 FROM duepost.scheduled_email WHERE state = 'sending'") == [])
        assert relay.wait_until_idle()
    assert sum((logins(relay) - before).values()) <= CONNECTIONS


@pytest.mark.parametrize("code", ["535 5.7.8", "553 5.3.0", "504 5.5.4"])
def test_a_mechanism_that_is_refused_is_left_for_the_one_that_is_taken(
    site: Site, relay: ScriptedRelay, code: str
) -> None:
    relay.on(Phase.AUTH, reply(f"{code} not that one"), when=lambda line: "PLAIN" in line)
    site.schedule(200)
    with relay, site.workers(DUEPOST_SMTP_CONNECTIONS=str(CONNECTIONS)), site.watch():
        site.wait_until_finished(200)
    assert set(Counter(site.received()).values()) == {1}
    assert circuit_reason(site) == ""
    assert logins(relay)["PLAIN"] == 1

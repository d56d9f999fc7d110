from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from actors.channels.smtp.envelope import Envelope
from actors.channels.smtp.relay import Relay, Security, Timeouts
from actors.channels.tls import checking, trouble_with
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict
from tests.authority import Authority
from tests.relays import ScriptedRelay, accept, close, hang, reply
from tests.smtp_client import Client

EMAIL = Envelope("from@example.com", ("ada@example.com",), b"hello\n")
TLS_PHASES = (Phase.CONNECT, Phase.STARTTLS)
PATIENT = Timeouts(connect=20, command=20, block=20, dot=20)


def deliver(
    relay: ScriptedRelay,
    certificates: Path | None,
    security: Security | None = None,
    timeouts: Timeouts = PATIENT,
    times: int = 1,
) -> Ruling:
    """Delivers over one connection; gives the last ruling, when the transcript is complete."""
    where = Relay.from_url(relay.url)
    where = replace(where, security=security or where.security, certificates=certificates)
    with closing(Client(where, timeouts)) as connection:
        for _ in range(times):
            ruling = connection.deliver(EMAIL)["ada@example.com"]
    relay.release()
    assert relay.wait_until_idle()
    return ruling


def is_relays_fault(ruling: Ruling) -> bool:
    return (ruling.verdict, ruling.scope) == (Verdict.RETRY, Scope.RELAY) and ruling.phase in TLS_PHASES


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The relay counts as one on another machine."""
    monkeypatch.setattr(Relay, "is_loopback", property(lambda _: False))


def commands(relay: ScriptedRelay) -> list[str]:
    return [line.split()[1] for line in relay.transcript if line.startswith("C: ")]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("security", [Security.OPPORTUNISTIC, Security.REQUIRED])
def test_a_relay_with_a_good_certificate_is_spoken_to_encrypted(authority: Authority, security: Security) -> None:
    with ScriptedRelay(starttls=authority.server(), auth=("ada", "hunter2")) as relay:
        assert deliver(relay, authority.file, security).verdict is Verdict.SENT
        plain = relay.transcript[: relay.transcript.index("-- TLS")]
        assert [line.split()[1] for line in plain if line.startswith("C: ")] == ["EHLO", "STARTTLS"]


def test_implicit_tls_works_and_keeps_its_connection(authority: Authority) -> None:
    with ScriptedRelay(tls=authority.server()) as relay:
        assert relay.url.startswith("smtps://")
        assert deliver(relay, authority.file, times=5).verdict is Verdict.SENT
        assert (relay.connections, len(relay.messages)) == (1, 5)
        assert relay.transcript[0] == "-- TLS"


def test_the_systems_trust_is_the_default(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedRelay(starttls=authority.server()) as relay:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        assert deliver(relay, None, Security.REQUIRED).verdict is Verdict.SENT


@pytest.mark.parametrize("security", [Security.REQUIRED, Security.IMPLICIT])
def test_a_certificate_that_nobody_vouches_for_is_refused_where_tls_is_asked_for(
    authority: Authority, security: Security
) -> None:
    implicit = security is Security.IMPLICIT
    context = authority.self_signed()
    with ScriptedRelay(tls=context if implicit else None, starttls=None if implicit else context) as relay:
        ruling = deliver(relay, authority.file, security)
        assert is_relays_fault(ruling)
        assert "certificate is not trusted" in ruling.reply
        assert "DUEPOST_SMTP_CA" in ruling.reply
        assert commands(relay) == ([] if implicit else ["EHLO", "STARTTLS"])
        assert relay.connections == 1


@pytest.mark.usefixtures("elsewhere")
def test_a_certificate_that_nobody_vouches_for_is_refused_where_a_password_would_go(authority: Authority) -> None:
    with ScriptedRelay(starttls=authority.self_signed(), auth=("ada", "hunter2")) as relay:
        assert is_relays_fault(deliver(relay, authority.file))
        assert commands(relay) == ["EHLO", "STARTTLS"]


@pytest.mark.usefixtures("elsewhere")
def test_tls_that_nobody_asked_for_encrypts_whatever_the_certificate(authority: Authority) -> None:
    for context in (authority.self_signed(), authority.server("192.0.2.1")):
        with ScriptedRelay(starttls=context) as relay:
            assert deliver(relay, authority.file).verdict is Verdict.SENT
            assert "-- TLS" in relay.transcript


def test_a_relay_on_this_machine_with_a_self_signed_certificate_gets_plain_text(
    authority: Authority,
) -> None:
    for login in (None, ("ada", "hunter2")):
        with ScriptedRelay(starttls=authority.self_signed(), auth=login) as relay:
            assert deliver(relay, authority.file).verdict is Verdict.SENT
            assert "STARTTLS" not in commands(relay)


def test_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    with ScriptedRelay(starttls=authority.server("192.0.2.1")) as relay:
        ruling = deliver(relay, authority.file, Security.REQUIRED)
        assert is_relays_fault(ruling)
        assert "say the host as the certificate does" in ruling.reply
        assert commands(relay) == ["EHLO", "STARTTLS"]


def test_a_file_of_certificates_is_trusted_besides_the_systems(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedRelay(tls=authority.server()) as relay:
        where = replace(Relay.from_url(relay.url), certificates=authority.file)
        with closing(Client(where, PATIENT)) as connection:
            assert connection.deliver(EMAIL)["ada@example.com"].verdict is Verdict.SENT
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    other = authority.folder / "self-signed.pem"
    authority.self_signed()
    loaded = checking(other)
    assert loaded.cert_store_stats()["x509"] == 2


def test_a_relays_own_certificate_can_be_the_one_that_is_trusted(authority: Authority) -> None:
    with ScriptedRelay(tls=authority.self_signed()) as relay:
        where = replace(Relay.from_url(relay.url), certificates=authority.folder / "self-signed.pem")
        with closing(Client(where, PATIENT)) as connection:
            assert connection.deliver(EMAIL)["ada@example.com"].verdict is Verdict.SENT


def test_a_file_without_a_certificate_is_named_as_such(authority: Authority, tmp_path: Path) -> None:
    empty, key = tmp_path / "empty.pem", tmp_path / "key.pem"
    empty.write_text("")
    key.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    assert trouble_with(authority.file) is None
    for file in (empty, key):
        assert "no certificate" in str(trouble_with(file))
    for file in (tmp_path, tmp_path / "absent.pem"):
        assert trouble_with(file)


def test_a_relay_without_starttls_is_refused_where_it_is_required(authority: Authority) -> None:
    with ScriptedRelay() as relay:
        assert is_relays_fault(deliver(relay, authority.file, Security.REQUIRED))
        assert "MAIL" not in commands(relay)


@pytest.mark.usefixtures("elsewhere")
def test_a_relay_that_withdraws_starttls_gets_nothing_in_plain_text(authority: Authority) -> None:
    with ScriptedRelay(starttls=authority.server(), auth=("ada", "hunter2")) as relay:
        relay.on(Phase.STARTTLS, reply("454 4.7.0 not now"))
        assert is_relays_fault(deliver(relay, authority.file))
        assert commands(relay) == ["EHLO", "STARTTLS"]


@pytest.mark.usefixtures("elsewhere")
def test_plain_text_behind_the_consent_to_tls_is_never_taken_for_encrypted(authority: Authority) -> None:
    with ScriptedRelay(starttls=authority.server()) as relay:
        relay.on(Phase.STARTTLS, reply("220 go ahead\n250 injected"))
        assert is_relays_fault(deliver(relay, authority.file))
        assert commands(relay) == ["EHLO", "STARTTLS"]


@pytest.mark.usefixtures("elsewhere")
def test_a_handshake_that_hangs_ends_in_time(authority: Authority) -> None:
    with ScriptedRelay(starttls=authority.server()) as relay:
        relay.on(Phase.STARTTLS, reply("220 go ahead"), hang(), close())
        ruling = deliver(relay, authority.file, timeouts=replace(PATIENT, connect=0.2))
        assert is_relays_fault(ruling)
        assert ruling.reply == "timed out after 0.2 seconds"


def test_a_relay_that_speaks_no_tls_is_refused_where_it_is_implicit(authority: Authority) -> None:
    with ScriptedRelay() as relay:
        ruling = deliver(relay, authority.file, Security.IMPLICIT)
        assert is_relays_fault(ruling)
        assert ruling.phase is Phase.CONNECT
        assert "smtp+starttls://" in ruling.reply


def test_a_reply_lost_under_tls_is_unknown(authority: Authority) -> None:
    with ScriptedRelay(tls=authority.server()) as relay:
        relay.on(Phase.DOT, accept(), close())
        assert deliver(relay, authority.file).verdict is Verdict.UNKNOWN


def test_a_kept_connection_that_died_under_tls_is_replaced(authority: Authority) -> None:
    with ScriptedRelay(tls=authority.server()) as relay:
        relay.on(Phase.DOT, reply("250 ok"), close(), times=1)
        assert deliver(relay, authority.file, times=2).verdict is Verdict.SENT
        assert (relay.connections, len(relay.messages)) == (2, 2)

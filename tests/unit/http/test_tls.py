"""TLS with endpoints: certificates are checked, and nothing is said before they are."""

import socket
import ssl
from collections.abc import Callable
from dataclasses import replace

import pytest

from actors.channels.http.channel import HttpChannel
from actors.channels.http.request import Request
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict
from tests.authority import Authority
from tests.http_servers import ScriptedServer, answer, close, hang, raw, read_some, reset, stall
from tests.smtp_client import AnyTime
from tests.unit.http.client import ASKED, Client, payload

LARGE = Request("POST", "/TOKEN", (), b"x" * 3_000_000)


def is_tls_failure(ruling: Ruling) -> bool:
    return (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, Phase.TLS)


def test_a_request_goes_out_encrypted_and_its_connection_is_kept(authority: Authority) -> None:
    with ScriptedServer(authority.server()) as server, Client(authority.file) as client:
        assert {client.one(server.url).code for _ in range(3)} == {204}
        assert (server.connections, len(server.requests)) == (1, 3)


def test_the_systems_trust_is_the_default(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with ScriptedServer(authority.server()) as server, Client() as client:
        assert client.one(server.url).code == 204


def test_the_name_of_the_url_is_asked_for_and_must_be_the_certificates(authority: Authority) -> None:
    with ScriptedServer(authority.server("hooks.example")) as server, Client(authority.file) as client:
        asked = payload(server.url)
        for host, code in (("hooks.example", 204), ("other.example", None)):
            ruling = client.ask(replace(asked, target=replace(asked.target, host=host)))[0]
            assert ruling.code == code
            assert code == 204 or is_tls_failure(ruling)
        assert "is not trusted" in ruling.reply
        assert server.names == ["hooks.example", "other.example"]
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (Authority.self_signed, "DUEPOST_HTTP_CA names a file of what to trust"),
        (lambda authority: authority.server("127.0.0.2"), "say the host as the certificate does"),
    ],
)
def test_a_certificate_that_is_not_trusted_gets_no_request(
    authority: Authority, context: Callable[[Authority], object], said: str
) -> None:
    with ScriptedServer(context(authority)) as server, Client(authority.file) as client:  # type: ignore[arg-type]
        ruling = client.one(server.url)
        assert is_tls_failure(ruling)
        assert said in ruling.reply
        assert server.requests == []


def test_a_server_that_wants_a_certificate_of_ours_has_no_request(authority: Authority) -> None:
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = authority.server()
        context.verify_mode = ssl.CERT_REQUIRED
        context.maximum_version = version
        with ScriptedServer(context) as server, Client(authority.file) as client:
            ruling = client.one(server.url)
            # With TLS 1.3 it says so when the handshake is over for us, and the request may be on its way.
            assert is_tls_failure(ruling._replace(phase=Phase.TLS))
            assert ruling.phase in {Phase.TLS, Phase.REQUEST}
            assert server.requests == []


def test_a_server_without_tls_and_one_that_hangs_get_no_request(authority: Authority) -> None:
    with ScriptedServer() as server, Client(authority.file) as client:
        url = server.url.replace("http://", "https://")
        for act in (stall(), raw(b"HTTP/1.1 400 Bad\r\n\r\n"), close(), reset()):
            server.before(act)
            ruling = client.one(url, deadline=1.5)
            # A reset may come before TLS has begun.
            assert is_tls_failure(ruling._replace(phase=Phase.TLS))
            assert ruling.phase in {Phase.CONNECT, Phase.TLS}
        assert server.requests == []


def test_a_large_request_and_an_early_answer_are_understood_under_tls(authority: Authority) -> None:
    with ScriptedServer(authority.server()) as server, Client(authority.file) as client:
        assert client.one(server.url, LARGE).code == 204
        assert server.requests[0].body == LARGE.body
        client.channel.close()
        server.before(read_some(1_000), answer("HTTP/1.1 413 Too Large"), hang())
        assert client.one(server.url, LARGE).code == 413


def test_an_answer_lost_under_tls_is_unknown_and_a_kept_connection_that_ended_is_replaced(authority: Authority) -> None:
    with ScriptedServer(authority.server()) as server, Client(authority.file) as client:
        server.script(close())
        assert client.one(server.url).verdict is Verdict.UNKNOWN
        server.script(answer("HTTP/1.1 200 OK"), close())
        assert client.one(server.url).code == 200
        [kept] = client.channel._kept._idle
        while kept.is_quiet:
            assert kept.stream._readable.poll(10_000)
        assert client.one(server.url).code == 204
        assert server.connections == 3


def test_a_file_of_certificates_that_is_of_no_use_is_said_to_be(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("trust")
    (folder / "empty.pem").write_text("")
    for name in ("missing.pem", "empty.pem"):
        ruling = HttpChannel(AnyTime(), folder / name).connect()
        assert isinstance(ruling, Ruling)
        assert is_tls_failure(ruling)
        assert "DUEPOST_HTTP_CA" in ruling.reply


def test_a_connection_without_tls_is_none_for_https(authority: Authority) -> None:
    with ScriptedServer() as server, Client(authority.file) as client:
        assert client.one(server.url).code == 204
        ruling = client.ask(payload(server.url.replace("http://", "https://"), ASKED, deadline=1.5))[0]
        assert is_tls_failure(ruling)
        assert isinstance(server._listener, socket.socket)

"""Requests to servers that misbehave, through the real event loop and real sockets."""

import gzip
import http.server
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest

from actors.channels.http import connection as connection_module
from actors.channels.http.exchange import MAX_BODY, MAX_RECEIVED
from actors.channels.http.request import Answer, HttpPayload, Request
from actors.channels.http.verdicts import judge
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict
from tests.http_servers import (
    ScriptedServer,
    answer,
    close,
    drip,
    flood,
    hang,
    raw,
    read_some,
    reset,
    stall,
)
from tests.smtp_client import AnyTime
from tests.unit.http.client import ASKED, Client, payload, statuses

SENT = (Verdict.SENT, Scope.RECIPIENT)
OURS = (Verdict.RETRY, Scope.RELAY)
LATER = (Verdict.RETRY, Scope.MESSAGE)
UNKNOWN = (Verdict.UNKNOWN, Scope.MESSAGE)
LARGE = Request("POST", "/TOKEN", (), b"x" * 8_000_000)
SECRETS = ("TOKEN", "QS", "PAYLOAD")


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as scripted:
        yield scripted


@pytest.fixture
def client() -> Iterator[Client]:
    with Client() as made:
        yield made


def meaning(ruling: Ruling) -> tuple[Verdict, Scope]:
    assert not any(secret in repr(ruling) for secret in SECRETS)
    return ruling.verdict, ruling.scope


# What goes out


def test_a_request_goes_out_whole_and_asks_for_nothing_that_would_have_to_be_unpacked(
    client: Client, server: ScriptedServer
) -> None:
    assert meaning(client.one(server.url)) == SENT
    [request] = server.requests
    assert (request.method, request.path, request.body) == ("POST", "/T0/TOKEN?k=QS", ASKED.body)
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": "Duepost",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-type": "application/json",
        "content-length": str(len(ASKED.body)),
    }


def test_a_header_that_cannot_be_sent_is_the_endpoints_fault_and_not_shown(
    client: Client, server: ScriptedServer
) -> None:
    for value in ("PAYLOAD\r\nx: y", "PAYLOAD\0", "PAYLOAD\u2028"):
        ruling = client.one(server.url, Request("POST", "/", (("authorization", value),), b""))
        assert (*meaning(ruling), ruling.phase) == (*OURS, Phase.ENDPOINT)
    assert server.requests == []


def test_a_large_request_arrives_whole(client: Client, server: ScriptedServer) -> None:
    assert meaning(client.one(server.url, LARGE)) == SENT
    assert server.requests[0].body == LARGE.body


def test_proxies_of_the_environment_are_not_used(
    client: Client, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert meaning(client.one(server.url)) == SENT
    assert server.requests[0].path.startswith("/T0")


# What comes back


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        *((f"HTTP/1.1 {status} X", SENT) for status in (200, 201, 202, 204, 206, 299)),
        *((f"HTTP/1.1 {status}", LATER) for status in (408, 425, 429, 500, 502, 503, 504, 520, 599, 600, 999)),
        ("HTTP/1.1 200", SENT),
        ("HTTP/1.0 200 OK", SENT),
        *((f"HTTP/1.1 {status} X", OURS) for status in (301, 302, 303, 307, 308, 304, 300, 401, 407)),
        *((line, UNKNOWN) for line in ("HTTP/1.1 099 X", "HTTP/1.1 000 X", "HTTP/1.1 20 X", "HTTP/1.1 2000 X")),
        *((line, UNKNOWN) for line in ("HTTP/2 200", "ICY 200 OK", "HTTP/1.1  200 OK", "200 OK", "", "\x00\xff")),
        ("HTTP/1.1 101 Switching Protocols", UNKNOWN),
    ],
)
def test_a_status_is_what_counts_and_a_line_that_is_none_leaves_it_unknown(
    client: Client, server: ScriptedServer, line: str, expected: tuple[Verdict, Scope]
) -> None:
    server.script(raw(f"{line}\r\ncontent-length: 0\r\n\r\n".encode("latin-1")), close())
    assert meaning(client.one(server.url)) == expected
    assert len(server.requests) == 1


def test_answers_before_the_one_that_counts_are_skipped(client: Client, server: ScriptedServer) -> None:
    server.script(raw(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 3), answer("HTTP/1.1 204 No Content"))
    server.script(raw(b"HTTP/1.1 100 Continue\r\n\r\n"), answer("HTTP/1.1 500 No"))
    assert statuses([client.one(server.url), client.one(server.url)]) == [204, 500]
    assert server.connections == 1


@pytest.mark.parametrize(
    "block",
    [
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nx: " + b"y" * 50_000 + b"\r\n\r\n",
        b"x" * 10_000,
        b"\r\n" * 1_000,
    ],
)
def test_a_flood_instead_of_an_answer_leaves_it_unknown(client: Client, server: ScriptedServer, block: bytes) -> None:
    server.script(flood(block))
    ruling = client.one(server.url)
    assert (*meaning(ruling), ruling.phase) == (*UNKNOWN, Phase.RESPONSE)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 " + b"O" * 1_000_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nPAYLOAD x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: PAYLOAD\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP",
        b"",
    ],
)
def test_a_head_that_cannot_be_read_leaves_it_unknown(client: Client, server: ScriptedServer, head: bytes) -> None:
    server.script(raw(head), close())
    ruling = client.one(server.url)
    assert (*meaning(ruling), ruling.code) == (*UNKNOWN, None)


@pytest.mark.parametrize(
    "body",
    [
        b"transfer-encoding: chunked\r\n\r\n5\r\nhel",
        b"transfer-encoding: chunked\r\n\r\nPAYLOAD\r\n",
        b"content-length: 10\r\n\r\nhel",
        b"content-length: 99999999999\r\n\r\n",
        b"\r\nwithout a length",
        b"content-encoding: gzip\r\n\r\n\x1f\x8bPAYLOAD",
    ],
)
def test_a_2xx_is_sent_whatever_its_body_does(client: Client, server: ScriptedServer, body: bytes) -> None:
    server.script(raw(b"HTTP/1.1 200 OK\r\n" + body), close())
    assert meaning(client.one(server.url)) == SENT


def test_of_an_endless_body_64_kb_are_read_and_the_connection_is_thrown_away(
    client: Client, server: ScriptedServer
) -> None:
    heard: list[Answer] = []

    def judge_it(said: Answer) -> Ruling:
        heard.append(said)
        return judge(said)

    server.script(
        raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), flood(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
    )
    asked = payload(server.url)
    ruling = client.ask(HttpPayload("orders", asked.target, asked.addresses, ASKED, judge_it))[0]
    assert meaning(ruling) == SENT
    assert (len(heard[0].body), heard[0].is_whole) == (MAX_BODY, False)
    assert client.one(server.url).code == 204
    assert server.connections == 2


def test_chunks_of_a_byte_with_long_names_do_not_read_without_end(client: Client, server: ScriptedServer) -> None:
    chunk = b"1;" + b"x" * 20_000 + b"\r\ny\r\n"
    server.script(raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"), flood(chunk))
    assert meaning(client.one(server.url)) == SENT
    assert MAX_RECEIVED < 1_000_000


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip, gzip, gzip, gzip"])
def test_nothing_is_unpacked(client: Client, server: ScriptedServer, encoding: str) -> None:
    bomb = gzip.compress(b"\0" * 30_000_000) if "gzip" in encoding else zlib.compress(b"\0" * 30_000_000)
    server.script(answer("HTTP/1.1 400 Bad", f"content-encoding: {encoding}", body=bomb))
    tracemalloc.start()
    ruling = client.one(server.url)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (ruling.verdict, ruling.reply) == (Verdict.UNDELIVERABLE, "Bad")
    assert peak < 2_000_000


def test_a_redirect_is_not_followed(client: Client, server: ScriptedServer) -> None:
    with ScriptedServer() as second:
        for status in (301, 302, 303, 307, 308):
            server.script(answer(f"HTTP/1.1 {status} Moved", f"location: {second.url}TOKEN", body=b"PAYLOAD"))
            ruling = client.one(server.url)
            assert meaning(ruling) == OURS
            assert ruling.reply.startswith("redirects to 127.0.0.1: ")
        server.script(answer("HTTP/1.1 302 Found", "location: http://169.254.169.254/latest/TOKEN"))
        assert client.one(server.url).reply.startswith("redirects to 169.254.169.254: ")
        assert (second.connections, second.requests) == (0, [])


def test_of_a_refusal_people_are_shown_what_the_request_did_not_say(client: Client, server: ScriptedServer) -> None:
    said = b"<html><title>No</title> cannot take TOKEN with PAYLOAD for k=QS; reason:\r\n\x1b[31m invalid_blocks</html>"
    server.script(answer("HTTP/1.1 400 Bad TOKEN", body=said))
    ruling = client.one(server.url)
    assert meaning(ruling) == (Verdict.UNDELIVERABLE, Scope.MESSAGE)
    assert ruling.reply.startswith("Bad ***: No cannot take *** with *** for")
    assert "invalid_blocks" in ruling.reply
    assert "\x1b" not in ruling.reply


def test_a_pause_that_is_asked_for_is_in_the_ruling(client: Client, server: ScriptedServer) -> None:
    server.script(answer("HTTP/1.1 429 Slow", "Retry-After: 3"))
    server.script(answer("HTTP/1.1 503 Slow", "Retry-After: 5", "Retry-After: 4"))
    server.script(answer("HTTP/1.1 503 Slow", "Retry-After: " + "9" * 60_000))
    rulings = [client.one(server.url) for _ in range(3)]
    assert [ruling.retry_after for ruling in rulings] == [3, 5, 86_400]


def test_a_reason_of_the_standard_s_is_shown_whatever_the_path_is(client: Client, server: ScriptedServer) -> None:
    server.script(answer("HTTP/1.1 410 Gone"))
    assert client.one(server.url, Request("POST", "/gone", (), b"")).reply == "Gone"


def test_nothing_is_logged(client: Client, server: ScriptedServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    for said in (answer("HTTP/1.1 404 No"), answer("HTTP/1.1 302 Found", "location: /TOKEN"), close()):
        server.script(said)
        client.one(server.url)
    client.one("http://127.0.0.1:1/TOKEN?k=QS")
    assert caplog.records == []


# How it breaks


def test_a_server_that_is_not_there_is_retried(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ruling = client.one(f"http://127.0.0.1:{port}/TOKEN")
    assert (*meaning(ruling), ruling.phase) == (*OURS, Phase.CONNECT)
    assert ruling.reply == "127.0.0.1: connection failed: Connection refused"


def test_the_next_address_is_tried_where_one_refuses(client: Client, server: ScriptedServer) -> None:
    for _ in range(3):
        assert meaning(client.one(server.url, ASKED, "127.0.0.2", "::1", "127.0.0.1")) == SENT


def test_a_connection_that_nobody_accepts_ends_in_time(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)
            ruling = client.one(f"http://127.0.0.1:{address[1]}/", deadline=0.3)
    assert (*meaning(ruling), ruling.phase) == (*OURS, Phase.CONNECT)
    assert "timed out" in ruling.reply


def test_a_server_that_hangs_up_before_the_request_s_last_byte_is_retried(
    client: Client, server: ScriptedServer
) -> None:
    server.before(read_some(100_000), reset())
    ruling = client.one(server.url, LARGE)
    assert (*meaning(ruling), ruling.phase) == (*OURS, Phase.REQUEST)


@pytest.mark.parametrize("end", [close(), reset()])
def test_a_server_that_hangs_up_after_the_request_leaves_it_unknown(
    client: Client, server: ScriptedServer, end: object
) -> None:
    assert callable(end)
    server.script(end)
    ruling = client.one(server.url)
    assert (*meaning(ruling), ruling.phase) == (*UNKNOWN, Phase.RESPONSE)
    assert ruling.reply.startswith("connection failed: ")
    assert server.connections == 1


def test_an_answer_that_comes_before_the_request_is_written_is_the_verdict(
    client: Client, server: ScriptedServer
) -> None:
    for end in (close(), reset(), hang()):
        server.before(read_some(1_000), raw(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig"), end)
        ruling = client.one(server.url, LARGE)
        assert (ruling.verdict, ruling.code, ruling.reply) == (Verdict.UNDELIVERABLE, 413, "Too Large: big")


def test_a_server_that_reads_nothing_ends_in_time_and_is_retried(client: Client, server: ScriptedServer) -> None:
    server.before(stall())
    ruling = client.one(server.url, LARGE, deadline=1.5)
    assert (*meaning(ruling), ruling.phase) == (*OURS, Phase.REQUEST)
    assert ruling.reply == "timed out after 1.5 seconds"


def test_a_server_that_says_nothing_ends_in_time_and_leaves_it_unknown(client: Client, server: ScriptedServer) -> None:
    server.script(hang())
    ruling = client.one(server.url, deadline=1.5)
    assert (*meaning(ruling), ruling.phase) == (*UNKNOWN, Phase.RESPONSE)


def test_one_deadline_counts_for_all_and_none_for_each_byte(client: Client, server: ScriptedServer) -> None:
    server.script(drip(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1_000, every=0.2))
    begun = time.monotonic()
    assert meaning(client.one(server.url, deadline=1.5)) == UNKNOWN
    assert time.monotonic() - begun < 60


def test_slow_servers_hold_up_nobody(client: Client, server: ScriptedServer) -> None:
    with ScriptedServer() as healthy:
        for _ in range(30):
            server.script(drip(b"HTTP/1.1 200 OK\r\n" * 1_000, every=0.1))
        order: list[str] = []

        def noted(name: str) -> HttpPayload:
            is_healthy = name == "healthy"
            asked = payload(healthy.url if is_healthy else server.url, deadline=20.0 if is_healthy else 2.0)

            def judge_it(said: Answer) -> Ruling:
                order.append(name)
                return judge(said)

            return HttpPayload("orders", asked.target, asked.addresses, ASKED, judge_it, asked.deadline)

        rulings = client.ask(*[noted("slow") for _ in range(30)], noted("healthy"))
        assert {ruling.verdict for ruling in rulings[:-1]} == {Verdict.UNKNOWN}
        assert (rulings[-1].verdict, order) == (Verdict.SENT, ["healthy"])


# Where it leads


def test_a_private_address_is_not_connected_to_unless_the_endpoint_allows_it(
    client: Client, server: ScriptedServer
) -> None:
    ruling = client.ask(payload(server.url, allows_private=False))[0]
    assert (*meaning(ruling), ruling.phase) == (*OURS, Phase.RESOLVE)
    assert ruling.reply == "127.0.0.1 leads where the endpoint may not: 127.0.0.1 is a loopback address"
    assert server.connections == 0


def test_a_metadata_address_is_never_connected_to(client: Client) -> None:
    for address in ("169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "64:ff9b::a9fe:a9fe"):
        ruling = client.one("http://h.example/", ASKED, address)
        assert (*meaning(ruling), ruling.phase) == (*OURS, Phase.RESOLVE)
        assert "169.254" in ruling.reply or "link-local" in ruling.reply or "metadata" in ruling.reply


def test_what_counts_is_the_address_that_is_really_connected_to(
    client: Client, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket.socket, "getpeername", lambda _self: ("169.254.169.254", 80))
    ruling = client.one(server.url)
    assert meaning(ruling) == OURS
    assert "169.254.169.254 is a metadata address" in ruling.reply
    assert server.requests == []


def test_a_connection_of_an_endpoint_that_allows_private_addresses_is_no_others(
    client: Client, server: ScriptedServer
) -> None:
    assert meaning(client.one(server.url)) == SENT
    assert meaning(client.ask(payload(server.url, allows_private=False))[0]) == OURS
    assert len(server.requests) == 1


# Kept connections


def test_a_connection_is_kept_for_the_next_request_of_whatever_slot(client: Client, server: ScriptedServer) -> None:
    assert {client.one(server.url).code for _ in range(5)} == {204}
    assert (server.connections, len(server.requests)) == (1, 5)
    assert {ruling.code for ruling in client.ask(*[payload(server.url)] * 3)} == {204}
    assert server.connections == 3


def test_a_kept_connection_that_the_server_closed_meanwhile_is_replaced_in_silence(
    client: Client, server: ScriptedServer
) -> None:
    server.script(answer("HTTP/1.1 200 OK"), close())
    server.script(answer("HTTP/1.1 200 OK"), reset())
    for number in range(1, 4):
        assert meaning(client.one(server.url)) == SENT
        assert server.connections == number
        if number < 3:
            _wait_until_kept_has_heard(client)
    assert len(server.requests) == 3


def _wait_until_kept_has_heard(client: Client) -> None:
    """Until what the server does with the kept connection has arrived here, if it is kept."""
    for kept in client.channel._kept._idle:
        assert kept.stream._readable.poll(10_000)


def test_a_kept_connection_that_closes_in_the_middle_of_a_request_is_replaced_once(
    client: Client, server: ScriptedServer
) -> None:
    server.script(answer("HTTP/1.1 200 OK"), read_some(50_000), reset())
    assert meaning(client.one(server.url)) == SENT
    assert meaning(client.one(server.url, LARGE)) == SENT
    assert (server.connections, len(server.requests)) == (2, 2)


def test_a_kept_connection_that_says_nothing_after_the_request_leaves_it_unknown(
    client: Client, server: ScriptedServer
) -> None:
    server.script(answer("HTTP/1.1 200 OK"))
    server.script(close())
    assert meaning(client.one(server.url)) == SENT
    assert meaning(client.one(server.url)) == UNKNOWN
    assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize(
    "first",
    [
        answer("HTTP/1.1 200 OK", "connection: close"),
        answer("HTTP/1.0 200 OK"),
        raw(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\nHTTP/1.1 400 Smuggled\r\n\r\n"),
        answer("HTTP/1.1 200 OK", "keep-alive: timeout=1"),
        answer("HTTP/1.1 200 OK", "keep-alive: max=5, timeout=0"),
    ],
)
def test_a_connection_that_is_no_longer_of_use_is_not_kept(
    client: Client, server: ScriptedServer, first: object
) -> None:
    assert callable(first)
    server.script(first)
    assert statuses([client.one(server.url), client.one(server.url)]) == [200, 204]
    assert server.connections == 2


def test_what_a_server_says_unasked_is_no_answer_to_the_next_request(client: Client, server: ScriptedServer) -> None:
    server.script(answer("HTTP/1.1 200 OK"), raw(b"HTTP/1.1 400 Stale\r\ncontent-length: 0\r\n\r\n"))
    assert client.one(server.url).code == 200
    _wait_until_kept_has_heard(client)
    assert client.one(server.url).code == 204
    assert server.connections == 2


def test_idle_connections_are_closed_after_a_while_and_are_few(
    client: Client, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "MOST_IDLE", 2)
    client.ask(*[payload(server.url)] * 5)
    assert len(client.channel._kept) == 2
    monkeypatch.setattr(connection_module, "IDLE", 0.0)
    client.one(server.url)
    client.channel.close_idle()
    assert len(client.channel._kept) == 1
    client.channel.close()
    assert len(client.channel._kept) == 0
    assert client.one(server.url).code == 204
    assert len(client.channel._kept) == 0


# The worker


def test_without_a_permit_no_request_is_begun(server: ScriptedServer) -> None:
    with Client(permit=AnyTime(lambda: False)) as client:
        ruling = client.one(server.url)
        assert (*meaning(ruling), ruling.phase) == (*OURS, Phase.REQUEST)
    assert server.requests == []


def test_a_delivery_that_is_stopped_closes_its_connection(client: Client, server: ScriptedServer) -> None:
    server.script(hang())
    slot = client.slot()
    dialogue = slot.session.deliver(payload(server.url))
    next(dialogue)
    dialogue.close()
    assert slot.session.fileno() == -1
    assert slot.session.is_open
    slot.session.abandon()
    assert not slot.session.is_open


def test_a_judge_that_raises_is_nobody_elses(client: Client, server: ScriptedServer) -> None:
    def broken(_answer: Answer) -> Ruling:
        raise ArithmeticError

    asked = payload(server.url)
    failures: list[BaseException | None] = []
    slot = client.slot()
    dialogue = slot.session.deliver(HttpPayload("orders", asked.target, asked.addresses, ASKED, broken))
    client.loop.drive(slot, dialogue, lambda _rulings, failure: failures.append(failure))
    while client.loop:
        client.loop.wait(60)
    assert isinstance(failures[0], ArithmeticError)
    assert client.one(server.url).code == 204


# A real server


class Echo(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_a_server_of_pythons_own_takes_requests_one_after_the_other(client: Client) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as real:
        thread = threading.Thread(target=real.serve_forever, daemon=True)
        thread.start()
        try:
            url = f"http://127.0.0.1:{real.server_address[1]}/"
            rulings = [ruling for _ in range(20) for ruling in client.ask(*[payload(url)] * 10)]
            assert {ruling.verdict for ruling in rulings} == {Verdict.SENT}
            client.channel.close()
        finally:
            real.shutdown()
            thread.join()

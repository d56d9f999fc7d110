"""The channel that docs/channels.md shows works: through the real dispatcher, against a real server."""

import re
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.channels.channel import Channel
from actors.delivery.dispatcher import Dispatcher
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict
from tests.smtp_client import AnyTime
from tests.unit.http.test_dispatching import Messages
from tests.unit.line_channel import Line, LineChannel
from tests.unit.test_event_loop import Unpaced

ROOT = Path(__file__).parents[2]

#: What the server says to the lines with these numbers; None: it hangs up. All others are taken.
REPLIES = {3: b"450 not now\n", 5: b"550 never\n", 7: b"well\n", 11: None}


class LineServer(socketserver.ThreadingTCPServer):
    """Answers each line; keeps all of them."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.lines: list[bytes] = []

    @property
    def address(self) -> tuple[str, int]:
        return str(self.server_address[0]), int(self.server_address[1])


class Answering(socketserver.StreamRequestHandler):
    """One client."""

    server: LineServer

    def handle(self) -> None:
        for line in self.rfile:
            self.server.lines.append(line)
            reply = REPLIES.get(int(line.split()[1]), b"200 taken\n")
            if reply is None:
                return
            self.wfile.write(reply)


@pytest.fixture
def server() -> Iterator[LineServer]:
    with LineServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_each_line_goes_out_once_and_only_those_that_the_server_speaks_of_end_otherwise(server: LineServer) -> None:
    lines = Messages(lambda number: Line(("printer",), b"line %d" % number), 40)
    channel: Channel[Line] = LineChannel(server.address, AnyTime())
    dispatcher = Dispatcher(lines, lines, channel, 3, Unpaced())
    dispatcher.do(0)
    dispatcher.close()
    assert sorted(server.lines) == sorted(b"line %d\n" % number for number in range(40))
    assert {number: verdict for number, verdict in lines.done.items() if verdict is not Verdict.SENT} == {
        3: Verdict.RETRY,
        5: Verdict.UNDELIVERABLE,
        7: Verdict.UNKNOWN,
        11: Verdict.UNKNOWN,
    }
    assert set(lines.done) == set(range(40))
    assert len(lines.threads) == 1


def test_where_nobody_listens_the_route_is_at_fault() -> None:
    with LineServer() as closed:
        address = closed.address
    ruling = LineChannel(address, AnyTime()).connect()
    assert isinstance(ruling, Ruling)
    assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, Phase.CONNECT)


def test_the_page_shows_this_very_channel_in_less_than_a_hundred_lines() -> None:
    page = (ROOT / "docs" / "channels.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert shown == (ROOT / "tests" / "unit" / "line_channel.py").read_text(encoding="utf-8")
    assert len(shown.splitlines()) < 100

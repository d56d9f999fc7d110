"""Sentry's side of the line: an HTTP endpoint that takes envelopes and shows what came."""

import gzip
import json
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

#: What an envelope holds is JSON of any shape.
Item = dict[str, Any]

DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
}


class SentryEndpoint:
    """Takes what the SDK sends to `dsn`, from this process or from others. A context manager.

    Attributes:
        events: the events, in the order in which they came.
        check_ins: the cron monitors' check-ins.
        traces: the transactions, with their spans.
        raw: every byte that came, decompressed.
    """

    def __init__(self) -> None:
        self.events: list[Item] = []
        self.check_ins: list[Item] = []
        self.traces: list[Item] = []
        self.raw = b""
        self._news = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def dsn(self) -> str:
        return f"http://public@127.0.0.1:{self._server.server_port}/42"

    @property
    def messages(self) -> list[str]:
        """What the events say; the exception's type where they say nothing."""
        return [event.get("message") or event["exception"]["values"][-1]["type"] for event in list(self.events)]

    def wait_for(self, predicate: Callable[["SentryEndpoint"], object], timeout: float = 10.0) -> None:
        """Returns as soon as the predicate is true of this endpoint; fails after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not predicate(self):
                remaining = deadline - time.monotonic()
                if remaining <= 0 or not self._news.wait(remaining):
                    if predicate(self):
                        return
                    came = f"events {self.messages}, {len(self.check_ins)} check-ins"
                    raise AssertionError(f"waited {timeout} s in vain; to Sentry went: {came}")

    def take(self, envelope: bytes) -> None:
        """Takes one decompressed envelope apart."""
        with self._news:
            self.raw += envelope
            for kind, item in items(envelope):
                if kind == "event":
                    self.events.append(item)
                elif kind == "check_in":
                    self.check_ins.append(item)
                elif kind == "transaction":
                    self.traces.append(item)
            self._news.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                decode = DECODERS.get(self.headers.get("Content-Encoding", ""))
                if not (self.path.startswith("/api/") and self.path.endswith("/envelope/")):
                    self._answer(404)
                elif decode is None:
                    self._answer(415)
                else:
                    endpoint.take(decode(body))
                    self._answer(200)

            def _answer(self, status: int) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        return Handler


def items(envelope: bytes) -> list[tuple[str, Item]]:
    """The items of an envelope: each one's type and what it says."""
    found = []
    _, _, rest = envelope.partition(b"\n")
    while rest.strip():
        line, _, rest = rest.partition(b"\n")
        header = json.loads(line)
        length = header.get("length", rest.find(b"\n") if b"\n" in rest else len(rest))
        found.append((header["type"], json.loads(rest[:length])))
        rest = rest[length:].removeprefix(b"\n")
    return found

"""The catcher for messages: an endpoint on this machine that keeps what it is sent in a folder, and passes nothing on.

Each message is one `.json` file, with its id, headers and payload. What it takes is signed, as a receiver should ask:
no web page that a browser on this machine shows can leave anything here.
"""

import base64
import hashlib
import hmac
import itertools
import json
import os
import re
import threading
from collections import deque
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Final

from actors.content.formats.webhook import secret_key
from duepost.catching import CatcherError
from duepost.private import make_private, write_private

#: It never listens to other machines.
HOST: Final = "127.0.0.1"

#: Messages that are kept: the last ones.
KEPT: Final = 1000

#: Bytes of a request's body: a payload has half of that at most.
LARGEST_BODY: Final = 512 * 1024

#: Seconds for which a client may say nothing.
PATIENCE: Final = 30

_WIRE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


class HttpCatcher:
    """A webhook's receiver on this machine that stores what it is given.

    Args:
        folder: where the messages are stored, for this user alone; made when it is missing. What it holds already
            stays, up to `kept` messages.
        kept: how many messages are kept.
    """

    def __init__(self, folder: Path, *, kept: int = KEPT) -> None:
        self.folder = folder
        self._kept = kept
        self._server: _Server | None = None

    def start(self) -> str:
        """Listens, in a thread of its own, at a port that is free. Until it has a secret it takes nothing.

        Returns:
            its URL, as `http://127.0.0.1:port/`.

        Raises:
            CatcherError: it cannot listen, or the folder cannot be made.
        """
        if self._server is None:
            try:
                make_private(self.folder)
                self._server = _Server(_Store(self.folder, self._kept))
            except OSError as error:
                what = error.strerror or error
                raise CatcherError(f"the catcher for messages in {self.folder} cannot be started: {what}") from error
            self._server.start()
        return f"http://{HOST}:{self._server.server_port}/"

    def expect(self, secret: str) -> None:
        """From now on it takes what is signed with this secret, and nothing else."""
        if self._server is not None:
            self._server.key = secret_key(secret)

    def stop(self) -> None:
        """Stops listening; quiet if it is not running. The folder stays."""
        if self._server is not None:
            self._server.stop()
            self._server = None


class _Store:
    """The folder, of which the oldest messages go. Any thread may call it."""

    def __init__(self, folder: Path, kept: int) -> None:
        self._folder = folder
        self._kept = kept
        self._paths = deque(sorted(folder.glob("*.json")))
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def add(self, wire_id: str, headers: dict[str, str], payload: str) -> None:
        """Stores a message.

        Raises:
            OSError: it cannot be written.
        """
        moment = datetime.now(UTC)
        # The payload stands as it came, number by number; it is the last, as it may be long.
        head = json.dumps({"id": wire_id, "taken_at": moment.isoformat(), "headers": headers}, indent=2)
        content = head.removesuffix("\n}") + f',\n  "payload": {payload}\n}}\n'
        name = f"{moment:%Y-%m-%dT%H-%M-%S.%f}-{os.getpid()}-{next(self._numbers):06}.json"
        with self._lock:
            write_private(self._folder / name, content.encode())
            self._paths.append(self._folder / name)
            while len(self._paths) > self._kept:
                self._paths.popleft().unlink(missing_ok=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: "_Server"
    protocol_version = "HTTP/1.1"
    server_version = "duepost-catcher"
    sys_version = ""
    timeout = PATIENCE
    disable_nagle_algorithm = True

    def do_POST(self) -> None:  # the name is http.server's
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            self.close_connection = True
            self._answer(413 if length.isdecimal() else 411)
            return
        self._answer(self._take(self.rfile.read(int(length))))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Nothing: the terminal is for people."""

    def _take(self, body: bytes) -> int:
        """Stores a message; returns the status to answer with."""
        wire_id = self.headers.get("webhook-id", "")
        if not _WIRE_ID.fullmatch(wire_id) or not self._is_signed(wire_id, body):
            return 401
        headers = {name.lower(): value for name, value in self.headers.items() if name.lower() != "webhook-signature"}
        try:
            payload = body.decode()
            json.loads(payload)
        except (ValueError, RecursionError):
            return 400
        try:
            self.server.store.add(wire_id, headers, payload)
        except OSError:
            return 503
        return 204

    def _is_signed(self, wire_id: str, body: bytes) -> bool:
        key = self.server.key
        if key is None:
            return False
        signed = f"{wire_id}.{self.headers.get('webhook-timestamp', '')}.".encode() + body
        expected = b"v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256))
        given = self.headers.get("webhook-signature", "").encode("utf-8", "replace").split()
        return any(hmac.compare_digest(expected, each) for each in given)

    def _answer(self, status: int) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", "0")
        if self.close_connection:
            self.send_header("connection", "close")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    """The listening thread, and one for each connection, none of which outlives the process."""

    daemon_threads = True

    def __init__(self, store: _Store) -> None:
        super().__init__((HOST, 0), _Handler)
        self.store = store
        self.key: bytes | None = None
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="duepost-http-catcher", daemon=True
        )

    def server_bind(self) -> None:
        """Binds, without asking the DNS for this machine's name, as http.server does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, int(self.server_address[1])

    def start(self) -> None:
        """Serves from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended."""
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing: clients that hang up in the middle are their own business."""

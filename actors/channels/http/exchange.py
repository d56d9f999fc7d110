"""One request over a connection, and its answer."""

import http.client
import ssl
import time
from typing import Final

import h11

from actors.channels.channel import Dialogue, Event, Wait
from actors.channels.failures import describe_failure
from actors.channels.http.broken import Broken
from actors.channels.http.connection import Connection
from actors.channels.http.excerpt import excerpt
from actors.channels.http.request import Answer, Request
from actors.ruling import Phase

#: Bytes of a body that are read; then the connection is thrown away.
MAX_BODY: Final = 64 * 1024

#: Bytes of a whole answer, with what is said before it and around it.
MAX_RECEIVED: Final = 192 * 1024

#: Answers such as 103 that may come before the one that counts.
MAX_INTERIM: Final = 20

#: Seconds that a body may take once its head has come; and where the server did not take all of the request.
BODY_SECONDS, EARLY_BODY_SECONDS = 5.0, 1.0

#: The setting that names a file of what to trust.
TRUST: Final = "DUEPOST_HTTP_CA"

_USER_AGENT: Final = "Duepost"


class _TooMuch(Exception):
    """The server says more than any answer may have."""


class Exchange:
    """One request and its answer. Used once.

    Args:
        connection: it goes over; it rests.
        request: what is asked.
        deadline: until when the answer's head has to have come, by the monotonic clock.
        seconds: how long the deadline was, to tell people.
    """

    def __init__(self, connection: Connection, request: Request, deadline: float, seconds: float) -> None:
        self._stream = connection.stream
        self._protocol = connection.protocol
        self._target = connection.target
        self._request = request
        self._deadline = deadline
        self._seconds = seconds
        self._received = 0
        self._interim = 0
        self._phase = Phase.REQUEST
        self._response: h11.Response | None = None

    def run(self) -> Dialogue[Answer]:
        """Writes the request, and reads its answer; one that comes early counts.

        Raises:
            Broken: none came.
        """
        data = self._encoded()
        try:
            yield from self._write(data)
            response = yield from self._read_head()
        except _TooMuch:
            raise Broken(self._phase, "the server says more than any answer may have") from None
        except h11.ProtocolError:
            # Its message may quote what the server said.
            raise Broken(self._phase, "the server's answer cannot be understood") from None
        except OSError as failure:
            what = describe_failure(failure, self._seconds, "the server", TRUST)
            raise Broken(Phase.TLS if self._is_refused(failure) else self._phase, what) from None
        received_at = time.time()
        body, is_whole = yield from self._read_body()
        return self._answer(response, body, received_at, is_whole=is_whole)

    @property
    def can_be_repeated(self) -> bool:
        """Whether another request may follow over the connection."""
        is_done = self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE
        return is_done and self._phase is Phase.RESPONSE and not self._protocol.trailing_data[0]

    def _is_refused(self, failure: OSError) -> bool:
        """Whether the server wants a certificate of ours: with TLS 1.3 it says so after the handshake."""
        is_first = not self._received and self._response is None
        reason = str(failure.reason) if is_first and isinstance(failure, ssl.SSLError) else ""
        return "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason)

    def _encoded(self) -> bytes:
        request = self._request
        headers = [
            ("host", self._target.authority),
            ("user-agent", _USER_AGENT),
            ("accept", "*/*"),
            ("accept-encoding", "identity"),
            *request.headers,
            ("content-length", str(len(request.body))),
        ]
        try:
            head = self._protocol.send(h11.Request(method=request.method, target=request.target_path, headers=headers))
            body = self._protocol.send(h11.Data(data=request.body)) if request.body else b""
            end = self._protocol.send(h11.EndOfMessage())
        except (h11.LocalProtocolError, UnicodeError):
            # Its message would quote a header.
            raise Broken(Phase.ENDPOINT, "an option or a secret has a character that no header takes") from None
        return b"".join(each or b"" for each in (head, body, end))

    def _write(self, data: bytes) -> Dialogue[None]:
        """Writes it all, unless the server answers before that."""
        left = memoryview(data)
        try:
            while True:
                left, _ = self._stream.send_now(left)
                if not left:
                    self._phase = Phase.RESPONSE
                    return
                if not (yield Wait(Event.EITHER, self._deadline - time.monotonic())):
                    raise TimeoutError
                self._listen()
                if self._response is not None:
                    return
        except OSError:
            # Who refuses a request early may hang up with the answer.
            self._listen(to_the_end=True)
            if self._response is None:
                raise

    def _listen(self, *, to_the_end: bool = False) -> None:
        """Takes what the server says while it is written to."""
        while self._response is None:
            try:
                data = self._stream.receive_now()
            except OSError:
                if to_the_end:
                    return
                raise
            if isinstance(data, Event):
                return
            if not data:
                if to_the_end:
                    return
                raise _hung_up()
            self._feed(data)
            self._find_response()

    def _find_response(self) -> None:
        """Goes through what has come, for the answer that counts."""
        while self._response is None:
            event = self._protocol.next_event()
            if event is h11.NEED_DATA:
                return
            if isinstance(event, h11.Response):
                self._response = event
            elif isinstance(event, h11.InformationalResponse):
                self._interim += 1
                if self._interim > MAX_INTERIM:
                    raise _TooMuch
            else:
                raise h11.RemoteProtocolError("no answer")

    def _read_head(self) -> Dialogue[h11.Response]:
        while True:
            if self._response is not None:
                return self._response
            data = yield from self._stream.receive(self._deadline)
            if not data:
                raise _hung_up()
            self._feed(data)
            self._find_response()

    def _read_body(self) -> Dialogue[tuple[bytes, bool]]:
        """Reads what there is of a body: it may be cut short, without end, or nonsense, and the answer counts."""
        body = bytearray()
        patience = BODY_SECONDS if self._phase is Phase.RESPONSE else EARLY_BODY_SECONDS
        deadline = min(self._deadline, time.monotonic() + patience)
        try:
            while len(body) < MAX_BODY:
                event = self._protocol.next_event()
                if event is h11.NEED_DATA:
                    self._feed((yield from self._stream.receive(deadline)))
                elif isinstance(event, h11.Data):
                    body += event.data
                else:
                    return bytes(body[:MAX_BODY]), isinstance(event, h11.EndOfMessage)
        except (OSError, h11.ProtocolError, _TooMuch):
            pass
        return bytes(body[:MAX_BODY]), False

    def _feed(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_RECEIVED:
            raise _TooMuch
        self._protocol.receive_data(data)

    def _answer(self, response: h11.Response, body: bytes, received_at: float, *, is_whole: bool) -> Answer:
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers)
        is_shown = response.status_code >= 400
        is_text = is_shown and not any(name == "content-encoding" for name, _ in headers)
        return Answer(
            response.status_code,
            _reason(response, self._request) if is_shown else "",
            headers,
            body,
            is_whole,
            excerpt(body, self._request) if is_text else "",
            received_at,
        )


def _reason(response: h11.Response, request: Request) -> str:
    """The words behind the status: the standard's as they are."""
    reason = bytes(response.reason)
    standard = http.client.responses.get(response.status_code, "")
    return standard if reason.decode("latin-1") == standard else excerpt(reason, request)


def _hung_up() -> ConnectionResetError:
    return ConnectionResetError("the server closed the connection")

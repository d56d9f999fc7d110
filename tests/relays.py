"""An SMTP relay for tests that does as it is told: accepts everything, until it is told something else.

    with ScriptedRelay() as relay:
        relay.on(Phase.RCPT, reply("550 5.1.1 no such user"), when=lambda line: "dead" in line)
        relay.on(Phase.DOT, accept(), close(), times=1)
        ...                               # talk to relay.url
        assert relay.messages[0].recipients == ("ada@example.com",)
        assert "C: RSET" in relay.transcript

Where nothing was set for a phase, the relay does the usual thing. Where something was, it does that and
nothing else: after `on(Phase.MAIL, hang())` there is no reply even when the hang is released.
"""

import base64
import hmac
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from actors.ruling import Phase


@dataclass(frozen=True, slots=True)
class Message:
    """An email that the relay took: content with CRLF, dots unstuffed."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


class _Gone(Exception):
    """The connection is over."""


Action = Callable[["_Session"], None]


def reply(text: str) -> Action:
    """Says this; more lines after newlines, each with its code (`250-one`, `250 two`).

    The code counts: a 2xx at RCPT takes the recipient, a 3xx at DATA reads the content, a 2xx after the dot
    takes the message (before the client hears of it).
    """

    def act(session: "_Session") -> None:
        session.note_reply(text)
        session.write("".join(f"{line}\r\n" for line in text.split("\n")).encode(), text)

    return act


def accept() -> Action:
    """Takes the recipient or the message without a word: with `close()` after it, the reply got lost."""

    def act(session: "_Session") -> None:
        session.note_reply("250")

    return act


def hang() -> Action:
    """Says nothing until `ScriptedRelay.release()`, the client hangs up, or the end of the test."""

    def act(session: "_Session") -> None:
        session.hang()

    return act


def stall() -> Action:
    """Reads and says nothing until `ScriptedRelay.release()` or the test's end: what is written piles up."""

    def act(session: "_Session") -> None:
        session.relay.released.wait()

    return act


def close() -> Action:
    """Closes the connection."""

    def act(_session: "_Session") -> None:
        raise _Gone

    return act


def last_word(text: str) -> Action:
    """Says this and closes, in one packet: whoever has read it can know that nothing more comes."""

    def act(session: "_Session") -> None:
        session.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
        session.write(f"{text}\r\n".encode(), text)
        session.sock.shutdown(socket.SHUT_WR)
        raise _Gone

    return act


def reset() -> Action:
    """Resets the connection (RST)."""

    def act(session: "_Session") -> None:
        session.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Gone

    return act


def garbage(data: bytes = b"\x00\xff\xfe what?\r\n") -> Action:
    """Writes these bytes as they are."""

    def act(session: "_Session") -> None:
        session.write(data, repr(data))

    return act


def drip(text: str, every: float = 0.02) -> Action:
    """Writes the text and its line end a byte at a time, `every` seconds; stops when the client hangs up."""

    def act(session: "_Session") -> None:
        for byte in f"{text}\r\n".encode():
            session.write(bytes([byte]), None)
            if session.relay.stopped.wait(every):
                raise _Gone

    return act


@dataclass(slots=True)
class _Behaviour:
    actions: Sequence[Action]
    when: Callable[[str], bool]
    times: int | None


class ScriptedRelay:
    """An SMTP server on 127.0.0.1 and a port of its own, a thread for each connection; a context manager.

    Args:
        pipelining: offer PIPELINING.
        auth: user and password; then AUTH is offered, and MAIL without it gets a 530.
        mechanisms: what AUTH offers.
        starttls: offer STARTTLS, with this server-side context.
        tls: TLS from the start, with this server-side context.
        extensions: more lines for the reply to EHLO, such as `SIZE 1000`.
        query: what the URL ends with, such as `?pipelining=ahead`.
        limit: how many connections may be open at once; one more is answered with a 421, and closed.
        behind: what happens when commands lie behind a dot in the same packet: `take` carries them out, `close` keeps
            the email in front and ends the connection without a reply, `refuse` says 503 to each after the dot's reply.
    """

    def __init__(
        self,
        *,
        pipelining: bool = True,
        auth: tuple[str, str] | None = None,
        mechanisms: str = "PLAIN LOGIN",
        starttls: ssl.SSLContext | None = None,
        tls: ssl.SSLContext | None = None,
        extensions: Sequence[str] = ("8BITMIME",),
        query: str = "",
        limit: int | None = None,
        behind: str = "take",
    ) -> None:
        self.pipelining = pipelining
        self.auth = auth
        self.mechanisms = mechanisms
        self.starttls = starttls
        self.tls = tls
        self.extensions = tuple(extensions)
        self.query = query
        self.limit = limit
        self.behind = behind
        #: What a connection that is one too many gets.
        self.turn_away: Sequence[Action] = (reply("421 4.7.0 relay.test Error: too many connections from 127.0.0.1"),)
        #: How many of those there were, and how many others were open at once at the most.
        self.surplus = 0
        self.most_at_once = 0
        self._admitted = 0
        #: Dots behind which there were commands.
        self.behind_dots = 0
        self.stopped = threading.Event()
        self.released = threading.Event()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._behaviours: dict[str, list[_Behaviour]] = {}
        self._transcript: list[str] = []
        self._messages: list[Message] = []
        self._sessions: list[threading.Thread] = []
        self._connections = 0
        self._open = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._listen, name=f"relay-{self.port}", daemon=True)

    @property
    def url(self) -> str:
        """The URL for `Relay.from_url`, with user and password if there are any."""
        login = f"{self.auth[0]}:{self.auth[1]}@" if self.auth else ""
        return f"{'smtps' if self.tls else 'smtp'}://{login}127.0.0.1:{self.port}{self.query}"

    @property
    def transcript(self) -> list[str]:
        """All lines of all dialogues so far, `C: ` the client's, `S: ` ours; of content only the dot."""
        with self._lock:
            return list(self._transcript)

    @property
    def messages(self) -> list[Message]:
        """The emails taken so far."""
        with self._lock:
            return list(self._messages)

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        with self._lock:
            return self._connections

    def on(
        self,
        phase: Phase | str,
        *actions: Action,
        when: Callable[[str], bool] = lambda _line: True,
        times: int | None = None,
    ) -> None:
        """From now on does this; what was set last comes first.

        Args:
            phase: where; `CONNECT` comes before TLS and banner, `BODY` when content begins to come,
                `DOT` after its end; `"rset"`, `"noop"` for those commands.
            actions: what to do, one after the other.
            when: only for lines of the client that this is true of ("" where there is none).
            times: only so often; None for always.
        """
        with self._lock:
            self._behaviours.setdefault(str(phase), []).insert(0, _Behaviour(actions, when, times))

    def forget(self, phase: Phase | str | None = None) -> None:
        """Does the usual thing again, in one phase or in all."""
        with self._lock:
            if phase is None:
                self._behaviours.clear()
            else:
                self._behaviours.pop(str(phase), None)

    def release(self) -> None:
        """Ends every `hang()`, those to come too."""
        self.released.set()

    def wait_for(self, condition: Callable[["ScriptedRelay"], bool], seconds: float = 10.0) -> bool:
        """Waits until something is true (`lambda relay: len(relay.messages) == 3`); says whether it is."""
        deadline = time.monotonic() + seconds
        while not condition(self):
            if time.monotonic() > deadline:
                return False
            with self._changed:
                self._changed.wait(0.05)
        return True

    def wait_until_idle(self, seconds: float = 10.0) -> bool:
        """Waits until no connection is open: then the transcript is complete."""
        return self.wait_for(lambda relay: relay._open == 0, seconds)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Closes everything: from now on connections are refused."""
        self.stopped.set()
        self.released.set()
        if self._thread.is_alive():
            self._thread.join()
        self._listener.close()
        for session in self._sessions:
            session.join()

    def act(self, phase: Phase | str, line: str) -> Sequence[Action] | None:
        """Gives what is set for this line, None for the usual."""
        with self._lock:
            for behaviour in self._behaviours.get(str(phase), []):
                if behaviour.times != 0 and behaviour.when(line):
                    behaviour.times = None if behaviour.times is None else behaviour.times - 1
                    return behaviour.actions
        return None

    def record(self, line: str) -> None:
        """Adds a line to the transcript."""
        with self._changed:
            self._transcript.append(line)
            self._changed.notify_all()

    def take(self, message: Message) -> None:
        """Adds an email to those taken."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def _listen(self) -> None:
        self._listener.settimeout(0.02)
        while not self.stopped.is_set():
            try:
                sock, _ = self._listener.accept()
                # Replies are small writes one after the other: they are not to wait for an ACK.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except TimeoutError:
                continue
            with self._changed:
                self._connections += 1
                self._open += 1
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._sessions.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        session = _Session(self, sock)
        with self._lock:
            is_surplus = self.limit is not None and self._admitted >= self.limit
            self.surplus += is_surplus
            self._admitted += not is_surplus
            self.most_at_once = max(self.most_at_once, self._admitted)
        try:
            if is_surplus:
                session.turn_away()
            session.run()
        except (_Gone, OSError):
            pass
        finally:
            session.end()
            with self._changed:
                self._admitted -= not is_surplus
                self._open -= 1
                self._changed.notify_all()


@dataclass(slots=True)
class _Session:
    relay: ScriptedRelay
    sock: socket.socket
    buffer: bytearray = field(default_factory=bytearray)
    encrypted: bool = False
    logged_in: bool = False
    sender: str | None = None
    recipients: list[str] = field(default_factory=list)
    content: bytes = b""
    phase: Phase | str = Phase.CONNECT
    line: str = ""
    code: str = ""

    def turn_away(self) -> None:
        """There is one connection too many."""
        for action in self.relay.turn_away:
            action(self)
        raise _Gone

    def run(self) -> None:
        self.do(Phase.CONNECT, None)
        if self.relay.tls:
            self.encrypt(self.relay.tls)
        self.do(Phase.BANNER, "220 relay.test ESMTP")
        while True:
            self.command(self.read_line())

    def command(self, line: str) -> None:
        self.relay.record(f"C: {line}")
        verb = line.split(" ", 1)[0].upper()
        handlers: dict[str, Callable[[str], None]] = {
            "EHLO": self.ehlo,
            "HELO": self.ehlo,
            "STARTTLS": self.start_tls,
            "AUTH": self.log_in,
            "MAIL": self.mail,
            "RCPT": self.rcpt,
            "DATA": self.data,
            "RSET": self.rset,
            "QUIT": self.quit,
            "NOOP": self.noop,
        }
        handlers.get(verb, self.unknown)(line)

    def do(self, phase: Phase | str, usual: str | None, line: str = "") -> str:
        """Does what is set for the phase, else says the usual; gives the code that was said."""
        self.phase, self.line, self.code = phase, line, ""
        actions = self.relay.act(phase, line)
        if actions is None:
            actions = [reply(usual)] if usual else []
        for action in actions:
            action(self)
        return self.code

    def note_reply(self, text: str) -> None:
        """Does what a reply stands for, before the client hears it."""
        self.code = text[:3]
        if not text.startswith("2"):
            return
        if self.phase is Phase.RCPT:
            self.recipients.append(_address(self.line))
        elif self.phase is Phase.DOT and self.recipients:
            self.relay.take(Message(self.sender or "", tuple(self.recipients), self.content))

    def ehlo(self, line: str) -> None:
        lines = ["relay.test", *self.relay.extensions]
        lines += ["PIPELINING"] if self.relay.pipelining else []
        lines += ["STARTTLS"] if self.relay.starttls and not self.encrypted else []
        lines += [f"AUTH {self.relay.mechanisms}"] if self.relay.auth else []
        if line.upper().startswith("HELO"):
            lines = lines[:1]
        self.do(Phase.EHLO, "\n".join([*(f"250-{text}" for text in lines[:-1]), f"250 {lines[-1]}"]), line)

    def start_tls(self, line: str) -> None:
        context = self.relay.starttls
        code = self.do(Phase.STARTTLS, "220 2.0.0 go ahead" if context else "502 5.5.1 no", line)
        if code == "220" and context:
            self.encrypt(context)

    def encrypt(self, context: ssl.SSLContext) -> None:
        self.sock.settimeout(10)
        self.sock = context.wrap_socket(self.sock, server_side=True)
        self.buffer.clear()
        self.encrypted = True
        self.relay.record("-- TLS")

    def log_in(self, line: str) -> None:
        words = line.split()
        expected = self.relay.auth
        if words[1].upper() == "PLAIN":
            given = base64.b64decode(words[2]).decode().split("\0")[1:]
        elif words[1].upper() == "CRAM-MD5":
            given = self.challenge("334 PDFAcmVsYXkudGVzdD4=").split(" ")
            if expected is not None:
                digest = hmac.new(expected[1].encode(), b"<1@relay.test>", "md5").hexdigest()
                expected = (expected[0], digest)
        else:
            given = [self.challenge("334 VXNlcm5hbWU6"), self.challenge("334 UGFzc3dvcmQ6")]
        right = expected is not None and tuple(given) == expected
        code = self.do(Phase.AUTH, "235 2.7.0 welcome" if right else "535 5.7.8 wrong", line)
        self.logged_in = code.startswith("2")

    def challenge(self, text: str) -> str:
        self.write(f"{text}\r\n".encode(), text)
        line = self.read_line()
        self.relay.record(f"C: {line}")
        return base64.b64decode(line).decode()

    def mail(self, line: str) -> None:
        usual = "250 2.1.0 ok"
        if self.relay.auth and not self.logged_in:
            usual = "530 5.7.0 log in first"
        elif self.sender is not None:
            usual = "503 5.5.1 nested MAIL"
        if self.do(Phase.MAIL, usual, line).startswith("2"):
            self.sender = _address(line)

    def rcpt(self, line: str) -> None:
        self.do(Phase.RCPT, "250 2.1.5 ok" if self.sender is not None else "503 5.5.1 MAIL first", line)

    def data(self, line: str) -> None:
        usual = "354 go ahead" if self.recipients else "554 5.5.1 no valid recipients"
        if not self.do(Phase.DATA, usual, line).startswith("3"):
            return
        self.read_content()
        self.relay.record("C: .")
        lies_behind = bool(self.buffer)
        self.relay.behind_dots += lies_behind
        if lies_behind and self.relay.behind == "close":
            self.phase = Phase.DOT
            accept()(self)
            raise _Gone
        self.do(Phase.DOT, "250 2.0.0 taken" if self.recipients else "554 5.5.1 no valid recipients")
        self.clear()
        if lies_behind and self.relay.behind == "refuse":
            while self.buffer:
                self.relay.record(f"C: {self.read_line()}")
                self.write(b"503 5.5.1 nothing may lie behind the dot\r\n", "503 5.5.1 nothing may lie behind the dot")

    def read_content(self) -> None:
        lines: list[bytes] = []
        while (line := self.read_raw()) != b".\r\n":
            if not lines:
                self.do(Phase.BODY, None)
            lines.append(line.removeprefix(b"."))
        self.content = b"".join(lines)

    def rset(self, line: str) -> None:
        self.clear()
        self.do("rset", "250 2.0.0 forgotten", line)

    def noop(self, line: str) -> None:
        self.do("noop", "250 2.0.0 ok", line)

    def unknown(self, _line: str) -> None:
        self.write(b"500 5.5.1 what?\r\n", "500 5.5.1 what?")

    def quit(self, line: str) -> None:
        self.do(Phase.QUIT, "221 2.0.0 bye", line)
        raise _Gone

    def clear(self) -> None:
        self.sender = None
        self.recipients = []
        self.content = b""

    def read_line(self) -> str:
        return self.read_raw().decode("utf-8", "replace").rstrip("\r\n")

    def read_raw(self) -> bytes:
        """Gives the next line with its line end; waits no longer than the test lasts."""
        searched = 0
        while (end := self.buffer.find(b"\n", searched)) < 0:
            searched = len(self.buffer)
            self.buffer += self.receive()
        line = bytes(self.buffer[: end + 1])
        del self.buffer[: end + 1]
        return line

    def receive(self) -> bytes:
        self.sock.settimeout(0.05)
        while not self.relay.stopped.is_set():
            try:
                data = self.sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise _Gone
            return data
        raise _Gone

    def write(self, data: bytes, shown: str | None) -> None:
        """Writes, and puts it into the transcript first, so that it is there when the client goes on."""
        for line in shown.split("\n") if shown is not None else []:
            self.relay.record(f"S: {line}")
        self.sock.settimeout(10)
        self.sock.sendall(data)

    def end(self) -> None:
        """Closes, with everything read: else the client would get a reset and might lose the last reply."""
        with suppress(OSError):
            self.sock.setblocking(False)
            while self.sock.recv(65536):
                pass
        self.sock.close()

    def hang(self) -> None:
        ready = select.poll()
        ready.register(self.sock, select.POLLIN)
        while not self.relay.released.wait(0.02):
            # What the client pipelined is left unread; that it has hung up shows only when nothing is left.
            if ready.poll(0):
                self.sock.settimeout(0.05)
                try:
                    data = self.sock.recv(65536)
                except TimeoutError:
                    continue
                if not data:
                    raise _Gone
                self.buffer += data


def _address(line: str) -> str:
    return line.partition("<")[2].partition(">")[0]

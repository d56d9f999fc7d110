"""Where emails come back to: a Maildir, or a folder of an IMAP server. What is concluded is marked, nothing else is."""

import imaplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import unquote, urlsplit

from duepost.bounces.reports import MOST_PARSED
from models.errors import DuepostError

#: Seconds that a server may take to answer.
PATIENCE: Final = 30.0


class MailboxError(DuepostError):
    """A mailbox cannot be read; the message says why, without a password."""


class Mailbox(Protocol):
    """Emails that came back."""

    def waiting(self) -> Iterator[tuple[str, bytes]]:
        """Those that nobody has marked: what each is called, and its content, cut off where it is too long.

        Raises:
            MailboxError: it cannot be read.
        """

    def mark(self, name: str) -> None:
        """One of them is concluded.

        Raises:
            MailboxError: it cannot be marked; it is read again the next time.
        """


@contextmanager
def opened(place: str) -> Iterator[Mailbox]:
    """The mailbox at a place: the path of a Maildir, `imaps://user:password@host/folder`, or `imap+starttls://…`.

    Raises:
        MailboxError: there is none.
    """
    if "://" not in place:
        yield Maildir(Path(place))
        return
    with _connected(place) as connection:
        yield ImapFolder(connection)


@dataclass(frozen=True, slots=True)
class Maildir:
    """A Maildir: what is concluded is moved to `cur`, and marked as seen."""

    path: Path

    def waiting(self) -> Iterator[tuple[str, bytes]]:
        """New ones, and those that nobody has seen."""
        try:
            names = [f"new/{each.name}" for each in sorted((self.path / "new").iterdir())]
            names += [
                f"cur/{each.name}" for each in sorted((self.path / "cur").iterdir()) if "S" not in _flags(each.name)
            ]
        except OSError as error:
            raise MailboxError(f"{self.path}: is no Maildir that can be read: {error.strerror}") from None
        for name in names:
            # Somebody else may have moved it meanwhile.
            with suppress(FileNotFoundError), (self.path / name).open("rb") as file:
                yield name, file.read(MOST_PARSED)

    def mark(self, name: str) -> None:
        """Moves it."""
        plain, _, _ = Path(name).name.partition(":2,")
        flags = "".join(sorted({*_flags(name), "S"}))
        try:
            (self.path / name).rename(self.path / "cur" / f"{plain}:2,{flags}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise MailboxError(f"{self.path}: {Path(name).name} cannot be marked: {error.strerror}") from None


def _flags(name: str) -> str:
    return name.partition(":2,")[2]


class ImapFolder:
    """A folder of an IMAP server: what is concluded is marked as seen."""

    def __init__(self, connection: imaplib.IMAP4) -> None:
        self._connection = connection

    def waiting(self) -> Iterator[tuple[str, bytes]]:
        """Those that are not seen."""
        with _errors():
            _, found = self._connection.uid("SEARCH", "UNSEEN")
        for uid in (found[0] or b"").split():
            with _errors():
                _, parts = self._connection.uid("FETCH", uid.decode(), f"(BODY.PEEK[]<0.{MOST_PARSED}>)")
            contents = [part[1] for part in parts if isinstance(part, tuple)]
            if contents:
                yield uid.decode(), contents[0]

    def mark(self, name: str) -> None:
        """Sets the flag."""
        with _errors():
            self._connection.uid("STORE", name, "+FLAGS.SILENT", r"(\Seen)")


@contextmanager
def _connected(place: str) -> Iterator[imaplib.IMAP4]:
    parts = urlsplit(place)
    host = parts.hostname or ""
    folder = unquote(parts.path.lstrip("/")) or "INBOX"
    with _errors():
        if parts.scheme == "imaps":
            connection: imaplib.IMAP4 = imaplib.IMAP4_SSL(
                host, parts.port or 993, ssl_context=ssl.create_default_context(), timeout=PATIENCE
            )
        else:
            connection = imaplib.IMAP4(host, parts.port or 143, timeout=PATIENCE)
            if parts.scheme == "imap+starttls":
                connection.starttls(ssl.create_default_context())
    try:
        with _errors():
            connection.login(unquote(parts.username or ""), unquote(parts.password or ""))
            status, _ = connection.select(_quoted(folder))
        if status != "OK":
            raise MailboxError(f"{host}: there is no folder {folder}")
        yield connection
    finally:
        with suppress(imaplib.IMAP4.error, OSError):
            connection.logout()


def _quoted(folder: str) -> str:
    return '"' + folder.replace("\\", "\\\\").replace('"', '\\"') + '"'


@contextmanager
def _errors() -> Iterator[None]:
    """What an IMAP server, or the way to it, fails of, in one line."""
    try:
        yield
    except (imaplib.IMAP4.error, OSError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise MailboxError(f"IMAP: {type(error).__name__}: {' '.join(said.split())[:200]}") from None

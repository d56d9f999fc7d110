"""A worker's journal: what relays have said, in files of its own on its machine until the database has it.

A worker that is killed leaves emails behind that a relay has taken and whose conclusion was not committed. Its journal
names them: who finds it dead, with the same folder at hand, concludes from there, and nothing of it is sent twice.

A record is one write, without fsync: it survives the process, not the machine. Each line is checked by itself; one that
is torn, damaged, or of another journal is passed over, and then counts as never written. So a damaged journal does no
harm: it says less. It holds ids, codes and replies, never an address, name, subject or body of ours; as a relay's reply
may quote an address, the folder is the worker's alone (0700, files 0600).
"""

import json
import logging
import os
import stat
import tempfile
import threading
import time
import uuid
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, get_args, get_type_hints

import psycopg2

from actors.delivery.thread_pool import ThreadPool
from actors.ruling import Ruling
from models import workers
from models.database.connections import Database
from models.errors import DatabaseUnreachable
from models.messages import Claim as MessageClaim

logger = logging.getLogger(__name__)

#: What a journal begins with; the number is the format's.
MAGIC: Final = "duepost journal 1"

#: The folder within the state folder.
FOLDER: Final = "journal"

#: Bytes after which a new file is begun. The old one is deleted once all that it names is concluded.
FULL: Final = 1 << 20

#: Bytes that are read of a file at the most: more than a worker writes between two looks.
MOST_READ: Final = 16 << 20

#: Seconds without a new record after which a file of which all is concluded is emptied.
EMPTIED_AFTER: Final = 5.0

#: Seconds that a write may take in the thread that drives the dialogues; after a longer one, writes are handed over.
SLOW: Final = 0.05

#: Records that wait for a slow disk at the most; what comes then is left out.
WAITING: Final = 1000

#: Seconds between two tries to begin a file where that has failed.
TRIED_AGAIN_AFTER: Final = 60.0

#: Seconds after which a file whose worker no database at hand knows is deleted: 30 days.
KEPT: Final = 30 * 86_400.0

#: A ruling's fields with the types that each may have, and the usual value of some.
FIELDS: Final = {name: get_args(each) or (each,) for name, each in get_type_hints(Ruling).items()}
USUAL: Final = tuple(Ruling._field_defaults.get(name, ...) for name in FIELDS)

#: One for all lines: making one takes as long as a line.
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))

#: Bytes that are written to see whether a journal can be kept: a block of most file systems.
TRIED: Final = 4096

#: Hexadecimal digits of a journal's name.
NAME_LENGTH: Final = 32


class Record(NamedTuple):
    """What the relay made of one email, as far as it was told.

    Attributes:
        email_id: the email.
        claim: the claim's number; the rulings are of no use to any other.
        message: the claim of the broker message that it came by, if any.
        rulings: by the recipient's key: a user id, or a place among several; None stands for the email's address.
    """

    email_id: int
    claim: int
    message: MessageClaim | None
    rulings: Mapping[str | None, Ruling]


class JournalFile:
    """An open file. It is closed when nobody refers to it any more, so never while a write is under way."""

    def __init__(self, descriptor: int, path: Path, number: int, size: int) -> None:
        self.descriptor = descriptor
        self.path = path
        self.number = number
        self.empty_size = self.size = size
        #: The last write was cut short: the next record begins with a new line.
        self.is_torn = False
        #: One write at a time: each route has a thread that writes.
        self._turn = threading.Lock()

    def __del__(self) -> None:
        os.close(self.descriptor)

    @property
    def is_gone(self) -> bool:
        """Whether the file has vanished from its folder."""
        return os.fstat(self.descriptor).st_nlink == 0

    def write(self, line: bytes) -> None:
        """Appends a record in one write.

        Raises:
            OSError: the file does not hold it.
        """
        with self._turn:
            data = b"\n" + line if self.is_torn else line
            self.is_torn = True
            written = os.write(self.descriptor, data)
            self.size += written
            if written < len(data):
                raise OSError(f"{written} of {len(data)} bytes were written")
            self.is_torn = False


class Journal:
    """The journal of one worker process, and its eyes for those of dead ones.

    `append` runs in the threads that drive the dialogues, `begin` in those that claim, one of each a route; `tidy`,
    `read` and `delete_unneeded` in the rescuer's; any thread may call `forget`. The lock protects which file is written
    to, and which claims it names; nothing is read or written under it.

    Args:
        folder: the state folder; None for no journal.
        database: whose worker this is.
    """

    def __init__(self, folder: Path | None, database: Database) -> None:
        self._folder = folder / FOLDER if folder is not None else None
        self._database = database
        self._lock = threading.Lock()
        #: Of `begin`: the file that is written to is the one that the database knows of.
        self._beginning = threading.Lock()
        self._file: JournalFile | None = None
        #: By claim, the number of the first file that names it.
        self._held: dict[int, int] = {}
        #: How many files there have been, and the number of the oldest that is still there.
        self._numbers = 0
        self._oldest = 0
        self._worker_id: int | None = None
        self._name = ""
        self._appended_at = 0.0
        self._failed_at = -float("inf")
        self._is_failing = False
        self._is_slow = False
        self._waiting = 0
        self._writer = ThreadPool("duepost-journal", 1)

    @property
    def name(self) -> str:
        """What this process's journal is called; empty while there is none."""
        return self._name

    # Writing.

    def begin(self, worker_id: int) -> None:
        """Makes sure that there is a file for what this worker claims next; may block.

        Where there can be none, that is said once, and mail goes on without.

        Raises:
            DatabaseUnreachable: the database could not be told which journal is this worker's.
        """
        if not self._is_needed(worker_id):
            return
        with self._beginning:
            if self._is_needed(worker_id):
                self._begin(worker_id)

    def _is_needed(self, worker_id: int) -> bool:
        return self._folder is not None and (worker_id != self._worker_id or self._has_vanished())

    def _begin(self, worker_id: int) -> None:
        now = time.monotonic()
        if worker_id == self._worker_id and now < self._failed_at + TRIED_AGAIN_AFTER:
            return
        name, file = uuid.uuid4().hex, None
        try:
            file = self._noted(name, worker_id)
        except (OSError, psycopg2.Error) as failure:
            self._failed_at = now
            self._say("cannot be kept", failure)
        with self._lock:
            self._worker_id, self._name, self._file = worker_id, name if file else "", file
            self._held.clear()
            self._oldest = self._numbers

    def append(
        self,
        email_id: int,
        claim: int,
        message: MessageClaim | None,
        rulings: Mapping[str | None, Ruling],
    ) -> None:
        """Records what the relay has said of an email, before anything else is done about it. Never raises.

        The thread that drives the dialogues does this itself: to hand it over would leave a moment in which a kill
        makes a copy. It may do so, as a write of some hundred bytes goes to the page cache and takes microseconds, like
        a line of its log. A disk that is slow nevertheless is noticed at the first write that takes long: from then on
        records are handed to a thread of their own, without waiting, and are left out where too many wait. A disk that
        never comes back from a write stops the dialogues, as it would in writing the log: the folder belongs on a local
        disk.
        """
        with self._lock:
            file = self._file
            if file is None:
                return
            self._held.setdefault(claim, file.number)
            self._appended_at = time.monotonic()
            is_direct = not self._is_slow
            is_left_out = not is_direct and self._waiting >= WAITING
            if not is_direct and not is_left_out:
                self._waiting += 1
        if is_left_out:
            self._say("leaves out what it cannot write in time", None)
            return
        line = encoded(Record(email_id, claim, message, rulings))
        if is_direct:
            self._write(file, line)
        else:
            self._writer.submit(partial(self._write_later, file, line))

    def forget(self, claim: int) -> None:
        """The database has what came of a claim, or the claim is given up."""
        with self._lock:
            self._held.pop(claim, None)

    def tidy(self) -> None:
        """Begins a new file where this one is full, or all that it names is concluded; deletes those that are done."""
        with self._lock:
            file, name, worker_id = self._file, self._name, self._worker_id
            is_idle = not self._held and time.monotonic() - self._appended_at > EMPTIED_AFTER
        if file is None or worker_id is None:
            return
        if file.size >= FULL or (is_idle and file.size > file.empty_size):
            try:
                following = self._opened(name, worker_id)
            except OSError as failure:
                self._say("cannot be started again", failure)
                return
            with self._lock:
                is_ours = self._file is file
                if is_ours:
                    self._file = following
            if not is_ours:
                _unlink(following.path)
        self._delete_done()

    def close(self) -> None:
        """A clean end: deletes the files that nobody needs."""
        with self._lock:
            file, self._file = self._file, None
            is_held = bool(self._held)
        if file is not None and not is_held:
            self._delete({self._name})

    def _noted(self, name: str, worker_id: int) -> JournalFile:
        """A new journal's first file; the database knows whose it is."""
        file = self._opened(name, worker_id)
        try:
            workers.note_journal(self._database, worker_id, name)
        except (DatabaseUnreachable, psycopg2.Error):
            _unlink(file.path)
            raise
        return file

    def _has_vanished(self) -> bool:
        file = self._file
        return file is None or file.is_gone

    def _opened(self, name: str, worker_id: int) -> JournalFile:
        """A new file, with its header.

        Raises:
            OSError: there can be none.
        """
        if self._folder is None:
            raise FileNotFoundError("there is no state folder")
        check_folder(self._folder)
        self._numbers += 1
        path = self._folder / f"{name}.{self._numbers}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        file = JournalFile(os.open(path, flags, 0o600), path, self._numbers, 0)
        try:
            file.write(header(name, worker_id))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        file.empty_size = file.size
        return file

    def _write(self, file: JournalFile, line: bytes) -> None:
        begun = time.monotonic()
        try:
            file.write(line)
        except OSError as failure:
            self._say("cannot be written", failure)
        else:
            self._is_failing = False
        is_slow = time.monotonic() - begun > SLOW
        if is_slow and not self._is_slow:
            logger.warning("The disk of the journal is slow; from now on it is written on the side.")
        self._is_slow = is_slow or self._waiting > 1

    def _write_later(self, file: JournalFile, line: bytes) -> None:
        try:
            self._write(file, line)
        finally:
            with self._lock:
                self._waiting -= 1

    def _delete_done(self) -> None:
        """Deletes the files before the first one that names a claim which is not concluded."""
        with self._lock:
            if self._file is None:
                return
            own, first = self._name, min(self._held.values(), default=self._file.number)
            is_nothing_new, self._oldest = first <= self._oldest, first
        if is_nothing_new:
            return
        for path, name, number in self._files():
            if name == own and number < first:
                _unlink(path)

    def _say(self, what: str, failure: Exception | None) -> None:
        """One line, until it works again."""
        if not self._is_failing:
            self._is_failing = True
            reason = f": {reason_of(failure)}" if failure is not None else ""
            logger.warning("The journal in %s %s%s. After a crash emails may come twice.", self._folder, what, reason)

    # Reading.

    def read(self, name: str) -> Mapping[int, Record] | None:
        """What a journal names, by claim; None where it does not lie in this folder. Never raises.

        Args:
            name: the journal's, as the database has it.
        """
        paths = [path for path, found, _ in self._files() if found == name]
        if not paths:
            return None
        records: dict[int, Record] = {}
        for path in paths:
            try:
                content = read_private(path)
            except OSError as failure:
                logger.warning("The journal %s cannot be read: %s.", path.name, reason_of(failure))
                continue
            for record in decoded(content, name):
                known = records.get(record.claim, record)
                records[record.claim] = record._replace(rulings={**known.rulings, **record.rulings})
        return records

    def delete_unneeded(self, gone: Collection[str], needed: Collection[str]) -> None:
        """Deletes what dead workers have left, once all that they held is ended; and what nobody knows any more.

        Args:
            gone: the journals of workers that are gone.
            needed: those of them that claims may still be concluded from.
        """
        self._delete(set(gone) - set(needed) - {self._name})
        for path, name, _ in self._files():
            if name not in gone and name != self._name and _age(path) > KEPT:
                _unlink(path)

    def names(self) -> set[str]:
        """The journals that lie in this folder."""
        return {name for _, name, _ in self._files()}

    def _delete(self, names: Collection[str]) -> None:
        for path, name, _ in self._files():
            if name in names:
                _unlink(path)

    def _files(self) -> list[tuple[Path, str, int]]:
        """The files of the folder that are named as a journal's, with its name and the file's number, in order."""
        if self._folder is None:
            return []
        try:
            paths = list(self._folder.iterdir())
        except OSError:
            return []
        parts = [(path, *path.name.partition(".")[::2]) for path in paths]
        files = [
            (path, name, int(number))
            for path, name, number in parts
            if len(name) == NAME_LENGTH and number.isascii() and number.isdigit()
        ]
        return sorted(files, key=lambda each: each[1:])


def check_folder(folder: Path) -> None:
    """Makes the folder of journals where it is missing, for this user alone.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError("it is not a folder of this user's")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)


def trouble_with(folder: Path) -> str | None:
    """Why no journal can be kept in a state folder; None where one can. Leaves nothing there, and never raises.

    It writes a file without a name, as rights alone do not tell: the file system may be full, read-only, or one that
    takes no files.

    Args:
        folder: the state folder.
    """
    own = folder / FOLDER
    existing = own
    try:
        existing = next((each for each in (own, *own.parents) if each.exists() or each.is_symlink()), own)
        if not existing.is_dir():
            return f"{existing} is no folder"
        if existing == own and own.lstat().st_uid != os.geteuid():
            return f"{own} belongs to another user"
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(TRIED))
            file.flush()
    except OSError as failure:
        return f"{existing} cannot be written by this user: {reason_of(failure)}"
    return None


def read_private(path: Path) -> bytes:
    """The content of a plain file that is this user's own; no more than `MOST_READ` bytes.

    Raises:
        OSError: it cannot be read, or is something else.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise PermissionError("it is not a plain file of this user's")
        return file.read(MOST_READ)


def header(name: str, worker_id: int) -> bytes:
    """The first line of a journal: whose it is."""
    return _line([MAGIC, name, worker_id, os.getpid()])


def encoded(record: Record) -> bytes:
    """A record as a line."""
    rulings = [[user_id, _plain(ruling)] for user_id, ruling in record.rulings.items()]
    return _line([record.email_id, record.claim, record.message, rulings])


def decoded(content: bytes, name: str) -> Iterator[Record]:
    """The records of a journal's content; none where it is another journal's. Damaged ones are passed over."""
    first, *lines = content.split(b"\n")
    match _value(first):
        case [str(magic), str(own), int(), int()] if magic == MAGIC and own == name:
            for line in lines:
                record = _record(_value(line))
                if record is not None:
                    yield record


def _line(value: Sequence[object]) -> bytes:
    """A JSON value behind its checksum; nothing in it ends a line."""
    text = _ENCODER.encode(value).encode("ascii")
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _value(line: bytes) -> object:
    """The value of a line, None where it is not as it was written."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _record(value: object) -> Record | None:
    match value:
        case [int(email_id), int(claim), message, [_, *_] as rulings]:
            try:
                return Record(email_id, claim, _message(message), dict(map(_ruling, rulings)))
            except (ValueError, TypeError, KeyError):
                return None
    return None


def _message(value: object) -> MessageClaim | None:
    match value:
        case None:
            return None
        case [str(message_id), int(number)]:
            return MessageClaim(str(uuid.UUID(message_id)), number)
    raise TypeError("no message")


def _plain(ruling: Ruling) -> dict[str, object]:
    """A ruling as JSON has it: by the names of its fields, without those that are as usual."""
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value, usual in zip(FIELDS, ruling, USUAL, strict=True)
        if value != usual
    }


def _ruling(value: object) -> tuple[str | None, Ruling]:
    match value:
        case [(str() | None) as user_id, {**fields}]:
            typed = {str(name): _typed(each, FIELDS[str(name)]) for name, each in fields.items()}
            return user_id, Ruling(**typed)  # type: ignore[arg-type]  # each is of its field's own type
    raise TypeError("no ruling")


def _typed(value: object, types: Sequence[type]) -> object:
    """A value from JSON as the first of these types that it fits.

    Raises:
        ValueError: an enum has no such member.
        TypeError: it fits none.
    """
    for each in types:
        if issubclass(each, Enum) and value is not None:
            return each(value)
        if type(value) is each:
            return value
    raise TypeError("not of the field's type")


def reason_of(failure: Exception) -> str:
    """Why, in a word: no path, and no value of a row."""
    return failure.strerror or str(failure) if isinstance(failure, OSError) else type(failure).__name__


def _age(path: Path) -> float:
    """Seconds since a file was last written; 0 where it is gone."""
    try:
        return time.time() - path.lstat().st_mtime
    except OSError:
        return 0.0


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as failure:
        logger.debug("The journal %s cannot be deleted: %s.", path.name, reason_of(failure))

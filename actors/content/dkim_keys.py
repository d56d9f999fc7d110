"""The private keys that outgoing emails are signed with, from files: `<folder>/<domain>/<selector>.pem`.

Of a domain's keys the last by name signs, one for each algorithm: with `2026a.pem` and `2026b.pem` that is `2026b`.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple

from actors.content.addresses import ascii_domain
from actors.content.dkim import Key, signed
from actors.content.mime import UnsendableField
from models.errors import DuepostError

logger = logging.getLogger(__name__)

#: What a key's file ends in; other files are left alone.
ENDING: Final = ".pem"

#: Octets of a file; a key of 4096 bits has a twentieth of it.
LARGEST_FILE: Final = 65_536

#: Domains without a key that are remembered, so that each is warned of once.
MOST_DOMAINS: Final = 10_000

# RFC 6376 section 3.1.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SELECTOR = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.IGNORECASE)


class BadKey(DuepostError):
    """A key cannot be used; the message names the file, and what would be right."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"DUEPOST_DKIM_KEYS: {path}: {reason}")


class _Known(NamedTuple):
    """What was read of a domain: the keys that sign, what its files looked like, when, and why not again."""

    keys: tuple[Key, ...]
    stamp: object
    looked_at: float
    trouble: str = ""


class DkimKeys:
    """The keys in a folder. Files that are replaced are read again; any thread may ask.

    Args:
        folder: it.
        look_every: seconds between two looks at a domain's files.
    """

    def __init__(self, folder: Path, look_every: float = 1.0) -> None:
        self.folder = folder
        self._look_every = look_every
        self._lock = Lock()
        self._known: dict[str, _Known] = {}

    def check(self) -> dict[str, tuple[Key, ...]]:
        """Reads all, and returns those that sign, by domain.

        Raises:
            BadKey: one of them is of no use, or there is none.
        """
        found = {domain: chosen(domain, folder) for domain, folder in _folders(self.folder).items()}
        if not found:
            raise BadKey(self.folder, "holds no key; must be a folder with <domain>/<selector>.pem")
        return found

    def of(self, domain: str) -> tuple[Key, ...]:
        """Returns the keys that sign a domain's emails; none where it has none.

        Where its files have become of no use, those that were read before go on.

        Raises:
            BadKey: there are none that were read before.
        """
        with self._lock:
            known, now = self._known.get(domain), time.monotonic()
            if known is None or now - known.looked_at >= self._look_every:
                known = self._look(domain, known, now)
                if len(self._known) >= MOST_DOMAINS:
                    self._known.clear()
                self._known[domain] = known
            return known.keys

    def _look(self, domain: str, known: _Known | None, now: float) -> _Known:
        try:
            folder = _folders(self.folder).get(domain)
            # Before they are read: what is written meanwhile is seen by the next look.
            stamp = None if folder is None else _stamp(folder)
            if known is not None and known.stamp == stamp:
                return known._replace(looked_at=now)
            return _Known(() if folder is None else chosen(domain, folder), stamp, now)
        except BadKey as error:
            if known is None or not known.keys:
                raise
            if str(error) != known.trouble:
                logger.error("%s; the keys that were read before go on signing.", error)  # noqa: TRY400
            return known._replace(looked_at=now, trouble=str(error))


class Signer:
    """Signs emails by the domain of their From. Any thread may call it, but for the one that drives the dialogues.

    Args:
        keys: what with.
        names: the headers that are signed.
        is_required: whether an email whose domain has no key is not to be sent.
    """

    def __init__(self, keys: DkimKeys, names: Sequence[str], *, is_required: bool) -> None:
        self.keys = keys
        self.is_required = is_required
        self._names = tuple(names)
        self._warned: set[str] = set()

    def for_domain(self, domain: str) -> Callable[[bytes], bytes]:
        """Returns what signs a message, each line of which ends in CRLF. It may read files, where they are new.

        Raises:
            UnsendableField: the domain has no key where one is required, or one that is of no use.
        """
        try:
            keys = self.keys.of(domain)
        except BadKey as error:
            raise UnsendableField("sender", str(error)) from None
        if not keys:
            if self.is_required:
                raise UnsendableField("sender", f"there is no DKIM key of {domain}, and DUEPOST_DKIM_REQUIRED is set")
            if domain not in self._warned and len(self._warned) < MOST_DOMAINS:
                self._warned.add(domain)
                logger.warning("Emails from %s are not signed: %s has no key of it.", domain, self.keys.folder)
            return lambda message: message
        return lambda message: signed(message, keys, self._names, int(time.time()))


def chosen(domain: str, folder: Path) -> tuple[Key, ...]:
    """The keys of a domain's folder that sign, RSA before Ed25519.

    Raises:
        BadKey: a file is of no use, or there is none.
    """
    keys = [read_key(path, domain) for path in sorted(_files(folder), key=_by_number)]
    if not keys:
        raise BadKey(folder, "holds no key; must have <selector>.pem")
    last = {key.algorithm: key for key in keys}
    return tuple(last[algorithm] for algorithm in sorted(last, reverse=True))


def read_key(path: Path, domain: str) -> Key:
    """Reads a private key from a file that is called as its selector.

    Raises:
        BadKey: it is none, or one that does not sign.
    """
    selector = path.name.removesuffix(ENDING)
    if not _SELECTOR.fullmatch(selector):
        raise BadKey(path, "what stands before .pem must be a selector: letters, digits, hyphens and dots")
    try:
        from actors.content import private_keys  # noqa: PLC0415 - needs a package that only signing needs
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise BadKey(path, f"signing needs {package}, which is not installed: pip install 'duepost[dkim]'") from None
    try:
        private = private_keys.read(_content(path))
    except ValueError as error:
        raise BadKey(path, str(error)) from None
    return Key(domain, selector, private.algorithm, private.bits, private.public, private.sign)


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise BadKey(path, "no file")
        with path.open("rb") as file:
            return file.read(LARGEST_FILE)
    except OSError as error:
        raise BadKey(path, _reason(error)) from None


def _folders(root: Path) -> dict[str, Path]:
    """The folders of domains, by the domain in IDNA."""
    found: dict[str, Path] = {}
    try:
        entries = sorted(each for each in root.iterdir() if not each.name.startswith(".") and each.is_dir())
    except OSError as error:
        raise BadKey(root, _reason(error)) from None
    for each in entries:
        domain = ascii_domain(each.name)
        if domain is None:
            raise BadKey(each, "a folder's name must be a domain")
        if domain in found:
            raise BadKey(each, f"{found[domain].name} is the same domain")
        found[domain] = each
    return found


def _files(folder: Path) -> list[Path]:
    try:
        return [each for each in folder.iterdir() if each.suffix == ENDING and not each.name.startswith(".")]
    except OSError as error:
        raise BadKey(folder, _reason(error)) from None


def _stamp(folder: Path) -> object:
    """What is different once one of its files is."""
    try:
        stats = [(each, each.stat()) for each in sorted(_files(folder))]
    except OSError as error:
        raise BadKey(folder, _reason(error)) from None
    return [(each, it.st_mtime_ns, it.st_ctime_ns, it.st_size, it.st_ino) for each, it in stats]


def _by_number(path: Path) -> list[tuple[str, int]]:
    """Names in order, with their numbers as numbers: s9 before s10."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)([0-9]*)", path.name)]


def _reason(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()

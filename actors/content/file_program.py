"""The program of a process of its own that reads the files of emails: `python -P file_program.py`.

It imports nothing of Duepost, as it is run by its path. A request is a length of four bytes, the highest first, and
JSON (`Request`). The answer is such a length and JSON: `{"files": [...]}`, behind which the contents stand in base64,
in lines of 76 characters that are ended by CRLF; or `{"place": …, "error": …}`. A file system or a store that never
answers holds this process up, and whoever started it ends it.
"""

import base64
import hashlib
import json
import os
import select
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import BinaryIO, Final, TypedDict
from urllib.parse import unquote, unquote_to_bytes

#: Seconds without a request after which this process ends.
IDLE: Final = 60.0

#: What this process says once it has begun.
READY: Final = b"\0\0\0\0"

#: Bytes that are read at once.
PIECE: Final = 2**20

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Request(TypedDict):
    """Files that are to be read, where they may be, and how many bytes all of them together may have."""

    urls: list[str]
    roots: list[str]
    most: int


class Refused(Exception):
    """A file is not read. The message says why, and names nothing of the URL."""


OUTSIDE: Final = "its file lies outside of DUEPOST_ATTACHMENT_ROOTS"
NO_FILE: Final = "its file does not exist"
UNREADABLE: Final = "its file may not be read"
IRREGULAR: Final = "its file is no regular file"
TOO_LARGE: Final = "the files are more than 25 MiB together"


def read(url: str, roots: Sequence[str], most: int) -> bytes:
    """Reads a file, and of one that is too large no more than it takes to know that.

    Raises:
        Refused: it lies outside of the roots, is no file, is too large, or cannot be read.
    """
    try:
        if url.startswith("file://"):
            return _read_local(_path(url), [_path(root) for root in roots if root.startswith("file://")], most)
        return _read_from_store(url, [root for root in roots if root.startswith("s3://")], most)
    except (FileNotFoundError, NotADirectoryError):
        raise Refused(NO_FILE) from None
    except PermissionError:
        raise Refused(UNREADABLE) from None
    except ModuleNotFoundError as error:
        raise Refused(f"needs {error.name}, which is not installed: pip install 'duepost[s3]'") from None
    except Refused:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the client of a store raises: the file cannot be sent
        raise Refused(f"its file cannot be read: {type(error).__name__}") from None


def _path(url: str) -> bytes:
    return unquote_to_bytes(url.removeprefix("file://"))


def _read_local(path: bytes, roots: Sequence[bytes], most: int) -> bytes:
    # What lies outside is not looked at, so that nobody learns whether it is there.
    if b".." in path.split(b"/") or not any(_parts_inside(path, root) for root in roots):
        raise Refused(OUTSIDE)
    real = os.path.realpath(path, strict=True)
    for root in roots:
        real_root = os.path.realpath(root)
        if parts := _parts_inside(real, real_root):
            with _opened(real_root, parts) as file:
                return _read_up_to(file, most)
    raise Refused(OUTSIDE)


def _parts_inside(path: bytes, root: bytes) -> list[bytes]:
    """The names on the way from a folder to what is in it; none where it is not in it."""
    within = root.rstrip(b"/") + b"/"
    return [part for part in path[len(within) :].split(b"/") if part] if path.startswith(within) else []


@contextmanager
def _opened(root: bytes, parts: Sequence[bytes]) -> Iterator[BinaryIO]:
    """Opens a regular file from its folder on, name by name, and follows nothing that was put there meanwhile."""
    folders = [os.open(root, _DIRECTORY)]
    try:
        for part in parts[:-1]:
            folders.append(os.open(part, _DIRECTORY, dir_fd=folders[-1]))
        # Before it is opened, too: to open a device may do something.
        if not stat.S_ISREG(os.stat(parts[-1], dir_fd=folders[-1], follow_symlinks=False).st_mode):
            raise Refused(IRREGULAR)
        with os.fdopen(os.open(parts[-1], _FILE, dir_fd=folders[-1]), "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Refused(IRREGULAR)
            yield file
    finally:
        for folder in folders:
            os.close(folder)


def _read_up_to(file: BinaryIO, most: int) -> bytes:
    content = bytearray()
    while piece := file.read(min(PIECE, most + 1 - len(content))):
        content += piece
        if len(content) > most:
            raise Refused(TOO_LARGE)
    return bytes(content)


def _read_from_store(url: str, roots: Sequence[str], most: int) -> bytes:
    parts = unquote(url.removeprefix("s3://"), errors="strict").split("/")
    if not any(_is_below(parts, unquote(root.removeprefix("s3://")).strip("/").split("/")) for root in roots):
        raise Refused(OUTSIDE)
    import fsspec  # noqa: PLC0415 - an extra

    store = fsspec.filesystem("s3", use_listings_cache=False)
    path = "/".join(parts)
    found = store.info(path)
    if found["type"] != "file":
        raise Refused(IRREGULAR)
    # By one request for a range: what is too large, or grows meanwhile, is not read on.
    content: bytes = store.cat_file(path, start=0, end=most + 1) if 0 < found["size"] <= most else b""
    if max(found["size"], len(content)) > most:
        raise Refused(TOO_LARGE)
    return content


def _is_below(parts: Sequence[str], root: Sequence[str]) -> bool:
    is_plain = all(part not in ("", ".", "..") for part in parts)
    return is_plain and len(parts) > len(root) and list(parts[: len(root)]) == list(root)


def answer(request: Request) -> tuple[dict[str, object], list[bytes]]:
    """Reads what is asked for, all or nothing."""
    contents: list[bytes] = []
    files: list[dict[str, object]] = []
    left = request["most"]
    for place, url in enumerate(request["urls"]):
        try:
            content = read(url, request["roots"], left)
        except Refused as refused:
            return {"place": place, "error": str(refused)}, []
        left -= len(content)
        encoded = base64.encodebytes(content).replace(b"\n", b"\r\n")
        files.append(
            {"sha256": hashlib.sha256(content).hexdigest(), "length": len(encoded), "is_utf8": _is_utf8(content)}
        )
        contents.append(encoded)
    return {"files": files}, contents


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _end_with_caller() -> None:
    """Ends this process, whatever holds it up, once whoever started it is gone and the pipe of requests hangs up."""
    poll = select.poll()
    poll.register(sys.stdin, 0)
    poll.poll()
    os._exit(1)


def main() -> None:
    """Reads and answers until nobody asks any more."""
    threading.Thread(target=_end_with_caller, daemon=True).start()
    with closing(sys.stdin.buffer) as requests, closing(sys.stdout.buffer) as answers:
        answers.write(READY)
        answers.flush()
        while select.select([requests], [], [], IDLE)[0]:
            length = requests.read(4)
            if len(length) < 4:
                return
            found, contents = answer(json.loads(requests.read(int.from_bytes(length, "big"))))
            head = json.dumps(found).encode("ascii")
            answers.write(len(head).to_bytes(4, "big") + head)
            for content in contents:
                answers.write(content)
            answers.flush()


if __name__ == "__main__":
    main()

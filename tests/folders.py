"""Where the tests keep what goes with them."""

import os
import tempfile
from pathlib import Path

#: In memory: a test's database is a few hundred files, which take a disk twenty times as long.
MEMORY = Path("/dev/shm")

#: Bytes that have to be free there: what all servers of a run have together is less.
ENOUGH = 6 << 30


def short_folder(prefix: str) -> Path:
    """A new folder, in memory if there is enough. Its path is short: a Unix socket's is at most 107 bytes long."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir=MEMORY if _is_memory_enough() else "/tmp"))


def _is_memory_enough() -> bool:
    if not os.access(MEMORY, os.W_OK | os.X_OK):
        return False
    found = os.statvfs(MEMORY)
    return found.f_bavail * found.f_frsize >= ENOUGH

"""Files that are for this user alone: what Duepost keeps on a machine holds addresses, bodies and passwords.

The modes are set, not left to the umask, also where a folder was there before.
"""

import os
import stat
from pathlib import Path

#: A folder that its owner alone can enter.
FOLDER_MODE = 0o700
#: A file that its owner alone can read.
FILE_MODE = 0o600


def make_private(folder: Path) -> None:
    """Makes a folder, or closes one that is there, with the files in it; folders in it are left to their own call.

    Raises:
        OSError: it cannot be made, or belongs to somebody else.
    """
    folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    _restrict(folder, FOLDER_MODE)
    for entry in os.scandir(folder):
        if entry.is_file(follow_symlinks=False):
            _restrict(Path(entry.path), FILE_MODE)


def private_opener(path: str, flags: int) -> int:
    """For `open(opener=…)`: a file that is made is for this user alone."""
    return os.open(path, flags, FILE_MODE)


def write_private(path: Path, content: bytes) -> None:
    """Writes a file that is whole as soon as it is seen, for this user alone; not synced.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f".{path.name}")
    with open(draft, "wb", opener=private_opener) as file:
        file.write(content)
    draft.rename(path)


def _restrict(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        path.chmod(mode)

"""Secrets of endpoints: as they are stored, or where they are to be read. Reads files: runs in the pool."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from actors.content.formats.format import blame_endpoint

#: Bytes of a file with a secret.
LARGEST_FILE: Final = 4_096

ENVIRONMENT, FILE = "env:", "file:"


def resolve_secret(endpoint: str, secret: str, environment: Mapping[str, str]) -> str:
    """Returns a secret: what `env:NAME` or `file:PATH` lead to, without the line's end; any other as it is.

    Args:
        endpoint: the name of whose it is.
        secret: as `set_endpoint` took it.
        environment: this process's.

    Raises:
        Unsendable: it cannot be read; the text has the endpoint's name and why, and nothing of the secret: what
            stands behind `env:` or `file:` may be one by mistake.
    """
    if secret.startswith(ENVIRONMENT):
        found = environment.get(secret.removeprefix(ENVIRONMENT), "")
        what = "the environment variable with its secret is not set in this worker"
    elif secret.startswith(FILE):
        found, what = _read(Path(secret.removeprefix(FILE)))
    else:
        return secret
    found = found.rstrip("\r\n")
    if not found:
        blame_endpoint(endpoint, what)
    return found


def _read(path: Path) -> tuple[str, str]:
    """What stands in a file, or why nothing does; no pipe is waited for."""
    if not path.is_absolute():
        return "", "the file with its secret is not named by an absolute path"
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_FILE:
            return "", f"the file with its secret is none, or has more than {LARGEST_FILE} bytes"
        return path.read_text(encoding="utf-8"), "the file with its secret is empty"
    except (OSError, ValueError) as error:
        # A decoding error would quote the file.
        return "", f"the file with its secret cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}"

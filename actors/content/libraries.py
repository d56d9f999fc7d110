"""Libraries that an extra brings: a missing one is told with the command that installs it, before it is needed."""

from collections.abc import Sequence
from importlib.util import find_spec

from models.errors import DuepostError


class MissingLibrary(DuepostError):
    """A package is not installed; the message says how to get it."""


def check_installed(names: Sequence[str], *, needed_for: str, extra: str) -> None:
    """Makes sure that libraries are installed; loads nothing of them.

    Args:
        names: what is imported.
        needed_for: the setting, and what of it needs them.
        extra: which extra of Duepost's brings them.

    Raises:
        MissingLibrary: one is not.
    """
    for name in names:
        if find_spec(name) is None:
            raise MissingLibrary(f"{needed_for} needs {name}, which is not installed: pip install 'duepost[{extra}]'")

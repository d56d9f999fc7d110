"""What is installed beside the client only if it is asked for: `pip install 'duepost[worker]'`."""

from collections.abc import Iterator
from contextlib import contextmanager

#: The first names of our own modules: that one of them is missing is a bug, and no extra would bring it.
_OURS = frozenset({"actors", "models", "duepost"})


class MissingExtra(ImportError):
    """A package that is not installed is needed; the message says, in one line, which extra brings it."""


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Imports made inside belong to an extra.

    Args:
        extra: its name.
        what: what needs it, as the error says.

    Raises:
        MissingExtra: one of the packages is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in _OURS:
            raise
        raise MissingExtra(
            f"{what} needs {package}, which is not installed: pip install 'duepost[{extra}]'", name=error.name
        ) from error

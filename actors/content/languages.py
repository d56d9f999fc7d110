"""Languages of templates: by which names a recipient's is looked for, and catalogues. Any thread may use it."""

import copy
import gettext
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

#: Below the folder of the templates: `locale/de/LC_MESSAGES/messages.mo`.
CATALOGUES: Final = "locale"
CATALOGUE: Final = Path("LC_MESSAGES", "messages.mo")

#: Seconds for which a recipient's catalogues are not looked for again.
REMEMBERED: Final = 1.0

_TAG = re.compile(r"[A-Za-z]{2,8}(?:[-_][A-Za-z0-9]{1,8})*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[-_](?:[A-Za-z]{2}|[A-Za-z]{4}|[0-9]{3}))*")


class BadCatalogue(Exception):
    """A catalogue cannot be read; the message names its file."""


@lru_cache(maxsize=1_000)
def tags_of(locale: str | None) -> tuple[str, ...]:
    """Returns the names that a locale's language has in files, the most exact first.

    Args:
        locale: `de_AT`, `de-AT`, `zh_Hant_TW.UTF-8` or the like; None where nobody has told one.

    Returns:
        such as `de-AT`, `de_AT`, `de-at`, `de_at`, `de`; none for what is no locale.
    """
    tag = re.split(r"[.@]", (locale or "").strip(), maxsplit=1)[0]
    if not _TAG.fullmatch(tag):
        return ()
    language, *others = re.split("[-_]", tag)
    usual = [language.lower(), *(each.title() if len(each) == 4 else each.upper() for each in others)]
    forms = ([*usual], [each.lower() for each in usual])
    found = [mark.join(form[:length]) for length in range(len(usual), 0, -1) for form in forms for mark in ("-", "_")]
    return tuple(dict.fromkeys(found))


def is_language(tag: str) -> bool:
    """Whether a part of a file's name says a language: `de`, `de-AT`, `zh-Hant`, `es_419`."""
    return _LANGUAGE.fullmatch(tag) is not None


class Catalogues:
    """What gettext has in a folder. A file that changes is read again.

    Args:
        folder: that of the templates.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / CATALOGUES
        #: By file: what it was when it was read. Single operations need no lock.
        self._read: dict[Path, tuple[tuple[int, int], gettext.GNUTranslations]] = {}
        #: By locale: until when it holds, by the monotonic clock.
        self._found: dict[str | None, tuple[float, gettext.NullTranslations]] = {}

    def of(self, locale: str | None) -> gettext.NullTranslations:
        """Returns the translations into a locale's language: what de-AT has not is de's, and else the text itself.

        Raises:
            BadCatalogue: one cannot be read.
        """
        until, found = self._found.get(locale, (0.0, gettext.NullTranslations()))
        now = time.monotonic()
        if until < now:
            if len(self._found) >= 1_000:
                # Somebody's locales are made up.
                self._found.clear()
            found = self._chained(locale)
            self._found[locale] = (now + REMEMBERED, found)
        return found

    def language_of(self, locale: str | None) -> str | None:
        """Returns the most exact language of a locale's that there is a catalogue of.

        Raises:
            BadCatalogue: one cannot be read.
        """
        return next((tag for tag in tags_of(locale) if self._catalogue(tag) is not None), None)

    def languages(self) -> list[str]:
        """Returns the names of those that there are."""
        return sorted(each.parent.parent.name for each in self._folder.glob(f"*/{CATALOGUE}"))

    def flaws(self) -> Iterator[str]:
        """What cannot be read, a line for each file."""
        for language in self.languages():
            try:
                self._catalogue(language)
            except BadCatalogue as error:
                yield str(error)

    def _chained(self, locale: str | None) -> gettext.NullTranslations:
        first: gettext.NullTranslations | None = None
        for tag in tags_of(locale):
            catalogue = self._catalogue(tag)
            if catalogue is not None and first is None:
                first = copy.copy(catalogue)
            elif catalogue is not None and first is not None:
                first.add_fallback(copy.copy(catalogue))
        return first or gettext.NullTranslations()

    def _catalogue(self, tag: str) -> gettext.GNUTranslations | None:
        path = self._folder / tag / CATALOGUE
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            known = self._read.get(path)
            if known is None or known[0] != stamp:
                with path.open("rb") as file:
                    known = self._read[path] = (stamp, gettext.GNUTranslations(file))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except Exception as error:  # noqa: BLE001 - whatever stands in the file, this says which it is
            name = Path(CATALOGUES, tag, CATALOGUE).as_posix()
            raise BadCatalogue(f"{name} cannot be read: {type(error).__name__}") from None
        return known[1]

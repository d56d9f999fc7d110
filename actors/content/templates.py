"""Templates: an email's subject and bodies, rendered in a sandbox from files in one folder."""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from gettext import NullTranslations
from pathlib import Path
from types import TracebackType

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template, pass_context, select_autoescape
from jinja2.exceptions import TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from actors.content.addresses import AROUND
from actors.content.filters import FILTERS, BadValue
from actors.content.html import BadHtml, HtmlPreparer, HtmlTookTooLong, with_language, with_preview
from actors.content.languages import BadCatalogue, Catalogues, is_language, tags_of
from actors.liveness.time_limit import TimeLimit, TookTooLong
from models.errors import DuepostError

#: Characters of a rendered subject, and of a rendered body.
LONGEST_SUBJECT = 2_000
LONGEST_BODY = 10 * 2**20

#: Seconds that an email's rendering may take.
TIMEOUT = 10.0

SUBJECT = ".subject.txt"
PREVIEW = ".preview.txt"
TEXT = ".txt"
HTML = ".html"

#: Seconds after a change of a folder for which it is read each time.
FRESH = 2.0

#: UTF-8, with or without the mark that some editors begin a file with.
ENCODING = "utf-8-sig"

#: Whether a text of a catalogue was asked for, of what this thread renders.
_is_translated: ContextVar[bool] = ContextVar("is_translated", default=False)

_NAME = re.compile(r"[A-Za-z0-9_.-]+(?:/[A-Za-z0-9_.-]+)*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]+")
_UNDEFINED = re.compile(r"'(\w+)' is undefined|has no attribute '(\w+)'")


@dataclass(frozen=True, slots=True)
class Content:
    """What an email says.

    Attributes:
        subject: one line.
        text: the plain text, None where there is none.
        html: the HTML, None where there is none.
        is_prepared: whether another process was waited for, which put styles on elements or made the text.
    """

    subject: str
    text: str | None
    html: str | None
    is_prepared: bool = field(default=False, compare=False)


class RenderError(DuepostError):
    """A template is missing or fails. Nothing of the context is in it, so it may be logged and reported.

    Attributes:
        template: the template's file, relative to the folder; "-" where the name itself is wrong.
        reason: the exception's type, and what is wrong where that can be told without showing a value.
        line: where in the file, from 1; None where that is not known.
    """

    def __init__(self, template: str, reason: str, line: int | None) -> None:
        super().__init__(template, reason, line)
        self.template = template
        self.reason = reason
        self.line = line

    def __str__(self) -> str:
        where = self.template if self.line is None else f"{self.template} line {self.line}"
        return f"{where}: {self.reason}"


class RenderTimeout(RenderError):
    """A template has taken longer than it was given."""


class Templates:
    """The templates of a folder. A file that changes is read again.

    A template named `welcome` is `welcome.subject.txt` with `welcome.txt`, `welcome.html` or both; for a recipient
    whose locale is de-AT it is `welcome.de-AT`, else `welcome.de`, where there is one. Values are escaped in `.html`
    files only. What `welcome.preview.txt` says is put into the HTML: mail clients show it behind the subject.
    Safe to share between threads.

    Args:
        folder: where the files are; need not exist yet.
        time_limit: ends what takes too long.
        timeout: seconds that one email may take.
        trim_blocks: whether a line that holds nothing but a `{% … %}` leaves no empty line.
        preparer: prepares HTML for mail clients; None where it is to be as the templates have it.
    """

    def __init__(
        self,
        folder: Path,
        time_limit: TimeLimit,
        timeout: float = TIMEOUT,
        *,
        trim_blocks: bool = False,
        preparer: HtmlPreparer | None = None,
    ) -> None:
        self._folder = folder
        self._preparer = preparer
        self._time_limit = time_limit
        self._timeout = timeout
        self._environment = ImmutableSandboxedEnvironment(
            loader=FolderLoader(folder),
            undefined=StrictUndefined,
            autoescape=select_autoescape(enabled_extensions=("html",), default=False),
            auto_reload=True,
            keep_trailing_newline=True,
            trim_blocks=trim_blocks,
            lstrip_blocks=trim_blocks,
        )
        self._environment.filters.update(FILTERS)
        self._catalogues = Catalogues(folder)
        #: What is in a folder, and when that was looked at. Single operations need no lock.
        self._listings: dict[str, tuple[tuple[int, int, int], frozenset[str]]] = {}
        self._environment.add_extension("jinja2.ext.i18n")
        self._environment.install_gettext_callables(  # type: ignore[attr-defined]  # the extension's
            self._gettext, self._ngettext, newstyle=True, pgettext=self._pgettext, npgettext=self._npgettext
        )

    @property
    def timeout(self) -> float:
        """Seconds that one email may take."""
        return self._timeout

    def render(self, name: str, context: Mapping[str, object], seconds: float | None = None) -> Content:
        """Renders the subject and the bodies of one email.

        Args:
            name: the template's name without its ending, such as `welcome` or `account/welcome`.
            context: what the templates may use, the recipient included.
            seconds: less than one email may take, if that is all the caller has.

        Raises:
            RenderTimeout: it takes longer than that.
            RenderError: a file is missing, fails, takes too long, gives too much or nothing, or the name could lead out
                of the folder.
        """
        if not _NAME.fullmatch(name) or ".." in name.split("/"):
            raise RenderError("-", "a template's name must be one such as welcome or account/welcome", None)
        language = self._language_of(name, locale_of_recipient(context))
        if language is not None:
            name = f"{name}.{language}"
        until = time.monotonic() + (self._timeout if seconds is None else seconds)
        subject = self._render(name + SUBJECT, context, until, LONGEST_SUBJECT)
        if subject is None:
            raise RenderError(name + SUBJECT, "TemplateNotFound: there is no such file", None)
        text = self._render(name + TEXT, context, until, LONGEST_BODY)
        _is_translated.set(False)
        html = self._render(name + HTML, context, until, LONGEST_BODY)
        if text is None and html is None:
            raise RenderError(name + TEXT, f"TemplateNotFound: neither it nor {name + HTML} is there", None)
        subject = _one_line(subject)
        if is_blank(subject):
            raise RenderError(name + SUBJECT, "it gives nothing: an email needs a subject", None)
        text, html = (None if is_blank(body) else body for body in (text, html))
        if text is None and html is None:
            raise RenderError(name + TEXT, "it gives nothing, and so does any HTML: an email needs a body", None)
        content = Content(subject, text, html)
        return content if html is None else self._for_mail(name, content, language, context, until)

    def _for_mail(
        self, name: str, content: Content, language: str | None, context: Mapping[str, object], until: float
    ) -> Content:
        """The content with its HTML as mail clients need it, and with its text where it has none.

        Raises:
            RenderTimeout: that takes longer than there is time.
            RenderError: the HTML cannot be prepared, or the preview text fails.
        """
        if language is None and self._preparer is not None and _is_translated.get():
            language = self._catalogues.language_of(locale_of_recipient(context))
        # Looked for in a list that is in memory, unlike other files: few emails have one.
        folder, _, base = name.rpartition("/")
        files = self._files(folder)
        # A template may be called so itself, and this be its text.
        has_preview = f"{base}{PREVIEW}" in files and f"{base}{PREVIEW.removesuffix(TEXT)}{SUBJECT}" not in files
        preview = self._render(name + PREVIEW, context, until, LONGEST_SUBJECT) if has_preview else None
        if self._preparer is not None:
            content = self._prepared(name, content, self._preparer, until)
        html = content.html or ""
        if self._preparer is not None and language is not None:
            html = with_language(html, language)
        if not is_blank(preview):
            html = with_preview(html, _one_line(preview or ""))
        return replace(content, html=html)

    def _prepared(self, name: str, content: Content, preparer: HtmlPreparer, until: float) -> Content:
        try:
            prepared = preparer.prepare(content.html or "", until, with_text=content.text is None)
        except HtmlTookTooLong:
            reason = f"{HtmlTookTooLong.__name__}: an email may take at most {self._timeout:g} s"
            raise RenderTimeout(name + HTML, reason, None) from None
        except BadHtml as error:
            raise RenderError(name + HTML, f"the HTML cannot be prepared: {error}", None) from None
        if prepared is None:
            return content
        text = prepared.text if content.text is None else content.text
        return Content(content.subject, text, prepared.html, is_prepared=True)

    def names(self) -> list[str]:
        """The templates that have a subject, by name; none for a folder that does not exist."""
        return [file.removesuffix(SUBJECT) for file in self._names() if file.endswith(SUBJECT)]

    def languages(self, name: str) -> list[str]:
        """The languages that a template is in besides the one that is everybody's, and those of catalogues."""
        folder, _, base = name.rpartition("/")
        found = {
            tag
            for file in self._files(folder)
            if file.startswith(f"{base}.") and file.endswith(SUBJECT)
            and is_language(tag := file.removeprefix(f"{base}.").removesuffix(SUBJECT))
        }  # fmt: skip
        return sorted({*found, *self._catalogues.languages()})

    def check(self) -> list[str]:
        """Compiles each `.txt` and `.html` file of the folder, and reads each catalogue.

        Returns:
            a line for each problem, by file name; none for a folder that does not exist.
        """
        flaws = [str(error) for name in self._names() if (error := self._flaw(name))]
        return flaws + list(self._catalogues.flaws())

    def _language_of(self, name: str, locale: str | None) -> str | None:
        """The language of a template that is nearest to a locale; None where it is the one that is everybody's."""
        tags = tags_of(locale)
        if not tags:
            return None
        folder, _, base = name.rpartition("/")
        files = self._files(folder)
        for tag in tags:
            if any(f"{base}.{tag}{ending}" in files for ending in (SUBJECT, TEXT, HTML)):
                return tag
        return None

    def _files(self, folder: str) -> frozenset[str]:
        """What is in a folder of the folder; read again once that has changed."""
        path = self._folder / folder
        try:
            status = path.stat()
            stamp = (status.st_dev, status.st_ino, status.st_mtime_ns)
            known = self._listings.get(folder)
            # In the moment of a change a second one has the same time.
            is_fresh = abs(time.time_ns() - status.st_mtime_ns) < FRESH * 1e9
            if known is None or known[0] != stamp or is_fresh:
                known = self._listings[folder] = (stamp, frozenset(each.name for each in path.iterdir()))
        except OSError:
            return frozenset()
        return known[1]

    @pass_context
    def _gettext(self, context: Context, message: str) -> str:
        return self._translations(context).gettext(message)

    @pass_context
    def _ngettext(self, context: Context, singular: str, plural: str, number: int) -> str:
        return self._translations(context).ngettext(singular, plural, number)

    @pass_context
    def _pgettext(self, context: Context, about: str, message: str) -> str:
        return self._translations(context).pgettext(about, message)

    @pass_context
    def _npgettext(self, context: Context, about: str, singular: str, plural: str, number: int) -> str:
        return self._translations(context).npgettext(about, singular, plural, number)

    def _translations(self, context: Context) -> NullTranslations:
        _is_translated.set(True)
        return self._catalogues.of(locale_of_recipient(context))

    def _names(self) -> list[str]:
        return self._environment.list_templates(filter_func=lambda name: name.endswith((TEXT, HTML)))

    def _flaw(self, file: str) -> RenderError | None:
        try:
            self._environment.get_template(file)
        except Exception as error:  # noqa: BLE001 - one file's failure must not hide another's
            return self._explained(file, error)
        return None

    def _render(self, file: str, context: Mapping[str, object], until: float, longest: int) -> str | None:
        """Renders one file; None where there is none."""
        try:
            template = self._find(file)
            if template is None:
                return None
            with self._time_limit.limited(until - time.monotonic()):
                return _joined(template.generate(context), longest)
        except Exception as error:  # noqa: BLE001 - a template can raise anything
            failure = self._explained(file, error)
        # Outside the handler: not even as a hidden context may the original, with its values, go along.
        raise failure

    def _find(self, file: str) -> Template | None:
        try:
            return self._environment.get_template(file)
        except TemplateNotFound:
            return None

    def _explained(self, file: str, error: Exception) -> RenderError:
        """Says where and why, with nothing that a value of the context could have got into."""
        line = None
        if isinstance(error, TemplateSyntaxError):
            file, line = error.name or file, error.lineno
        else:
            for place in self._places(error.__traceback__):
                file, line = place
        failure = RenderTimeout if isinstance(error, TookTooLong) else RenderError
        return failure(file, ": ".join([type(error).__name__, *self._details(file, error)]), line)

    def _places(self, traceback: TracebackType | None) -> Iterator[tuple[str, int]]:
        """The template files and lines that an exception came through, the outermost first."""
        while traceback is not None:
            path = Path(traceback.tb_frame.f_code.co_filename)
            if path.is_relative_to(self._folder):
                yield path.relative_to(self._folder).as_posix(), traceback.tb_lineno
            traceback = traceback.tb_next

    def _details(self, file: str, error: Exception) -> Iterator[str]:
        """What is wrong. A name may be computed (`{{ a[b] }}`): only one that stands in the file is shown."""
        if isinstance(error, TemplateSyntaxError):
            yield error.message or "the syntax is wrong"
        elif isinstance(error, TemplateNotFound):
            name = error.name or ""
            literal = {f'"{name}"', f"'{name}'"}
            shown = name if any(each in self._source(file) for each in literal) else "a file"
            yield f"{shown} is not there"
        elif isinstance(error, UndefinedError):
            found = _UNDEFINED.search(error.message or "")
            name = (found[1] or found[2]) if found else ""
            shown = f"'{name}'" if name in re.findall(r"\w+", self._source(file)) else "a value"
            yield f"{shown} is undefined"
        elif isinstance(error, BadValue | BadCatalogue):
            yield str(error)
        elif isinstance(error, LeadsOut):
            yield "a link leads out of the folder of the templates"
        elif isinstance(error, TookTooLong):
            yield f"an email may take at most {self._timeout:g} s"
        elif isinstance(error, TooLong):
            yield f"at most {error.args[0]:,} characters are allowed"

    def _source(self, file: str) -> str:
        try:
            return (self._folder / file).read_text(encoding=ENCODING)
        except (OSError, ValueError):
            return ""


def locale_of_recipient(context: Mapping[str, object] | Context) -> str | None:
    """What a context says of its recipient's locale."""
    recipient = context.get("recipient")
    locale = recipient.get("locale") if isinstance(recipient, Mapping) else None
    return str(locale) if locale else None


class FolderLoader(FileSystemLoader):
    """Reads files of one folder. A link is followed where it stays in the folder, as those of Kubernetes do."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, encoding=ENCODING)
        self._folder = folder

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        """The source, its file, and whether that is unchanged."""
        source, file, is_unchanged = super().get_source(environment, template)
        if not Path(file).resolve().is_relative_to(self._folder.resolve()):
            raise LeadsOut
        return source, file, is_unchanged


class LeadsOut(Exception):
    """A link leads out of the folder of the templates."""


class TooLong(Exception):
    """More was rendered than an email may hold."""


def _joined(pieces: Iterator[str], longest: int) -> str:
    joined: list[str] = []
    length = 0
    for piece in pieces:
        length += len(piece)
        if length > longest:
            raise TooLong(longest)
        joined.append(piece)
    return "".join(joined)


def is_blank(text: str | None) -> bool:
    """Whether a body or a subject is none: nothing, or nothing but white space."""
    return not text or not text.strip(AROUND)


def _one_line(text: str) -> str:
    """The lines with a space between them, without control characters."""
    lines = (_CONTROL.sub(" ", line).strip() for line in text.splitlines())
    return " ".join(line for line in lines if line)

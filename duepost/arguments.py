"""The arguments of an email, and of a message, each declared once: its name, its types, what it means.

`duepost.schedule_email()`, `duepost.schedule_emails()`, the command `duepost schedule` and its JSON Lines reader take
names, conversions and help from here, as do those of messages. `models/functions/types/new_email.sql` and
`new_message.sql` have the same lists for SQL.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from inspect import Parameter, Signature, signature
from typing import (
    Annotated,
    ClassVar,
    Literal,
    ParamSpec,
    Required,
    TypedDict,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)
from uuid import UUID

P = ParamSpec("P")
R = TypeVar("R")

#: Levels of a context, at the most: its JSON is read by machines that end at about a thousand.
DEEPEST = 900

#: ISO 8601 without a zone. `duepost.is_local_time()` has the same.
LOCAL_TIME = re.compile(r"[0-9]{4}(?:-[0-9]{2}-[0-9]{2}|[0-9]{4})[Tt ][0-9]{2}:?[0-9]{2}(?::?[0-9]{2}(?:[.][0-9]+)?)?")

#: ISO 8601 with its zone: an offset, UTC, or a name such as Europe/Berlin. `duepost.has_zone()` has the same.
ISO_TIME = re.compile(
    r"[0-9]{4}(?:-[0-9]{2}-[0-9]{2}|[0-9]{4})[Tt ][0-9]{2}:?[0-9]{2}(?::?[0-9]{2}(?:[.][0-9]+)?)? ?"
    r"(?:[Zz]|UTC|GMT|[+-][0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2})?)?|[A-Za-z_]+(?:/[A-Za-z0-9_+-]+)+)"
)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument, and how its values are converted. This one is a text; the classes below are the others.

    Attributes:
        meaning: what it says of an email, in a sentence.
        sql_type: its type in SQL.
        json_type: the type of its value, as Python reads it from JSON.
        json_form: that type, as an error describes it.
    """

    meaning: str

    sql_type: ClassVar[str] = "text"
    json_type: ClassVar[type] = str
    json_form: ClassVar[str] = "a string"

    def parameter(self, name: str, value: object) -> object:  # noqa: ARG002  # the name is for the others' errors
        """Returns a value as a parameter of a statement.

        Args:
            name: what an error calls the argument.
            value: what the caller gave, not None.

        Raises:
            TypeError: the value has another type.
            ValueError: it is a time without a time zone.
        """
        return value

    def member(self, name: str, value: object) -> object:
        """Returns a value as a member of an object that becomes JSON as a whole; raises what `parameter()` raises."""
        return self.parameter(name, value)


@dataclass(frozen=True, slots=True)
class ListArgument(Argument):
    """A list of texts.

    Attributes:
        items: what the texts are, as an error calls them.
    """

    items: str

    sql_type: ClassVar[str] = "text[]"
    json_type: ClassVar[type] = list
    json_form: ClassVar[str] = "a list of strings"

    def parameter(self, name: str, value: object) -> list[object]:
        """Returns the texts as a list."""
        # A text is a sequence of its letters, each of which may be somebody's id.
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise TypeError(f"{name}: must be a list of {self.items}, not {type(value).__name__}")
        return [_id_of(f"{name}[{place}]", each) for place, each in enumerate(value)]


@dataclass(frozen=True, slots=True)
class ClockArgument(Argument):
    """A datetime, or a text in ISO 8601: with a time zone, or without one."""

    def checked(self, name: str, value: object) -> datetime | str:
        """Returns the time as it is, once it is known to be one."""
        raise NotImplementedError

    def parameter(self, name: str, value: object) -> datetime | str:
        """Returns the time as it is."""
        return self.checked(name, value)

    def member(self, name: str, value: object) -> str:
        """Returns the time as a text."""
        time = self.checked(name, value)
        return time.isoformat() if isinstance(time, datetime) else time


@dataclass(frozen=True, slots=True)
class TimeArgument(ClockArgument):
    """A moment: a datetime with a time zone, or a text in ISO 8601 with one."""

    sql_type: ClassVar[str] = "timestamptz"
    json_form: ClassVar[str] = "a time such as 2026-01-31T09:00:00+01:00"

    def checked(self, name: str, value: object) -> datetime | str:
        """Returns the moment as it is, once it is known to be one."""
        return checked_moment(name, value)


@dataclass(frozen=True, slots=True)
class LocalTimeArgument(ClockArgument):
    """What a clock shows: a datetime without a time zone, or a text in ISO 8601 without one."""

    sql_type: ClassVar[str] = "timestamp"
    json_form: ClassVar[str] = "a local time such as 2026-01-31T09:00:00"

    def checked(self, name: str, value: object) -> datetime | str:
        """Returns the local time as it is, once it is known to be one."""
        return checked_local(name, value)


@dataclass(frozen=True, slots=True)
class JsonArgument(Argument):
    """A JSON object."""

    sql_type: ClassVar[str] = "jsonb"
    json_type: ClassVar[type] = dict
    json_form: ClassVar[str] = "an object"

    def parameter(self, name: str, value: object) -> str:
        """Returns the object as JSON in text."""
        return encoded(name, value)

    def member(self, name: str, value: object) -> object:  # noqa: ARG002  # the name is for the others' errors
        """Returns the object as it is."""
        return value


@dataclass(frozen=True, slots=True)
class HeadersArgument(JsonArgument):
    """Names of header fields and their texts."""


@dataclass(frozen=True, slots=True)
class AttachmentsArgument(JsonArgument):
    """What `duepost.attachment()` returned of each file."""

    json_type: ClassVar[type] = list
    json_form: ClassVar[str] = "a list of what duepost.attachment() returns"

    def parameter(self, name: str, value: object) -> str:
        """Returns the list as JSON in text."""
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
            raise TypeError(f"{name}: must be {self.json_form}, not {type(value).__name__}")
        return encoded(name, list(value))


@dataclass(frozen=True, slots=True)
class PayloadArgument(JsonArgument):
    """Any JSON."""

    json_type: ClassVar[type] = object
    json_form: ClassVar[str] = "JSON"


class Attachment(TypedDict, total=False):
    """A file that is stored, as `duepost.attachment()` returns it: an element of an email's `attachments`."""

    filename: Required[str]
    content_type: Required[str]
    cid: str
    size: Required[int]
    sha256: Required[str]


class AttachmentAt(TypedDict, total=False):
    """A file that is read when it is sent, as `duepost.attachment_at()` returns it: an element of `attachments`."""

    filename: Required[str]
    content_type: Required[str]
    cid: str
    url: Required[str]


class NewEmail(TypedDict, total=False):
    """An email that is to be scheduled. All but `kind` may be left out; None is the same as that."""

    kind: Required[Annotated[str, Argument("What sort of email it is, such as welcome.")]]
    address: Annotated[str | None, Argument("To whom: give either this or users.")]
    users: Annotated[
        Sequence[str] | None,
        ListArgument("Ids of users, whose addresses are read when the email is sent.", items="user ids"),
    ]
    scheduled_at: Annotated[datetime | str | None, TimeArgument("When it is due; now if it is left out.")]
    template: Annotated[
        str | None, Argument("The template's name: give either this, with context, or subject and a body.")
    ]
    context: Annotated[
        Mapping[str, object] | None,
        JsonArgument(
            "What the template is rendered with: strings, numbers, booleans, null; lists and objects of them."
        ),
    ]
    subject: Annotated[str | None, Argument("The subject, in one line.")]
    body_text: Annotated[str | None, Argument("The plain-text body.")]
    body_html: Annotated[str | None, Argument("The HTML body.")]
    key: Annotated[str | None, Argument("Makes the call idempotent for good.")]
    expires_at: Annotated[datetime | str | None, TimeArgument("After this moment the email is not sent any more.")]
    sender: Annotated[str | None, Argument("Who sends it, instead of the default, DUEPOST_FROM.")]
    reply_to: Annotated[str | None, Argument("Where replies go.")]
    headers: Annotated[Mapping[str, str] | None, HeadersArgument("Further header fields.")]
    addresses: Annotated[
        Sequence[str] | None,
        ListArgument("To whom, where several see each other: addresses, with or without a name.", items="addresses"),
    ]
    cc: Annotated[Sequence[str] | None, ListArgument("Who gets the same email, named in Cc.", items="addresses")]
    bcc: Annotated[Sequence[str] | None, ListArgument("Who gets the same email, named nowhere.", items="addresses")]
    scheduled_local: Annotated[
        datetime | str | None,
        LocalTimeArgument("When it is due by the clock of its recipient, instead of scheduled_at: of timezone."),
    ]
    timezone: Annotated[
        str | None, Argument("The zone of scheduled_local, such as Europe/Berlin; that of the users if it is left out.")
    ]
    attachments: Annotated[
        Sequence[Attachment | AttachmentAt] | None, AttachmentsArgument("Files that go with it, in this order.")
    ]
    priority: Annotated[
        Literal["urgent", "normal", "bulk"] | None,
        Argument("What it goes ahead of; that of its kind if it is left out."),
    ]


class NewMessage(TypedDict, total=False):
    """A message that is to be scheduled. All but `kind`, `endpoint` and `payload` may be left out, or be None."""

    kind: Required[Annotated[str, Argument("What sort of message it is, such as news.")]]
    endpoint: Required[Annotated[str, Argument("The name of the endpoint that it goes to.")]]
    payload: Required[
        Annotated[
            Mapping[str, object] | Sequence[object] | str | float | bool,
            PayloadArgument("What it says: JSON, as the endpoint's format wants it."),
        ]
    ]
    scheduled_at: Annotated[datetime | str | None, TimeArgument("When it is due; now if it is left out.")]
    users: Annotated[
        Sequence[str] | None,
        ListArgument("Ids of users whom it concerns, by whom it can be cleared.", items="user ids"),
    ]
    key: Annotated[str | None, Argument("Makes the call idempotent for good.")]
    expires_at: Annotated[datetime | str | None, TimeArgument("After this moment the message is not sent any more.")]


def _declared(item: type) -> Mapping[str, tuple[object, Argument]]:
    """Returns the arguments of an item by name: their types, and what else is declared of them."""
    hints = get_type_hints(item, include_extras=True).items()
    return {name: get_args(get_args(hint)[0] if get_origin(hint) is Required else hint) for name, hint in hints}


#: The arguments by name, in the order of `duepost.schedule_email()` in SQL.
ARGUMENTS: Mapping[str, Argument] = {name: argument for name, (_, argument) in _declared(NewEmail).items()}

#: The same of a message, in the order of `duepost.schedule_message()`.
MESSAGE_ARGUMENTS: Mapping[str, Argument] = {name: argument for name, (_, argument) in _declared(NewMessage).items()}


def _id_of(name: str, value: object) -> str | None:
    """Returns an id as a text: a table's key is a number or a UUID, and drivers send those as what they are.

    Raises:
        TypeError: it is none of these.
    """
    # That there is none at all the database says.
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, UUID) or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)
    raise TypeError(f"{name}: must be a string, is a {type(value).__name__}")


def takes_email(function: Callable[P, R]) -> Callable[P, R]:
    """Names the arguments of an email in the signature and the docstring of a function that takes them as `**email`."""
    _name_arguments(function, _declared(NewEmail), NewEmail.__required_keys__, "        **email: see `NewEmail`.")
    return function


def takes_message(function: Callable[P, R]) -> Callable[P, R]:
    """Does the same for a function that takes those of a message as `**message`."""
    _name_arguments(
        function, _declared(NewMessage), NewMessage.__required_keys__, "        **message: see `NewMessage`."
    )
    return function


def _name_arguments(
    function: Callable[P, R], declared: Mapping[str, tuple[object, Argument]], required: frozenset[str], line: str
) -> None:
    own = [each for each in signature(function).parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    named = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=Parameter.empty if name in required else None, annotation=type_)
        for name, (type_, _) in declared.items()
    ]
    function.__signature__ = Signature([*own, *named], return_annotation=int)  # type: ignore[attr-defined]
    meanings = "\n".join(f"        {name}: {argument.meaning}" for name, (_, argument) in declared.items())
    function.__doc__ = (function.__doc__ or "").replace(line, meanings)


def checked_time(text: str) -> str:
    """Returns a text that is a moment in ISO 8601 with its zone, whatever the session's settings are.

    Raises:
        ValueError: it is none.
    """
    if not ISO_TIME.fullmatch(text):
        raise ValueError("must be a time with its zone, such as 2026-01-31T09:00:00+01:00")
    return text


def checked_moment(name: str, value: object) -> datetime | str:
    """Returns a value that is a moment with its time zone.

    Raises:
        ValueError: it has no time zone; the message begins with the name.
        TypeError: it is neither a datetime nor a text.
    """
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise ValueError(f"{name}: needs a time zone, such as datetime.now(timezone.utc)")
        return value
    if isinstance(value, str):
        try:
            return checked_time(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if isinstance(value, date):
        # As for every time without a zone.
        raise ValueError(f"{name}: needs a time zone and a time of day: a date is none")  # noqa: TRY004
    raise TypeError(f"{name}: must be a datetime with a time zone, is a {type(value).__name__}")


def checked_local_time(text: str) -> str:
    """Returns a text that is a local time in ISO 8601, without a zone.

    Raises:
        ValueError: it is none.
    """
    if not LOCAL_TIME.fullmatch(text):
        raise ValueError("must be a local time without a zone, such as 2026-01-31T09:00:00")
    return text


def checked_local(name: str, value: object) -> datetime | str:
    """Returns a value that is a local time.

    Raises:
        ValueError: it has a time zone, or is no time; the message begins with the name.
        TypeError: it is neither a datetime nor a text.
    """
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            raise ValueError(f"{name}: must have no time zone: give the zone as timezone, or scheduled_at")
        return value
    if isinstance(value, str):
        try:
            return checked_local_time(value)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    raise TypeError(f"{name}: must be a datetime without a time zone, is a {type(value).__name__}")


def encoded(name: str, value: object) -> str:
    """Returns a value as JSON.

    Raises:
        TypeError: something in it is not JSON serializable; it is named by argument and key.
        ValueError: a text in it has NUL or a lone surrogate, as PostgreSQL's jsonb holds none; it is named so too.
    """
    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        # The library does not say where.
        error = _json_error(name, value)
        raise TypeError(error) from None
    # As they are escaped; most texts have none such.
    if ("\\u0000" in text or "\\ud" in text) and not all(map(is_storable, texts(value))):
        raise ValueError(f"{_place_of_unstorable(name, value)}: must not contain NUL or a lone surrogate")
    return text


def is_storable(text: str) -> bool:
    """Whether PostgreSQL takes a text: it has neither NUL nor a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def texts(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys too, however deep."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, list | tuple):
            left += each
        elif isinstance(each, dict):
            left += [*each, *each.values()]


def _place_of_unstorable(name: str, value: object) -> str:
    """Where in a value such a text is, by argument and key; of a key, what holds it."""
    inners: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict) and all(is_storable(key) for key in value if isinstance(key, str)):
        inners = ((f"{name}: {key}", inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        inners = ((f"{name}[{index}]", inner) for index, inner in enumerate(value))
    for place, inner in inners:
        if not all(map(is_storable, texts(inner))):
            return _place_of_unstorable(place, inner)
    return name


def _json_error(name: str, value: object) -> str:
    """Returns what keeps a value from being JSON, by argument and key."""
    waiting: list[tuple[str, object, int]] = [(name, value, 0)]
    while waiting:
        place, each, depth = waiting.pop()
        if depth > DEEPEST:
            return f"{name}: not JSON serializable: it is nested too deeply, or holds itself"
        if isinstance(each, Mapping):
            for key in each:
                if not isinstance(key, str | int | float | None):
                    return f"{place}: not JSON serializable: a key must be a string, is a {type(key).__name__}"
            if not isinstance(each, dict):
                return f"{place}: not JSON serializable: must be a dict, is a {type(each).__name__}"
            waiting += [(f"{place}: {key}", inner, depth + 1) for key, inner in reversed(each.items())]
        elif isinstance(each, list | tuple):
            inners = [(f"{place}[{index}]", inner, depth + 1) for index, inner in enumerate(each)]
            waiting += reversed(inners)
        elif isinstance(each, float) and not math.isfinite(each):
            return f"{place}: not JSON serializable: must be a finite number"
        elif not isinstance(each, str | int | float | None):
            return f"{place}: not JSON serializable: {type(each).__name__}; give a string or a number"
    return f"{name}: not JSON serializable"

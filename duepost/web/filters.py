"""A filter of items as a URL has it."""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from duepost import operations
from duepost.operations import Filter, Outcome, Place, State
from duepost.web.access import Role
from duepost.web.answers import Refused
from duepost.web.desk import Asked

Word = TypeVar("Word", State, Outcome)

#: The fields of a filter that are texts.
TEXTS = ("key", "user", "address", "kind", "route", "reply")

#: The fields that are moments.
MOMENTS = ("since", "until")

#: Ids that one filter may name.
MOST_IDS = 10_000


def filter_of(asked: Asked, given: Mapping[str, str]) -> Filter:
    """The filter of a URL's arguments, or of a form's.

    Raises:
        Refused: one of them is wrong; or a viewer names an address: it would stand in the URL.
    """
    if asked.visitor.role < Role.SUPPORT and any("@" in value for value in given.values()):
        raise Refused(403, "A viewer looks for no address: it would stand in the URL.")
    texts = {name: given[name].strip() for name in TEXTS if given.get(name, "").strip()}
    return Filter(
        ids=_ids(given.get("id", "")),
        channel=_one_of(given, "channel", ("email", "message")),
        state=_word(State, given.get("state", "")),
        outcome=_word(Outcome, given.get("outcome", "")),
        failed=given.get("failed") == "1",
        since=_moment("since", given.get("since", "")),
        until=_moment("until", given.get("until", "")),
        key=texts.get("key"),
        user=texts.get("user"),
        address=texts.get("address"),
        kind=texts.get("kind"),
        route=texts.get("route"),
        reply=texts.get("reply"),
    )


def query_of(wanted: Filter) -> dict[str, str]:
    """The arguments of a URL for a filter."""
    query: dict[str, str] = {}
    for name, value in wanted.asked().items():
        if name == "ids":
            query["id"] = ",".join(map(str, wanted.ids))
        else:
            query[name] = "1" if value is True else str(value)
    return query


def words_of(wanted: Filter) -> str:
    """The filter in words."""
    return ", ".join(_described(wanted)) or "all that is not finished"


def _described(wanted: Filter) -> Iterator[str]:
    for name, value in wanted.asked().items():
        if name == "ids":
            yield f"{len(wanted.ids)} ticked" if len(wanted.ids) > 1 else f"item {wanted.ids[0]}"
        elif name == "failed":
            yield "failed"
        elif name in MOMENTS:
            yield f"{name} {value} UTC".replace("+00:00 UTC", " UTC")
        else:
            yield f"{name} {value}"


def place_of(text: str) -> Place | None:
    """Where a page begins.

    Raises:
        Refused: it is no place.
    """
    try:
        return operations.Place.parse(text) if text else None
    except (ValueError, OverflowError):
        raise Refused(400, "after: this is no place in the list.") from None


def number_of(text: str) -> int:
    """An id.

    Raises:
        Refused: it is none.
    """
    if text.isascii() and text.isdigit() and len(text) <= 19 and 0 < int(text) < 2**63:
        return int(text)
    raise Refused(404, "There is no such item: an id is a whole number.")


def _ids(text: str) -> tuple[int, ...]:
    ids = tuple(number_of(each) for each in text.replace(",", " ").split())
    if len(ids) > MOST_IDS:
        raise Refused(400, f"id: at most {MOST_IDS:,} at a time.")
    return ids


def _word(words: type[Word], text: str) -> Word | None:
    try:
        return words(text) if text else None
    except ValueError:
        raise Refused(400, f"{text} is none of {', '.join(words)}.") from None


def _one_of(given: Mapping[str, str], name: str, words: tuple[str, ...]) -> str | None:
    value = given.get(name) or None
    if value is not None and value not in words:
        raise Refused(400, f"{name}: must be one of {', '.join(words)}.")
    return value


def _moment(name: str, text: str) -> datetime | None:
    """A moment; one without a zone is UTC, as all times of the console are."""
    if not text.strip():
        return None
    try:
        moment = datetime.fromisoformat(text.strip().removesuffix(" UTC"))
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused(400, f"{name}: must be a time such as 2026-12-24T18:00, in UTC or with its zone.") from None

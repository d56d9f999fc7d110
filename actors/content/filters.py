"""Filters of templates for times, numbers and money, in the recipient's zone and locale."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, tzinfo
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_datetime, format_time
from babel.numbers import format_currency, format_decimal, format_percent
from jinja2 import pass_context
from jinja2.runtime import Context

#: Of who has told none.
LOCALE = "en"

_TAG = re.compile(r"[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*")


class BadValue(ValueError):
    """A filter was given what it cannot show; nothing of the value is in the error."""


def as_moment(value: object) -> datetime:
    """Returns a time of a context, which is a text in ISO 8601 with its zone, or seconds since 1970.

    Raises:
        BadValue: it is none.
    """
    try:
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return datetime.fromtimestamp(float(value), UTC)
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value).strip())
    except (ValueError, OverflowError, OSError):
        raise BadValue("must be a time such as 2026-01-31T09:00:00+01:00") from None
    if moment.tzinfo is None:
        raise BadValue("must be a time with its zone, such as 2026-01-31T09:00:00+01:00")
    return moment


def as_number(value: object) -> Decimal:
    """Returns a number of a context, or a text that is one.

    Raises:
        BadValue: it is none.
    """
    try:
        number = Decimal("NaN") if isinstance(value, bool) else Decimal(str(value).strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise BadValue("must be a number")
    return number


@lru_cache(maxsize=200)
def locale_of(name: str | None) -> Locale:
    """Returns a locale by its name, `de_DE` or `de-DE`; of one that is unknown its language, or English."""
    for wanted in (name or LOCALE, (name or LOCALE).replace("-", "_").partition("_")[0]):
        try:
            return Locale.parse(wanted.replace("-", "_"))
        except (ValueError, UnknownLocaleError):
            continue
    return Locale.parse(LOCALE)


@lru_cache(maxsize=1_000)
def zone_of(name: str) -> tzinfo | None:
    """Returns a zone by its name; None where there is none of that name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def _zone(context: Context, given: str | None) -> tzinfo:
    """Returns the zone that the template names, or else the recipient's; UTC where that is none.

    Raises:
        BadValue: the template names one that there is not.
    """
    found = zone_of(_of_recipient(context, "timezone", given) or "UTC")
    if found is None and given:
        raise BadValue("the zone must be one such as Europe/Berlin")
    return found or UTC


def _locale(context: Context, given: str | None) -> Locale:
    """Returns the locale that the template names, or else the recipient's."""
    return locale_of(_of_recipient(context, "locale", given))


def _of_recipient(context: Context, name: str, given: str | None) -> str | None:
    """What the template says, or else the recipient's own."""
    recipient = context.get("recipient")
    own = recipient.get(name) if isinstance(recipient, Mapping) else None
    return given or (str(own) if own else None)


@pass_context
def show_datetime(
    context: Context,
    value: object,
    format: str = "medium",
    *,
    zone: str | None = None,
    locale: str | None = None,
) -> str:
    """Returns day and time in the recipient's zone and language, with the zone's name."""
    where = _zone(context, zone)
    moment, language = as_moment(value).astimezone(where), _locale(context, locale)
    shown = format_datetime(moment, format, locale=language)
    # A person has to know which zone it is; a pattern of one's own says it or not.
    return f"{shown} {format_datetime(moment, 'z', locale=language)}" if format in {"short", "medium"} else shown


@pass_context
def show_date(
    context: Context,
    value: object,
    format: str = "long",
    *,
    zone: str | None = None,
    locale: str | None = None,
) -> str:
    """Returns the day of a time in the recipient's zone; a date alone is that day everywhere."""
    language = _locale(context, locale)
    try:
        return format_date(date.fromisoformat(str(value).strip()), format, locale=language)
    except ValueError:
        where = _zone(context, zone)
        return format_date(as_moment(value).astimezone(where).date(), format, locale=language)


@pass_context
def show_time(
    context: Context,
    value: object,
    format: str = "short",
    *,
    zone: str | None = None,
    locale: str | None = None,
) -> str:
    """Returns the time of day in the recipient's zone."""
    where = _zone(context, zone)
    language = _locale(context, locale)
    return format_time(as_moment(value).astimezone(where), format, locale=language)


@pass_context
def show_number(context: Context, value: object, format: str | None = None, *, locale: str | None = None) -> str:
    """Returns a number with the separators of the recipient's language, all of its digits."""
    language = _locale(context, locale)
    return format_decimal(as_number(value), format, locale=language, decimal_quantization=format is not None)


@pass_context
def show_percent(context: Context, value: object, format: str | None = None, *, locale: str | None = None) -> str:
    """Returns a share as a percentage: 0.25 is 25 %."""
    return format_percent(as_number(value), format, locale=_locale(context, locale))


@pass_context
def show_money(context: Context, value: object, currency: str, *, locale: str | None = None) -> str:
    """Returns an amount of a currency, such as EUR, as the recipient's language writes it."""
    language = _locale(context, locale)
    return format_currency(as_number(value), currency, locale=language)


def language_of(locale: object) -> str:
    """Returns a locale's name as HTML has it, `de-AT` of `de_AT.UTF-8` (BCP 47); English where that is none."""
    name = re.split(r"[.@]", str(locale or LOCALE).strip(), maxsplit=1)[0].replace("_", "-")
    return name if _TAG.fullmatch(name) else LOCALE


def direction_of(locale: object) -> str:
    """Returns `rtl` for a locale that is written from right to left, as Arabic and Hebrew are, else `ltr`."""
    return locale_of(language_of(locale)).text_direction


#: The filters by the names that templates call them.
FILTERS: Mapping[str, Callable[..., str]] = {
    "datetime": show_datetime,
    "date": show_date,
    "time": show_time,
    "number": show_number,
    "percent": show_percent,
    "money": show_money,
    "language": language_of,
    "direction": direction_of,
}

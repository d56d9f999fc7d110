"""A message as jsonb, and back. Knows nothing of email.

A message is stored as its JSON, so that people can read it. What jsonb would refuse, or would return as something
else, goes in encoded: the actor gets what was sent.
"""

import base64
import json
import re
from collections.abc import Iterator
from typing import Final

import dramatiq
from dramatiq.encoder import JSONEncoder
from dramatiq.errors import BrokerError, DecodeError
from dramatiq.message import get_encoder

Message = dramatiq.Message[object]

#: Numbers that jsonb refuses (NaN, infinities) or takes for something else: floats that it would return as integers
#: (1e+22) or without their sign (-0.0). Inside a text these mean nothing: then the message is encoded without need.
ODD_NUMBERS: Final = re.compile(r"NaN|Infinity|\de\+\d|-0\.0(?!\d)")

#: The escapes of JSON, one after the other; `odd` are those that jsonb refuses: NUL, and half a surrogate pair.
ESCAPES: Final = re.compile(r"\\ud[89ab]..\\ud[c-f]|(?P<odd>\\u0000|\\ud[89a-f])|\\.")

#: How an encoded message begins, as jsonb writes it: the shortest key comes first.
ENCODED: Final = '{"encoded": '

#: Those options that stay readable beside an encoded message: the table's statements look at them and change them.
READABLE_OPTIONS: Final = frozenset({"retries", "failure"})

#: The longest message, in bytes of JSON: jsonb holds 256 MB in one value.
LONGEST: Final = 250_000_000

#: The longest traceback that a retry carries, in characters: both of its ends are kept.
LONGEST_TRACEBACK: Final = 32_000

#: What no text in PostgreSQL can hold.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


class MessageRefused(BrokerError, ValueError):
    """A message that cannot be stored. The text begins with the part that is to blame, as in `kwargs['day']: …`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)  # type: ignore[no-untyped-call]


def encoded(message: Message) -> str:
    """A message as JSON that jsonb takes and returns as it is; ASCII only.

    Raises:
        MessageRefused: Dramatiq's encoder does not take it, or it is too long.
    """
    message = _with_plain_traceback(message)
    data = _by_dramatiq(message)
    content = data.decode() if type(get_encoder()) is JSONEncoder else None
    if content is None or _is_odd(content):
        content = _wrapped(message)
    if len(content) > LONGEST:
        raise MessageRefused(f"message: {len(content):,} bytes as JSON; at most {LONGEST:,} can be stored")
    return content


def decoded(content: str) -> Message:
    """A message from its JSON, as jsonb writes it.

    Raises:
        DecodeError: it is no message.
    """
    data, readable = content.encode(), {}
    try:
        if content.startswith(ENCODED) or type(get_encoder()) is not JSONEncoder:
            wrapper = json.loads(content)
            data, readable = base64.b64decode(wrapper["encoded"]), wrapper.get("options", {})
        message: Message = dramatiq.Message.decode(data)
        _check_shape(message)
        message.options.update(readable)
        # It is due, or it would not have been read: Dramatiq must not hold it back in memory.
        message.options.pop("eta", None)
        if not _are_classes(message.options.get("throws")):
            # JSON cannot hold classes; with anything else Dramatiq's thread would end.
            del message.options["throws"]
    except DecodeError:
        raise
    except Exception as error:
        raise DecodeError(type(error).__name__, data, error) from error
    return message


def as_its_row_says(message: Message, message_id: str, queue_name: str) -> Message:
    """A message with the id and the queue of its row, which are what counts: somebody may have moved it by hand."""
    if message.message_id == message_id and message.queue_name == queue_name:
        return message
    return message.copy(message_id=message_id, queue_name=queue_name)


def _check_shape(message: Message) -> None:
    """Checks the parts by which Dramatiq's threads go before anything is caught: with others a thread would end.

    Raises:
        TypeError: one is of another type.
    """
    for part, wanted in ((message.actor_name, str), (message.kwargs, dict), (message.options, dict)):
        if not isinstance(part, wanted):
            raise TypeError(f"not {wanted.__name__}")


def _are_classes(throws: object) -> bool:
    """Whether an actor's exceptions are what Dramatiq can look for: a class, several of them, or none."""
    return throws is None or all(
        isinstance(each, type) for each in (throws if isinstance(throws, tuple) else (throws,))
    )


def check_name(part: str, name: object) -> None:
    """Checks the name of a queue or an actor.

    Raises:
        MessageRefused: it is no text, or one that PostgreSQL cannot hold.
    """
    if not isinstance(name, str) or _UNSTORABLE.search(name):
        raise MessageRefused(f"{part}: {name!r} is no name that can be stored")


def _is_odd(content: str) -> bool:
    """Whether jsonb would refuse a message's JSON, or would not give it back as it is."""
    has_escapes = "\\u" in content and any(found["odd"] for found in ESCAPES.finditer(content))
    return has_escapes or ODD_NUMBERS.search(content) is not None


def _wrapped(message: Message) -> str:
    readable = {name: message.options[name] for name in READABLE_OPTIONS & message.options.keys()}
    rest = {name: value for name, value in message.options.items() if name not in readable}
    data = _by_dramatiq(dramatiq.Message(**{**message.asdict(), "options": rest}))
    wrapper = {"encoded": base64.b64encode(data).decode(), "options": readable, "actor_name": message.actor_name}
    try:
        return json.dumps(wrapper, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise MessageRefused(f"options: {sorted(readable)}: {error}") from error


def _by_dramatiq(message: Message) -> bytes:
    try:
        return message.encode()
    except Exception as error:
        raise MessageRefused(_why_not(message, error)) from error


def _why_not(message: Message, error: Exception) -> str:
    """Which part of a message the encoder does not take, and why."""
    for name, value in _parts(message):
        try:
            get_encoder().encode({"value": value})
        except Exception as error_of_part:  # noqa: BLE001 - an encoder may raise anything
            return f"{name}: {error_of_part}"
    return f"message: {error}"


def _parts(message: Message) -> Iterator[tuple[str, object]]:
    yield from ((f"args[{place}]", value) for place, value in enumerate(message.args))
    yield from ((f"kwargs[{name!r}]", value) for name, value in message.kwargs.items())
    yield from ((f"options[{name!r}]", value) for name, value in message.options.items())


def _with_plain_traceback(message: Message) -> Message:
    """The same with a traceback that is short and can be stored: it is for people, and may hold anything."""
    traceback = message.options.get("traceback")
    if not isinstance(traceback, str):
        return message
    plain = traceback
    if len(plain) > LONGEST_TRACEBACK:
        plain = f"{plain[: LONGEST_TRACEBACK // 2]}\n…\n{plain[-LONGEST_TRACEBACK // 2 :]}"
    plain = _UNSTORABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)
    return message if plain == traceback else message.copy(options={"traceback": plain})

"""What people may be shown of an answer: a server may repeat what it was sent, secrets among it."""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_plus

from actors.channels.http.request import Request
from actors.ruling import one_line

#: Bytes of a body that are looked at.
LOOKED_AT: Final = 1_000

#: Characters that are shown.
SHOWN: Final = 200

#: What stands for a word that the request had as well.
HIDDEN: Final = "***"

_TAG: Final = re.compile(r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<[^>]*>?", re.DOTALL | re.IGNORECASE)
#: Shorter ones tell nobody anything.
_WORD: Final = re.compile(r"[\w+/=-]{4,}")


def excerpt(said: bytes, request: Request) -> str:
    """Returns the beginning of what a server said, in a line, without words that the request had as well.

    Args:
        said: a body, or a reason.
        request: what it was said to.
    """
    if b"\0" in said[:LOOKED_AT]:
        return ""
    text = " ".join(_TAG.sub(" ", said[:LOOKED_AT].decode("utf-8", "replace")).split())[:SHOWN]
    if not text:
        return ""
    sent = " ".join(_sent(request)).lower()
    return one_line(_WORD.sub(lambda word: HIDDEN if word[0].lower() in sent else word[0], text))


def _sent(request: Request) -> Iterator[str]:
    """All that the request had, as it was sent and as a server may have read it."""
    for text in (request.target_path, request.body.decode("utf-8", "replace")):
        yield text
        yield unquote_plus(text)
    for _, value in request.headers:
        yield value
        try:
            yield base64.b64decode(value.removeprefix("Basic "), validate=True).decode("utf-8", "replace")
        except (binascii.Error, ValueError):
            continue

"""Takes our login out of what a relay says: some repeat a command that they do not understand."""

import re
from base64 import b64encode
from collections.abc import Callable
from typing import Final
from urllib.parse import quote

#: What stands for a secret.
HIDDEN: Final = "***"

#: Characters of a piece of base64 that are no coincidence: a relay may cut what it repeats.
TELLING: Final = 6

_AUTH = re.compile(r"\b(AUTH\s+[A-Z0-9_-]+)\s+\S+", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]{4,}={0,2}")


def hider(username: str | None, password: str | None) -> Callable[[str], str] | None:
    """What takes the login out of a text: plain, in base64, whole or cut. None where there is none."""
    if username is None or password is None:
        return None
    user, secret = username.encode("utf-8"), password.encode("utf-8")
    spoken = (user, secret, b"\0" + user + b"\0" + secret, user + b"\0" + user + b"\0" + secret)
    encoded = tuple(b64encode(each).decode("ascii").rstrip("=").lower() for each in spoken)
    written = "|".join(re.escape(each) for each in {password, quote(password, safe="")})
    plain = re.compile(rf"(?<!\w)(?:{written})(?!\w)" if len(password) < TELLING else written, re.IGNORECASE)

    def without(found: re.Match[str]) -> str:
        return HIDDEN if _is_piece(found[0].rstrip("=").lower(), encoded) else found[0]

    def hide(text: str) -> str:
        return plain.sub(HIDDEN, _BASE64.sub(without, _AUTH.sub(rf"\1 {HIDDEN}", text)))

    return hide


def _is_piece(token: str, encoded: tuple[str, ...]) -> bool:
    return any(
        token == each or (len(token) >= TELLING and token in each) or (len(each) >= TELLING and each in token)
        for each in encoded
    )

"""Answers as a session would give them."""

from actors.channels.http.request import Answer

NOW = 1_795_000_000.0


def answer(
    status: int, body: bytes | str = b"", *headers: tuple[str, str], is_whole: bool = True, reason: str = ""
) -> Answer:
    raw = body.encode() if isinstance(body, str) else body
    return Answer(status, reason, headers, raw, is_whole, raw[:100].decode(errors="replace"), NOW)

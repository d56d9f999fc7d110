"""What the words of a reply speak of: servers use one code for many things, and only the words tell them apart.

Whole phrases count (`phrases.txt`), never words inside other words, and nothing that is a name: addresses, URLs, hosts
and the recipient are taken out first. The replies that they were made for are in `tests/corpus/replies.txt`.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from actors.channels.smtp.replies import Reply
from actors.ruling import Topic

#: Topics that are about us, never about a recipient; the plainest first.
ABOUT_US: Final = (
    Topic.SENDER,
    Topic.HELO,
    Topic.REPUTATION,
    Topic.HEADER,
    Topic.QUOTA,
    Topic.SOME_QUOTA,
    Topic.RATE,
    Topic.LOGIN,
    Topic.ACCESS,
)

#: Characters of a reply that are looked at.
LOOKED_AT: Final = 4_000

_PHRASES: Final = Path(__file__).with_name("phrases.txt")


@cache
def _patterns() -> dict[Topic, re.Pattern[str]]:
    """The phrases of each topic, as one pattern. Made when the first is asked for: that takes a while."""
    return _read(_PHRASES.read_text(encoding="utf-8"))


def _read(text: str) -> dict[Topic, re.Pattern[str]]:
    """The phrases of a file."""
    groups: dict[str, str] = {}
    phrases: dict[Topic, list[str]] = {}
    topic = None
    for line in text.splitlines():
        if not line or (topic is None and line.startswith("#")):
            continue
        if section := re.fullmatch(r"\[(.+)\]", line):
            topic = Topic(section[1])
        elif topic is None:
            name, _, written = line.partition(" = ")
            groups[name] = _grouped(written, groups)
        else:
            phrases.setdefault(topic, []).append(_grouped(line, groups))
    return {topic: _compiled(each) for topic, each in phrases.items()}


def _grouped(written: str, groups: Mapping[str, str]) -> str:
    """A line as a regular expression."""
    plain = re.sub(r"(?<!\\)\((?!\?)", "(?:", written)
    return re.sub(r"\{([a-z]+)\}", lambda name: groups[name[1]], plain)


def _compiled(phrases: Sequence[str]) -> re.Pattern[str]:
    written = "|".join(f"(?:{phrase})" for phrase in phrases).replace("…", "[^.;]{0,60}?")
    return re.compile(rf"(?<![\w@#])(?:{written})(?!\w)", re.IGNORECASE)


_URL = re.compile(r"(?:\b[a-z][a-z0-9+.-]*://|\bwww\.|\bmailto:)\S*", re.IGNORECASE)
_ADDRESS = re.compile(r"""<[^<>]*@[^<>]*>|"[^"\s][^"]*"@[^\s<>,;:)\]'"]+|[^\s<>()\[\],;:"'=]+@[^\s<>,;:()'"]+""")
#: A host with a path is a URL without a scheme; a path by itself is the rest of one.
_PATH = re.compile(r"(?<!\S)[(\[<\"']?(?:(?:[\w-]+\.)+[\w-]+/\S*|/\w\S*)")
#: In small letters but for the first label: "exceeded.Please" is the end of a sentence.
_HOST_NAME = re.compile(r"(?<![\w.])(?!\d+\.)[\w-]+(?:\.[a-z0-9][a-z0-9_-]*)*\.[a-z]{2,}(?![\w.]*\w)")
_IP = re.compile(
    r"\[?(?:\b(?:\d{1,3}\.){3}\d{1,3}\b|(?:IPv6:)?\b[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}\b)\]?", re.IGNORECASE
)
_ENHANCED = re.compile(r"^\s*#?[245]\.\d{1,3}\.\d{1,3}\b:?|\(#[245]\.\d{1,3}\.\d{1,3}\)")
#: What Postfix writes behind the reply of another server: the command is not what it is about.
_IN_REPLY = re.compile(r"\(?in reply to (?:the )?[^)]*command\)?", re.IGNORECASE)
_BETWEEN = re.compile(r"(?<=\w)[-_](?=\w)")
_BLANKS = re.compile(r"\s+")

#: Hosts of block lists: their names stay.
_LISTS = re.compile(
    r"\b(?:[\w-]+\.)*(spamhaus\.org|spamcop\.net|sorbs\.net|barracudacentral\.org|uceprotect\.net|abuseat\.org)\b",
    re.IGNORECASE,
)


def topics(reply: Reply, recipients: Sequence[str] = ()) -> frozenset[Topic]:
    """Says what the words of a reply speak of.

    Args:
        reply: what the relay said.
        recipients: addresses whose names are no words of the relay's.
    """
    text = plain_words(reply, recipients)
    return frozenset(topic for topic, phrases in _patterns().items() if phrases.search(text))


def plain_words(reply: Reply, recipients: Sequence[str] = ()) -> str:
    """The text of a reply without enhanced codes, addresses ("@"), IP addresses ("#"), URLs, hosts and names."""
    text = " ".join(_ENHANCED.sub(" ", line) for line in reply.lines)[:LOOKED_AT].replace(
        "\N{RIGHT SINGLE QUOTATION MARK}", "'"
    )
    for address in recipients:
        text = _without(text, address)
    text = _URL.sub(" ", text)
    text = _ADDRESS.sub(" @ ", text)
    text = _PATH.sub(" ", text)
    text = _LISTS.sub(lambda found: f" {found[1].partition('.')[0]} ", text)
    text = _HOST_NAME.sub(" @ ", text)
    text = _IP.sub(" # ", text)
    text = _IN_REPLY.sub(" ", text)
    return _BLANKS.sub(" ", _BETWEEN.sub(" ", text)).strip().lower()


def _without(text: str, address: str) -> str:
    """Takes a recipient out: the address, its domain, and its local part where that is plainly a name."""
    local, _, domain = address.rpartition("@")
    for name in (address, domain):
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", " @ ", text, flags=re.IGNORECASE) if name else text
    if not local:
        return text
    name = re.escape(local)
    if local.isalpha():
        # A word like "relay" may be the relay's own.
        name = (
            rf"<{name}>|\"{name}\"|'{name}'|\({name}\)|\[{name}\]|^\s*{name}(?=:|\.\.\.)"
            rf"|(?:(?<=\buser )|(?<=\bmailbox )|(?<=\baccount )|(?<=\brecipient )|(?<=\baddress )){name}"
        )
    return re.sub(rf"(?<![\w.-])(?:{name})(?![\w-])", " @ ", text, flags=re.IGNORECASE)

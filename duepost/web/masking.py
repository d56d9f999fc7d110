"""Addresses as a viewer sees them: who reads along learns that there is one, and nothing more."""

import re

#: What may stand for an @, in a URL that holds another one, too.
_AT = r"(?:@|%(?:25)*40|＠|﹫|&#64;)"

#: An address in a text, with what clings to it; in a quoted local part there may be white space.
_ADDRESS = re.compile(rf'(?:"[^"\n]{{0,200}}"|[^\s<>()\[\]"\',;:]{{1,320}}?){_AT}[^\s<>()\[\]"\',;]*', re.IGNORECASE)
_ANY_AT = re.compile(_AT, re.IGNORECASE)


def masked(text: str) -> str:
    """The text with each address in it as `a***@***`: its first letter stays, so that two can be told apart."""
    if _ANY_AT.search(text) is None:
        return text
    return _ADDRESS.sub(lambda found: _first_letter(found[0]) + "***@***", text)


def _first_letter(address: str) -> str:
    first = address.lstrip('"')[:1]
    return first if first.isalnum() else ""

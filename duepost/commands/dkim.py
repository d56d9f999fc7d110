"""`duepost dkim`: the DNS records of the keys that emails are signed with."""

from typing import Annotated

import typer

from actors.content.addresses import ascii_domain
from actors.content.dkim import Key
from actors.settings import BadSettings, settings
from duepost.commands.context import BadInput, Json
from duepost.commands.output import print_json


def dkim(
    domain: Annotated[str, typer.Argument(help="Only this one's; all where none is named.")] = "",
    as_json: Json = False,
) -> None:
    """Prints the DNS records of the keys in DUEPOST_DKIM_KEYS, as a zone file has them. Asks no DNS.

    Example: duepost dkim example.com
    """
    signer = settings().signer()
    if signer is None:
        raise BadSettings("DUEPOST_DKIM_KEYS: not set; give the folder of keys, with <domain>/<selector>.pem")
    found = signer.keys.check()
    if domain:
        wanted = ascii_domain(domain)
        if wanted is None or wanted not in found:
            raise BadInput(f"{domain}: has no key; known are {', '.join(found)}")
        found = {wanted: found[wanted]}
    keys = [key for its in found.values() for key in its]
    if as_json:
        print_json([{"name": key.record_name, "type": "TXT", "text": key.record} for key in keys])
    else:
        for key in keys:
            typer.echo(_line(key))


def _line(key: Key) -> str:
    """A record in a zone file, in strings of at most 255 octets (RFC 1035 section 3.3)."""
    strings = (key.record[start : start + 255] for start in range(0, len(key.record), 255))
    return f"{key.record_name}. IN TXT " + " ".join(f'"{each}"' for each in strings)

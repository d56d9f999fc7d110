"""The grammar of endpoints' URLs: narrower than RFC 3986, so that no two readers find different hosts in one.

`tests/corpus/endpoint_urls.json` is tried against it.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Final

from actors.channels.http.guard import Reach, judged
from actors.channels.http.request import Target

#: Characters of a URL.
LONGEST_URL: Final = 2_000

#: Characters of a host's name (RFC 1035 section 2.3.4).
LONGEST_HOST: Final = 253

_PRINTABLE: Final = re.compile(r"[\x21-\x7e]+")
_SHAPE: Final = re.compile(r"(?P<scheme>https?)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.IGNORECASE)
_REST: Final = re.compile(r"(?:%[0-9A-Fa-f]{2}|[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-])*")
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>.*))?")
_PORT: Final = re.compile(r"[1-9][0-9]{0,4}")

_IPV6: Final = re.compile(r"\[[0-9a-f:.]+\]")
_BYTE: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = re.compile(rf"{_BYTE}(?:\.{_BYTE}){{3}}")
#: A last label that resolvers take for a number, and the whole for an IPv4 address: 127.1, 0x7f000001, 2130706433.
_NUMBER: Final = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")

#: Names of this machine (RFC 6761, and those that systems add).
_THIS_MACHINE: Final = re.compile(r"(?:.*\.)?localhost|localhost\.localdomain|ip6-localhost|ip6-loopback")


class BadUrl(ValueError):
    """No endpoint can have this URL. The message begins with `url`, and shows no more of it than an address."""


@dataclass(frozen=True, slots=True)
class EndpointUrl:
    """An endpoint's URL, taken apart.

    Attributes:
        target: the server.
        path: the path, from its slash on, as it is written.
        query: from its question mark on; empty where there is none.
    """

    target: Target
    path: str = field(repr=False)
    query: str = field(repr=False)


@lru_cache(maxsize=1_000)
def parse_endpoint_url(url: str, *, allows_private: bool = False) -> EndpointUrl:
    """Reads an endpoint's URL.

    Args:
        url: `https://host[:port][/path][?query]`, or `http://…`.
        allows_private: whether the endpoint allows private addresses, loopback among them.

    Raises:
        BadUrl: it is none, or leads where no endpoint, or not this one, may lead.
    """
    shape = _SHAPE.fullmatch(_checked(url))
    if shape is None:
        raise BadUrl("url must begin with https:// or http://")
    is_tls = shape["scheme"].lower() == "https"
    host, port = _host_and_port(shape["authority"], default=443 if is_tls else 80)
    path, mark, query = _rest(shape["rest"]).partition("?")
    _check_reach(host, allows_private=allows_private)
    return EndpointUrl(Target(host, port, is_tls, allows_private), path or "/", mark + query)


def _checked(url: str) -> str:
    if len(url) > LONGEST_URL:
        raise BadUrl(f"url must have at most {LONGEST_URL} characters")
    if not _PRINTABLE.fullmatch(url):
        raise BadUrl("url must be ASCII without spaces or control characters: the host as xn--, the rest encoded")
    return url


def _rest(rest: str) -> str:
    if "#" in rest:
        raise BadUrl("url must have no fragment")
    if not _REST.fullmatch(rest):
        raise BadUrl("url has a character in its path or query that must be percent-encoded")
    return rest


def _host_and_port(authority: str, default: int) -> tuple[str, int]:
    if "@" in authority:
        raise BadUrl("url must have no user or password: set them as secret")
    found = _AUTHORITY.fullmatch(authority)
    if found is None:
        raise BadUrl("url has a host that is neither a name nor an IP address")
    host, port = found["host"].lower(), found["port"]
    if not host:
        raise BadUrl("url must name a host")
    if port is not None and not (_PORT.fullmatch(port) and int(port) <= 65535):
        raise BadUrl("url must have a port from 1 to 65535, or none")
    return _host(host), default if port is None else int(port)


def _host(host: str) -> str:
    if host.startswith("["):
        return _ipv6(host)
    if _NUMBER.fullmatch(host):
        if not _IPV4.fullmatch(host):
            raise BadUrl("url has a host that ends in a number, and is no IPv4 address of four decimal numbers")
        return host
    if len(host) > LONGEST_HOST or not _NAME.fullmatch(host):
        raise BadUrl("url has a host that is neither a name nor an IP address")
    return host


def _ipv6(host: str) -> str:
    try:
        return str(IPv6Address(host[1:-1] if _IPV6.fullmatch(host) else ""))
    except ValueError:
        raise BadUrl("url has an IPv6 address that cannot be read, or one with a zone") from None


def _check_reach(host: str, *, allows_private: bool) -> None:
    if ":" in host or _IPV4.fullmatch(host):
        reach, what = judged(host)
    elif _THIS_MACHINE.fullmatch(host):
        reach, what = Reach.PRIVATE, "this machine"
    else:
        return
    if reach is Reach.NEVER:
        raise BadUrl(f"url leads to {what}, as no endpoint may")
    if reach is Reach.PRIVATE and not allows_private:
        raise BadUrl(f"url leads to {what}, as an endpoint may only if it allows private addresses")

"""Which addresses a worker may connect to: an endpoint's URL is no way into the network that the worker runs in.

The table is our own: `ipaddress` calls some private addresses global (64:ff9b::7f00:1, 2002:7f00:1::, ::127.0.0.1,
fec0::1, 224.0.0.1), and what it says changes with Python's release.
"""

from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network


class Reach(IntEnum):
    """Who may be connected to; of two that fit, the greater counts."""

    #: Anybody's.
    PUBLIC = 0
    #: Only for an endpoint that allows private addresses.
    PRIVATE = 1
    #: Not for any endpoint.
    NEVER = 2


class _Block(NamedTuple):
    network: Network
    reach: Reach
    what: str


class _Embedding(NamedTuple):
    """Addresses that lead to an IPv4 address, which starts at this byte of theirs."""

    network: IPv6Network
    first_byte: int
    what: str


def _blocks(reach: Reach, what: str, *networks: str) -> list[_Block]:
    return [_Block(ip_network(network), reach, what) for network in networks]


#: Special addresses, of IANA's registers and of hosts that tell a machine its own secrets. The first that fits counts.
_SPECIAL: Final = (
    *_blocks(
        Reach.NEVER,
        "a metadata address",
        *("169.254.169.254/32", "169.254.170.2/32", "169.254.170.23/32", "100.100.100.200/32", "168.63.129.16/32"),
        *("192.0.0.192/32", "fd00:ec2::/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128", "fd00:42::42/128"),
    ),
    *_blocks(Reach.NEVER, "an unspecified address", "0.0.0.0/8", "::/128"),
    *_blocks(Reach.NEVER, "a link-local address", "169.254.0.0/16", "fe80::/10"),
    *_blocks(Reach.NEVER, "a site-local address", "fec0::/10"),
    *_blocks(Reach.NEVER, "a multicast address", "224.0.0.0/4", "ff00::/8"),
    *_blocks(
        Reach.NEVER,
        "a reserved address",
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4"),
        *("2001::/23", "2001:db8::/32", "3fff::/20", "64:ff9b:1::/48"),
    ),
    *_blocks(Reach.PRIVATE, "a loopback address", "127.0.0.0/8", "::1/128"),
    *_blocks(
        Reach.PRIVATE,
        "a private address",
        *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7"),
    ),
)

#: Ways to write an IPv4 address as an IPv6 one. Each needs permission, as what it leads to is for a gateway to say.
_EMBEDDINGS: Final = (
    _Embedding(IPv6Network("::ffff:0:0/96"), 12, "a mapped address"),
    _Embedding(IPv6Network("::ffff:0:0:0/96"), 12, "a translated address"),
    _Embedding(IPv6Network("64:ff9b::/96"), 12, "a translated address"),
    _Embedding(IPv6Network("2002::/16"), 2, "a 6to4 address"),
    _Embedding(IPv6Network("::/96"), 12, "an IPv4-compatible address"),
)

#: What is given out for hosts on the internet; all else of IPv6 is not.
_GLOBAL: Final = IPv6Network("2000::/3")


def address_error(address: str, *, allows_private: bool) -> str | None:
    """Says why an address is not to be connected to, such as "10.0.0.1 is a private address"; None where it may be.

    Args:
        address: an IP address, as `getaddrinfo` and `getpeername` write it.
        allows_private: whether the endpoint allows private ones, loopback among them.
    """
    reach, what = judged(address)
    return None if reach <= (Reach.PRIVATE if allows_private else Reach.PUBLIC) else f"{address} is {what}"


@lru_cache(maxsize=1_000)
def judged(address: str) -> tuple[Reach, str]:
    """Who may connect to an address, and what it is, in words."""
    try:
        found = ip_address(address)
    except ValueError:
        return Reach.NEVER, "no IP address"
    return _judge(found)


def _judge(address: Address) -> tuple[Reach, str]:
    for block in _SPECIAL:
        if address.version == block.network.version and address in block.network:
            return block.reach, block.what
    if isinstance(address, IPv4Address):
        return Reach.PUBLIC, "a public address"
    for embedding in _EMBEDDINGS:
        if address in embedding.network:
            start = embedding.first_byte
            inner, what = _judge(IPv4Address(address.packed[start : start + 4]))
            return max(Reach.PRIVATE, inner), f"{embedding.what} of {what}"
    if address in _GLOBAL:
        return Reach.PUBLIC, "a public address"
    return Reach.NEVER, "a reserved address"

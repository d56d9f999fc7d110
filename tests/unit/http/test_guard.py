"""Which addresses may be connected to."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.channels.http.guard import Reach, address_error, judged


@pytest.mark.parametrize(
    ("address", "what"),
    [
        ("fe80::1%lo", "a link-local address"),
        ("169.254.169.254", "a metadata address"),
        ("64:ff9b::a9fe:a9fe", "a translated address of a metadata address"),
        ("nonsense", "no IP address"),
        ("", "no IP address"),
    ],
)
def test_some_are_never_connected_to(address: str, what: str) -> None:
    for allows_private in (False, True):
        assert address_error(address, allows_private=allows_private) == f"{address} is {what}"


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "::1", "fd12::1", "::ffff:10.0.0.1", "100.64.0.1"])
def test_private_ones_are_connected_to_where_the_endpoint_allows_it(address: str) -> None:
    assert address_error(address, allows_private=False) is not None
    assert address_error(address, allows_private=True) is None


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::200e"])
def test_public_ones_are_connected_to(address: str) -> None:
    assert address_error(address, allows_private=False) is None


@given(st.ip_addresses(v=4))
def test_no_other_way_to_write_an_ipv4_address_leads_further(address: ipaddress.IPv4Address) -> None:
    reach, _ = judged(str(address))
    number = int(address)
    for base, shift in (("::ffff:0:0", 0), ("::ffff:0:0:0", 0), ("64:ff9b::", 0), ("2002::", 80)):
        written = ipaddress.IPv6Address(int(ipaddress.IPv6Address(base)) + (number << shift))
        assert judged(str(written))[0] >= max(reach, Reach.PRIVATE)


@given(st.ip_addresses())
def test_what_python_knows_as_special_is_never_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if not address.is_global or address.is_multicast:
        assert judged(str(address))[0] is not Reach.PUBLIC

"""Addresses: what goes into an envelope, and what is refused without showing it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.addresses import Mailbox, UndeliverableAddress, ascii_address, parse_sender


@pytest.mark.parametrize(
    "address",
    [
        "ann@example.com",
        "ann@localhost",
        "ann@catcher",
        "ann@x.example",
        "ann@x.test",
        "ann@x.invalid",
        "ann@printer.local",
        "Ann.O'Hara+news@x.example",
        "postmaster@x.example",
        "Postmaster@x.example",
        "ann@10.example",
    ],
)
def test_an_ascii_address_goes_out_as_it_stands(address: str) -> None:
    assert ascii_address(address) == address


@pytest.mark.parametrize(
    ("address", "envelope"),
    [
        ("ann@ä.example", "ann@xn--4ca.example"),
        ("Ann@BÜCHER.example", "Ann@xn--bcher-kva.example"),
        ("ann@例え.テスト", "ann@xn--r8jz45g.xn--zckzah"),
    ],
)
def test_a_domain_in_another_script_goes_out_in_idna(address: str, envelope: str) -> None:
    assert ascii_address(address) == envelope


def test_an_address_in_idna_stays_as_it_is() -> None:
    assert ascii_address(ascii_address("ann@ä.example")) == "ann@xn--4ca.example"


MALFORMED = [
    "",
    "ann",
    "ann@",
    "@x.example",
    "ann@@x.example",
    "ann@x.example, bob@x.example",
    "Ann <ann@x.example>",
    "<ann@x.example>",
    " ann@x.example",
    "ann@x.example ",
    "ann@x..example",
    "ann..b@x.example",
    "ann b@x.example",
    '"ann b"@x.example',
    "ann@[127.0.0.1]",
    "ann@-x.example",
    "ann@xn--\u00e4.example",
    "ann@" + "a" * 64 + ".example",
    "ann@" + "a." * 130 + "example",
    "ann@x.example\n",
    "ann@x.example\r\nRCPT TO:<eve@x.example>",
    "ann\x00@x.example",
    "ann\n@x.example",
]


@pytest.mark.parametrize("address", MALFORMED)
def test_a_malformed_address_is_undeliverable(address: str) -> None:
    with pytest.raises(UndeliverableAddress, match="malformed"):
        ascii_address(address)


@pytest.mark.parametrize("address", ["änn@x.example", "アン@x.example", "änn@ä.example"])
def test_a_local_part_that_is_not_ascii_is_undeliverable(address: str) -> None:
    with pytest.raises(UndeliverableAddress, match="must be ASCII"):
        ascii_address(address)


@pytest.mark.parametrize("address", [*(bad for bad in MALFORMED if len(bad) > 4), "änn@x.example"])
def test_a_refusal_does_not_show_the_address(address: str) -> None:
    with pytest.raises(UndeliverableAddress) as refused:
        ascii_address(address)
    assert address not in str(refused.value)


@given(st.text())
def test_what_is_accepted_is_printable_ascii_without_space(text: str) -> None:
    try:
        address = ascii_address(text)
    except UndeliverableAddress:
        return
    assert address.isascii()
    assert address.isprintable()
    assert " " not in address


@pytest.mark.parametrize(
    ("text", "mailbox"),
    [
        ("noreply@x.example", Mailbox("", "noreply@x.example")),
        ("<noreply@x.example>", Mailbox("", "noreply@x.example")),
        ("Duepost <noreply@x.example>", Mailbox("Duepost", "noreply@x.example")),
        ("  Duepost<noreply@x.example> ", Mailbox("Duepost", "noreply@x.example")),
        ("Bücher & Co. (Köln) <shop@x.example>", Mailbox("Bücher & Co. (Köln)", "shop@x.example")),
        ('"Duepost, Inc." <noreply@x.example>', Mailbox("Duepost, Inc.", "noreply@x.example")),
        (r'"The \"Post\"" <noreply@x.example>', Mailbox('The "Post"', "noreply@x.example")),
        ("Duepost <noreply@ä.example>", Mailbox("Duepost", "noreply@xn--4ca.example")),
    ],
)
def test_a_sender_is_a_name_and_an_address(text: str, mailbox: Mailbox) -> None:
    assert parse_sender(text) == mailbox


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Duepost",
        "Duepost <>",
        "Duepost <noreply>",
        "Duepost noreply@x.example",
        "a@x.example, b@x.example",
        "A <a@x.example>, B <b@x.example>",
        "A <<a@x.example>>",
        "Duepost <nöreply@x.example>",
    ],
)
def test_a_wrong_sender_is_told_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match=r"noreply@example\.com or Duepost <noreply@example\.com>"):
        parse_sender(text)


@pytest.mark.parametrize("control", ["\r", "\n", "\x00", "\r\nBcc: eve@x.example\r\n", "\x7f"])
@pytest.mark.parametrize("text", ["Due{}post <noreply@x.example>", "noreply@x.example{}", "{}noreply@x.example"])
def test_a_sender_with_a_control_character_is_refused(text: str, control: str) -> None:
    with pytest.raises(ValueError, match="one line without control characters"):
        parse_sender(text.format(control))


def read(address: str) -> str | None:
    """As it goes out, or None where it is refused."""
    try:
        return ascii_address(address)
    except UndeliverableAddress:
        return None


LOCAL = st.text(st.sampled_from('aZ9.!+-_"@ é()'), max_size=70)
LONG_LABELS = ("a" * 63 + ".com", "a" * 64 + ".com", "abcdefgh." * 27 + "com", "abcdefgh." * 28 + "com")
DOMAIN = st.text(st.sampled_from("aZ9.-ü_xn"), max_size=20) | st.sampled_from(
    ["example.com", "xn--bcher-kva.example", "[1.2.3.4]", *LONG_LABELS]
)


@given(LOCAL, DOMAIN)
def test_an_address_is_read_alike_whether_its_domain_is_known_or_not(local_part: str, domain: str) -> None:
    address = f"{local_part}@{domain}"
    quick = read(address)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("actors.addresses.LONGEST_LOCAL_PART", -1)
        assert quick == read(address)

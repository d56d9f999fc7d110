"""Addresses: what goes into an envelope, and what is refused without showing it."""

import json
from pathlib import Path

import idna
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from actors.content.addresses import Mailbox, UndeliverableAddress, ascii_address, ascii_domain, parse_sender
from models.letters import DOMAIN_LETTERS


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


CORPUS = json.loads((Path(__file__).parent.parent / "corpus" / "addresses.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("address", "envelope"), CORPUS["sendable"].items())
def test_what_can_be_sent_goes_out_as_its_envelope(address: str, envelope: str) -> None:
    assert ascii_address(address) == envelope


@pytest.mark.parametrize("address", CORPUS["beyond_ascii"])
def test_a_local_part_beyond_ascii_is_undeliverable(address: str) -> None:
    with pytest.raises(UndeliverableAddress, match="must be ASCII"):
        ascii_address(address)


@pytest.mark.parametrize("address", CORPUS["refused"])
def test_what_is_no_address_is_undeliverable(address: str) -> None:
    with pytest.raises(UndeliverableAddress, match="malformed"):
        ascii_address(address)


@pytest.mark.parametrize(("text", "mailbox"), CORPUS["senders"].items())
def test_what_is_a_sender_is_read(text: str, mailbox: tuple[str, str]) -> None:
    assert parse_sender(text) == Mailbox(*mailbox)


@pytest.mark.parametrize("text", CORPUS["refused_senders"])
def test_what_is_no_sender_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        parse_sender(text)


LETTERS = st.sampled_from(range(len(DOMAIN_LETTERS))).flatmap(
    lambda place: st.integers(DOMAIN_LETTERS[place][0], DOMAIN_LETTERS[place][1] - 1).map(chr)
)


@given(st.text(LETTERS | st.sampled_from("aZ9-."), min_size=1, max_size=20))
def test_a_domain_goes_out_as_another_reader_of_idna_has_it(domain: str) -> None:
    assume("\u1e9e" not in domain)  # Unicode 15.1 changed what it is mapped to.
    try:
        theirs = idna.encode(domain, uts46=True).decode()
    except idna.IDNAError:
        return
    assert ascii_domain(domain) in (theirs, None)


@given(st.text(LETTERS | st.sampled_from("aZ9-.ß·"), min_size=1, max_size=20))
def test_a_domain_in_idna_is_a_spelling_of_itself(domain: str) -> None:
    written = ascii_domain(domain)
    assert written is None or ascii_domain(written) == written

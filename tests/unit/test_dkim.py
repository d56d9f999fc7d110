"""DKIM: what is signed, by which key, and what another implementation says of it; the vectors of the RFCs."""

import base64
import hashlib
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_der_public_key,
)

from actors.channels.smtp.envelope import normalise
from actors.content.addresses import Mailbox
from actors.content.dkim import LINE, OVERSIGNED, SIGNED, Key, hashed, relaxed_body, relaxed_field, signed
from actors.content.dkim_keys import BadKey, DkimKeys, Signer, chosen, read_key
from actors.content.mime import UnsendableField, build_message
from actors.content.templates import Content

ROOT = Path(__file__).parents[2]

#: In the past: a signature of the future is none.
NOW = 1_760_000_000

#: RFC 8463 appendix A.
ED25519_KEY = "nWGxne/9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A="
ED25519_PUBLIC = "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
VECTOR = (
    b"From: Joe SixPack <joe@football.example.com>\r\n"
    b"To: Suzie Q <suzie@shopping.example.net>\r\n"
    b"Subject: Is dinner ready?\r\n"
    b"Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)\r\n"
    b"Message-ID: <20030712040037.46341.5F8J@football.example.com>\r\n"
    b"\r\n"
    b"Hi.\r\n"
    b"\r\n"
    b"We lost the game.  Are you hungry yet?\r\n"
    b"\r\n"
    b"Joe.\r\n"
)
VECTOR_UNSIGNED = (
    b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;\r\n"
    b" d=football.example.com; i=@football.example.com;\r\n"
    b" q=dns/txt; s=brisbane; t=1528637909; h=from : to :\r\n"
    b" subject : date : message-id : from : subject : date;\r\n"
    b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
    b" b="
)
VECTOR_SIGNATURE = "/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11BusFa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw=="


def pem(
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
    form: PrivateFormat = PrivateFormat.PKCS8,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(Encoding.PEM, form, encryption or NoEncryption())


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, 2048)


@pytest.fixture
def folder(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> Path:
    """Keys of both algorithms for example.com."""
    keys = tmp_path / "keys" / "example.com"
    keys.mkdir(parents=True)
    (keys / "r1.pem").write_bytes(pem(rsa_key))
    (keys / "e1.pem").write_text(ED25519_KEY + "\n")
    return keys.parent


def dns_of(*keys: Key) -> Callable[..., bytes | None]:
    """A DNS that knows these keys."""
    records = {f"{key.record_name}.".encode(): key.record.encode() for key in keys}
    return lambda name, timeout=5: records.get(name)


def verified(message: bytes, *keys: Key) -> list[bool]:
    """What dkimpy says of each signature."""
    judge = dkim.DKIM(message, minkey=1024)
    return [judge.verify(idx=number, dnsfunc=dns_of(*keys)) for number in range(len(keys))]


def an_email(
    text: str | None = "World\n", html: str | None = None, headers: Mapping[str, str] | None = None, **other: object
) -> bytes:
    given = {
        "sender": Mailbox("Duepost", "noreply@example.com"),
        "recipients": [Mailbox("Ann", "ann@example.net")],
        "copies": [Mailbox("", "bob@example.net")],
        "reply_to": "help@example.com",
        **other,
    }
    return build_message(
        content=Content("Hello", text, html),
        message_id="<1@example.com>",
        date=datetime(2026, 11, 26, tzinfo=UTC),
        headers=headers or {},
        **given,  # type: ignore[arg-type]
    )


def fields_of(message: bytes) -> list[bytes]:
    return re.split(rb"\r\n(?![ \t])", message.partition(b"\r\n\r\n")[0])


def tags_of(field: bytes) -> dict[str, str]:
    value = re.sub(r"\s", "", field.partition(b":")[2].decode())
    return dict(tag.split("=", 1) for tag in value.rstrip(";").split(";"))


def test_the_digest_of_rfc_8463() -> None:
    digest = hashlib.sha256(b"".join(relaxed_body(VECTOR.partition(b"\r\n\r\n")[2]))).digest()
    assert base64.b64encode(digest) == b"2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8="


def test_the_signature_of_rfc_8463(tmp_path: Path) -> None:
    path = tmp_path / "brisbane.pem"
    path.write_text(ED25519_KEY)
    key = read_key(path, "football.example.com")
    assert key.public == ED25519_PUBLIC
    covered = ["from", "to", "subject", "date", "message-id", "from", "subject", "date"]
    assert base64.b64encode(key.sign(hashed(fields_of(VECTOR), covered, VECTOR_UNSIGNED))).decode() == VECTOR_SIGNATURE


def test_the_rsa_signature_of_rfc_8463() -> None:
    unsigned = (
        b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;\r\n"
        b" d=football.example.com; i=@football.example.com;\r\n"
        b" q=dns/txt; s=test; t=1528637909; h=from : to : subject :\r\n"
        b" date : message-id : from : subject : date;\r\n"
        b" bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;\r\n"
        b" b="
    )
    public = load_der_public_key(
        base64.b64decode(
            "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J16JYi0Qvx/b"
            "yYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTIKT+l"
            "/K4w3QIDAQAB"
        )
    )
    signature = base64.b64decode(
        "F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeef"
        "Osk2JzdA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8="
    )
    covered = ["from", "to", "subject", "date", "message-id", "from", "subject", "date"]
    assert isinstance(public, rsa.RSAPublicKey)
    public.verify(signature, hashed(fields_of(VECTOR), covered, unsigned), padding.PKCS1v15(), hashes.SHA256())


def test_the_canonical_forms_of_rfc_6376() -> None:
    """Section 3.4.5."""
    assert [relaxed_field(each) for each in (b"A: X", b"B : Y\t\r\n\tZ  ")] == [b"a:X", b"b:Y Z"]
    assert b"".join(relaxed_body(b" C \r\nD \t E\r\n\r\n\r\n")) == b" C\r\nD E\r\n"
    assert [*relaxed_body(b"")] == [*relaxed_body(b"\r\n \t\r\n")] == []


BODIES = {
    "trailing blanks": "a  \nb\t \n",
    "a last line of blanks": "a\n   ",
    "empty lines at the end": "a\n\n\n\n",
    "no last newline": "a",
    "dots": ".\n..\n.a\n",
    "a long line": "a" * 2_000 + "\n",
    "long words": "word " * 400 + "\n",
    "a lone CR": "a\rb\n",
    "large": "a  b \t\n\n" * 40_000 + " \n \n",
    "other scripts": "Grüße, 日本\n",
}


@pytest.mark.parametrize("text", BODIES.values(), ids=BODIES)
def test_dkimpy_verifies_whatever_the_body(folder: Path, text: str) -> None:
    keys = DkimKeys(folder).of("example.com")
    for html in (None, f"<p>{text}</p>"):
        message = signed(normalise(an_email(text, html)), keys, SIGNED, NOW)
        assert verified(message, *keys) == [True, True]


@pytest.mark.parametrize("body", [b"", b"\r\n", b" \r\n\r\n", b"a \t \r\n \r\n"])
def test_dkimpy_verifies_bodies_that_are_not_built_here(folder: Path, body: bytes) -> None:
    keys = DkimKeys(folder).of("example.com")
    message = signed(b"From: a@example.com\r\nSubject:  b \r\n\tc\r\n\r\n" + body, keys, SIGNED, NOW)
    assert verified(message, *keys) == [True, True]


HEADERS = {
    "List-Unsubscribe": "<https://example.com/u?t=1>, <mailto:u@example.com>",
    "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
    "In-Reply-To": "<0@example.com>",
    "References": " ".join(f"<{number}@example.com>" for number in range(40)),
}


def test_what_is_signed(folder: Path) -> None:
    keys = DkimKeys(folder).of("example.com")
    message = signed(an_email(headers=HEADERS), keys, SIGNED, NOW)
    first, second, *rest = fields_of(message)
    assert not any(each.startswith(b"DKIM-Signature") for each in rest)
    assert [tags_of(each)["a"] for each in (first, second)] == ["rsa-sha256", "ed25519-sha256"]
    for each, selector in ((first, "r1"), (second, "e1")):
        tags = tags_of(each)
        assert set(tags) == {"v", "a", "c", "d", "s", "t", "bh", "h", "b"}, "neither i= nor l="
        assert (tags["c"], tags["d"], tags["s"], tags["t"]) == ("relaxed/relaxed", "example.com", selector, str(NOW))
        covered = tags["h"].lower().split(":")
        there = [field.partition(b":")[0].decode().lower() for field in rest]
        for name in map(str.lower, SIGNED):
            assert covered.count(name) == there.count(name) + (name in OVERSIGNED), name
        assert all(len(line) <= LINE for line in each.split(b"\r\n"))
    assert verified(message, *keys) == [True, True]


@pytest.mark.parametrize(
    "added",
    [b"Subject: Buy", b"Cc: eve@example.org", b"Reply-To: eve@example.org", b"From: eve@example.org",
     b"To: eve@example.org", b"Date: Fri, 11 Jul 2003 21:00:37 -0700", b"Message-ID: <2@example.org>",
     b"List-Unsubscribe: <https://example.org>", b"List-Unsubscribe-Post: List-Unsubscribe=One-Click"],
)  # fmt: skip
def test_what_a_reader_is_shown_cannot_be_added(folder: Path, added: bytes) -> None:
    keys = DkimKeys(folder).of("example.com")
    plain = an_email(copies=[], reply_to=None)
    for message in (an_email(headers=HEADERS), plain):
        head, body = signed(message, keys, SIGNED, NOW).split(b"\r\n\r\n", 1)
        for changed in (head + b"\r\n" + added, added + b"\r\n" + head):
            assert verified(changed + b"\r\n\r\n" + body, *keys) == [False, False]


def test_a_header_that_is_left_out_may_be_replaced(folder: Path) -> None:
    keys = DkimKeys(folder).of("example.com")
    names = [name for name in SIGNED if name not in {"Date", "Message-ID"}]
    message = signed(an_email(), keys, names, NOW)
    replaced = message.replace(b"Message-ID: <1@example.com>", b"Message-ID: <x@relay.example>")
    assert replaced != message
    assert verified(replaced, *keys) == [True, True]


def test_a_second_copy_differs_in_time_and_signature_alone(folder: Path) -> None:
    keys = DkimKeys(folder).of("example.com")
    first, again, later = (signed(an_email(), keys, SIGNED, now) for now in (NOW, NOW, NOW + 60))
    assert first == again
    for one, other in zip(fields_of(first), fields_of(later), strict=True):
        if one.startswith(b"DKIM-Signature"):
            differing = {name for name, value in tags_of(one).items() if tags_of(other)[name] != value}
            assert differing == {"t", "b"}
        else:
            assert one == other
    assert first.partition(b"\r\n\r\n")[2] == later.partition(b"\r\n\r\n")[2]


def test_a_domain_of_other_letters_is_signed_in_idna(folder: Path) -> None:
    (folder / "example.com").rename(folder / "München.example")
    keys = DkimKeys(folder).of("xn--mnchen-3ya.example")
    message = signed(an_email(sender=Mailbox("", "a@xn--mnchen-3ya.example")), keys, SIGNED, NOW)
    assert tags_of(fields_of(message)[0])["d"] == "xn--mnchen-3ya.example"
    assert verified(message, *keys) == [True, True]


def test_text_beyond_ascii_in_the_header_is_signed_as_it_stands(folder: Path) -> None:
    keys = DkimKeys(folder).of("example.com")
    message = an_email(recipients=[Mailbox("Jörg", "jörg@example.net")], is_international=True)
    assert verified(signed(message, keys, SIGNED, NOW), *keys) == [True, True]


def test_each_form_of_a_key_is_read(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    edwards = ed25519.Ed25519PrivateKey.from_private_bytes(base64.b64decode(ED25519_KEY))
    forms = {
        "pkcs8": pem(rsa_key),
        "pkcs1": pem(rsa_key, PrivateFormat.TraditionalOpenSSL),
        "ed25519": pem(edwards),
        "raw": ED25519_KEY.encode(),
        "old": pem(rsa.generate_private_key(65_537, 1024)),
    }
    found = {}
    for name, content in forms.items():
        path = tmp_path / f"{name}.pem"
        path.write_bytes(content)
        found[name] = read_key(path, "example.com")
    assert found["pkcs8"].record == found["pkcs1"].record
    assert found["ed25519"].record == found["raw"].record == f"v=DKIM1; k=ed25519; p={ED25519_PUBLIC}"
    assert found["pkcs8"].record.startswith("v=DKIM1; k=rsa; p=MII")
    assert {name: key.bits for name, key in found.items()} == {
        "pkcs8": 2048, "pkcs1": 2048, "ed25519": 256, "raw": 256, "old": 1024,
    }  # fmt: skip


def test_a_key_that_is_of_no_use_is_named(tmp_path: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    bad = {
        "empty": b"",
        "words": b"no key",
        "short": base64.b64encode(b"x" * 31),
        "public": b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n"
        b"-----END PUBLIC KEY-----\n",
        "cut": pem(rsa_key)[:400],
        "encrypted": pem(rsa_key, encryption=BestAvailableEncryption(b"password")),
        "pkcs1-encrypted": pem(rsa_key, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"password")),
        "curve": pem(ec.generate_private_key(ec.SECP256R1())),
        "under_score": pem(rsa_key),
        "bits": SMALL_KEY,
    }
    for name, content in bad.items():
        path = tmp_path / name / "example.com" / f"{name}.pem"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        with pytest.raises(BadKey) as caught:
            DkimKeys(tmp_path / name).check()
        said = str(caught.value)
        assert said.startswith(f"DUEPOST_DKIM_KEYS: {path}: "), said
        assert "\n" not in said
        assert "must" in said, said
    assert "encrypted" in str(_bad(tmp_path / "encrypted"))
    assert "512 bits" in str(_bad(tmp_path / "bits"))


#: Of 512 bits, which nothing makes any more.
SMALL_KEY = b"""-----BEGIN RSA PRIVATE KEY-----
MIIBOgIBAAJBALI6Ms8nXcZl0axLWZKLtmz6KY57HAppoPkfKCJFwM7P0fsNxfdS
GcC/t7JKDzCKkEwXTI2VCIC4phqdH/RWyMECAwEAAQJAOEb0QEE39Su1d2gbkpCX
O/YKJTluc0NDVyalb50C8spZk4D40kW234mdNat7bdE8OAvadjRif4MPeX6APtMd
IQIhAN0ZoLdJXL4SjmNryQM9ek1Rm2Qv5PuTVTlzsmEB3RGVAiEAzlwjDTRSnoqI
wZ3oOtGH1jL3yC01bE6UDc+kSQ/5p30CIDLA40evq35mPBFOeMIppp2BEi6ZX/Lw
Cyw5BsWF6/1RAiEAzMq1YnJNl9cl9vgNsumkI9f6/SaYgP7OgZJSmMuI2EUCICYl
XO3AAzGq+fCSydwcAOa9/T1RehD9fahNt9q4IY/0
-----END RSA PRIVATE KEY-----
"""


def _bad(folder: Path) -> BadKey:
    with pytest.raises(BadKey) as caught:
        DkimKeys(folder).check()
    return caught.value


def test_a_folder_that_is_of_no_use_is_named(tmp_path: Path, folder: Path) -> None:
    assert "no such file" in str(_bad(tmp_path / "nowhere"))
    assert "holds no key" in str(_bad(folder / "example.com")), "a domain's folder, for the folder of all"
    (folder / "example.org").mkdir()
    assert "example.org: holds no key" in str(_bad(folder))
    (folder / "example.org").rename(folder / "no domain")
    assert "must be a domain" in str(_bad(folder))
    (folder / "no domain").rename(folder / "EXAMPLE.com")
    assert "the same domain" in str(_bad(folder))
    (folder / "EXAMPLE.com").rename(folder / ".left-alone")
    (folder / "example.com" / "r1.pem").unlink()
    (folder / "example.com" / "r1.pem").mkdir()
    assert "r1.pem: no file" in str(_bad(folder))


def test_without_the_extra_the_line_says_which(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("actors.content.private_keys", raising=False)
    for name in ("actors.content.private_keys", "cryptography.exceptions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    said = str(_bad(folder))
    assert said.endswith("signing needs cryptography, which is not installed: pip install 'duepost[dkim]'")


def test_who_signs_nothing_loads_no_cryptography() -> None:
    code = "import sys, actors.app, duepost.commands.app; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_last_by_name_signs(folder: Path, rsa_key: rsa.RSAPrivateKey) -> None:
    for name in ("s9", "s10", "r2"):
        (folder / "example.com" / f"{name}.pem").write_bytes(pem(rsa_key))
    (folder / "example.com" / "s99.pem.new").write_bytes(b"half")
    assert [key.selector for key in chosen("example.com", folder / "example.com")] == ["s10", "e1"]


def test_a_key_that_is_replaced_is_read_again(
    folder: Path, rsa_key: rsa.RSAPrivateKey, caplog: pytest.LogCaptureFixture
) -> None:
    keys = DkimKeys(folder, look_every=0)
    path = folder / "example.com" / "r1.pem"
    first, _ = keys.of("example.com")
    path.write_bytes(pem(rsa.generate_private_key(65_537, 2048)))
    second, _ = keys.of("example.com")
    assert second.public != first.public
    for content in (b"", b"half"):
        path.write_bytes(content)
        for _ in range(3):
            assert keys.of("example.com")[0] is second, "what was read before goes on"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert str(path) in caplog.text
    path.write_bytes(pem(rsa_key))
    assert keys.of("example.com")[0].public == first.public
    (folder / "example.com").rename(folder / "example.org")
    assert keys.of("example.com") == ()
    (folder / "example.com").mkdir()
    with pytest.raises(BadKey):
        keys.of("example.com")


def test_a_folder_that_is_away_takes_no_key_away(folder: Path) -> None:
    keys = DkimKeys(folder, look_every=0)
    known = keys.of("example.com")
    folder.rename(folder.with_name("away"))
    assert keys.of("example.com") == known
    with pytest.raises(BadKey):
        keys.of("example.org")


def test_files_are_looked_at_once_a_second(folder: Path) -> None:
    keys = DkimKeys(folder, look_every=3600)
    known = keys.of("example.com")
    (folder / "example.com" / "r1.pem").write_bytes(b"")
    assert keys.of("example.com") == known


def test_a_domain_without_a_key_is_sent_unsigned_and_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    signer = Signer(DkimKeys(folder), SIGNED, is_required=False)
    for _ in range(3):
        assert signer.for_domain("example.org")(an_email()) == an_email()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "example.org are not signed" in record.getMessage()
    assert signer.for_domain("example.com")(an_email()).count(b"DKIM-Signature") == 2


def test_a_domain_without_a_key_waits_where_one_is_required(folder: Path) -> None:
    signer = Signer(DkimKeys(folder), SIGNED, is_required=True)
    with pytest.raises(UnsendableField, match=r"sender: there is no DKIM key of example\.org"):
        signer.for_domain("example.org")
    assert signer.for_domain("example.com")(an_email()).count(b"DKIM-Signature") == 2

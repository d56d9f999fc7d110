"""Signatures on what a real server received, as opendkim and dkimpy verify them."""

import base64
import subprocess
from pathlib import Path

import dkim
import pytest

from actors.content.dkim import Key
from actors.content.dkim_keys import DkimKeys
from tests.servers.conftest import MakeSite, Servers, need
from tests.servers.judges import opendkim
from tests.servers.postfix import Postfix

BODIES = {
    "blanks": "a  \nb\t \n   ",
    "empty lines": "a\n\n\n\n",
    "dots": ".\n..\n.a\n",
    "a long line": "a" * 2_000,
    "a lone CR": "a\rb",
    "other scripts": "Grüße, 日本\n",
}

HEADERS = (
    '{"List-Unsubscribe": "<https://example.com/u?t=1>, <mailto:u@example.com>",'
    ' "List-Unsubscribe-Post": "List-Unsubscribe=One-Click"}'
)


@pytest.fixture
def keys(tmp_path: Path) -> DkimKeys:
    """An RSA key and an Ed25519 one of the sender's domain."""
    folder = tmp_path / "keys" / "example.com"
    folder.mkdir(parents=True)
    subprocess.run(["openssl", "genrsa", "-out", folder / "r1.pem", "2048"], check=True, capture_output=True)
    (folder / "e1.pem").write_text(base64.b64encode(b"7" * 32).decode())
    return DkimKeys(folder.parent)


def verified_by_dkimpy(message: bytes, keys: tuple[Key, ...]) -> dict[str, bool]:
    records = {f"{key.record_name}.".encode(): key.record.encode() for key in keys}
    judge = dkim.DKIM(message)
    return {
        key.algorithm: judge.verify(idx=place, dnsfunc=lambda name, timeout=5: records.get(name))
        for place, key in enumerate(keys)
    }


def test_what_postfix_received_is_verified_by_two(
    servers: Servers, make_site: MakeSite, keys: DkimKeys, tmp_path: Path
) -> None:
    need("opendkim")
    postfix = servers["postfix"]
    assert isinstance(postfix, Postfix)
    site = make_site(postfix.main_url(), DUEPOST_DKIM_KEYS=str(keys.folder))
    for text in BODIES.values():
        site.query(
            "SELECT duepost.schedule_email(kind => 'signed', subject => 'ß', body_text => %s, body_html => %s,"
            " sender => 'Duepost <noreply@example.com>', reply_to => 'help@example.com',"
            " addresses => ARRAY['person-1@example.com'], cc => ARRAY['person-2@example.com'], headers => %s::jsonb)",
            text, f"<p>{text}</p>", HEADERS,
        )  # fmt: skip
    with site.running():
        site.wait_until_finished()
    sent = {row[0] for row in site.query("SELECT message_id_header FROM duepost.delivery WHERE kind = 'signed'")}
    assert len(sent) == len(BODIES)
    postfix.wait_until_stored()
    own = keys.of("example.com")
    records = {key.record_name: key.record for key in own}
    found = 0
    for number, path in enumerate(postfix.messages()):
        content = path.read_bytes()
        if b"DKIM-Signature" not in content:
            continue
        found += 1
        plain = tmp_path / f"{number}.eml"
        # As it came: Postfix stores what it has with LF.
        plain.write_bytes(content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
        assert opendkim(tmp_path / f"judge-{number}", records, plain) == {
            "rsa-sha256": "pass", "ed25519-sha256": "pass",
        }  # fmt: skip
        assert verified_by_dkimpy(plain.read_bytes(), own) == {"rsa-sha256": True, "ed25519-sha256": True}
        forged = tmp_path / f"{number}-forged.eml"
        forged.write_bytes(b"Subject: Buy\r\n" + plain.read_bytes())
        assert "pass" not in opendkim(tmp_path / f"forged-{number}", records, forged).values()
    assert found >= len(BODIES)

"""`duepost dkim`, what `duepost doctor` says of keys, and a worker whose keys are of no use."""

import base64
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands.shell import Shell
from tests.processes import ROOT, environment

PAGE = (ROOT / "docs" / "dkim.md").read_text(encoding="utf-8")
PUBLIC = base64.b64encode(b"7" * 32).decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An Ed25519 key of example.com."""
    path = tmp_path / "keys" / "example.com" / "e1.pem"
    path.parent.mkdir(parents=True)
    path.write_text(PUBLIC)
    return path.parent.parent


def test_the_example_of_the_page_does_what_it_says(tmp_path: Path) -> None:
    [example] = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    duepost = tmp_path / "bin" / "duepost"
    duepost.parent.mkdir()
    duepost.write_text(f'#!/bin/sh\nexec {sys.executable} -m duepost "$@"\n')
    duepost.chmod(0o755)
    env = {**os.environ, "PATH": f"{duepost.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-e"], input=example, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    name, record = done.stdout.rstrip("\n").split(" IN TXT ")
    assert name == "2026a._domainkey.example.com."
    strings = re.findall(r'"([^"]*)"', record)
    assert max(map(len, strings)) <= 255
    assert "".join(strings).startswith("v=DKIM1; k=rsa; p=MII")


def test_the_records_are_printed(folder: Path) -> None:
    shell = Shell("postgresql://127.0.0.1:1/none", DUEPOST_DKIM_KEYS=str(folder))
    assert shell.run("dkim").startswith('e1._domainkey.example.com. IN TXT "v=DKIM1; k=ed25519; p=')
    assert '"name": "e1._domainkey.example.com"' in shell.run("dkim", "Example.COM", "--json")
    assert "example.org: has no key; known are example.com" in shell.run("dkim", "example.org", status=2)
    without = Shell("postgresql://127.0.0.1:1/none", DUEPOST_DKIM_KEYS="")
    assert "DUEPOST_DKIM_KEYS: not set" in without.run("dkim", status=2)


def test_the_doctor_reads_the_keys(url: str, folder: Path) -> None:
    def dkim(**settings: str) -> tuple[str, str]:
        env = {"DUEPOST_DKIM_KEYS": str(folder), "DUEPOST_FROM": "noreply@example.com", **settings}
        return Shell(url, **env).findings(status=None)["dkim"]

    assert dkim()[0] == "ok"
    assert "example.com by e1 (ed25519-sha256, 256 bits)" in dkim()[1]
    health, said = dkim(DUEPOST_FROM="noreply@example.org")
    assert health == "warning"
    assert "emails from example.org, the domain of DUEPOST_FROM, go unsigned" in said
    assert dkim(DUEPOST_FROM="noreply@example.org", DUEPOST_DKIM_REQUIRED="1")[0] == "failed"
    (folder / "example.com" / "bad.pem").write_text("no key")
    health, said = dkim()
    assert health == "failed"
    assert said.startswith(f"DUEPOST_DKIM_KEYS: {folder}/example.com/bad.pem: ")


def test_a_worker_does_not_start_with_a_key_that_is_of_no_use(url: str, folder: Path, tmp_path: Path) -> None:
    path = folder / "example.com" / "e1.pem"
    path.write_text("no key")
    env = environment(url, "smtp://127.0.0.1:1", DUEPOST_DKIM_KEYS=str(folder), DUEPOST_TEMPLATES=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "duepost", "worker", "--processes", "1", "--threads", "1"],
        env=dict(env), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "DUEPOST_DKIM_KEYS" in line]
    assert lines == [
        f"duepost: DUEPOST_DKIM_KEYS: {path}: no private key; must be PEM, or the 32 octets of an Ed25519 key in base64"
    ]

"""Secrets that stand elsewhere."""

import os
from pathlib import Path

import pytest

from actors.content.formats.format import Unsendable
from actors.content.secrets import resolve_secret
from actors.ruling import Phase, Ruling, Scope
from models.words import Verdict


def refused(secret: str, environment: dict[str, str] | None = None) -> Ruling:
    with pytest.raises(Unsendable) as caught:
        resolve_secret("orders", secret, environment or {})
    assert caught.value.__cause__ is None
    return caught.value.ruling


def test_a_secret_is_what_it_is_or_stands_in_the_environment_or_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("from a file\n")
    (tmp_path / "link").symlink_to(file)
    environment = {"HOOK": "from the environment"}
    assert resolve_secret("orders", "plain", environment) == "plain"
    assert resolve_secret("orders", "env:HOOK", environment) == "from the environment"
    assert resolve_secret("orders", f"file:{file}", environment) == "from a file"
    assert resolve_secret("orders", f"file:{tmp_path}/link", environment) == "from a file"


def test_one_that_cannot_be_read_keeps_the_messages_and_names_the_endpoint_alone(tmp_path: Path) -> None:
    (tmp_path / "SECRET-empty").write_text("\n")
    (tmp_path / "SECRET-large").write_text("x" * 5_000)
    (tmp_path / "SECRET-binary").write_bytes(b"\xff\xfeSECRET")
    os.mkfifo(tmp_path / "SECRET-pipe")
    files = ("empty", "large", "binary", "pipe", "missing", "nul\0")
    secrets = [f"file:{tmp_path}/SECRET-{name}" for name in files]
    for secret in [*secrets, "file:SECRET", f"file:{tmp_path}", "env:SECRET", "env:", "file:"]:
        ruling = refused(secret, {"EMPTY": ""})
        assert (ruling.verdict, ruling.scope, ruling.phase) == (Verdict.RETRY, Scope.RELAY, Phase.ENDPOINT)
        assert ruling.reply.startswith("endpoint orders: the ")
        assert "SECRET" not in ruling.reply
        assert str(tmp_path) not in ruling.reply
    assert refused("env:EMPTY", {"EMPTY": ""}).reply.endswith("is not set in this worker")

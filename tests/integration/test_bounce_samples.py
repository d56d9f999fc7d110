"""Bounces of real servers, of many years and dialects, which flufl.bounce keeps: what it says of each, and we."""

import os
import subprocess
import sys
import tarfile
import tempfile
from email import message_from_bytes
from pathlib import Path

import pytest
from flufl.bounce import all_failures

from actors.content.tokens import ReturnPath, Tokens, digest_of
from duepost.bounces.meaning import Effect, meaning_of
from duepost.bounces.reader import Reader, described
from duepost.bounces.reports import Came, Sort, read
from tests.app_harness import Harness
from tests.relays import ScriptedRelay

RELEASE = "6.0.0"
NUMBER = 117
BASE = "bounces@example.com"

#: A virus scanner sends the report on as an attached email: who attaches a bounce does not send one.
ATTACHED = {"dsn_15.txt"}


@pytest.fixture(scope="module")
def samples() -> dict[str, bytes]:
    """They are in the source alone, which is fetched once on a machine."""
    folder = Path(tempfile.gettempdir()) / f"duepost-bounces-{RELEASE}-{os.getuid()}"
    archive = folder / f"flufl_bounce-{RELEASE}.tar.gz"
    if not archive.exists():
        with tempfile.TemporaryDirectory() as draft:
            done = subprocess.run(
                [
                    sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "flufl.bounce",
                    "--dest", draft, f"flufl.bounce=={RELEASE}",
                ],
                check=False, capture_output=True, timeout=300,
            )  # fmt: skip
            if done.returncode:
                pytest.skip("the source of flufl.bounce cannot be fetched here")
            folder.mkdir(mode=0o700, exist_ok=True)
            (Path(draft) / archive.name).rename(archive)
    with tarfile.open(archive) as found:
        files = [each for each in found.getmembers() if "/tests/data/" in each.name and each.name.endswith(".txt")]
        contents = {Path(each.name).name: found.extractfile(each) for each in files}
        return {name: content.read() for name, content in contents.items() if content is not None}


def told(came: Came, action: str) -> set[str]:
    return {address.lower() for each in came.statuses if each.action == action for address in each.addresses}


def test_of_a_report_of_rfc_3464_both_say_the_same(samples: dict[str, bytes]) -> None:
    assert len(samples) == NUMBER
    read_by_us = 0
    for name, raw in samples.items():
        came = read(raw)
        temporary, permanent = (
            {address.decode().lower() for address in each} for each in all_failures(message_from_bytes(raw))
        )
        if came.sort is Sort.STATUS:
            read_by_us += 1
            assert (told(came, "failed") >= permanent, bool(told(came, "failed"))) == (True, bool(permanent)), name
            assert told(came, "delayed") >= temporary, name
        else:
            # What it makes out by the words of old servers, we show to people.
            assert name in ATTACHED or not name.startswith("dsn_"), name
            assert came.sort in {Sort.UNREADABLE, Sort.ANSWER}, name
    assert read_by_us == 18


def test_the_table_calls_fewer_addresses_dead(samples: dict[str, bytes]) -> None:
    dead = {
        (name, status.code)
        for name, raw in samples.items()
        for status in read(raw).statuses
        if meaning_of(status).effect is Effect.SUPPRESSED
    }
    assert {code for _, code in dead} <= {"5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1", None}
    assert dead


def test_none_has_an_effect_without_a_token_and_none_on_another_address_with_one(
    harness: Harness, relay: ScriptedRelay, samples: dict[str, bytes]
) -> None:
    email_id = harness.schedule()
    harness.deliver()
    tokens = Tokens(bytes(32))
    reader = Reader(harness.database, tokens, BASE)
    for name, raw in samples.items():
        reader.take(raw, name)
    found = described(reader.tally)
    assert found["suppressed"] == found["failed"] == found["about_us"] == 0
    assert found["unbelieved"] + found["unreadable"] + found["nothing"] == found["messages"] == NUMBER
    path = tokens.return_path(BASE, ReturnPath(email_id, digest_of("ann@example.com")))
    for name, raw in samples.items():
        reader.take(f"Delivered-To: {path}\n".encode() + raw, f"{name} with a token")
    assert reader.tally.effects["suppressed"] == 0, "they are about others' addresses"
    assert harness.query("SELECT address FROM duepost.suppression") == []

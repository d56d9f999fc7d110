"""Judges of messages: rspamd and SpamAssassin, without the network, and npm's two readers."""

import json
import re
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypedDict

from tests.servers.containment import Machine
from tests.servers.install import NPM, installed
from tests.servers.server import Server

READER = Path(__file__).parent / "read.mjs"


class Rspamd(Server):
    """Debian's rspamd, asked over HTTP."""

    name = "rspamd"
    etc = "/etc/rspamd"
    accounts = ("_rspamd",)
    folders: ClassVar = {
        "/run/rspamd": "_rspamd", "/var/lib/rspamd": "_rspamd", "/var/log/rspamd": "_rspamd",
    }  # fmt: skip

    def command(self) -> tuple[str, ...]:
        return ("rspamd", "--no-fork", "--user", "_rspamd", "--group", "_rspamd")

    def symbols(self, message: bytes) -> dict[str, float]:
        """The rules that a message meets, and what each adds to its score."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports['PLAIN']}/checkv2", data=message)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.load(answer)["symbols"]
        return {name: symbol["score"] for name, symbol in found.items()}


def spamassassin(folder: Path, messages: Sequence[Path]) -> list[set[str]]:
    """The rules of SpamAssassin that each message meets; local tests only.

    Args:
        folder: a fresh one.
        messages: files.
    """
    machine = Machine(installed("spamassassin"), folder, folders={"/var/lib/spamassassin": "root"})
    said = machine.run_once("spamassassin", "--local", "--test-mode", *map(str, messages))
    found = re.findall(r"^X-Spam-Status: .*?tests=(.*?)\s+autolearn=", said, re.MULTILINE | re.DOTALL)
    assert len(found) == len(messages), said
    return [set(re.split(r"[,\s]+", tests)) - {"none"} for tests in found]


def opendkim(folder: Path, records: Mapping[str, str], message: Path) -> dict[str, str]:
    """What opendkim says of a message's signatures, such as `pass`, by the algorithm.

    Args:
        folder: a fresh one.
        records: the DNS that it knows, by name.
        message: a file.
    """
    machine = Machine(installed("opendkim"), folder)
    machine.write("/etc/keys", "".join(f"{name} {text}\n" for name, text in records.items()))
    machine.write("/etc/judge.conf", "Mode v\nTestPublicKeys /etc/keys\n")
    said = machine.run_once("opendkim", "-v", "-v", "-x", "/etc/judge.conf", "-t", str(message))
    return {algorithm: result for result, algorithm in re.findall(r"dkim=(\w+) .*?header\.a=(\S+)", said)}


class Read(TypedDict):
    """A message as a program with a mailbox shows it."""

    subject: str
    to: list[str]
    text: str
    html: str
    files: list[tuple[str | None, str, str | None, str]]


def readers(messages: Sequence[Path]) -> dict[str, list[Read]]:
    """What mailparser and postal-mime read, by their names."""
    command = ["node", str(READER), str(installed(NPM)), *map(str, messages)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    read: dict[str, list[Read]] = json.loads(done.stdout)
    return read

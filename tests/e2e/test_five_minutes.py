"""docs/five-minutes.md: each command of the page, in its order, by somebody who has nothing yet."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.folders import short_folder
from tests.processes import Process
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "five-minutes.md"

#: A fence with a word behind its language: what is to be done with the block.
BLOCK = re.compile(r"^```(?:sh|python|text) (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

#: Other tests have `duepost up` running, too: this one takes any ports that are free.
FREE_PORTS = "--port 0 --web-port 0"

#: Commands that only look: a reader who sees nothing yet looks once more.
LOOKS = ("duepost show", "duepost why", "cat ")

#: Stands behind what a block has said.
END = "--- end of the block"


@dataclass(frozen=True)
class Block:
    """A block of code: `run`, `background`, `said`, or the name of the file that it is to be saved as."""

    purpose: str
    text: str


class Terminal:
    """A shell that a reader pastes blocks into; it ends at the first command that fails."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._shell = subprocess.Popen(
            ["bash", "--norc", "-e"], cwd=folder, env=env, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def paste(self, text: str) -> str:
        """What the commands of a block say.

        Raises:
            AssertionError: one of them fails.
        """
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.write(f"{text}\necho; echo '{END}'\n")
        self._shell.stdin.flush()
        said = ""
        for line in self._shell.stdout:
            if line.strip() == END:
                return said
            said += line
        raise AssertionError(f"{text}\nfailed, and said:\n{said}")

    def close(self) -> None:
        """Ends it."""
        self._shell.communicate()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """An empty folder that the embedded server's user can reach."""
    folder = short_folder("duepost-five-")
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def newcomer(folder: Path) -> dict[str, str]:
    """The environment of somebody with a new home, for whom `duepost` is this checkout's wheel."""
    wheels, home = folder / "wheels", folder / "home"
    home.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT], check=True
    )
    kept = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "PROXY" in name.upper()}
    return {
        **kept,
        "HOME": str(home),
        "PATH": f"{sys.base_prefix}/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PIP_FIND_LINKS": f"{os.environ.get('PIP_FIND_LINKS', '')} {wheels}".strip(),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def pattern(said: str) -> str:
    """What the page shows as said, for any numbers and times; `…` is anything."""
    words = (re.sub(r"\d+", r"\\d+", re.escape(word)).replace("…", ".*") for word in said.split())
    return r"\s+".join(words)


class Reader:
    """Somebody who does what the page says, block by block, in terminals."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder = folder
        self._env = env
        self._terminal = Terminal(folder, env)
        self.up: Process | None = None

    @property
    def shop(self) -> Path:
        """The folder that the page makes."""
        return self._folder / "shop"

    def leave_running(self, command: str) -> None:
        """Starts what goes on in the first terminal, and opens another one."""
        line = f". .venv/bin/activate && exec {command.strip()} {FREE_PORTS}"
        self.up = up = Process(["bash", "-c", line], self._env, self._folder / "up.log", cwd=self.shop)
        wait_until(lambda: "duepost list; duepost stats" in up.output, timeout=300, state=lambda: up.output)
        self._terminal.close()
        self._terminal = Terminal(self.shop, self._env)

    def run(self, commands: str, said: str) -> None:
        """Runs a block; what the page shows as said is to be in what it says."""
        looks = commands.startswith(LOOKS)
        heard = self._terminal.paste(commands)

        def is_said() -> bool:
            nonlocal heard
            if re.search(pattern(said), heard):
                return True
            heard = self._terminal.paste(commands) if looks else heard
            return False

        wait_until(is_said, timeout=60 if looks else 0.1, what="what the page says", state=lambda: heard)

    def close(self) -> None:
        """Ends all that runs."""
        self._terminal.close()
        if self.up is not None:
            self.up.stop()


@pytest.fixture
def reader(folder: Path, newcomer: dict[str, str]) -> Iterator[Reader]:
    """A reader who has done nothing yet."""
    reader = Reader(folder, newcomer)
    yield reader
    reader.close()


def test_every_command_of_the_page_does_what_the_page_says(reader: Reader) -> None:
    blocks = [Block(*found) for found in BLOCK.findall(PAGE.read_text(encoding="utf-8"))]
    assert {block.purpose for block in blocks} == {"run", "background", "said", "app.py"}
    for block, following in zip(blocks, [*blocks[1:], Block("end", "")], strict=True):
        if block.purpose == "background":
            reader.leave_running(block.text)
        elif block.purpose == "run":
            reader.run(block.text, following.text if following.purpose == "said" else "")
        elif block.purpose != "said":
            (reader.shop / block.purpose).write_text(block.text)
    assert reader.up is not None
    reader.up.signal(signal.SIGINT)
    assert reader.up.wait() == 0, reader.up.output

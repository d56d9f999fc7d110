"""A terminal of a given width, whose screen's text is kept."""

import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from typing import NamedTuple

from tests.processes import ROOT

#: What a terminal obeys: the sequences that rich and typer write for colours.
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Screen(NamedTuple):
    """What was shown, colours taken out, and the exit status."""

    text: str
    status: int


def on_terminal(arguments: Sequence[str], env: Mapping[str, str], *, columns: int) -> Screen:
    """Runs a command on a terminal of this width."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in env.items() if name not in {"COLUMNS", "LINES", "NO_COLOR"}}
    with subprocess.Popen(
        arguments, env={**kept, "TERM": "xterm-256color"}, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        read = b""
        while True:
            try:
                some = os.read(ours, 65_536)
            except OSError:
                # Linux says that nobody has the other end any more.
                break
            if not some:
                break
            read += some
    os.close(ours)
    return Screen(COLOURS.sub("", read.decode("utf-8", "replace")), process.returncode)

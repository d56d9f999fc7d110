"""Makes docs/demo.svg, what `duepost demo` shows on a terminal.

Run: .venv/bin/python docs/picture.py
"""

import io
import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

WIDTH = 92


def recorded() -> str:
    """What the demo writes to a terminal, in an empty folder."""
    folder = Path(tempfile.mkdtemp(prefix="duepost-", dir="/tmp"))
    folder.chmod(0o755)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "LINES": "40", "TERM": "xterm-256color"}
    demo = subprocess.Popen(
        [sys.executable, "-m", "duepost", "demo"],
        cwd=folder,
        env=environment,
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
    )
    os.close(theirs)
    output = io.BytesIO()
    while True:
        try:
            output.write(os.read(ours, 65536))
        except OSError:
            break
    if demo.wait() != 0:
        raise SystemExit("the demo failed")
    return output.getvalue().decode()


def last_frames(output: str) -> str:
    """The lines as they stand in the end: of the moving bar, the last state."""
    lines: list[str] = []
    for line in output.replace("\r\n", "\n").split("\n"):
        final = re.sub(r"\x1b\[\?25[lh]", "", line.split("\r")[-1])
        lines.append(re.sub(r"\x1b\[\d*[A-K]", "", final))
    return "\n".join(lines)


def main() -> None:
    """Runs the demo and draws the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text("$ make demo\n") + Text.from_ansi(last_frames(recorded())))
    picture = console.export_svg(title="duepost demo")
    # Rich would have the reader's browser fetch a font from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL)
    Path(__file__).with_name("demo.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()

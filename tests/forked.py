"""Commands in processes that begin with all imported: Python's start and the imports take most of a command's time."""

import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.folders import MEMORY

#: What Python reads at its start, and never again.
READ_AT_START = ("LANG", "LC_ALL", "LC_CTYPE", "PYTHONCOERCECLOCALE", "PYTHONIOENCODING", "PYTHONPATH", "PYTHONUTF8")

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["duepost.commands.app"])


def is_possible(env: Mapping[str, str]) -> bool:
    """Whether a Python that starts with this environment is like the one that runs the tests."""
    return all(env.get(name) == os.environ.get(name) for name in READ_AT_START)


def run(
    arguments: Sequence[str], env: Mapping[str, str], cwd: Path, stdin: str | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end; any thread may.

    Args:
        arguments: without the command's own name.
        env: all of its environment.
        cwd: its working directory.
        stdin: what it reads; None for nothing.
        timeout: in seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
    """
    with tempfile.TemporaryDirectory(prefix="duepost-command-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        (folder / "0").write_text(stdin or "", encoding="utf-8")
        process = _CONTEXT.Process(target=_command, args=(list(arguments), dict(env), str(cwd), name))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(["duepost", *arguments], timeout)
        # The server of processes loses a status now and then, and says 255 then: what the process wrote is right.
        written = folder / "status"
        status = int(written.read_text(encoding="ascii")) if written.exists() else process.exitcode
        process.close()
        said, complained = ((folder / each).read_text(encoding="utf-8") for each in ("1", "2"))
        return subprocess.CompletedProcess(["duepost", *arguments], status, said, complained)


def _command(arguments: list[str], env: dict[str, str], cwd: str, folder: str) -> None:
    """In the process of its own: makes it what a shell would have started, and goes on as that."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    random.seed()
    for number, flags in enumerate((os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)):
        file = os.open(f"{folder}/{number}", flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it is the process's own
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.argv = [str(Path(cwd) / "duepost"), *arguments]
    from duepost.__main__ import main

    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        Path(folder, "status").write_text(str(status), encoding="ascii")
        raise

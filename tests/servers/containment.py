"""A server that lives in a machine of its own, as far as it can tell; what it leaves behind is one folder.

Linux's namespaces do it. The server sees the machine's files with its package laid over `/usr` and `/etc`, and with
`/etc`, `/var` and `/run` of its own: so it runs as Debian configures it, under its own users, and the machine's mail
setup, users and services are not touched. It sees its own processes only; when the first one ends, or the tests do,
however that happens, the kernel ends them all, daemons included. The network is the machine's: a configuration names
127.0.0.1, and ports that were free.
"""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from tests.waiting import wait_until

#: Makes the machine: $1 is the package's folder, $2 the server's own; the rest is the command. The shell stays as the
#: first process and reaps what daemons orphan.
MACHINE = """
set -e
package=$1 own=$2
shift 2
mount -t overlay overlay -o "ro,lowerdir=$package/usr:/usr" /usr
mount -t overlay overlay -o "ro,lowerdir=$own/etc:$package/etc:/etc" /etc
mount --bind "$own/var" /var
mount --bind "$own/run" /run
set +e
"$@"
exit $?
"""

NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc")

#: The first user and group id that is given to a server's accounts.
FIRST_ID = 64100


class Machine:
    """Where a server runs, once or again.

    Args:
        package: the folder of what is installed.
        own: the server's own folder; may exist. Must not lie below /var or /run.
        accounts: the users, each with a group of its name, that the server drops to.
        folders: what must be there, in /etc, /var or /run; with the name of whoever owns it.
    """

    def __init__(
        self,
        package: Path,
        own: Path,
        *,
        accounts: Sequence[str] = (),
        folders: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.package = package
        self.own = own
        self.accounts = {name: FIRST_ID + number for number, name in enumerate(accounts)}
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("etc", "var/tmp", "var/log", "var/spool", "var/lib", "var/mail", "var/home", "run"):
            (own / name).mkdir(parents=True, exist_ok=True)
        own.chmod(0o755)
        (own / "var/tmp").chmod(0o1777)
        if not (own / "var/run").is_symlink():
            (own / "var/run").symlink_to("/run")
        self._write_accounts()
        # No name is asked for beyond the machine.
        self.write("/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\n")
        self.write(
            "/etc/hosts", f"127.0.0.1 localhost\n127.0.0.1 {socket.gethostname()}.example.com {socket.gethostname()}\n"
        )
        self.write("/etc/resolv.conf", "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        for path, owner in folders.items():
            self.folder(path, owner)

    def folder(self, path: str, owner: str = "root", mode: int = 0o755) -> Path:
        """A folder that the server sees at `path`, such as `/var/mail`."""
        place = self.path(path)
        place.mkdir(parents=True, exist_ok=True)
        place.chmod(mode)
        account = self.accounts.get(owner, 0)
        os.chown(place, account, account)
        return place

    def path(self, path: str) -> Path:
        """Where a file of the server's `/etc`, `/var` or `/run` lies for everybody else."""
        return self.own / path.lstrip("/")

    def write(self, path: str, content: str, mode: int = 0o644, owner: str = "root") -> None:
        """Writes a file that the server sees at `path`."""
        place = self.path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(content, encoding="utf-8")
        place.chmod(mode)
        account = self.accounts.get(owner, 0)
        os.chown(place, account, account)

    @property
    def output(self) -> str:
        """What the server has said on stdout and stderr, in all its runs."""
        log = self.own / "output"
        return log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""

    @property
    def is_running(self) -> bool:
        """Whether its first process is there."""
        return self._process is not None and self._process.poll() is None

    def start(self, *command: str, **env: str) -> None:
        """Starts the server; the command must stay in the foreground."""
        assert not self.is_running
        with (self.own / "output").open("ab") as output:
            self._process = subprocess.Popen(
                # The tests may be killed: the kernel then ends the machine.
                ["setpriv", "--pdeathsig", "KILL", *self._inside(command)],
                cwd="/",
                env=self._environment(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a command beside the server, in its machine; gives what it said.

        Raises:
            RuntimeError: it failed.
        """
        return _completed(["nsenter", "--target", self._first_pid(), "--mount", "--pid", "--", *command], check=check)

    def run_once(self, *command: str) -> str:
        """Runs a command in a machine that ends with it; the server need not run.

        Raises:
            RuntimeError: it failed.
        """
        return _completed(self._inside(command), env=self._environment({}))

    def wait(self, timeout: float = 30) -> None:
        """Waits until the server has ended, as it was told to."""
        if self._process is not None:
            self._process.wait(timeout=timeout)

    def kill(self) -> None:
        """Kill -9, all its processes at once."""
        if self._process is None or self._process.poll() is not None:
            return
        first = self._first_pid()
        self._process.kill()
        self._process.wait()
        # The kernel lets the first process go last: now nobody listens any more.
        wait_until(lambda: not Path(f"/proc/{first}").exists(), what="the end of the machine")

    def _inside(self, command: Sequence[str]) -> list[str]:
        """The command that makes the machine and runs `command` in it."""
        return [*NAMESPACES, "sh", "-c", MACHINE, "sh", str(self.package), str(self.own), *command]

    def _first_pid(self) -> str:
        """The first process, by the number that it has for everybody else."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return wait_until(children.read_text, what="the first process").split()[0]

    def _write_accounts(self) -> None:
        for file, entry in (
            ("passwd", "{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n"),
            ("group", "{name}:x:{number}:\n"),
        ):
            lines = Path(f"/etc/{file}").read_text().splitlines(keepends=True)
            kept = [line for line in lines if line.partition(":")[0] not in self.accounts]
            made = [entry.format(name=name, number=number) for name, number in self.accounts.items()]
            (self.own / "etc" / file).write_text("".join(kept + made))

    @staticmethod
    def _environment(more: dict[str, str]) -> dict[str, str]:
        path = "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {"PATH": path, "LC_ALL": "C.UTF-8", "HOME": "/var/home", **more}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@cache
def machines_are_allowed() -> str:
    """Why machines cannot be made here; an empty text where they can. Tried once."""
    if os.geteuid() != 0:
        return "only root can run mail servers in namespaces"
    try:
        _completed([*NAMESPACES, "sh", "-c", "mount -t overlay overlay -o ro,lowerdir=/mnt:/usr /usr"])
    except (OSError, RuntimeError) as error:
        return f"no right to make namespaces here: {error}"
    return ""


def _completed(command: Sequence[str], *, env: dict[str, str] | None = None, check: bool = True) -> str:
    done = subprocess.run(
        command, cwd="/", env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", timeout=120, check=False,
    )  # fmt: skip
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}: {done.stdout}")
    return done.stdout

"""Postfix, with a service of master.cf for each thing that it may say."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from tests.servers.certificates import Authority, self_signed
from tests.servers.server import Server, files_below


class Postfix(Server):
    """Debian's Postfix. Mail is stored in a Maildir by its `virtual` delivery agent."""

    name = "postfix"
    etc = "/etc/postfix"
    accounts = ("vmail", "postfix", "postdrop")
    folders: ClassVar = {"/var/spool/postfix": "root", "/var/lib/postfix": "postfix"}

    def __init__(self, folder: Path, **known: str) -> None:
        super().__init__(folder, **known)
        self.authority = Authority(folder)

    def configure(self) -> None:
        super().configure()
        for name, chain in {
            "self-signed": self_signed("mx.example.com"),
            "localhost": self.authority.chain("localhost", "127.0.0.1"),
            "elsewhere": self.authority.chain("elsewhere.example.com"),
            "outdated": self.authority.chain("localhost", "127.0.0.1", days=-1),
        }.items():
            self.machine.write(f"{self.etc}/{name}.pem", chain, mode=0o600)
        # Before a start its postsuper tells of files that a kill has left, as another user, and fails where it cannot.
        self.machine.write("/var/log/mail.log", "", mode=0o666)

    def command(self) -> tuple[str, ...]:
        return ("postfix", "start-fg")

    def stop(self) -> None:
        # Its machine ends with it, and the command with the machine.
        self.machine.run("postfix", "stop", check=False)
        self.machine.wait()

    def reload(self) -> None:
        self.machine.run("postfix", "reload")

    def set_options(self, way: str, *options: str) -> None:
        """Gives one of its services other options, from the next reload on; none are those of main.cf."""
        file = self.machine.path(f"{self.etc}/master.cf")
        kept: list[str] = []
        inside = False
        for line in file.read_text().splitlines():
            if not line.startswith(" "):
                inside = line.startswith(f"{self.ports[way]} ")
            if not (inside and line.startswith(" ")):
                kept.append(line)
            if inside and not line.startswith(" "):
                kept += [f"  -o {option}" for option in options]
        file.write_text("".join(f"{line}\n" for line in kept))

    def queue(self) -> Iterable[Path]:
        spool = self.machine.path("/var/spool/postfix")
        folders = [spool / name for name in ("incoming", "active", "deferred", "maildrop")]
        # What was not accepted yet when it was killed cannot be executed; it lies there for a day and is then removed.
        return [file for file in files_below(*folders) if os.access(file, os.X_OK)]

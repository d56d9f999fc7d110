"""Exim, the heavy one of Debian's."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from tests.servers.certificates import Authority
from tests.servers.server import Server, files_below


class Exim(Server):
    """Mail is stored in a Maildir; `mended` makes it stop refusing what it refuses for a while."""

    name = "exim"
    etc = "/etc/exim4"
    accounts = ("Debian-exim",)
    folders: ClassVar = {"/var/spool/exim4": "Debian-exim", "/var/log/exim4": "Debian-exim", "/var/lib/exim4": "root"}

    #: Who may log in, and how a URL says it: a blank is in the password.
    login = "app:pass%20word"

    def __init__(self, folder: Path, **known: str) -> None:
        super().__init__(folder, **known)
        self.authority = Authority(folder)

    def configure(self) -> None:
        super().configure()
        chain = self.authority.chain("localhost", "127.0.0.1")
        self.machine.write(f"{self.etc}/localhost.pem", chain, mode=0o600, owner="Debian-exim")

    def command(self) -> tuple[str, ...]:
        return ("exim4", "-bdf", "-q1h")

    def stop(self) -> None:
        self.machine.run("sh", "-c", "kill $(cat /run/exim4.pid)", check=False)
        self.machine.wait()

    def reload(self) -> None:
        self.machine.run("sh", "-c", "kill -HUP $(cat /run/exim4.pid)")
        self.wait_until_it_listens()

    def mend(self) -> None:
        """From now on it refuses less."""
        self.machine.write("/var/lib/exim4/mended", "")

    def break_again(self) -> None:
        """It refuses what it refused in the beginning."""
        self.machine.path("/var/lib/exim4/mended").unlink(missing_ok=True)

    def queue(self) -> Iterable[Path]:
        return [file for file in files_below(self.machine.path("/var/spool/exim4/input")) if file.name.endswith("-H")]

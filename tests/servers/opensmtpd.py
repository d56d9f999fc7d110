"""OpenSMTPD."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from tests.servers.certificates import Authority
from tests.servers.server import Server


class Opensmtpd(Server):
    """Mail is stored in a Maildir of the user `inbox`."""

    name = "opensmtpd"
    etc = "/etc"
    accounts = ("inbox", "opensmtpd", "opensmtpq")
    folders: ClassVar = {"/var/lib/opensmtpd/empty": "root", "/etc/opensmtpd": "root"}

    login = "app:password"

    def __init__(self, folder: Path, **known: str) -> None:
        super().__init__(folder, **known)
        self.authority = Authority(folder)
        self.machine.folder("/var/spool/smtpd", mode=0o711)

    def configure(self) -> None:
        chain = self.authority.chain("localhost", "127.0.0.1")
        self.machine.write("/etc/opensmtpd/localhost.crt", chain)
        self.machine.write("/etc/opensmtpd/localhost.key", chain, mode=0o600)
        super().configure()

    def command(self) -> tuple[str, ...]:
        return ("smtpd", "-d")

    def stop(self) -> None:
        self.machine.run("pkill", "-TERM", "-o", "-x", "smtpd", check=False)
        self.machine.wait()

    def queue(self) -> Iterable[Path]:
        spool = self.machine.path("/var/spool/smtpd")
        return [file for name in ("queue", "incoming") for file in (spool / name).rglob("*") if file.is_file()]

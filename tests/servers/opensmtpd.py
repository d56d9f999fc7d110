"""OpenSMTPD."""

from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar

from tests.servers.server import Server, files_below


class Opensmtpd(Server):
    """Mail is stored in a Maildir of the user `inbox`.

    No TLS, and so no login: Debian's 6.8 fails at every handshake with OpenSSL 3, `openssl s_client` included.
    """

    name = "opensmtpd"
    etc = "/etc"
    accounts = ("inbox", "opensmtpd", "opensmtpq")
    folders: ClassVar = {"/var/lib/opensmtpd/empty": "root"}

    def __init__(self, folder: Path, **known: str) -> None:
        super().__init__(folder, **known)
        self.machine.folder("/var/spool/smtpd", mode=0o711)

    def command(self) -> tuple[str, ...]:
        return ("smtpd", "-d")

    def stop(self) -> None:
        self.machine.run("pkill", "-TERM", "-o", "-x", "smtpd", check=False)
        self.machine.wait()

    def queue(self) -> Iterable[Path]:
        spool = self.machine.path("/var/spool/smtpd")
        return list(files_below(spool / "queue", spool / "incoming"))

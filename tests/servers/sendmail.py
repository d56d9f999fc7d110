"""Sendmail, configured by its own macros."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from tests.servers.server import Server


class Sendmail(Server):
    """What it has taken stays in its queue: a file with the envelope and the header, and one with the body."""

    name = "sendmail"
    etc = "/etc/mail"
    accounts = ("smmta", "smmsp")
    folders: ClassVar = {
        "/var/spool/mqueue": "root",
        "/var/lib/sendmail": "root",
        "/var/lib/sendmail/host_status": "root",
    }

    _BINARY = "/usr/libexec/sendmail/sendmail"

    def configure(self) -> None:
        super().configure()
        self.machine.folder("/var/spool/mqueue", mode=0o700)
        self.machine.write("/etc/mail/sendmail.cf", self.machine.run_once("m4", "/etc/mail/sendmail.mc"))
        for name in ("local-host-names", "trusted-users", "relay-domains"):
            self.machine.write(f"/etc/mail/{name}", "")
        self.machine.write("/etc/aliases", "postmaster: root\n")
        etc = self.machine.path("/etc/mail")
        made = self.machine.path("/var/lib/sendmail/access.db")
        self.machine.run_once(
            "sh", "-c", "/usr/libexec/sendmail/makemap hash /var/lib/sendmail/access < /etc/mail/access"
        )
        made.rename(etc / "access.db")
        self.machine.run_once(self._BINARY, "-C/etc/mail/sendmail.cf", "-oA/var/lib/sendmail/aliases", "-bi")

    def command(self) -> tuple[str, ...]:
        return (self._BINARY, "-bD")

    def stop(self) -> None:
        self.machine.run("sh", "-c", "kill $(head -1 /run/sendmail.pid)", check=False)
        self.machine.wait()

    def messages(self) -> Iterable[Path]:
        return self.machine.path("/var/spool/mqueue").glob("qf*")

    def _accepted(self) -> Iterator[tuple[str, str]]:
        for file in self.messages():
            for line in file.read_text(errors="replace").splitlines():
                _, _, header = line.rpartition("?")
                if header.lower().startswith("message-id:"):
                    yield header.partition(":")[2].strip(), file.name

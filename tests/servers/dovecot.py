"""Dovecot Submission, which relays to another server."""

from collections.abc import Iterable
from pathlib import Path

from tests.servers.certificates import Authority
from tests.servers.server import Server


class Dovecot(Server):
    """Debian's Dovecot with its submission service; what it takes, `backend` stores.

    Args:
        folder: its own.
        backend: runs already.
    """

    name = "dovecot"
    etc = "/etc/dovecot"
    accounts = ("vmail", "dovecot", "dovenull")

    login = "app:password"

    def __init__(self, folder: Path, backend: Server) -> None:
        super().__init__(folder, RELAY=str(backend.ports["PLAIN"]))
        self.backend = backend
        self.authority = Authority(folder)

    def configure(self) -> None:
        super().configure()
        chain = self.authority.chain("localhost", "127.0.0.1")
        self.machine.write(f"{self.etc}/localhost.crt", chain)
        self.machine.write(f"{self.etc}/localhost.key", chain, mode=0o600)

    def main_url(self) -> str:
        return self.url(login=self.login)

    def command(self) -> tuple[str, ...]:
        return ("dovecot", "-F")

    def stop(self) -> None:
        self.machine.run("doveadm", "stop", check=False)
        self.machine.wait()

    def messages(self) -> Iterable[Path]:
        return self.backend.messages()

    def queue(self) -> Iterable[Path]:
        return self.backend.queue()

"""Haraka, npm's newest."""

from typing import ClassVar

from tests.servers.server import Server


class Haraka(Server):
    """A plugin of ours keeps what it takes, as files; Haraka itself has no store."""

    name = "haraka"
    package = "npm"
    etc = "/etc/haraka"
    accounts = ("haraka",)
    folders: ClassVar = {"/var/mail/inbox/new": "haraka", "/etc/haraka/queue": "haraka"}

    def command(self) -> tuple[str, ...]:
        return ("node", f"{self.machine.package}/node_modules/Haraka/bin/haraka", "-c", self.etc)

    def stop(self) -> None:
        self.machine.run("pkill", "-TERM", "node", check=False)
        self.machine.wait()

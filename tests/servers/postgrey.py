"""Postgrey, Debian's greylisting for Postfix."""

from typing import ClassVar

from tests.servers.server import Server


class Postgrey(Server):
    """Asks whoever comes for the first time to come back, two seconds later at the earliest."""

    name = "postgrey"
    etc = "/etc/postgrey"
    accounts = ("postgrey",)
    folders: ClassVar = {"/var/lib/postgrey": "postgrey"}

    def configure(self) -> None:
        for name in ("whitelist_clients", "whitelist_recipients"):
            self.machine.write(f"{self.etc}/{name}", "")
        self.filled("@POSTGREY@")

    def command(self) -> tuple[str, ...]:
        listen = f"--inet=127.0.0.1:{self.ports['POSTGREY']}"
        return ("postgrey", listen, "--delay=2", "--auto-whitelist-clients=0", "--dbdir=/var/lib/postgrey")

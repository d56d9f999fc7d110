"""Duepost in `/opt/duepost` of a machine of its own, with a user `duepost` and its settings in `/etc/duepost`.

As deploy/README.md installs it; but the code and its packages are these, laid there, and not installed a second time.
"""

import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tests.postgres import PostgresServer, ask
from tests.processes import ROOT
from tests.servers.containment import Machine

#: Lays the interpreter, its packages and the code over `/opt`: $1 the own folder, $2 to $4 what is laid there; the rest
#: is the command.
INSTALLED = """
set -e
mount --bind "$1/opt" /opt
mount --bind "$2" /opt/python
mount --bind "$3" /opt/duepost/packages
mount --bind "$4" /opt/duepost/code
shift 4
exec "$@"
"""

PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

COMMAND = """#!/opt/duepost/bin/python
from duepost.__main__ import main

main()
"""


class Installation(Machine):
    """A machine on which Duepost is installed.

    Args:
        package: the folder of a package that is laid over `/usr` and `/etc`.
        own: the machine's own folder.
        settings: what `/etc/duepost/duepost.env` has; without quotation marks, as in the example.
    """

    def __init__(self, package: Path, own: Path, settings: Mapping[str, str]) -> None:
        super().__init__(package, own, accounts=["duepost"], folders={"/var/lib/duepost": "duepost"})
        # An account without an entry here has expired, says PAM.
        self.write("/etc/shadow", "root:*:19000:0:99999:7:::\nduepost:!:19000:0:99999:7:::\n", mode=0o640)
        # Where Python itself is a library, it lies in a folder that only root may read.
        lines = {**settings, "LD_LIBRARY_PATH": "/opt/python/lib"}
        self.write(
            "/etc/duepost/duepost.env",
            "".join(f"{name}={value}\n" for name, value in lines.items()),
            mode=0o640,
            owner="duepost",
        )
        self._install()

    def installed(self, *command: str) -> list[str]:
        """The command that runs `command` on this machine once Duepost is there."""
        site = sysconfig.get_path("purelib")
        laid = [str(self.own), sys.base_prefix, site, str(ROOT)]
        return ["sh", "-c", INSTALLED, "sh", *laid, *command]

    def _install(self) -> None:
        place = self.own / "opt" / "duepost"
        packages = place / "lib" / PYTHON / "site-packages"
        for folder in (self.own / "opt" / "python", place / "bin", place / "packages", place / "code", packages):
            folder.mkdir(parents=True)
        (place / "bin" / "python").symlink_to(f"/opt/python/bin/{PYTHON}")
        (place / "pyvenv.cfg").write_text("home = /opt/python/bin\ninclude-system-site-packages = false\n")
        (packages / "duepost.pth").write_text("/opt/duepost/code\n/opt/duepost/packages\n")
        command = place / "bin" / "duepost"
        command.write_text(COMMAND)
        command.chmod(0o755)


class OwnDatabase:
    """A migrated database that is reached by TCP: by a URL without a character that a shell would read.

    Args:
        server: listens on a port of its own.
        url: the database, by the server's Unix socket.
    """

    def __init__(self, server: PostgresServer, url: str) -> None:
        self.url = server.tcp_url(urlsplit(url).path.lstrip("/"))

    def query(self, statement: str, *parameters: object) -> list[tuple[object, ...]]:
        """Asks the database, as anyone could."""
        return ask(self.url, statement, *parameters)

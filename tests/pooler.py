"""A real PgBouncer in transaction mode, with as few server connections as will show what is left in a session."""

import os
import pwd
import shutil
import socket
import subprocess
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, urlsplit

import psycopg2

from tests.folders import short_folder
from tests.waiting import wait_until

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Pooler:
    """PgBouncer in front of one database."""

    def __init__(self, url: str, *, connections: int = 4) -> None:
        assert PGBOUNCER is not None
        parts = urlsplit(url)
        folder = parse_qs(parts.query)["host"][0]
        name = parts.path.strip("/")
        self.folder = short_folder("duepost-pooler-")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        (self.folder / "users").write_text(f'"{parts.username}" ""\n')
        (self.folder / "ini").write_text(
            f"[databases]\n{name} = host={folder} port=5432 dbname={name} user={parts.username}\n"
            "[pgbouncer]\nlisten_addr = 127.0.0.1\nunix_socket_dir =\n"
            f"listen_port = {port}\nauth_type = any\nauth_file = {self.folder}/users\n"
            f"pool_mode = transaction\ndefault_pool_size = {connections}\nmax_client_conn = 200\n"
        )
        self.url = f"postgresql://{parts.username}@127.0.0.1:{port}/{name}"
        user = None
        if os.geteuid() == 0:
            # PgBouncer does not run as root.
            user = pwd.getpwnam("pgserver")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [PGBOUNCER, str(self.folder / "ini")], stdout=log, stderr=log, user=user.pw_uid if user else None
            )
        wait_until(self._answers, what="PgBouncer", state=self.log.read_text)

    def _answers(self) -> bool:
        try:
            psycopg2.connect(self.url).close()
        except psycopg2.OperationalError:
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

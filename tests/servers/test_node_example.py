"""The example of the documentation for Node, run by Node with npm's pg."""

import os
import shutil
import subprocess
from pathlib import Path

from tests.servers.conftest import need

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "node"


def test_the_shop_registers_schedules_refuses_and_clears(tmp_path: Path, url: str) -> None:
    need()
    project = Path(shutil.copytree(EXAMPLE, tmp_path / "node", ignore=shutil.ignore_patterns("node_modules")))
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=project, check=True, timeout=280)
    done = subprocess.run(
        ["npm", "start", "--silent"],
        cwd=project,
        env=os.environ | {"DUEPOST_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [
        "scheduled 1",
        "refused 22023 address: must be one address such as ann@example.com",
        "clear cleared",
        "accounts 1",
    ]

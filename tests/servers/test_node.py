"""The contract of applications from Node, by npm's pg: the same calls as from psql and Python."""

import json
import os
import subprocess
from pathlib import Path

from psycopg2.extensions import parse_dsn

from tests.contract import CALLS, Outcome, differences
from tests.servers.conftest import need
from tests.servers.install import NPM, installed

CALLER = Path(__file__).parent / "call.mjs"


def test_the_calls_give_the_same_from_node(url: str) -> None:
    need(NPM)
    place = parse_dsn(url)
    calls = [
        (call.statement([f"${number}" for number in range(1, len(call.arguments) + 1)]), call.parameters())
        for call in CALLS
    ]
    done = subprocess.run(
        ["node", CALLER, installed(NPM) / "node_modules"],
        input=json.dumps(calls),
        env={
            **os.environ,
            "PGHOST": place["host"],
            "PGPORT": place["port"],
            "PGUSER": place["user"],
            "PGDATABASE": place["dbname"],
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    outcomes = [
        Outcome(each.get("rows", []), tuple(each["error"]) if "error" in each else None) for each in found["outcomes"]
    ]
    assert differences(CALLS, outcomes) == []
    assert found["undone"] == 0

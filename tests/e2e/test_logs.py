"""What workers, watch and console say, in lines that a collector reads; and that a night without trouble is silent."""

import json
import re
import subprocess
import sys

import pytest

from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.processes import ROOT
from tests.relays import reply
from tests.waiting import wait_until


def test_a_night_without_trouble_is_silent(site: Site) -> None:
    with site.workers() as workers, site.watch() as watch:
        site.schedule(3)
        site.wait_until_finished(3)
        before = workers.output, watch.output
        for turn in range(1, 6):
            site.schedule(20, prefix=f"turn-{turn}")
            site.wait_until_finished(3 + 20 * turn)
        assert (workers.output, watch.output) == before


def test_a_failure_is_one_line_of_json(site: Site) -> None:
    site.relay.on(Phase.RCPT, reply("550 5.1.1 no such user"))
    with site.workers(DUEPOST_LOG="json") as workers:
        site.env["DUEPOST_LOG"] = "json"
        with site.watch() as watch:
            [email_id] = site.schedule()
            site.wait_until_finished(1)
            wait_until(lambda: "undeliverable" in workers.output, what="a line", state=site.logs)
        for line in watch.output.splitlines():
            assert json.loads(line)["logger"] == "duepost.watch"
    # Dramatiq's master process has a form of its own.
    lines = [line for line in workers.output.splitlines() if not re.match(r"\[.*\[dramatiq\.MainProcess\]", line)]
    found = [json.loads(line) for line in lines]
    assert found
    [told] = [each for each in found if each["event"] == "An email was undeliverable"]
    assert (told["email_id"], told["kind"], told["code"], told["level"]) == (email_id, "welcome", 550, "warning")
    assert "person-1" not in workers.output


@pytest.mark.parametrize(
    "command",
    [["dramatiq", "actors", "--processes", "1"], ["duepost", "trigger", "--watch"], ["duepost", "web", "--port", "0"]],
    ids=["workers", "watch", "web"],
)
def test_another_format_is_one_line_and_status_2(site: Site, command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**site.env, "DUEPOST_LOG": "xml"}, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "duepost: DUEPOST_LOG: must be text or json" in done.stderr

"""A worker dies before and after every statement and every step of SMTP: each point has its outcome."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models import messages, workers
from models.database import advisory_locks
from tests.app_harness import Harness
from tests.processes import ROOT, environment
from tests.relays import ScriptedRelay
from tests.waiting import wait_until


class CrashWorkers:
    """Workers that drop dead where they are told."""

    def __init__(self, harness: Harness, relay: ScriptedRelay, state: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.crash_worker"],
            env=environment(harness.application.url, relay.url, DUEPOST_STATE_DIR=state), cwd=ROOT,
            text=True, bufsize=1, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def die(self, at: int, moment: str) -> str | None:
        """A worker dies at the nth step; gives the step, None if it came to the end before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"at": at, "moment": moment}) + "\n")
        said = json.loads(self._process.stdout.readline())
        assert said is None or isinstance(said, str)
        return said

    def end(self) -> None:
        """No more of them."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait(timeout=30) == 0


@pytest.fixture(params=["without a journal", "with a journal"])
def state(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where workers keep their journals, if they do."""
    state = "off" if request.param == "without a journal" else str(tmp_path / "state")
    monkeypatch.setenv("DUEPOST_STATE_DIR", state)
    return state


@pytest.fixture
def crash_workers(harness: Harness, relay: ScriptedRelay, state: str) -> Iterator[CrashWorkers]:
    harness.restart()
    crash_workers = CrashWorkers(harness, relay, state)
    yield crash_workers
    crash_workers.end()


def reap_dead_workers(harness: Harness) -> None:
    """Others see the death, and take back what was held."""
    wait_until(
        lambda: (
            harness.query(
                f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = {advisory_locks.WORKER}"
            )
            == [(1,)]
        ),
        what="the session to end",
    )
    workers.reap_dead(harness.database, grace=0)
    workers.reap_dead(harness.database, grace=0)
    messages.return_from_dead(harness.database)
    harness.app.rescuer.rescue()


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("kind", ["resend", "hold"])
def test_a_worker_may_die_anywhere(
    harness: Harness, relay: ScriptedRelay, crash_workers: CrashWorkers, state: str, moment: str, kind: str
) -> None:
    keeps_journal = state != "off"
    harness.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES (%(kind)s, %(kind)s)", kind=kind)
    found: dict[str, tuple[str, int]] = {}
    journalled: list[str] = []
    for at in range(1, 100):
        email_id = harness.schedule(kind=kind, subject=f"email {at}", address=f"email-{at}@example.com")
        harness.enqueue()
        step = crash_workers.die(at, moment)
        if step is None:
            break
        assert relay.wait_for(lambda relay: relay._open <= 1), "the relay has seen the dead one's connection end"
        copies = copies_of(relay, at)
        [(stands,)] = harness.query(
            "SELECT coalesce((SELECT state FROM duepost.scheduled_email WHERE id = %(id)s), 'finished')", id=email_id
        )
        # Between the relay's reply and the commit the journal knows: nothing is unknown there, and there is no copy.
        is_journalled = keeps_journal and stands == "sending" and any("the reply to dot" in each for each in found)
        found[f"{at} {step}"] = (str(stands), len(copies))
        reap_dead_workers(harness)
        if is_journalled:
            assert harness.ledger(email_id) == ["sent"], step
            journalled.append(step)
        elif stands == "sending" and kind == "hold":
            harness.send()
            assert harness.row(email_id)["state"] == "unknown", step
            assert len(copies) <= 1, step
            continue
        harness.make_due()
        harness.query("UPDATE duepost.control SET swept_at = NULL")
        harness.deliver()
        was_unknown = stands == "sending" and not is_journalled
        assert harness.ledger(email_id) == ["sent"], step
        [(unknowns,)] = harness.query("SELECT unknowns FROM duepost.delivery WHERE email_id = %(id)s", id=email_id)
        assert unknowns == int(was_unknown), step
        copies = copies_of(relay, at)
        is_done = stands == "finished" or is_journalled
        assert len(copies) == (1 if is_done else found[f"{at} {step}"][1] + 1), step
        assert len(set(copies)) == 1, "a copy is the same, byte for byte"
        assert harness.query("SELECT count(*) FROM dramatiq.queue WHERE queue_name = 'duepost_send'") == [(0,)], step
    else:
        pytest.fail("it never came to the end")
    check_the_points(found, moment)
    # Such a point is there when the death comes before the conclusion; after that the row is gone.
    assert bool(journalled) == (keeps_journal and moment == "before"), found


def copies_of(relay: ScriptedRelay, at: int) -> list[bytes]:
    return [message.content for message in relay.messages if message.recipients == (f"email-{at}@example.com",)]


def check_the_points(found: dict[str, tuple[str, int]], moment: str) -> None:
    """The states in which the row was when the worker died, in order, and when the relay had its copy."""
    states = [state for state, _ in found.values()]
    order = ["queued", "sending", "finished"]
    assert states == sorted(states, key=order.index), found
    # The acknowledgement commits with the conclusion: nothing comes after it.
    assert set(states) == set(order if moment == "after" else order[:2]), found
    sending = [(step, copies) for step, (state, copies) in found.items() if state == "sending"]
    phases = " ".join(step for step, _ in sending)
    # A connection is opened for an email that is claimed: so from the banner on there is one to lose.
    for phase in ("banner", "ehlo", "mail", "rcpt", "data", "dot"):
        assert f"the reply to {phase}" in phases, phases
    for phase in ("ehlo", "mail", "body", "dot"):
        assert f"sending {phase}" in phases, phases
    assert "duepost.take_connection(" in phases, phases
    # Whichever thread it is in, what moves the row is a point of its own, and the conclusion is the last.
    *_, last = found
    assert "duepost.conclude_emails(" in last, found
    by_step = {step.split(" ", 1)[1]: copies for step, copies in sending}
    assert by_step[f"{moment} the reply to data"] == 0
    assert by_step["after the reply to dot"] == 1 if moment == "after" else True
    assert not any("COMMIT" in step for step in found), "a claim is one statement, and so is a conclusion"

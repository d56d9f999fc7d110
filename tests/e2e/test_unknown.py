"""Unknown, worked out: no second copy before the first worker is surely gone; what comes back changes nothing."""

import json
import os
import signal

from actors.ruling import Phase
from models.database import advisory_locks
from tests.e2e.conftest import Site
from tests.processes import Workers, duepost
from tests.relays import close, hang, reply
from tests.sentry import SentryEndpoint
from tests.waiting import wait_until


def end_session_of(site: Site, workers: Workers) -> None:
    """Ends the session that says a worker process is alive, as its server does after a while of silence."""
    [pid] = workers.worker_pids()
    ended = site.query(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks AS l JOIN duepost.worker AS w ON l.objid = w.id::oid"
        f" WHERE l.locktype = 'advisory' AND l.classid = {advisory_locks.WORKER} AND l.objsubid = 2 AND w.pid = %s"
        " AND w.gone_at IS NULL",
        pid,
    )
    assert ended == [(True,)]


def test_a_worker_that_comes_back_after_its_claim_was_taken_over_changes_nothing_and_is_reported(site: Site) -> None:
    with SentryEndpoint() as sentry:
        site.env["SENTRY_DSN"] = sentry.dsn
        site.relay.on(Phase.DOT, hang(), reply("250 2.0.0 taken"), times=1)
        [email_id] = site.schedule()
        with site.watch(), site.workers("stopped") as stopped:
            wait_until(lambda: site.relay.transcript.count("C: .") == 1, state=site.logs)
            os.killpg(stopped.popen.pid, signal.SIGSTOP)
            with site.workers("other"):
                site.schedule(prefix="second")
                wait_until(lambda: site.outcomes() == {"sent": 1}, state=site.logs)
                assert site.pending() == {"sending": 1}, "its worker is not surely gone"
                site.relay.on(Phase.RCPT, reply("450 4.2.0 later"))
                end_session_of(site, stopped)
                wait_until(
                    lambda: (
                        site.query("SELECT state, unknowns, attempts FROM duepost.scheduled_email")
                        == [("scheduled", 1, 2)]
                    ),
                    what="the second attempt",
                    state=site.logs,
                )
                site.query("UPDATE duepost.scheduled_email SET attempts = 0")
                before = site.query("SELECT to_jsonb(e) FROM duepost.scheduled_email AS e")
                site.relay.release()
                os.killpg(stopped.popen.pid, signal.SIGCONT)
                wait_until(lambda: f"Email {email_id} went to another worker" in stopped.output, state=site.logs)
                wait_until(lambda: any("lost_claim" in str(event) for event in sentry.events), what="an event")
                assert site.query("SELECT to_jsonb(e) FROM duepost.scheduled_email AS e") == before
                site.relay.forget()
                site.query("UPDATE duepost.scheduled_email SET due_at = now()")
                site.wait_until_finished(2)
                assert len({m.content for m in site.relay.messages if m.recipients == ("person-1@example.com",)}) == 1


def test_what_stays_unknown_is_listed_and_a_person_decides(site: Site) -> None:
    site.query("INSERT INTO duepost.email_kind (kind, on_unknown) VALUES ('invoice', 'hold')")
    site.relay.on(Phase.DOT, close())
    invoices = [
        site.query(
            "SELECT duepost.schedule_email(kind => 'invoice', address => 'ann@example.com', subject => 's',"
            " body_text => 'b')"
        )[0][0]
        for _ in range(2)
    ]
    [welcome] = site.schedule()
    with site.watch(), site.workers():
        wait_until(lambda: site.pending() == {"unknown": 3}, state=site.logs)
        listed = json.loads(duepost("list", "--state", "unknown", "--json", env=site.env).stdout)
        assert {each["id"]: each["unknowns"] for each in listed} == {invoices[0]: 1, invoices[1]: 1, welcome: 2}
        site.relay.forget()
        for email_id, decision in ((invoices[0], "sent"), (invoices[1], "resend"), (welcome, "resend")):
            assert duepost("resolve", str(email_id), decision, env=site.env).returncode == 0
        site.wait_until_finished(3)
    assert sorted(site.received()) == ["ann@example.com", "person-1@example.com"]

"""Kill -9 of everything: what a relay has answered is never sent again, and what is sent again has a name."""

import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
import psycopg2
import pytest

from actors.delivery.journal import decoded
from actors.ruling import Phase
from tests.e2e.conftest import Site
from tests.processes import ROOT, Workers
from tests.relays import accept, hang, reply
from tests.waiting import wait_until

KILLS = 10

PROCESSES = 2

#: Emails of a turn: more than are answered and two on each connection.
EMAILS = 60

#: Dots of a turn that the relay takes an email at, and has not replied to when all is killed.
UNANSWERED = 2


def workers_of(site: Site, name: str, **more: str) -> Workers:
    """Two processes with eight connections each."""
    return site.workers(name, processes=PROCESSES, threads=4, code=ROOT, DUEPOST_SMTP_CONNECTIONS="8", **more)


#: An insert into the ledger waits while somebody holds an advisory lock of the test's own.
LEDGER_CAN_BE_CLOSED = """
CREATE FUNCTION wait_for_the_test() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_advisory_xact_lock_shared(4711); RETURN NEW; END';
CREATE TRIGGER wait_for_the_test BEFORE INSERT ON duepost.delivery FOR EACH ROW EXECUTE FUNCTION wait_for_the_test();
"""


@contextmanager
def nothing_concluded(site: Site) -> Iterator[None]:
    """The ledger takes no row, so that the relay's replies are nowhere but with the workers."""
    keeper = psycopg2.connect(site.url)
    with keeper, keeper.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(4711)")
        yield
    keeper.close()


def has_taken(site: Site, count: int) -> bool:
    return len(site.relay.messages) >= count


def has_journalled(site: Site, state: Path, count: int) -> bool:
    """Whether the journals name that many of the emails that are being sent."""
    files = [(path, path.name.partition(".")[0]) for path in (state / "journal").glob("*.*")]
    claims = {record.claim for path, name in files for record in decoded(path.read_bytes(), name)}
    held = site.query("SELECT claim FROM duepost.scheduled_email WHERE state = 'sending'")
    return len(claims & {int(str(claim)) for (claim,) in held}) == count


def standing(site: Site) -> tuple[object, ...]:
    """How things stand, for the message of a failure."""
    return len(site.relay.messages), site.pending(), site.outcomes(), site.logs()[-2000:]


def copies(site: Site) -> Counter[str]:
    """How many copies of each email the relay has, by Message-ID."""
    headers = [message.content.split(b"\r\n\r\n", 1)[0].decode() for message in site.relay.messages]
    ids = [line for header in headers for line in header.split("\r\n") if line.lower().startswith("message-id:")]
    assert len(ids) == len(site.relay.messages)
    return Counter(ids)


def doubled(site: Site) -> set[str]:
    return {message_id for message_id, number in copies(site).items() if number > 1}


def named(site: Site) -> set[str]:
    """The Message-IDs of emails whose outcome was unknown once."""
    rows = site.query("SELECT message_id_header FROM duepost.delivery WHERE unknowns > 0")
    return {f"Message-ID: {header}" for (header,) in rows}


def test_after_kill_9_of_everything_a_copy_is_only_of_what_no_worker_had_a_reply_for(
    site: Site, tmp_path: Path
) -> None:
    moments = random.Random(20261126)
    site.query(LEDGER_CAN_BE_CLOSED)
    workers = workers_of(site, "workers-0")
    with site.watch():
        for kill in range(1, KILLS + 1):
            answered = moments.randint(5, 25)
            # What is set last comes first: that many are answered, some are taken without a word, the others wait.
            site.relay.on(Phase.DOT, hang())
            site.relay.on(Phase.DOT, accept(), hang(), times=UNANSWERED)
            site.relay.on(Phase.DOT, reply("250 2.0.0 taken"), times=answered)
            before = len(site.relay.messages)
            with nothing_concluded(site):
                site.schedule(EMAILS, prefix=f"kill-{kill}")
                taken = before + answered + UNANSWERED
                wait_until(partial(has_taken, site, taken), timeout=60, what="emails", state=partial(standing, site))
                wait_until(partial(has_journalled, site, tmp_path / "state", answered), timeout=60, state=site.logs)
                workers.kill()
            site.relay.forget()
            workers = workers_of(site, f"workers-{kill}")
            site.wait_until_finished(EMAILS * kill)
            assert len(site.relay.messages) == (EMAILS + UNANSWERED) * kill, (kill, answered)
        journals = tmp_path / "state" / "journal"
        wait_until(lambda: len(list(journals.iterdir())) <= PROCESSES, timeout=60, what="journals of the dead to go")
    assert workers.stop() == 0
    assert len(copies(site)) == EMAILS * KILLS, "none is lost"
    assert max(copies(site).values()) == 2
    assert doubled(site) <= named(site), "each copy is named"
    assert list(journals.iterdir()) == [], "nothing is left of journals"


@pytest.mark.parametrize("state", ["off", "/dev/null/nowhere"])
def test_without_a_journal_all_is_delivered_and_each_copy_is_named(site: Site, state: str) -> None:
    site.relay.on(Phase.DOT, hang())
    site.relay.on(Phase.DOT, reply("250 2.0.0 taken"), times=30)
    site.schedule(60)
    with site.watch():
        doomed = workers_of(site, "doomed", DUEPOST_STATE_DIR=state)
        wait_until(partial(has_taken, site, 30), what="some emails", state=site.logs)
        doomed.kill()
        site.relay.forget()
        with workers_of(site, "next", DUEPOST_STATE_DIR=state) as following:
            site.wait_until_finished(60)
            lines = following.output.count("cannot be kept")
            assert lines == 0 if state == "off" else 1 <= lines <= 2, "a line for each process that sends"
    assert len(copies(site)) == 60
    assert doubled(site) <= named(site)


def readers_of(store: str) -> list[psutil.Process]:
    """The processes that read files of this store."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("AWS_ENDPOINT_URL") == store and "file_program.py" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_after_kill_9_in_the_middle_of_reading_a_file_nothing_goes_on_reading_and_all_others_are_sent(
    site: Site,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(30)
        store = f"http://127.0.0.1:{silent.getsockname()[1]}"
        site.env |= {
            "DUEPOST_ATTACHMENT_ROOTS": "s3://bucket/",
            "DUEPOST_ATTACHMENT_TIMEOUT": "600",
            "AWS_ENDPOINT_URL": store,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
        }
        [reading] = site.schedule(
            attachments="jsonb_build_array(duepost.attachment_at(filename => 'a.pdf', url => 's3://bucket/a.pdf'))"
        )
        with site.watch():
            doomed = site.workers("doomed")
            asked, _ = silent.accept()
            assert len(readers_of(store)) == 1
            doomed.kill()
            wait_until(lambda: not readers_of(store), what="the reading to end", state=site.logs)
            asked.close()
            with site.workers("next"):
                others = site.schedule(20, prefix="other")
                wait_until(lambda: site.outcomes() == {"sent": len(others)}, state=partial(standing, site))
                [(attempts, is_pending)] = site.query(
                    "SELECT (SELECT count(*) FROM duepost.attempt WHERE verdict = 'sent' AND email_id = %s),"
                    " EXISTS (SELECT FROM duepost.scheduled_email WHERE id = %s)", reading, reading,
                )  # fmt: skip
                assert (attempts, is_pending) == (0, True)
                for process in readers_of(store):
                    process.kill()

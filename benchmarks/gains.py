"""What does each trick gain? A step of an email's way as it is done, and the plain way, in turns.

Run: python benchmarks/gains.py
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from itertools import cycle
from pathlib import Path
from typing import NamedTuple, TypeVar
from uuid import uuid4

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from actors.channels.smtp.replies import Reply  # noqa: E402
from actors.channels.smtp.verdicts import judge  # noqa: E402
from actors.content.addresses import Mailbox, _ascii_domain  # noqa: E402 - the path comes first
from actors.content.mime import build_message  # noqa: E402
from actors.content.templates import Content  # noqa: E402
from actors.liveness.process import this_process  # noqa: E402
from actors.ruling import Phase  # noqa: E402
from benchmarks.site import BODY, fresh_database, machine, migrated, schedule, server  # noqa: E402
from models import emails, workers  # noqa: E402
from models.database.connections import Database  # noqa: E402
from models.emails import ClaimedEmail, Finished, Result  # noqa: E402
from models.messages import StoredMessage  # noqa: E402
from models.words import Outcome, Verdict  # noqa: E402

#: Emails that one way has before it is the other's turn.
TURN = 200

#: Emails in a page of the scheduler, in a claim and in a conclusion.
PAGE, TOGETHER = 100, 20

#: Of the messages.
PRIORITY = 10

#: Calls of a turn where nothing but the processor is used.
CALLS = 2_000

#: Does a turn's work; gives the seconds that it took for each email.
Way = Callable[[], float]

T = TypeVar("T")


class Trick(NamedTuple):
    """Two ways to do one thing."""

    what: str
    where: str
    done: Way
    plainly: Way


def main() -> None:
    """Measures all, and prints."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--turns", type=int, default=9, help="turns of each way; medians are shown")
    given = options.parse_args()
    print(f"Microseconds for each email, median of {given.turns} turns. {machine()}\n")
    print("| trick | where | with it | without it | gain |\n| --- | --- | ---: | ---: | ---: |")
    for trick in in_memory():
        measure(trick, given.turns)
    with server() as postgres, fresh_database(postgres.url, "gains") as url, migrated(url) as database:
        for trick in in_database(database, given.turns):
            measure(trick, given.turns)


def measure(trick: Trick, turns: int) -> None:
    """Both ways in turns; prints a row."""
    for way in (trick.done, trick.plainly):
        way()
    done, plainly = zip(*((trick.done(), trick.plainly()) for _ in range(turns)), strict=True)
    with_it, without = (statistics.median(each) * 1e6 for each in (done, plainly))
    print(f"| {trick.what} | `{trick.where}` | {with_it:.1f} | {without:.1f} | {without / with_it:.1f} × |", flush=True)


def in_memory() -> Sequence[Trick]:
    """What the worker's own processor does."""
    sender, date = Mailbox("Duepost", "noreply@example.com"), datetime.now(UTC)
    numbers = cycle(range(1_000_000))

    def build() -> object:
        return build_message(
            content=Content("Hello", BODY, None),
            sender=sender,
            recipients=[Mailbox("", f"a{next(numbers)}@example.com")],
            message_id="<1@example.com>",
            date=date,
            reply_to=None,
            headers={},
        )

    def compose() -> object:
        message = EmailMessage(SMTP)
        message["Message-ID"] = "<1@example.com>"
        message["Date"] = format_datetime(date)
        message["From"] = "Duepost <noreply@example.com>"
        message["To"] = f"a{next(numbers)}@example.com"
        message["Subject"] = "Hello"
        message.set_content(BODY)
        return message.as_bytes()

    taken = Reply(250, ("2.0.0 Ok: queued",))
    return [
        Trick(
            "headers and skeletons are spliced, not composed",
            "actors/content/mime.py:build_message",
            repeated(build),
            repeated(compose),
        ),
        Trick(
            "a domain is read once",
            "actors/content/addresses.py:ascii_address",
            repeated(lambda: _ascii_domain("example.com")),
            repeated(lambda: _ascii_domain.__wrapped__("example.com")),
        ),
        Trick(
            "what a reply means is remembered",
            "actors/channels/smtp/verdicts.py:judge",
            repeated(lambda: judge(Phase.DOT, taken)),
            repeated(lambda: judge.__wrapped__(Phase.DOT, taken)),
        ),
    ]


def repeated(call: Callable[[], object]) -> Way:
    """Many calls of one thing."""

    def way() -> float:
        begun = time.perf_counter()
        for _ in range(CALLS):
            call()
        return (time.perf_counter() - begun) / CALLS

    return way


def turn(work: Callable[[Sequence[T]], object], things: list[T], together: int) -> float:
    """Takes a turn's things off a list, and works on several of them at once; gives seconds for each."""
    mine, things[:] = things[:TURN], things[TURN:]
    begun = time.perf_counter()
    for start in range(0, TURN, together):
        work(mine[start : start + together])
    return (time.perf_counter() - begun) / TURN


def in_database(database: Database, turns: int) -> Sequence[Trick]:
    """Each statement of an email's way. What one trick leaves, the next one goes on with."""
    way = EmailsWay(database)
    way.schedule(4 * (turns + 1) * TURN)
    return [
        Trick(
            "many are scheduled by one statement",
            "models/functions/schedule.sql:store_emails",
            way.schedule_many,
            way.schedule_one_by_one,
        ),
        Trick(
            "a page of due emails is one statement",
            "models/functions/transitions.sql:enqueue_items_v2",
            way.enqueue_page,
            way.enqueue_one_by_one,
        ),
        Trick(
            "an enqueue does not wait for the disk",
            "models/functions/transitions.sql:enqueue_items_v2",
            way.enqueue_page,
            way.enqueue_durably,
        ),
        Trick(
            "many claims are one statement and one commit",
            "models/functions/transitions.sql:claim_emails_v3",
            way.claim_together,
            way.claim_one_by_one,
        ),
        Trick(
            "a claim is planned once in a session",
            "models/functions/transitions.sql:claim_emails_v3",
            way.claim_one_by_one,
            way.claim_planned_each_time,
        ),
        Trick(
            "many conclusions are one statement and one commit",
            "models/functions/transitions.sql:conclude_emails",
            way.conclude_together,
            way.conclude_one_by_one,
        ),
    ]


class EmailsWay:
    """Emails on their way: scheduled, then queued, then claimed."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._worker_id = workers.register(database.connect(), this_process())
        self._numbers = cycle(range(1_000_000))
        self._scheduled: list[int] = []
        self._queued: list[int] = []
        self._claimed: list[ClaimedEmail] = []

    def schedule(self, count: int) -> None:
        """Makes that many that are due."""
        schedule(self._database, count)
        self._scheduled = [int(str(i)) for (i,) in self._database.execute("SELECT id FROM duepost.scheduled_email")]

    def schedule_many(self) -> float:
        """By `schedule_emails()`."""
        return turn(self._schedule_many, self._new(), TURN)

    def schedule_one_by_one(self) -> float:
        """By `schedule_email()`, each committed."""
        return turn(self._schedule_one, self._new(), 1)

    def enqueue_page(self) -> float:
        """A call for each page."""
        emails.enqueue(self._database, [0], [message()], [PRIORITY])
        return turn(self._enqueue_page, self._scheduled, PAGE)

    def enqueue_one_by_one(self) -> float:
        """A statement from here for each, which waits for the disk no more than the page does."""
        return turn(self._enqueue_one, self._scheduled, 1)

    def enqueue_durably(self) -> float:
        """The page, and its commit waits for the disk."""
        with self._altered("enqueue_items_v2", "'synchronous_commit', 'off'", "'synchronous_commit', 'on'"):
            return self.enqueue_page()

    def claim_together(self) -> float:
        """Several in one statement."""
        self._claim([])
        return turn(self._claim, self._queued, TOGETHER)

    def claim_one_by_one(self) -> float:
        """Each in a statement and a commit of its own."""
        self._claim([])
        return turn(self._claim, self._queued, 1)

    def claim_planned_each_time(self) -> float:
        """Each in a statement of its own, which is planned again with each call."""
        with self._altered("claim_emails_v3", "force_generic_plan", "force_custom_plan"):
            return self.claim_one_by_one()

    def conclude_together(self) -> float:
        """Several in one statement."""
        return turn(self._conclude, self._claimed, TOGETHER)

    def conclude_one_by_one(self) -> float:
        """Each in a statement and a commit of its own."""
        return turn(self._conclude, self._claimed, 1)

    def _schedule_many(self, new: Sequence[object]) -> None:
        self._database.execute("SELECT count(*) FROM duepost.schedule_emails(%(emails)s)", {"emails": json.dumps(new)})

    def _schedule_one(self, new: Sequence[dict[str, object]]) -> None:
        self._database.execute(
            "SELECT duepost.schedule_email(kind => %(kind)s, address => %(address)s, scheduled_at => %(scheduled_at)s,"
            " subject => %(subject)s, body_text => %(body_text)s)",
            new[0],
        )

    def _enqueue_page(self, email_ids: Sequence[int]) -> None:
        enqueued = emails.enqueue(
            self._database, email_ids, [message() for _ in email_ids], [PRIORITY] * len(email_ids)
        )
        assert len(enqueued) == len(email_ids)
        self._queued += email_ids

    def _enqueue_one(self, email_ids: Sequence[int]) -> None:
        assert emails.enqueue(self._database, email_ids, [message()], [PRIORITY])
        self._queued += email_ids

    def _claim(self, email_ids: Sequence[int]) -> None:
        claimed = emails.claim(self._database, email_ids, self._worker_id)
        assert len(claimed) == len(email_ids)
        self._claimed += claimed

    def _conclude(self, some: Sequence[ClaimedEmail]) -> None:
        concluded = emails.conclude_finished_each(self._database, [Finished(each, [sent(each)]) for each in some])
        assert len(concluded) == len(some)

    def _new(self) -> list[dict[str, object]]:
        return [
            {
                "kind": "benchmark",
                "address": f"b{next(self._numbers)}@example.com",
                "scheduled_at": "2999-01-01T00:00:00Z",
                "subject": "Benchmark",
                "body_text": BODY,
            }
            for _ in range(TURN)
        ]

    @contextmanager
    def _altered(self, function: str, words: str, others: str) -> Iterator[None]:
        [(definition,)] = self._database.execute(
            "SELECT pg_get_functiondef(%(name)s::regproc)", {"name": f"duepost.{function}"}
        )
        assert words in str(definition)
        self._database.execute(str(definition).replace(words, others))
        yield
        self._database.execute(str(definition))


def message() -> StoredMessage:
    """A message such as the scheduler's."""
    return StoredMessage(str(uuid4()), "duepost_send", "{}")


def sent(email: ClaimedEmail) -> Result:
    """What is noted of an email that the relay took."""
    return Result(None, email.recipients[0].address, Verdict.SENT, Outcome.SENT, Phase.DOT, 250, "2.0.0", "Ok: queued")


if __name__ == "__main__":
    main()

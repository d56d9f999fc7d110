"""Applications that use all that an email may have: several recipients, attachments, guards, priorities, rates."""

import base64
import hashlib
import random
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email import message_from_bytes
from email.policy import SMTP
from pathlib import Path
from zoneinfo import ZoneInfo

import dkim
import psycopg2

from actors.content.dkim_keys import DkimKeys
from duepost import client
from tests.chaos.checker import CLOCK
from tests.chaos.clients import Asking
from tests.chaos.relay import Taken

#: The kinds, the domain of all recipients, and the one that signs.
PLAIN, GUARDED = "various", "guarded"
KINDS = (PLAIN, GUARDED)
DOMAIN, SIGNED = "various.example", "signed.example"
TEMPLATE = "various"

#: Emails that may leave to the domain in any second.
RATE = 10

#: What emails have attached: few files, that many share.
FILES = tuple(random.Random(number).randbytes(size) for number, size in enumerate((0, 57, 5_000, 200_000)))

#: Copies at the relay whose signature is verified, at most.
VERIFIED = 200

Query = Callable[..., Sequence[tuple[object, ...]]]


def set_up(query: Query, folder: Path) -> None:
    """Makes the application's table and guard, the kinds, the template and the key. The schema `app` is there."""
    query("CREATE TABLE app.unwanted (key text PRIMARY KEY)")
    query(
        "CREATE FUNCTION app.is_wanted(id bigint, users text[], context jsonb) RETURNS boolean"
        " LANGUAGE plpgsql AS $f$ BEGIN"
        " IF random() < 0.1 THEN RAISE EXCEPTION 'the application says no'; END IF;"
        " IF random() < 0.01 THEN PERFORM pg_sleep(3); END IF;"
        " RETURN NOT EXISTS (SELECT FROM app.unwanted AS u WHERE u.key = context ->> 'key'); END $f$"
    )
    query("INSERT INTO duepost.kind (kind) VALUES (%s)", PLAIN)
    query("INSERT INTO duepost.kind (kind, guard) VALUES (%s, 'app.is_wanted')", GUARDED)
    query("SELECT duepost.set_rate(domain => %s, per_second => %s)", DOMAIN, RATE)
    (folder / "templates" / f"{TEMPLATE}.subject.txt").write_text("{{ key }}")
    (folder / "templates" / f"{TEMPLATE}.txt").write_text("Hello {{ recipient.address }}.")
    keys = folder / "keys" / SIGNED
    keys.mkdir(parents=True)
    (keys / "e1.pem").write_text(base64.b64encode(hashlib.sha256(b"chaos").digest()).decode())


@dataclass
class Asked:
    """An email as it was asked for, and what was promised since.

    Attributes:
        recipients: all addresses.
        hidden: those in `bcc`.
        not_before: the time before which it does not leave, UNIX time.
        is_sure: whether scheduling it was answered.
        never: addresses that get nothing: suppressed, taken off, or all where it is not wanted.
        perhaps_off: addresses of which nobody knows whether they were taken off.
    """

    key: str
    recipients: frozenset[str]
    hidden: frozenset[str]
    file: bytes | None = field(repr=False)
    not_before: float
    is_sure: bool = False
    never: set[str] = field(default_factory=set)
    perhaps_off: set[str] = field(default_factory=set)


@dataclass
class VariousBook:
    """All that was asked, by its key."""

    emails: dict[str, Asked] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class VariousClient(Asking):
    """One application, at its own pace, until it is told to stop. Nobody else takes off its recipients."""

    def __init__(self, url: str, book: VariousBook, name: str) -> None:
        super().__init__(url, book, name, pause=0.15)
        self._book = book
        self._count = 0

    def act(self) -> None:
        """Schedules one, takes a recipient off, or wants one no longer."""
        self.random.choices([self._schedule, self._take_off, self._want_no_longer], [8, 2, 1])[0]()

    def _schedule(self) -> None:
        self._count += 1
        key = f"{self.name}-{self._count}"
        addresses = [f"{key}-{number}@{DOMAIN}" for number in range(self.random.choice((1, 1, 2, 4)))]
        shown = self.random.randrange(len(addresses)) + 1
        is_guarded = self.random.random() < 0.3
        zone = ZoneInfo(self.random.choice(("America/New_York", "Asia/Kathmandu", "Europe/Berlin")))
        local = datetime.now(zone).replace(microsecond=0) + timedelta(seconds=self.random.choice((0, 0, 1, 3)))
        file = self.random.choice(FILES) if self.random.random() < 0.4 else None
        asked = Asked(key, frozenset(addresses), frozenset(addresses[shown:]), file, local.timestamp())
        suppressed = self.random.sample(addresses, self.random.choice((0, 0, 0, 1)))
        is_unwanted = is_guarded and self.random.random() < 0.3
        asked.never |= set(addresses if is_unwanted else suppressed)
        with self._book.lock:
            self._book.emails[key] = asked

        def schedule(cursor: psycopg2.extensions.cursor) -> None:
            cursor.execute("BEGIN")
            for address in suppressed:
                cursor.execute("SELECT duepost.suppress(%s, 'chaos', 'sql')", [address])
            if is_unwanted:
                cursor.execute("INSERT INTO app.unwanted VALUES (%s)", [key])
            attachments = [] if file is None else [client.attachment(cursor, "Prüfbericht 1.bin", file)]
            client.schedule_email(
                cursor,
                kind=GUARDED if is_guarded else PLAIN,
                key=key,
                priority=self.random.choice((None, None, "urgent", "bulk")),
                addresses=[f"Ann Example <{addresses[0]}>", *addresses[1:shown]],
                bcc=addresses[shown:] or None,
                scheduled_local=local.replace(tzinfo=None),
                timezone=zone.key,
                template=TEMPLATE,
                context={"key": key},
                sender=f"shop@{SIGNED if self.random.random() < 0.5 else DOMAIN}",
                attachments=attachments or None,
            )
            cursor.execute("COMMIT")

        self.ask(schedule)
        asked.is_sure = True

    def _own(self) -> Asked | None:
        """One of the latest, if there is one."""
        with self._book.lock:
            latest = [each for each in list(self._book.emails.values())[-40:] if each.key.startswith(f"{self.name}-")]
        return self.random.choice(latest) if latest else None

    def _take_off(self) -> None:
        asked = self._own()
        if asked is None:
            return
        address = self.random.choice(sorted(asked.recipients))
        was_unsure = address in asked.perhaps_off
        asked.perhaps_off.add(address)
        receipts = self.ask(lambda cursor: client.clear_scheduled_emails_to(cursor, address))
        # Without a receipt it was not there: it is finished, or was never scheduled.
        if any(receipt != "too_late" for _, receipt in receipts):
            asked.never.add(address)
        elif asked.is_sure and not was_unsure:
            asked.perhaps_off.discard(address)

    def _want_no_longer(self) -> None:
        asked = self._own()
        if asked is None:
            return
        key = asked.key

        def forget(cursor: psycopg2.extensions.cursor) -> None:
            cursor.execute("INSERT INTO app.unwanted VALUES (%s) ON CONFLICT DO NOTHING", [key])

        self.ask(forget)


def is_various(copy: Taken) -> bool:
    """Whether a copy at the relay is one of these."""
    return copy.address.endswith(f"@{DOMAIN}")


@dataclass(frozen=True, slots=True)
class End:
    """What the database says of one email: the outcomes by address, and whether a person is to decide."""

    outcomes: Mapping[str, Sequence[str]]
    unknowns: int
    is_held: bool


def check(book: VariousBook, query: Query, taken: Sequence[Taken], keys: Path) -> list[str]:
    """What went wrong, a line each."""
    copies: dict[str, list[Taken]] = defaultdict(list)
    for copy in filter(is_various, taken):
        copies[copy.key].append(copy)
    ends = _ends(query)
    wrong = [*book.errors, *_seconds_with_too_many(filter(is_various, taken))]
    wrong += [f"{key}: the relay took what nobody had asked for" for key in copies.keys() - book.emails.keys()]
    for key, asked in book.emails.items():
        wrong += [f"{key}: {fault}" for fault in faults(asked, ends.get(key), copies[key])]
    signed = [copy for found in copies.values() for copy in found if copy.content.startswith(b"DKIM-Signature:")]
    own = DkimKeys(keys)
    wrong += [f"{copy.key}: its signature is not right" for copy in signed[:VERIFIED] if not _is_verified(copy, own)]
    if copies and not signed:
        wrong.append("no copy is signed")
    return wrong + _left(query)


def _seconds_with_too_many(copies: Iterable[Taken]) -> Iterator[str]:
    """A message to several is one, and is noted at the same moment for each of them."""
    moments = sorted(moment for moment, _ in {(copy.moment, copy.message_id) for copy in copies})
    for first, last in zip(moments, moments[RATE:], strict=False):
        if last - first < 1.0:
            yield f"{RATE + 1} emails to {DOMAIN} within {last - first:.3f} s"


def _left(query: Query) -> list[str]:
    """Attachments that are there though no email needs them, once they have been looked through."""
    # The first time finds emails that are done with theirs, the second contents that no email needs.
    for _ in range(2):
        query("SELECT duepost.drop_attachments(1000000)")
    left = query(
        "SELECT 'email ' || email_id FROM duepost.email_attachment"
        " WHERE email_id NOT IN (SELECT id FROM duepost.item UNION ALL SELECT id FROM duepost.undeliverable_email)"
        " UNION ALL SELECT 'content ' || encode(hash, 'hex') FROM duepost.attachment_content"
        " WHERE hash NOT IN (SELECT hash FROM duepost.email_attachment)"
    )
    return [f"{name}: its attachment is left" for (name,) in left]


def summary(query: Query) -> str:
    """How many recipients came to what."""
    rows = query(
        "SELECT outcome, count(*) FROM duepost.delivery WHERE kind = ANY (%s) GROUP BY 1 ORDER BY 1", list(KINDS)
    )
    return ", ".join(f"{count} {outcome}" for outcome, count in rows)


def _ends(query: Query) -> dict[str, End]:
    outcomes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    unknowns: Counter[str] = Counter()
    for key, address, outcome, number in query(
        "SELECT key, coalesce(address, ''), outcome, unknowns FROM duepost.delivery WHERE kind = ANY (%s)"
        " ORDER BY finished_at", list(KINDS),
    ):  # fmt: skip
        outcomes[str(key)][str(address)].append(str(outcome))
        unknowns[str(key)] = max(unknowns[str(key)], int(str(number)))
    held = set()
    for key, number, is_held in query(
        "SELECT key, unknowns, is_held FROM duepost.item WHERE kind = ANY (%s)", list(KINDS)
    ):
        outcomes[str(key)]
        unknowns[str(key)] = max(unknowns[str(key)], int(str(number)))
        if is_held:
            held.add(str(key))
    return {key: End(found, unknowns[key], key in held) for key, found in outcomes.items()}


def faults(asked: Asked, end: End | None, copies: Sequence[Taken]) -> Iterator[str]:
    """What is wrong about one email."""
    if end is None:
        if asked.is_sure:
            yield "it is gone"
        return
    if len({_unsigned(copy.content) for copy in copies}) > 1:
        yield "its copies differ"
    if any(address.encode() in copy.content for copy in copies[:1] for address in asked.hidden):
        yield "bcc stands in the content"
    if asked.file is not None and any(_attached(copy.content) != [asked.file] for copy in copies[:1]):
        yield "the attachment is another"
    if any(copy.at < asked.not_before - CLOCK for copy in copies):
        yield "left early"
    for address in sorted(asked.recipients):
        number = sum(copy.address == address for copy in copies)
        for fault in _faults_of_recipient(asked, address, end, number):
            yield f"{address}: {fault}; {asked}, {end}"


def _faults_of_recipient(asked: Asked, address: str, end: End, copies: int) -> Iterator[str]:
    """What is wrong about one recipient of one email, with the number of copies that the relay took."""
    outcomes = end.outcomes.get(address, [])
    last = outcomes[-1] if outcomes else None
    if copies > 1 + end.unknowns:
        yield f"{copies} copies, {end.unknowns} named as unknown"
    if address in asked.never and copies:
        yield "was to get nothing, and got it"
    if last == "sent" and not copies:
        yield "lost: the ledger says sent, the relay never took it"
    if last not in {None, "sent"} and copies and not end.unknowns:
        yield f"{last}, but the relay took it"
    if any(outcome != "undeliverable" for outcome in outcomes[:-1]):
        yield f"several rows in the ledger: {outcomes}"
    if last is None and not end.is_held and address not in asked.perhaps_off:
        yield "nobody knows what became of it"


def _unsigned(content: bytes) -> bytes:
    """A copy without its signature, which has the time in it."""
    return re.sub(rb"^DKIM-Signature:.*\r\n(?:[ \t].*\r\n)*", b"", content, flags=re.MULTILINE)


def _attached(content: bytes) -> list[object]:
    message = message_from_bytes(content, policy=SMTP)
    return [part.get_payload(decode=True) for part in message.walk() if part.get_content_disposition() == "attachment"]


def _is_verified(copy: Taken, keys: DkimKeys) -> bool:
    records = {f"{key.record_name}.".encode(): key.record.encode() for key in keys.of(SIGNED)}
    return bool(dkim.verify(copy.content, dnsfunc=lambda name, timeout=5: records.get(name)))

"""Applications that schedule, clear and reschedule, and keep book of what they were promised."""

import json
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NotRequired, Protocol, TypedDict, TypeVar

import psycopg2
import psycopg2.errors

from tests.postgres import Connection

T = TypeVar("T")

#: Users whom all clients share, so that their clears meet.
USERS = tuple(f"user-{number}" for number in range(24))


#: How long an email that expires may wait.
EXPIRY = timedelta(minutes=10)


def address_of(user: str) -> str:
    """Where a user's mail goes."""
    return f"{user}@example.com"


@dataclass
class Asked:
    """One email as it was asked for, and what was promised about it since. Times are UNIX times.

    `promises` are of the time before which it does not leave: when each was asked for, when the answer was there, and
    that time. `either` are users of
    whom some were taken off and the others have it already.
    """

    key: str
    email_id: int
    kind: str
    addresses: dict[str, str]
    promises: list[tuple[float, float, float]]
    expires_at: float | None
    cleared: set[str] = field(default_factory=set)
    either: set[str] = field(default_factory=set)
    unsure: bool = False

    def not_before(self, moment: float) -> float:
        """The time before which it was not to leave, by the promises that were or may have been in force then."""
        in_force = []
        for asked_at, answered_at, until in reversed(self.promises):
            if asked_at <= moment:
                in_force.append(until)
            if answered_at <= moment:
                break
        return min(in_force)


class NewEmail(TypedDict):
    """The arguments of `schedule_email()`, or one element of those of `schedule_emails()`."""

    kind: str
    scheduled_at: str
    subject: str
    body_text: str
    key: str
    users: NotRequired[list[str]]
    address: NotRequired[str]
    expires_at: NotRequired[str]


def asked_for(email_id: int, email: NewEmail) -> Asked:
    """What is promised when an email is scheduled with these arguments."""
    addresses = {user: address_of(user) for user in email["users"]} if "users" in email else {"": email["address"]}
    not_before = datetime.fromisoformat(email["scheduled_at"]).timestamp()
    expires_at = datetime.fromisoformat(email["expires_at"]).timestamp() if "expires_at" in email else None
    return Asked(email["key"], email_id, email["kind"], addresses, [(0.0, 0.0, not_before)], expires_at)


@dataclass
class Book:
    """All that was asked."""

    emails: dict[int, Asked] = field(default_factory=dict)
    slowest: float = 0.0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, asked: Asked) -> None:
        """One more email."""
        with self.lock:
            self.emails[asked.email_id] = asked

    def of_users(self, users: list[str]) -> list[Asked]:
        """The emails to any of these users."""
        with self.lock:
            return [each for each in self.emails.values() if set(users) & set(each.addresses)]

    def took(self, seconds: float) -> None:
        """How long a call took, its transaction included."""
        with self.lock:
            self.slowest = max(self.slowest, seconds)


def is_disconnect(error: psycopg2.Error) -> bool:
    """Whether the server, or the connection, is gone: the driver has no better name for an end in mid-answer."""
    return (
        isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) or type(error) is psycopg2.DatabaseError
    )


class Errors(Protocol):
    """A book that notes what must not happen."""

    errors: list[str]
    lock: threading.Lock


class Asking(threading.Thread, ABC):
    """An application that asks for one thing after the other, each in a connection of its own, until it is stopped.

    Args:
        url: the database.
        book: where errors are noted.
        name: its own; its choices follow from it.
        pause: the longest between two questions, in seconds.
    """

    def __init__(self, url: str, book: Errors, name: str, *, pause: float) -> None:
        super().__init__(name=name, daemon=True)
        self.stopping = threading.Event()
        self.random = random.Random(name)
        self._url = url
        self._errors = book
        self._longest_pause = pause

    @abstractmethod
    def act(self) -> None:
        """Asks for one thing."""

    def run(self) -> None:
        """Asks, at its own pace; a server that is gone is no error."""
        while not self.stopping.wait(self.random.uniform(0.01, self._longest_pause)):
            try:
                self.act()
            except psycopg2.Error as error:
                if is_disconnect(error):
                    continue
                with self._errors.lock:
                    self._errors.errors.append(f"{type(self).__name__}: {type(error).__name__}: {error}")

    def ask(self, call: Callable[[psycopg2.extensions.cursor], T]) -> T:
        """Does one thing in a transaction of its own; gives what it gives."""
        connection = psycopg2.connect(self._url, connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                return call(cursor)
        finally:
            with suppress(psycopg2.Error):
                connection.close()


class Client(threading.Thread):
    """One application, at its own pace, until it is told to stop."""

    def __init__(
        self,
        url: str,
        book: Book,
        seed: str,
        *,
        pause: float = 0.02,
        weights: Sequence[int] = (12, 2, 1, 2, 1),
        later: Sequence[float] = (0.0, 0.0, 0.5, 2.0),
        lock_timeout: float = 0.0,
    ) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._book = book
        self._seed = seed
        self._chance = random.Random(seed)
        self._pause = pause
        self._weights = weights
        self._later = later
        self._options = f"-c lock_timeout={lock_timeout * 1000:.0f}"
        self._count = 0
        self._connection: Connection | None = None
        self.stopping = threading.Event()

    def run(self) -> None:
        """Asks and asks."""
        while not self.stopping.is_set():
            [ask] = self._chance.choices(
                [self.schedule, self.clear_users, self.clear_one, self.reschedule, self.schedule_many], self._weights
            )
            try:
                ask()
            except (psycopg2.errors.DeadlockDetected, psycopg2.errors.LockNotAvailable) as error:
                self._book.errors.append(f"{ask.__name__}: {error!r}")
            except psycopg2.Error as error:
                if not is_disconnect(error):
                    self._book.errors.append(f"{ask.__name__}: {error!r}")
                self._hang_up()
            self.stopping.wait(self._pause)
        self._hang_up()

    def schedule(self) -> None:
        """One email."""
        email = self._new_email()
        arguments = ", ".join(f"{name} => %({name})s" for name in email)
        self._insist([email], f"SELECT duepost.schedule_email({arguments})", email)

    def schedule_many(self) -> None:
        """Several at once: all or none."""
        emails = [self._new_email() for _ in range(self._chance.choice([2, 3, 8]))]
        self._insist(emails, "SELECT duepost.schedule_emails(%(emails)s)", {"emails": json.dumps(emails)})

    def _new_email(self) -> NewEmail:
        self._count += 1
        key = f"{self._seed}-{self._count}"
        kind = self._chance.choice(["resend", "resend", "hold"])
        users = self._chance.sample(USERS, self._chance.choice([1, 1, 2, 3])) if self._chance.random() < 0.6 else None
        scheduled_at = datetime.now(UTC) + timedelta(seconds=self._chance.choice(self._later))
        email: NewEmail = {
            "kind": kind,
            "scheduled_at": scheduled_at.isoformat(),
            "subject": key,
            "body_text": "World. " * 200,
            "key": key,
        }
        if users:
            email["users"] = users
        else:
            email["address"] = f"{key}@example.com"
        if self._chance.random() < 0.1:
            email["expires_at"] = (scheduled_at + EXPIRY).isoformat()
        return email

    def _insist(self, emails: Sequence[NewEmail], statement: str, arguments: Mapping[str, object]) -> None:
        """Asks again and again, under the same keys, until the answer is there."""
        while not self.stopping.is_set():
            try:
                rows = self._call(statement, arguments)
            except (psycopg2.errors.DeadlockDetected, psycopg2.errors.LockNotAvailable):
                raise
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                self._hang_up()
                self.stopping.wait(0.1)
            else:
                for (email_id,), email in zip(rows, emails, strict=True):
                    self._book.add(asked_for(int(str(email_id)), email))
                return

    def clear_users(self) -> None:
        """Takes a few users off everything."""
        users = self._chance.sample(USERS, self._chance.randrange(1, 6))
        touched = self._book.of_users(users)
        try:
            receipts = self._call("SELECT * FROM duepost.clear_scheduled_emails(%s)", [users])
        except psycopg2.Error:
            for each in touched:
                each.unsure = True
            raise
        by_email: dict[int, set[str]] = {}
        for email_id, receipt in receipts:
            by_email.setdefault(int(str(email_id)), set()).add(str(receipt))
        self._note(by_email, set(users))

    def clear_one(self) -> None:
        """Clears one email whole."""
        asked = self._some()
        if asked is None:
            return
        try:
            [(receipt,)] = self._call("SELECT duepost.clear_scheduled_email(%s)", [asked.email_id])
        except psycopg2.Error:
            asked.unsure = True
            raise
        if receipt == "cleared":
            asked.cleared |= set(asked.addresses)

    def reschedule(self) -> None:
        """Moves one email of its own a little: of two that move the same one, nobody could say who was last."""
        asked = self._some(f"{self._seed}-")
        if asked is None:
            return
        asked_at = time.time()
        moment = asked_at + self._chance.choice([0.0, 1.0])
        try:
            [(receipt,)] = self._call("SELECT duepost.reschedule_email(%s, to_timestamp(%s))", [asked.email_id, moment])
        except psycopg2.Error:
            # It may have been moved to earlier.
            asked.promises.append((0.0, 0.0, min(moment, asked.promises[-1][2])))
            raise
        if receipt == "rescheduled":
            # What left before, for some of its users or for nobody knows whom, left under the promise before.
            asked.promises.append((asked_at, time.time(), moment))

    def _note(self, receipts: dict[int, set[str]], users: set[str]) -> None:
        # An email of another client may be known to the database before it is in the book.
        for email_id, said in receipts.items():
            asked = self._wait_for(email_id)
            if asked is None:
                continue
            if said == {"cleared"}:
                asked.cleared |= set(asked.addresses)
            elif said == {"user_removed"}:
                asked.cleared |= users & set(asked.addresses)
            elif "user_removed" in said:
                asked.either |= users & set(asked.addresses)

    def _wait_for(self, email_id: int) -> Asked | None:
        until = time.monotonic() + 60
        while email_id not in self._book.emails and time.monotonic() < until:
            time.sleep(0.01)
        return self._book.emails.get(email_id)

    def _some(self, prefix: str = "") -> Asked | None:
        with self._book.lock:
            latest = [each for each in list(self._book.emails.values())[-60:] if each.key.startswith(prefix)]
        return self._chance.choice(latest) if latest else None

    def _call(self, statement: str, arguments: Sequence[object] | Mapping[str, object]) -> list[tuple[object, ...]]:
        if self._connection is None:
            self._connection = psycopg2.connect(self._url, connect_timeout=5, options=self._options)
            self._connection.autocommit = True
        begun = time.monotonic()
        with closing(self._connection.cursor()) as cursor:
            cursor.execute(statement, arguments)
            rows = list(cursor.fetchall())
        self._book.took(time.monotonic() - begun)
        return rows

    def _hang_up(self) -> None:
        if self._connection is not None:
            with suppress(psycopg2.Error):
                self._connection.close()
        self._connection = None

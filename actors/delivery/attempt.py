"""An email on its way: rendered, and handed to the relay, one copy after the other.

A copy is for one recipient, or for all of those who see each other.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from actors.content.addresses import AROUND, UndeliverableAddress, envelope_address
from actors.content.attachments import Attachment, with_charset
from actors.content.files import MOST, FileReader, OpenFiles, UnreadFile
from actors.content.mime import UnsendableField
from actors.content.templates import RenderError, RenderTimeout
from actors.delivery import decision
from actors.delivery.composer import NO_FILES, Composer, EmailPayload, Files
from actors.delivery.decision import Judged
from actors.delivery.in_flight import LostClaim
from actors.delivery.lanes import Blocking, Lane
from actors.delivery.report import report_render_failures
from actors.delivery.room import Room
from actors.queue.broker import PostgresBroker
from actors.queue.waiting import wait_for_database
from actors.ruling import Pace, Phase, Ruling, Scope, one_line
from models import attachments, emails, kept_content, undeliverable
from models.database.connections import Database, Limits
from models.emails import ClaimedEmail
from models.extras import StoredAttachment
from models.items import Flaw, Recipient
from models.kept_content import Copy
from models.words import Verdict

#: Seconds that rendering may take in the thread that drives the dialogues, and at the first tries elsewhere: so that
#: templates that take long, or for ever, delay no new one. After the last of them it has all the time there is.
INLINE_SECONDS: Final = 0.02
SECONDS: Final[Mapping[Lane, float]] = {Lane.SIGN: 0.02, Lane.TRIAL: 0.02, Lane.SHORT: 0.25}

#: After which lane comes which.
NEXT_LANE: Final = {Lane.SIGN: Lane.SHORT, Lane.TRIAL: Lane.SHORT, Lane.SHORT: Lane.LONG}

#: How long duepost.recipient may take, which may be the team's own view: for many users at once, and for one.
TOGETHER: Final = Limits(statement=2.0, lock=0.5)
ALONE: Final = Limits(statement=5.0, lock=2.0)


class EmailAttempt:
    """One attempt at a claimed email. One thread at a time has it.

    Args:
        item: it.
        composer: makes copies.
        records: reads and writes under way.
        room: of attachments, in memory.

    Attributes:
        item: it.
        judged: what has come of it so far.
        copies: what was sent and is to be kept, and not noted yet.
        failures: what failed in rendering, by its text.
    """

    def __init__(
        self, item: ClaimedEmail, composer: Composer, records: "Records", room: Room, *, is_kept: bool = False
    ) -> None:
        self.item = item
        self._room = room
        #: The attachments, from when they are read until the copy is made.
        self._files = NO_FILES
        #: Why they cannot be read: so it is for all who are still to go.
        self._unread: UnsendableField | None = None
        self._is_kept = is_kept
        self.copies: list[Copy] = []
        self._composer = composer
        self._records = records
        self.judged: list[Judged] = []
        self.failures: dict[str, RenderError] = {}
        self._to_go = _groups(item)
        #: Users are still to be read: together with those of other emails, and if that takes too long, alone.
        self.is_unread = bool(item.users)
        #: The copy for the next of them, or why there is none; None while it is not made.
        self._copy: EmailPayload | Ruling | None = None
        #: Whom it is for, by the address in its envelope.
        self._addressed: dict[str, Recipient] = {}
        self._lane: Lane | None = None
        #: Users who are to get nothing now, and why.
        self._waiting: Mapping[str, Ruling] = {}
        self._to_note: Judged | None = None

    @property
    def has_route_failed(self) -> bool:
        """Whether the relay, or our settings for it, have failed."""
        return any(each.ruling.scope is Scope.RELAY for each in self.judged)

    @property
    def is_concluded_alone(self) -> bool:
        """No: the results say what has to be written."""
        return False

    @property
    def next_addresses(self) -> tuple[str, ...]:
        """Whom the next copy is for, once its users are read."""
        return (
            tuple(each.address for each in self._to_go[0] if each.address) if self._to_go and not self.is_unread else ()
        )

    def report(self) -> None:
        """Tells of templates that have failed."""
        report_render_failures(self.item, self.failures)

    def advance(self) -> EmailPayload | Blocking | None:
        """What comes next; nothing where each recipient has been attempted, or the relay has failed. Never waits.

        What was returned before has been done meanwhile, or the envelope's rulings have been taken.
        """
        if self.is_unread:
            return Blocking(Lane.READ_ALONE, self._read_alone)
        while self._to_go:
            if self._to_note is not None:
                # Each copy that is out is on disk before the next one goes.
                judged, self._to_note = self._to_note, None
                copies, self.copies = self.copies, []
                return Blocking(Lane.ALONE, partial(self._records.note, self.item, judged, copies))
            if self._copy is None:
                self._compose_at_once()
            if self._copy is None and len(self._files.attachments) < len(self.item.extras.attachments):
                if self._unread is None:
                    return Blocking(self._lane_of_files(), self._read_files)
                self._has_failed(RenderError(self._unread.field, self._unread.reason, None))
            if self._copy is None:
                lane = self._lane or self._first_lane()
                return Blocking(lane, partial(self._compose_in, lane))
            if not isinstance(self._copy, Ruling):
                return self._copy
            self._judge_all(self._copy)
        return None

    def know(self, email: ClaimedEmail) -> None:
        """It has been read: this is the same email, with its recipients."""
        self.item, self._to_go, self.is_unread = email, _groups(email), False

    def refuse(self, ruling: Ruling) -> None:
        """The same came of it for all, before anything was read or made."""
        if self.is_unread:
            users = tuple(Recipient(user, None) for user in self.item.users)
            self.know(self.item._replace(recipients=users, users=()))
        while self._to_go:
            self._judge_all(ruling)

    def keep_waiting(self, rulings: Mapping[str, Ruling]) -> None:
        """These users are to get nothing now."""
        self._waiting = rulings

    def _read_alone(self) -> None:
        """Reads its users without those of other emails, and each without the others where that takes too long."""
        try:
            self.know(self._records.read(self.item))
        except emails.TooSlow as slow:
            users = self.item.users
            if len(users) == 1:
                self.know(emails.with_flaw(self.item, slow.flaw))
            else:
                self.know(self.item._replace(recipients=tuple(map(self._read_user, users)), users=()))

    def _read_files(self) -> None:
        """Reads the attachments, once there is room for them in memory."""
        attachments = self.item.extras.attachments
        try:
            with self._records.reading(self.item) as by_url:
                stored = sum(size_in_base64(each.size) for each in attachments)
                held = self._room.take(stored + by_url.length)
                self._files = Files(self._records.read_files(attachments, by_url), held)
        except UnsendableField as error:
            self._unread = error

    def _lane_of_files(self) -> Lane:
        are_all_stored = all(each.url is None for each in self.item.extras.attachments)
        return Lane.ATTACHMENTS if are_all_stored else Lane.FILES

    def _read_user(self, user: str) -> Recipient:
        one = self.item._replace(users=(user,))
        try:
            [recipient] = self._records.read(one).recipients
        except emails.TooSlow as slow:
            [recipient] = emails.with_flaw(one, slow.flaw).recipients
        return recipient

    def take(self, rulings: Mapping[str, Ruling]) -> None:
        """What the relay has made of the envelope."""
        judged = [Judged(self._addressed[address], ruling) for address, ruling in rulings.items()]
        self.judged += judged
        if self._is_kept:
            self._keep(rulings)
        self._end_copy()
        if any(each.ruling.scope is Scope.RELAY for each in judged):
            self._to_go.clear()
        elif self._to_go:
            [self._to_note] = judged

    def _keep(self, rulings: Mapping[str, Ruling]) -> None:
        """Remembers what the relay has just taken, for each for whom it has."""
        if self._copy is None or isinstance(self._copy, Ruling):
            return
        taken = [address for address, ruling in rulings.items() if ruling.verdict is Verdict.SENT]
        content = _sent(self._copy, rulings)
        self.copies += [Copy(self._addressed[address].user_id, address, content) for address in taken]

    def _judge_all(self, ruling: Ruling) -> None:
        """The same for all whom the next copy was for."""
        self.judged += [Judged(each, ruling) for each in self._to_go[0]]
        self._end_copy()

    def _end_copy(self) -> None:
        self._to_go.popleft()
        self._copy, self._lane, self._files = None, None, NO_FILES

    def _compose_at_once(self) -> None:
        """Makes the next copy where that takes no time; makes none where it does."""
        flaw = self._to_go[0][0].flaw or self.item.flaw
        if flaw is not None:
            self._cannot_be_read(flaw)
            return
        if self._lane is None:
            self._address()
        if self._copy is None and self._lane is None and self._is_made_at_once():
            self._compose(INLINE_SECONDS)

    def _is_made_at_once(self) -> bool:
        return self._composer.is_quick(self.item) and not self._composer.signs

    def _first_lane(self) -> Lane:
        """Where a copy is made that is not made at once."""
        if self._composer.is_quick(self.item):
            return Lane.SIGN
        # Without a template it is the message's size that takes time.
        return Lane.SHORT if self.item.template is None else Lane.TRIAL

    def _address(self) -> None:
        """Whom the next copy can go to; of several, those to whom it cannot are judged, and the others get it."""
        refused: list[Judged] = []
        self._addressed = {}
        for recipient in self._to_go[0]:
            address = self._waiting.get(recipient.user_id or "") or _address_of(recipient)
            if isinstance(address, Ruling):
                refused.append(Judged(recipient, address))
            else:
                self._addressed[address] = recipient
        if not self._addressed:
            self._copy = refused[-1].ruling
            refused.pop()
        self.judged += refused
        self._to_go[0] = tuple(self._addressed.values()) or self._to_go[0][-1:]

    def _compose_in(self, lane: Lane) -> None:
        """Makes the next copy in a thread where others do not wait for it for longer than the lane has it."""
        with self._composer.yielding():
            self._compose(SECONDS.get(lane))
        if self._copy is None:
            self._lane = NEXT_LANE[lane]

    def _compose(self, seconds: float | None) -> None:
        """Makes the next copy, or a ruling; neither where the time is over and more of it may help."""
        email = self.item
        seconds = None if seconds is None or seconds >= self._composer.timeout else seconds
        try:
            self._copy = self._composer.compose(email, self._addressed, seconds, self._files)
            # The message has it now.
            self._files = NO_FILES
        except RenderTimeout as error:
            self._composer.note_slow(email)
            if seconds is not None:
                self._lane = Lane.TRIAL
            else:
                self._has_failed(error)
        except RenderError as error:
            self._has_failed(error)
        except UnsendableField as error:
            self._has_failed(RenderError(error.field, error.reason, None))
        except Exception as error:  # noqa: BLE001 - whatever one email's content does, others flow on
            self._has_failed(RenderError(email.template or "-", type(error).__name__, None))

    def _cannot_be_read(self, flaw: Flaw) -> None:
        self._has_failed(RenderError(flaw.field, flaw.reason, None))
        if flaw.detail and isinstance(self._copy, Ruling):
            # For the database only: it may hold values of a row.
            self._copy = self._copy._replace(reply=f"{self._copy.reply}: {one_line(flaw.detail)}")

    def _has_failed(self, failure: RenderError) -> None:
        self.failures[str(failure)] = failure
        self._copy = Ruling(Verdict.RETRY, Scope.MESSAGE, Phase.RENDER, reply=str(failure), pace=Pace.BROKEN)


def size_in_base64(size: int) -> int:
    """Bytes of a part in base64, with its line ends."""
    return -(-size // 57) * 78


def _sent(copy: EmailPayload, rulings: Mapping[str, Ruling]) -> bytes:
    """What the relay was handed: where it offers SMTPUTF8 that is another content, if addresses are not ASCII."""
    beyond_ascii = [ruling for address, ruling in rulings.items() if not address.isascii()]
    # A relay without SMTPUTF8 is not told of such an address, which is ruled for before the dialogue.
    if copy.international is None or any(ruling.phase is Phase.ADDRESS for ruling in beyond_ascii):
        return copy.content
    return copy.international


def _groups(email: ClaimedEmail) -> deque[tuple[Recipient, ...]]:
    """Who gets a copy together: those who see each other, else each by itself."""
    if email.extras.recipients:
        return deque([email.recipients] if email.recipients else [])
    return deque([(each,) for each in email.recipients])


def _address_of(recipient: Recipient) -> str | Ruling:
    """The address of its envelope, or why it gets nothing, where that is clear without the relay."""
    refusal = decision.refusal_without_asking(recipient)
    if refusal is not None:
        return refusal
    try:
        # Text around a stored address is no reason to drop mail.
        return envelope_address((recipient.address or "").strip(AROUND))
    except UndeliverableAddress as error:
        return Ruling(Verdict.UNDELIVERABLE, Scope.RECIPIENT, Phase.ADDRESS, reply=str(error))


class Records:
    """What attempts read and write while they are under way. Any thread may call it; it may wait for the database.

    Args:
        database: where users are read, and results are noted.
        broker: whose end ends waiting for the database.
        files: reads what emails name by URL; None where nothing is read.
        keep_undeliverable_days: for how many days the content of undeliverable emails is kept.
    """

    def __init__(
        self,
        database: Database,
        broker: PostgresBroker,
        *,
        files: FileReader | None = None,
        keep_undeliverable_days: int,
    ) -> None:
        self._database = database
        self._broker = broker
        self._files = files
        self._keep_undeliverable_days = keep_undeliverable_days

    def read(self, *claimed: ClaimedEmail) -> ClaimedEmail:
        """Reads the users of one claimed email; see `read_all`."""
        [email] = self.read_all(claimed, ALONE)
        return email

    def read_all(self, claimed: Sequence[ClaimedEmail], limits: Limits) -> list[ClaimedEmail]:
        """Reads the users of claimed emails, once the database is there.

        Raises:
            TooSlow: it takes too long, or waits too long for a lock.
        """
        read = partial(emails.read_recipients_in_time, self._database, claimed, limits)
        return wait_for_database(read, self._broker.stopping)

    @contextmanager
    def reading(self, email: ClaimedEmail) -> Iterator[OpenFiles]:
        """Reads what an email names by URL, and remembers what it was; gives nothing where it names nothing.

        Raises:
            UnsendableField: a file is not read; or it is another one than that which somebody may have already.
        """
        by_url = [(place, each.url) for place, each in enumerate(email.extras.attachments) if each.url is not None]
        if not by_url:
            yield OpenFiles((), None, 0.0)
            return
        if self._files is None:
            raise UnsendableField(
                f"attachments[{by_url[0][0]}]", "is to be read at its URL, and DUEPOST_ATTACHMENT_ROOTS is not set"
            )
        most = MOST - sum(each.size for each in email.extras.attachments)
        places = [place for place, _ in by_url]
        try:
            with self._files.reading([url for _, url in by_url], most) as found:
                self._check_same(email, places, [each.sha256 for each in found.found])
                yield found
        except UnreadFile as error:
            raise UnsendableField(f"attachments[{places[error.place]}]", error.reason) from None

    def _check_same(self, email: ClaimedEmail, places: Sequence[int], hashes: Sequence[str]) -> None:
        pin = partial(attachments.pin, self._database, email.id, hashes)
        pinned = wait_for_database(pin, self._broker.stopping)
        for place, digest, before in zip(places, hashes, pinned, strict=True):
            if digest != before:
                raise UnsendableField(
                    f"attachments[{place}]",
                    "its file is another one than that which recipients have, or may have, already",
                )

    def read_files(self, given: Sequence[StoredAttachment], by_url: OpenFiles) -> list[Attachment]:
        """Reads the contents of attachments: those that are stored once the database is there.

        Raises:
            UnsendableField: one of them is not stored any more.
            UnreadFile: the process that has read the others has ended.
        """
        hashes = {each.sha256 for each in given if each.url is None}
        read = partial(attachments.contents, self._database, hashes)
        stored = wait_for_database(read, self._broker.stopping) if hashes else {}
        for place, each in enumerate(given):
            if each.url is None and each.sha256 not in stored:
                raise UnsendableField(f"attachments[{place}]", "its content is not stored any more")
        files = zip(by_url.found, by_url.take(), strict=True)
        found = []
        for each in given:
            if each.url is None:
                content_type, digest, content = each.content_type, each.sha256, stored[each.sha256]
            else:
                file, content = next(files)
                content_type, digest = with_charset(each.content_type, is_utf8=file.is_utf8), file.sha256
            found.append(Attachment(each.filename, content_type, each.cid, digest, content))
        return found

    def note(self, email: ClaimedEmail, judged: Judged, copies: Sequence[Copy] = ()) -> None:
        """Puts one recipient's result on disk while others are still to go, and what was sent where that is kept.

        Raises:
            LostClaim: the row is no longer this worker's.
        """
        result = decision.result(email, judged.recipient, judged.ruling)

        def write() -> bool:
            with self._database.transaction() as cursor:
                if not emails.lock_claimed(cursor, email):
                    return False
                undeliverable.keep(cursor, email, [result], days=self._keep_undeliverable_days)
                kept_content.keep(cursor, email, copies)
                emails.record_outcomes(cursor, email, [result])
                return True

        if not wait_for_database(write, self._broker.stopping):
            raise LostClaim

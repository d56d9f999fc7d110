"""The kit: what a test asks, and does, in its own transaction, committed or not."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from email.message import EmailMessage
from pathlib import Path

from duepost import client
from duepost.handles import Handle
from duepost.testing.items import CRITERIA, Item
from duepost.testing.query import Query, nothing, texts
from duepost.testing.rendering import Recipient, Renderer

#: Whom emails are from that name nobody.
SENDER = "Duepost <duepost@localhost>"

#: Everything that is not finished, as JSON in text: drivers read JSON in different ways.
_PENDING = """
SELECT CAST(to_jsonb(found) AS text) FROM (
    SELECT e.id, 'email' AS channel, e.kind, e.scheduled_at, e.due_at, e.expires_at, e.address, e.template,
           CASE WHEN batch.items IS NULL THEN e.context
                ELSE coalesce(e.context, '{}') || jsonb_build_object('items', batch.items) END AS context,
           e.subject, e.body_text, e.body_html, NULL AS endpoint, NULL AS payload, e.key, e.sender, e.reply_to,
           e.headers, e.state, e.last_error, e.message_id_header, e.date_header, users.ids AS users,
           (SELECT c.address_name FROM duepost.email AS c WHERE c.item_id = e.id) AS address_name, seen.recipients
    FROM duepost.scheduled_email AS e, LATERAL (
        SELECT ARRAY(SELECT u.user_id FROM duepost.scheduled_email_user AS u
                     WHERE u.email_id = e.id AND u.outcome IS NULL ORDER BY u.user_id) AS ids
    ) AS users, LATERAL (
        SELECT jsonb_agg(i.item ORDER BY i.place) AS items FROM duepost.batch_item AS i WHERE i.email_id = e.id
    ) AS batch, LATERAL (
        SELECT coalesce(jsonb_agg(r ORDER BY r.place), '[]') AS recipients
        FROM duepost.email_recipient AS r
        WHERE r.email_id = e.id
    ) AS seen
    UNION ALL
    SELECT m.id, 'message', m.kind, m.scheduled_at, m.due_at, m.expires_at, NULL, NULL,
           NULL,
           NULL, NULL, NULL, m.endpoint, coalesce(batch.items, m.payload), m.key, NULL, NULL,
           NULL, m.state, m.last_error, NULL, NULL, users.ids, NULL, '[]'
    FROM duepost.scheduled_message AS m, LATERAL (
        SELECT ARRAY(SELECT u.user_id FROM duepost.scheduled_email_user AS u
                     WHERE u.email_id = m.id AND u.outcome IS NULL ORDER BY u.user_id) AS ids
    ) AS users, LATERAL (
        SELECT jsonb_agg(i.item ORDER BY i.place) AS items FROM duepost.batch_item AS i WHERE i.email_id = m.id
    ) AS batch
) AS found
ORDER BY id
"""

#: Time passes for what is scheduled: the database's clock stays what it is, and everything else is that much earlier.
_MOVE = """
UPDATE duepost.item
SET scheduled_at = scheduled_at - CAST(:by AS interval), due_at = due_at - CAST(:by AS interval),
    expires_at = expires_at - CAST(:by AS interval), created_at = created_at - CAST(:by AS interval),
    mailbox_full_since = mailbox_full_since - CAST(:by AS interval)
"""

_NOW = "SELECT CAST(to_jsonb(clock_timestamp()) AS text)"

#: How an item ended, for each recipient, as a worker would write it.
_FINISH = """
SELECT duepost.move_to_ledger(ARRAY[CAST(:id AS bigint)], ARRAY(
    SELECT jsonb_populate_record(CAST(NULL AS duepost.attempt_result), result)
    FROM jsonb_array_elements(CAST(CAST(:results AS text) AS jsonb)) AS result
))
"""

#: The guard of an item's kind that says no to it.
_REFUSED_BY = """
SELECT k.guard
FROM duepost.item AS i
JOIN duepost.kind AS k ON k.kind = i.kind
WHERE i.id = :id
  AND CASE
      WHEN k.guard IS NOT NULL
          THEN NOT duepost.ask_guard(k.guard, i.id, duepost.users_to_go(i.id), duepost.context_of(i.id))
      ELSE false
  END
"""

#: Of these addresses, in JSON, those that get nothing of a kind.
_SUPPRESSED = """
SELECT a.address
FROM jsonb_array_elements_text(CAST(CAST(:addresses AS text) AS jsonb)) AS a (address)
WHERE EXISTS (
    SELECT FROM duepost.suppression AS s
    WHERE s.address = duepost.mailbox_key(a.address) AND (s.kind IS NULL OR s.kind = :kind)
      AND (s.until IS NULL OR s.until > now())
)
"""

#: All that comes of scheduling. What the team has set up stays: users, kinds, endpoints, routes.
_CLEAR = """
WITH batch AS (DELETE FROM duepost.batch), in_hand AS (DELETE FROM duepost.in_hand),
    item AS (DELETE FROM duepost.item), email AS (DELETE FROM duepost.email), message AS (DELETE FROM duepost.message),
    app_user AS (DELETE FROM duepost.scheduled_email_user), seen_by AS (DELETE FROM duepost.email_recipient),
    email_key AS (DELETE FROM duepost.email_key),
    undeliverable AS (DELETE FROM duepost.undeliverable_email), delivery AS (DELETE FROM duepost.delivery),
    attachment AS (DELETE FROM duepost.email_attachment), content AS (DELETE FROM duepost.attachment_content),
    file AS (DELETE FROM duepost.email_file),
    kept AS (DELETE FROM duepost.kept_content),
    attempt AS (DELETE FROM duepost.attempt), suppression AS (DELETE FROM duepost.suppression),
    queue AS (DELETE FROM dramatiq.queue)
SELECT 1
"""

#: How an item ends for a recipient: the relay takes it, or is not asked.
_SENT = {"verdict": "sent", "outcome": "sent", "code": 250}
_UNTOLD = {"outcome": "suppressed", "reply": "the address is suppressed"}

_RECIPIENTS = """
SELECT CAST(to_jsonb(r) AS text) FROM duepost.recipient AS r
WHERE r.user_id = ANY (ARRAY(SELECT jsonb_array_elements_text(CAST(CAST(:users AS text) AS jsonb))))
"""


class Kit:
    """Looks into, and plays the worker of, the transaction that a test has open.

    It commits nothing. Its statements are those of the transaction's own connection, so that it sees what is not
    committed; the role has to be the schema's owner, or a superuser, as in a test's database.

    Args:
        handle: what `duepost.schedule_email()` takes: a cursor, or SQLAlchemy's Session or Connection.
        templates: the folder of templates; DUEPOST_TEMPLATES, or `templates`, if it is left out.
        sender: whom emails are from that name nobody.

    Attributes:
        outbox: the emails that `drain()` has sent, oldest first.
        posted: the messages that it has sent, oldest first.
    """

    def __init__(self, handle: Handle, *, templates: Path | str | None = None, sender: str = SENDER) -> None:
        self._handle = handle
        self._renderer = Renderer(templates, sender)
        self._moved = timedelta()
        self.outbox: list[EmailMessage] = []
        self.posted: list[Item] = []

    def scheduled(self, **wanted: object) -> list[Item]:
        """Returns what is scheduled and matches, by id.

        Args:
            **wanted: attributes of `Item`, and `user` for one of its users. Of `context`, `payload` and `headers` only
                the keys that are given have to be there. A function is asked of the value.

        Raises:
            TypeError: an item has no such attribute.
        """
        if unknown := sorted(set(wanted) - set(CRITERIA)):
            raise TypeError(f"{unknown[0]}: an item has no such attribute; it has {', '.join(sorted(CRITERIA))}")
        plain = {name: value for name, value in wanted.items() if not callable(value)}
        asked = {name: value for name, value in wanted.items() if callable(value)}
        return [
            item
            for item, _ in self._pending()
            if item.matches(plain) and all(ask(getattr(item, name)) for name, ask in asked.items())
        ]

    def assert_scheduled(self, *, count: int | None = None, **wanted: object) -> Item:
        """Makes sure that something is scheduled that matches, as `scheduled()` does.

        Args:
            count: how many there have to be; one or more if it is left out.
            **wanted: see `scheduled()`.

        Returns:
            the first one, by id.

        Raises:
            AssertionError: there is none, or another number; it lists what is there.
        """
        found = self.scheduled(**wanted)
        if not found or (count is not None and len(found) != count):
            expected = "something" if count is None else count
            raise AssertionError(
                f"{_described(wanted)}: expected {expected}, {len(found)} found\n{self._listed('scheduled')}"
            )
        return found[0]

    def assert_not_scheduled(self, **wanted: object) -> None:
        """Makes sure that nothing is scheduled that matches, as `scheduled()` does.

        Raises:
            AssertionError: there is something; it lists what is there.
        """
        if found := self.scheduled(**wanted):
            raise AssertionError(
                f"{_described(wanted)}: expected nothing, {len(found)} found\n{self._listed('scheduled')}"
            )

    def now(self) -> datetime:
        """What time it is for what is scheduled: the database's, and what the test has moved it by."""
        [text] = client.run(self._handle, Query(_NOW, texts))
        return datetime.fromisoformat(json.loads(text)) + self._moved

    def advance(self, by: timedelta) -> None:
        """Lets time pass: what is scheduled for then is due.

        The database's own `now()` stays what it is; the times of all that is pending are moved, and are told as if they
        were not. What is scheduled from then on is scheduled by the database's time.
        """
        client.run(self._handle, Query(_MOVE + "RETURNING id", nothing, {"by": by}))
        self._moved += by

    def advance_to(self, moment: datetime) -> None:
        """Lets time pass until a moment.

        Raises:
            ValueError: the moment has no time zone.
        """
        if moment.utcoffset() is None:
            raise ValueError("moment: needs a time zone, such as datetime.now(timezone.utc)")
        self.advance(moment - self.now())

    def drain(self, advance: timedelta | None = None) -> list[EmailMessage]:
        """Sends what is due, without a relay: renders it as a worker does, and moves it to the ledger.

        The guard of its kind is asked, and suppressed addresses get nothing. Quiet hours, caps and rates are for
        workers.

        Args:
            advance: how much time passes before.

        Returns:
            the emails, a copy for each user, in the order of their due times; they are in `outbox` too. What messages
            would have been sent is in `posted`.

        Raises:
            RenderError: a template is missing or fails.
            ValueError: an email's content makes no message.
            Exception: the driver's own, where a guard fails.
        """
        if advance is not None:
            self.advance(advance)
        now = self.now()
        sent: list[EmailMessage] = []
        for item, row in sorted(self._pending(), key=lambda each: (each[0].due_at, each[0].id)):
            if item.due_at > now or item.state == "unknown":
                continue
            if item.expires_at is not None and item.expires_at <= now:
                self._finish(item, [{"outcome": "expired"}])
            elif refused_by := client.run(self._handle, Query(_REFUSED_BY, texts, {"id": item.id})):
                self._finish(item, [{"outcome": "obsolete", "reply": f"the guard {refused_by[0]} said no"}])
            elif item.channel == "message":
                self._finish(item, [{"verdict": "sent", "outcome": "sent"}])
                self.posted.append(item)
            else:
                sent += self._send(item, row)
        self.outbox += sent
        return sent

    def clear(self) -> None:
        """Removes all that was scheduled or sent, keys and ledger included: for a test that has committed."""
        client.run(self._handle, Query(_CLEAR, nothing))

    def _send(self, item: Item, row: Mapping[str, object]) -> list[EmailMessage]:
        if item.addresses or item.cc or item.bcc:
            to_go = (*item.addresses, *item.cc, *item.bcc)
            suppressed = self._suppressed(to_go, item.kind)
            self._finish(item, [{"address": each, **(_UNTOLD if each in suppressed else _SENT)} for each in to_go])
            return [self._renderer.message(row, Recipient())] if suppressed != set(to_go) else []
        results: list[dict[str, object]] = []
        sent: list[EmailMessage] = []
        recipients = self._recipients(item, row)
        suppressed = self._suppressed([each.address for each in recipients if each.address], item.kind)
        for recipient in recipients:
            result: dict[str, object] = {"user_id": recipient.user_id, "address": recipient.address}
            if not recipient.active:
                result |= {"address": None, "outcome": "cleared"}
            elif recipient.address is None:
                result |= {
                    "verdict": "undeliverable",
                    "outcome": "undeliverable",
                    "reply": "no such user, or no address",
                }
            elif recipient.address in suppressed:
                result |= _UNTOLD
            else:
                sent.append(self._renderer.message(row, recipient))
                result |= _SENT
            results.append(result)
        self._finish(item, results)
        return sent

    def _suppressed(self, addresses: Sequence[str], kind: str) -> set[str]:
        asked = {"addresses": json.dumps(list(addresses)), "kind": kind}
        return set(client.run(self._handle, Query(_SUPPRESSED, texts, asked)))

    def _recipients(self, item: Item, row: Mapping[str, object]) -> list[Recipient]:
        if item.address is not None:
            name = row["address_name"]
            return [Recipient(address=item.address, name=None if name is None else str(name))]
        known = {str(row["user_id"]): row for row in self._read(_RECIPIENTS, {"users": json.dumps(list(item.users))})}
        return [Recipient.of_row(known[user]) if user in known else Recipient(user_id=user) for user in item.users]

    def _finish(self, item: Item, results: Sequence[Mapping[str, object]]) -> None:
        written = json.dumps([{"email_id": item.id, **result} for result in results])
        client.run(self._handle, Query(_FINISH, nothing, {"id": item.id, "results": written}))

    def _pending(self) -> Iterator[tuple[Item, Mapping[str, object]]]:
        for row in self._read(_PENDING):
            yield _item(row, self._moved), row

    def _read(self, sql: str, parameters: Mapping[str, object] | None = None) -> list[Mapping[str, object]]:
        return [json.loads(text) for text in client.run(self._handle, Query(sql, texts, parameters or {}))]

    def _listed(self, what: str) -> str:
        there = [f"  {item}" for item, _ in self._pending()]
        return "\n".join([f"What is {what}:" if there else f"Nothing is {what}.", *there])


def _described(wanted: Mapping[str, object]) -> str:
    return "an item with " + ", ".join(f"{name}={value!r}" for name, value in wanted.items()) if wanted else "an item"


def _item(row: Mapping[str, object], moved: timedelta) -> Item:
    """What a row says, by the clock that the test has moved."""
    read: dict[str, Callable[[object], object]] = dict.fromkeys(
        ("scheduled_at", "due_at", "expires_at"),
        lambda value: None if value is None else datetime.fromisoformat(str(value)) + moved,
    )
    seen = {
        field: [each["address"] for each in _seen(row) if each["field"] == header] for field, header in _FIELDS.items()
    }
    known = {**row, **seen}
    names = [name for name in CRITERIA if name != "user"]
    return Item(**{name: read[name](known[name]) if name in read else known[name] for name in names})  # type: ignore[arg-type]


#: Arguments that name recipients who see each other, and the header that each fills.
_FIELDS = {"addresses": "to", "cc": "cc", "bcc": "bcc"}


def _seen(row: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The recipients who see each other, and are still to get it."""
    found = row["recipients"]
    return [each for each in found if each["outcome"] is None] if isinstance(found, list) else []

"""`duepost endpoint test`: one message that is no item, sent as a worker sends it; nothing is stored."""

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from actors.channels.channel import converse
from actors.channels.http.channel import HttpChannel
from actors.channels.http.resolver import Resolver
from actors.content.formats.registry import FORMATS
from actors.delivery.functions import try_function
from actors.delivery.payloads import Payloads
from actors.ruling import Phase, Ruling, Scope
from actors.settings import settings
from models import endpoints, scheduled_messages
from models.database.connections import Database
from models.scheduled_messages import ClaimedMessage
from models.words import Verdict

#: What people read of a message that is a test.
TEXT = "A test by `duepost endpoint test {}`: nothing has happened, and nothing follows."


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a test.

    Attributes:
        endpoint: its name.
        ruling: what a worker would have made of it.
        seconds: how long it took.
        wire_id: what the receiver has known the message by.
        function: what was called; None where a request was made.
        role: as whom.
    """

    endpoint: str
    ruling: Ruling
    seconds: float
    wire_id: str
    function: str | None = None
    role: str | None = None

    @property
    def is_taken(self) -> bool:
        """Whether the endpoint has taken it."""
        return self.ruling.verdict is Verdict.SENT

    @property
    def status(self) -> int | None:
        """The status of the answer, if one came."""
        return self.ruling.code

    def sentence(self) -> str:
        """All of it in words."""
        took = f"after {self.seconds:.2f} s"
        if self.function is not None and self.is_taken:
            called = f"{self.function} as {self.role}"
            return f"endpoint {self.endpoint} took the test: {called}, {took}; all of it is rolled back"
        if self.is_taken:
            return f"endpoint {self.endpoint} took the test: {self._verdict()}, {took}"
        if self.ruling.verdict is Verdict.UNKNOWN:
            return f"nobody knows whether endpoint {self.endpoint} took the test: {self._verdict()}, {took}"
        return f"endpoint {self.endpoint} did not take the test: {self._verdict()}, {took}"

    def _verdict(self) -> str:
        ruling = self.ruling
        where = f"status {ruling.code}" if ruling.code is not None else f"at {ruling.phase}"
        return f"{ruling.verdict}, {where}" + (f" ({ruling.reply})" if ruling.reply else "")


class _Given:
    """A permit: a command has no worker's session to prove."""

    def is_given(self) -> bool:
        """It is."""
        return True

    def may_come(self) -> bool:
        """It is there."""
        return True


def try_endpoint(database: Database, name: str, payload: str | None = None) -> Trial | None:
    """Sends one message to an endpoint now, whether it is disabled or not. None where there is none of this name.

    The request is guarded, made and judged by what workers do it with. A function is called in a transaction that is
    rolled back.

    Args:
        database: read as somebody who may read secrets: a worker's role, or the schema's owner.
        name: the endpoint's.
        payload: JSON; without it one that says that it is a test.
    """
    wire_id = f"test_{uuid4().hex}"
    message = scheduled_messages.trial(database, name, wire_id, payload)
    if message is None:
        return None
    if payload is None:
        message = message._replace(payload=_usual_payload(message))
    begun_at = time.monotonic()
    if message.function is not None:
        known = endpoints.function(database, message.function)
        ruling = _function_error(message.function, known) or try_function(database, message)
        return Trial(name, ruling, time.monotonic() - begun_at, wire_id, message.function, known.role)
    ruling = _requested(message)
    return Trial(name, ruling, time.monotonic() - begun_at, wire_id)


def _usual_payload(message: ClaimedMessage) -> str:
    text, made_at = TEXT.format(message.endpoint), datetime.now(UTC).isoformat(timespec="seconds")
    writer = FORMATS.get(message.format or "")
    if writer is None:
        return json.dumps({"type": "duepost.test", "text": text})
    options = json.loads(message.options or "{}")
    return json.dumps(writer.trial(options, f"{text} {made_at}"), ensure_ascii=False)


def _requested(message: ClaimedMessage) -> Ruling:
    payload = Payloads(Resolver()).make(message)
    if isinstance(payload, Ruling):
        return payload
    channel = HttpChannel(_Given(), settings().http_certificates)
    session = channel.connect()
    if isinstance(session, Ruling):
        return session
    try:
        rulings = converse(session.deliver(payload), session.fileno)
    finally:
        session.close()
        channel.close()
    return rulings[payload.endpoint] if rulings else Ruling(Verdict.UNKNOWN, Scope.MESSAGE, Phase.RESPONSE)


def _function_error(name: str, known: endpoints.KnownFunction) -> Ruling | None:
    """Why a function is not called; None where it is."""
    if not known.exists:
        what = "there is no such function any more"
    elif not known.fits:
        what = "it is no function that takes (bigint, jsonb)"
    elif not known.may_be_owned:
        mend = f"ALTER FUNCTION {name} OWNER TO {known.schema_owner}"
        what = f"it belongs to {known.owner}, and whoever owns it acts with the rights of the workers: {mend}"
    elif not known.may_be_called:
        mend = f"GRANT EXECUTE ON FUNCTION {name} TO duepost_worker, and USAGE on its schema"
        what = f"{known.role} may not call it: {mend}"
    else:
        return None
    return Ruling(Verdict.RETRY, Scope.RELAY, Phase.ENDPOINT, reply=f"{name}: {what}")

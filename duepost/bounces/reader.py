"""Concludes what came back: which email it is about, what follows, once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from actors.alerts import alerts
from actors.content.addresses import UndeliverableAddress, envelope_address
from actors.content.tokens import ReturnPath, Tokens
from duepost.bounces.meaning import Effect, Meaning, meaning_of
from duepost.bounces.reports import Came, Sort, Status, read
from models import bounces
from models.bounces import Noted, Sent
from models.database.connections import Database

#: Days after which nothing that comes back is believed any more.
BELIEVED_FOR: Final = 30


@dataclass(slots=True)
class Tally:
    """What a run has found, by what followed.

    Attributes:
        messages: how many emails were read.
        effects: how often what followed, for each recipient.
    """

    messages: int = 0
    effects: Counter[str] = field(default_factory=Counter)


class Reader:
    """Reads emails that came back, and does what follows.

    Args:
        database: where emails, recipients and suppressions are.
        tokens: opens the tokens of return paths.
        bounce_address: DUEPOST_BOUNCE_ADDRESS.
    """

    def __init__(self, database: Database, tokens: Tokens, bounce_address: str) -> None:
        self._database = database
        self._tokens = tokens
        self._bounce_address = bounce_address
        self.tally = Tally()

    def take(self, raw: bytes, source_id: str) -> None:
        """One email that came back: all of it is concluded when this returns.

        Args:
            raw: as it came.
            source_id: what it is called in its mailbox: the same is concluded once.

        Raises:
            DatabaseUnreachable: nothing is concluded, or not all: it can be taken again.
        """
        came = read(raw)
        self.tally.messages += 1
        if came.sort is Sort.ANSWER:
            self._count(Effect.NOTHING)
            return
        if came.sort is Sort.UNREADABLE:
            self._note(Noted("mailbox", source_id, event="unreadable", effect="unreadable", reply=came.subject))
            return
        paths = came.to if came.sort is Sort.STATUS else (*came.reported_from, *came.to)
        path = self._path_of(paths)
        known = [] if path is None else self._sent(path)
        if path is None or not known:
            self._note(Noted("mailbox", source_id, event=came.feedback or "status", effect="unbelieved"))
            return
        if came.sort is Sort.COMPLAINT:
            self._complaint(came, known)
        else:
            for status in came.statuses:
                self._status(status, known)

    def _path_of(self, candidates: Iterable[str]) -> ReturnPath | None:
        """The one return path of ours among these; None where there is none, or they differ."""
        found = {path for each in candidates if (path := self._tokens.return_path_in(each, self._bounce_address))}
        return found.pop() if len(found) == 1 else None

    def _sent(self, path: ReturnPath) -> list[Sent]:
        """Whom the email of a return path went to lately: the one that the token names, or all who see each other."""
        known = bounces.sent(self._database, path.email_id, BELIEVED_FOR)
        return [each for each in known if path.is_for(key_of(each.address))]

    def _status(self, status: Status, known: list[Sent]) -> None:
        named = {key_of(address) for address in status.addresses}
        about = next((each for each in known if key_of(each.address) in named), None)
        meaning = meaning_of(status)
        if about is None and len(known) == 1:
            # Somebody forwards it to where it does not arrive: the address that we know may be well.
            about = known[0]
            if meaning.effect is Effect.SUPPRESSED:
                meaning = meaning._replace(effect=Effect.FAILED)
        if about is None:
            self._count("unbelieved")
            return
        if meaning.effect is Effect.NOTHING:
            self._count(Effect.NOTHING)
            return
        self._tell(about, meaning, status.action)

    def _tell(self, about: Sent, meaning: Meaning, event: str) -> None:
        noted = _noted(about, event, str(meaning.effect))
        is_new = self._note(replace(noted, enhanced_code=meaning.enhanced_code, reply=meaning.reply))
        if is_new and meaning.effect is Effect.ABOUT_US:
            alerts.bounced_about_us(about.email_id, about.kind, meaning.enhanced_code, about.route)

    def _complaint(self, came: Came, known: list[Sent]) -> None:
        """Who complains gets no more of the kind, where one can unsubscribe from it; else nothing at all."""
        if came.feedback not in {"abuse", "opt-out", "fraud"} or len(known) != 1:
            self._count(Effect.NOTHING)
            return
        [about] = known
        scope = about.kind if about.is_unsubscribable else None
        self._note(replace(_noted(about, came.feedback, "suppressed"), scope=scope))

    def _note(self, noted: Noted) -> bool:
        is_new = bounces.note(self._database, noted)
        self._count(noted.effect if is_new else "repeated")
        return is_new

    def _count(self, effect: str) -> None:
        self.tally.effects[str(effect)] += 1


def key_of(address: str) -> str:
    """What two spellings of an address have in common, as far as an envelope has them."""
    try:
        return envelope_address(address.strip()).lower()
    except UndeliverableAddress:
        return address.strip().lower()


def described(tally: Tally) -> Mapping[str, int]:
    """What a run has found, in the order in which it is told."""
    order = ("suppressed", "failed", "about_us", "nothing", "repeated", "unbelieved", "unreadable")
    return {"messages": tally.messages, **{each: tally.effects[each] for each in order}}


def _noted(about: Sent, event: str, effect: str) -> Noted:
    """What came back of an email that is known, and what follows."""
    return Noted("mailbox", None, about.email_id, about.kind, about.address, event, effect)

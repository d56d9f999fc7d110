"""Concludes what came back to a mailbox: which email it is about, by a token of ours; what follows, once."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from actors.content.tokens import ReturnPath, Tokens
from duepost.bounces.conclusions import BELIEVED_FOR, Conclusions, key_of
from duepost.bounces.reports import Came, Sort, read
from models import bounces
from models.bounces import Sent
from models.database.connections import Database


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
        self._conclusions = Conclusions(database, "mailbox")
        self.tally = Tally(effects=self._conclusions.effects)

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
            self._conclusions.nothing()
            return
        if came.sort is Sort.UNREADABLE:
            self._conclusions.unreadable(source_id, came.subject)
            return
        path = only_path(self._tokens, self._bounce_address, self._paths(came))
        known = [] if path is None else sent(self._database, path)
        if not known:
            self._conclusions.unbelieved(came.feedback or "status", source_id)
        elif came.sort is Sort.COMPLAINT:
            self._conclusions.complaint(came.feedback, known)
        else:
            for status in came.statuses:
                self._conclusions.status(status, known)

    @staticmethod
    def _paths(came: Came) -> Iterable[str]:
        return came.to if came.sort is Sort.STATUS else (*came.reported_from, *came.to)


def only_path(tokens: Tokens, bounce_address: str, candidates: Iterable[str]) -> ReturnPath | None:
    """The one return path of ours among these; None where there is none, or they differ."""
    found = {path for each in candidates if (path := tokens.return_path_in(each, bounce_address))}
    return found.pop() if len(found) == 1 else None


def sent(database: Database, path: ReturnPath) -> list[Sent]:
    """Whom the email of a return path went to lately: the one that the token names, or all who see each other."""
    known = bounces.sent(database, path.email_id, BELIEVED_FOR)
    return [each for each in known if path.is_for(key_of(each.address))]


def described(tally: Tally) -> Mapping[str, int]:
    """What a run has found, in the order in which it is told."""
    order = ("suppressed", "failed", "about_us", "nothing", "repeated", "unbelieved", "unreadable")
    return {"messages": tally.messages, **{each: tally.effects[each] for each in order}}

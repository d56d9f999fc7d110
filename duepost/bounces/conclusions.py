"""What follows of one report, of a mailbox or of a provider's webhook alike: once, and with what is noted of it."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final

from actors.alerts import alerts
from actors.content.addresses import UndeliverableAddress, envelope_address
from duepost.bounces.meaning import Effect, Meaning, meaning_of
from duepost.bounces.reports import Status
from models import bounces
from models.bounces import Noted, Sent
from models.database.connections import Database

#: Days after which nothing that comes back is believed any more.
BELIEVED_FOR: Final = 30

#: Complaints that are meant (RFC 5965 section 7.3); of others nothing follows, as of `not-spam`.
COMPLAINTS: Final = frozenset({"abuse", "opt-out", "fraud"})


class Conclusions:
    """Draws what follows of what comes back at one place, and counts it.

    Args:
        database: where emails, recipients and suppressions are.
        source: the place: `mailbox`, or a provider.
    """

    def __init__(self, database: Database, source: str) -> None:
        self._database = database
        self._source = source
        #: How often what followed, for each recipient.
        self.effects: Counter[str] = Counter()

    def status(
        self, status: Status, known: Sequence[Sent], source_id: str | None = None, token: str | None = None
    ) -> None:
        """What a report says of one recipient of an email that went to these.

        Raises:
            DatabaseUnreachable: nothing is concluded.
        """
        named = {key_of(address) for address in status.addresses}
        about = next((each for each in known if key_of(each.address) in named), None)
        meaning = meaning_of(status)
        if about is None and len(known) == 1:
            # Somebody forwards it to where it does not arrive: the address that we know may be well.
            about = known[0]
            if meaning.effect is Effect.SUPPRESSED:
                meaning = meaning._replace(effect=Effect.FAILED)
        if meaning.effect is Effect.NOTHING and about is not None:
            self.nothing(token)
        elif about is None and source_id is None:
            self._count("unbelieved")
        elif about is None:
            self.unbelieved(status.action, source_id, token)
        else:
            self._tell(about, meaning, self._noted(about, status.action, str(meaning.effect), source_id, token))

    def complaint(
        self, feedback: str, known: Sequence[Sent], addresses: Collection[str] = (), source_id: str | None = None,
        token: str | None = None,
    ) -> None:  # fmt: skip
        """Who complains gets no more of the kind, where one can unsubscribe from it; else nothing at all.

        Args:
            feedback: what sort of complaint it is (RFC 5965).
            known: whom the email went to.
            addresses: who complains, where that is told; else it is believed of an only recipient.
            source_id: what it is called where it came in.
            token: of a signature that counts once.

        Raises:
            DatabaseUnreachable: nothing is concluded.
        """
        named = {key_of(address) for address in addresses}
        who = [each for each in known if key_of(each.address) in named] or known
        if feedback not in COMPLAINTS or len(who) != 1:
            self.nothing(token)
            return
        [about] = who
        scope = about.kind if about.is_unsubscribable else None
        self.note(replace(self._noted(about, feedback, "suppressed", source_id, token), scope=scope))

    def unbelieved(self, event: str, source_id: str | None, token: str | None = None) -> None:
        """It is about no email of ours, as far as that is known."""
        self.note(Noted(self._source, source_id, event=event, effect="unbelieved", token=token))

    def unreadable(self, source_id: str | None, reply: str, token: str | None = None) -> None:
        """It cannot be read; `reply` is what people get to see of it."""
        self.note(Noted(self._source, source_id, event="unreadable", effect="unreadable", reply=reply, token=token))

    def nothing(self, token: str | None = None) -> None:
        """Nothing has to be known of it; a token is used up all the same."""
        is_new = token is None or bounces.use_token(self._database, self._source, token)
        self._count(str(Effect.NOTHING) if is_new else "repeated")

    def note(self, noted: Noted) -> bool:
        """Notes it, with what follows, in one transaction; False where it was known."""
        is_new = bounces.note(self._database, noted)
        self._count(noted.effect if is_new else "repeated")
        return is_new

    def _noted(self, about: Sent, event: str, effect: str, source_id: str | None, token: str | None) -> Noted:
        return Noted(self._source, source_id, about.email_id, about.kind, about.address, event, effect, token=token)

    def _tell(self, about: Sent, meaning: Meaning, noted: Noted) -> None:
        is_new = self.note(replace(noted, enhanced_code=meaning.enhanced_code, reply=meaning.reply))
        if is_new and meaning.effect is Effect.ABOUT_US:
            alerts.bounced_about_us(about.email_id, about.kind, meaning.enhanced_code, about.route)

    def _count(self, effect: str) -> None:
        self.effects[effect] += 1


def key_of(address: str) -> str:
    """What two spellings of an address have in common, as far as an envelope has them."""
    try:
        return envelope_address(address.strip()).lower()
    except UndeliverableAddress:
        return address.strip().lower()

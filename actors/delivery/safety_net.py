"""The safety net: when everybody is refused with the same words, it is not the recipients' fault.

No table of verdicts knows every relay's words for "you may not send". Pure: facts in, facts out.
"""

from collections.abc import Collection
from typing import Final

#: Recipients in a row, refused with the same words, that are no accident.
IN_A_ROW: Final = 10

#: The same where they are of this many different domains: no two of them share a mail server's opinion.
DOMAINS_IN_A_ROW: Final = 5

#: The same where the code says that the address is dead: a list may well hold some dead ones in a row.
DEAD_IN_A_ROW: Final = 50


def is_everybody_refused(addresses: Collection[str], *, says_dead: bool) -> bool:
    """Whether these refusals, alike and in a row, are about us.

    Args:
        addresses: who was refused with the same words, with nobody accepted in between.
        says_dead: whether the code is one for addresses that will never work.
    """
    recipients = {address.lower() for address in addresses}
    if says_dead:
        return len(recipients) >= DEAD_IN_A_ROW
    domains = {address.rpartition("@")[2] for address in recipients}
    return len(recipients) >= IN_A_ROW or len(domains) >= DOMAINS_IN_A_ROW

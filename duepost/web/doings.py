"""What can be done to items, in words: which to which."""

from collections.abc import Mapping, Sequence

from duepost.operations import Doing

#: What can be done to items, as buttons say it.
WORDS: Mapping[str, str] = {
    Doing.RETRY: "Retry now",
    Doing.RESCHEDULE: "Reschedule",
    Doing.CLEAR: "Clear",
    Doing.RESOLVE_SENT: "Resolve: it arrived",
    Doing.RESOLVE_RESEND: "Resolve: send once more",
    Doing.RESOLVE_DROP: "Resolve: drop",
    Doing.REOPEN: "Reopen",
}

#: What each means, before it is done.
MEANINGS: Mapping[str, str] = {
    Doing.RETRY: "They are due at once, without waiting for their pause.",
    Doing.RESCHEDULE: "They are due at another time.",
    Doing.CLEAR: "They are cancelled: the ledger says cleared, and nobody gets them.",
    Doing.RESOLVE_SENT: "They arrived: the ledger says sent.",
    Doing.RESOLVE_RESEND: "They are sent once more. Who has got it already may get it twice.",
    Doing.RESOLVE_DROP: "They are never sent again: the ledger says cleared.",
    Doing.REOPEN: "They are scheduled once more, for those who could not be reached, with the same Message-ID.",
    "pause": "Nothing is enqueued or claimed; scheduling and clearing go on, and what is being sent is finished.",
    "probe": "One email looks at once whether the relay takes mail again; nothing else leaves until it does.",
    "resume": "What is due leaves with the next tick, the oldest first.",
}

#: What a cause's state lets one do to all of its items.
OF_STATE: Mapping[str, Sequence[str]] = {
    "retrying": (Doing.RETRY, Doing.CLEAR),
    "unknown": (Doing.RESOLVE_SENT, Doing.RESOLVE_RESEND, Doing.RESOLVE_DROP),
    "undeliverable": (Doing.REOPEN,),
}

#: What can be done to an item that is not finished.
OF_PENDING: Mapping[str, Sequence[str]] = {
    "scheduled": (Doing.RETRY, Doing.RESCHEDULE, Doing.CLEAR),
    "queued": (Doing.CLEAR,),
    "sending": (),
    "unknown": (Doing.RESOLVE_SENT, Doing.RESOLVE_RESEND, Doing.RESOLVE_DROP),
}


def group_actions(state: str) -> list[tuple[str, str]]:
    """What can be done to all items of a cause, with its words."""
    return [(str(each), WORDS[each]) for each in OF_STATE.get(state, ())]


def item_actions(state: str | None, outcomes: Mapping[str, int]) -> list[tuple[str, str]]:
    """What can be done to one item, with its words."""
    if state is None:
        return group_actions("undeliverable") if "undeliverable" in outcomes else []
    return [(str(each), WORDS[each]) for each in OF_PENDING[state]]

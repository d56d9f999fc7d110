"""Before content is started: a worker that cannot prove that it lives starts none."""

from collections.abc import Callable
from typing import Final

from actors.channels.channel import Dialogue, Event, Permit, Wait

#: Seconds between two questions whether this worker may start content, while it may not.
PERMIT_INTERVAL: Final = 0.1


def wait_for_permit(permit: Permit, is_quiet: Callable[[], bool], peer: str) -> Dialogue[str | None]:
    """Waits until content may start.

    Args:
        permit: asked again and again.
        is_quiet: whether the peer still waits for the content.
        peer: what it is called, such as "the relay".

    Returns:
        None once it may start; or why it is not to be.
    """
    while not permit.is_given():
        if not permit.may_come():
            return "this worker could not prove its database session"
        yield Wait(Event.READ, PERMIT_INTERVAL)
        if not is_quiet():
            return f"{peer} spoke out of turn, or hung up"
    return None

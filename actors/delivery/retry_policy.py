"""When to try again. Plain arithmetic: no clock, no connection."""

import random

from actors.ruling import Pace

#: Seconds before the second attempt; doubled for each further one.
FIRST_PAUSE = 15.0

#: The longest pause between attempts, in seconds.
LONGEST_PAUSE = 3600.0

#: The share by which a pause is shortened or lengthened, so that what failed together does not come back together.
JITTER = 0.2

#: The shortest pause for each reason to wait, in seconds. A greylisting relay wants at least five minutes; a full
#: mailbox is not emptied sooner; a broken template waits for a person.
SHORTEST: dict[Pace, float] = {
    Pace.NORMAL: 0.0,
    Pace.GREYLISTED: 300.0,
    Pace.MAILBOX_FULL: 3600.0,
    Pace.BROKEN: 300.0,
}

#: Seconds, about, before the next attempt at an email when the relay has had too much of us, doubled for each further
#: one, and the most: the whole route pauses, so an email hardly loses its place; and none is at the head for ever.
FIRST_THROTTLED, LONGEST_THROTTLED = 1.0, 60.0

#: Seconds for which a full mailbox is retried before the email is undeliverable: five days.
MAILBOX_FULL_FOR = 5 * 86_400.0

#: Seconds until the first probe of an open circuit; doubled with each that fails.
FIRST_PROBE = 5.0

#: The longest pause between two probes, in seconds.
LONGEST_PROBE = 300.0


def retry_pause(attempts: int, pace: Pace, rng: random.Random | None = None) -> float:
    """Seconds until the next attempt: 15 s doubling to 1 h, with ±20 % of jitter.

    Args:
        attempts: how many attempts there have been, this one included.
        pace: why it is retried. Its shortest pause is a lower bound that jitter does not undercut.
        rng: where the jitter comes from.
    """
    pause = FIRST_PAUSE * 2.0 ** min(attempts - 1, 20)
    if pace is Pace.BROKEN:
        pause = max(pause, SHORTEST[pace] * 2.0 ** min(attempts - 1, 20))
    factor = (rng or random).uniform(1 - JITTER, 1 + JITTER)
    return max(min(pause, LONGEST_PAUSE) * factor, SHORTEST[pace])


def throttled_pause(attempts: int, rng: random.Random | None = None) -> float:
    """Seconds until the next attempt at an email of which the relay took no more for now; arguments as above."""
    factor = (rng or random).uniform(1 - JITTER, 1 + JITTER)
    return min(FIRST_THROTTLED * 2.0 ** min(attempts - 1, 20), LONGEST_THROTTLED) * factor

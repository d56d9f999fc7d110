"""Delivers: the life of an item from its claim to its ledger row, whatever the channel.

To be read in the order of an item's life:

1. claim: `email_work.py` (`EmailWork.claim`), `in_flight.py`;
2. attempt: `attempt.py`, with `composer.py` (the one module here that knows what SMTP is handed); driven by
   `dispatcher.py` and `event_loop.py` over the sessions of a channel;
3. decide: `decision.py`, `retry_policy.py`, `safety_net.py`: pure, facts in and facts out;
4. conclude: `conclude.py`, one transaction, with `route.py` for what workers know of the relay;
5. alerts: `report.py`, once it is committed.

Beside it: `rescue.py` for what dead workers held, `permit.py`, `fairness.py`.

May import `channels` (the seam, `channels/channel.py`), `content`, `queue`, `liveness`, `alerts`. Threads: one drives
all dialogues and never blocks; claims, reads, rendering, connecting and conclusions run in pools (`lanes.py`). Who owns
what, and which lock protects it: docs/threads.md.
"""

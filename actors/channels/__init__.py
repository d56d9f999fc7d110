"""Ways to deliver: a transport and a verdict table each, in a folder of its own.

A channel knows no database, and nothing of what an item is: it gets payloads and gives a ruling for each recipient.
It imports no other room of `actors`. `channel.py` is the seam: what delivery knows of a channel; `stream.py`, `tls.py`,
`failures.py` and `starting.py` are what channels over sockets have in common. A session's dialogue
runs in the thread that drives dialogues, and yields what it waits for; `connect`, `close` and `is_full` may block, and
run in the pool.
"""

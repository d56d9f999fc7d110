"""Ways to deliver: a transport and a verdict table each, in a folder of its own.

A channel knows no database, and nothing of what an item is: it gets payloads and gives a ruling for each recipient.
It imports no other room of `actors`. A session's dialogue runs in the event loop's thread; `connect` runs in the pool.
"""

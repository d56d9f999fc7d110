"""One attempt, whatever the channel: dispatcher, event loop, attempt, decision, conclusion, retry policy, rescue.

May import `channels`, `content`, `queue`, `liveness`, `alerts`. The event loop runs in one thread at a time and never
blocks; claims, reads, rendering, connecting and conclusions each run in a thread pool of their own.
"""

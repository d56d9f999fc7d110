"""Who works and who has died: worker sessions, process identity, limits on time and memory.

Imports no other room of `actors`. The session has a thread of its own, and so has the watchdog.
"""

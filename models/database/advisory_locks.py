"""The register of advisory locks: the keys of each, and why it is taken.

Any login may take an advisory lock, so nothing of this release depends on one. Processes of release 0.1 know each other
by these two, and may run beside those of this release. `models/functions/sessions.sql` has the first key, too.
"""

#: With a worker's id: taken by its session. Workers of 0.1 take a worker whose lock is free for dead.
WORKER = 1_148_543_344

#: With `WATCH`: taken by the session of the watch that acts. A watch of 0.1 that does not get it stands by.
ROLE = 1_148_543_345

#: The only role there is.
WATCH = 2

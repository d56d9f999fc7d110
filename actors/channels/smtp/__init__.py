"""The SMTP client: it hands one email to a relay and says, for each recipient, what came of it.

`channel.py` is the way in: it opens a `session.py`. Below them: `connecting.py` (which blocks); `wire.py` the socket,
which never does; `greeting.py` and `transaction.py` the dialogue, as state machines (`dialogue.py`) without a socket;
`replies.py` the parser; `verdicts.py` what outcomes mean.
"""

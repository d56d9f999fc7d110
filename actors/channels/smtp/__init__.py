"""The SMTP client: it hands one email to a relay and says, for each recipient, what came of it.

`connection.py` is the way in. Below it: `wire.py` the socket; `greeting.py` and `transaction.py` the
dialogue, as state machines (`dialogue.py`) without a socket; `replies.py` the parser;
`verdicts.py` what outcomes mean.
"""

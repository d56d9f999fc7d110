"""The HTTP client: it hands one request to an endpoint and says what came of it.

`channel.py` is the way in: it gives a `session.py`, which takes a kept connection or makes one (`connecting.py`), and
has one exchange over it (`exchange.py`). Beside them: `resolver.py` (which blocks), `guard.py` which addresses may be
connected to, `endpoint_url.py` the grammar of URLs, `verdicts.py` what answers mean.
"""

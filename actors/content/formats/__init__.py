"""What messages look like on the wire: each format makes requests of payloads, and reads what is answered.

Each is one file; `format.py` says what a format is, `registry.py` knows them all. Pure. Of the channels they know what
HTTP is handed (`actors/channels/http/request.py`), its URLs, and what its answers mean as a rule.
"""

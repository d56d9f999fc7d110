"""What an item consists of: templates, MIME, addresses; payload formats of messages.

May import `liveness` (time limits), and what the HTTP channel is handed. Pure but for templates and secrets, which read
files; rendering runs in the dispatcher's pool.
"""

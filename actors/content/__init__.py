"""What an item consists of: templates, MIME, addresses.

May import `liveness` (time limits). Pure but for templates, which read files; rendering runs in the dispatcher's pool.
"""

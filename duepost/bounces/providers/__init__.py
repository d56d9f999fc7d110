"""What providers tell by webhook: one module each, which says whether a call is the provider's, and what it tells.

It may import duepost.bounces.reports; the web server imports it. Nothing here knows a database or a web server: a call
is bytes and headers, what it tells are events, and what follows of them is decided as for what comes to a mailbox. Runs
in the web server's pool threads.
"""

"""The console: pages that a browser shows, made on the server. `duepost web` serves them, and `duepost up` too.

    access.py    who may see and do what: logins, roles, sessions
    boundary.py  what of a request is looked at first: prefix, host, origin, size; and the headers of each answer
    masking.py   addresses as a viewer sees them
    pages.py     a page out of a template
    kept.py      what the first page shows of the database itself
    desk.py      one request: who asks, with which database session, and what is shown where something fails
    screens.py   what can be looked at
    sent.py      what was sent, of kinds that have it kept
    actions.py   what is done, and doings.py which to which, in words
    filters.py   a filter of items as a URL has it
    trying.py    templates with a context, before anything is sent
    inbox.py     what the mail catcher of `duepost up` took
    console.py   builds it all
    server.py    listens; refuses to where that would be open to others

It imports `duepost.operations`, `actors` and `models`; nothing imports it but the commands. Pages are made in the
threads of the server's pool, each with a database transaction of its own at most.
"""

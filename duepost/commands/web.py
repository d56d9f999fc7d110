"""`duepost web`: the console, until Ctrl-C."""

import getpass
import sys
from typing import Annotated

import typer

from actors.alerts import alerts
from actors.alerts.logs import start_of_command
from actors.settings import settings
from actors.version import RELEASE
from duepost.commands.context import BadInput, operator_database
from duepost.commands.output import say
from duepost.extras import needs

#: The port where nothing else is said, and the address.
PORT, HOST = 8025, "127.0.0.1"

#: Characters of a password at least.
SHORTEST_PASSWORD = 8


def web(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = HOST,
    port: Annotated[int, typer.Option(help="The port; 0 is any that is free.", min=0, max=65_535)] = PORT,
    password: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Make a line for DUEPOST_WEB_USERS: asks for a password, or reads it."),
    ] = None,
    role: Annotated[str, typer.Option(help="With --password: viewer, support or operator.")] = "viewer",
    public_listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT", help="Where links in emails, and webhooks, are served, apart from the console."
        ),
    ] = None,
) -> None:
    """Serves the console: what goes out, what waits for a person, what to do about it.

    Without logins it is for this machine alone; see docs/console.md. With --public-listen recipients unsubscribe there
    (DUEPOST_PUBLIC_URL), and providers tell of bounces; see docs/unsubscribing.md, docs/webhooks.md.

    Examples: duepost web; duepost web --password ann --role operator >> users
    """
    if password is not None:
        say(_login(password, role), to_copy=True)
        return
    public = None if public_listen is None else _host_and_port(public_listen)
    # A web server is for this command alone.
    with needs("web", "duepost web"):
        from duepost.web.server import Address, Server, build_console, build_public_links, listen  # noqa: PLC0415

    # No traceback in the log has a value of a row, or of a URL.
    start_of_command(settings().log)
    address = Address(host, port)
    database = operator_database()
    database.close()
    app = build_console(settings(), address, database.url)
    links = None
    if public is not None:
        # A bounce that is about us is reported, as that of a mailbox is.
        dsn = settings().sentry_dsn
        alerts.start(
            dsn.get_secret_value() if dsn else None, environment=settings().sentry_environment, release=RELEASE
        )
        links = Server(build_public_links(settings(), database.url), listen(*public, "what is public"))
    listener = listen(host, port)
    found = Address(host, listener.getsockname()[1])
    say(f"The console is at {settings().web_url or found.url}", to_copy=True)
    if links is not None:
        say(f"Links in emails and webhooks are served at {Address(*links.address).url}", to_copy=True)
        links.start()
    sys.stdout.flush()
    try:
        Server(app, listener).run()
    finally:
        if links is not None:
            links.stop()


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise BadInput("--public-listen: must be an address and a port such as 127.0.0.1:8026")
    return host, int(port)


def _login(name: str, word: str) -> str:
    from duepost.web.access import NAME, Role, line_of  # noqa: PLC0415 - as above

    role = next((each for each in Role if str(each) == word), None)
    if role is None:
        raise BadInput("--role: must be viewer, support or operator")
    if not NAME.fullmatch(name):
        raise BadInput("--password: a name has letters, digits, _ . @ and -, and begins with a letter or a digit")
    given = getpass.getpass(f"Password of {name}: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
    if len(given) < SHORTEST_PASSWORD:
        raise BadInput(f"the password must have at least {SHORTEST_PASSWORD} characters")
    return line_of(name, role, given)

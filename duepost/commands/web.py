"""`duepost web`: the console, until Ctrl-C."""

import getpass
import sys
from typing import Annotated

import typer

from actors.alerts.logs import start_of_command
from actors.settings import settings
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
) -> None:
    """Serves the console: what goes out, what waits for a person, what to do about it.

    Without logins it is for this machine alone; see docs/console.md.

    Examples: duepost web; duepost web --password ann --role operator >> users
    """
    if password is not None:
        say(_login(password, role), to_copy=True)
        return
    # A web server is for this command alone.
    with needs("web", "duepost web"):
        from duepost.web.server import Address, Server, build_console, listen  # noqa: PLC0415

    # No traceback in the log has a value of a row, or of a URL.
    start_of_command(settings().log)
    address = Address(host, port)
    database = operator_database()
    database.close()
    app = build_console(settings(), address, database.url)
    listener = listen(host, port)
    found = Address(host, listener.getsockname()[1])
    say(f"The console is at {settings().web_url or found.url}", to_copy=True)
    sys.stdout.flush()
    Server(app, listener).run()


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

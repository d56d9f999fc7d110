"""What can be looked at."""

from starlette.responses import Response

from duepost.commands import read
from duepost.commands.checks import OVERDUE, PASS_TOLERANCE
from duepost.web.charts import last_hour
from duepost.web.desk import Asked
from models import control, reports, routes


def now(asked: Asked) -> Response:
    """The first page: what waits for a person, what goes out, what is in the way."""
    database = asked.database
    troubles, minutes = reports.troubles(database), reports.last_hour(database)
    pause = control.read_pause(database)
    return asked.page(
        "now.html",
        pending=reports.pending_by_state(database),
        due=reports.due_count(database),
        oldest_due=reports.oldest_due(database),
        overdue=OVERDUE,
        last_pass=reports.last_pass(database),
        pass_tolerance=PASS_TOLERANCE,
        troubles=troubles,
        pause=pause,
        paused=None if pause is None else read.paused_words(pause.seconds, pause.by, pause.reason),
        dead_letters=reports.dead_letters(database),
        states=routes.states(database),
        unserved=reports.unserved_routes(database),
        working=reports.workers(database),
        hour=last_hour(minutes),
    )

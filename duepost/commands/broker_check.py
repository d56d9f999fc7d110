"""The doctor's line about RabbitMQ: does it carry messages, and is there anybody who reads them?"""

from actors.queue.rabbitmq import RabbitmqAway, RabbitmqRefused, inspect, name_of, where
from actors.sender import queue_of
from actors.settings import settings
from duepost.commands.health import Health
from models import control, workers
from models.database.connections import Database
from models.items import ENDPOINT_PREFIX

#: What goes on while RabbitMQ does not.
MEANWHILE = "mail goes on, and messages go through the database"


def examine(database: Database | None) -> tuple[Health, str]:
    """Asks RabbitMQ how long its queues are.

    Args:
        database: where the emails are, to know the names of the queues; None where it is away.
    """
    url = settings().broker_url
    assert url is not None  # noqa: S101 - there is no such line without it
    queues = [queue_of(route) for route in (*settings().relays, ENDPOINT_PREFIX)] if database is not None else []
    installation = control.installation(database) if database is not None else ""
    try:
        found = inspect(url.get_secret_value(), [name_of(each, installation) for each in queues])
    except ValueError:
        return Health.FAILED, "DUEPOST_BROKER_URL: pika makes nothing of what is behind the question mark"
    except RabbitmqAway as error:
        return Health.FAILED, f"RabbitMQ is away, {error}; {MEANWHILE}. Run rabbitmqctl status there"
    except RabbitmqRefused as error:
        return Health.FAILED, f"RabbitMQ refuses us at {error}: {error.advice}"
    at = f"RabbitMQ at {where(url.get_secret_value())}"
    states = {queue: state for queue, state in zip(queues, found.values(), strict=True) if state is not None}
    said = ", ".join(f"{queue} {state.waiting} waiting, {state.readers} readers" for queue, state in states.items())
    running = workers.present(database) if database is not None else 0
    if running and not any(state.readers for state in states.values()):
        return Health.WARNING, f"{at}: no worker reads it; set DUEPOST_BROKER_URL for all workers alike"
    return Health.OK, f"{at}: {said or 'no worker has used it yet'}"

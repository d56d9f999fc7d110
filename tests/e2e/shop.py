"""Somebody else's actors on the broker: nothing here is about email. Run as `dramatiq tests.e2e.shop`."""

import os
import re
import time

import dramatiq
from dramatiq.middleware import CurrentMessage, Retries

from duepost.broker import Database, Limits, Patience, PostgresBroker

database = Database(
    os.environ["SHOP_URL"],
    limits=Limits(
        statement=float(os.environ.get("SHOP_STATEMENT_TIMEOUT", "30")),
        idle=float(os.environ.get("SHOP_IDLE", "5")),
        patience=1,
    ),
)
broker = PostgresBroker(
    database,
    [Retries(min_backoff=50, max_backoff=500, max_retries=1000)],
    patience=Patience(idle=float(os.environ.get("SHOP_PATIENCE", "60"))),
)
dramatiq.set_broker(broker)

#: Stands among the numbers that are done for a reader that has been stopped.
STOPPED_READING = -1


@dramatiq.actor
def order(number: int) -> None:
    """Work in one transaction with its acknowledgement: done exactly once, whatever happens."""
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO shop_order (number, pid) VALUES (%s, %s)", (number, os.getpid()))
        broker.acknowledge(cursor)


@dramatiq.actor
def view(number: int) -> None:
    """Work that is acknowledged on its own: done once or more."""
    database.execute(f"INSERT INTO shop_order (number, pid) VALUES ({number}, {os.getpid()})")


@dramatiq.actor
def dawdle(number: int, seconds: float) -> None:
    """Says that it has begun, and takes its time."""
    view.fn(number)
    time.sleep(seconds)
    view.fn(-number)


@dramatiq.actor
def idle_in_transaction(number: int) -> None:
    """The first time it idles in its transaction until the server ends that."""
    message = CurrentMessage.get_current_message()
    assert message is not None
    with database.transaction() as cursor:
        cursor.execute("INSERT INTO shop_order (number, pid) VALUES (%s, %s)", (number, os.getpid()))
        if not message.options.get("retries"):
            time.sleep(1)
        broker.acknowledge(cursor)


@dramatiq.actor
def stop_reading() -> None:
    """Keeps the thread that reads the queue from going on, and says so."""
    broker.consumers["default"]._changed.acquire()
    view.fn(STOPPED_READING)
    time.sleep(3600)


@dramatiq.actor
def keep_the_interpreter() -> None:
    """C code that never lets go of the interpreter: no thread of this process goes on."""
    re.match(r"(a+)+$", "a" * 64 + "b")

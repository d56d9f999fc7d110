"""An actor that does nothing, on the broker that BENCHMARK_BROKER names: what the broker itself costs."""

import os
from typing import Any

import dramatiq

URL = os.environ["BENCHMARK_URL"]


def stock() -> dramatiq.Broker:
    """dramatiq-pg as it comes."""
    from dramatiq_pg import PostgresBroker

    broker: dramatiq.Broker = PostgresBroker(url=f"{URL}&maxconn=40&minconn=1", results=False)
    return broker


def ours() -> dramatiq.Broker:
    """Duepost's, with Dramatiq's own middleware."""
    from dramatiq.middleware import (
        AgeLimit,
        Callbacks,
        Middleware,
        Pipelines,
        Retries,
        ShutdownNotifications,
        TimeLimit,
    )

    from actors.attendance import Attendance
    from actors.broker import PostgresBroker
    from models.database import Database

    database = Database(URL)
    attendance = Attendance(database)

    class Present(Middleware):
        """Keeps the worker present while it runs."""

        def before_worker_boot(self, _broker: dramatiq.Broker, _worker: Any) -> None:
            attendance.start()

        def after_worker_shutdown(self, _broker: dramatiq.Broker, _worker: Any) -> None:
            attendance.stop()

    middleware = [AgeLimit(), TimeLimit(), ShutdownNotifications(), Callbacks(), Pipelines(), Retries(), Present()]
    return PostgresBroker(database, attendance, middleware)


broker = {"stock": stock, "ours": ours}[os.environ["BENCHMARK_BROKER"]]()
dramatiq.set_broker(broker)


@dramatiq.actor
def noop() -> None:
    """Does nothing."""

"""An actor that does nothing, on the broker that BENCHMARK_BROKER names: what the broker itself costs."""

import itertools
import mmap
import os
from pathlib import Path

import dramatiq

URL = os.environ["BENCHMARK_URL"]


def stock() -> dramatiq.Broker:
    """dramatiq-pg as it comes."""
    from dramatiq_pg import PostgresBroker

    broker: dramatiq.Broker = PostgresBroker(url=f"{URL}&maxconn=40&minconn=1", results=False)
    return broker


def ours() -> dramatiq.Broker:
    """Duepost's, with Dramatiq's own middleware."""
    from dramatiq.middleware import AgeLimit, Callbacks, Pipelines, Retries, ShutdownNotifications, TimeLimit

    from actors.queue.broker import PostgresBroker

    return PostgresBroker(URL, [AgeLimit(), TimeLimit(), ShutdownNotifications(), Callbacks(), Pipelines(), Retries()])


broker = {"stock": stock, "ours": ours}[os.environ["BENCHMARK_BROKER"]]()
dramatiq.set_broker(broker)


class Count:
    """How many messages this process has run, in a file that the benchmark reads: asking the database would cost it."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._place: memoryview | None = None

    def one(self) -> None:
        """One more."""
        if self._place is None:
            with (Path(os.environ["BENCHMARK_COUNTS"]) / str(os.getpid())).open("w+b") as file:
                file.truncate(8)
                self._place = memoryview(mmap.mmap(file.fileno(), 8)).cast("q")
        self._place[0] = next(self._numbers)


count = Count()


@dramatiq.actor
def noop() -> None:
    """Does nothing but to count."""
    count.one()

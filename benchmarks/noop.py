"""An actor that does nothing, on the broker that BENCHMARK_BROKER names: what the broker itself costs."""

import os

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

    from actors.broker import PostgresBroker

    return PostgresBroker(URL, [AgeLimit(), TimeLimit(), ShutdownNotifications(), Callbacks(), Pipelines(), Retries()])


broker = {"stock": stock, "ours": ours}[os.environ["BENCHMARK_BROKER"]]()
dramatiq.set_broker(broker)


@dramatiq.actor
def noop() -> None:
    """Does nothing."""

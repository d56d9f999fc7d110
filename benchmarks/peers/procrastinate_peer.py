"""Procrastinate: asynchronous workers, jobs fetched one by one; two processes."""

import asyncio
import logging
import multiprocessing

import procrastinate
from pool import Pool
from turn import SENDER, Turn, begin, content

PROCESSES = 2


def application(turn: Turn, connections: int) -> procrastinate.App:
    """The application; jobs that are done are deleted."""
    connector = procrastinate.PsycopgConnector(conninfo=turn.url, min_size=1, max_size=connections)
    return procrastinate.App(connector=connector)


async def prepare(turn: Turn) -> None:
    """Schema and jobs."""
    app = application(turn, 2)
    send = app.task(name="send")(nothing)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        await send.batch_defer_async(*({"to": to} for to in turn.addresses))


async def nothing(to: str) -> None:
    """Stands for the task where jobs are only deferred."""


async def deliver(turn: Turn) -> None:
    """One process's part, until the queue is empty."""
    app = application(turn, 10)
    async with Pool(turn.port, turn.share(PROCESSES)).open() as pool, app.open_async():

        @app.task(name="send")
        async def send(to: str) -> None:
            await pool.send(SENDER, to, content(to))

        await app.run_worker_async(
            concurrency=turn.share(PROCESSES),
            wait=False,
            listen_notify=False,
            install_signal_handlers=False,
            delete_jobs="successful",
        )


def work(turn: Turn, go: "multiprocessing.synchronize.Event") -> None:
    """A process."""
    go.wait()
    asyncio.run(deliver(turn))


def main() -> None:
    """A turn."""
    logging.disable(logging.WARNING)
    turn = Turn.given()
    asyncio.run(prepare(turn))
    go = multiprocessing.Event()
    processes = [multiprocessing.Process(target=work, args=(turn, go)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    begin()
    go.set()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()

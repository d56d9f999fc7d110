"""Procrastinate: asynchronous workers, jobs fetched one by one; two processes.

At its defaults: one process, and one job at a time. Where a run is resumed, what its documentation gives for stalled
jobs is run every ten seconds (there: every ten minutes).
"""

import asyncio
import logging
import multiprocessing

import procrastinate
from pool import Pool
from turn import SENDER, Mode, Turn, begin, content

#: Seconds between two looks for stalled jobs.
LOOK = 10.0


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


async def deliver(turn: Turn, go: "multiprocessing.synchronize.Event") -> None:
    """One process's part: until the queue is empty, or for ever."""
    app = application(turn, 10)
    size = turn.share(1)
    async with Pool(turn.port, size).open() as pool, app.open_async():

        @app.task(name="send")
        async def send(to: str) -> None:
            await pool.send(SENDER, to, content(to))

        await asyncio.to_thread(go.wait)
        resumed = turn.mode is Mode.RESUME
        rescuer = asyncio.create_task(rescue(app)) if resumed else None
        await app.run_worker_async(
            concurrency=size,
            wait=resumed,
            listen_notify=resumed,
            install_signal_handlers=False,
            delete_jobs="successful",
        )
        if rescuer:
            rescuer.cancel()


async def rescue(app: procrastinate.App) -> None:
    """Stalled jobs are tried again."""
    while True:
        await asyncio.sleep(LOOK)
        for job in await app.job_manager.get_stalled_jobs():
            await app.job_manager.retry_job(job)


def work(turn: Turn, go: "multiprocessing.synchronize.Event") -> None:
    """A process."""
    asyncio.run(deliver(turn, go))


def main() -> None:
    """A turn."""
    logging.disable(logging.WARNING)
    turn = Turn.given()
    if turn.mode is Mode.DRAIN:
        asyncio.run(prepare(turn))
    go = multiprocessing.Event()
    processes = [multiprocessing.Process(target=work, args=(turn, go)) for _ in range(turn.processes)]
    for process in processes:
        process.start()
    begin()
    go.set()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()

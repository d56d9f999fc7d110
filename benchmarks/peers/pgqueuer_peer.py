"""PGQueuer: jobs in batches over asyncpg, completed in batches; two processes.

Sends by aiosmtplib, with content that the standard library makes; with the option `bare`, over pipelined streams of
its own with spliced content, as a careful user would write it (`bare.py`).
"""

import asyncio
import multiprocessing
import time

import asyncpg
import uvloop
from bare import Relays
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode
from pool import Pool
from turn import SENDER, Mode, Turn, begin, content, flow

#: Jobs of a read, where none is asked for: PGQueuer's own default.
BATCH = 10


async def prepare(turn: Turn) -> None:
    """Schema, and jobs where they are stored before."""
    connection = await asyncpg.connect(turn.url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    if turn.mode is Mode.DRAIN:
        addresses = turn.addresses
        await queries.enqueue(["send"] * turn.emails, [each.encode() for each in addresses], [0] * turn.emails)
    await connection.close()


async def deliver(turn: Turn, go: "multiprocessing.synchronize.Event") -> None:
    """One process's part: until the queue is empty, or for ever."""
    connection = await asyncpg.connect(turn.url)
    queue = PgQueuer(AsyncpgDriver(connection))
    size, batch = turn.share(8), turn.batch or BATCH
    relays = Relays(turn.port, size) if turn.option == "bare" else Pool(turn.port, size)
    async with relays.open() as open_relays:

        @queue.entrypoint("send")
        async def send(job: Job) -> None:
            to = (job.payload or b"").decode()
            if isinstance(open_relays, Relays):
                await open_relays.send(to)
            else:
                await open_relays.send(SENDER, to, content(to))

        await asyncio.to_thread(go.wait)
        await queue.run(
            batch_size=batch,
            mode=QueueExecutionMode.drain if turn.mode is Mode.DRAIN else QueueExecutionMode.continuous,
            # None is its default. A cap keeps one process from taking what the other could send.
            max_concurrent_tasks=max(2 * batch, 2 * size) if turn.connections else None,
        )
    await connection.close()


def work(turn: Turn, go: "multiprocessing.synchronize.Event") -> None:
    """A process."""
    uvloop.run(deliver(turn, go))


def main() -> None:
    """A turn."""
    turn = Turn.given()
    if turn.mode is not Mode.RESUME:
        asyncio.run(prepare(turn))
    go = multiprocessing.Event()
    processes = [multiprocessing.Process(target=work, args=(turn, go)) for _ in range(turn.processes)]
    for process in processes:
        process.start()
    if turn.mode is Mode.FLOW:
        go.set()
        time.sleep(2.0)  # They connect, and begin to listen.
        store_one_by_one(turn)
    begin()
    go.set()
    for process in processes:
        process.join()


def store_one_by_one(turn: Turn) -> None:
    """A flow of jobs, each committed."""
    with asyncio.Runner() as runner:
        connection = runner.run(asyncpg.connect(turn.url))
        queries = Queries(AsyncpgDriver(connection))

        def store(to: str) -> None:
            runner.run(queries.enqueue("send", to.encode()))

        flow(turn, store)


if __name__ == "__main__":
    main()

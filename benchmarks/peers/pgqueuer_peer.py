"""PGQueuer: jobs in batches over asyncpg, completed in batches; two processes."""

import asyncio
import multiprocessing

import asyncpg
import uvloop
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode
from pool import Pool
from turn import SENDER, Turn, begin, content

PROCESSES = 2
BATCH = 100


async def prepare(turn: Turn) -> None:
    """Schema and jobs."""
    connection = await asyncpg.connect(turn.url)
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    addresses = turn.addresses
    await queries.enqueue(["send"] * turn.emails, [each.encode() for each in addresses], [0] * turn.emails)
    await connection.close()


async def deliver(turn: Turn) -> None:
    """One process's part, until the queue is empty."""
    connection = await asyncpg.connect(turn.url)
    async with Pool(turn.port, turn.share(PROCESSES)).open() as pool:
        queue = PgQueuer(AsyncpgDriver(connection))

        @queue.entrypoint("send")
        async def send(job: Job) -> None:
            to = (job.payload or b"").decode()
            await pool.send(SENDER, to, content(to))

        await queue.run(
            batch_size=BATCH,
            mode=QueueExecutionMode.drain,
            max_concurrent_tasks=max(2 * BATCH, 2 * turn.share(PROCESSES)),
        )
    await connection.close()


def work(turn: Turn, go: "multiprocessing.synchronize.Event") -> None:
    """A process."""
    go.wait()
    uvloop.run(deliver(turn))


def main() -> None:
    """A turn."""
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

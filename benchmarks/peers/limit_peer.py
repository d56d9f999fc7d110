"""The limit: a pipelining client without any table, its content spliced; nothing is recorded. Two processes.

With the option `ahead` it takes one round trip an email, else two.
"""

import asyncio
import multiprocessing

import uvloop
from bare import Relay
from turn import Turn, begin


async def deliver(turn: Turn, addresses: list[str], go: "multiprocessing.synchronize.Event") -> None:
    """One process's part, shared out among its connections."""
    relays = await asyncio.gather(*(Relay.connect(turn.port) for _ in range(turn.share(8))))
    await asyncio.to_thread(go.wait)
    await asyncio.gather(
        *(deliver_over(relay, addresses[start :: len(relays)], turn.option) for start, relay in enumerate(relays))
    )


async def deliver_over(relay: Relay, addresses: list[str], option: str) -> None:
    """One connection's part."""
    if option == "ahead":
        await relay.send_ahead(addresses)
    else:
        for to in addresses:
            await relay.send(to)
    relay.close()


def work(turn: Turn, addresses: list[str], go: "multiprocessing.synchronize.Event") -> None:
    """A process."""
    uvloop.run(deliver(turn, addresses, go))


def main() -> None:
    """A turn."""
    turn = Turn.given()
    go = multiprocessing.Event()
    processes = [
        multiprocessing.Process(target=work, args=(turn, turn.addresses[start :: turn.processes], go))
        for start in range(turn.processes)
    ]
    for process in processes:
        process.start()
    begin()
    go.set()
    for process in processes:
        process.join()


if __name__ == "__main__":
    main()

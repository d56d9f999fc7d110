"""The dispatcher drives requests as it drives emails: nothing in it knows which channel it has."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from actors.channels.channel import Channel, Payload, Rulings
from actors.channels.http.channel import HttpChannel
from actors.channels.http.request import HttpPayload, Request
from actors.delivery.dispatcher import Dispatcher
from actors.delivery.job import Job, OwnJob
from actors.delivery.lanes import Blocking
from models.words import Verdict
from tests.http_servers import ScriptedServer, answer, close, hang
from tests.smtp_client import AnyTime
from tests.unit.http.client import payload
from tests.unit.test_event_loop import Unpaced

P = TypeVar("P", bound=Payload)


@dataclass(eq=False)
class Claimed:
    """A claimed message."""

    number: int
    job: Job
    rulings: list[Rulings] = field(default_factory=list)
    is_unread: bool = False
    is_plain: bool = True
    has_route_failed: bool = False
    is_urgent: bool = False


class Messages(Generic[P]):
    """Messages with the numbers from 0 on; `write` makes the payload of each."""

    def __init__(self, write: Callable[[int], P], count: int) -> None:
        self.write = write
        self.left = list(range(1, count))
        self.done: dict[int, Verdict] = {}
        self.threads: set[str] = set()

    def claim(self, jobs: Sequence[tuple[int, Job]]) -> list[Claimed]:
        return [Claimed(number, job) for number, job in jobs]

    def read(self, claimed: Sequence[Claimed]) -> None:
        raise AssertionError(claimed)

    def advance(self, work: Claimed) -> P | Blocking | None:
        if work.rulings:
            return None
        self.threads.add(threading.current_thread().name)
        return self.write(work.number)

    def take(self, work: Claimed, rulings: Rulings) -> None:
        work.rulings.append(rulings)

    def conclude(self, works: Sequence[Claimed]) -> list[Claimed]:
        for work in works:
            [ruling] = work.rulings[-1].values()
            self.done[work.number] = ruling.verdict
            work.job.end()
        return []

    def conclude_alone(self, work: Claimed) -> None:
        raise AssertionError(work)

    def release(self, works: Sequence[Claimed]) -> None:
        raise AssertionError(works)

    def postpone(self, work: Claimed) -> None:
        raise AssertionError(work)

    def fail(self, work: Claimed, failure: BaseException) -> None:
        work.job.end(failure)

    def has_more(self, *, are_urgent: bool = False) -> bool:
        return bool(self.left) and not are_urgent

    def next(self, *, is_urgent: bool = False) -> tuple[int, Job] | None:
        assert not is_urgent
        return (self.left.pop(), OwnJob()) if self.left else None


def to_servers(*urls: str) -> Callable[[int], HttpPayload]:
    """Requests of several servers, by turns."""

    def write(number: int) -> HttpPayload:
        request = Request("POST", "/", (("webhook-id", f"msg_{number}"),), b"{}")
        return payload(urls[number % len(urls)], request, deadline=10.0)

    return write


def test_messages_to_several_servers_go_over_the_slots_of_one_dispatcher_each_once() -> None:
    with ScriptedServer() as first, ScriptedServer() as second, ScriptedServer() as third:
        first.script(answer("HTTP/1.1 200 OK", "connection: close"))
        second.script(close())
        messages = Messages(to_servers(first.url, second.url, third.url), 60)
        http = HttpChannel(AnyTime())
        channel: Channel[HttpPayload] = http
        dispatcher = Dispatcher(messages, messages, channel, 4, Unpaced())
        dispatcher.do(0)
        dispatcher.tidy()
        dispatcher.close()
        http.close()
        asked = [request for server in (first, second, third) for request in server.requests]
    assert sorted(messages.done) == list(range(60))
    assert sorted(request.headers["webhook-id"] for request in asked) == sorted(f"msg_{n}" for n in range(60))
    assert [n for n, verdict in messages.done.items() if verdict is not Verdict.SENT] == [
        int(second.requests[0].headers["webhook-id"].removeprefix("msg_"))
    ]
    assert len(messages.threads) == 1
    assert max(server.connections for server in (first, second, third)) <= 5


def test_a_server_that_hangs_keeps_its_own_slot_alone() -> None:
    with ScriptedServer() as dead, ScriptedServer() as healthy:
        dead.script(hang())
        messages = Messages(to_servers(dead.url, *[healthy.url] * 29), 30)
        http = HttpChannel(AnyTime())
        dispatcher = Dispatcher(messages, messages, http, 3, Unpaced())
        driver = threading.Thread(target=dispatcher.do, args=(0,))
        driver.start()
        while len(healthy.requests) < 29:
            assert driver.is_alive()
            driver.join(0.01)
        assert len(dead.requests) == 1
        dead.__exit__(None, None, None)
        driver.join(30)
        dispatcher.close()
        http.close()
    assert messages.done[0] is Verdict.UNKNOWN
    assert set(messages.done.values()) == {Verdict.UNKNOWN, Verdict.SENT}

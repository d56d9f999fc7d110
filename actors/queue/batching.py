"""Messages that no thread of their own waits for.

A thread that is at such work takes them from a worker's memory, or the thread that they came with leaves them to it.
"""

import contextvars
import heapq
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import dramatiq
from dramatiq.errors import Retry
from dramatiq.middleware import SkipMessage

from actors.queue.consumer import ClaimedMessage

if TYPE_CHECKING:
    from actors.queue.broker import PostgresBroker

P = ParamSpec("P")
T = TypeVar("T")


class BatchedMessage:
    """A message that is worked on beside the one that its actor was called with.

    Dramatiq's middleware is asked about it and told of it as about any other, in a context of its own: what they keep
    in context variables is this message's.

    Args:
        broker: whose middleware.
        worker: in whose memory it waited.
        message: it.
        context: in which middleware was asked about it, if it was.
    """

    def __init__(
        self,
        broker: "PostgresBroker",
        worker: dramatiq.Worker,
        message: ClaimedMessage,
        context: contextvars.Context | None = None,
    ) -> None:
        self.message = message
        self._broker = broker
        self._worker = worker
        self._context = context or contextvars.copy_context()
        self._is_over = False

    def begin(self) -> bool:
        """Asks the middleware; False where the message is not to be worked on: then it has ended already."""
        try:
            self._context.run(self._broker.ask_before, "process_message", self.message)
        except SkipMessage as skip:
            if self.message.failed:
                self.message.stuff_exception(skip)
            self._context.run(self._broker.tell_end, "skip_message", self.message)
            self._put_down()
        except BaseException as failure:  # noqa: BLE001 - as Dramatiq's worker has it
            self.end(failure)
        else:
            return True
        return False

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Does some of its work, as if it were the message that the actor was called with."""
        return self._context.run(work, *args, **kwargs)

    def end(self, failure: BaseException | None = None) -> None:
        """Its work is over: well, or by an exception that the actor would have raised. Only the first end counts."""
        if self._is_over:
            return
        self._is_over = True
        if failure is not None:
            self.message.stuff_exception(failure)
            if not isinstance(failure, Retry):
                self._worker.logger.error("Failed to process message %s.", self.message, exc_info=failure)
        self._context.run(self._broker.tell_end, "process_message", self.message, exception=failure)
        self._put_down()

    def _put_down(self) -> None:
        self._worker.consumers[self.message.queue_name].post_process_message(self.message.attached())
        self._worker.work_queue.task_done()


def is_next(worker: dramatiq.Worker, actor_name: str, priority: int | None = None) -> bool:
    """Whether the message that a worker's next free thread would get is for that actor, and that urgent at least."""
    waiting = worker.work_queue
    with waiting.mutex:
        return _is_next(waiting.queue, actor_name, priority)


def take_next(worker: dramatiq.Worker, actor_name: str, priority: int | None = None) -> ClaimedMessage | None:
    """Takes the message that a worker's next free thread would get, if `is_next` says that it is the one."""
    waiting = worker.work_queue
    with waiting.mutex:
        if not _is_next(waiting.queue, actor_name, priority):
            return None
        message: ClaimedMessage = heapq.heappop(waiting.queue)[1]
        return message


def _is_next(waiting: Sequence[tuple[int, ClaimedMessage]], actor_name: str, priority: int | None) -> bool:
    if not waiting or waiting[0][1].actor_name != actor_name:
        return False
    return priority is None or waiting[0][1].priority <= priority

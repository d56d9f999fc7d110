"""Plays the relay for a script of the dialogue, without a socket."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from actors.channels.smtp.dialogue import Action, Receive, Script, Send, StartContent, StartTls, Stopped
from actors.channels.smtp.replies import Reply, ReplyParser
from actors.channels.smtp.verdicts import judge_failure
from actors.ruling import Phase

T = TypeVar("T")


#: Why content does not start.
NO_PERMIT = "this worker could not prove its database session"


class Break(Enum):
    """What comes instead of a reply, or of being able to write."""

    CLOSED = "closed"
    TIMEOUT = "timed out"
    MALFORMED = "malformed"


@dataclass
class Talk(Generic[T]):
    """What was said, and what came of it."""

    result: T
    actions: list[Action]
    unread: list[str | Break]

    @property
    def written(self) -> bytes:
        return b"".join(action.data for action in self.actions if isinstance(action, Send))

    @property
    def writes(self) -> list[bytes]:
        return [action.data for action in self.actions if isinstance(action, Send)]

    @property
    def tls(self) -> bool:
        return any(isinstance(action, StartTls) for action in self.actions)


def never(_action: Action) -> bool:
    return False


def as_reply(text: str) -> Reply:
    parser = ReplyParser()
    parser.feed("".join(f"{line}\r\n" for line in text.split("\n")).encode())
    reply = parser.next_reply()
    assert reply is not None
    return reply


def talk(
    script: Script[T], *answers: str | Break, breaks: Callable[[Action], bool] = never, may_start: bool = True
) -> Talk[T]:
    """Runs a script to its end.

    Args:
        script: what to run.
        answers: one for each reply that it waits for.
        breaks: actions, other than waiting for a reply, that fail.
        may_start: whether this worker may start content.
    """
    left, actions = list(answers), []
    try:
        action = next(script)
        while True:
            actions.append(action)
            answer: str | Break | None = None
            if isinstance(action, Receive):
                assert left, f"no answer is left for {action}"
                answer = left.pop(0)
            elif breaks(action):
                answer = Break.CLOSED
            if isinstance(action, StartContent) and not may_start:
                action = script.throw(Stopped(judge_failure(Phase.BODY, NO_PERMIT)))
            elif isinstance(answer, Break):
                ruling = judge_failure(action.phase, answer.value)
                action = script.throw(Stopped(ruling, hung_up=answer is Break.CLOSED))
            else:
                action = script.send(as_reply(answer) if answer is not None else None)
    except StopIteration as end:
        return Talk(end.value, actions, left)

"""Ctrl-C: ends a command at once, also while it waits for the database.

Python runs a handler between two of its own instructions, and the driver waits in C: a command that waits for a
lock would hear of Ctrl-C only after that. So a thread hears of it, too, and ends the process where the handler does not
get its turn. Commands with a handler of their own (`up`, `trigger --watch`) are left alone.
"""

import os
import signal
import socket
import threading
from types import FrameType
from typing import Never

#: Ended by Ctrl-C: the status that shells give to it.
INTERRUPTED = 130

#: Seconds that the handler has to get its turn.
PATIENCE = 0.5

_heard = threading.Event()


def listen() -> None:
    """Listens for Ctrl-C from now on; safe to repeat. To be called by the main thread."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, _interrupt)
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    # The socket lives as long as the process: what is detached is not closed with its object.
    theirs.detach()
    threading.Thread(target=_watch, args=(ours,), name="duepost-interrupts", daemon=True).start()


def _interrupt(_number: int, _frame: FrameType | None) -> Never:
    _heard.set()
    raise KeyboardInterrupt


def _watch(signals: socket.socket) -> None:
    while numbers := signals.recv(64):
        is_ours = signal.SIGINT in numbers and signal.getsignal(signal.SIGINT) is _interrupt
        if is_ours and not _heard.wait(PATIENCE):
            # The database sees the connection end, and rolls back.
            os._exit(INTERRUPTED)

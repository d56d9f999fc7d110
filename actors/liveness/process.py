"""Which process this is, and whether another one of this machine is over."""

import os
import socket
from contextlib import suppress
from pathlib import Path

from models.workers import Process

PROC = Path("/proc")

#: Where the kernel says when a process was started, counted in the fields after its name: proc_pid_stat(5), field 22.
STARTED_FIELD = 22 - 3


def this_process() -> Process:
    """The process that asks. Where the system does not say enough to tell it from all others, that is left out."""
    pid = os.getpid()
    return Process(socket.gethostname(), pid, machine(), started_at_tick(pid))


def has_ended(process: Process) -> bool:
    """Whether a process is over, proven by the kernel that runs this one: its id is unused, or another process has it.

    A process of another machine or of another container is not seen from here; nothing is said of it. One that the
    kernel still keeps until its parent has asked for its exit status counts as alive.
    """
    if process.machine is None or process.machine != machine() or process.started_at_tick is None:
        return False
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    tick = started_at_tick(process.pid)
    return tick is not None and tick != process.started_at_tick


def machine() -> str | None:
    """What a process id is unique in: one boot of a kernel, and a namespace of process ids in it."""
    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        namespace = (PROC / "self/ns/pid").readlink()
        return f"{socket.gethostname()} {boot} {namespace}"
    return None


def started_at_tick(pid: int) -> int | None:
    """When a process was started, in clock ticks since the machine's boot; None if that cannot be seen."""
    with suppress(OSError):
        # The name is in brackets, and may hold any character.
        _, _, fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")
        return int(fields.split()[STARTED_FIELD])
    return None

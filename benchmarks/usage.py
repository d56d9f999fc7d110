"""What a process and all below it have used."""

from contextlib import suppress

import psutil


def cpu_seconds(pid: int) -> float:
    """CPU of a process and all below it, those that have ended included; user and system."""
    total = 0.0
    for each in tree(pid):
        try:
            total += sum(each.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return total


def largest_megabytes(pid: int) -> float:
    """The memory of the largest process below this one."""
    return max(each.memory_info().rss / 1_000_000 for each in tree(pid)[1:])


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def kill(pid: int) -> None:
    """A process and all below it, at once, with SIGKILL; nothing where it has ended."""
    try:
        processes = tree(pid)
    except psutil.NoSuchProcess:
        return
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)

"""A pool's threads do all that is submitted, whatever becomes of one of them."""

import ctypes
import threading

from actors.delivery.thread_pool import ThreadPool
from tests.waiting import wait_until


class Ended(Exception):
    """Raised in a thread from outside."""


def test_a_thread_that_is_ended_while_it_waits_leaves_no_work_undone() -> None:
    pool = ThreadPool("a pool of one", 1)
    threads: list[threading.Thread] = []
    pool.submit(lambda: threads.append(threading.current_thread()))
    wait_until(lambda: pool._idle == 1)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(threads[0].ident or 0), ctypes.py_object(Ended))
    for _ in range(2):
        pool.submit(lambda: threads.append(threading.current_thread()))
    wait_until(lambda: len(threads) == 3)
    assert threads[1] is not threads[0]
    wait_until(lambda: pool._idle == 1)
    assert pool._count == 1

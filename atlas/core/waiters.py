"""Sleeping coroutines and threads that anybody may wake, from anywhere.

A sleeping coroutine is a plain future of its loop, a sleeping thread a `ThreadWaiter`. One rule
keeps wake-ups exact: a component keeps its waiters on lists, under its lock, and whoever takes one
off wakes it, once, after the lock is released. A waiter that gives up takes itself off.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import TypeAlias

__all__ = ["ThreadWaiter", "Waiter", "new_future", "set_alarm", "wake"]


class ThreadWaiter:
    """A thread that sleeps until another thread wakes it, or its time is up."""

    __slots__ = ("_lock", "_woken", "timeout")

    def __init__(self) -> None:
        self._woken = False
        self._lock = threading.Lock()
        self._lock.acquire()
        self.timeout: float | None = None

    def done(self) -> bool:
        """Return whether it was woken; not so if its time ran out."""
        return self._woken

    def wake(self) -> None:
        """Let it go on; to be called once."""
        self._woken = True
        self._lock.release()

    def sleep(self) -> None:
        """Block the calling thread until it is woken or ``timeout`` seconds are over."""
        self._lock.acquire(timeout=-1 if self.timeout is None else self.timeout)


Waiter: TypeAlias = asyncio.Future[None] | ThreadWaiter


def new_future() -> asyncio.Future[None]:
    """Return what a coroutine of the running loop awaits to sleep."""
    return asyncio.get_running_loop().create_future()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def set_alarm(waiter: Waiter, seconds: float) -> None:
    """See to it that the waiter wakes up after some time, though nobody wakes it."""
    if isinstance(waiter, ThreadWaiter):
        waiter.timeout = seconds
    else:
        waiter.get_loop().call_later(seconds, _finish, waiter)


def wake(waiters: Iterable[Waiter]) -> None:
    """Wake waiters that were taken off their list, on whatever loop or thread they sleep."""
    running = asyncio._get_running_loop()
    for waiter in waiters:
        if isinstance(waiter, ThreadWaiter):
            waiter.wake()
        elif (loop := waiter.get_loop()) is running:
            if not waiter.done():
                waiter.set_result(None)
        else:
            _wake_elsewhere(loop, waiter)


def _wake_elsewhere(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    try:
        loop.call_soon_threadsafe(_finish, future)
    except RuntimeError:
        # The loop was closed under its sleeper, so there is no coroutine left to wake.
        if not loop.is_closed():
            raise

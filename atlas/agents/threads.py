"""Threads in which plain tools run.

They are not those of the loop, of which there are few, and for which a program waits when it ends: a tool
that never returns would hold up the other tools, look-ups of host names, and the end of the program.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["in_a_thread"]

T = TypeVar("T")

logger = logging.getLogger(__name__)

_AT_ONCE: Final = 64
"""How many calls of one loop run side by side; those that nobody waits for any more are not counted."""

_PATIENCE: Final = 5.0
"""Seconds that a program which ends waits for tools under way."""


async def in_a_thread(name: str, function: Callable[[], T]) -> T:
    """Call a function in a thread and return what it gives, or raise what it raises.

    Cancelled meanwhile, the function runs on; what it gives then is dropped.

    Args:
        name: What it is called, for whoever wonders what still runs.
        function: The function. It sees the caller's context variables.
    """
    loop = asyncio.get_running_loop()
    places = _places.get(loop)
    if places is None:
        places = _places[loop] = asyncio.Semaphore(_AT_ONCE)
    async with places:
        answer: asyncio.Future[T] = loop.create_future()
        run = copy_context().run

        def call() -> None:
            try:
                give: tuple[Callable[[Any], None], Any] = (answer.set_result, run(function))
            except BaseException as error:  # noqa: BLE001  raised where it is awaited
                give = (answer.set_exception, error)
            with suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(_give, name, answer, *give)

        _free_hand().do(call)
        return await answer


def _free_hand() -> _Hand:
    try:
        return _idle.pop()
    except IndexError:
        return _Hand()


# Any, twice: what a function gave or raised
def _give(name: str, answer: asyncio.Future[Any], give: Callable[[Any], None], given: Any) -> None:
    if answer.done():
        logger.info("%s ended when nobody waited for it any more", name)
        return
    give(given)


class _Hand:
    """A thread that does one thing after another. The end of the program does not wait for it."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        threading.Thread(target=self._work, name="atlas-tool", daemon=True).start()

    def do(self, call: Callable[[], None]) -> None:
        """Have something done; not before the thing before it has ended."""
        _busy.add(self)
        self._calls.put(call)

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            call()
            del call  # what it holds would live on for as long as there is nothing to do
            _busy.discard(self)
            _idle.append(self)


_places: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]] = (
    WeakKeyDictionary()
)
_idle: Final[list[_Hand]] = []
_busy: Final[set[_Hand]] = set()


def _forget() -> None:
    """Forget the threads, of which a forked process has none."""
    _idle.clear()
    _busy.clear()


def _let_them_end() -> None:
    """Give tools under way a moment: one may be writing."""
    until = time.monotonic() + _PATIENCE
    while _busy and time.monotonic() < until:
        time.sleep(0.005)


os.register_at_fork(after_in_child=_forget)
atexit.register(_let_them_end)

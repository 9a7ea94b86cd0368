"""Calls that are decided under a lock and made after it, in the order in which they were decided."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

__all__ = ["OrderedCalls"]

_log = logging.getLogger(__name__)


class OrderedCalls:
    """A queue of callbacks that is emptied by whoever finds it unattended.

    A component that notifies others must not hold its lock while it does, or a callback that uses
    the component would wait for ever; but without a lock two threads could notify in the wrong
    order. So: `add` under the component's lock, `run` after releasing it. Only one thread runs
    calls at a time, and it also runs what others add meanwhile, those of a callback itself too.

    A callback that raises is logged; the others are made all the same.
    """

    __slots__ = ("_calls", "_running")

    def __init__(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._running = threading.Lock()

    def add(self, call: Callable[[], object]) -> None:
        """Queue a call."""
        self._calls.append(call)

    def run(self) -> None:
        """Make the queued calls, unless another thread is already at it. Never waits."""
        # The outer loop sees what was added between the last look and the release.
        while self._calls and self._running.acquire(blocking=False):
            try:
                while self._calls:
                    _call(self._calls.popleft())
            finally:
                self._running.release()


def _call(call: Callable[[], object]) -> None:
    try:
        call()
    except Exception:  # noqa: BLE001 - whatever it is, it is logged and goes no further
        _log.exception("A callback failed: %r", call)

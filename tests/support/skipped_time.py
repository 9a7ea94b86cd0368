"""A loop on which waiting takes no time: where all wait for a timer, the clock skips to it.

For tests of patience and deadlines. Whatever else would wake the loop, such as a thread, is to be
left out: time would not wait for it.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["skipping_time"]

T = TypeVar("T")


class _SkippingSelector(selectors.DefaultSelector):
    """Waits for nothing; notes how long it was to wait."""

    skipped = 0.0

    # Any: whatever the base class gives
    def select(self, timeout: float | None = None) -> list[Any]:
        found = super().select(0 if timeout else timeout)
        if not found and timeout:
            self.skipped += timeout
        return found


class _SkippingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _SkippingSelector()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.skipped


# Any, twice: coroutines take and give whatever they do
def skipping_time(work: Coroutine[Any, Any, T]) -> T:
    """Do something on a loop of its own, on which time is skipped, and return what came of it."""
    with asyncio.Runner(loop_factory=_SkippingLoop) as runner:
        return runner.run(work)

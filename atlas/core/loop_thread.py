"""An event loop in a thread of its own, for programs that have none.

This is the bridge between plain, blocking code and the one asynchronous implementation: the
blocking side calls `LoopThread.run` and gets the coroutine's result or its error.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from atlas.errors import BlockingCallError

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """Calls coroutines on one event loop and waits for them in the caller's thread.

    Made with `start`, the loop runs in a daemon thread until `close`; made with `of`, it is a loop
    that somebody else runs, and stays theirs.

    Raises:
        BlockingCallError: From `run` and `call`, when used on the loop's own thread: waiting there for
            what only that thread can do would never end.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: threading.Thread | None) -> None:
        self.loop = loop
        self._thread = thread

    @classmethod
    def start(cls, name: str) -> LoopThread:
        """Return a new loop that runs in a new daemon thread called ``name``."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name=name, daemon=True)
        thread.start()
        return cls(loop, thread)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> LoopThread:
        """Return a bridge to a loop that runs already, in another thread than its callers'."""
        return cls(loop, None)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return its result or raise its error.

        An interrupt of the waiting thread (Ctrl-C) cancels the coroutine.
        """
        self._refuse_own_thread(work)
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a plain function on the loop's thread and return its result or raise its error."""
        self._refuse_own_thread(None)
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(function(*arguments))
            # The error is the caller's, in the other thread, whatever it is.
            except BaseException as error:  # noqa: BLE001
                future.set_exception(error)

        self.loop.call_soon_threadsafe(work)
        return future.result()

    def close(self) -> None:
        """Cancel what still runs, close the loop and end its thread. Idempotent.

        Does nothing to a loop that somebody else runs.
        """
        if self._thread is None or self.loop.is_closed():
            return
        self.run(_cancel_the_others())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _refuse_own_thread(self, work: Coroutine[Any, Any, Any] | None) -> None:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return
        if running is self.loop:
            if work is not None:
                work.close()
            raise BlockingCallError(
                "This blocking call was made on the event loop that has to do its work, and would "
                "wait for ever. Use the `async` form here, or call it from another thread."
            )


async def _cancel_the_others() -> None:
    loop = asyncio.get_running_loop()
    others = asyncio.all_tasks(loop) - {asyncio.current_task(loop)}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()

"""One-off answers that come from any thread to a task that waits on its loop."""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop
from collections.abc import Callable, Generator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from atlas.core.inner_loop import here
from atlas.errors import AtlasError, BusClosedError, RecursionLimitError

__all__ = ["Answer"]

T = TypeVar("T")

_running_loop = asyncio._get_running_loop


class Outcome(Protocol):
    """What became of a message: a receipt."""

    @property
    def errors(self) -> Sequence[BaseException]:
        """What handlers have raised."""
        ...

    def raise_for_errors(self) -> object:
        """Raise if a handler has failed."""


class Answer(Generic[T]):
    """A value that arrives once, from any thread. Awaited on the loop it was made for."""

    def __init__(self, loop: AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[T] = loop.create_future()
        self._turn = [None]

    def give(self, value: T) -> bool:
        """Deliver the value; False if there was one, or an error, before."""
        return self._settle(lambda: self._future.set_result(value))

    def fail(self, error: BaseException) -> bool:
        """Deliver an error instead of a value."""
        return self._settle(lambda: self._future.set_exception(error))

    def fail_with(self, receipt: Outcome) -> None:
        """Deliver the errors of a receipt, if there are any."""
        for error in receipt.errors:
            if isinstance(error, RecursionLimitError):  # as it is, for everybody up the chain
                self.fail(error)
                return
        try:
            receipt.raise_for_errors()
        except AtlasError as error:
            self.fail(error)

    def close(self) -> None:
        """Deliver that the bus is closed."""
        self.fail(BusClosedError("The bus was closed while a task waited for a message on it."))

    @property
    def is_over(self) -> bool:
        """Whether a value or an error has arrived. On its loop only."""
        return self._future.done()

    async def wait(self, seconds: float) -> None:
        """Wait until it is over, or so many seconds. On its loop only."""
        await asyncio.wait([self._future], timeout=seconds)

    def _settle(self, set_it: Callable[[], None]) -> bool:
        try:
            self._turn.pop()  # one caller gets it
        except IndexError:
            return False

        def settle() -> None:
            if not self._future.done():  # it may be cancelled
                set_it()

        if _running_loop() is self._loop:
            settle()
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(settle)
        return True

    def __await__(self) -> Generator[Any, None, T]:
        place = here()
        if place is None:
            return self._future.__await__()
        return place.inner.supervisor.wait_outside(place, "answer", self._wait).__await__()

    async def _wait(self) -> T:
        return await self._future

"""Effects that a run has asked for and that have not ended: what it waits for, and how it gets it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from atlas.core.effect_layers import EffectCall
from atlas.core.effects.codec import Redactor, error_from, from_text
from atlas.core.effects.pieces import PieceWriter
from atlas.core.inner_loop import Delivered, Delivery
from atlas.errors import EffectError

if TYPE_CHECKING:
    from atlas.core.effects.run import RunContext

__all__ = ["Pending", "PendingStream", "text_of"]

_UNWRITABLE: Final = (TypeError, ValueError, RecursionError)
"""What is raised for something that cannot be written down."""


class Completion(Delivery):
    """What came of an effect, or a piece of it."""

    __slots__ = ("pending",)

    def __init__(self, pending: Pending, what: Delivered, value: str = "") -> None:
        # Not through the base: one is made for every piece of every stream.
        call = pending.call
        self.effect = call.id
        self.what = what
        self.value = value
        self.durable = what != "chunk" and call.declared != "pure"
        self.pending: Pending = pending

    def become_end(self) -> None:
        """Make a piece the end as well. Before it is handed in."""
        self.what = "end"
        self.durable = self.pending.call.declared != "pure"

    @property
    def is_stale(self) -> bool:
        pending = self.pending
        # in a replay it is handed in when it was, whenever the garbage collector came by
        return pending.ended or (pending.is_left and pending.run.is_live)

    def hand_in(self) -> None:
        self.pending.take(self.what, self.value)


class Pending:
    """An effect that a run has asked for and that has not ended. Awaited inside the run.

    Attributes:
        call: What it is.
        redactor: Writes down what it gives.
        work: Performs it, outside, and gives what comes of it.
        ended: Whether the run has its end, or wants it no more.
        is_left: Whether nobody can read it any more.
        was_started: Whether a recording has its start, so that it may have been performed before.
        task: Performs it; None where nothing does.
    """

    __slots__ = (
        "call",
        "ended",
        "future",
        "is_left",
        "redactor",
        "run",
        "task",
        "was_started",
        "work",
    )

    def __init__(
        self,
        run: RunContext,
        call: EffectCall,
        redactor: Redactor,
        work: Callable[[Any], Awaitable[None]],  # Any: the kind of pending effect it is for
    ) -> None:
        self.run: RunContext = run
        self.call: EffectCall = call
        self.redactor: Redactor = redactor
        self.work = work
        self.ended: bool = False
        self.is_left: bool = False
        self.was_started: bool = False
        self.task: asyncio.Task[None] | None = None
        # Any: whatever the effect gives
        self.future: asyncio.Future[Any] = run.inner.loop.create_future()

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for what comes of it."""
        return not (self.ended or self.is_left or self.run.inner.closed)

    def give(self, what: Delivered, value: str = "") -> None:
        """Have what came of it handed in. Any thread."""
        self.run.inner.deliver_from_any_thread(Completion(self, what, value))

    # Any: whatever the effect gives
    def give_result(self, result: Any) -> None:
        """Have its result handed in. Any thread."""
        self.give("value", text_of(self.call, self.redactor, result))

    def take(self, what: str, value: str) -> None:
        """Let the run have what came of it."""
        self.end()
        if self.future.done():
            return
        try:
            if what == "value":
                self.future.set_result(from_text(value))
            else:
                self.future.set_exception(error_from(value))
        except Exception as error:  # noqa: BLE001  the recording cannot be read: the caller's affair
            self.future.set_exception(error)

    def end(self) -> None:
        """Count it as ended."""
        self.ended = True
        self.work = _nothing  # it may hold what holds this: a cycle for the garbage collector
        self.run.pending.pop(self.call.id, None)

    # Any: whatever the effect gives
    async def result(self) -> Any:
        """Wait for what comes of it. Inside the run."""
        try:
            return await self.future
        except asyncio.CancelledError:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Want it no more, if it has not ended. Inside the run."""
        if self.ended:
            return
        self.end()
        self.run.emit_cancelled(self.call.id)
        self.stop()

    def stop(self) -> None:
        """Perform it no more."""
        if self.task is not None:
            self.run.inner.cancel_outside(self.task)


class PendingStream(Pending):
    """An effect that gives pieces: an async iterator inside the run.

    The function that makes the pieces is held back when ``WINDOW`` of them wait to be read, until half
    of those are: it is woken for many pieces, not for each. If its end comes before its last piece was
    handed in, the two are one delivery.
    """

    __slots__ = ("_ahead", "_end", "_items", "_latest", "_room", "_waiter")

    WINDOW = 64

    def __init__(
        self,
        run: RunContext,
        call: EffectCall,
        redactor: Redactor,
        work: Callable[[Any], Awaitable[None]],
    ) -> None:
        super().__init__(run, call, redactor, work)
        # Any: whatever the effect gives
        self._items: deque[Any] = deque()
        self._end: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ahead = 0
        self._latest: Completion | None = None
        self._room: asyncio.Future[None] | None = None

    def take(self, what: str, value: str) -> None:
        """Let the run have a piece, or the end."""
        self._latest = None
        if what != "error" and value:
            self._items.append(from_text(value))
        if what != "chunk":
            self.end()
            self._end = StopAsyncIteration() if what == "end" else error_from(value)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # Any: whatever the effect gives
    async def next(self) -> Any:
        """Return the next piece. Inside the run.

        Raises:
            StopAsyncIteration: There are no more.
        """
        while not self._items:
            if self._end is not None:
                end, self._end = self._end, StopAsyncIteration()
                try:
                    raise end
                finally:
                    del end  # its traceback has this frame: a cycle for the garbage collector
            if self.ended:
                raise StopAsyncIteration
            self._waiter = self.run.inner.loop.create_future()
            try:
                await self._waiter
            except asyncio.CancelledError:
                if not self._items and self._end is None:
                    self.cancel()
                raise
        self._ahead -= 1
        room = self._room
        if room is not None and self._ahead <= self.WINDOW // 2:
            self._room = None
            if not room.done():
                room.set_result(None)
        return self._items.popleft()

    def leave(self) -> None:
        """Stop it, because nobody can read it any more. Wherever the garbage collector runs."""
        if self.ended or self.is_left:
            return
        self.is_left = True
        self.run.left(self)

    async def pump(self, pieces: AsyncIterator[Any]) -> None:
        """Have the pieces handed in one by one. Outside the run, in its loop's thread."""
        inner = self.run.inner
        writer = PieceWriter(self.redactor)
        try:
            async for piece in pieces:
                try:
                    texts = writer.take(piece)
                except _UNWRITABLE as error:
                    raise _refused(self.call, piece, error) from error
                self._hand_in_all(texts)
                if self._ahead >= self.WINDOW and not self.ended:
                    self._room = inner.loop.create_future()
                    await self._room
        except Exception:
            self._hand_in_all(writer.rest())  # the run gets what came before an error
            raise
        finally:
            if hasattr(pieces, "aclose"):  # any iterator may give them
                await pieces.aclose()
        self._hand_in_all(writer.rest())
        if self._latest is None:
            self.give("end")
        else:
            self._latest.become_end()

    def _hand_in_all(self, texts: Iterable[str]) -> None:
        for text in texts:
            latest = Completion(self, "chunk", text)
            self._latest = latest
            self.run.inner.deliver(latest)
            self._ahead += 1


async def _nothing(pending: Pending) -> None:
    """Perform nothing."""


# Any: whatever the effect gives
def text_of(call: EffectCall, redactor: Redactor, result: Any) -> str:
    """Return a result as JSON text.

    Raises:
        EffectError: It has no JSON form, or a secret in it.
    """
    try:
        return redactor.result(result)
    except _UNWRITABLE as error:
        raise _refused(call, result, error) from error


def _refused(call: EffectCall, result: object, error: Exception) -> EffectError:
    return EffectError(
        f"Effect {call.kind!r} gave a {type(result).__qualname__} that cannot be recorded: "
        f"{error}. Return JSON values, messages, frozen dataclasses, bytes, dates or the like."
    )

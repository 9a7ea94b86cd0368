"""One answer while it is made: `Reply` for coroutines, `SyncReply` for plain threads.

The way of a token: the provider's delta is assembled into a `StreamToken` event, the bus hands it
to every subscriber, and its text goes into the reply's bounded buffer, from which the caller's loop
takes it. One task per reply does all of this and waits wherever somebody downstream is slow, so
that a slow reader slows the vendor and not this machine's memory.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Self, TypeAlias, TypeVar

from atlas.core.alarms import clock_of
from atlas.core.buffer import BufferReader, StreamBuffer
from atlas.core.causality import caused_by
from atlas.core.effects import current_run
from atlas.core.event_bus import EventBus, Receipt
from atlas.core.loop_thread import LoopThread
from atlas.core.redaction import Secrets
from atlas.errors import ProviderError
from atlas.providers.assembler import Assembler
from atlas.providers.base import ChatRequest, Finished, Provider
from atlas.providers.context import ContextPassage, PackedContext
from atlas.providers.messages import (
    ChatMessage,
    Completion,
    FinishReason,
    StreamCancelled,
    StreamCompleted,
    StreamContextFound,
    StreamFailed,
    StreamPaused,
    StreamResumed,
    StreamRetried,
    StreamStarted,
    StreamToken,
    TextPart,
    Timing,
    ToolCallPart,
    Usage,
)
from atlas.providers.recorded import HeldBack, model_stream
from atlas.providers.resilience import Deadlines, Retry, RetryPolicy

__all__ = ["OnToken", "Reply", "ReplyStatus", "StreamOptions", "SyncReply"]

T = TypeVar("T")

ReplyStatus = Literal["streaming", "paused", "completed", "failed", "cancelled"]

OnToken: TypeAlias = Callable[[str, str], Awaitable[None] | None]
"""A callback for each piece of text: ``(delta, full_text)``; plain or ``async``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How replies are streamed.

    Attributes:
        deadlines: How long to wait for the vendor.
        retries: What to do when an attempt fails before its first token.
        capacity: Pieces of text a reader may lag behind before the vendor is held back.
        rate: Most pieces of text per second that readers get; None: as fast as they come.
        secrets: What is replaced in every answer.
    """

    deadlines: Deadlines = field(default_factory=Deadlines)
    retries: RetryPolicy = field(default_factory=RetryPolicy)
    capacity: int = 256
    rate: float | None = None
    secrets: Secrets = field(default_factory=Secrets)


class Reply:
    """An answer that is being made: iterate it, await it, pause it, cancel it.

    ``async for token in reply`` yields the text piece by piece; any number of loops may read one
    reply, and one that starts late gets first, as one piece, what it missed. ``await reply`` gives
    the whole `Completion`. Both raise the `ProviderError` with which the answer failed, after what
    had arrived. A cancelled reply simply ends; its `finish_reason` says so.

    The last loop that is left early (``break``, an exception) cancels the reply, unless somebody
    else reads or awaits it: nobody wants the rest, so the vendor is told to stop. A reply that
    nobody ever reads runs to its end. ``async with reply`` cancels on the way out what is not
    finished.

    Replies are made by `atlas.Atlas.chat` and `Conversation.chat`. Best used on the loop it was made
    on; another loop may iterate, await and cancel it too, and `pause`, `resume` and the facts may be
    used from any thread.

    Attributes:
        id: The reply's id, in every event it causes.
        conversation: Id of the conversation it belongs to.
        prompt: What was asked.
        provider: Name of the provider asked.
        model: Name of the model asked.
    """

    def __init__(
        self,
        provider: Provider,
        request: ChatRequest,
        *,
        id: str,  # noqa: A002 (the attribute is called id)
        conversation: str,
        prompt: str,
        bus: EventBus,
        options: StreamOptions,
        on_token: OnToken | None = None,
        on_finished: Callable[[Reply], None] | None = None,
        find_context: Callable[[], Awaitable[PackedContext]] | None = None,
    ) -> None:
        self.id = id
        self.conversation = conversation
        self.prompt = prompt
        self.provider: str = provider.name
        self.model: str = request.model
        self._source = provider
        self._request = request
        self._bus = bus
        self._options = options
        self._on_token = on_token
        self._on_finished = on_finished
        self._find_context = find_context
        self._context: PackedContext | None = None
        self._assembler = Assembler(provider=provider.name, model=request.model, reply=id)
        self._buffer: StreamBuffer[str] = StreamBuffer(options.capacity, rate=options.rate)
        self._held_back = HeldBack()
        self._stopwatch = Stopwatch(clock_of(asyncio.get_running_loop()))
        self._timing: Timing | None = None
        self._completion: Completion | None = None
        self._error: BaseException | None = None
        self._interested = 0
        self._paused = False
        self._stopping = False
        self._go_on = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._finished = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Reply {self.id} {self.status} by {self.provider} {self.model!r}>"

    # -- facts --

    @property
    def status(self) -> ReplyStatus:
        """Where the reply stands."""
        if self._error is not None:
            return "failed"
        if self._completion is not None:
            cancelled = self._completion.finish_reason == "cancelled"
            return "cancelled" if cancelled else "completed"
        return "paused" if self._paused else "streaming"

    @property
    def text(self) -> str:
        """The text so far, whether or not it was read."""
        return self._buffer.accumulated or ""

    @property
    def thinking(self) -> str:
        """What the model thought; known when the reply is finished, empty before."""
        return self._completion.thinking if self._completion else ""

    @property
    def tool_calls(self) -> tuple[ToolCallPart, ...]:
        """The tools the model asks for; known when the reply is finished, empty before."""
        return self._completion.tool_calls if self._completion else ()

    @property
    def usage(self) -> Usage:
        """Tokens as far as the vendor has counted them."""
        return self._assembler.usage

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it has not, or when it failed."""
        return self._completion.finish_reason if self._completion else None

    @property
    def completion(self) -> Completion | None:
        """The whole answer; None while it is being made, or when it failed."""
        return self._completion

    @property
    def citations(self) -> dict[int, ContextPassage]:
        """What the numbers in the text so far stand for, like ``[1]``, when passages were given.

        Numbers that the model made up are left out.
        """
        return {} if self._context is None else self._context.cited(self.text)

    @property
    def error(self) -> BaseException | None:
        """What the answer failed with, if it did: a `ProviderError`, or what ``on_token`` raised."""
        return self._error

    @property
    def timing(self) -> Timing:
        """How long it took; while the answer is being made: so far."""
        return self._timing or self._stopwatch.timing()

    # -- reading --

    async def __aiter__(self) -> AsyncIterator[str]:
        reader = self.join()
        try:
            async for token in reader:
                yield token
        finally:
            self.leave(reader)

    def __await__(self) -> Generator[object, None, Completion]:
        return self._at_home(self._result).__await__()

    async def _result(self) -> Completion:
        self._interested += 1
        try:
            await self._finished.wait()
        finally:
            self.leave()
        if self._error is not None:
            raise self._error
        assert self._completion is not None
        return self._completion

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.cancel()

    def join(self) -> BufferReader[str]:
        """Return a reader of the text whose owner wants the answer until it calls `leave`.

        For bridges to other kinds of loops and threads; ``async for`` does it by itself. Call both
        on the reply's loop.
        """
        self._interested += 1
        return self._buffer.read()

    def leave(self, reader: BufferReader[str] | None = None) -> None:
        """Give up what `join` gave; the last one to leave stops an unfinished answer."""
        if reader is not None:
            reader.close()
        self._interested -= 1
        if not self._interested and not self._finished.is_set():
            # Not at once: whoever left a loop may be about to await the rest.
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._stop_if_unwanted)

    def _stop_if_unwanted(self) -> None:
        if not self._interested:
            self._stop()

    # -- steering --

    def pause(self) -> None:
        """Hold the readers and the vendor. Does nothing to a reply that is paused or finished."""
        if self.status == "streaming":
            self._paused = True
            self._go_on.clear()
            self._buffer.pause()
            self._bus.publish(StreamPaused(self.id))

    def resume(self) -> None:
        """Go on after `pause`. Does nothing to a reply that is not paused."""
        if self.status == "paused":
            self._paused = False
            self._bus.publish(StreamResumed(self.id))
            self._buffer.resume()
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._go_on.set)

    async def cancel(self) -> None:
        """Stop making the answer; the connection to the vendor is closed on return.

        Readers get what had arrived and end. Does nothing to a finished reply. May be awaited on
        any loop. In a callback or handler that the answer itself waits for, it returns at once, and
        the answer stops when that has returned.
        """
        await self._at_home(self._cancel)

    async def _cancel(self) -> None:
        if asyncio.current_task() is self._task:
            self._stopping = True  # `_run` looks when the caller has returned
            return
        self._stop()
        await self._finished.wait()

    def _stop(self) -> None:
        # Once: a second cancellation would hit the provider while it closes its connection.
        if self._task is not None and not self._stopping:
            self._stopping = True
            self._task.cancel()

    async def _at_home(self, work: Callable[[], Coroutine[object, None, T]]) -> T:
        """Do on the reply's own loop what only it can do, whichever loop asks."""
        home = self._loop
        if home is None or self._finished.is_set() or home is asyncio.get_running_loop():
            return await work()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(), home))

    # -- making --

    def start(self) -> None:
        """Begin to make the answer, in a task on the running loop. Called by whoever made it."""
        started = self._bus.publish(
            StreamStarted(self.id, self.conversation, self.provider, self.model, self.prompt)
        )
        # Whatever this reply publishes is caused by its start, also the end that `_conclude`
        # publishes: a task and its callbacks run in the context they were made in.
        self._loop = asyncio.get_running_loop()
        with caused_by(started.message):
            self._task = self._loop.create_task(self._run(started), name=f"atlas reply {self.id}")
            self._task.add_done_callback(self._conclude)

    async def _run(self, started: Receipt[StreamStarted]) -> None:
        if not started.done:
            await self._handled(started)
        if self._find_context is not None:
            self._give(await self._find_context())
        stream = model_stream(
            self._source,
            self._request,
            deadlines=self._options.deadlines,
            retries=self._options.retries,
            on_retry=self._report_retry,
            held_back=self._held_back,
            secrets=self._options.secrets,
        )
        feed = self._assembler.feed
        publish = self._bus.publish
        put = self._buffer.put_nowait
        tick = self._stopwatch.tick
        async with aclosing(stream):
            async for delta in stream:
                if self._stopping:  # a provider has swallowed the cancellation and goes on
                    raise asyncio.CancelledError
                event = feed(delta)
                if event is None:
                    continue
                tick()
                receipt = publish(event)
                if not receipt.done:
                    await self._handled(receipt)
                if self._paused:
                    await self._go_on.wait()
                if type(event) is StreamToken:
                    if not put(event.text):
                        await self._put_patiently(event.text)
                    if event.index == 0:
                        # A vendor that floods would keep this task busy while the reader waits
                        # for what matters most to it.
                        await asyncio.sleep(0)
                    if self._on_token is not None:
                        await self._call_back(event.text)
        for call in self._assembler.tool_calls():
            told = publish(call)
            if not told.done:
                await self._handled(told)
        if self._paused:
            await self._go_on.wait()

    def _conclude(self, task: asyncio.Task[None]) -> None:
        """Settle how the reply ended, publish it, and only then let go whoever waits for it."""
        self._timing = self._stopwatch.timing()
        self._error = None if task.cancelled() else task.exception()
        if self._error is None:
            if not self._assembler.finished:
                self._assembler.feed(Finished("cancelled"))
            self._completion = self._assembler.completion()
        try:
            if self._on_finished is not None:
                self._on_finished(self)
            self._bus.publish(self._ending())
        finally:
            self._finished.set()
            self._buffer.resume()
            if self._error is None:
                self._buffer.close()
            else:
                self._buffer.fail(self._error)

    def _ending(self) -> StreamCompleted | StreamCancelled | StreamFailed:
        id_, talk, error, timing = self.id, self.conversation, self._error, self.timing
        if error is not None:
            kind = error.kind if isinstance(error, ProviderError) else type(error).__name__
            return StreamFailed(id_, talk, kind, str(error), self.text, timing)
        assert self._completion is not None
        if self._completion.finish_reason == "cancelled":
            return StreamCancelled(id_, talk, self.text, timing)
        return StreamCompleted(id_, talk, self._completion, timing)

    def _give(self, context: PackedContext) -> None:
        """Put passages before the conversation, behind the instructions."""
        self._context = context
        citations = tuple(passage.citation for passage in context.passages)
        self._bus.publish(StreamContextFound(self.id, citations, context.tokens, context.left_out))
        if context.text:
            said = self._request.messages
            at = next((n for n, each in enumerate(said) if each.role != "system"), len(said))
            given = ChatMessage("system", (TextPart(context.text),))
            self._request = replace(self._request, messages=(*said[:at], given, *said[at:]))

    async def _put_patiently(self, text: str) -> None:
        """Wait for the slowest reader; without any, forget the window (the text is remembered)."""
        if self._buffer.stats.readers == 0:
            self._buffer.read().close()
        await self._buffer.put(text)

    async def _call_back(self, delta: str) -> None:
        assert self._on_token is not None
        outcome = self._on_token(delta, self.text)
        if inspect.isawaitable(outcome):
            await outcome
            self._stop_here_if_asked()

    # Any: whatever was published.
    async def _handled(self, receipt: Receipt[Any]) -> None:
        """Wait until the handlers are through, without running them in this task.

        Awaiting the receipt would run them here, and cancelling the reply would then cancel a
        handler of somebody else's in the middle of its work. Inside a recorded run, which must not
        depend on who listens, nobody waits but the vendor.
        """
        if current_run() is not None:
            self._held_back.wait = partial(self._wait_outside, receipt)
            return
        loop = asyncio.get_running_loop()
        through = asyncio.Event()

        def tell() -> None:
            # A handler may outlive the reply and its loop; then nobody waits any more.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(through.set)

        receipt.when_done(tell)
        await through.wait()
        self._stop_here_if_asked()

    async def _wait_outside(self, receipt: Receipt[Any]) -> None:
        self._held_back.wait = None
        await receipt

    def _stop_here_if_asked(self) -> None:
        """End this task when what it waited for has called `cancel`."""
        if self._stopping:
            raise asyncio.CancelledError

    def _report_retry(self, retry: Retry) -> None:
        self._stopwatch.attempts = retry.attempt + 1
        self._bus.publish(
            StreamRetried(self.id, retry.attempt, retry.delay, retry.error.kind, str(retry.error))
        )


class Stopwatch:
    """Measures one reply: when the first piece came, and how fast the others followed.

    Args:
        clock: That of the loop: inside a recorded run it stands at what was recorded.

    Attributes:
        attempts: How often the vendor was asked.
    """

    __slots__ = ("_clock", "_first", "_last", "_pieces", "_started", "attempts")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._first = 0.0
        self._last = 0.0
        self._pieces = 0
        self.attempts: int = 1

    def tick(self) -> float:
        """Note that a piece of the answer came; return when."""
        now = self._last = self._clock()
        if not self._pieces:
            self._first = now
        self._pieces += 1
        return now

    def timing(self) -> Timing:
        """Return what was measured so far."""
        total = self._clock() - self._started
        if not self._pieces:
            return Timing(total, None, None, self.attempts)
        seconds = self._last - self._first
        rate = (self._pieces - 1) / seconds if seconds else None
        return Timing(total, self._first - self._started, rate, self.attempts)


class SyncReply:
    """A `Reply` for a plain thread: iterate it with ``for``, steer it without ``await``.

    The answer is made on the application's loop in another thread; every method may be called
    from any thread but that loop's own. Leaving the ``for`` loop early cancels the reply, as it
    does for `Reply`.
    """

    def __init__(self, reply: Reply, loop: LoopThread) -> None:
        self.reply = reply
        self._loop = loop

    def __repr__(self) -> str:
        return f"<SyncReply {self.reply!r}>"

    def __iter__(self) -> Iterator[str]:
        reader = self._call(self.reply.join)
        try:
            yield from reader
        finally:
            self._call(self.reply.leave, reader)

    def result(self) -> Completion:
        """Wait for the whole answer and return it.

        Raises:
            ProviderError: The answer failed.
        """
        if self.reply.error is not None:
            raise self.reply.error
        return self.reply.completion or self._loop.run(_await(self.reply))

    def pause(self) -> None:
        """Hold the readers, as `Reply.pause` does."""
        self.reply.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self.reply.resume()

    def cancel(self) -> None:
        """Stop making the answer; the connection to the vendor is closed on return."""
        if not self._is_finished:
            self._loop.run(self.reply.cancel())

    @property
    def _is_finished(self) -> bool:
        return self.reply.status not in ("streaming", "paused")

    def _call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call on the loop; a finished reply does not need it, and may have outlived it."""
        if self._is_finished:
            return function(*arguments)
        return self._loop.call(function, *arguments)

    @property
    def status(self) -> ReplyStatus:
        """Where the reply stands."""
        return self.reply.status

    @property
    def text(self) -> str:
        """The text so far."""
        return self.reply.text

    @property
    def citations(self) -> dict[int, ContextPassage]:
        """What the numbers in the text so far stand for; see `Reply.citations`."""
        return self.reply.citations

    @property
    def usage(self) -> Usage:
        """Tokens as far as the vendor has counted them."""
        return self.reply.usage

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None while it has not, or when it failed."""
        return self.reply.finish_reason

    @property
    def tool_calls(self) -> tuple[ToolCallPart, ...]:
        """The tools the model asks for; known when the reply is finished."""
        return self.reply.tool_calls

    @property
    def completion(self) -> Completion | None:
        """The whole answer; None while it is being made, or when it failed."""
        return self.reply.completion

    @property
    def timing(self) -> Timing:
        """How long it took; while the answer is being made: so far."""
        return self.reply.timing


async def _await(reply: Reply) -> Completion:
    return await reply

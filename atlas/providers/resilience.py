"""Deadlines and retries around any provider.

`resilient_stream` is what stands between a provider and whoever reads the answer. It keeps four
deadlines, retries while nothing of the answer has been shown, names foreign exceptions, and ends
a read from another task. Per token it costs one clock reading and a few attribute writes: there
is one timer per stream, and it is moved only when it fires.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from types import AsyncGeneratorType
from typing import Literal, NamedTuple, Self, TypeAlias

from atlas.core.alarms import Alarm, set_alarm
from atlas.core.schedules import Schedule
from atlas.errors import (
    AtlasError,
    ConfigurationError,
    DeadlineExceededError,
    DeadlineName,
    IncompleteStreamError,
    InvalidResponseError,
    ProviderError,
)
from atlas.providers.base import (
    ChatRequest,
    Delta,
    Finished,
    Provider,
    ResponseStarted,
    TextDelta,
    UsageDelta,
)

__all__ = ["Deadlines", "ResilientStream", "Retry", "RetryPolicy", "resilient_stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long each stage of a call may take, in seconds; None means no limit.

    Attributes:
        connect: Until the connection to the vendor stands. Kept by the adapter, which is told it
            in the request.
        first_token: From the start of an attempt to its first piece of content. Pings, usage and
            the vendor's acceptance are no content.
        gap: Between two pieces of content, counted only while the reader waits: a reader that
            holds a stream back for an hour breaks no deadline of the vendor's.
        total: From the start of the first attempt to the end of the answer, retries, waits
            between them and pauses of the reader included.

    Raises:
        ConfigurationError: A deadline is not above 0.
    """

    connect: float | None = 10.0
    first_token: float | None = 60.0
    gap: float | None = 60.0
    total: float | None = 600.0

    def __post_init__(self) -> None:
        for name in ("connect", "first_token", "gap", "total"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ConfigurationError(
                    f"The deadline {name!r} is {seconds!r}; give a number of seconds above 0, or "
                    f"None for no limit."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """When and after how long a failed attempt is followed by another.

    Only errors with ``retryable`` are retried, and only before the first piece of content. The
    delay is drawn evenly from 0 to ``base_delay * 2 ** (attempt - 1)``, at most ``max_delay``
    ("full jitter", so that many clients do not come back together); a vendor's ``retry_after``
    is the least that is waited.

    Attributes:
        attempts: How often to ask at most, the first time included; 1 means no retry.
        base_delay: Upper end of the first delay, in seconds.
        delays: Upper end of the delay after failed attempt *n*, in seconds, as a schedule of
            *n* - 1; in place of the doubling.
        max_delay: Upper end of any delay, in seconds.
        max_retry_after: A vendor that asks to wait longer than this, in seconds, is not waited
            for: its error is raised.
        random: Draws the jitter: a function that returns a number from 0 up to 1. Give
            ``random.Random(seed).random`` for delays that can be reproduced.

    Raises:
        ConfigurationError: There is no attempt at all, or a time is below 0.
    """

    attempts: int = 3
    base_delay: float = 0.5
    delays: Schedule | None = None
    max_delay: float = 30.0
    max_retry_after: float = 60.0
    random: Callable[[], float] = field(default=random.random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigurationError(
                f"attempts is {self.attempts!r}; give at least 1, which is no retry."
            )
        for name in ("base_delay", "max_delay", "max_retry_after"):
            if getattr(self, name) < 0:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)!r}; give seconds, 0 or more."
                )

    def delay(self, attempt: int, error: ProviderError) -> float | None:
        """Return the seconds to wait after failed attempt number ``attempt``; None: give up."""
        if attempt >= self.attempts or not error.retryable:
            return None
        asked = error.retry_after or 0.0
        if asked > self.max_retry_after:
            return None
        ceiling = min(self.max_delay, self._ceiling(attempt))
        return max(asked, ceiling * self.random())

    def _ceiling(self, attempt: int) -> float:
        if self.delays is not None:
            return self.delays(attempt - 1)
        return self.base_delay * 2.0 ** min(attempt - 1, 62)


class Retry(NamedTuple):
    """A failed attempt that is followed by another: its number from 1, the wait, the error."""

    attempt: int
    delay: float
    error: ProviderError


def resilient_stream(
    provider: Provider,
    request: ChatRequest,
    *,
    deadlines: Deadlines | None = None,
    retries: RetryPolicy | None = None,
    on_retry: Callable[[Retry], None] | None = None,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> ResilientStream:
    """Return the provider's answer as an async iterator of deltas, with deadlines and retries.

    It ends after exactly one `Finished`, or raises a `ProviderError` whose ``partial`` is the text
    that had arrived. Foreign exceptions out of a provider become a `ProviderError` with the
    original as its cause. Cancelling the task that reads stays a cancellation. `ResponseStarted`
    and `UsageDelta` of an attempt are held back until its first content, so that a failed attempt
    leaves nothing behind.

    Args:
        provider: Whom to ask.
        request: What to ask; its ``connect_timeout`` is set from ``deadlines``.
        deadlines: Default: `Deadlines` as they come.
        retries: Default: a `RetryPolicy` as it comes.
        on_retry: Called before the wait that precedes a new attempt.
        clock: Seconds from any start, never going back; default: ``time.monotonic``.
        sleep: Waits between attempts; default: ``asyncio.sleep``.
    """
    return ResilientStream(
        provider,
        request,
        deadlines=deadlines or Deadlines(),
        retries=retries or RetryPolicy(),
        on_retry=on_retry,
        clock=clock,
        sleep=sleep,
    )


class ResilientStream:
    """The iterator that `resilient_stream` returns.

    One task reads it at a time; `aclose` may be called from any task of the same loop. It must be
    read to its end or closed (it is an async context manager): the connection to the vendor is
    closed before `aclose` returns, not when the garbage collector comes by.
    """

    __slots__ = ("_call", "_closed", "_deltas")

    def __init__(
        self,
        provider: Provider,
        request: ChatRequest,
        *,
        deadlines: Deadlines,
        retries: RetryPolicy,
        on_retry: Callable[[Retry], None] | None,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if request.connect_timeout != deadlines.connect:
            request = replace(request, connect_timeout=deadlines.connect)
        self._call = _Call(
            provider,
            request,
            retries=retries,
            on_retry=on_retry,
            sleep=sleep,
            watch=_Watch(deadlines, clock),
        )
        deltas = self._call.deltas()
        assert isinstance(deltas, AsyncGeneratorType)
        self._deltas: AsyncGeneratorType[Delta, None] = deltas
        self._closed: asyncio.Future[None] | None = None

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self._deltas  # no call of ours for each token

    def __anext__(self) -> Awaitable[Delta]:
        return self._deltas.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection to the vendor; a task that reads at this moment sees the end.

        Idempotent.
        """
        if self._closed is not None:
            await asyncio.shield(self._closed)
            return
        if self._call.is_over:
            return  # read to its end, as most are
        closed = self._closed = asyncio.get_running_loop().create_future()
        try:
            if self._deltas.ag_running:
                await self._call.stop()
            await self._deltas.aclose()
        finally:
            closed.set_result(None)

    @property
    def attempts(self) -> int:
        """How often the vendor has been asked so far."""
        return self._call.attempts


class _Interrupted(Exception):  # noqa: N818  (never leaves this module)
    """The watch ended the call at a moment when it was not waiting for the provider."""


class _Call:
    """One call: its attempts and the text that has arrived."""

    __slots__ = (
        "_ended",
        "_on_retry",
        "_provider",
        "_request",
        "_retries",
        "_sleep",
        "_text",
        "_watch",
        "attempts",
        "is_over",
    )

    def __init__(
        self,
        provider: Provider,
        request: ChatRequest,
        *,
        retries: RetryPolicy,
        on_retry: Callable[[Retry], None] | None,
        sleep: Callable[[float], Awaitable[object]],
        watch: _Watch,
    ) -> None:
        self.attempts = 0
        self._provider = provider
        self._request = request
        self._retries = retries
        self._on_retry = on_retry
        self._sleep = sleep
        self._watch = watch
        self._text: list[str] = []
        self._ended: asyncio.Future[None] | None = None  # made when somebody waits for the end
        self.is_over = False

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield the deltas of the first attempt that gets as far as content.

        What precedes the content of an attempt is held back. All in one generator: every token
        passes through here, and a second one around the first would double its way.
        """
        watch, text = self._watch, self._text
        held: list[Delta] = []
        delay: float | None = None
        try:
            while True:
                try:
                    if delay is not None:
                        await self._pause(delay)
                    self.attempts += 1
                    watch.begin_attempt()
                    finished = False
                    stream = self._opened()
                    receive = stream.__anext__
                    try:
                        while True:
                            watch.begin_wait()
                            try:
                                delta = await receive()
                            except StopAsyncIteration:
                                break
                            finally:
                                watch.waiting = False
                            if type(delta) is TextDelta:
                                is_content = bool(delta.text)
                                if type(delta.text) is str:  # else the assembler refuses it
                                    text.append(delta.text)
                            else:
                                finished = finished or isinstance(delta, Finished)
                                is_content = not isinstance(delta, _PREAMBLE)
                            if is_content:
                                watch.waited = 0.0
                                if not watch.content:
                                    watch.saw_content()
                            elif watch.content:
                                watch.saw_nothing()
                            else:
                                held.append(delta)
                                continue
                            if held:
                                for earlier in held:
                                    yield earlier
                                held.clear()
                            yield delta
                    finally:
                        # a third party's may be none; to ask the abstract class takes longer
                        if type(stream) is AsyncGeneratorType or isinstance(stream, AsyncGenerator):
                            await stream.aclose()
                    if not finished:
                        raise self._unfinished()
                # Whatever a third party's provider raises is named, none of it passes as it is.
                except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001
                    error = self._neutral(raised)
                else:
                    return
                if error is None:
                    return
                delay = self._delay_after(error)
                if delay is None:
                    raise error from error.__cause__
                held.clear()  # a failed attempt leaves nothing behind
                if self._on_retry is not None:
                    self._on_retry(Retry(self.attempts, delay, error))
        finally:
            watch.close()
            self.is_over = True
            if self._ended is not None:
                self._ended.set_result(None)

    async def stop(self) -> None:
        """End the read that is under way in another task, and wait until it has ended."""
        if self.is_over:
            return
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
        self._watch.end("stop")
        await asyncio.shield(self._ended)

    async def _pause(self, delay: float) -> None:
        self._watch.begin_pause()
        try:
            await self._sleep(delay)
        finally:
            self._watch.waiting = False

    def _unfinished(self) -> IncompleteStreamError:
        return IncompleteStreamError(
            f"{self._provider.name} ended its stream without an end marker; what arrived may "
            f"not be the whole answer. Ask again."
        )

    def _opened(self) -> AsyncIterator[Delta]:
        stream = self._provider.stream(self._request)
        if type(stream) is AsyncGeneratorType:  # as nearly always; to ask below takes longer
            return stream
        if asyncio.iscoroutine(stream):
            stream.close()
            raise InvalidResponseError(
                f"`stream` of the provider {self._provider.name!r} is a coroutine, which yields "
                f"nothing; make it an async generator by `yield`ing each delta, or return an async "
                f"iterator from a plain `def`."
            )
        return stream

    def _neutral(self, raised: BaseException) -> ProviderError | None:
        """Return the error to raise for ``raised``, None for an end by `stop`, or re-raise it."""
        error: ProviderError
        reason = self._watch.take_back(raised)
        if reason == "stop":
            return None
        if reason is not None:
            error = self._deadline_error(reason)
        elif isinstance(raised, ProviderError):
            error = raised
        elif isinstance(raised, AtlasError | asyncio.CancelledError):
            raise raised
        else:
            error = ProviderError(
                f"{self._provider.name} failed with an error that its adapter does not name: "
                f"{type(raised).__name__}: {raised}. Report it to the adapter's author."
            )
            error.__cause__ = raised
        error.partial = "".join(self._text)
        error.provider = error.provider or self._provider.name
        error.model = error.model or self._request.model
        return error

    def _deadline_error(self, name: DeadlineName) -> DeadlineExceededError:
        seconds = self._watch.seconds(name)
        return DeadlineExceededError(
            _LATE[name].format(provider=self._provider.name, seconds=seconds),
            deadline=name,
            seconds=seconds,
        )

    def _delay_after(self, error: ProviderError) -> float | None:
        if self._watch.content:
            return None
        delay = self._retries.delay(self.attempts, error)
        return None if delay is None or delay >= self._watch.left() else delay


_Reason: TypeAlias = Literal["connect", "first_token", "gap", "total", "stop"]

_PREAMBLE = (ResponseStarted, UsageDelta)

_LATE: dict[DeadlineName, str] = {
    "connect": "{provider} gave no connection within {seconds:g} s; raise the connect deadline.",
    "first_token": (
        "{provider} sent nothing of an answer within {seconds:g} s; ask again, or raise the "
        "first_token deadline."
    ),
    "gap": (
        "{provider} stopped in the middle of its answer for {seconds:g} s; ask again, or raise "
        "the gap deadline."
    ),
    "total": (
        "{provider} did not end its answer within {seconds:g} s; ask for a shorter one, or raise "
        "the total deadline."
    ),
}


class _Watch:
    """Keeps the deadlines of one call, and interrupts the task that waits for the provider.

    The one timer is set for the earliest time at which a deadline can pass, and looks again when
    it fires; waiting for a token only writes down who waits, and since when. A wait is interrupted
    as ``asyncio.timeout`` does it: the task is cancelled, and the cancellation is taken back
    unless somebody else cancelled the task too.
    """

    __slots__ = (
        "_cancelled",
        "_cancelling",
        "_clock",
        "_deadlines",
        "_ends",
        "_limit",
        "_loop",
        "_reason",
        "_set_for",
        "_since",
        "_stage",
        "_task",
        "_timer",
        "content",
        "waited",
        "waiting",
    )

    def __init__(self, deadlines: Deadlines, clock: Callable[[], float] | None) -> None:
        self.content = False
        self.waiting = False
        self._deadlines = deadlines
        self._clock = clock or time.monotonic
        self._loop: asyncio.AbstractEventLoop | None = None  # known once the call begins
        self._ends = self._limit = math.inf
        self._since = self.waited = 0.0
        self._stage: DeadlineName = "total"
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._cancelled = False
        self._reason: _Reason | None = None
        self._timer: Alarm | None = None
        self._set_for = math.inf

    # -- what the call says -----------------------------------------------------------------

    def begin_pause(self) -> None:
        self._enter("total", None)
        self.begin_wait()

    def begin_attempt(self) -> None:
        if self._loop is None:  # the first
            self._loop = asyncio.get_running_loop()
            if self._deadlines.total is not None:
                self._ends = self._clock() + self._deadlines.total
        self._enter("first_token", self._deadlines.first_token)

    def begin_wait(self) -> None:
        if self._reason is not None:
            raise _Interrupted
        if self.content:
            self._since = self._clock() - self.waited
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None
        self._cancelling = task.cancelling()
        self.waiting = True

    def saw_nothing(self) -> None:
        """What came is no content: the wait goes on where it stood, the reader's time left out."""
        self.waited = self._clock() - self._since

    def saw_content(self) -> None:
        self.content = True
        self._enter("gap", self._deadlines.gap)

    def end(self, reason: _Reason) -> None:
        self._reason = reason
        if self.waiting and self._task is not None:
            self._cancelled = True
            self._task.cancel()

    def take_back(self, raised: BaseException) -> _Reason | None:
        """Return why the watch ended the wait that raised this; None when it did not."""
        reason, self._reason = self._reason, None
        if self._cancelled and self._task is not None:
            self._cancelled = False
            by_others = self._task.uncancel() > self._cancelling
            if by_others and isinstance(raised, asyncio.CancelledError):
                return None
        return reason

    def left(self) -> float:
        """Return the seconds until the total deadline."""
        return self._ends - self._clock()

    def seconds(self, name: DeadlineName) -> float:
        return float(getattr(self._deadlines, name) or 0.0)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- the timer --------------------------------------------------------------------------

    def _enter(self, stage: DeadlineName, limit: float | None) -> None:
        """Begin a stage, which may take so long."""
        self._stage = stage
        self._limit = math.inf if limit is None else limit
        now = self._since = self._clock()
        self._set_timer(now, now + self._limit)

    def _set_timer(self, now: float, end_of_stage: float) -> None:
        """Let the timer fire before anything is due; it looks then, and is set anew."""
        due = min(self._ends, end_of_stage)
        if self._set_for <= due:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._set_for = due
        self._timer = set_alarm(max(0.0, due - now), self._look, self._loop)

    def _look(self) -> None:
        self._timer, self._set_for = None, math.inf
        now = self._clock()
        # Once content flows, time runs only while we wait; before, from the attempt's start.
        since = self._since if self.waiting or not self.content else now
        if now >= self._ends:
            self.end("total")
        elif now >= since + self._limit:
            self.end(self._stage)
        else:
            self._set_timer(now, since + self._limit)


def closing(
    stream: AsyncIterator[Delta],
) -> contextlib.AbstractAsyncContextManager[AsyncIterator[Delta]]:
    """Return a context that closes a provider's stream at its end.

    A third party's iterator may have no ``aclose``; it is then left as it is.
    """
    if isinstance(stream, AsyncGenerator):
        return contextlib.aclosing(stream)
    return contextlib.nullcontext(stream)

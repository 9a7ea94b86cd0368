"""One model call of an agent: its pieces are events while they come, at any depth of the tree."""

from __future__ import annotations

import asyncio
from typing import Any

from atlas.agents.desk import Desk
from atlas.core.causality import CURRENT
from atlas.core.effects import current_run
from atlas.core.event_bus import Receipt
from atlas.errors import ProviderError
from atlas.providers.assembler import Assembler
from atlas.providers.base import ChatRequest, Provider
from atlas.providers.messages import (
    Completion,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamRetried,
    StreamStarted,
)
from atlas.providers.recorded import HeldBack, model_stream
from atlas.providers.reply import Stopwatch
from atlas.providers.resilience import Retry

__all__ = ["Streaming"]


class Streaming:
    """One model call, in the task that works: its pieces are events while they come."""

    __slots__ = ("_assembler", "_desk", "_held_back", "_provider", "_reply", "_request", "_watch")

    def __init__(self, desk: Desk, provider: Provider, request: ChatRequest, reply: str) -> None:
        self._desk = desk
        self._provider = provider
        self._request = request
        self._reply = reply
        self._assembler = Assembler(provider=provider.name, model=request.model, reply=reply)
        self._held_back = HeldBack()
        self._watch = Stopwatch(desk.clock)

    async def complete(self, said: object) -> Completion:
        """Return the whole answer; it is told how it ended, whatever happens."""
        desk, request, reply = self._desk, self._request, self._reply
        publish = desk.bus.publish
        last = request.messages[-1]
        prompt = "" if last.role == "tool" else last.text
        started = StreamStarted(reply, desk.task, self._provider.name, request.model, prompt)
        token = CURRENT.set(publish(started).message._stamp)  # as `caused_by`, at a third of it
        try:
            await self._stream(said)
            # What tools are asked for is told by `ToolCalled`, with the ids they have here.
            given = self._assembler.completion()
            publish(StreamCompleted(reply, desk.task, given, self._watch.timing()))
        except Exception as error:
            self._tell_failure(error)
            raise
        except BaseException:
            text, timing = self._assembler.text, self._watch.timing()
            publish(StreamCancelled(reply, desk.task, text, timing))
            raise
        finally:
            CURRENT.reset(token)
        return given

    async def _stream(self, said: object) -> None:
        desk, options = self._desk, self._desk.host.stream_options
        feed, publish, tick = self._assembler.feed, desk.bus.publish, self._watch.tick
        deltas = model_stream(
            self._provider,
            self._request,
            deadlines=options.deadlines,
            retries=options.retries,
            on_retry=self._tell_retry,
            held_back=self._held_back,
            secrets=options.secrets,
            said=said,
        )
        try:
            async for delta in deltas:
                event = feed(delta)
                if event is None:
                    continue
                desk.alive = tick()
                receipt: Receipt[Any] = publish(event)
                if not receipt.done:
                    await self._handled(receipt)
        finally:
            await deltas.aclose()

    # Any: whatever was published
    async def _handled(self, receipt: Receipt[Any]) -> None:
        """Let a slow watcher hold the vendor back; a recorded run does not depend on who watches."""
        if current_run() is None:
            await asyncio.shield(_wait(receipt))
            return

        async def outside() -> None:
            self._held_back.wait = None
            await receipt

        self._held_back.wait = outside

    def _tell_retry(self, retry: Retry) -> None:
        self._watch.attempts = retry.attempt + 1
        error = retry.error
        self._desk.bus.publish(
            StreamRetried(self._reply, retry.attempt, retry.delay, error.kind, str(error))
        )

    def _tell_failure(self, error: Exception) -> None:
        kind = error.kind if isinstance(error, ProviderError) else type(error).__name__
        failed = StreamFailed(
            self._reply,
            self._desk.task,
            kind,
            str(error),
            self._assembler.text,
            self._watch.timing(),
        )
        self._desk.bus.publish(failed)


# Any: whatever was published
async def _wait(receipt: Receipt[Any]) -> None:
    await receipt

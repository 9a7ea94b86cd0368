"""A model call as an effect: recorded piece by piece inside a run, performed as it is outside of one.

Deadlines and retries are inside of the effect, out of the run's sight: what it sees is what came of
them, so that a replay does the same without waiting for anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, Final, cast

from atlas.core.effects import Effect, current_run, perform
from atlas.core.effects.codec import error_from, error_text
from atlas.core.effects.perform import stream_as
from atlas.core.redaction import Secrets
from atlas.errors import ProviderError, ReplayDiverged
from atlas.providers.base import (
    Capabilities,
    ChatRequest,
    Delta,
    Finished,
    Provider,
    RefusalDelta,
    ResponseStarted,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    UsageDelta,
)
from atlas.providers.context import ContextPassage, ContextSource, PackedContext, pack_context
from atlas.providers.messages import Usage
from atlas.providers.redacted import redacted_deltas
from atlas.providers.resilience import (
    Deadlines,
    ResilientStream,
    Retry,
    RetryPolicy,
)

__all__ = ["CONTEXT", "MODEL_CALL", "Deferred", "HeldBack", "find_context", "model_stream"]

MODEL_CALL: Final = "model"
"""The kind of the effect."""

CONTEXT: Final = "context"
"""The kind of the effect that finds passages."""


# Any, twice: the JSON values of what `model_stream` asks
def _is_same_talk(recorded: Any, asked: Any) -> bool:
    """Return whether the same was said; instructions, tools and the model may be others."""
    return bool(_talk(recorded) == _talk(asked))


def _talk(asked: Any) -> Any:
    request = asked["request"]
    said = request.get("said") if isinstance(request, dict) else None
    if said is None:
        return asked
    is_told = request["after"] == 0 and said and said[0][0] == "system"
    return said[1:] if is_told else said


_ASK: Final = Effect(MODEL_CALL, declared="idempotent", alike=_is_same_talk)
"""Idempotent: asked twice, a model costs twice, but nothing else happens."""

_RETRIED: Final = "Retried"
_SEVERAL: Final = "Several"
_SEEN: Final = (TextDelta, ThinkingDelta)

_DELTAS: Final = {
    each.__name__: each
    for each in (
        ResponseStarted,
        TextDelta,
        ThinkingDelta,
        RefusalDelta,
        ToolCallDelta,
        UsageDelta,
        Finished,
    )
}

_USAGE: Final = UsageDelta.__name__
_COUNTS: Final = tuple(spec.name for spec in dataclasses.fields(Usage))


class HeldBack:
    """What the vendor is to wait for before its next piece: somebody outside the run is slow.

    Attributes:
        wait: Waits for it; None when nobody is.
    """

    wait: Callable[[], Awaitable[object]] | None = None


class Deferred:
    """Stands for a provider of which a recording has the name; it is built when it is asked.

    So a run can be replayed, or repeated up to where it goes on, where the provider's package, key or
    weights are missing.

    Args:
        name: Its name.
        build: Builds it; None in a replay, which asks nobody.
    """

    def __init__(self, name: str, build: Callable[[str], Provider] | None) -> None:
        self.name = name
        self.capabilities: Capabilities = Capabilities()
        self._build = build

    def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """Ask the provider itself.

        Raises:
            ReplayDiverged: This is a replay: what was recorded answers, or nothing does.
            ConfigurationError: The provider cannot be built here.
        """
        if self._build is None:
            raise ReplayDiverged(
                f"{self.name} would have to be asked, which a replay never does.",
                actual=f"{request.model} was asked",
            )
        return self._build(self.name).stream(request)

    async def aclose(self) -> None:
        """Do nothing: whoever built the provider closes it."""


async def find_context(source: ContextSource, question: str, budget: int) -> PackedContext:
    """Return the passages for a question, packed; inside a run, finding them is an effect of it.

    Args:
        source: Where to look.
        question: What the user asks.
        budget: Most tokens of the passages together.
    """

    async def find() -> list[ContextPassage]:
        return list(await source.passages(question))

    found = await perform(Effect(CONTEXT, {"question": question}, declared="pure"), find)
    return pack_context(found, budget)


def model_stream(
    provider: Provider,
    request: ChatRequest,
    *,
    deadlines: Deadlines,
    retries: RetryPolicy,
    on_retry: Callable[[Retry], None],
    held_back: HeldBack,
    secrets: Secrets | None = None,
    said: object = None,
) -> ResilientStream | AsyncGenerator[Delta, None]:
    """Return the deltas of an answer; inside a run, as an effect of it.

    There a retry is told when the next attempt has given something, not before.

    Args:
        provider: Whom to ask.
        request: What to ask.
        deadlines: How long to wait.
        retries: What to do when an attempt fails before its first token.
        on_retry: Told each retry.
        held_back: What the vendor is to wait for.
        secrets: What is replaced in the answer, wherever the vendor cuts it.
        said: What stands for the request in the recording; default: the request. For callers that
            go on with one conversation and name what is new in it, so that a long one is not written,
            and compared, whole at each call: ``said``, pairs of who or what and a text, ``after`` so
            many messages, and how it is asked. In that, a fork may differ in what it repeats.
    """
    if current_run() is None:
        answer = ResilientStream(
            provider,
            request,
            deadlines=deadlines,
            retries=retries,
            on_retry=on_retry,
        )
        return redacted_deltas(answer, secrets) if secrets else answer
    asked = {"provider": provider.name, "request": request if said is None else said}

    # Any: a piece is the name of what it is, and its parts
    async def outside() -> AsyncIterator[list[Any]]:
        told: list[Retry] = []
        held: list[list[Any]] = []
        answer = ResilientStream(
            provider, request, deadlines=deadlines, retries=retries, on_retry=told.append
        )
        deltas = redacted_deltas(answer, secrets) if secrets else answer
        try:
            async for delta in deltas:
                if told:
                    held += [
                        [_RETRIED, each.attempt, each.delay, error_text(each.error)]
                        for each in told
                    ]
                    told.clear()
                held.append(_written(delta))
                # What nobody sees as it comes costs no delivery of its own.
                if isinstance(delta, _SEEN):
                    yield held[0] if len(held) == 1 else [_SEVERAL, *held]
                    held.clear()
                    if held_back.wait is not None:
                        await held_back.wait()
        finally:
            await deltas.aclose()
        if held:  # and what comes last is one with the end
            yield held[0] if len(held) == 1 else [_SEVERAL, *held]

    return _inside(stream_as(_ASK, asked, outside), on_retry)


# Any: see above
def _written(delta: Delta) -> list[Any]:
    if type(delta) is UsageDelta:
        usage = {key: count for key in _COUNTS if (count := getattr(delta.usage, key)) is not None}
        return [_USAGE, usage]
    return [type(delta).__name__, *delta]


# Any: see above
def _read(name: str, parts: list[Any]) -> Delta:
    if name == _USAGE:
        (usage,) = parts
        return UsageDelta(usage if isinstance(usage, Usage) else Usage(**usage))
    return _DELTAS[name](*parts)


# Any: see above
async def _inside(
    pieces: AsyncGenerator[list[Any], None], on_retry: Callable[[Retry], None]
) -> AsyncGenerator[Delta, None]:
    try:
        async for piece in pieces:
            for name, *parts in piece[1:] if piece[0] == _SEVERAL else (piece,):
                if name == _RETRIED:
                    attempt, delay, error = parts
                    on_retry(Retry(attempt, delay, cast("ProviderError", error_from(error))))
                else:
                    yield _read(name, parts)
    finally:
        await pieces.aclose()

"""A provider that plays given replies: for tests, and for showing how failures look.

It asks no model and is never chosen by default. Each request takes the next reply; a reply says
step by step what the stream does, failures and waits included::

    provider = ScriptedProvider([
        "Hello world",                                          # streamed word by word
        ["Let me ", Pause(2.0), ToolCallPart("c1", "now", "{}")],
        RateLimitedError("Too fast.", retry_after=1.0),         # fails before the first token
        ["Half an ans", ConnectionFailedError("Gone.")],        # fails in the middle
    ])
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias, cast

from atlas.errors import BadRequestError, ConfigurationError
from atlas.providers.base import (
    Capabilities,
    ChatRequest,
    Delta,
    Finished,
    RefusalDelta,
    ResponseStarted,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    UsageDelta,
)
from atlas.providers.messages import RefusalPart, TextPart, ThinkingPart, ToolCallPart

__all__ = ["DEFAULT_REPLIES", "Pause", "Reply", "ScriptedProvider", "Step"]


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait so many seconds before the next step."""

    seconds: float

    def __post_init__(self) -> None:
        _check_seconds("Pause.seconds", self.seconds)


Step: TypeAlias = (
    str
    | Delta
    | TextPart
    | ThinkingPart
    | ToolCallPart
    | RefusalPart
    | Pause
    | asyncio.Event
    | Exception
)
"""One step of a reply.

Text is streamed as one piece, a part as the deltas it is made of, a delta as it is; a `Pause` is
waited out, an event is waited for (which lets a test stop a stream at an exact place), and an
exception is raised.
"""

Reply: TypeAlias = "str | Exception | Sequence[Step] | Callable[[ChatRequest], Reply]"
"""What one request gets: text streamed word by word, an error, steps, or a function that decides."""

DEFAULT_REPLIES: tuple[str, ...] = (
    (
        "This is the scripted provider: it plays fixed words and asks no model. "
        "Choose another one, such as local, to talk to a real model."
    ),
    "These are still fixed words of the scripted provider, whatever you ask.",
)
"""What is played, over and over, when no replies are given."""

_DELTAS = (
    ResponseStarted,
    TextDelta,
    ThinkingDelta,
    RefusalDelta,
    ToolCallDelta,
    UsageDelta,
    Finished,
)
_STEPS = (
    str,
    *_DELTAS,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    RefusalPart,
    Pause,
    asyncio.Event,
    Exception,
)


class ScriptedProvider:
    """Plays replies in order, one for each request.

    As an async context manager it checks at the end that every reply was asked for.

    Args:
        replies: The replies, in order. Default: `DEFAULT_REPLIES`, over and over.
        model: Name of the pretended model.
        api_key: Not used; accepted so that all providers are made alike.
        base_url: Not used; accepted so that all providers are made alike.
        name: The provider's name, so that several can be told apart.
        delay: Seconds to wait before each piece.
        capabilities: What to claim; default: everything.
        sleep: How to wait; default: ``asyncio.sleep``. Replace it to take no time in tests.

    Raises:
        ConfigurationError: Something makes no sense, such as a reply that no stream can play.

    Attributes:
        requests: Every request, in the order of arrival.
        open_streams: How many streams are open now.
    """

    def __init__(
        self,
        replies: Iterable[Reply] | None = None,
        *,
        model: str | None = None,
        api_key: str | None = None,
        base_url: str | None = None,
        name: str = "scripted",
        delay: float = 0.0,
        capabilities: Capabilities | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        _check_seconds("delay", delay)
        named: object = name
        if not isinstance(named, str) or not named:
            raise ConfigurationError(f"name is {name!r}. Give a text that is not empty.")
        if replies is not None and not _are_several(replies):
            raise ConfigurationError(f"replies is {replies!r}. Give a list of them, turn by turn.")
        self.requests: list[ChatRequest] = []
        self.open_streams: int = 0
        self._name = name
        self._model = model or "scripted-1"
        self._delay = delay
        self._sleep = sleep
        self._capabilities = capabilities or Capabilities(
            tools=True, thinking=True, json_schema=True
        )
        self._endless = replies is None
        self._replies: deque[Reply] = deque(DEFAULT_REPLIES if replies is None else replies)
        for each in self._replies:
            if not callable(each):
                _check_reply(each)

    @property
    def name(self) -> str:
        """The provider's name."""
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        """What the provider claims to do."""
        return self._capabilities

    @property
    def default_model(self) -> str:
        """Name of the pretended model."""
        return self._model

    async def stream(self, request: ChatRequest) -> AsyncGenerator[Delta, None]:
        """Play the next reply; see `atlas.providers.base.Provider`.

        Raises:
            BadRequestError: There are fewer replies than requests.
        """
        self.requests.append(request)
        steps = _expanded(self._next_reply(request))
        self.open_streams += 1
        try:
            yield ResponseStarted(f"scripted-{len(self.requests)}", request.model or self._model)
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, Pause):
                    await self._sleep(step.seconds)
                elif isinstance(step, asyncio.Event):
                    await step.wait()
                else:
                    if self._delay and not isinstance(step, Finished):
                        await self._sleep(self._delay)
                    yield step
        finally:
            self.open_streams -= 1

    async def models(self) -> Sequence[str]:
        """Return the name of the pretended model."""
        return (self._model,)

    async def aclose(self) -> None:
        """Do nothing: the provider holds nothing."""

    def check_consumed(self) -> None:
        """Raise `AssertionError` if replies are left that nobody asked for."""
        if self._replies and not self._endless:
            raise AssertionError(
                f"{len(self._replies)} scripted replies were never asked for, the next one being "
                f"{self._replies[0]!r}; {len(self.requests)} requests came."
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        await self.aclose()
        if kind is None:
            self.check_consumed()

    def _next_reply(self, request: ChatRequest) -> Reply:
        if not self._replies:
            raise BadRequestError(
                f"Provider {self._name!r} has no reply left for request number "
                f"{len(self.requests)}; script one more, or find out who asks once too often.",
                provider=self._name,
                model=request.model or self._model,
            )
        reply = self._replies.popleft()
        if self._endless:
            self._replies.append(reply)
        while callable(reply) and not isinstance(reply, Exception):
            reply = reply(request)
        _check_reply(reply)
        return reply


# Any: whatever was given
def _check_seconds(what: str, given: Any) -> None:
    is_number = isinstance(given, int | float) and type(given) is not bool
    if not is_number or not 0 <= given < math.inf:
        raise ConfigurationError(f"{what} is {given!r}. Give seconds, 0 or more.")


def _are_several(given: object) -> bool:
    return hasattr(given, "__iter__") and not isinstance(given, str | bytes | Mapping)


def _check_reply(reply: object) -> None:
    """Refuse what no stream can play, before anybody waits for it.

    Raises:
        ConfigurationError: The reply, or one of its steps, is nothing of the kind.
    """
    if isinstance(reply, (str, Exception, *_DELTAS)):
        return
    if not _are_several(reply):
        raise ConfigurationError(
            f"{reply!r} is no scripted reply. Give text, an exception, a list of steps, or a function "
            f"of the request that returns one of these."
        )
    for step in cast("Sequence[object]", reply):
        if not isinstance(step, _STEPS):
            raise ConfigurationError(
                f"{step!r} is no step of a scripted reply. Give text, a delta, a part, a Pause, an "
                f"asyncio.Event or an exception."
            )


def _expanded(reply: Reply) -> list[Delta | Pause | asyncio.Event | Exception]:
    """Return what a reply makes the stream do, with the end that it leaves unsaid."""
    if isinstance(reply, str):
        reply = re.findall(r"\S+\s*|\s+", reply)
    elif isinstance(reply, (Exception, *_DELTAS)):
        reply = [reply]
    assert not callable(reply)
    steps: list[Delta | Pause | asyncio.Event | Exception] = []
    calls = 0
    for step in reply:
        if isinstance(step, ToolCallPart):
            steps += _call_deltas(step, calls)
            calls += 1
        else:
            steps.append(_play_step(step))
            calls += isinstance(step, ToolCallDelta)
    if not any(isinstance(step, Finished | Exception) for step in steps):
        steps.append(Finished("tool_calls" if calls else "stop", "scripted"))
    return steps


def _call_deltas(part: ToolCallPart, call: int) -> tuple[ToolCallDelta, ToolCallDelta]:
    half = len(part.arguments) // 2
    return (
        ToolCallDelta(call, part.id, part.name, part.arguments[:half]),
        ToolCallDelta(call, "", "", part.arguments[half:]),
    )


def _play_step(step: Step) -> Delta | Pause | asyncio.Event | Exception:
    if isinstance(step, str):
        return TextDelta(step)
    if isinstance(step, TextPart):
        return TextDelta(step.text)
    if isinstance(step, ThinkingPart):
        return ThinkingDelta(step.text, 0, step.signature, step.redacted)
    if isinstance(step, RefusalPart):
        return RefusalDelta(step.text)
    assert not isinstance(step, ToolCallPart)  # which is several deltas
    return step

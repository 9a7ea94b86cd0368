"""What a provider is: the values that go in, the deltas that come out, the protocol between.

A provider adapter only translates: a `ChatRequest` into its vendor's request, the vendor's chunks
into `Delta` values. Assembling text, tool calls, thinking, usage and the stop reason is shared and
lives in `atlas.providers.assembler`; deadlines and retries wrap any provider from outside.
"""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from atlas.core.messages import fillable, value
from atlas.errors import ValidationError
from atlas.providers.messages import ChatMessage, FinishReason, ToolSpec, Usage
from atlas.typing import JSON


@value("chat_request")
class ChatRequest:
    """One model call, in neutral terms. None leaves a choice to the vendor.

    Attributes:
        messages: The conversation so far, the question last.
        model: The vendor's name of the model; empty: the provider's default.
        tools: Tools the model may ask for.
        tool_choice: Whether it may, must or must not ask for one.
        max_tokens: Longest answer, in tokens.
        temperature: From 0 (the likeliest words) to 2.
        top_p: Share of the probability mass to draw from, above 0 up to 1.
        seed: Makes equal requests give equal answers, as far as the vendor can.
        stop: Texts before which the answer ends.
        thinking_tokens: Most tokens to think with; None: off, or the model's own way.
        json_schema: JSON Schema, as JSON text, that the answer must fit.
        connect_timeout: Seconds until the connection must stand; None: no limit. The other
            deadlines are kept outside the adapter, see `atlas.providers.resilience`.
        extra: Vendor options, passed on as they are.

    Raises:
        ValidationError: A field has the wrong type or is out of its range.
    """

    messages: tuple[ChatMessage, ...]
    model: str = ""
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    thinking_tokens: int | None = None
    json_schema: str | None = None
    connect_timeout: float | None = 10.0
    extra: Mapping[str, JSON] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # One is made for each model call, mostly with nothing but messages and tools.
        tokens, thinking = self.max_tokens, self.thinking_tokens
        if tokens is not None and tokens < 1:
            raise self._misfit("max_tokens", "an int of at least 1")
        if thinking is not None and thinking < 1:
            raise self._misfit("thinking_tokens", "an int of at least 1")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise self._misfit("temperature", "a number from 0 to 2")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise self._misfit("top_p", "a number above 0, up to 1")
        if self.connect_timeout is not None and not self.connect_timeout > 0:
            raise self._misfit("connect_timeout", "a number of seconds above 0")
        if self.json_schema is not None and not _is_json_object(self.json_schema):
            raise self._misfit("json_schema", "a JSON object as text")
        for tool in self.tools:
            if not _is_json_object(tool.parameters):
                raise ValidationError(
                    f"tool {tool.name!r}", "parameters", tool.parameters, "a JSON object as text"
                )

    def _misfit(self, name: str, rule: str) -> ValidationError:
        return ValidationError("chat_request", name, getattr(self, name), rule)


def with_messages(request: ChatRequest, messages: tuple[ChatMessage, ...]) -> ChatRequest:
    """Return a request that asks the same with other messages, which are not looked at.

    For who goes on with one conversation of its own: the constructor would check the whole history
    again at every turn, which in the end is most of what a turn costs.
    """
    made: Any = object.__new__(_filling())  # Any: the fields of the class itself are read-only
    made.messages = messages
    made.model = request.model
    made.tools = request.tools
    made.tool_choice = request.tool_choice
    made.max_tokens = request.max_tokens
    made.temperature = request.temperature
    made.top_p = request.top_p
    made.seed = request.seed
    made.stop = request.stop
    made.thinking_tokens = request.thinking_tokens
    made.json_schema = request.json_schema
    made.connect_timeout = request.connect_timeout
    made.extra = request.extra
    made.__class__ = ChatRequest
    return made  # type: ignore[no-any-return]  # it is one now


@functools.cache
def _filling() -> type:
    found = fillable(ChatRequest)
    assert found is not None
    return found


@functools.lru_cache(maxsize=256)  # the same few tools come with each request
def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


# -- what comes out -------------------------------------------------------------------------------
# NamedTuples: one is made per token, and a tuple costs half of a frozen dataclass.


class ResponseStarted(NamedTuple):
    """The vendor accepted the request: its id for the answer and the model that gives it."""

    response_id: str | None = None
    model: str | None = None


class TextDelta(NamedTuple):
    """A piece of the answer's text. ``block`` tells apart blocks that the vendor interleaves."""

    text: str
    block: int = 0


class ThinkingDelta(NamedTuple):
    """A piece of thinking; ``signature`` and ``redacted`` belong to the block, sent when known."""

    text: str = ""
    block: int = 0
    signature: str | None = None
    redacted: str | None = None


class RefusalDelta(NamedTuple):
    """A piece of the words with which the model declines."""

    text: str
    block: int = 0


class ToolCallDelta(NamedTuple):
    """A piece of a tool call. ``call`` is the adapter's key for the call within this answer.

    The adapter resolves its vendor's oddities (an index used twice, an id repeated or missing), so
    that two pieces belong to one call exactly when their ``call`` is equal. ``id`` and ``name``
    are given once, whole; ``arguments`` are appended.
    """

    call: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class UsageDelta(NamedTuple):
    """Token counts so far; a count that is not None replaces the one before."""

    usage: Usage


class Finished(NamedTuple):
    """The vendor's end marker was seen: the answer is whole. ``raw`` is the vendor's own word."""

    reason: FinishReason
    raw: str | None = None


Delta: TypeAlias = (
    ResponseStarted
    | TextDelta
    | ThinkingDelta
    | RefusalDelta
    | ToolCallDelta
    | UsageDelta
    | Finished
)


# -- the protocol ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a provider can do, as data."""

    tools: bool = False
    thinking: bool = False
    json_schema: bool = False
    vision: bool = False
    context_window: int | None = None


@runtime_checkable
class Provider(Protocol):
    """A source of model answers. One that can name its models is a `ModelCatalogue` too.

    One instance serves any number of streams at once on one event loop.
    """

    @property
    def name(self) -> str:
        """The name under which it is registered, for events and errors."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """Ask the model and yield deltas as they arrive.

        An async generator. It ends with exactly one `Finished`, or raises a `ProviderError`
        (`IncompleteStreamError` when the vendor's end marker is missing) and nothing foreign.
        Closing the generator (``aclose``), or cancelling the task that runs it, closes the
        connection to the vendor before it returns.
        """
        ...

    async def aclose(self) -> None:
        """Close connections and free what the provider holds. Idempotent."""
        ...


@runtime_checkable
class ModelCatalogue(Protocol):
    """What a provider may offer beside `Provider`: the names of its models."""

    @property
    def default_model(self) -> str:
        """The model that is asked when a request names none; empty when there is none."""
        ...

    async def models(self) -> Sequence[str]:
        """Return the names of the models that can be asked, or raise a `ProviderError`."""
        ...

"""What a provider is: the values that go in, the deltas that come out, the protocol between.

A provider adapter only translates: a `ChatRequest` into its vendor's request, the vendor's chunks
into `Delta` values. Assembling text, tool calls, thinking, usage and the stop reason is shared and
lives in `atlas.providers.assembler`; deadlines and retries wrap any provider from outside.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from atlas.core.messages import value
from atlas.typing import JSON

FinishReason = Literal[
    "stop",  # the model ended its answer
    "length",  # max_tokens reached
    "stop_sequence",  # one of the request's stop strings came up
    "tool_calls",  # the model waits for tool results
    "content_filter",  # the vendor's filter cut the answer off
    "refusal",  # the model declined
    "pause",  # the vendor paused a long turn; send it back to go on
    "context_window",  # prompt and answer filled the context window
    "cancelled",  # the caller cancelled
    "unknown",  # a word Atlas does not know; see the raw reason
]


# -- what goes in ---------------------------------------------------------------------------------


@value("text")
class TextPart:
    """Plain text."""

    text: str


@value("thinking")
class ThinkingPart:
    """What the model thought, with the vendor's signature over it, to be sent back unchanged.

    ``redacted`` holds the vendor's opaque data when the thought itself is withheld.
    """

    text: str = ""
    signature: str | None = None
    redacted: str | None = None


@value("tool_call")
class ToolCallPart:
    """The model asks for a tool. ``arguments`` is the JSON text exactly as the model wrote it."""

    id: str
    name: str
    arguments: str


@value("tool_result")
class ToolResultPart:
    """The answer to the tool call with the same id."""

    call_id: str
    content: str
    is_error: bool = False


@value("refusal")
class RefusalPart:
    """The model declined, in these words."""

    text: str


Part: TypeAlias = TextPart | ThinkingPart | ToolCallPart | ToolResultPart | RefusalPart


@value
class ChatMessage:
    """One turn of a conversation: who speaks, and the parts of what is said, in order."""

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@value
class ToolSpec:
    """A tool as the model sees it; ``parameters`` is a JSON Schema as JSON text."""

    name: str
    description: str
    parameters: str


@value
class Usage:
    """Tokens of one call. None: the vendor did not say.

    ``input_tokens`` is the whole prompt, cached part included; ``output_tokens`` the whole answer,
    reasoning included, whatever the vendor's own way of counting.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One model call, in neutral terms. None leaves a choice to the vendor."""

    messages: tuple[ChatMessage, ...]
    model: str
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    thinking_tokens: int | None = None  # budget for thinking; None: off or the model's own way
    json_schema: str | None = None  # constrain the answer to this JSON Schema (JSON text)
    connect_timeout: float = 10.0  # seconds; the other deadlines are kept outside the adapter
    extra: dict[str, JSON] = field(default_factory=dict)  # vendor options passed on as they are


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
    ResponseStarted | TextDelta | ThinkingDelta | RefusalDelta | ToolCallDelta | UsageDelta | Finished
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
    """A source of model answers.

    One instance serves any number of streams at once on one event loop.
    """

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        """Ask the model and yield deltas as they arrive.

        An async generator. It ends with exactly one `Finished`, or raises a `ProviderError`
        (`IncompleteStreamError` when the vendor's end marker is missing) and nothing foreign.
        Closing the generator (``aclose``), or cancelling the task that runs it, closes the
        connection to the vendor before it returns.
        """
        ...

    async def models(self) -> Sequence[str]:
        """Return the names of the models that can be asked, or raise a `ProviderError`."""
        ...

    async def aclose(self) -> None:
        """Close connections and free what the provider holds. Idempotent."""
        ...

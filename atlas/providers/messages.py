"""What a conversation with a model consists of, and what happens on the bus while one answers.

The values (`ChatMessage` and its parts, `Usage`, `Completion`) are neutral: the same for every
provider. The events are published by `atlas.app` for each reply, in this order::

    stream.started  (stream.retried)*  (stream.thinking | stream.token | stream.tool_call)*
    then exactly one of  stream.completed | stream.failed | stream.cancelled

with ``stream.paused`` and ``stream.resumed`` in between where someone pauses. What concerns a
provider and no single reply is called ``provider.*``.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from atlas.core.messages import Event, message, value

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


# -- what is said ---------------------------------------------------------------------------------


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


@value
class Timing:
    """How long a reply took, in seconds from the request; None: did not come to that.

    ``tokens_per_second`` counts text and thinking deltas after the first one over the time
    between the first and the last, which is what a reader sees.
    """

    total: float
    first_token: float | None = None
    tokens_per_second: float | None = None
    attempts: int = 1


@value
class Completion:
    """A whole answer. ``parts`` keep the order in which the model gave them."""

    parts: tuple[Part, ...]
    finish_reason: FinishReason
    raw_finish_reason: str | None = None
    usage: Usage = Usage()
    provider: str = ""
    model: str = ""
    response_id: str | None = None

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))

    @property
    def thinking(self) -> str:
        """The thinking parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, ThinkingPart))

    @property
    def tool_calls(self) -> tuple[ToolCallPart, ...]:
        """The tool calls, in order."""
        return tuple([part for part in self.parts if isinstance(part, ToolCallPart)])


# -- what happens ---------------------------------------------------------------------------------


@message("conversation.message_added")
class MessageAdded(Event):
    """A turn joined a conversation: what a user said, or a finished answer."""

    conversation: str
    message: ChatMessage


@message("stream.started")
class StreamStarted(Event):
    """A reply was asked for."""

    reply: str
    conversation: str
    provider: str
    model: str
    prompt: str


@message("stream.context_found")
class StreamContextFound(Event):
    """Passages were found for a question, and given to the model with it.

    Attributes:
        reply: Id of the reply.
        citations: Where they are from; the first is ``[1]``.
        tokens: How long they are together, about.
        left_out: How many were found that did not fit.
    """

    reply: str
    citations: tuple[str, ...]
    tokens: int
    left_out: int


@message("stream.retried")
class StreamRetried(Event):
    """An attempt failed before its first token; another follows after ``delay`` seconds."""

    reply: str
    attempt: int
    delay: float
    kind: str
    error: str


@message("stream.token")
class StreamToken(Event):
    """A piece of the answer's text; ``index`` counts the pieces of the reply from 0."""

    reply: str
    index: int
    text: str


@message("stream.thinking")
class StreamThinking(Event):
    """A piece of the model's thinking; ``index`` counts on with the text pieces."""

    reply: str
    index: int
    text: str


@message("stream.tool_call")
class StreamToolCall(Event):
    """The model finished asking for a tool."""

    reply: str
    call: ToolCallPart


@message("stream.paused")
class StreamPaused(Event):
    """The reader paused the reply; the vendor is held back."""

    reply: str


@message("stream.resumed")
class StreamResumed(Event):
    """The reader resumed the reply."""

    reply: str


@message("stream.completed")
class StreamCompleted(Event):
    """The answer is whole."""

    reply: str
    conversation: str
    completion: Completion
    timing: Timing


@message("stream.failed")
class StreamFailed(Event):
    """The answer ended in an error; ``partial`` is the text that had arrived."""

    reply: str
    conversation: str
    kind: str
    error: str
    partial: str
    timing: Timing


@message("stream.cancelled")
class StreamCancelled(Event):
    """The reader cancelled the reply; ``partial`` is the text that had arrived."""

    reply: str
    conversation: str
    partial: str
    timing: Timing


@message("provider.fallback_taken")
class ProviderFallbackTaken(Event):
    """A provider could not be built, and the first of its fallbacks that could was taken.

    ``failures`` has a sentence, after the provider's name, for each that failed, in the order tried.
    """

    requested: str
    chosen: str
    failures: tuple[str, ...]


@message("provider.timed")
class ProviderTimed(Event):
    """A call of a provider is over; published while a `ProviderTimer` times it. Times in seconds.

    ``outcome`` is ``"closed"`` when the reader left, was cancelled or lost patience. ``waited`` is
    the part of ``total`` in which the reader waited for the provider. ``first_delta`` is None when
    nothing came.
    """

    provider: str
    model: str
    outcome: Literal["ended", "failed", "closed"]
    total: float
    waited: float
    deltas: int
    first_delta: float | None = None

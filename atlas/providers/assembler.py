"""From deltas to a whole answer: the one assembler that every provider shares.

A pure object without input or output: it is fed the deltas of one answer in order, says which
event each is worth on the bus, and holds the whole answer at the end. The cost is linear in the
answer's length, and a delta of text costs one list append and one event.

A vendor may cut a character outside of the basic plane (an emoji, say) between two deltas, each with
one half of its surrogate pair: the first half then waits for the second.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, get_args

from atlas.errors import IncompleteStreamError, InvalidResponseError
from atlas.providers.base import (
    Delta,
    Finished,
    RefusalDelta,
    ResponseStarted,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    UsageDelta,
)
from atlas.providers.messages import (
    Completion,
    FinishReason,
    Part,
    RefusalPart,
    StreamThinking,
    StreamToken,
    StreamToolCall,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    Usage,
)

__all__ = ["Assembler"]

_REASONS = frozenset(get_args(FinishReason))
_NOTHING = Usage()
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class _Block:
    """What one block, or one tool call, has so far; ``kind`` is the type of its deltas."""

    __slots__ = ("half", "id", "kind", "name", "pieces", "redacted", "signature")

    def __init__(self, kind: type[Delta]) -> None:
        self.kind = kind
        self.pieces: list[str] = []
        if kind is ThinkingDelta:
            self.signature: list[str] = []
            self.redacted: list[str] = []
        self.id = self.name = self.half = ""


class Assembler:
    """Collects the deltas of one answer.

    Blocks keep the order in which each first appeared; text, thinking, refusals and tool calls of
    one block or call are joined in the order of arrival. Signatures and redacted thinking are kept
    exactly as they came. Not thread-safe; one instance assembles one answer.

    Args:
        provider: The provider's name, for the completion and for errors.
        model: The model asked, until the vendor names the one that answers.
        reply: Id of the reply. With it, `feed` returns the event that a delta is worth; without
            it, always None.
    """

    __slots__ = (
        "_blocks",
        "_finished",
        "_halves",
        "_index",
        "_model",
        "_provider",
        "_reply",
        "_response_id",
        "_text",
        "_text_block",
        "_usage",
    )

    def __init__(self, *, provider: str = "", model: str = "", reply: str | None = None) -> None:
        self._provider = provider
        self._model = model
        self._reply = reply
        self._response_id: str | None = None
        self._usage = _NOTHING
        self._finished: Finished | None = None
        self._index = 0
        self._halves = 0  # how many blocks keep back a half of a character
        self._blocks: dict[tuple[type[Delta], int], _Block] = {}  # in order of appearance
        self._text: list[str] = []
        self._text_block: int | None = None

    def feed(self, delta: Delta) -> StreamToken | StreamThinking | None:
        """Take the next delta and return the event it is worth on the bus, if any.

        A half of a character is kept back until more comes; one that ends a block is in the
        completion, but in no event.

        Raises:
            InvalidResponseError: The value is no delta, has a field of the wrong type, or comes
                after the answer was finished.
        """
        if type(delta) is TextDelta:
            text, block = delta
            if type(text) is not str or type(block) is not int or self._finished is not None:
                raise self._invalid(delta)
            if not text:
                return None
            if block != self._text_block:
                self._text = self._block(TextDelta, block).pieces
                self._text_block = block
            if self._halves or "\ud800" <= text[-1] <= "\udbff":
                text = self._whole(text, self._block(TextDelta, block))
                if not text:
                    return None
            self._text.append(text)
            if self._reply is None:
                return None
            index = self._index
            self._index = index + 1
            return StreamToken(self._reply, index, text)
        return self._feed_other(delta)

    @property
    def finished(self) -> bool:
        """Whether the vendor's end marker was seen."""
        return self._finished is not None

    @property
    def text(self) -> str:
        """The text so far; built anew at each read."""
        return "".join("".join(b.pieces) for b in self._blocks.values() if b.kind is TextDelta)

    @property
    def usage(self) -> Usage:
        """The token counts so far."""
        return self._usage

    def tool_calls(self) -> tuple[StreamToolCall, ...]:
        """Return one event for each tool call of the finished answer, in order.

        Only the end of the answer proves a call whole, since calls may interleave; publish these
        after the last delta. Empty for an assembler without a reply id.

        Raises:
            IncompleteStreamError: The answer is not finished.
        """
        calls = self.completion().tool_calls
        return () if self._reply is None else tuple(StreamToolCall(self._reply, c) for c in calls)

    def completion(self) -> Completion:
        """Return the whole answer.

        A tool call for which the vendor gave no id gets one made of the reply's id and its place.

        Raises:
            IncompleteStreamError: The answer is not finished.
        """
        if self._finished is None:
            raise IncompleteStreamError(
                f"The answer of {self._provider or 'the provider'} is not finished; feed the "
                f"assembler up to the `Finished` delta before asking for the completion.",
                provider=self._provider,
                model=self._model,
                partial=self.text,
            )
        return Completion(
            self._parts(),
            self._finished.reason,
            self._finished.raw,
            self._usage,
            self._provider,
            self._model,
            self._response_id,
        )

    # -- the deltas that are not text -------------------------------------------------------

    def _feed_other(self, delta: Delta) -> StreamThinking | None:
        if self._finished is not None:
            raise self._invalid(delta)
        kind = type(delta)
        take = _TAKES.get(kind) or next((_TAKES[b] for b in kind.__mro__ if b in _TAKES), None)
        if take is None:
            raise self._invalid(delta)
        try:
            return take(self, delta)
        except (TypeError, AttributeError) as error:
            raise self._invalid(delta) from error

    def _think(self, delta: ThinkingDelta) -> StreamThinking | None:
        block = self._block(ThinkingDelta, delta.block)
        _append(block.signature, delta.signature)
        _append(block.redacted, delta.redacted)
        text = self._whole(_words(delta.text), block)
        _append(block.pieces, text)
        if self._reply is None or not text:
            return None
        index = self._index
        self._index = index + 1
        return StreamThinking(self._reply, index, text)

    def _whole(self, text: str, block: _Block) -> str:
        """Return a block's next text, with the half kept back before it, without one at its end."""
        if block.half and text:
            text = _paired(block.half + text)
            block.half = ""
            self._halves -= 1
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, block.half = text[:-1], text[-1]
            self._halves += 1
        return text

    def _call(self, delta: ToolCallDelta) -> None:
        block = self._block(ToolCallDelta, delta.call)
        block.id = block.id or _words(delta.id)
        block.name = block.name or _words(delta.name)
        _append(block.pieces, delta.arguments)

    def _count(self, delta: UsageDelta) -> None:
        first = self._usage is _NOTHING and isinstance(delta.usage, Usage)
        self._usage = delta.usage if first else _merged(self._usage, delta.usage)

    def _decline(self, delta: RefusalDelta) -> None:
        _append(self._block(RefusalDelta, delta.block).pieces, delta.text)

    def _start(self, delta: ResponseStarted) -> None:
        self._response_id = _words(delta.response_id) or self._response_id
        self._model = _words(delta.model) or self._model

    def _finish(self, delta: Finished) -> None:
        if delta.reason not in _REASONS:
            raise self._invalid(delta)
        _words(delta.raw)
        self._finished = delta

    def _block(self, kind: type[Delta], key: int) -> _Block:
        block = self._blocks.get((kind, key))
        if block is None:
            block = self._blocks[kind, key] = _Block(kind)
        return block

    def _parts(self) -> tuple[Part, ...]:
        parts: list[Part] = []
        calls = 0
        for block in self._blocks.values():
            if block.kind is ToolCallDelta:
                name = block.id or f"{self._reply or 'call'}_{calls}"
                arguments = _paired("".join(block.pieces))
                parts.append(ToolCallPart(name, block.name, arguments))
                calls += 1
            elif part := _part(block):
                parts.append(part)
        return tuple(parts)

    def _invalid(self, delta: object) -> InvalidResponseError:
        shown = repr(delta)
        shown = shown if len(shown) <= 200 else f"{shown[:197]}..."
        after = " after the answer was finished" if self._finished is not None else ""
        return InvalidResponseError(
            f"Provider {self._provider!r} yielded {shown}{after}; a provider's stream yields the "
            f"deltas of atlas.providers.base, with their types, and ends with one `Finished`.",
            provider=self._provider,
            model=self._model,
            partial=self.text,
        )


# Any: each takes its own kind of delta
_TAKES: Final[dict[type, Callable[[Assembler, Any], StreamThinking | None]]] = {
    ThinkingDelta: Assembler._think,
    ToolCallDelta: Assembler._call,
    UsageDelta: Assembler._count,
    RefusalDelta: Assembler._decline,
    ResponseStarted: Assembler._start,
    Finished: Assembler._finish,
}


def _append(pieces: list[str], text: str | None) -> None:
    if text:
        pieces.append(_words(text))


def _words(text: str | None) -> str:
    """Return a text of the provider's, empty for None; refuse anything else."""
    if text is not None and not isinstance(text, str):
        raise TypeError(f"{text!r} stands where text belongs")
    return text or ""


def _paired(text: str) -> str:
    """Return a text in which the halves of surrogate pairs that meet are one character."""
    if text.isascii() or not _PAIR.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def _part(block: _Block) -> Part | None:
    text = _paired("".join(block.pieces)) + block.half
    if block.kind is ThinkingDelta:
        signature = "".join(block.signature) or None
        redacted = "".join(block.redacted) or None
        return ThinkingPart(text, signature, redacted) if text or signature or redacted else None
    if not text:
        return None
    return TextPart(text) if block.kind is TextDelta else RefusalPart(text)


def _merged(before: Usage, after: Usage) -> Usage:
    """Return the counts of ``after``, with those of ``before`` where it has none."""

    def newer(new: int | None, old: int | None) -> int | None:
        return old if new is None else new

    return Usage(
        input_tokens=newer(after.input_tokens, before.input_tokens),
        output_tokens=newer(after.output_tokens, before.output_tokens),
        cached_tokens=newer(after.cached_tokens, before.cached_tokens),
        cache_write_tokens=newer(after.cache_write_tokens, before.cache_write_tokens),
        reasoning_tokens=newer(after.reasoning_tokens, before.reasoning_tokens),
    )

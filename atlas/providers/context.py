"""What a model is given to answer from: passages with their places, packed into its window.

`ContextSource` is all that the application asks of whatever finds passages (a knowledge base, a
search engine of your own). Packing is a pure function: numbered passages, as many as fit, and what
each number stands for, so that ``[2]`` in an answer leads to a file and a span.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from atlas.errors import ConfigurationError

__all__ = ["ContextPassage", "ContextSource", "PackedContext", "estimated_tokens", "pack_context"]

_CITED: Final = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\]")
_INSTRUCTION: Final = (
    "Answer from the numbered passages below. After each statement give the number of the passage "
    "it is taken from, like [1]. If the passages do not hold the answer, say so."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextPassage:
    """A passage that may help to answer a question.

    Attributes:
        text: What the model reads.
        citation: Where it is from, for people: ``docs/bus.md#L10-L24``.
        title: What its document is about.
        source: What its document is known by.
        version: Which version of the document, from 1; 0: it has none.
        start: Where in the document's text it begins, in characters.
        end: Where it ends.
    """

    text: str
    citation: str
    title: str = ""
    source: str = ""
    version: int = 0
    start: int = 0
    end: int = 0


@runtime_checkable
class ContextSource(Protocol):
    """Finds passages for a question; a knowledge base is one."""

    async def passages(self, question: str) -> Sequence[ContextPassage]:
        """Return passages, the most helpful first; none when nothing is known."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedContext:
    """Passages as a model is given them.

    Attributes:
        text: An instruction and the numbered passages, for a system message; "" without passages.
        passages: What the numbers stand for: ``[1]`` is the first.
        tokens: How long the text is, as it was counted.
        left_out: How many passages did not fit.
    """

    text: str
    passages: tuple[ContextPassage, ...]
    tokens: int
    left_out: int

    def cited(self, answer: str) -> dict[int, ContextPassage]:
        """Return what the numbers in an answer stand for; numbers that were not given are left out."""
        numbers = {int(number) for group in _CITED.findall(answer) for number in group.split(",")}
        return {
            number: self.passages[number - 1]
            for number in sorted(numbers)
            if 0 < number <= len(self.passages)
        }


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has, on the safe side: a third of its UTF-8 bytes."""
    return len(text.encode("utf-8", "replace")) // 3 + 1


def pack_context(
    passages: Sequence[ContextPassage],
    budget: int,
    *,
    count_tokens: Callable[[str], int] = estimated_tokens,
) -> PackedContext:
    """Return as many passages as fit, numbered, in their order.

    One that does not fit is left out, and the next tried. A passage that lies within one already
    taken adds nothing, and is left out too. When not even the first fits, it is shortened.

    Args:
        passages: The most helpful first.
        budget: Most tokens of the whole text.
        count_tokens: Returns how many tokens a text has; default: an estimate.

    Raises:
        ConfigurationError: The budget is not above 0.
    """
    if budget < 1:
        raise ConfigurationError(f"The budget is {budget!r} tokens. Give at least 1.")
    taken: list[ContextPassage] = []
    text = _INSTRUCTION
    for passage in passages:
        if any(_within(passage, other) for other in taken):
            continue
        longer = _with(text, len(taken) + 1, passage, passage.text)
        if not taken and count_tokens(longer) > budget:
            longer = _shortened(passage, budget, count_tokens)
        if longer and count_tokens(longer) <= budget:
            taken.append(passage)
            text = longer
    return PackedContext(
        text=text if taken else "",
        passages=tuple(taken),
        tokens=count_tokens(text) if taken else 0,
        left_out=len(passages) - len(taken),
    )


def _with(text: str, number: int, passage: ContextPassage, said: str) -> str:
    return f"{text}\n\n[{number}] {passage.title or passage.citation}\n{said.strip()}"


def _shortened(passage: ContextPassage, budget: int, count_tokens: Callable[[str], int]) -> str:
    """Return a text with the longest beginning of a passage that fits; "" when none does."""
    fits, too_long = 0, len(passage.text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if count_tokens(_with(_INSTRUCTION, 1, passage, passage.text[:middle] + " …")) <= budget:
            fits = middle
        else:
            too_long = middle
    return _with(_INSTRUCTION, 1, passage, passage.text[:fits] + " …") if fits else ""


def _within(passage: ContextPassage, other: ContextPassage) -> bool:
    return (
        passage.source == other.source
        and passage.version == other.version
        and passage.end > passage.start
        and other.start <= passage.start
        and passage.end <= other.end
    )

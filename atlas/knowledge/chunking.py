"""Cutting documents into passages that an embedding model can take in.

Every chunker is a `Chunker`: it returns exact spans of the document's text, in order, that together
hold everything but white space. Sizes are in tokens of the embedding model, so that no passage is
longer than what the model sees.

    StructureChunker   at headings, paragraphs, lines, sentences: the coarsest cuts that fit (default)
    FixedChunker       windows of equal length
    SentenceChunker    whole sentences until a passage is full
    SemanticChunker    where the meaning changes from one sentence to the next
    CodeChunker        at definitions, by indentation
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import ClassVar, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from atlas.errors import ConfigurationError
from atlas.knowledge.documents import Chunk, Document, heading_path

__all__ = [
    "Chunker",
    "CodeChunker",
    "FixedChunker",
    "SemanticChunker",
    "SentenceChunker",
    "StructureChunker",
    "TokenStarts",
]

TokenStarts = Callable[[str], NDArray[np.int64]]
"""Returns where in a text each of its tokens begins, in characters, ascending."""

SIZE: Final = 240
"""How long a passage may be by default: with a title before it, what the local model takes in."""

Span = tuple[int, int]


class Chunker(Protocol):
    """Cuts documents into passages. Stateless; any thread may call it."""

    @property
    def name(self) -> str:
        """What it is and how it is set, for the record: equal names cut equally."""
        ...

    def chunk(self, document: Document, token_starts: TokenStarts) -> list[Chunk]:
        """Return the passages, in order; none for a document without words."""
        ...


@dataclass(frozen=True, slots=True)
class _Sized:
    """What chunkers by size have in common.

    Args:
        size: Longest passage, in tokens.
        overlap: Tokens of the passage before that a passage repeats.

    Raises:
        ConfigurationError: A size below 8, or an overlap that is not below the size.
    """

    kind: ClassVar[str]

    size: int = SIZE
    overlap: int = 0

    def __post_init__(self) -> None:
        _check(self.size, self.overlap)

    @property
    def name(self) -> str:
        """What it is, its size and its overlap: ``structure/240/0``."""
        return f"{self.kind}/{self.size}/{self.overlap}"


@dataclass(frozen=True, slots=True)
class StructureChunker(_Sized):
    """Cuts at the coarsest places that make passages fit: headings first, then paragraphs and so on.

    Neighbouring pieces are put together again as long as they fit, so that passages are nearly as
    long as allowed. Small sections share a passage; one that does not fit starts a new one.

    Args:
        size: Longest passage, in tokens.
        overlap: Tokens of the passage before that a passage repeats.

    Raises:
        ConfigurationError: A size below 8, or an overlap that is not below the size.
    """

    kind: ClassVar[str] = "structure"

    def chunk(self, document: Document, token_starts: TokenStarts) -> list[Chunk]:
        """Return the passages, in order."""
        cuts = _CODE_CUTS if document.kind == "code" else _PROSE_CUTS
        return _cut(document, token_starts, self.size, self.overlap, cuts)


@dataclass(frozen=True, slots=True)
class CodeChunker(_Sized):
    """Cuts source code at the definitions that are least indented, and those in them when needed.

    Args:
        size: Longest passage, in tokens.
        overlap: Tokens of the passage before that a passage repeats.

    Raises:
        ConfigurationError: A size below 8, or an overlap that is not below the size.
    """

    kind: ClassVar[str] = "code"

    def chunk(self, document: Document, token_starts: TokenStarts) -> list[Chunk]:
        """Return the passages, in order."""
        return _cut(document, token_starts, self.size, self.overlap, _CODE_CUTS)


@dataclass(frozen=True, slots=True)
class SentenceChunker(_Sized):
    """Fills passages with whole sentences; only a sentence longer than a passage is cut.

    Args:
        size: Longest passage, in tokens.
        overlap: Tokens of the passage before that a passage repeats.

    Raises:
        ConfigurationError: A size below 8, or an overlap that is not below the size.
    """

    kind: ClassVar[str] = "sentence"

    def chunk(self, document: Document, token_starts: TokenStarts) -> list[Chunk]:
        """Return the passages, in order."""
        return _cut(document, token_starts, self.size, self.overlap, (_SENTENCE, _SPACE))


@dataclass(frozen=True, slots=True)
class FixedChunker(_Sized):
    """Cuts windows of equal length, wherever they end.

    Args:
        size: Length of a passage, in tokens.
        overlap: Tokens of the passage before that a passage repeats.

    Raises:
        ConfigurationError: A size below 8, or an overlap that is not below the size.
    """

    kind: ClassVar[str] = "fixed"

    def chunk(self, document: Document, token_starts: TokenStarts) -> list[Chunk]:
        """Return the passages, in order."""
        ruler = _Ruler(document.text, token_starts)
        spans = ruler.windows((0, len(document.text)), self.size, self.size - self.overlap)
        return _chunks(document, ruler, spans)


@dataclass(frozen=True, slots=True)
class SemanticChunker:
    """Cuts where one sentence means something else than the one before.

    Args:
        embed: Returns one unit vector per text, such as `Embedder.embed`. It is called once for
            each document, with all its sentences.
        drop: The share of cuts between sentences to make, at the greatest drops of likeness.
        size: Longest passage, in tokens.

    Raises:
        ConfigurationError: A size below 8, or a drop that is no share.
    """

    embed: Callable[[Sequence[str]], NDArray[np.float32]]
    drop: float = 0.2
    size: int = SIZE

    def __post_init__(self) -> None:
        _check(self.size, 0)
        if not 0 < self.drop < 1:
            raise ConfigurationError(
                f"drop is {self.drop!r}. Give a share of the cuts above 0 and below 1, such as 0.2."
            )

    @property
    def name(self) -> str:
        """``semantic/<size>/<drop>``."""
        return f"semantic/{self.size}/{self.drop}"

    def chunk(self, document: Document, token_starts: TokenStarts) -> list[Chunk]:
        """Return the passages, in order."""
        text = document.text
        ruler = _Ruler(text, token_starts)
        sentences = [
            span
            for span in _pieces((0, len(text)), _SENTENCE(document))
            if text[slice(*span)].strip()
        ]
        levels = _levels(document, (_SENTENCE, _SPACE))
        fitting = (
            part
            for group in self._groups(text, sentences)
            for part in _fit(group, levels, ruler, self.size)
        )
        return _chunks(document, ruler, fitting)

    def _groups(self, text: str, sentences: Sequence[Span]) -> list[Span]:
        if len(sentences) < 3:
            return [(sentences[0][0], sentences[-1][1])] if sentences else []
        vectors = self.embed([text[start:end] for start, end in sentences])
        likeness = np.einsum("ij,ij->i", vectors[:-1], vectors[1:])
        cuts = int(np.ceil(len(likeness) * self.drop))
        before = np.sort(np.argsort(likeness, kind="stable")[:cuts]) + 1
        edges = [0, *before.tolist(), len(sentences)]
        return [(sentences[first][0], sentences[last - 1][1]) for first, last in pairwise(edges)]


# -- where a text may be cut ----------------------------------------------------------------------

Cuts = Callable[[Document], list[int]]


def _matches(pattern: str) -> Cuts:
    compiled = re.compile(pattern, re.MULTILINE)
    return lambda document: [match.end() for match in compiled.finditer(document.text)]


def _headings(document: Document, deepest: int) -> list[int]:
    return [each.offset for each in document.headings if each.level <= deepest]


_PARAGRAPH: Final = _matches(r"\n[ \t]*\n\s*")
_LINE: Final = _matches(r"\n")
# A full stop and a space, but not after a single letter ("e. g.", "J. Smith") or a number ("1. ").
_SENTENCE: Final = _matches(
    r"(?<![\s.][A-Za-z0-9][.!?])(?<=[.!?…])[\"')\]]*\s+|(?<=[。！？])|\n[ \t]*\n\s*"
)
_SPACE: Final = _matches(r"\s+")


def _definitions(indent: int) -> Cuts:
    """Return cuts before lines that begin a definition and are indented no further."""
    words = (
        "def|class|async|function|func|fn|pub|impl|struct|enum|interface|export|public|private|"
        "static|const|type|module|package"
    )
    return _matches(rf"\n(?=[ ]{{0,{indent}}}(?:@|(?:{words})\b))")


_PROSE_CUTS: Final[tuple[Cuts, ...]] = (
    lambda document: _headings(document, 1),
    lambda document: _headings(document, 2),
    lambda document: _headings(document, 99),
    _PARAGRAPH,
    _LINE,
    _SENTENCE,
    _SPACE,
)
_CODE_CUTS: Final[tuple[Cuts, ...]] = (
    lambda document: _headings(document, 1),
    lambda document: _headings(document, 99),
    _definitions(0),
    _definitions(4),
    _PARAGRAPH,
    _LINE,
    _SPACE,
)


# -- cutting --------------------------------------------------------------------------------------


# A token that is longer counts as one for each so many letters.
_LONGEST: Final = 64
_LETTERS: Final = 16


class _Ruler:
    """Measures spans of one text in tokens."""

    def __init__(self, text: str, token_starts: TokenStarts) -> None:
        self.text = text
        self._starts: list[int] = _filled(token_starts(text), len(text)).tolist()

    def tokens(self, span: Span) -> int:
        return bisect_left(self._starts, span[1]) - bisect_left(self._starts, span[0])

    def windows(self, span: Span, size: int, step: int) -> Iterator[Span]:
        """Yield spans of ``size`` tokens, each beginning ``step`` tokens after the one before."""
        first, last = (bisect_left(self._starts, place) for place in span)
        begin, end = span  # which may begin within a token, as a heading may
        while begin < end:
            until = first + size
            yield begin, end if until >= last else self._starts[until]
            if until >= last:
                return
            first += step
            begin = self._starts[first]

    def back(self, place: int, tokens: int, limit: int) -> int:
        """Return the place that many tokens before, at the beginning of a word, from a limit on."""
        index = max(0, bisect_left(self._starts, place) - tokens)
        begin = max(limit, self._starts[index]) if self._starts else limit
        while begin < place and begin > limit and not self.text[begin - 1].isspace():
            begin += 1
        return begin


def _filled(starts: NDArray[np.int64], end: int) -> NDArray[np.int64]:
    """Return the starts of tokens, with some more within those that are longer than a word is.

    A model takes base64 or a minified script for one unknown word, of megabytes perhaps.
    """
    lengths = np.diff(starts, append=end)
    inside = [
        np.arange(start + _LETTERS, start + length, _LETTERS)
        for start, length in zip(
            starts[lengths > _LONGEST], lengths[lengths > _LONGEST], strict=True
        )
    ]
    return np.sort(np.concatenate([starts, *inside])) if inside else starts


def _cut(
    document: Document, token_starts: TokenStarts, size: int, overlap: int, cuts: Sequence[Cuts]
) -> list[Chunk]:
    ruler = _Ruler(document.text, token_starts)
    spans = list(_fit((0, len(document.text)), _levels(document, cuts), ruler, size - overlap))
    return _chunks(document, ruler, _overlapping(spans, ruler, overlap))


def _levels(document: Document, cuts: Sequence[Cuts]) -> tuple[Callable[[], list[int]], ...]:
    """Return the places of each kind of cut; they are looked for when they are needed, once."""
    return tuple(cache(partial(cut, document)) for cut in cuts)


def _fit(
    span: Span, levels: Sequence[Callable[[], list[int]]], ruler: _Ruler, size: int
) -> Iterator[Span]:
    """Yield spans that fit, cut at the coarsest places that allow it."""
    if ruler.tokens(span) <= size:
        yield span
        return
    if not levels:
        yield from ruler.windows(span, size, size)
        return
    for group in _merged(_pieces(span, levels[0]()), ruler, size):
        yield from _fit(group, levels[1:], ruler, size)


def _pieces(span: Span, places: Sequence[int]) -> Iterator[Span]:
    """Yield what the places inside a span cut it into."""
    begin, end = span
    for index in range(bisect_left(places, begin + 1), len(places)):
        place = places[index]
        if place >= end:
            break
        if place > begin:
            yield begin, place
            begin = place
    yield begin, end


def _merged(pieces: Iterable[Span], ruler: _Ruler, size: int) -> Iterator[Span]:
    """Put neighbours together as long as they fit."""
    begin, end, length = -1, -1, 0
    for piece in pieces:
        tokens = ruler.tokens(piece)
        if begin >= 0 and length + tokens <= size:
            end, length = piece[1], length + tokens
            continue
        if begin >= 0:
            yield begin, end
        begin, end, length = *piece, tokens
    if begin >= 0:
        yield begin, end


def _overlapping(spans: Sequence[Span], ruler: _Ruler, overlap: int) -> Iterator[Span]:
    before = 0
    for start, end in spans:
        yield (ruler.back(start, overlap, before) if overlap and start else start), end
        before = start


def _chunks(document: Document, ruler: _Ruler, spans: Iterable[Span]) -> list[Chunk]:
    """Return chunks for spans, without the white space around them and without empty ones."""
    chunks = []
    for start, end in spans:
        passage = document.text[start:end]
        start += len(passage) - len(passage.lstrip())
        end = start + len(passage.strip())
        if start < end:
            path = heading_path(document.headings, start)
            chunks.append(Chunk(start, end, ruler.tokens((start, end)), path))
    return chunks


def _check(size: object, overlap: object) -> None:
    if not isinstance(size, int) or size < 8:
        raise ConfigurationError(f"size is {size!r}. Give a number of tokens from 8 on.")
    if not (isinstance(overlap, int) and 0 <= overlap < size):
        raise ConfigurationError(
            f"overlap is {overlap!r}. Give a number of tokens from 0 to below the size, {size}."
        )

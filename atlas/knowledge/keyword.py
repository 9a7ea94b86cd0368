"""Search by words: BM25 over an index that grows by segments and is read without locks.

The index knows texts by row numbers, given out by its owner in ascending order. It never forgets a
row; who searches says which rows are alive, and the statistics count only those. So one index
answers for the present and for every earlier version.
"""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atlas.errors import MissingDependencyError

try:
    import snowballstemmer
except ImportError as error:
    raise MissingDependencyError(
        "Search by words needs the package snowballstemmer; "
        "install it with `pip install 'atlas[knowledge]'`.",
        extra="knowledge",
    ) from error

__all__ = ["KeywordIndex", "TermScore", "terms"]

Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]

# How much the repetition of a word counts, and how much the length of a text.
_K1: Final = 1.2
_B: Final = 0.75
# A word in more than this share of the texts says next to nothing, and costs the most.
_COMMON: Final = 0.35
_COMMON_FROM: Final = 1_000
_FORMAT: Final = b"atlas keyword index 1\n"

_WORD: Final = re.compile(r"[^\W_]+")
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Scripts written without spaces: their words are not to be told apart, pairs of signs serve as well.
_UNSPACED: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]{2,}")


def terms(text: str) -> list[str]:
    """Return the index terms of a text: its words in lower case, by their stems.

    The parts of ``camelCase`` and ``snake_case`` words are terms too; of scripts written without
    spaces, each pair of neighbouring signs is one.
    """
    found: list[str] = []
    for word in _WORD.findall(text):
        found.append(_stem(word.lower()))
        if not word.islower() and len(parts := _HUMP.split(word)) > 1:
            found.extend(_stem(part.lower()) for part in parts)
        elif not word.isascii() and _UNSPACED.search(word):
            found.extend("".join(pair) for pair in pairwise(word))
    return found


@lru_cache(maxsize=200_000)
def _stem(word: str) -> str:
    if len(word) < 4 or not word.isascii() or not word.isalpha():
        return word
    stem: str = _STEMMER.stemWord(word)
    return stem


_STEMMER: Final = snowballstemmer.stemmer("english")


@dataclass(frozen=True, slots=True)
class TermScore:
    """What one word of a query adds to the score of a text.

    Attributes:
        term: The word's stem.
        texts: In how many texts it occurs.
        weight: How telling it is: the rarer, the more.
        score: What it adds.
    """

    term: str
    texts: int
    weight: float
    score: float


@dataclass(frozen=True, slots=True)
class _Segment:
    """The postings of a range of rows: for each term, which rows hold it and how often."""

    first: int
    vocabulary: Mapping[str, int]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int32]
    counts: NDArray[np.uint16]
    lengths: NDArray[np.int32]

    @classmethod
    def of(cls, first: int, texts: Iterable[Sequence[str]]) -> _Segment:
        vocabulary: dict[str, int] = {}
        numbers: list[int] = []
        rows: list[int] = []
        counts: list[int] = []
        lengths: list[int] = []
        for row, words in enumerate(texts):
            lengths.append(len(words))
            for term, count in Counter(words).items():
                numbers.append(vocabulary.setdefault(term, len(vocabulary)))
                rows.append(row)
                counts.append(min(count, 65_535))
        return cls._sorted(
            first,
            vocabulary,
            np.array(lengths, np.int32),
            numbers=np.array(numbers, np.int32),
            rows=np.array(rows, np.int32),
            counts=np.array(counts, np.uint16),
        )

    @classmethod
    def _sorted(
        cls,
        first: int,
        vocabulary: Mapping[str, int],
        lengths: NDArray[np.int32],
        *,
        numbers: NDArray[np.int32],
        rows: NDArray[np.int32],
        counts: NDArray[np.uint16],
    ) -> _Segment:
        order = np.argsort(numbers, kind="stable")
        offsets = np.zeros(len(vocabulary) + 1, np.int64)
        np.cumsum(np.bincount(numbers, minlength=len(vocabulary)), out=offsets[1:])
        return cls(first, vocabulary, offsets, rows[order], counts[order], lengths)

    def joined(self, after: _Segment) -> _Segment:
        """Return one segment with the rows of this one and of the one after it."""
        vocabulary = dict(self.vocabulary)
        moved = np.array(
            [vocabulary.setdefault(term, len(vocabulary)) for term in after.vocabulary], np.int32
        )
        here = np.repeat(np.arange(len(self.vocabulary), dtype=np.int32), np.diff(self.offsets))
        there = np.repeat(moved, np.diff(after.offsets))
        shift = np.int32(len(self.lengths))
        return self._sorted(
            self.first,
            vocabulary,
            np.concatenate([self.lengths, after.lengths]),
            numbers=np.concatenate([here, there]),
            rows=np.concatenate([self.rows, after.rows + shift]),
            counts=np.concatenate([self.counts, after.counts]),
        )

    def postings(self, term: str) -> tuple[NDArray[np.int32], NDArray[np.uint16]] | None:
        number = self.vocabulary.get(term)
        if number is None:
            return None
        span = slice(self.offsets[number], self.offsets[number + 1])
        return self.rows[span], self.counts[span]


@dataclass(frozen=True, slots=True)
class KeywordIndex:
    """A BM25 index. It never changes: `extended` returns a larger one that shares its parts.

    So any number of threads may search one while another is being made from it.
    """

    segments: tuple[_Segment, ...] = ()

    @property
    def size(self) -> int:
        """How many rows it knows; the next one is given this number."""
        last = self.segments[-1] if self.segments else None
        return last.first + len(last.lengths) if last else 0

    def extended(self, texts: Iterable[str]) -> KeywordIndex:
        """Return an index that also knows these texts, as the next rows."""
        added = _Segment.of(self.size, map(terms, texts))
        if not len(added.lengths):
            return self
        segments = [*self.segments, added]
        # Neighbours of like size become one, so that there are few and each row moves rarely.
        while len(segments) > 1 and len(segments[-2].lengths) <= 2 * len(segments[-1].lengths):
            after = segments.pop()
            segments.append(segments.pop().joined(after))
        return KeywordIndex(tuple(segments))

    def scores(self, query: str, alive: Mask) -> Scores:
        """Return the score of each row for a query; 0 where none of its words occurs.

        Args:
            query: Any text.
            alive: For each row whether it counts, in scores and in statistics.
        """
        total = np.zeros(len(alive), np.float32)
        statistics = self._statistics(alive)
        wanted = Counter(terms(query))
        frequencies = {term: self._texts_with(term, alive) for term in wanted}
        for term in _telling(frequencies, statistics.texts):
            weight = statistics.weight(frequencies[term]) * wanted[term]
            for segment in self.segments:
                self._add(total, segment, term, weight, statistics)
        total[~alive] = 0
        return total

    def explain(self, query: str, row: int, alive: Mask) -> list[TermScore]:
        """Return what each word of a query adds to the score of one row; they sum up to it."""
        statistics = self._statistics(alive)
        wanted = Counter(terms(query))
        frequencies = {term: self._texts_with(term, alive) for term in wanted}
        told = []
        for term in _telling(frequencies, statistics.texts):
            weight = statistics.weight(frequencies[term]) * wanted[term]
            single = np.zeros(len(alive), np.float32)
            for segment in self.segments:
                if segment.first <= row < segment.first + len(segment.lengths):
                    self._add(single, segment, term, weight, statistics)
            if single[row]:
                told.append(TermScore(term, frequencies[term], weight, float(single[row])))
        return told

    def _add(
        self, total: Scores, segment: _Segment, term: str, weight: float, statistics: _Statistics
    ) -> None:
        found = segment.postings(term)
        if found is None:
            return
        rows, counts = found
        within = len(total) - segment.first
        if within < len(segment.lengths):  # the segment has grown since these rows were counted
            kept = rows < within
            rows, counts = rows[kept], counts[kept]
        often = counts.astype(np.float32)
        length = segment.lengths[rows].astype(np.float32)
        length *= _K1 * _B / statistics.average
        length += _K1 * (1 - _B)
        length += often
        often *= weight * (_K1 + 1)
        often /= length
        # Each row occurs once among the postings of a term, so nothing is added twice.
        total[rows + segment.first] += often

    def _texts_with(self, term: str, alive: Mask) -> int:
        count = 0
        # Mostly all rows are alive, and then counting them is all it takes.
        every = len(alive) == self.size and bool(alive.all())
        for segment in self.segments:
            found = segment.postings(term)
            if found is not None and every:
                count += len(found[0])
            elif found is not None:
                rows = found[0] + segment.first
                count += int(np.count_nonzero(alive[rows[rows < len(alive)]]))
        return count

    def _statistics(self, alive: Mask) -> _Statistics:
        texts = int(np.count_nonzero(alive))
        words = 0
        for segment in self.segments:
            part = alive[segment.first : segment.first + len(segment.lengths)]
            words += int(segment.lengths[: len(part)][part].sum())
        return _Statistics(texts, max(words / texts, 1.0) if texts else 1.0)

    # -- keeping it, to save the time of making it again --

    def save(self, path: Path, mark: bytes) -> None:
        """Write the index to a file, in one step.

        Args:
            path: Where to.
            mark: What it was made from, up to 64 bytes; `load` returns it too.
        """
        index = self
        while len(index.segments) > 1:
            *others, before, after = index.segments
            index = KeywordIndex((*others, before.joined(after)))
        content = io.BytesIO()
        if index.segments:
            (segment,) = index.segments
            vocabulary = "\n".join(segment.vocabulary).encode("utf-8")
            np.savez(
                content,
                vocabulary=np.frombuffer(vocabulary, np.uint8),
                offsets=segment.offsets,
                # As differences they are small numbers, and take little room.
                rows=np.diff(segment.rows, prepend=np.int32(0)),
                counts=segment.counts,
                lengths=segment.lengths,
            )
        packed = zlib.compress(content.getvalue(), 1)
        head = _FORMAT + len(mark).to_bytes(4, "little") + mark
        check = zlib.crc32(head + packed).to_bytes(4, "little")
        unfinished = path.with_name(path.name + ".new")
        unfinished.write_bytes(head + check + packed)
        unfinished.replace(path)

    @classmethod
    def load(cls, path: Path) -> tuple[KeywordIndex, bytes] | None:
        """Return the index in a file, and its mark; None when there is none, or a damaged one."""
        try:
            content = path.read_bytes()
        except OSError:
            return None
        begin = len(_FORMAT) + 4
        end = begin + int.from_bytes(content[len(_FORMAT) : begin], "little")
        check = int.from_bytes(content[end : end + 4], "little")
        packed = content[end + 4 :]
        if not content.startswith(_FORMAT) or zlib.crc32(content[:end] + packed) != check:
            return None
        mark = content[begin:end]
        unpacked = zlib.decompress(packed)
        if not unpacked:
            return cls(), mark
        with np.load(io.BytesIO(unpacked)) as parts:
            words = parts["vocabulary"].tobytes().decode("utf-8").split("\n")
            segment = _Segment(
                0,
                {word: number for number, word in enumerate(words)},
                parts["offsets"],
                np.cumsum(parts["rows"], dtype=np.int32),
                parts["counts"],
                parts["lengths"],
            )
        return cls((segment,)), mark


@dataclass(frozen=True, slots=True)
class _Statistics:
    """How many texts count, and how many words one of them has on average."""

    texts: int
    average: float

    def weight(self, frequency: int) -> float:
        return float(np.log1p((self.texts - frequency + 0.5) / (frequency + 0.5)))


def _telling(frequencies: Mapping[str, int], texts: int) -> list[str]:
    """Return the terms worth looking at: not those in most texts, unless there are no others."""
    occurring = [term for term, frequency in frequencies.items() if frequency]
    if texts < _COMMON_FROM:
        return occurring
    rare = [term for term in occurring if frequencies[term] <= _COMMON * texts]
    return rare or occurring

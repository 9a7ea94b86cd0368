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
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

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

__all__ = ["KeywordIndex", "Statistics", "TermScore", "terms"]

Scores = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Whole = TypeVar("Whole", np.int32, np.uint16)

# How much the repetition of a word counts, and how much the length of a text.
_K1: Final = 1.2
_B: Final = 0.75
# A word in more than this share of the texts says next to nothing, and costs the most.
_COMMON: Final = 0.35
_COMMON_FROM: Final = 1_000
# Up to this many rows, each is looked at.
_FEW: Final = 2_000
# Looking a row up in the postings of a word takes about as long as going over so many of them.
_LOOK_UP: Final = 8
# Scores are sums of rounded numbers; what is left is taken for a little more than it is.
_ROUNDING: Final = 1.001
_LEAST: Final = float(np.finfo(np.float32).tiny)
_FORMAT: Final = b"atlas keyword index 2\n"

_WORD: Final = re.compile(r"[^\W_]+")
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Scripts written without spaces: their words are not to be told apart, pairs of signs serve as well.
_UNSPACED: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\u0e00-\u0e7f]{2,}")


def terms(text: str) -> list[str]:
    """Return the index terms of a text: its words in lower case, by their stems.

    The parts of ``camelCase`` and ``snake_case`` words are terms too; of scripts written without
    spaces, each pair of neighbouring signs is one.
    """
    return [*chain.from_iterable(map(_terms_of, _WORD.findall(text)))]


@lru_cache(maxsize=200_000)
def _terms_of(word: str) -> tuple[str, ...]:
    whole = _stem(word.lower())
    if not word.islower() and len(parts := _HUMP.split(word)) > 1:
        return (whole, *(_stem(part.lower()) for part in parts))
    if not word.isascii() and _UNSPACED.search(word):
        return (whole, *("".join(pair) for pair in pairwise(word)))
    return (whole,)


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

    @property
    def span(self) -> slice:
        """Its rows among all."""
        return slice(self.first, self.first + len(self.lengths))

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

    def statistics(self, alive: Mask) -> Statistics:
        """Return what scores depend on beside the words of a row: which rows count.

        Args:
            alive: For each row whether it counts.
        """
        texts = int(np.count_nonzero(alive))
        words = sum(int(each.lengths[alive[each.span]].sum()) for each in self.segments)
        average = max(words / texts, 1.0) if texts else 1.0
        slope, least = np.float32(_K1 * _B / average), np.float32(_K1 * (1 - _B))
        return Statistics(
            alive, texts, tuple(each.lengths * slope + least for each in self.segments)
        )

    def best(
        self, query: str, statistics: Statistics, k: int, *, among: Mask | None = None
    ) -> Rows:
        """Return the rows with the k best scores for a query, in no order; those of score 0 never.

        Words are taken in the order of what they can add to a score. As soon as those that are left
        cannot bring a row among the k best that has none of the others, only rows near the k best
        are looked at: common words, of which most rows have some, cost next to nothing.

        Args:
            query: Any text.
            statistics: Those of the rows that are alive.
            k: How many to return, if there are as many.
            among: For each row whether it may be returned; of those that are alive. None: all.
        """
        if among is None:
            among = None if statistics.every else statistics.alive
        elif np.count_nonzero(among) <= _FEW:
            rows = np.flatnonzero(among)
            return _largest(rows, self.scores(query, statistics, rows), k)
        words = self._telling(query, statistics)
        total = np.zeros(len(statistics.alive), np.float32)
        rest, left = sum(word.most for word in words), sum(word.texts for word in words)
        for number, word in enumerate(words):
            # Finding out takes about as long as going over so many postings.
            if number and left * 4 > len(total):
                shown = total if among is None else total * among
                near = _floor(shown, k) - rest * _ROUNDING
                if near > 0 and np.count_nonzero(shown >= near) * _LOOK_UP < left:
                    rows = np.flatnonzero(shown >= near)
                    scores = shown[rows]
                    for each in words[number:]:
                        self._look_up(scores, rows, each, statistics)
                    return _largest(rows, scores, k)
            self._add(total, word, statistics)
            rest -= word.most
            left -= word.texts
        shown = total if among is None else total * among
        rows = np.flatnonzero(shown >= max(_floor(shown, k), _LEAST))
        return _largest(rows, shown[rows], k)

    def scores(self, query: str, statistics: Statistics, rows: Rows) -> Scores:
        """Return the scores of rows for a query; 0 where none of its words occurs.

        Args:
            query: Any text.
            statistics: Those of the rows that are alive.
            rows: Some of these, ascending.
        """
        scores = np.zeros(len(rows), np.float32)
        for word in self._telling(query, statistics):
            self._look_up(scores, rows, word, statistics)
        return scores

    def explain(self, query: str, statistics: Statistics, row: int) -> list[TermScore]:
        """Return what each word of a query adds to the score of one row; they sum up to it."""
        told = []
        for word in self._telling(query, statistics):
            score = np.zeros(1, np.float32)
            self._look_up(score, np.array([row]), word, statistics)
            if score[0]:
                told.append(TermScore(word.term, word.texts, word.weight, float(score[0])))
        return told

    def _add(self, total: Scores, word: _Word, statistics: Statistics) -> None:
        """Add what a word gives to the scores of all rows."""
        for segment, damping in zip(self.segments, statistics.damping, strict=True):
            found = segment.postings(word.term)
            if found is not None:
                # Adding in place by an index array would take three times as long.
                np.add.at(total[segment.span], found[0], _gains(word, *found, damping))

    def _look_up(self, scores: Scores, rows: Rows, word: _Word, statistics: Statistics) -> None:
        """Add what a word gives to the scores of a few rows."""
        for segment, damping in zip(self.segments, statistics.damping, strict=True):
            found = segment.postings(word.term)
            if found is None:
                continue
            texts, counts = found
            here = slice(*np.searchsorted(rows, (segment.span.start, segment.span.stop)))
            wanted = (rows[here] - segment.first).astype(np.int32)
            places = np.searchsorted(texts, wanted)
            np.minimum(places, len(texts) - 1, out=places)
            held = texts[places] == wanted
            places = places[held]
            scores[here][held] += _gains(word, texts[places], counts[places], damping)

    def _telling(self, query: str, statistics: Statistics) -> list[_Word]:
        """Return the words worth looking at, those that can give most first.

        Not those that are in most texts, unless there are no others.
        """
        wanted = Counter(terms(query))
        occurring = {
            term: texts for term in wanted if (texts := self._texts_with(term, statistics))
        }
        if statistics.texts >= _COMMON_FROM:
            most = _COMMON * statistics.texts
            occurring = {t: texts for t, texts in occurring.items() if texts <= most} or occurring
        words = [
            _Word(term, texts, statistics.weight(texts) * wanted[term])
            for term, texts in occurring.items()
        ]
        return sorted(words, key=lambda word: -word.weight)

    def _texts_with(self, term: str, statistics: Statistics) -> int:
        count = statistics.counted.get(term)
        if count is None:
            found = [(each, each.postings(term)) for each in self.segments]
            count = sum(
                len(postings[0])
                # Mostly all rows are alive, and then counting them is all it takes.
                if statistics.every
                else int(np.count_nonzero(statistics.alive[segment.span][postings[0]]))
                for segment, postings in found
                if postings is not None
            )
            statistics.counted[term] = count
        return count

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
                rows=_by_weight(np.diff(segment.rows, prepend=np.int32(0))),
                counts=_by_weight(segment.counts),
                lengths=segment.lengths,
            )
        packed = zlib.compress(content.getvalue(), 4)
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
                np.cumsum(_from_weight(parts["rows"], np.int32), dtype=np.int32),
                _from_weight(parts["counts"], np.uint16),
                parts["lengths"],
            )
        return cls((segment,)), mark


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the score of a row depends on beside its own words; made by `KeywordIndex.statistics`.

    Attributes:
        alive: For each row whether it counts.
        texts: How many do.
        damping: For each row of each segment, what keeps long texts from gaining by their length.
        counted: By word, in how many texts it is, as far as it was counted.
    """

    alive: Mask
    texts: int
    damping: tuple[Scores, ...]
    counted: dict[str, int] = field(default_factory=dict)

    @property
    def every(self) -> bool:
        """Whether all rows count."""
        return self.texts == len(self.alive)

    def weight(self, frequency: int) -> float:
        """Return how telling a word is that so many texts have."""
        return float(np.log1p((self.texts - frequency + 0.5) / (frequency + 0.5)))


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of a query: its stem, how many texts have it, and what its occurrence is worth."""

    term: str
    texts: int
    weight: float

    @property
    def most(self) -> float:
        """What it adds to a score at most."""
        return self.weight * (_K1 + 1)


def _by_weight(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of whole numbers, a row of each weight: small numbers are rows of zeros then."""
    return np.ascontiguousarray(numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize).T)


def _from_weight(rows: NDArray[np.uint8], kind: type[Whole]) -> NDArray[Whole]:
    return np.ascontiguousarray(rows.T).view(kind).reshape(-1)


def _gains(
    word: _Word, rows: NDArray[np.int32], counts: NDArray[np.uint16], damping: Scores
) -> Scores:
    """Return what a word adds to the scores of rows that have it so often."""
    often = counts.astype(np.float32)
    damped = damping.take(rows)
    damped += often
    often *= np.float32(word.most)
    often /= damped
    return often


def _floor(scores: Scores, k: int) -> float:
    """Return a number that at least k of the scores reach, and not many more; 0 for fewer scores.

    The k-th largest of the largest scores of many groups: some ten times faster than the k-th
    largest of all.
    """
    groups = 8 * k
    if len(scores) < 4 * groups:
        return float(np.partition(scores, -k)[-k]) if len(scores) > k else 0.0
    whole = len(scores) - len(scores) % groups
    largest = scores[:whole].reshape(-1, groups).max(axis=0)
    return float(np.partition(largest, -k)[-k])


def _largest(rows: Rows, scores: Scores, k: int) -> Rows:
    """Return those of the rows that have the k largest scores above 0."""
    if len(rows) > k:
        chosen = np.argpartition(scores, -k)[-k:]
        rows, scores = rows[chosen], scores[chosen]
    return rows[scores > 0]

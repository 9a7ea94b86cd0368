"""How candidates become a ranking: fusion of two searches, boosts, diversity; and why, in numbers.

Everything here is a pure function of arrays: no store, no model, no text is read. Each candidate is
measured by both searches, exactly, whichever of them had found it; so fusing needs no guess about
what one of them did not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from atlas.errors import ConfigurationError
from atlas.knowledge.keyword import TermScore, terms
from atlas.knowledge.messages import SearchMode

__all__ = [
    "Explanation",
    "QueryExpander",
    "Ranking",
    "Reranker",
    "diverse",
    "fused",
    "heading_matches",
    "ranks",
    "spread",
]

Numbers = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """How a search weighs what it knows. The defaults were chosen on a development set.

    Attributes:
        fusion: ``convex``: the weighted sum of both scores, each brought to 0…1 among the
            candidates; ``rrf``: reciprocal rank fusion, which looks at ranks only.
        weight: The share of meaning in ``convex``; the rest is that of words.
        rrf_k: How slowly the weight of a rank falls in ``rrf``.
        candidates: How many passages each search contributes; more is slower and hardly better.
        length_penalty: What a passage loses for each e-fold of passages in its document: long
            documents have more chances to be hit by accident.
        heading_boost: What a passage gains when its headings hold all words of the question.

    Raises:
        ConfigurationError: A number is out of its range.
    """

    fusion: Literal["convex", "rrf"] = "convex"
    weight: float = 0.6
    rrf_k: int = 60
    candidates: int = 100
    length_penalty: float = 0.02
    heading_boost: float = 0.02

    def __post_init__(self) -> None:
        if self.fusion not in {"convex", "rrf"}:
            raise ConfigurationError(f"fusion is {self.fusion!r}. Say 'convex' or 'rrf'.")
        if not 0 <= self.weight <= 1:
            raise ConfigurationError(f"weight is {self.weight!r}. Give a share from 0 to 1.")
        if self.candidates < 1 or self.rrf_k < 1:
            raise ConfigurationError(
                f"candidates is {self.candidates!r} and rrf_k {self.rrf_k!r}. Both are at least 1."
            )
        for name in ("length_penalty", "heading_boost"):
            if not math.isfinite(value := getattr(self, name)):
                raise ConfigurationError(
                    f"{name} is {value!r}. Give a finite number, such as 0.02."
                )


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a passage has its score: ``score == fused - length_penalty + heading_boost``.

    When a reranker has spoken, the score is the reranker's, and these are what came before.

    Attributes:
        similarity: The cosine between the vectors of question and passage; None in a search by words.
        similarity_rank: Its place among the candidates by meaning, from 1.
        words: Its BM25 score; None in a search by meaning.
        words_rank: Its place among the candidates by words, from 1; None when no word occurs.
        terms: What each word adds to ``words``; only when asked for by ``explain=True``.
        fused: Both together, in 0…1.
        length_penalty: What was taken away because its document is long.
        heading_boost: What was added because its headings fit.
        reranked: What a reranker gave it; None when there was none.
    """

    similarity: float | None
    similarity_rank: int | None
    words: float | None
    words_rank: int | None
    fused: float
    length_penalty: float
    heading_boost: float
    terms: tuple[TermScore, ...] = ()
    reranked: float | None = None


class Reranker(Protocol):
    """Orders passages by a closer look than a search can afford."""

    def __call__(self, query: str, passages: Sequence[str]) -> Sequence[float]:
        """Return one score per passage, the higher the better."""
        ...


class QueryExpander(Protocol):
    """Finds other wordings of a question, such as `atlas.knowledge.expansion.ProviderExpander`."""

    async def __call__(self, query: str) -> Sequence[str]:
        """Return other wordings, without the given one; none is fine."""
        ...


_NOTHING: Final = 1e-9


def fused(
    similarity: Numbers | None, words: Numbers | None, mode: SearchMode, ranking: Ranking
) -> Numbers:
    """Return one score per candidate, in 0…1, from those of two searches.

    Args:
        similarity: The cosines of all candidates; None when not wanted.
        words: The BM25 scores of all candidates; None when not wanted.
        mode: Which of them count.
        ranking: How to weigh them.
    """
    if mode == "dense" or words is None:
        assert similarity is not None
        return _stretched(similarity)
    if mode == "keyword" or similarity is None:
        return _stretched(words)
    if ranking.fusion == "rrf":
        by_meaning = 1 / (ranking.rrf_k + ranks(similarity))
        by_words = np.where(words > 0, 1 / (ranking.rrf_k + ranks(words)), 0)
        return np.asarray((by_meaning + by_words) * (ranking.rrf_k + 1) / 2, np.float32)
    weight = np.float32(ranking.weight)
    return weight * _stretched(similarity) + (1 - weight) * _stretched(words)


def heading_matches(query: str, headings: Sequence[tuple[str, ...]]) -> NDArray[np.bool_]:
    """Return for each passage whether its headings hold all words of a question."""
    wanted = frozenset(terms(query))
    return np.array([bool(wanted) and wanted <= _terms_of(path) for path in headings], np.bool_)


@lru_cache(maxsize=20_000)
def _terms_of(path: tuple[str, ...]) -> frozenset[str]:
    return frozenset(terms(" ".join(path)))


def diverse(scores: Numbers, vectors: Numbers, k: int, diversity: float) -> list[int]:
    """Return k candidates that fit and differ: maximal marginal relevance.

    Args:
        scores: How well each candidate fits, the best first.
        vectors: Their unit vectors, as rows.
        k: How many to choose.
        diversity: From 0 (only fit counts) to 1 (only difference counts).
    """
    gain = (1 - diversity) * scores
    closest = np.zeros(len(scores), np.float32)
    left = np.ones(len(scores), np.bool_)
    chosen: list[int] = []
    for _ in range(min(k, len(scores))):
        value = np.where(left, gain - diversity * closest, -np.inf)
        best = int(value.argmax())
        chosen.append(best)
        left[best] = False
        closest = np.maximum(closest, vectors @ vectors[best])
    return chosen


def spread(documents: Sequence[int], most: int) -> list[int]:
    """Return which of ranked candidates stay when a document may have only so many."""
    seen: dict[int, int] = {}
    kept = []
    for index, document in enumerate(documents):
        seen[document] = seen.get(document, 0) + 1
        if seen[document] <= most:
            kept.append(index)
    return kept


def ranks(values: Numbers) -> NDArray[np.int64]:
    """Return the place of each value among all, from 1 for the largest."""
    order = np.argsort(-values, kind="stable")
    places = np.empty(len(values), np.int64)
    places[order] = np.arange(1, len(values) + 1)
    return places


def _stretched(values: Numbers) -> Numbers:
    """Return values moved and scaled to 0…1."""
    if not len(values):
        return values
    low, high = values.min(), values.max()
    stretched: Numbers = (values - low) / max(high - low, _NOTHING)
    return stretched.astype(np.float32)

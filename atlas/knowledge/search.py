"""One search in one collection: from a question and its vector to hits with their reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from atlas.errors import ConfigurationError
from atlas.knowledge.catalogue import Catalogue
from atlas.knowledge.collection import Collection
from atlas.knowledge.documents import heading_path
from atlas.knowledge.filters import Filter
from atlas.knowledge.hits import Hit
from atlas.knowledge.messages import SearchMode
from atlas.knowledge.retrieval import (
    Explanation,
    Ranking,
    Reranker,
    diverse,
    fused,
    heading_matches,
    spread,
)

__all__ = ["Question", "search"]

Numbers = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """All that a search is told.

    Attributes:
        query: The question.
        vectors: The unit vectors of it and of its other wordings; none in a search by words.
        wordings: Its other wordings.
        k: How many passages to return.
        mode: By meaning, by words, or both.
        where: A condition that the metadata of documents have to meet.
        at: The version of the knowledge base to search; None: now.
        per_document: Most passages of one document; None: any number.
        diversity: From 0 (only fit counts) to 1: how much passages shall differ.
        neighbours: How many passages before and after each hit to return with it.
        ranking: How to weigh what is known.
        reranker: Has the last word on the order.
        explain: Whether explanations tell each word's part.
    """

    query: str
    vectors: Numbers
    wordings: tuple[str, ...] = ()
    k: int = 5
    mode: SearchMode = "hybrid"
    where: Filter | None = None
    at: int | None = None
    per_document: int | None = None
    diversity: float = 0.0
    neighbours: int = 0
    ranking: Ranking = field(default_factory=Ranking)
    reranker: Reranker | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        if self.mode not in {"hybrid", "dense", "keyword"}:
            raise ConfigurationError(f"mode is {self.mode!r}. Say 'hybrid', 'dense' or 'keyword'.")
        _whole("k", self.k, least=1)
        _whole("neighbours", self.neighbours, least=0)
        if self.per_document is not None:
            _whole("per_document", self.per_document, least=1)
        if not 0 <= self.diversity <= 1:
            raise ConfigurationError(f"diversity is {self.diversity!r}. Give a number from 0 to 1.")


def _whole(name: str, value: object, *, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ConfigurationError(f"{name} is {value!r}. Give a whole number from {least} on.")


@dataclass(frozen=True, slots=True)
class _Measured:
    """Candidates and all numbers that are known of them, by their index."""

    rows: Rows
    scores: Numbers
    similarity: Numbers | None
    words: Numbers | None
    fused: Numbers
    penalties: Numbers
    boosts: Numbers

    def explanation(self, index: int) -> Explanation:
        similarity, words = self.similarity, self.words
        return Explanation(
            similarity=None if similarity is None else float(similarity[index]),
            similarity_rank=None if similarity is None else _rank(similarity, index),
            words=None if words is None else float(words[index]),
            words_rank=None if words is None or not words[index] else _rank(words, index),
            fused=float(self.fused[index]),
            length_penalty=float(self.penalties[index]),
            heading_boost=float(self.boosts[index]),
        )


def _rank(values: Numbers, index: int) -> int:
    """Return the place of one value among all, from 1 for the largest."""
    return 1 + int(np.count_nonzero(values > values[index]))


def search(collection: Collection, question: Question) -> list[Hit]:
    """Return the passages of a collection that answer a question best, the best first."""
    return _Search(collection, question).hits()


class _Search:
    """A search works on one catalogue from beginning to end."""

    def __init__(self, collection: Collection, question: Question) -> None:
        self.collection = collection
        self.question = question
        self.catalogue: Catalogue = collection.catalogue
        self.dense = collection.dense
        # Statistics of words are those of all that is alive; the filter does not change them.
        self.statistics = self.catalogue.statistics_at(question.at)
        self.counts = self.statistics.alive
        if question.where is not None:
            self.counts = self.counts & self.catalogue.filtered(question.where)

        # A reranker looks at more than are asked for, and what differs is chosen among more.
        self._shown = question.k if question.reranker is None else max(4 * question.k, 20)
        self._wanted = max(50, 4 * self._shown) if question.diversity else self._shown

    def hits(self) -> list[Hit]:
        if not self.counts.any():
            return []
        rows = self._candidates()
        if not len(rows):
            return []
        measured = self._measured(rows)
        found = [self._hit(index, measured) for index in self._ordered(measured)]
        if self.question.reranker is not None:
            found = _reranked(self.question, found)
        return found[: self.question.k]

    def _candidates(self) -> Rows:
        """Return the rows worth a closer look, ascending."""
        question = self.question
        enough = max(question.ranking.candidates, 4 * question.k)
        found: list[Rows] = []
        if question.mode != "keyword":
            found += [
                self.dense.search(vector, self.catalogue, self.counts, enough)
                for vector in question.vectors
            ]
        if question.mode != "dense":
            among = None if question.where is None else self.counts
            found += [
                self.catalogue.words.best(wording, self.statistics, enough, among=among)
                for wording in (question.query, *question.wordings)
            ]
        return np.unique(np.concatenate(found))

    def _measured(self, rows: Rows) -> _Measured:
        """Return the score of each candidate, and what it is made of."""
        question, ranking, catalogue = self.question, self.question.ranking, self.catalogue
        similarity = by_words = None
        if question.mode != "keyword":
            vectors = self.dense.vectors(catalogue, rows)
            similarity = (vectors @ question.vectors.T).max(axis=1)
        if question.mode != "dense":
            by_words = np.maximum.reduce(
                [
                    catalogue.words.scores(wording, self.statistics, rows)
                    for wording in (question.query, *question.wordings)
                ]
            )
        together: Numbers = fused(similarity, by_words, question.mode, ranking)
        lengths = catalogue.passages[catalogue.version_of_row[rows]]
        penalties = np.float32(ranking.length_penalty) * np.log(lengths.astype(np.float32))
        scores = together - penalties
        boosts = self._boosts(rows, scores)
        return _Measured(rows, scores + boosts, similarity, by_words, together, penalties, boosts)

    def _boosts(self, rows: Rows, scores: Numbers) -> Numbers:
        """Return what candidates gain by their headings."""
        question, boost = self.question, np.float32(self.question.ranking.heading_boost)
        boosts = np.zeros(len(rows), np.float32)
        if not boost:
            return boosts
        # Of those that may come to the front by it; reading headings takes time.
        front = self._wanted if question.per_document is None else max(50, 4 * self._wanted)
        least = np.partition(scores, -front)[-front] if len(rows) > front else scores.min()
        near = np.flatnonzero(scores >= least - boost)
        paths = [self._headings(int(row)) for row in rows[near]]
        boosts[near] = boost * heading_matches(question.query, paths)
        return boosts

    def _ordered(self, measured: _Measured) -> list[int]:
        """Return which candidates to show, in order."""
        question, rows, scores = self.question, measured.rows, measured.scores
        order: list[int] = np.argsort(-scores, kind="stable").tolist()
        if question.per_document is not None:
            versions = self.catalogue.version_of_row[rows]
            order = [
                order[i] for i in spread([int(versions[j]) for j in order], question.per_document)
            ]
        order = order[: self._wanted]
        if question.diversity:
            vectors = self.dense.vectors(self.catalogue, rows[order])
            chosen = diverse(scores[order], vectors, self._shown, question.diversity)
            return [order[index] for index in chosen]
        return order

    def _headings(self, row: int) -> tuple[str, ...]:
        version, _, chunk = self.catalogue.chunk(row)
        assert version.stored is not None
        document = version.stored.document
        return (document.title, *heading_path(document.headings, chunk.start))

    def _hit(self, index: int, measured: _Measured) -> Hit:
        row = int(measured.rows[index])
        why = measured.explanation(index)
        version, number, chunk = self.catalogue.chunk(row)
        stored = version.stored
        assert stored is not None
        start, end = chunk.start, chunk.end
        if around := self.question.neighbours:
            start = stored.chunks[max(0, number - around)].start
            end = stored.chunks[min(len(stored.chunks) - 1, number + around)].end
        text = self.collection.text_of(version)
        if self.question.explain and self.question.mode != "dense":
            told = self.catalogue.words.explain(self.question.query, self.statistics, row)
            why = replace(why, terms=tuple(told))
        line = text.count("\n", 0, start) + 1
        return Hit(
            text=text[start:end],
            source=version.source,
            version=version.number,
            start=start,
            end=end,
            line=line,
            last_line=line + text.count("\n", start, end),
            title=stored.document.title,
            headings=heading_path(stored.document.headings, chunk.start),
            score=float(measured.scores[index]),
            collection=self.collection.info.name,
            metadata=stored.document.metadata,
            explanation=why,
        )


def _reranked(question: Question, hits: Sequence[Hit]) -> list[Hit]:
    assert question.reranker is not None
    scores = list(question.reranker(question.query, [hit.text for hit in hits]))
    if len(scores) != len(hits):
        raise ConfigurationError(
            f"The reranker returned {len(scores)} scores for {len(hits)} passages. It has to return "
            f"one for each, in their order."
        )
    if not np.isfinite(scores).all():
        raise ConfigurationError(
            f"The reranker returned {scores!r}. It has to return finite numbers."
        )
    order = sorted(range(len(hits)), key=lambda index: -scores[index])
    return [
        replace(
            hits[index],
            score=float(scores[index]),
            explanation=replace(hits[index].explanation, reranked=float(scores[index])),
        )
        for index in order
    ]

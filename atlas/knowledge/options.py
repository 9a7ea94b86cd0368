"""What a search can be told, and a search with its options as a source of context for a model."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol, TypedDict

from typing_extensions import Unpack

from atlas.knowledge.filters import Filter
from atlas.knowledge.hits import Hit
from atlas.knowledge.messages import SearchMode
from atlas.knowledge.retrieval import QueryExpander, Ranking, Reranker
from atlas.providers.context import ContextPassage

__all__ = ["Search", "SearchOptions", "Searching"]


class SearchOptions(TypedDict, total=False):
    """What a search can be told, beside the question.

    Attributes:
        k: How many passages to return; default 5.
        collection: Where to search; default ``main``.
        mode: ``hybrid`` (default), ``dense`` (by meaning) or ``keyword``.
        where: A condition on the metadata, such as ``'author == "Ann" and year >= 2020'``.
        at: Search as of a version of the knowledge base, or of a time; default: now.
        per_document: Most passages of one document; default: any number.
        diversity: From 0 (default: only fit counts) to 1: how much passages shall differ.
        neighbours: How many passages before and after each hit to return with it; default 0.
        ranking: How meaning and words are weighed.
        reranker: Has the last word on the order.
        expander: Finds other wordings of the question, which are searched too.
        explain: Whether explanations tell each word's part.
    """

    k: int
    collection: str
    mode: SearchMode
    where: str | Filter | None
    at: int | datetime | None
    per_document: int | None
    diversity: float
    neighbours: int
    ranking: Ranking
    reranker: Reranker | None
    expander: QueryExpander | None
    explain: bool


class Search(Protocol):
    """How a knowledge base is searched: `Knowledge.search`."""

    async def __call__(self, query: str, **options: Unpack[SearchOptions]) -> list[Hit]:
        """Return the passages that answer a question best."""
        ...


class Searching:
    """A knowledge base with options of search, as a `ContextSource`; see `Knowledge.searching`."""

    def __init__(self, search: Search, options: SearchOptions) -> None:
        self._search = search
        self._options = options

    async def passages(self, question: str) -> list[ContextPassage]:
        """Return passages for a model to answer from."""
        hits = await self._search(question, **self._options)
        return [
            ContextPassage(
                text=hit.text,
                citation=hit.citation,
                title=hit.heading,
                source=hit.source,
                version=hit.version,
                start=hit.start,
                end=hit.end,
            )
            for hit in hits
        ]

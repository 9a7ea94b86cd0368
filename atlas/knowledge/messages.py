"""What happens in a knowledge base, as events.

For each call of ``ingest``::

    ingest.started  (document.ingested | document.changed | document.skipped)*  ingest.finished

Between them, ``embedding.retried`` tells each attempt to reach the embedding model that failed and is
followed by another. ``document.removed`` follows when a document is taken out, ``search.performed`` each search, and
``index.rebuilt`` when an index had to be filled again from the log.
"""

from __future__ import annotations

from typing import Literal

from atlas.core.messages import Event, message, value

__all__ = [
    "CollectionCreated",
    "DocumentChanged",
    "DocumentIngested",
    "DocumentRemoved",
    "DocumentSkipped",
    "EmbeddingRetried",
    "FoundPassage",
    "IndexRebuilt",
    "IngestFinished",
    "IngestStarted",
    "SearchMode",
    "SearchPerformed",
]

SearchMode = Literal["hybrid", "dense", "keyword"]
"""How passages are looked for: by meaning, by words, or by both."""


@message("collection.created")
class CollectionCreated(Event):
    """A collection was made for the vectors of one embedding model."""

    collection: str
    model: str
    dimension: int
    chunker: str


@message("ingest.started")
class IngestStarted(Event):
    """Documents are about to be read."""

    collection: str
    sources: int


@message("document.ingested")
class DocumentIngested(Event):
    """A document is in the collection for the first time, or again after its removal."""

    collection: str
    source: str
    version: int
    chunks: int


@message("document.changed")
class DocumentChanged(Event):
    """A new version of a document took the place of the one before."""

    collection: str
    source: str
    version: int
    chunks: int


@message("document.skipped")
class DocumentSkipped(Event):
    """A source was left out, and why: it cannot be read; the others go on."""

    collection: str
    source: str
    reason: str


@message("embedding.retried")
class EmbeddingRetried(Event):
    """The embedding model could not be asked; another attempt follows after ``delay`` seconds."""

    model: str
    attempt: int
    delay: float
    kind: str
    error: str


@message("document.removed")
class DocumentRemoved(Event):
    """A document is no longer found, except as of an earlier version."""

    collection: str
    source: str
    version: int


@message("ingest.finished")
class IngestFinished(Event):
    """All sources of a call were looked at.

    ``version`` is that of the knowledge base now, to search as of later.
    """

    collection: str
    ingested: int
    changed: int
    unchanged: int
    skipped: int
    chunks: int
    embedded: int
    seconds: float
    version: int


@message("index.rebuilt")
class IndexRebuilt(Event):
    """An index was filled again from the log: it was missing, out of date or damaged."""

    collection: str
    index: Literal["vectors", "words"]
    reason: str
    added: int
    removed: int


@value
class FoundPassage:
    """A passage that a search found: where it is and how well it fits, not what it says."""

    source: str
    version: int
    start: int
    end: int
    score: float


@message("search.performed")
class SearchPerformed(Event):
    """A question was answered by passages."""

    collection: str
    query: str
    mode: SearchMode
    k: int
    found: tuple[FoundPassage, ...]
    milliseconds: float
    at: int | None = None

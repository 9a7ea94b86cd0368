"""One ingest: sources are read, cut, embedded and stored, batch by batch; and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Final

from atlas.core.messages import Event
from atlas.errors import ConfigurationError, DocumentError, MissingDependencyError
from atlas.knowledge.chunking import Chunker
from atlas.knowledge.collection import Collection, Prepared
from atlas.knowledge.documents import Document
from atlas.knowledge.loading import Loader, find_sources
from atlas.knowledge.messages import (
    DocumentChanged,
    DocumentIngested,
    DocumentSkipped,
    IngestFinished,
    IngestStarted,
)

__all__ = ["BATCH", "Ingest", "IngestProgress", "Ingested", "Tools", "resolved"]

BATCH: Final = 256
"""So many passages, and the rest of their document, are embedded and stored together.

Fewer would be embedded with more padding, for passages of like length are run together.
"""

# Of these, so many are embedded at a time at first, then as many as take so many seconds.
_AT_FIRST: Final = 32
_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What an ingest did.

    Attributes:
        ingested: Documents that are new.
        changed: Documents of which there is a new version.
        unchanged: Documents that were there just so.
        skipped: What could not be read: the sources, and why.
        chunks: Passages of the new versions.
        embedded: How many of them had not been seen anywhere before.
        seconds: How long it took.
        version: The version of the knowledge base now; search as of it later.
    """

    ingested: int
    changed: int
    unchanged: int
    skipped: tuple[tuple[str, str], ...]
    chunks: int
    embedded: int
    seconds: float
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestProgress:
    """How far an ingest is.

    Attributes:
        done: Sources that are through: stored, unchanged or skipped.
        total: All sources of this call.
        chunks: Passages stored so far.
        seconds: Since the beginning.
        read: Sources that were looked at; those that are not done yet are stored together soon.
        waiting: Passages of these.
        embedded: How many of those passages are embedded.
    """

    done: int
    total: int
    chunks: int
    seconds: float
    read: int = 0
    waiting: int = 0
    embedded: int = 0

    @property
    def per_second(self) -> float:
        """Documents per second so far."""
        return self.done / self.seconds if self.seconds else 0.0

    @property
    def share(self) -> float:
        """How much of the work is done, from 0 to 1: what is embedded counts, before it is stored."""
        if not self.total:
            return 1.0
        ahead = (self.read - self.done) * self.embedded / self.waiting if self.waiting else 0.0
        return (self.done + ahead) / self.total

    @property
    def remaining(self) -> float | None:
        """Seconds until all is done, if it goes on so; None: nobody knows yet."""
        return self.seconds * (1 - self.share) / self.share if self.share else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What an ingest needs of the knowledge base it belongs to.

    Attributes:
        loader: How sources are read.
        chunker: How documents are cut.
        tell: Publishes what happens.
        before_writing: Called before each batch is stored.
        version: Returns the version of the knowledge base.
        stopped: Whether to stop after the batch at work.
        on_progress: Told after each document that is read, about each second while they are embedded,
            and at the end; None: nobody asks.
    """

    loader: Loader
    chunker: Chunker
    tell: Callable[[Event], None]
    before_writing: Callable[[], None]
    version: Callable[[], int]
    stopped: Callable[[], bool]
    on_progress: Callable[[IngestProgress], object] | None


class Ingest:
    """One call of ingest.

    Args:
        into: The collection that the documents go into.
        wanted: Paths and URLs of documents, and whole documents; see `resolved`.
        tools: What it needs beside.
    """

    def __init__(self, into: Collection, wanted: Sequence[str | Document], tools: Tools) -> None:
        self._into = into
        self._wanted = wanted
        self._tools = tools
        self._began = time.perf_counter()
        self._batch: list[Prepared] = []
        self._read = 0
        self._at_once = _AT_FIRST
        self._skipped: list[tuple[str, str]] = []
        self._done = Ingested(
            ingested=0,
            changed=0,
            unchanged=0,
            skipped=(),
            chunks=0,
            embedded=0,
            seconds=0,
            version=0,
        )

    def run(self) -> Ingested:
        """Do it, and return what was done."""
        self._tools.tell(IngestStarted(self._into.info.name, len(self._wanted)))
        for document in self._documents():
            if document is not None:
                self._take(document)
            self._read += 1
            if sum(len(each.chunks) for each in self._batch) >= BATCH:
                self._store()
            self._report()
            if self._tools.stopped():
                break
        if self._batch:
            self._store()
            self._report()
        self._into.save_words()
        done = replace(
            self._done,
            skipped=tuple(self._skipped),
            seconds=time.perf_counter() - self._began,
            version=self._tools.version(),
        )
        self._tools.tell(
            IngestFinished(
                self._into.info.name,
                done.ingested,
                done.changed,
                done.unchanged,
                len(done.skipped),
                done.chunks,
                done.embedded,
                round(done.seconds, 3),
                done.version,
            )
        )
        return done

    def _documents(self) -> Iterator[Document | None]:
        for source in self._wanted:
            if isinstance(source, Document):
                yield source
                continue
            try:
                yield self._tools.loader.load(source)
            except (DocumentError, MissingDependencyError) as error:
                self._skipped.append((source, str(error)))
                self._tools.tell(DocumentSkipped(self._into.info.name, source, str(error)))
                yield None

    def _take(self, document: Document) -> None:
        # Two versions of one document never share a batch: the second follows on the first.
        if any(each.document.source == document.source for each in self._batch):
            self._store()
        prepared = self._into.prepare(document, self._tools.chunker)
        if prepared is None:
            self._done = replace(self._done, unchanged=self._done.unchanged + 1)
            return
        self._batch.append(prepared)

    def _store(self) -> None:
        if not self._batch:
            return
        # By length, so that those embedded together need little padding.
        passages = [each for it in self._batch for each in zip(it.chunks, it.texts, strict=True)]
        passages.sort(key=lambda passage: passage[0].tokens)
        embedded = self._embed([text for _, text in passages])
        batch, self._batch = self._batch, []
        self._tools.before_writing()
        versions = self._into.commit(batch)
        changed = sum(each.changed for each in batch)
        chunks = sum(len(each.chunks) for each in batch)
        self._done = replace(
            self._done,
            ingested=self._done.ingested + len(batch) - changed,
            changed=self._done.changed + changed,
            chunks=self._done.chunks + chunks,
            embedded=self._done.embedded + embedded,
        )
        for each, version in zip(batch, versions, strict=True):
            told = DocumentChanged if each.changed else DocumentIngested
            self._tools.tell(
                told(
                    self._into.info.name,
                    each.document.source,
                    version.number,
                    len(each.chunks),
                )
            )

    def _embed(self, texts: Sequence[str]) -> int:
        """Make the vectors that are missing, telling how far it is; return how many were made."""
        made = begin = 0
        while begin < len(texts):
            part = texts[begin : begin + self._at_once]
            began = time.perf_counter()
            made += self._into.embed(part)
            took = time.perf_counter() - began
            begin += len(part)
            if len(part) == self._at_once:
                self._at_once = min(max(_AT_FIRST, int(len(part) * _SECONDS / took)), BATCH)
            if begin < len(texts):
                self._report(embedded=begin)
        return made

    def _report(self, *, embedded: int = 0) -> None:
        """Tell how far it is, when so many passages of the batch, which is not stored, are embedded."""
        if self._tools.on_progress is not None:
            self._tools.on_progress(
                IngestProgress(
                    done=self._read - len(self._batch),
                    total=len(self._wanted),
                    chunks=self._done.chunks,
                    seconds=time.perf_counter() - self._began,
                    read=self._read,
                    waiting=sum(len(each.chunks) for each in self._batch),
                    embedded=embedded,
                )
            )


def resolved(sources: Iterable[str | PathLike[str] | Document]) -> list[str | Document]:
    """Return each document once, patterns and folders resolved, in the given order.

    Raises:
        ConfigurationError: There are no sources.
        DocumentError: A path or a pattern stands for nothing.
    """
    if not sources:
        raise ConfigurationError("Nothing was given to ingest. Give paths, patterns or documents.")
    found: list[str | Document] = []
    for source in sources:
        if isinstance(source, Document):
            found.append(source)
        elif isinstance(source, str | PathLike):
            found += find_sources([fspath(source)])
        else:
            raise ConfigurationError(
                f"{source!r} cannot be ingested. Give paths, patterns, URLs or `Document` values, "
                f"each as an argument of its own."
            )
    return list({each if isinstance(each, str) else id(each): each for each in found}.values())

"""One collection: its catalogue and indexes in step with the log, written by one, read by many.

The log is written first; then the vectors go to the store, and last the catalogue is replaced by
one that has the new documents, all in one step. So a reader sees a document whole or not at all,
and after a crash at any point what is missing in the indexes is filled in from the log.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from atlas.core.log.engine import Engine
from atlas.core.log.records import NewRecord, Record
from atlas.errors import ErasedError
from atlas.knowledge.catalogue import Catalogue, Change, Version, keyword_texts
from atlas.knowledge.chunking import Chunker
from atlas.knowledge.dense import DenseIndex, entry_id
from atlas.knowledge.documents import Chunk, Document
from atlas.knowledge.embedding import Embedder, embed_checked
from atlas.knowledge.keyword import KeywordIndex
from atlas.knowledge.records import (
    DOCUMENT,
    REMOVED,
    StoredDocument,
    digest_of,
    document_prefix,
    document_stream,
    embedded_text,
    pack_document,
    unpack_document,
    unpack_text,
)
from atlas.knowledge.store import CollectionInfo, KnowledgeStore
from atlas.knowledge.vectors import VectorCache, key_of

__all__ = ["Collection", "Prepared", "Rebuilt"]

_PAGE = 2_000
_TEXTS_KEPT = 128
# So many new passages make it worth writing the index by words again, which is written whole.
_SAVE_WORDS_AFTER = 5_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """A document that is cut and differs from what the collection has of it."""

    document: Document
    digest: str
    chunks: list[Chunk]
    texts: list[str]
    changed: bool


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What it took to bring a store in step with the log."""

    added: int
    removed: int


class Collection:
    """A collection of a knowledge base. Reading is free; `commit`, `remove`, `catch_up` lock.

    Args:
        info: Its name, model and dimension.
        engine: The log.
        embedder: The model it was made with.
        cache: The vectors of that model.
        folder: Where its index by words is kept; None: nowhere.
    """

    def __init__(
        self,
        info: CollectionInfo,
        engine: Engine,
        embedder: Embedder,
        cache: VectorCache,
        folder: Path | None,
    ) -> None:
        self.info = info
        self.embedder = embedder
        self.dense = DenseIndex(info.name, cache)
        self.catalogue = Catalogue()
        self._engine = engine
        self._cache = cache
        self._words_file = folder / f"words-{info.name}.index" if folder else None
        self._words_saved = 0
        self._lock = threading.RLock()
        self._texts: OrderedDict[tuple[str, int], str] = OrderedDict()

    # -- reading --

    def text_of(self, version: Version) -> str:
        """Return the text of a document's version.

        Raises:
            ErasedError: It was erased from the log.
        """
        key = (version.source, version.number)
        text = self._texts.get(key)
        if text is None:
            assert version.stored is not None
            text = self._read_text(version.source, version.number, version.stored)
            with self._lock:
                self._texts[key] = text
                while len(self._texts) > _TEXTS_KEPT:
                    self._texts.popitem(last=False)
        return text

    def is_behind(self) -> bool:
        """Whether the log has documents that the catalogue does not: another process wrote them."""
        last = self._engine.last_position(document_prefix(self.info.name))
        return (last or 0) > self.catalogue.position

    # -- writing --

    def prepare(self, document: Document, chunker: Chunker) -> Prepared | None:
        """Cut a document; None when the collection has it just so."""
        digest = digest_of(document, chunker.name)
        catalogue = self.catalogue
        index = catalogue.current.get(document.source)
        if index is not None:
            stored = catalogue.versions[index].stored
            if stored is not None and stored.digest == digest:
                return None
        chunks = chunker.chunk(document, self.embedder.token_starts)
        texts = [
            embedded_text(document, document.text[chunk.start : chunk.end]) for chunk in chunks
        ]
        return Prepared(document, digest, chunks, texts, index is not None)

    def embed(self, texts: Sequence[str]) -> int:
        """Make the vectors that are missing; return how many."""
        _, made = self._cache.embed(texts, lambda missing: embed_checked(self.embedder, missing))
        return made

    def commit(self, batch: Sequence[Prepared]) -> list[Version]:
        """Store documents whose passages are embedded: all of them, in one step.

        Raises:
            VersionConflictError: Somebody else has stored a version of one of them meanwhile.
            LogUnavailableError: The log cannot be written; nothing was stored.
        """
        with self._lock:
            records, expected = [], {}
            for each in batch:
                stream = document_stream(self.info.name, each.document.source)
                keys = [key_of(text) for text in each.texts]
                payload = pack_document(each.document, each.digest, each.chunks, keys)
                records.append(NewRecord(stream, DOCUMENT, payload))
                expected[stream] = self.catalogue.numbers.get(each.document.source, 0)
            self._cache.flush()
            stored = self._engine.append(records, expect=expected).wait()
            return self._join(stored, [each.document.text for each in batch])

    def remove(self, source: str) -> Version:
        """Take a document out; it stays in its earlier versions."""
        with self._lock:
            stream = document_stream(self.info.name, source)
            number = self.catalogue.numbers.get(source, 0)
            stored = self._engine.append(
                [NewRecord(stream, REMOVED, b"{}")], expect={stream: number}
            ).wait()
            return self._join(stored, [""])[0]

    def catch_up(self) -> int:
        """Read what the log has and the catalogue does not.

        Returns:
            How many passages had to be indexed by words again, which an index that was kept by
            `save_words` would have saved.
        """
        with self._lock:
            catalogue = self.catalogue
            kept = self._kept_words() if not catalogue.size else None
            while page := self._engine.read_all(
                after=catalogue.position,
                limit=_PAGE,
                prefix=document_prefix(self.info.name),
            ):
                changes = [self._change(record) for record in page]
                catalogue = self._extended(catalogue, changes, catalogue.words, page[-1].position)
            if kept is not None and catalogue.begins_with(*kept):
                catalogue = replace(catalogue, words=kept[0])
                self._words_saved = kept[0].size
            begin = catalogue.words.size
            self.catalogue = replace(catalogue, words=self._words_of(catalogue))
            return catalogue.rows - begin

    def save_words(self, *, at_least: int = 1) -> None:
        """Keep the index by words, when it has grown by so many passages since."""
        catalogue = self.catalogue
        if self._words_file is None or catalogue.rows - self._words_saved < at_least:
            return
        catalogue.words.save(self._words_file, catalogue.mark(catalogue.rows))
        self._words_saved = catalogue.rows

    def sync(self, store: KnowledgeStore) -> Rebuilt:
        """Give a store what it lacks and take from it what it should not have, then use it."""
        with self._lock:
            catalogue = self.catalogue
            store.create(self.info)
            missing, surplus = self._difference(store)
            if surplus:
                store.delete(self.info.name, surplus)
            for begin in range(0, len(missing), _PAGE):
                rows = np.array(missing[begin : begin + _PAGE], np.int64)
                store.put(self.info.name, self.dense.entries(catalogue, rows))
            self.use(store)
            return Rebuilt(len(missing), len(surplus))

    def is_in_step_with(self, store: KnowledgeStore) -> bool:
        """Return whether a store has just what it should have."""
        known = {info.name for info in store.collections()}
        return self.info.name in known and self._difference(store) == ([], [])

    def use(self, store: KnowledgeStore | None) -> None:
        """Ask a store, which is in step, from now on."""
        dense = DenseIndex(self.info.name, self._cache, store)
        dense.covered = self.catalogue.rows if store is not None else 0
        self.dense = dense

    # -- inside --

    def _difference(self, store: KnowledgeStore) -> tuple[list[int], list[str]]:
        """Return the rows that a store lacks, and the ids that it should not have."""
        catalogue = self.catalogue
        wanted = {
            entry_id(catalogue, int(row)): int(row) for row in np.flatnonzero(catalogue.alive)
        }
        there = store.ids(self.info.name)
        return (
            sorted(wanted[each] for each in wanted.keys() - there),
            sorted(there - wanted.keys()),
        )

    def _join(self, records: Sequence[Record], texts: Sequence[str]) -> list[Version]:
        """Make stored records known: to the store first, then, in one step, to readers."""
        before = self.catalogue
        changes = [self._change(record) for record in records]
        words = before.words.extended(
            passage
            for change, text in zip(changes, texts, strict=True)
            for passage in keyword_texts(change.source, change.stored, text)
        )
        after = self._extended(before, changes, words, records[-1].position)
        store = self.dense.store
        if store is not None:
            rows = np.arange(before.rows, after.rows)
            if len(rows):
                store.put(self.info.name, self.dense.entries(after, rows))
        self.catalogue = after
        if store is not None:
            self.dense.covered = after.rows
            gone = [before.current[c.source] for c in changes if c.source in before.current]
            old = [
                entry_id(before, row)
                for index in gone
                for row in range(int(before.first_rows[index]), int(before.first_rows[index + 1]))
            ]
            if old:
                store.delete(self.info.name, old)
        self.save_words(at_least=_SAVE_WORDS_AFTER)
        return after.versions[before.size : after.size]

    def _extended(
        self, catalogue: Catalogue, changes: Sequence[Change], words: KeywordIndex, position: int
    ) -> Catalogue:
        keys = [key for change in changes if change.stored for key in change.stored.keys]
        if (self._cache.places(keys) < 0).any():
            self._embed_again(changes)
        return catalogue.extended(changes, self._cache.places(keys), words, position=position)

    def _embed_again(self, changes: Sequence[Change]) -> None:
        """Make vectors that the cache has lost."""
        for change in changes:
            stored = change.stored
            if stored is None or (self._cache.places(stored.keys) >= 0).all():
                continue
            text = self._read_text(change.source, change.number, stored)
            self.embed(
                [embedded_text(stored.document, text[c.start : c.end]) for c in stored.chunks]
            )
        self._cache.flush()

    def _words_of(self, catalogue: Catalogue) -> KeywordIndex:
        """Return the index by words with all passages of a catalogue."""
        words = catalogue.words
        passages: list[str] = []
        for version in catalogue.versions[: catalogue.size]:
            if version.stored is None or version.first_row < words.size:
                continue
            text = self._read_text(version.source, version.number, version.stored)
            passages.extend(keyword_texts(version.source, version.stored, text))
            if len(passages) >= _PAGE:
                words, passages = words.extended(passages), []
        return words.extended(passages)

    def _read_text(self, source: str, number: int, stored: StoredDocument) -> str:
        stream = document_stream(self.info.name, source)
        (record,) = self._engine.read(stream, after=number - 1, until=number)
        if record.payload is None:
            raise ErasedError(
                f"The text of version {number} of {source!r} was erased.",
                position=record.position,
            )
        return unpack_text(source, record.payload, len(stored.chunks))

    def _kept_words(self) -> tuple[KeywordIndex, bytes] | None:
        return KeywordIndex.load(self._words_file) if self._words_file is not None else None

    def _change(self, record: Record) -> Change:
        source = record.stream.removeprefix(document_prefix(self.info.name))
        stored = None
        # One whose payload was erased is no longer found: nothing is left to be shown.
        if record.name == DOCUMENT and record.payload is not None:
            stored = unpack_document(source, record.payload)
        return Change(source, record.version, record.position, record.time_ns, stored)

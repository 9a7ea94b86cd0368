"""`Knowledge`: documents in, the right passage out.

    kb = Knowledge("kb/", bus=app.bus)
    await kb.ingest("docs/**/*.md")
    hits = await kb.search("How do I subscribe to an event?", k=5)

In its folder are the log (``log.db``: the documents, all versions of them) and what is made from it
and can be deleted: Chroma's index, the index by words, the cache of vectors.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from os import PathLike, fspath
from pathlib import Path
from typing import Final, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from atlas.core.effects import Effect, effect, perform
from atlas.core.event_bus import EventBus
from atlas.core.log.controller import LOGS
from atlas.core.log.records import NewRecord
from atlas.core.messages import Event
from atlas.errors import (
    ConfigurationError,
    KnowledgeError,
    StoreError,
    UnknownNameError,
    UnknownVersionError,
    nearest_name,
)
from atlas.knowledge.catalogue import Version
from atlas.knowledge.chunking import Chunker, StructureChunker
from atlas.knowledge.collection import Collection
from atlas.knowledge.documents import Document
from atlas.knowledge.embedding import Embedder, embed_checked
from atlas.knowledge.filters import Filter, parse_filter
from atlas.knowledge.hits import DocumentVersion, Hit, time_of
from atlas.knowledge.index_files import IndexFiles
from atlas.knowledge.ingest import BATCH, Ingest, Ingested, IngestProgress, Tools, resolved
from atlas.knowledge.loading import Loader
from atlas.knowledge.messages import (
    CollectionCreated,
    DocumentRemoved,
    EmbeddingRetried,
    IndexRebuilt,
    SearchPerformed,
)
from atlas.knowledge.options import Searching, SearchOptions
from atlas.knowledge.records import (
    COLLECTION,
    collection_stream,
    pack_collection,
    unpack_collection,
)
from atlas.knowledge.retries import FailedAttempt, attended
from atlas.knowledge.retrieval import Ranking
from atlas.knowledge.search import Question, search
from atlas.knowledge.store import CollectionInfo, KnowledgeStore, mixed, unknown
from atlas.knowledge.vectors import VectorCache
from atlas.providers.context import ContextPassage

__all__ = ["Knowledge"]

T = TypeVar("T")
_QUERIES_KEPT: Final = 256
_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


class Knowledge:
    """A knowledge base: collections of documents, searched by meaning and by words.

    Any number of threads and tasks may search while one ingests; they see each document whole or not
    at all. Another process may search the same folder, and one at a time may write.

    In a recorded run `search`, `ingest` and `remove` are effects: a replay answers them from the log,
    without this knowledge base or its model. What blocks (`search_sync`, `documents`, `text`, …) is not.

    Use it as a context manager (``async with`` or ``with``), or call `aclose` or `close`.

    Args:
        path: The folder to keep it in; made when it is missing. None keeps everything in memory.
        bus: Where to publish what happens; default: nowhere.
        embedder: The embedding model; default: the local one, loaded when it is first needed.
        chunker: How documents are cut; default: at their structure, 240 tokens at most.
        loader: How sources are read.
        store: Where vectors are searched; default: Chroma in the folder, none in memory.
        timeout: Seconds to wait for another process that writes.

    Raises:
        StoreError: The folder cannot be made.
        LogError: The log in the folder cannot be opened.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        bus: EventBus | None = None,
        embedder: Embedder | None = None,
        chunker: Chunker | None = None,
        loader: Loader | None = None,
        store: KnowledgeStore | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.path: Path | None = None if path is None else Path(path)
        self._bus = bus
        self._embedder = embedder
        self._chunker: Chunker = chunker or StructureChunker()
        self._loader = loader or Loader()
        self._timeout = timeout
        if self.path is not None:
            _make(self.path)
        self._engine = LOGS.open_log(":memory:" if self.path is None else self.path / "log.db")
        self._files = IndexFiles(self.path, store)
        self._collections: dict[str, Collection] = {}
        self._caches: dict[tuple[str, int], VectorCache] = {}
        self._queries: OrderedDict[tuple[str, str], NDArray[np.float32]] = OrderedDict()
        self._lock = threading.RLock()
        self._writing = threading.RLock()
        self._threads: ThreadPoolExecutor | None = None
        # Set to call off what is at work: of each ingest, and of all else.
        self._closing = threading.Event()
        self._stops: set[threading.Event] = set()
        self._closed = False

    # -- writing --

    async def ingest(
        self,
        *sources: str | PathLike[str] | Document,
        collection: str = "main",
        on_progress: Callable[[IngestProgress], object] | None = None,
    ) -> Ingested:
        """Read documents and keep those that are new or changed; see `ingest_sync`.

        Cancelling it stops after the batch at work; what is stored stays, and the next ingest goes on.
        Inside a run it is an idempotent effect: what a crash interrupts is simply done again.
        """
        stop = threading.Event()

        async def work() -> Ingested:
            try:
                return await self._in_thread(
                    lambda: self._ingest(sources, collection, on_progress, stop)
                )
            except asyncio.CancelledError:
                stop.set()
                raise

        asked = {"sources": [_asked_of(source) for source in sources], "collection": collection}
        return await perform(Effect("knowledge.ingest", asked, declared="idempotent"), work)

    def ingest_sync(
        self,
        *sources: str | PathLike[str] | Document,
        collection: str = "main",
        on_progress: Callable[[IngestProgress], object] | None = None,
    ) -> Ingested:
        """Read documents and keep those that are new or changed.

        What cannot be read is skipped and told (``document.skipped``); the others go on. After a
        crash, call it again: what was stored is recognised, and nothing is stored twice.

        Args:
            *sources: Paths, folders, patterns such as ``docs/**/*.md``, URLs, or whole documents.
            collection: Where they go; made when it is missing.
            on_progress: Told after each document that is read, about each second while passages are
                embedded, and at the end, in a thread of the knowledge base; what counts as done is
                stored.

        Raises:
            DocumentError: A path or a pattern stands for nothing.
            ConfigurationError: The collection was made with another embedding model.
            StoreError: Another process is writing.
            EmbeddingError: The embedding model failed.
        """
        return self._ingest(sources, collection, on_progress, threading.Event())

    @effect("knowledge.remove")
    async def remove(self, *sources: str, collection: str = "main") -> int:
        """Take documents out; see `remove_sync`. Inside a run, an external effect."""
        return await self._in_thread(lambda: self.remove_sync(*sources, collection=collection))

    def remove_sync(self, *sources: str, collection: str = "main") -> int:
        """Take documents out of a collection; they are found only as of an earlier version.

        Args:
            *sources: Their names as in `documents`, or paths.
            collection: Where they are.

        Returns:
            The version of the knowledge base now.

        Raises:
            UnknownNameError: There is no such document, or no such collection.
        """
        with self._writing:
            self._open_for_writing()
            held = self._collection(collection)
            self._open_store(held)
            for source in sources:
                known = self._known(held, source)
                if known not in held.catalogue.current:
                    raise UnknownNameError(
                        f"The document {known!r} was removed before.", name=known
                    )
                version = held.remove(known)
                self._tell(DocumentRemoved(collection, version.source, version.number))
        return self.version

    # -- searching --

    @effect("knowledge.search", pure=True, ignore=("expander", "reranker"))
    async def search(self, query: str, **options: Unpack[SearchOptions]) -> list[Hit]:
        """Return the passages that answer a question best, the best first.

        Inside a run it is a pure effect, with whatever an ``expander`` and a ``reranker`` do.

        Args:
            query: The question, in words of any kind.
            **options: See `SearchOptions`.

        Raises:
            UnknownNameError: There is no such collection.
            ConfigurationError: An option makes no sense.
        """
        expander = options.pop("expander", None)
        wordings = tuple(await expander(query)) if expander is not None else ()
        return await self._in_thread(lambda: self._search(query, wordings, options))

    def search_sync(self, query: str, **options: Unpack[SearchOptions]) -> list[Hit]:
        """Do what `search` does, from a plain thread; without an ``expander``, which needs a loop."""
        if options.pop("expander", None) is not None:
            raise ConfigurationError("An expander is asynchronous. Use `await kb.search(…)`.")
        return self._search(query, (), options)

    async def passages(self, question: str) -> list[ContextPassage]:
        """Return passages for a model to answer from: a knowledge base is a `ContextSource`.

        It searches the collection ``main``; see `searching` to say more.

        Args:
            question: What the user asks.
        """
        return await self.searching().passages(question)

    def searching(self, **options: Unpack[SearchOptions]) -> Searching:
        """Return this knowledge base with options of search, as a `ContextSource`.

        Such as ``app.chat("…", context=kb.searching(collection="manuals", k=8))``.

        Args:
            **options: See `SearchOptions`; ``k`` is 12 here: more than fit are left out.
        """
        return Searching(self.search, {"k": 12, **options})

    def _search(self, query: str, wordings: tuple[str, ...], options: SearchOptions) -> list[Hit]:
        began = time.perf_counter()
        if not _says_something(query):
            raise ConfigurationError(f"The question is {query!r}. Ask for something, in words.")
        known = SearchOptions.__annotations__
        for name in options.keys() - known.keys():
            raise ConfigurationError(
                f"A search has no option {name!r}{nearest_name(name, known)}. See `SearchOptions`."
            )
        name = options.get("collection", "main")
        held = self._collection(name)
        if not self._files.is_writer and held.is_behind():
            self._refresh(held)
        self._open_for_reading(held)
        with attended(self._retried, self._closing):
            question = self._question(query, wordings, options, held)
        hits = search(held, question)
        self._tell(
            SearchPerformed(
                name,
                query,
                question.mode,
                question.k,
                tuple(hit.for_log() for hit in hits),
                round((time.perf_counter() - began) * 1e3, 3),
                question.at,
            )
        )
        return hits

    def _question(
        self, query: str, wordings: tuple[str, ...], options: SearchOptions, held: Collection
    ) -> Question:
        where = options.get("where")
        mode = options.get("mode", "hybrid")
        asked = [] if mode == "keyword" else [query, *wordings]
        return Question(
            query=query,
            wordings=wordings,
            vectors=self._vectors(asked, held),
            k=options.get("k", 5),
            mode=mode,
            where=_condition(where, held),
            at=self._position(options.get("at")),
            per_document=options.get("per_document"),
            diversity=options.get("diversity", 0.0),
            neighbours=options.get("neighbours", 0),
            ranking=options.get("ranking", Ranking()),
            reranker=options.get("reranker"),
            explain=options.get("explain", False),
        )

    def _vectors(self, texts: Sequence[str], held: Collection) -> NDArray[np.float32]:
        """Return the vectors of questions; those asked lately are remembered."""
        found = []
        for text in texts:
            key = (held.info.model, text)
            vector = self._queries.get(key)
            if vector is None:
                vector = embed_checked(held.embedder, [text])[0]
                with self._lock:
                    self._queries[key] = vector
                    while len(self._queries) > _QUERIES_KEPT:
                        self._queries.popitem(last=False)
            found.append(vector)
        return np.stack(found) if found else np.zeros((0, held.info.dimension), np.float32)

    def _position(self, at: int | datetime | None) -> int | None:
        if at is None:
            return None
        if isinstance(at, datetime):
            if at.tzinfo is None:
                raise ConfigurationError(f"at is {at!r}. Give a time with its time zone.")
            return self._engine.position_at(int(at.timestamp() * 1e9))
        if not isinstance(at, int):
            raise ConfigurationError(
                f"at is {at!r}. Give a version of the knowledge base, which is a number, or a "
                f"datetime with its time zone."
            )
        if not 0 <= at <= self.version:
            raise UnknownVersionError(
                f"The knowledge base was never at version {at}; it is at {self.version}.",
                version=at,
            )
        return at

    # -- looking around --

    @property
    def version(self) -> int:
        """The version of the knowledge base: it grows with every document, and never falls."""
        self._refuse_closed()
        return self._engine.last_position() or 0

    def collections(self) -> list[CollectionInfo]:
        """Return all collections, by name."""
        self._refuse_closed()
        begin = collection_stream("")
        names = [stream.removeprefix(begin) for stream in self._engine.streams(begin)]
        return [self._described(name)[0] for name in sorted(names)]

    def documents(
        self, collection: str = "main", *, at: int | datetime | None = None
    ) -> list[DocumentVersion]:
        """Return the current version of each document, by source.

        Args:
            collection: Where they are.
            at: As of a version of the knowledge base, or a time; default: now.

        Raises:
            UnknownNameError: There is no such collection.
        """
        held = self._collection(collection)
        self._refresh_if_behind(held)
        catalogue = held.catalogue
        position = self._position(at)
        if position is None:
            alive = list(catalogue.current.values())
        else:
            alive = np.flatnonzero(
                (catalogue.born <= position) & (catalogue.died > position)
            ).tolist()
        found = [_described(catalogue.versions[index]) for index in alive]
        return sorted((each for each in found if not each.removed), key=lambda each: each.source)

    def versions(self, source: str, collection: str = "main") -> list[DocumentVersion]:
        """Return all versions of a document, the first first.

        Raises:
            UnknownNameError: There is no such document, or no such collection.
        """
        held = self._collection(collection)
        self._refresh_if_behind(held)
        known = self._known(held, source)
        catalogue = held.catalogue
        return [
            _described(version)
            for version in catalogue.versions[: catalogue.size]
            if version.source == known
        ]

    def text(self, source: str, version: int | None = None, collection: str = "main") -> str:
        """Return the text of a document, which spans of its passages refer to.

        Args:
            source: Its name as in `documents`, or a path.
            version: Which version; default: the current one.
            collection: Where it is.

        Raises:
            UnknownNameError: There is no such document, or no such collection.
            UnknownVersionError: It has no such version, or was removed.
        """
        held = self._collection(collection)
        self._refresh_if_behind(held)
        known = self._known(held, source)
        catalogue = held.catalogue
        wanted = catalogue.numbers[known] if version is None else version
        for each in catalogue.versions[: catalogue.size]:
            if each.source == known and each.number == wanted and each.stored is not None:
                return held.text_of(each)
        raise UnknownVersionError(
            f"The document {known!r} has no text in version {wanted}. See `versions` of it.",
            version=wanted,
        )

    # -- lifetime --

    async def aclose(self) -> None:
        """Wait for what is at work, write what is kept, and close everything. Idempotent."""
        self._call_off()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Do what `aclose` does, from a plain thread."""
        self._call_off()
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)
        with self._writing:
            if self._closed:
                return
            self._closed = True
            try:
                if self._files.is_writer:
                    for held in self._collections.values():
                        held.save_words()
                for cache in self._caches.values():
                    cache.close()
                self._files.close({n: h.catalogue for n, h in self._collections.items()})
            finally:
                LOGS.close_log(self._engine)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- inside --

    def _call_off(self) -> None:
        self._closing.set()
        with self._lock:
            for stop in self._stops:
                stop.set()

    def _ingest(
        self,
        sources: Sequence[str | PathLike[str] | Document],
        collection: str,
        on_progress: Callable[[IngestProgress], object] | None,
        stop: threading.Event,
    ) -> Ingested:
        with self._lock:
            self._stops.add(stop)
        try:
            with self._writing, attended(self._retried, stop):
                wanted = resolved(sources)
                self._open_for_writing()
                into = self._writable(collection)
                tools = Tools(
                    loader=self._loader,
                    chunker=self._chunker,
                    tell=self._tell,
                    before_writing=lambda: self._open_store(into),
                    version=lambda: self.version,
                    stopped=lambda: stop.is_set() or self._closing.is_set(),
                    on_progress=on_progress,
                )
                return Ingest(into, wanted, tools).run()
        finally:
            with self._lock:
                self._stops.discard(stop)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._refuse_closed()
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(4, "atlas-knowledge")
            threads = self._threads
        # With the caller's context, so that events carry the run and the cause of the call.
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(threads, context.run, work)

    def _refuse_closed(self) -> None:
        if self._closed:
            raise KnowledgeError("The knowledge base is closed. Open it again: Knowledge(path).")

    def _tell(self, event: Event) -> None:
        if self._bus is not None:
            self._bus.publish(event, source="knowledge")

    def _retried(self, failed: FailedAttempt) -> None:
        self._tell(
            EmbeddingRetried(
                failed.model,
                failed.attempt,
                round(failed.delay, 3),
                failed.error.kind,
                str(failed.error),
            )
        )

    def _open_for_writing(self) -> None:
        self._refuse_closed()
        if self._files.is_writer:
            return
        self._files.become_writer(self._timeout)
        for held in self._collections.values():
            held.catch_up()
            held.use(None)

    def _open_for_reading(self, held: Collection) -> None:
        """Give a collection the store, when it is large enough to need one."""
        if held.dense.store is None and self._files.wants_store(held.catalogue):
            with self._lock:
                self._files.open_for_reading(held)

    def _writable(self, name: str) -> Collection:
        """Return a collection to write into; make it when it is missing."""
        if not _is_name(name):
            raise ConfigurationError(
                f"{name!r} is no name for a collection. Use letters, digits, '.', '_' and '-'."
            )
        if self._engine.head(collection_stream(name)) is None:
            embedder = self._model()
            info = CollectionInfo(name, embedder.name, embedder.dimension)
            payload = pack_collection(info, self._chunker.name)
            self._engine.append([NewRecord(collection_stream(name), COLLECTION, payload)]).wait()
            self._tell(CollectionCreated(name, info.model, info.dimension, self._chunker.name))
        return self._collection(name)

    def _open_store(self, held: Collection) -> None:
        """Open the store to write into it; not before there is something to write."""
        if held.dense.store is not None:
            return
        done = self._files.open_for_writing(held)
        if done is not None:
            reason, rebuilt = done
            self._tell(
                IndexRebuilt(held.info.name, "vectors", reason, rebuilt.added, rebuilt.removed)
            )

    def _collection(self, name: str) -> Collection:
        self._refuse_closed()
        with self._lock:
            held = self._collections.get(name)
            if held is None:
                info, _ = self._described(name)
                embedder = self._model()
                wanted = CollectionInfo(name, embedder.name, embedder.dimension)
                if wanted != info:
                    raise mixed(info, wanted)
                held = Collection(info, self._engine, embedder, self._cache(info), self.path)
                indexed = held.catch_up()
                if indexed > BATCH and self.path is not None:
                    reason = "it was not kept, or is older than the log"
                    self._tell(IndexRebuilt(name, "words", reason, indexed, 0))
                self._collections[name] = held
        return held

    def _described(self, name: str) -> tuple[CollectionInfo, str]:
        records = self._engine.read(collection_stream(name), limit=1)
        if not records or records[0].payload is None:
            begin = collection_stream("")
            known = [stream.removeprefix(begin) for stream in self._engine.streams(begin)]
            raise unknown(name, known)
        return unpack_collection(name, records[0].payload)

    def _model(self) -> Embedder:
        with self._lock:
            if self._embedder is None:
                # Here, because it loads onnxruntime and 90 MB of weights.
                from atlas.knowledge.minilm import MiniLM  # noqa: PLC0415

                self._embedder = MiniLM()
            return self._embedder

    def _cache(self, info: CollectionInfo) -> VectorCache:
        key = (info.model, info.dimension)
        if key not in self._caches:
            self._caches[key] = self._opened_cache(info)
        return self._caches[key]

    def _opened_cache(self, info: CollectionInfo) -> VectorCache:
        if self.path is None:
            return VectorCache(None, info.dimension)
        slug = re.sub(r"[^\w.-]+", "_", info.model)
        path = self.path / f"vectors-{slug}-{info.dimension}.int8"
        # What has begun with 8 bits goes on so: nothing needs to be embedded again.
        if path.exists():
            return VectorCache(path, info.dimension)
        return VectorCache(path.with_suffix(".int6"), info.dimension, bits=6)

    def _refresh_if_behind(self, held: Collection) -> None:
        if not self._files.is_writer and held.is_behind():
            self._refresh(held)

    def _refresh(self, held: Collection) -> None:
        """See what another process has written."""
        for cache in self._caches.values():
            cache.refresh()
        held.catch_up()

    def _known(self, held: Collection, source: str) -> str:
        numbers = held.catalogue.numbers
        if source in numbers:
            return source
        absolute = str(Path(source).absolute())
        if absolute in numbers:
            return absolute
        raise UnknownNameError(
            f"There is no document {source!r} in the collection {held.info.name!r}"
            f"{nearest_name(source, numbers)}.",
            name=source,
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"The folder {str(folder)!r} for the knowledge base cannot be made: {error.strerror}. "
            f"Give the path of a folder, or of one that can be made."
        ) from error


def _asked_of(source: str | PathLike[str] | Document) -> object:
    """Return what a run keeps of a source: of a text its hash, as the knowledge base has the text."""
    if isinstance(source, Document):
        digest = sha256(source.text.encode("utf-8", "surrogatepass")).hexdigest()
        return replace(source, text=f"sha256:{digest}")
    return fspath(source) if isinstance(source, PathLike) else source


def _says_something(query: object) -> bool:
    return isinstance(query, str) and bool(query.strip())


def _is_name(collection: object) -> bool:
    return isinstance(collection, str) and _NAME.fullmatch(collection) is not None


def _condition(where: str | Filter | None, held: Collection) -> Filter | None:
    condition = parse_filter(where) if isinstance(where, str) else where
    if not isinstance(condition, Filter | None):
        raise ConfigurationError(
            f"where is {where!r}. Give a condition as a text, such as 'year >= 2020', or as a value "
            f"of `parse_filter`."
        )
    if condition is not None:
        held.catalogue.check(condition)
    return condition


def _described(version: Version) -> DocumentVersion:
    stored = version.stored
    return DocumentVersion(
        source=version.source,
        number=version.number,
        title=stored.document.title if stored else "",
        chunks=len(stored.chunks) if stored else 0,
        removed=stored is None,
        time=time_of(version.time_ns),
        position=version.position,
        metadata=stored.document.metadata if stored else {},
    )

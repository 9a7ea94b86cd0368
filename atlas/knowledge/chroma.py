"""ChromaDB as a `KnowledgeStore`: in a folder, or on a server.

Chroma keeps ids, vectors and the fields to filter by, not the texts: those are in the log, and would
take most of the room. It is never asked to embed anything. What is known to go wrong with it, and is
dealt with here: see docs/design/knowledge.md.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from atlas.errors import MissingDependencyError, StoreError
from atlas.knowledge.filters import Filter, matches
from atlas.knowledge.store import CollectionInfo, Entry, Match, checked, mixed, unknown

try:
    with warnings.catch_warnings():
        # Its own modules use what its dependencies have deprecated.
        warnings.simplefilter("ignore")
        import chromadb
        from chromadb.config import Settings
        from chromadb.errors import ChromaError, NotFoundError
except ImportError as error:
    raise MissingDependencyError(
        "The store 'chroma' needs the package chromadb; "
        "install it with `pip install 'atlas[knowledge]'`.",
        extra="knowledge",
    ) from error

__all__ = ["ChromaStore", "Health", "probe"]

T = TypeVar("T")
Health = Literal["sound", "empty", "damaged"]

# Chroma refuses larger batches than its SQLite allows; this many is far below and as fast.
_BATCH: Final = 2_000
# It moves what was written from its queue into its graph after so many writes, and not before.
_SYNC: Final = 1_000
# So many entries in the queue, of 2 kB each, are worth a look at the end.
_WORTH_TIDYING: Final = 100
# Half the links of its default, and a search that looks further: as many of the 100 nearest are found
# (0.984 against 0.979 of the vectors of manual pages, 0.9997 of the 10 nearest), in less room.
_GRAPH: Final = {"space": "cosine", "max_neighbors": 8, "ef_construction": 200, "ef_search": 160}
_PROBE_SECONDS: Final = 60.0
_PROBE: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from atlas.knowledge.chroma import look; look(sys.argv[2])"
)
# Chroma wants at least one field, and drops a field only when told so by None.
_ALWAYS: Final = "_"


class _Client(Protocol):
    # Any: Chroma's own types are private, and change with its versions.
    def get_or_create_collection(self, name: str, **options: Any) -> Any: ...
    def get_collection(self, name: str, **options: Any) -> Any: ...
    def list_collections(self) -> Sequence[Any]: ...
    def delete_collection(self, name: str) -> None: ...


class ChromaStore:
    """A `KnowledgeStore` in ChromaDB.

    Approximate: with its settings it finds nearly all of the most similar vectors. Use `probe` on a
    folder before opening it: a damaged one may end the whole process.

    Args:
        path: The folder to keep it in; made when it is missing.
        host: A Chroma server's host instead; give one of both.
        port: The server's port.

    Raises:
        StoreError: It cannot be opened or reached.
    """

    def __init__(
        self, path: str | Path | None = None, *, host: str | None = None, port: int = 8000
    ) -> None:
        if (path is None) == (host is None):
            raise StoreError("Give a ChromaStore either the path of a folder, or a host.")
        self.address: str = str(path) if host is None else f"{host}:{port}"
        self._lock = threading.Lock()
        self._open: dict[str, tuple[CollectionInfo, Any]] = {}
        self._path = None if path is None else Path(path)
        self._written: dict[str, int] = {}
        settings = Settings(anonymized_telemetry=False, allow_reset=False)
        client = self._told(
            "opened",
            lambda: (
                chromadb.PersistentClient(str(path), settings=settings)
                if host is None
                else chromadb.HttpClient(host, port, settings=settings)
            ),
        )
        self._client: _Client | None = cast("_Client", client)

    def create(self, collection: CollectionInfo) -> None:
        """Make a collection; nothing happens when it exists as described."""
        found = self._told(
            "written",
            lambda: self._running().get_or_create_collection(
                _chroma_name(collection.name),
                embedding_function=None,
                configuration={"hnsw": {**_GRAPH, "sync_threshold": _SYNC}},
                metadata={
                    "name": collection.name,
                    "model": collection.model,
                    "dimension": collection.dimension,
                },
            ),
        )
        there = _info(found)
        if there != collection:
            raise mixed(there, collection)
        with self._lock:
            self._open[collection.name] = (there, found)

    def collections(self) -> list[CollectionInfo]:
        """Return all collections, by name."""
        found = self._told("read", lambda: self._running().list_collections())
        infos = [_info(each) for each in found if each.metadata and "model" in each.metadata]
        return sorted(infos, key=lambda info: info.name)

    def drop(self, collection: str) -> None:
        """Delete a collection and all that is in it."""
        with self._lock:
            self._open.pop(collection, None)
            self._written.pop(collection, None)
        try:
            self._running().delete_collection(_chroma_name(collection))
        except NotFoundError:
            return

    def put(self, collection: str, entries: Sequence[Entry]) -> None:
        """Keep entries, each instead of the one that had its id."""
        info, held = self._collection(collection)
        last = {entry.id: entry for entry in entries}
        for entry in last.values():
            checked(entry.vector, info.dimension, what=f"entry {entry.id!r}")
        kept = list(last.values())
        self._written[collection] = self._written.get(collection, 0) + len(kept)
        for begin in range(0, len(kept), _BATCH):
            batch = kept[begin : begin + _BATCH]
            self._told("written", partial(_put, held, batch))

    def delete(self, collection: str, ids: Iterable[str]) -> None:
        """Forget entries."""
        _, held = self._collection(collection)
        wanted = list(ids)
        for begin in range(0, len(wanted), _BATCH):
            batch = wanted[begin : begin + _BATCH]
            self._told("written", partial(held.delete, ids=batch))

    def query(
        self, collection: str, vector: NDArray[np.float32], k: int, *, where: Filter | None = None
    ) -> list[Match]:
        """Return the k entries most similar to a vector."""
        info, held = self._collection(collection)
        vector = checked(vector, info.dimension, what="the question")
        options = {} if where is None else {"ids": self._matching(held, where)}
        if where is not None and not options["ids"]:
            return []
        found = self._told(
            "read",
            lambda: held.query(
                query_embeddings=vector[None], n_results=k, include=["distances"], **options
            ),
        )
        return [
            Match(name, 1.0 - float(distance))
            for name, distance in zip(found["ids"][0], found["distances"][0], strict=True)
        ]

    def ids(self, collection: str) -> set[str]:
        """Return the ids of all entries."""
        _, held = self._collection(collection)
        return set(self._told("read", lambda: held.get(include=[]))["ids"])

    # Any: Chroma's own types are private, and change with its versions.
    def _matching(self, held: Any, where: Filter) -> list[str]:
        """Return the ids of entries that meet a condition.

        It is decided here: Chroma has no ``not`` and no ``contains`` for fields, tells 1 from 1.0,
        and took 90 ms to filter what it then searches, at 100,000 entries.
        """
        found = self._told("read", partial(held.get, include=["metadatas"]))
        return [
            name
            for name, fields in zip(found["ids"], found["metadatas"], strict=True)
            if matches(where, fields or {})
        ]

    def tidy_up(self) -> None:
        """Close, and leave no more on disk than is needed: for a folder that nobody else writes to.

        Chroma keeps up to some thousand entries twice, in its queue and in its tables, and never gives
        room back. Doing so takes parts of a second, and is left out when little was written.

        Raises:
            StoreError: It failed, and may be damaged; it is closed nevertheless.
        """
        written = [name for name, count in self._written.items() if count >= _WORTH_TIDYING]
        try:
            for name in written:
                _, held = self._collection(name)
                # Writes that change nothing, as many as make it take over what is in the queue.
                ids = [f"-{number}" for number in range(_SYNC)]
                self._told("written", partial(held.delete, ids=ids))
        finally:
            self.close()
        if self._path is not None and written:
            self._told("written", partial(_shrink, self._path / "chroma.sqlite3"))

    def close(self) -> None:
        """Let go of files and connections. Idempotent."""
        with self._lock:
            client, self._client = self._client, None
            self._open.clear()
        # Any: `close` joined Chroma's clients with 1.5, and its servers' have none.
        close: Any = getattr(client, "close", None)
        if close is not None:
            close()
        # They forget the connections to a server, which would stay open until they are collected.
        for holder in (client, getattr(client, "_admin_client", None)):
            session: Any = getattr(getattr(holder, "_server", None), "_session", None)
            if session is not None:
                session.close()

    def _running(self) -> _Client:
        if self._client is None:
            raise StoreError(f"The Chroma store {self.address!r} is closed. Open a new one.")
        return self._client

    def _collection(self, name: str) -> tuple[CollectionInfo, Any]:
        with self._lock:
            found = self._open.get(name)
        if found is not None:
            return found
        try:
            held = self._running().get_collection(_chroma_name(name), embedding_function=None)
        except NotFoundError:
            known = [info.name for info in self.collections()]
            raise unknown(name, known) from None
        opened = (_info(held), held)
        with self._lock:
            self._open[name] = opened
        return opened

    def _told(self, done: str, work: Callable[[], T]) -> T:
        """Do something with Chroma; its errors, of many kinds, become one of ours."""
        try:
            return work()
        except (ChromaError, ValueError, RuntimeError, OSError, KeyError, sqlite3.Error) as error:
            raise StoreError(
                f"The Chroma store {self.address!r} could not be {done}: {error}. If it is damaged, "
                f"delete its folder: it is filled again from the log."
            ) from error


def probe(path: Path) -> Health:
    """Look into a Chroma folder from a process of its own, and say whether it can be opened.

    Chroma may end the process that opens a damaged index, so this one stays out of it.
    """
    if not path.exists() or not any(path.iterdir()):
        return "empty"
    # Not by multiprocessing, which would run the program's main module once more.
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", _PROBE, root, str(path)]
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, on our own code
            command, timeout=_PROBE_SECONDS, check=False, capture_output=True
        )
    except subprocess.TimeoutExpired:
        return "damaged"
    return "sound" if done.returncode == 0 else "damaged"


def look(path: str) -> None:
    """Open everything that a search opens; whatever goes wrong ends this process, and tells."""
    client = chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))
    for collection in client.list_collections():
        dimension = collection.metadata["dimension"]
        found = collection.get(include=[])
        if found["ids"]:
            question = np.ones((1, dimension), np.float32)
            collection.query(query_embeddings=question, n_results=1, include=["distances"])


def _shrink(database: Path) -> None:
    """Give the system back what a database has no use for."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        # Whoever reads on for seconds is left in peace; what is free is used by what comes next.
        if free:
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute("VACUUM")


# Any: Chroma's collection and record types are private, and change with its versions.
def _put(held: Any, entries: Sequence[Entry]) -> None:
    ids = [entry.id for entry in entries]
    # An upsert would merge the new fields into the old ones.
    if any(entry.fields for entry in entries):
        held.delete(ids=ids)
    held.upsert(
        ids=ids,
        embeddings=np.stack([np.asarray(entry.vector, np.float32) for entry in entries]),
        metadatas=(
            [{_ALWAYS: True, **entry.fields} for entry in entries]
            if any(entry.fields for entry in entries)
            else None
        ),
    )


def _info(collection: Any) -> CollectionInfo:
    facts = collection.metadata
    return CollectionInfo(facts["name"], facts["model"], facts["dimension"])


def _chroma_name(name: str) -> str:
    """Return a name that Chroma takes: ASCII letters, digits, ``._-``, 3 to 512 of them."""
    return "c-" + name.encode("utf-8").hex()

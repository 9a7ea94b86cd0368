"""Where vectors are kept and searched: what every store does, and the one in memory.

A store holds collections of entries, each an id, a vector and a few fields to filter by. It is an
index, not the truth: texts and versions live in the log of the knowledge base, from which a store
that was lost or damaged is filled again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from atlas.errors import ConfigurationError, UnknownNameError, ValidationError, nearest_name
from atlas.knowledge.documents import Field
from atlas.knowledge.filters import Filter, matches

__all__ = [
    "CollectionInfo",
    "Entry",
    "KnowledgeStore",
    "Match",
    "MemoryStore",
    "checked",
    "mixed",
    "unknown",
]

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """A collection of a store.

    Attributes:
        name: Its name.
        model: The embedding model whose vectors it holds.
        dimension: Their length.
    """

    name: str
    model: str
    dimension: int


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What a store keeps under an id."""

    id: str
    vector: Vector
    fields: Mapping[str, Field] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """An entry that was found, and the cosine of the angle between its vector and the question's."""

    id: str
    similarity: float


class KnowledgeStore(Protocol):
    """An index of vectors. Every method may be called from any thread; one process writes at a time.

    What is put is found by the next `query`. A put or a delete is done for all of its entries or,
    when the process dies in it, for some whole ones; never for half an entry.
    """

    def create(self, collection: CollectionInfo) -> None:
        """Make a collection; nothing happens when it exists as described.

        Raises:
            ConfigurationError: It exists with another model or dimension.
        """

    def collections(self) -> list[CollectionInfo]:
        """Return all collections, by name."""

    def drop(self, collection: str) -> None:
        """Delete a collection and all that is in it; nothing happens when there is none."""

    def put(self, collection: str, entries: Sequence[Entry]) -> None:
        """Keep entries, each instead of the whole one that had its id; of equal ids the last.

        Raises:
            UnknownNameError: There is no such collection.
            ValidationError: A vector has the wrong length, or is not made of finite numbers.
        """

    def delete(self, collection: str, ids: Iterable[str]) -> None:
        """Forget entries; ids that are not there are no error.

        Raises:
            UnknownNameError: There is no such collection.
        """

    def query(
        self, collection: str, vector: Vector, k: int, *, where: Filter | None = None
    ) -> list[Match]:
        """Return the k entries most similar to a vector, the most similar first.

        Raises:
            UnknownNameError: There is no such collection.
            ValidationError: The vector has the wrong length, or is not made of finite numbers.
        """

    def ids(self, collection: str) -> set[str]:
        """Return the ids of all entries.

        Raises:
            UnknownNameError: There is no such collection.
        """

    def close(self) -> None:
        """Let go of files and connections. Idempotent."""


def checked(vector: Vector, dimension: int, *, what: str) -> Vector:
    """Return a vector, after a look at it.

    Raises:
        ValidationError: It has another length, or holds NaN or infinity.
    """
    vector = np.asarray(vector, np.float32)
    if vector.shape != (dimension,):
        raise ValidationError(
            what, "vector", f"shape {vector.shape}", f"a vector of {dimension} numbers"
        )
    if not np.isfinite(vector).all():
        bad = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ValidationError(
            what, "vector", float(vector[bad]), f"finite numbers, also at index {bad}"
        )
    return vector


@dataclass(slots=True)
class _Shelf:
    info: CollectionInfo
    entries: dict[str, Entry] = field(default_factory=dict)
    # The ids and unit vectors of all entries as a matrix; None after a change.
    matrix: tuple[list[str], NDArray[np.float32]] | None = None


class MemoryStore:
    """A `KnowledgeStore` that compares a question with every vector, and keeps nothing on disk.

    Exact, and fast enough for some ten thousand entries.
    """

    def __init__(self) -> None:
        self._shelves: dict[str, _Shelf] = {}
        self._lock = threading.Lock()

    def create(self, collection: CollectionInfo) -> None:
        """Make a collection; nothing happens when it exists as described."""
        with self._lock:
            there = self._shelves.setdefault(collection.name, _Shelf(collection)).info
        if there != collection:
            raise mixed(there, collection)

    def collections(self) -> list[CollectionInfo]:
        """Return all collections, by name."""
        with self._lock:
            shelves = list(self._shelves.values())
        return sorted((shelf.info for shelf in shelves), key=lambda info: info.name)

    def drop(self, collection: str) -> None:
        """Delete a collection and all that is in it."""
        with self._lock:
            self._shelves.pop(collection, None)

    def put(self, collection: str, entries: Sequence[Entry]) -> None:
        """Keep entries, each instead of the one that had its id."""
        shelf = self._shelf(collection)
        for entry in entries:
            checked(entry.vector, shelf.info.dimension, what=f"entry {entry.id!r}")
        with self._lock:
            shelf.entries |= {entry.id: entry for entry in entries}
            shelf.matrix = None

    def delete(self, collection: str, ids: Iterable[str]) -> None:
        """Forget entries."""
        shelf = self._shelf(collection)
        with self._lock:
            for each in ids:
                shelf.entries.pop(each, None)
            shelf.matrix = None

    def query(
        self, collection: str, vector: Vector, k: int, *, where: Filter | None = None
    ) -> list[Match]:
        """Return the k entries most similar to a vector."""
        shelf = self._shelf(collection)
        vector = checked(vector, shelf.info.dimension, what="the question")
        with self._lock:
            if shelf.matrix is None:
                shelf.matrix = _matrix(shelf.entries.values())
            names, matrix = shelf.matrix
            fields = [shelf.entries[name].fields for name in names] if where else []
        if not names:
            return []
        similarities = matrix @ _unit(vector)
        order = np.argsort(-similarities, kind="stable").tolist()
        if where is not None:
            order = [index for index in order if matches(where, fields[index])]
        return [Match(names[index], float(similarities[index])) for index in order[:k]]

    def ids(self, collection: str) -> set[str]:
        """Return the ids of all entries."""
        return set(self._shelf(collection).entries)

    def close(self) -> None:
        """Do nothing: there is nothing to let go of."""

    def _shelf(self, collection: str) -> _Shelf:
        with self._lock:
            found = self._shelves.get(collection)
            names = list(self._shelves)
        if found is None:
            raise unknown(collection, names)
        return found


def mixed(there: CollectionInfo, wanted: CollectionInfo) -> ConfigurationError:
    """Return the error for a collection that exists with another model."""
    return ConfigurationError(
        f"The collection {there.name!r} holds vectors of {there.model!r} ({there.dimension} "
        f"numbers each); those of {wanted.model!r} ({wanted.dimension}) cannot be compared with "
        f"them. Use the model it was made with, or another collection."
    )


def unknown(collection: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a collection that does not exist."""
    known = sorted(known)
    there = f"The collections here are: {', '.join(known)}. " if known else ""
    return UnknownNameError(
        f"There is no collection {collection!r}{nearest_name(collection, known)}. {there}"
        f"Ingest a document into it to make it.",
        name=collection,
    )


def _unit(vector: Vector) -> Vector:
    length = float(np.linalg.norm(vector))
    return vector / np.float32(length) if length else vector


def _matrix(entries: Iterable[Entry]) -> tuple[list[str], NDArray[np.float32]]:
    kept = list(entries)
    if not kept:
        return [], np.zeros((0, 0), np.float32)
    vectors = np.stack([np.asarray(entry.vector, np.float32) for entry in kept])
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return [entry.id for entry in kept], vectors / np.maximum(lengths, np.float32(1e-12))

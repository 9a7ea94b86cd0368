"""Search by meaning: the most similar vectors among the rows that count.

A store answers for nearly all rows at once, and approximately. What a store does badly is done here
exactly, from the vectors themselves: few rows, rows that the store does not have yet, and rows that
a filter leaves over. So the store may lag behind, be empty or be missing: results are the same,
only slower.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atlas.knowledge.catalogue import Catalogue
from atlas.knowledge.store import Entry, KnowledgeStore
from atlas.knowledge.vectors import VectorCache

__all__ = ["DenseIndex", "entry_id", "row_of"]

Rows = NDArray[np.int64]

# Up to this many rows, looking at each is as fast as asking a store.
_FEW: Final = 3_000
# Asking a store for more than this share of what it has is slower than looking at each.
_MOST_OF_STORE: Final = 0.05
_BLOCK: Final = 2_048


class DenseIndex:
    """The vectors of one collection. Any number of threads may search.

    Args:
        collection: Its name in the store.
        cache: Where the vectors are.
        store: A store that is faster; None: look at each vector.

    Attributes:
        covered: Rows below this number are in the store, as far as they were alive when they came.
    """

    def __init__(
        self, collection: str, cache: VectorCache, store: KnowledgeStore | None = None
    ) -> None:
        self.collection = collection
        self.covered = 0
        self._cache = cache
        self._store = store

    @property
    def store(self) -> KnowledgeStore | None:
        """The store that is asked; None: every vector is looked at."""
        return self._store

    def search(
        self, vector: NDArray[np.float32], catalogue: Catalogue, counts: NDArray[np.bool_], k: int
    ) -> Rows:
        """Return the rows most similar to a vector, among those that count; in no order.

        Args:
            vector: The question's.
            catalogue: Where the rows come from.
            counts: For each row whether it counts.
            k: How many to return, if there are as many.
        """
        total = int(np.count_nonzero(counts))
        if self._store is not None and total > _FEW:
            found = self._ask(self._store, vector, catalogue, counts, k)
            if found is not None:
                return found
        return self._best(vector, catalogue, np.flatnonzero(counts), k)

    def vectors(self, catalogue: Catalogue, rows: Rows) -> NDArray[np.float32]:
        """Return the vectors of rows."""
        return self._cache.take(catalogue.places[rows])

    def entries(self, catalogue: Catalogue, rows: Rows) -> list[Entry]:
        """Return what a store is given for rows."""
        vectors = self._cache.take(catalogue.places[rows])
        return [
            Entry(entry_id(catalogue, int(row)), vector)
            for row, vector in zip(rows, vectors, strict=True)
        ]

    def _ask(
        self,
        store: KnowledgeStore,
        vector: NDArray[np.float32],
        catalogue: Catalogue,
        counts: NDArray[np.bool_],
        k: int,
    ) -> Rows | None:
        """Ask the store, and look at what it does not have; None when that would not be enough."""
        covered = min(self.covered, catalogue.rows)
        stored = int(np.count_nonzero(catalogue.alive[:covered]))
        inside = int(np.count_nonzero(counts[:covered] & catalogue.alive[:covered]))
        if not inside:
            return None
        wanted = int(k * stored / inside * (1.0 if inside == stored else 1.5)) + 1
        if wanted > max(2 * k, _MOST_OF_STORE * stored):
            return None
        matches = store.query(self.collection, vector, wanted)
        rows = np.fromiter((row_of(match.id) for match in matches), np.int64, len(matches))
        rows = rows[rows < catalogue.rows]
        rows = rows[counts[rows]][:k]
        if len(rows) < min(k, inside):
            return None
        if inside == np.count_nonzero(counts):
            return rows
        outside = counts.copy()
        outside[:covered] &= ~catalogue.alive[:covered]
        others = np.flatnonzero(outside)
        return self._best(vector, catalogue, np.union1d(rows, others), k)

    def _best(self, vector: NDArray[np.float32], catalogue: Catalogue, rows: Rows, k: int) -> Rows:
        if len(rows) <= k:
            return rows
        similarities = np.empty(len(rows), np.float32)
        for begin in range(0, len(rows), _BLOCK):
            block = slice(begin, begin + _BLOCK)
            similarities[block] = self.vectors(catalogue, rows[block]) @ vector
        return rows[np.argpartition(similarities, -k)[-k:]]


def entry_id(catalogue: Catalogue, row: int) -> str:
    """Return the id of a row in a store; it tells the row and, in part, what it holds."""
    version, number, _ = catalogue.chunk(row)
    assert version.stored is not None
    # Short, for a store may keep it several times.
    return f"{row}.{urlsafe_b64encode(version.stored.keys[number])[:6].decode()}"


def row_of(id: str) -> int:  # noqa: A002 - it is one
    """Return the row of an id in a store."""
    return int(id.partition(".")[0])

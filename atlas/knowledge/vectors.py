"""Vectors by the text they belong to: a cache that outlives the process, in one file per model.

A text is embedded once, wherever it occurs again: in a later version of its document, in another
document, in another collection, after the index was lost. The file is a sequence of
equal entries ``key, checksum, vector`` that only grows; an entry that is damaged or unfinished counts
as missing. It can be deleted at any time; then texts are embedded again.

A number of a vector is the upper half of a 32-bit float (bfloat16): half the room, and widened by a
shift, some ten times faster than IEEE's half precision; cosines differ in the fifth place.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["VectorCache", "key_of"]

_KEY: Final = 16
Vectors = NDArray[np.float32]


def key_of(text: str) -> bytes:
    """Return what a text is found by: 16 bytes that differ for different texts."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_KEY).digest()


class VectorCache:
    """Vectors of one embedding model, found by `key_of` their text.

    Thread-safe. One process may add while others read; they see what was there when they opened it,
    and more after `refresh`.

    Args:
        path: The file; None keeps everything in memory.
        dimension: Length of a vector.
    """

    def __init__(self, path: Path | None, dimension: int) -> None:
        self.dimension = dimension
        self._entry = np.dtype(
            [("key", f"V{_KEY}"), ("check", "<u4"), ("vector", "<u2", (dimension,))]
        )
        self._path = path
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._places: dict[bytes, int] = {}
        # Replaced as one when it changes: readers take no lock.
        self._blocks: tuple[_Block, ...] = ()
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """See what another process has added to the file since."""
        if self._path is None or not self._path.exists():
            return
        with self._lock:
            have = self._size
            whole = self._path.stat().st_size // self._entry.itemsize
            if whole > have:
                begin = have * self._entry.itemsize
                self._join(
                    np.memmap(self._path, self._entry, "r", offset=begin, shape=(whole - have,))
                )

    def places(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Return where the vectors of keys are; -1 for those that are missing."""
        return np.fromiter((self._places.get(key, -1) for key in keys), np.int64, len(keys))

    def take(self, places: NDArray[np.int64]) -> Vectors:
        """Return the vectors at places, as rows."""
        blocks = self._blocks
        if len(blocks) == 1:
            return _widened(blocks[0].entries["vector"][places])
        vectors = np.empty((len(places), self.dimension), np.float32)
        for block in blocks:
            here = (places >= block.begin) & (places < block.end)
            if here.any():
                vectors[here] = _widened(block.entries["vector"][places[here] - block.begin])
        return vectors

    def embed(
        self, texts: Sequence[str], embed: Callable[[Sequence[str]], Vectors]
    ) -> tuple[NDArray[np.int64], int]:
        """Return the places of the vectors of texts; those that are missing are made.

        Args:
            texts: Any texts, also equal ones.
            embed: Returns one vector per text; called at most once, with different texts.

        Returns:
            The places, and how many vectors were made.
        """
        keys = [key_of(text) for text in texts]
        missing = {
            key: text for key, text in zip(keys, texts, strict=True) if key not in self._places
        }
        if missing:
            self.add(list(missing), embed(list(missing.values())))
        return self.places(keys), len(missing)

    def add(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keep vectors under their keys. They reach the disk with `flush`."""
        entries = np.empty(len(keys), self._entry)
        entries["vector"] = _halved(vectors)
        for index, key in enumerate(keys):
            entries[index]["key"] = np.void(key)
            entries[index]["check"] = _check(key, entries[index]["vector"])
        with self._lock:
            if self._path is not None:
                self._writable().write(entries.tobytes())
            self._join(entries)

    def flush(self) -> None:
        """Hand what was added to the system, so that it survives the death of this process."""
        with self._lock:
            if self._file is not None:
                self._file.flush()

    def close(self) -> None:
        """Write what was added and let go of the file. Idempotent."""
        with self._lock:
            file, self._file = self._file, None
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
            file.close()

    @property
    def _size(self) -> int:
        return self._blocks[-1].end if self._blocks else 0

    def _writable(self) -> IO[bytes]:
        """Open the file for appending, without an entry that a crash left unfinished."""
        if self._file is None:
            assert self._path is not None
            file = self._path.open("ab")
            file.truncate(self._size * self._entry.itemsize)
            self._file = file
        return self._file

    def _join(self, entries: NDArray[np.void]) -> None:
        """Make entries known; damaged ones keep their place, but are not found."""
        begin = self._size
        keys = entries["key"].tobytes()
        checks = entries["check"]
        vectors = entries["vector"]
        for index in range(len(entries)):
            key = keys[index * _KEY : (index + 1) * _KEY]
            if int(checks[index]) == _check(key, vectors[index]):
                self._places[key] = begin + index
        self._blocks = (*self._blocks, _Block(begin, entries))
        if len(self._blocks) > 64:
            # Put the small ones together, so that taking vectors stays fast.
            first, *others = self._blocks
            gathered = np.concatenate([block.entries for block in others])
            self._blocks = (first, _Block(first.end, gathered))


@dataclass(frozen=True, slots=True)
class _Block:
    begin: int
    entries: NDArray[np.void]

    @property
    def end(self) -> int:
        return self.begin + len(self.entries)


def _halved(vectors: Vectors) -> NDArray[np.uint16]:
    """Return the upper halves of numbers, rounded to the nearest."""
    bits = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _widened(halves: NDArray[np.uint16]) -> Vectors:
    bits = halves.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _check(key: bytes, vector: NDArray[np.uint16]) -> int:
    return zlib.crc32(vector.tobytes(), zlib.crc32(key))

"""Vectors by the text they belong to: a cache that outlives the process, in one file per model.

A text is embedded once, wherever it occurs again: in a later version of its document, in another
document, in another collection, after the index was lost. The file is a sequence of
equal entries ``key, checksum, vector`` that only grows; an entry that is damaged or unfinished counts
as missing. It can be deleted at any time; then texts are embedded again.

A vector is kept as whole numbers of 6 bits, or of 8, and one factor: a fifth, or a quarter, of the room
of floats. The factor keeps its length, so cosines stay within 1; they differ in the third place, or in
the fourth.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import IO, Final, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["VectorCache", "key_of"]

_KEY: Final = 16
_SHIFT: Final = 32
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
        bits: How many a number of a vector has. A file is always opened with those it was made with.
    """

    def __init__(self, path: Path | None, dimension: int, *, bits: Literal[6, 8] = 8) -> None:
        self.dimension = dimension
        self._bits = bits
        self._entry = np.dtype(
            [
                ("key", f"V{_KEY}"),
                ("check", "<u4"),
                ("factor", "<f4"),
                ("vector", "i1", (dimension,))
                if bits == 8
                else ("vector", "u1", (3 * _quarter(dimension),)),
            ]
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
                mapped = np.memmap(
                    self._path, self._entry, "r", offset=begin, shape=(whole - have,)
                )
                # As a plain array, for each slice of a memmap costs some microseconds.
                self._join(mapped.view(np.ndarray))

    def places(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """Return where the vectors of keys are; -1 for those that are missing."""
        return np.fromiter((self._places.get(key, -1) for key in keys), np.int64, len(keys))

    def take(self, places: NDArray[np.int64]) -> Vectors:
        """Return the vectors at places, as rows."""
        blocks = self._blocks
        if len(blocks) == 1:
            return self._widened(blocks[0].entries, places)
        vectors = np.empty((len(places), self.dimension), np.float32)
        for block in blocks:
            here = (places >= block.begin) & (places < block.end)
            if here.any():
                vectors[here] = self._widened(block.entries, places[here] - block.begin)
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
        entries["key"] = np.frombuffer(b"".join(keys), f"V{_KEY}")
        entries["factor"], whole = _rounded(vectors, most=127 if self._bits == 8 else 31)
        entries["vector"] = whole if self._bits == 8 else _packed(whole)
        entries["check"] = [_check(entry) for entry in entries]
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

    def _widened(self, entries: NDArray[np.void], places: NDArray[np.int64]) -> Vectors:
        kept = entries["vector"][places]
        vectors: Vectors = (
            kept.astype(np.float32) if self._bits == 8 else _unpacked(kept, self.dimension)
        )
        vectors *= entries["factor"][places][:, None]
        return vectors

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
        sound = entries["check"] == [_check(entry) for entry in entries]
        for index in np.flatnonzero(sound).tolist():
            self._places[keys[index * _KEY : (index + 1) * _KEY]] = begin + index
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


def _rounded(vectors: Vectors, *, most: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Return factors and whole numbers, at most so large, whose products are the vectors, nearly."""
    vectors = np.asarray(vectors, np.float32)
    largest = np.abs(vectors).max(axis=1, initial=0)
    whole = np.rint(vectors * (most / np.where(largest, largest, 1))[:, None])
    lengths = np.linalg.norm(whole, axis=1)
    factors = np.linalg.norm(vectors, axis=1) / np.where(lengths, lengths, 1)
    return factors.astype(np.float32), whole.astype(np.int8)


def _quarter(dimension: int) -> int:
    return -(-dimension // 4)


def _packed(whole: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Return numbers from -31 to 31 as 6 bits each: four in three bytes, one of each quarter of a row.

    Of quarters, not of neighbours, so that `_unpacked` moves long runs of bytes.
    """
    rows, dimension = whole.shape
    size = _quarter(dimension)
    signless = np.full((rows, 4 * size), _SHIFT, np.uint8)
    signless[:, :dimension] = whole + _SHIFT
    a, b, c, d = np.split(signless, 4, axis=1)
    return np.concatenate([a | b << 6, b >> 2 | c << 4, c >> 4 | d << 2], axis=1)


def _unpacked(packed: NDArray[np.uint8], dimension: int) -> NDArray[np.float32]:
    size = _quarter(dimension)
    first, second, third = np.split(packed, 3, axis=1)
    numbers = np.empty((len(packed), 4 * size), np.float32)
    numbers[:, :size] = first & 63
    numbers[:, size : 2 * size] = first >> 6 | (second & 15) << 2
    numbers[:, 2 * size : 3 * size] = second >> 4 | (third & 3) << 4
    numbers[:, 3 * size :] = third >> 2
    numbers -= _SHIFT
    return numbers[:, :dimension]


def _check(entry: np.void) -> int:
    content = entry.tobytes()
    return zlib.crc32(content[_KEY + 4 :], zlib.crc32(content[:_KEY]))

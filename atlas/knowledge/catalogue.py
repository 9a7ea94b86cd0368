"""The catalogue of a collection: which versions of which documents there are, and their passages.

Every passage of every version has a row, numbered in the order of the log. A catalogue never
changes; adding to it makes another one that shares what it can. So a search works on one catalogue
from beginning to end, whatever is ingested meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

from atlas.errors import ConfigurationError, nearest_name
from atlas.knowledge.documents import Chunk, Field
from atlas.knowledge.filters import All, AnyOf, Compare, Filter, Not
from atlas.knowledge.keyword import KeywordIndex, Statistics
from atlas.knowledge.records import StoredDocument

__all__ = ["Catalogue", "Change", "Version", "keyword_texts"]

Mask = NDArray[np.bool_]
_FILTERS_KEPT: Final = 64
_FOREVER: Final = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a document.

    Attributes:
        source: What the document is known by.
        number: Which version of it this is, from 1; a removal takes a number too.
        position: Where in the log it is: that of the knowledge base from then on.
        time_ns: When it was ingested, in ns since 1970.
        stored: The document without its text; None for a removal.
        first_row: The row of its first passage.
    """

    source: str
    number: int
    position: int
    time_ns: int
    stored: StoredDocument | None
    first_row: int


@dataclass(frozen=True, slots=True)
class Change:
    """A record to be added to a catalogue.

    Attributes:
        source: What the document is known by.
        number: Its version.
        position: Its place in the log.
        time_ns: When it was appended.
        stored: The document; None when it was removed.
    """

    source: str
    number: int
    position: int
    time_ns: int
    stored: StoredDocument | None


@dataclass(frozen=True)
class Catalogue:
    """All versions of a collection's documents up to one position of the log.

    Attributes:
        position: The last position of the log that is in it.
        versions: All versions; the list is shared and may be longer than ``born``.
        born: For each version, its position.
        died: For each version, the position at which another took its place.
        first_rows: For each version, the row of its first passage; then the number of all rows.
        places: For each row, where its vector is.
        current: The index of the version of each source that is alive now.
        words: The index of all rows by words.
    """

    position: int = 0
    versions: list[Version] = field(default_factory=list)
    born: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    died: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    first_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(1, np.int64))
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    current: Mapping[str, int] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    words: KeywordIndex = field(default_factory=KeywordIndex)

    @property
    def rows(self) -> int:
        """How many passages there are, of all versions."""
        return len(self.places)

    @property
    def size(self) -> int:
        """How many versions there are."""
        return len(self.born)

    def extended(
        self,
        changes: Sequence[Change],
        places: NDArray[np.int64],
        words: KeywordIndex,
        *,
        position: int,
    ) -> Catalogue:
        """Return a catalogue with more versions.

        Args:
            changes: What happened, in the order of the log.
            places: Where the vectors of their passages are, in order.
            words: The index by words, with their passages.
            position: The position of the log after them.
        """
        died = np.concatenate([self.died, np.full(len(changes), _FOREVER)])
        current, numbers = dict(self.current), dict(self.numbers)
        counts = []
        versions = self.versions[: self.size]
        row = self.rows
        for index, change in enumerate(changes, self.size):
            before = current.pop(change.source, None)
            if before is not None:
                died[before] = change.position
            if change.stored is not None:
                current[change.source] = index
            numbers[change.source] = change.number
            count = len(change.stored.chunks) if change.stored else 0
            versions.append(
                Version(
                    change.source,
                    change.number,
                    change.position,
                    change.time_ns,
                    change.stored,
                    row,
                )
            )
            counts.append(count)
            row += count
        return Catalogue(
            position,
            versions,
            np.concatenate([self.born, np.array([c.position for c in changes], np.int64)]),
            died,
            np.concatenate([self.first_rows, self.rows + np.cumsum(counts, dtype=np.int64)]),
            np.concatenate([self.places, places]),
            current,
            numbers,
            words,
        )

    # -- which rows --

    @cached_property
    def version_of_row(self) -> NDArray[np.int32]:
        """For each row, the index of its version."""
        return np.repeat(np.arange(self.size, dtype=np.int32), self.passages)

    @cached_property
    def alive(self) -> Mask:
        """For each row, whether it is of a current version."""
        return self.rows_of(self.died == _FOREVER)

    def alive_at(self, position: int | None) -> Mask:
        """Return for each row whether it was current at a position; None: now."""
        if position is None or position >= self.position:
            return self.alive
        return self.rows_of((self.born <= position) & (self.died > position))

    @cached_property
    def statistics(self) -> Statistics:
        """Those of the words of all rows that are alive."""
        return self.words.statistics(self.alive)

    def statistics_at(self, position: int | None) -> Statistics:
        """Return those of the words of the rows that were current at a position; None: now."""
        alive = self.alive_at(position)
        return self.statistics if alive is self.alive else self.words.statistics(alive)

    @cached_property
    def passages(self) -> NDArray[np.int64]:
        """For each version, how many passages it has."""
        return np.diff(self.first_rows)

    def rows_of(self, versions: Mask) -> Mask:
        """Return for each row whether its version is marked."""
        return np.repeat(versions, self.passages)

    def filtered(self, condition: Filter) -> Mask:
        """Return for each row whether the metadata of its document meet a condition."""
        found = self._filtered.get(condition)
        if found is None:
            found = self.rows_of(self._versions_with(condition))
            if len(self._filtered) >= _FILTERS_KEPT:
                self._filtered.clear()
            self._filtered[condition] = found
        return found

    def chunk(self, row: int) -> tuple[Version, int, Chunk]:
        """Return the version, the number within it and the passage of a row."""
        version = self.versions[int(self.version_of_row[row])]
        assert version.stored is not None
        number = row - version.first_row
        return version, number, version.stored.chunks[number]

    def mark(self, rows: int) -> bytes:
        """Return what identifies the first rows: equal marks, equal passages and sources."""
        digest = blake2b(digest_size=16)
        for version in self.versions[: self.size]:
            if version.first_row >= rows:
                break
            digest.update(version.source.encode("utf-8", "surrogatepass"))
            if version.stored is not None:
                digest.update(b"".join(version.stored.keys))
        return rows.to_bytes(8, "little") + digest.digest()

    def begins_with(self, words: KeywordIndex, mark: bytes) -> bool:
        """Return whether an index by words that was kept is of the first rows of this catalogue."""
        return words.size <= self.rows and self.mark(words.size) == mark

    def check(self, condition: Filter) -> None:
        """Refuse a condition that cannot hold for any document, whatever version.

        Raises:
            ConfigurationError: No document has a field that it names, or none has a value in it that
                can be compared so.
        """
        if not isinstance(condition, Compare):
            inner = (condition.condition,) if isinstance(condition, Not) else condition.conditions
            for each in inner:
                self.check(each)
            return
        if not self.size:
            return
        values = [value for value in self._column(condition.field)[1] if value is not None]
        if not values:
            known = sorted(self._fields)
            raise ConfigurationError(
                f"No document has a field {condition.field!r}{nearest_name(condition.field, known)}. "
                f"The fields here are: {', '.join(known)}."
            )
        if not any(condition.suits(value) for value in values):
            raise ConfigurationError(
                f"{condition.field!r} is compared by {condition.operator!r} with "
                f"{condition.value!r}, but holds values like {values[0]!r}. Give a value of that "
                f"kind{', or compare by == or in' if condition.operator == 'contains' else ''}."
            )

    # -- filtering: each field is a column of codes, so that each value is compared once --

    def _versions_with(self, condition: Filter) -> Mask:
        match condition:
            case Compare():
                codes, values = self._column(condition.field)
                holds = np.array([condition.holds(value) for value in values], np.bool_)
                return holds[codes]
            case All():
                every: Mask = np.all([self._versions_with(c) for c in condition.conditions], axis=0)
                return every
            case AnyOf():
                some: Mask = np.any([self._versions_with(c) for c in condition.conditions], axis=0)
                return some
            case Not():
                return ~self._versions_with(condition.condition)

    @cached_property
    def _filtered(self) -> dict[Filter, Mask]:
        return {}

    @cached_property
    def _fields(self) -> set[str]:
        stored = [each.stored for each in self.versions[: self.size] if each.stored is not None]
        return {"source", "title"}.union(*(each.document.metadata for each in stored))

    @cached_property
    def _columns(self) -> dict[str, tuple[NDArray[np.int32], list[Field | None]]]:
        return {}

    def _column(self, name: str) -> tuple[NDArray[np.int32], list[Field | None]]:
        found = self._columns.get(name)
        if found is None:
            codes: dict[tuple[type, Field | None], int] = {}
            read = _reader(name)
            column = np.fromiter(
                (
                    codes.setdefault((type(value), value), len(codes))
                    for value in map(read, self.versions[: self.size])
                ),
                np.int32,
                self.size,
            )
            found = column, [value for _, value in codes]
            self._columns[name] = found
        return found


def _reader(name: str) -> Callable[[Version], Field | None]:
    if name == "source":
        return lambda version: version.source
    if name == "title":
        return lambda version: version.stored.document.title if version.stored else None
    return lambda version: version.stored.document.metadata.get(name) if version.stored else None


def keyword_texts(source: str, stored: StoredDocument | None, text: str) -> Iterator[str]:
    """Yield what of each passage is found by words: its text, and the words of title and path."""
    if stored is None:
        return
    about = f"{stored.document.title} {source.rpartition('/')[2]}"
    for chunk in stored.chunks:
        yield f"{about}\n{text[chunk.start : chunk.end]}"

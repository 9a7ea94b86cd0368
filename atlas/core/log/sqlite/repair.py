"""Write the good part of a damaged file anew, and keep the damaged file beside it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atlas.core.log.engine import Progress
from atlas.core.log.planning import Planner, Request, Tip
from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite.examination import erasure_notes, judged
from atlas.core.log.sqlite.file import LogFile, one
from atlas.core.log.sqlite.notes import note_id, note_row, read_notes
from atlas.core.log.sqlite.statements import COPY_NOTE
from atlas.core.log.verification import LOG_STREAM, StoredRow, Verifier, repaired_note
from atlas.errors import LogCorruptedError

__all__ = ["Salvage", "exchange", "salvage"]

# Beyond that a position comes from a flipped bit.
_PLAUSIBLE: Final = 2**53
_EVERY: Final = 1000
_LOG_STREAM: Final = LOG_STREAM.encode()


@dataclass(frozen=True, slots=True)
class Salvage:
    """What was written anew.

    Attributes:
        path: The new file.
        kept: Records.
        left: Records that are only in the damaged file, and notes that do not follow what is kept.
    """

    path: Path
    kept: int
    left: int


def salvage(damaged: LogFile, aside: Path, now_ns: int, progress: Progress | None) -> Salvage:
    """Write the records before the first bad one into a new file, with a remark about the others.

    Args:
        damaged: The file.
        aside: Where it is going to be; the remark says so.
        now_ns: The time now.
        progress: Told (done, all) now and then.
    """
    path = _beside(damaged.path, ".repairing")
    for leftover in (path, _beside(path, "-wal"), _beside(path, "-shm")):
        leftover.unlink(missing_ok=True)
    new = LogFile(path, synchronous="FULL", busy_timeout=10.0, read_only=False)
    with damaged.readable() as (source, _), closing(new.writer()) as target:
        verifier = Verifier(_notes(source))
        highest = _highest_position(source)
        target.execute("BEGIN IMMEDIATE")
        copy = _Copy(target)
        for row in _good(source, verifier):
            copy.insert(row)
            if progress is not None and verifier.records % _EVERY == 0:
                progress(verifier.records, highest)
        _copy_tracking(source, target)
        # Its position is not below any that the damaged file gave out.
        tip = Tip(max(verifier.position, highest), verifier.time_ns, verifier.chain)
        copy.insert_remark(
            repaired_note(verifier.position + 1, tip.position, str(aside)), tip, now_ns
        )
        lost_notes = copy.insert_notes(source) if damaged.has_notes else 0
        target.execute("COMMIT")
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        left = _count(source, highest) - verifier.records + lost_notes
    return Salvage(path, verifier.records, max(0, left))


def exchange(path: Path, new: Path, aside: Path) -> None:
    """Put the new file in the place of the damaged one, which is kept.

    Every connection of this process is closed. At no moment is there no log at the path.
    """
    try:
        os.link(path, aside)
    except OSError:
        # A file system without links.
        shutil.copy2(path, aside)
    # A journal left behind would be played into the new file. There is one only if what is in it
    # could not be brought into the damaged file.
    with suppress(FileNotFoundError):
        _beside(path, "-wal").rename(_beside(aside, "-wal"))
    _beside(path, "-shm").unlink(missing_ok=True)
    new.replace(path)
    _sync_directory(path.parent)


class _Copy:
    """The records of a new file, as they come."""

    def __init__(self, target: sqlite3.Connection) -> None:
        self._target = target
        self._ids: dict[tuple[str, object], int] = {}
        self._heads: dict[object, object] = {}
        self._remarks = 0

    def insert(self, row: StoredRow) -> None:
        self._target.execute(
            "INSERT INTO events (position, stream_id, version, name_id, time_ns, wall_ns, digest, "
            "chain, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.position,
                self._id("streams (stream)", row.stream),
                row.version,
                self._id("names (name)", row.name),
                row.time_ns,
                row.wall_ns,
                row.digest,
                row.chain,
                row.payload,
            ),
        )
        self._heads[row.stream] = row.version
        if row.stream == _LOG_STREAM and isinstance(row.version, int):
            self._remarks = row.version

    def insert_remark(self, remark: NewRecord, tip: Tip, now_ns: int) -> None:
        planner = Planner(tip, lambda _: self._remarks, lambda _: 0)
        (record,) = planner.plan(Request((remark,), {}, None, now_ns), now_ns)
        self.insert(StoredRow.of(record))
        self._target.execute("UPDATE tip SET position = ?, time_ns = ?, chain = ?", planner.tip)

    def insert_notes(self, source: sqlite3.Connection) -> int:
        """Copy the notes that follow what was copied; return how many do not."""
        try:
            notes = read_notes(source)
        except (sqlite3.DatabaseError, LogCorruptedError):
            return 0  # nobody can say how many
        lost = 0
        for note in notes:
            stream = one(source, "SELECT stream FROM streams WHERE id = ?", note.stream_id)
            name = one(source, "SELECT name FROM names WHERE id = ?", note.name_id)
            if not (stream and name and note.follows(self._heads.get(stream[0]))):
                lost += 1
                continue
            self._heads[stream[0]] = note.version
            row_id = note_id(self._id("streams (stream)", stream[0]), note.after)
            assert row_id is not None
            name_id = self._id("names (name)", name[0])
            self._target.execute(
                COPY_NOTE,
                note_row(row_id, note.version, name_id, note.wall_ns, note.payload),
            )
        return lost

    def _id(self, table: str, text: object) -> int:
        found = self._ids.get((table, text))
        if found is None:
            assert isinstance(text, bytes)
            insert = f"INSERT INTO {table} VALUES (?)"  # noqa: S608 - one of two tables
            found = self._target.execute(insert, (text.decode(),)).lastrowid
            assert found is not None
            self._ids[table, text] = found
        return found


def _good(source: sqlite3.Connection, verifier: Verifier) -> Iterator[StoredRow]:
    for row, problem in judged(source, verifier):
        if row is None or problem:
            return
        yield row


def _copy_tracking(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    with suppress(sqlite3.DatabaseError, UnicodeDecodeError):
        for reader, position in source.execute("SELECT reader, position FROM tracking"):
            if isinstance(reader, bytes) and isinstance(position, int):
                target.execute("INSERT INTO tracking VALUES (?, ?)", (reader.decode(), position))


def _notes(source: sqlite3.Connection) -> list[bytes]:
    try:
        return erasure_notes(source)
    except sqlite3.DatabaseError:
        return []


def _highest_position(source: sqlite3.Connection) -> int:
    """Return the highest position that may have been given out, as far as can be read."""
    found = [0]
    for statement in ("SELECT max(position) FROM events", "SELECT position FROM tip"):
        with suppress(sqlite3.DatabaseError):
            found += [
                value
                for value in one(source, statement)
                if isinstance(value, int) and 0 < value < _PLAUSIBLE
            ]
    return max(found)


def _count(source: sqlite3.Connection, highest: int) -> int:
    try:
        found = one(source, "SELECT count(*) FROM events")[0]
    except sqlite3.DatabaseError:
        return highest
    return found if isinstance(found, int) else highest


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _sync_directory(directory: Path) -> None:
    # Windows has no such thing.
    with suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

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
from atlas.core.log.planning import Tip
from atlas.core.log.sqlite.examination import erasure_notes, judged
from atlas.core.log.sqlite.file import LogFile, one
from atlas.core.log.verification import StoredRow, Verifier

__all__ = ["Salvage", "exchange", "salvage"]

# Beyond that a position comes from a flipped bit.
_PLAUSIBLE: Final = 2**53
_EVERY: Final = 1000


@dataclass(frozen=True, slots=True)
class Salvage:
    """What was written anew.

    Attributes:
        kept: Records.
        left: Records that are only in the damaged file.
        last: The last position kept.
        tip: Where the new log stands; its position is not below any the damaged one gave out.
    """

    kept: int
    left: int
    last: int
    tip: Tip


def salvage(damaged: LogFile, path: Path, progress: Progress | None) -> Salvage:
    """Write the records before the first bad one into a new file."""
    for leftover in (path, _beside(path, "-wal"), _beside(path, "-shm")):
        leftover.unlink(missing_ok=True)
    new = LogFile(path, synchronous="FULL", busy_timeout=10.0, read_only=False)
    with damaged.readable() as source, closing(new.writer()) as target:
        verifier = Verifier(_notes(source))
        highest = _highest_position(source)
        target.execute("BEGIN IMMEDIATE")
        _copy(source, target, verifier, progress or (lambda _done, _all: None), highest)
        _copy_tracking(source, target)
        tip = Tip(max(verifier.position, highest), verifier.time_ns, verifier.chain)
        target.execute("UPDATE tip SET position = ?, time_ns = ?, chain = ?", tip)
        target.execute("COMMIT")
        target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        left = _count(source, highest) - verifier.records
    return Salvage(verifier.records, max(0, left), verifier.position, tip)


def exchange(path: Path, new: Path) -> Path:
    """Put the new file in the place of the damaged one; return where that is now.

    Every connection of this process is closed. At no moment is there no log at the path.
    """
    number = 1
    while (aside := _beside(path, f".set-aside-{number}")).exists():
        number += 1
    try:
        os.link(path, aside)
    except OSError:
        # A file system without links.
        shutil.copy2(path, aside)
    # A journal left behind would be played into the new file.
    with suppress(FileNotFoundError):
        _beside(path, "-wal").rename(_beside(aside, "-wal"))
    _beside(path, "-shm").unlink(missing_ok=True)
    new.replace(path)
    _sync_directory(path.parent)
    return aside


def _copy(
    source: sqlite3.Connection,
    target: sqlite3.Connection,
    verifier: Verifier,
    progress: Progress,
    highest: int,
) -> None:
    streams: dict[object, int] = {}
    names: dict[object, int] = {}
    for row in _good(source, verifier):
        if row.stream not in streams:
            streams[row.stream] = _intern(target, "streams (stream)", row.stream)
        if row.name not in names:
            names[row.name] = _intern(target, "names (name)", row.name)
        target.execute(
            "INSERT INTO events (position, stream_id, version, name_id, time_ns, wall_ns, digest, "
            "chain, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                row.position,
                streams[row.stream],
                row.version,
                names[row.name],
                row.time_ns,
                row.wall_ns,
                row.digest,
                row.chain,
                row.payload,
            ),
        )
        if verifier.records % _EVERY == 0:
            progress(verifier.records, highest)


def _good(source: sqlite3.Connection, verifier: Verifier) -> Iterator[StoredRow]:
    for row, problem in judged(source, verifier):
        if row is None or problem:
            return
        yield row


def _intern(target: sqlite3.Connection, table: str, text: object) -> int:
    assert isinstance(text, bytes)
    insert = f"INSERT INTO {table} VALUES (?)"  # noqa: S608 - one of two tables
    found = target.execute(insert, (text.decode(),)).lastrowid
    assert found is not None
    return found


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

"""What the faults are done to: the log of Atlas, and plain SQLite to show what it adds.

All have the same few methods; `open_store` takes the name of one:

- ``atlas-power``, ``atlas-process``, ``atlas-lazy``: the log on SQLite, by what an append survives;
- ``postgres-power``, ``postgres-process``: the log on PostgreSQL;
- ``raw-full``, ``raw-normal``, ``raw-off``: one table and one commit per append, by ``synchronous``;
- ``early-ack``: a table, acknowledged before it is written;
- ``trusting-next``: the same without a check of versions.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from atlas.core.log.engine import Durability, Engine
from atlas.core.log.records import NewRecord, Snapshot
from atlas.core.log.sqlite import SqliteEngine
from atlas.errors import VersionConflictError

if TYPE_CHECKING:
    from atlas.core.temporal_store import Timeline


@dataclass(frozen=True, slots=True)
class Row:
    """A record as the checks see it; ``payload`` None: erased."""

    position: int
    stream: str
    version: int
    payload: bytes | None
    time_ns: int = 0


class Store(Protocol):
    """Something that keeps batches of (stream, payload)."""

    def append(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """Store a batch, or nothing of it; once this has returned it is acknowledged."""

    async def append_async(self, batch: Sequence[tuple[str, bytes]]) -> None:
        """The same, awaited."""

    def head(self, stream: str) -> int:
        """Return the last version of a stream, 0 for none."""

    def append_at(self, stream: str, version: int, payload: bytes) -> bool:
        """Store a record at this version; False when that is taken."""

    def snapshot(self, stream: str) -> None:
        """Keep a snapshot of a stream, where the store has such."""

    def erase(self, stream: str) -> bool:
        """Destroy the payloads of a stream; False where the store has no such thing."""

    def fork(self, name: str) -> bool:
        """Keep a timeline, fork it, and append to the fork; False where the store has no such thing."""

    def has_fork(self, name: str) -> bool:
        """Whether that is there, and right."""

    def rows(self) -> list[Row]:
        """Return everything, by position."""

    def verify(self) -> str:
        """Return what is wrong with it, "" for nothing."""

    def close(self) -> None:
        """Close it."""


class RawStore:
    """A table of SQLite in WAL mode; what is right with it is what SQLite promises."""

    def __init__(self, path: Path, synchronous: str) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=30
        )
        with ExitStack() as unless_usable:
            unless_usable.callback(self._connection.close)  # what a crash left may be no database
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute(f"PRAGMA synchronous={synchronous}")
            self._connection.execute("PRAGMA wal_autocheckpoint=200")
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS records (position INTEGER PRIMARY KEY,"
                " stream TEXT, version INTEGER, payload BLOB, UNIQUE (stream, version))"
            )
            unless_usable.pop_all()

    def append(self, batch: Sequence[tuple[str, bytes]]) -> None:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "INSERT INTO records (stream, version, payload) SELECT ?,"
                " (SELECT coalesce(max(version), 0) + 1 FROM records WHERE stream = ?), ?",
                [(stream, stream, payload) for stream, payload in batch],
            )
            self._connection.execute("COMMIT")

    async def append_async(self, batch: Sequence[tuple[str, bytes]]) -> None:
        await asyncio.to_thread(self.append, batch)

    def head(self, stream: str) -> int:
        question = "SELECT coalesce(max(version), 0) FROM records WHERE stream = ?"
        with self._lock:
            return int(self._connection.execute(question, (stream,)).fetchone()[0])

    def append_at(self, stream: str, version: int, payload: bytes) -> bool:
        statement = "INSERT INTO records (stream, version, payload) VALUES (?, ?, ?)"
        try:
            with self._lock:
                self._connection.execute(statement, (stream, version, payload))
        except sqlite3.IntegrityError:
            return False
        return True

    def snapshot(self, stream: str) -> None:
        pass

    def erase(self, stream: str) -> bool:
        return False

    def fork(self, name: str) -> bool:
        return False

    def has_fork(self, name: str) -> bool:
        return False

    def rows(self) -> list[Row]:
        found = self._connection.execute(
            "SELECT position, stream, version, payload FROM records ORDER BY position"
        )
        return [Row(*row) for row in found]

    def verify(self) -> str:
        answer = self._connection.execute("PRAGMA integrity_check").fetchone()[0]
        return "" if answer == "ok" else str(answer)

    def close(self) -> None:
        self._connection.close()


class EarlyStore(RawStore):
    """A negative control: it acknowledges first, and writes the records one by one later."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "normal")
        self._waiting: list[tuple[str, bytes]] = []

    def append(self, batch: Sequence[tuple[str, bytes]]) -> None:
        with self._lock:
            self._waiting += batch
            due, self._waiting[:] = self._waiting[:-30], self._waiting[-30:]
        for record in due:
            super().append([record])


class TrustingStore(RawStore):
    """A negative control: no version is checked, as in a table without a constraint."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "normal")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS trusting"
            " (position INTEGER PRIMARY KEY, stream TEXT, version INTEGER, payload BLOB)"
        )

    def head(self, stream: str) -> int:
        question = "SELECT coalesce(max(version), 0) FROM trusting WHERE stream = ?"
        return int(self._connection.execute(question, (stream,)).fetchone()[0])

    def append_at(self, stream: str, version: int, payload: bytes) -> bool:
        statement = "INSERT INTO trusting (stream, version, payload) VALUES (?, ?, ?)"
        self._connection.execute(statement, (stream, version, payload))
        return True

    def rows(self) -> list[Row]:
        found = self._connection.execute(
            "SELECT position, stream, version, payload FROM trusting ORDER BY position"
        )
        return [Row(*row) for row in found]


class AtlasStore:
    """A log. Two of three appends are tried as notes first."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._turns = itertools.cycle((True, True, False))
        self._heads: dict[str, int] = {}
        self._lock = threading.Lock()

    def append(self, batch: Sequence[tuple[str, bytes]]) -> None:
        records = new(batch)
        if next(self._turns) and self._note(records):
            return
        for record in self.engine.append(records).wait():
            with self._lock:
                self._heads[record.stream] = max(record.version, self._heads.get(record.stream, 0))

    def _note(self, records: Sequence[NewRecord]) -> bool:
        """Try to note records at the versions that follow those this process knows of."""
        with self._lock:
            heads = dict(self._heads)
            if not heads.keys() >= {record.stream for record in records}:
                return False
            numbered: list[NewRecord] = []
            for record in records:
                heads[record.stream] += 1
                numbered.append(record._replace(version=heads[record.stream], wall_ns=0))
            is_noted = self.engine.note(numbered)
            if is_noted:
                self._heads = heads
            return is_noted

    async def append_async(self, batch: Sequence[tuple[str, bytes]]) -> None:
        await self.engine.append(new(batch))

    def head(self, stream: str) -> int:
        return self.engine.head(stream) or 0

    def append_at(self, stream: str, version: int, payload: bytes) -> bool:
        record = NewRecord(stream, "fault.test@1", payload, version=version)
        try:
            self.engine.append([record], expect={stream: version - 1}).wait()
        except VersionConflictError:
            return False
        return True

    def snapshot(self, stream: str) -> None:
        version = self.engine.head(stream)
        if version is not None:
            self.engine.save_snapshot(Snapshot(stream, version, "sum", b"s" * 500))

    def erase(self, stream: str) -> bool:
        self.engine.erase(stream)
        return True

    def fork(self, name: str) -> bool:
        timeline = self._timeline(name)
        timeline.append(1, 2, 3).wait()
        timeline.fork(f"{name}.other", at=2).append(10).wait()
        return True

    def has_fork(self, name: str) -> bool:
        timeline, other = self._timeline(name), self._timeline(f"{name}.other")
        return timeline.now() == 6 and other.now() == 13 and other.at(2) == 3

    def _timeline(self, name: str) -> Timeline[int]:
        # Here, because it takes longer to import than most of these processes live.
        from atlas.core.temporal_store import TemporalStore

        return TemporalStore(self.engine).timeline(name, add_up, initial=0)

    def rows(self) -> list[Row]:
        return [
            Row(record.position, record.stream, record.version, record.payload, record.time_ns)
            for record in self.engine.read_all()
            if not record.stream.startswith(("$", "fork."))
        ]

    def verify(self) -> str:
        return self.engine.verify().problem

    def close(self) -> None:
        self.engine.close()


def add_up(total: int, event: int) -> int:
    return total + event


def new(batch: Sequence[tuple[str, bytes]]) -> list[NewRecord]:
    return [NewRecord(stream, "fault.test@1", payload) for stream, payload in batch]


def open_store(kind: str, place: Path | str) -> Store:
    """Open a store of a kind, such as ``atlas-power``, in a file or, for ``postgres-…``, a database."""
    family, way = kind.split("-")
    if family == "postgres":
        # Here, because the package is optional.
        from atlas.core.log.postgres import PostgresEngine

        return AtlasStore(PostgresEngine(str(place), durability=cast("Durability", way)))
    path = Path(place)
    if family == "early":
        return EarlyStore(path)
    if family == "trusting":
        return TrustingStore(path)
    if family == "raw":
        return RawStore(path, way)
    return AtlasStore(SqliteEngine(path, durability=cast("Durability", way)))

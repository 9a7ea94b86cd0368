"""The log in memory: for tests, and for programs that want no file."""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping, Sequence
from itertools import islice
from operator import attrgetter

from atlas.core.clock import SystemClock
from atlas.core.log.chain import GENESIS
from atlas.core.log.engine import Append, Join, Progress, Repair, Verification
from atlas.core.log.group_commit import GroupCommit, PendingAppend
from atlas.core.log.planning import START, Planner, Request, Tip
from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.core.log.verification import (
    ERASED,
    LOG_STREAM,
    Erasure,
    StoredRow,
    Verifier,
    repaired_note,
)
from atlas.errors import LogClosedError, VersionConflictError
from atlas.typing import Clock

__all__ = ["MemoryEngine"]

_position = attrgetter("position")
_version = attrgetter("version")
_time = attrgetter("time_ns")


class MemoryEngine:
    """A log that is gone when the process ends; see `atlas.core.log.engine.Engine`.

    An append is stored when ``append`` returns. Reading copies lists, never payloads.

    Args:
        clock: Where time comes from.
    """

    address = ":memory:"

    def __init__(self, *, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.RLock()
        self._grown = threading.Condition(self._lock)
        self._closed = False
        self._records: list[Record] = []
        self._streams: dict[str, list[Record]] = {}
        self._tracked: dict[str, int] = {}
        self._snapshots: dict[str, dict[str, list[Snapshot]]] = {}
        self._planner = Planner(START, self._head_or_0, self._tracked_or_0)
        self._commits = GroupCommit(self._commit, grace=None, address=self.address)

    def append(
        self,
        records: Sequence[NewRecord],
        *,
        expect: Mapping[str, int] | None = None,
        tracking: tuple[str, int] | None = None,
    ) -> Append:
        """Append records; see `atlas.core.log.engine.Engine.append`."""
        request = Request.checked(records, expect, tracking, self._clock.time_ns())
        return self._commits.submit(request)

    def note(self, records: Sequence[NewRecord], join: Join | None = None) -> bool:
        """Append records, which is as quick."""
        if any(record.version is None for record in records):
            return False
        try:
            self.append(records).wait()
        except VersionConflictError:
            return False
        return True

    def flush(self, timeout: float | None = None) -> None:
        """Raise what failed unnoticed; everything is stored already."""
        self._commits.flush(timeout)

    def read(
        self,
        stream: str,
        *,
        after: int | None = None,
        until: int | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> list[Record]:
        """Return records of a stream; see `atlas.core.log.engine.Engine.read`."""
        with self._open():
            records = self._streams.get(stream, [])
            first = 0 if after is None else bisect_right(records, after, key=_version)
            end = len(records) if until is None else bisect_right(records, until, key=_version)
            if newest_first:
                if limit is not None:
                    first = max(first, end - limit)
                return records[first:end][::-1]
            if limit is not None:
                end = min(end, first + limit)
            return records[first:end]

    def read_all(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        limit: int | None = None,
        names: Sequence[str] = (),
        prefix: str = "",
    ) -> list[Record]:
        """Return records by position; see `atlas.core.log.engine.Engine.read_all`."""
        with self._open():
            records = self._records
            first = bisect_right(records, after, key=_position)
            end = len(records) if until is None else bisect_right(records, until, key=_position)
            if not names and not prefix:
                return records[first : end if limit is None else min(end, first + limit)]
            found = (
                record
                for record in records[first:end]
                if record.stream.startswith(prefix) and (not names or record.name in names)
            )
            return list(islice(found, limit))

    def head(self, stream: str) -> int | None:
        """Return the last version of a stream; None when it has no record."""
        with self._open():
            return self._head_or_0(stream) or None

    def last_position(self, prefix: str = "") -> int | None:
        """Return the last position in streams whose name begins so; None when there is no record."""
        with self._open():
            found = (r.position for r in reversed(self._records) if r.stream.startswith(prefix))
            return next(found, None)

    def position_at(self, time_ns: int) -> int:
        """Return the last position appended at this time or before; 0 when there is none."""
        with self._open():
            before = bisect_right(self._records, time_ns, key=_time)
            return self._records[before - 1].position if before else 0

    def streams(self, prefix: str = "") -> list[str]:
        """Return the streams whose name begins so, in order of their first record."""
        with self._open():
            return [stream for stream in self._streams if stream.startswith(prefix)]

    def tracked(self, reader: str) -> int | None:
        """Return the highest position stored by ``tracking`` for a reader."""
        with self._open():
            return self._tracked.get(reader)

    def wait_beyond(self, position: int, timeout: float | None = None) -> bool:
        """Block until there is a record after this position; False: time is up, or it was closed."""
        with self._grown:
            self._grown.wait_for(lambda: self._closed or self._last() > position, timeout)
            return not self._closed and self._last() > position

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, instead of one of the same stream, label and version."""
        with self._open():
            kept = self._snapshots.setdefault(snapshot.stream, {}).setdefault(snapshot.label, [])
            at = bisect_left(kept, snapshot.version, key=_version)
            if at < len(kept) and kept[at].version == snapshot.version:
                kept[at] = snapshot
                return
            insort(kept, snapshot, key=_version)

    def snapshot(self, stream: str, label: str, until: int | None = None) -> Snapshot | None:
        """Return the latest snapshot at this version or before."""
        with self._open():
            kept = self._snapshots.get(stream, {}).get(label, [])
            end = len(kept) if until is None else bisect_right(kept, until, key=_version)
            return kept[end - 1] if end else None

    def drop_snapshots(self, stream: str) -> None:
        """Forget all snapshots of a stream."""
        with self._open():
            self._snapshots.pop(stream, None)

    def erase(self, stream: str, *, after: int | None = None, until: int | None = None) -> int:
        """Forget payloads of a stream; see `atlas.core.log.engine.Engine.erase`."""
        Erasure.check(stream)
        with self._open():
            full = [r for r in self.read(stream, after=after, until=until) if r.payload is not None]
            self._snapshots.pop(stream, None)
            if not full:
                return 0
            for record in full:
                self._replace(record._replace(payload=None))
            erasure = Erasure(stream, full[0].version - 1, full[-1].version, len(full))
            self._note(erasure.note())
        return len(full)

    def verify(self, progress: Progress | None = None) -> Verification:
        """Compare everything with its hashes; see `atlas.core.log.engine.Engine.verify`."""
        with self._open():
            notes = [r.payload for r in self.read(LOG_STREAM) if r.name == ERASED and r.payload]
            records = list(self._records)
        verifier = Verifier(notes)
        for done, record in enumerate(records):
            if progress is not None and done % 1000 == 0:
                progress(done, len(records))
            problem = verifier.problem_with(StoredRow.of(record))
            if problem:
                return Verification(len(records), verifier.erased, record.position, problem)
        return Verification(len(records), verifier.erased, None, "")

    def repair(self, progress: Progress | None = None) -> Repair:
        """Drop everything from the first bad position on: there is no file to keep it in."""
        found = self.verify(progress)
        if found.bad_position is None:
            return Repair(found.records, 0, "")
        with self._open():
            kept = bisect_left(self._records, found.bad_position, key=_position)
            dropped = self._records[kept:]
            records, self._records, self._streams = self._records[:kept], [], {}
            for record in records:
                self._add(record)
            old, chain = self._planner.tip, records[-1].chain if records else GENESIS
            tip = Tip(old.position, old.time_ns, chain)
            self._planner = Planner(tip, self._head_or_0, self._tracked_or_0)
            self._snapshots.clear()
            self._note(repaired_note(found.bad_position, tip.position, ""))
        return Repair(kept, len(dropped), "")

    def disown(self) -> None:
        """Do nothing: a forked process has a copy of its own."""

    def close(self) -> None:
        """Forget everything that was not read yet, and wake who waits. Idempotent."""
        with self._grown:
            self._closed = True
            self._grown.notify_all()
        self._commits.close()

    def _open(self) -> threading.RLock:
        if self._closed:
            raise LogClosedError("The log in memory is closed; its records are gone.")
        return self._lock

    def _commit(self, group: Sequence[PendingAppend]) -> None:
        with self._grown:
            for append in group:
                self._store(append)
            self._grown.notify_all()

    def _store(self, append: PendingAppend) -> None:
        try:
            records = self._planner.plan(append.request, self._clock.time_ns())
        except VersionConflictError as error:
            append.fail(error)
            return
        for record in records:
            self._add(record)
        if append.request.tracking is not None:
            reader, position = append.request.tracking
            self._tracked[reader] = position
        append.succeed(records)

    def _note(self, note: NewRecord) -> None:
        now = self._clock.time_ns()
        for record in self._planner.plan(Request((note,), {}, None, now), now):
            self._add(record)
        self._grown.notify_all()

    def _add(self, record: Record) -> None:
        self._records.append(record)
        self._streams.setdefault(record.stream, []).append(record)

    def _replace(self, record: Record) -> None:
        self._records[bisect_left(self._records, record.position, key=_position)] = record
        stream = self._streams[record.stream]
        stream[bisect_left(stream, record.version, key=_version)] = record

    def _last(self) -> int:
        return self._records[-1].position if self._records else 0

    def _head_or_0(self, stream: str) -> int:
        records = self._streams.get(stream)
        return records[-1].version if records else 0

    def _tracked_or_0(self, reader: str) -> int:
        return self._tracked.get(reader, 0)

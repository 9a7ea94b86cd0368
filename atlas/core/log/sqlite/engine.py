"""`SqliteEngine`: the log in one file, for any number of threads and processes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from time import monotonic, perf_counter
from typing import Final, Literal

from atlas.core.clock import SystemClock
from atlas.core.log.engine import (
    Append,
    Durability,
    Join,
    Progress,
    Repair,
    Verification,
    check_durability,
)
from atlas.core.log.group_commit import GroupCommit, PendingAppend
from atlas.core.log.planning import Planner, Request
from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.core.log.sqlite.examination import examine
from atlas.core.log.sqlite.file import LogFile, is_of_one, one
from atlas.core.log.sqlite.reading import LARGEST, Reading, snapshot_digest
from atlas.core.log.sqlite.repair import exchange, salvage
from atlas.core.log.sqlite.rows import whole
from atlas.core.log.sqlite.statements import DROP_SNAPSHOTS, ERASABLE, ERASE, SAVE_SNAPSHOT, TRACK
from atlas.core.log.sqlite.writing import Writer
from atlas.core.log.verification import Erasure
from atlas.errors import (
    LogClosedError,
    LogError,
    LogUnavailableError,
    VersionConflictError,
)
from atlas.typing import Clock

__all__ = ["SqliteEngine"]

# Synchronous mode, and seconds until what nobody waits for is stored.
_DURABILITY: Final[Mapping[Durability, tuple[str, float]]] = {
    "power": ("FULL", 0.05),
    "process": ("NORMAL", 0.05),
    "lazy": ("NORMAL", 0.25),
}


class SqliteEngine(Reading):
    """A log in one SQLite file; see `atlas.core.log.engine.Engine`.

    Reading and writing do not block each other. Writers, of this and of other processes, take turns.
    A blocking call waits for the disk: on an event loop await appends, and call the other methods in
    a thread when they may be long.

    Args:
        path: The file; created when it is missing, its directory is not. Beside it SQLite keeps
            ``-wal`` and ``-shm``, which belong to it as long as they are there.
        durability: What an append survives once it is acknowledged. ``power``: a power cut;
            ``process``: the death of every process, not the machine's; ``lazy``: as ``process``, but
            what nobody waits for may stay unwritten for a quarter of a second.
        clock: Where time comes from.
        busy_timeout: Seconds to wait for another process that writes.
        poll: Seconds between two looks for records of other processes.
        read_only: Never write; the file must exist.

    Raises:
        LogFormatError: The file is something else, or of a newer Atlas.
        LogUnavailableError: It cannot be opened.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        durability: Durability = "power",
        clock: Clock | None = None,
        busy_timeout: float = 10.0,
        poll: float = 0.01,
        read_only: bool = False,
    ) -> None:
        check_durability(durability)
        synchronous, grace = _DURABILITY[durability]
        file = LogFile(
            Path(path), synchronous=synchronous, busy_timeout=busy_timeout, read_only=read_only
        )
        super().__init__(file)
        self._clock = clock or SystemClock()
        self._poll = poll
        self._growing = threading.RLock()
        self._grown = threading.Condition(self._growing)
        self._last_seen = 0
        self._disowned = False
        self._writer = Writer(file, self._streams, self._has_grown, self._clock)
        self._commits = GroupCommit(self._commit, grace=grace, address=self.address)

    # -- writing --

    def append(
        self,
        records: Sequence[NewRecord],
        *,
        expect: Mapping[str, int] | None = None,
        tracking: tuple[str, int] | None = None,
    ) -> Append:
        """Append records; see `atlas.core.log.engine.Engine.append`."""
        self._check_writable()
        request = Request.checked(records, expect, tracking, self._clock.time_ns())
        return self._commits.submit(request)

    def note(self, records: Sequence[NewRecord], join: Join | None = None) -> bool:
        """Keep records, to be entered into the log later; see `atlas.core.log.engine.Engine.note`."""
        self._check_writable()
        commits = self._commits
        if not commits.is_idle:
            return False
        started = perf_counter()
        is_kept = self._writer.note(records, join)
        commits.took = perf_counter() - started  # the next one waits if this was slow
        return is_kept

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything appended or noted so far is stored; raise what failed unnoticed."""
        self._check_open()
        self._commits.flush(timeout)
        with self._writer.held():
            self._writer.enter_notes()

    def _commit(self, group: Sequence[PendingAppend]) -> None:
        with self._writer.held():
            try:
                self._store(group)
            except (sqlite3.Error, LogError) as error:
                if len(group) > 1 and is_of_one(error):
                    for append in group:
                        self._commit([append])
                    return
                for append in group:
                    append.fail(self._writer.translated(error))

    def _store(self, group: Sequence[PendingAppend]) -> None:
        planned: list[tuple[PendingAppend, tuple[Record, ...]]] = []
        refused: list[tuple[PendingAppend, VersionConflictError]] = []

        def write(connection: sqlite3.Connection, planner: Planner) -> None:
            now_ns = self._clock.time_ns()
            everything: list[Record] = []
            for append in group:
                try:
                    records = planner.plan(append.request, now_ns)
                except VersionConflictError as error:
                    refused.append((append, error))
                    continue
                planned.append((append, records))
                everything += records
                if append.request.tracking is not None:
                    connection.execute(TRACK, append.request.tracking)
            self._writer.insert(connection, everything)

        def acknowledge() -> None:
            for append, records in planned:
                append.succeed(records)
            for append, error in refused:
                append.fail(error)

        self._writer.transact(write, acknowledge)

    def _has_grown(self, position: int) -> None:
        with self._growing:  # not the condition, whose own code an interrupt can break off
            self._last_seen = position
            self._grown.notify_all()

    @property
    def _joins(self) -> Mapping[str, Join]:
        return self._writer.joins

    def _has_entered(self, by: Literal["stream", "position"]) -> bool:
        if self._file.read_only:
            # Nobody can say yet which position they are going to have.
            return by == "position"
        if by == "stream" and not self._writer.has_noted:
            return False  # who noted it enters it, with more, and is not to be disturbed
        try:
            with self._writer.held():
                self._writer.enter_all_notes(hurried=by == "stream")
        except LogUnavailableError:
            # To read must be possible, also where there is no room. Whoever writes next is told why.
            return False
        return True

    # -- following --

    def wait_beyond(self, position: int, timeout: float | None = None) -> bool:
        """Block until there is a record after this position; False: time is up, or it was closed."""
        deadline = None if timeout is None else monotonic() + timeout
        is_first = True
        while not self._closed:
            if self._last_seen > position:
                return True
            try:
                # What another process notes it enters soon, unless it has died: one look for that will do.
                is_looking = is_first or self._writer.has_noted
                last = (self.last_position() or 0) if is_looking else self._end()
            except LogClosedError:
                break
            is_first = False
            patience = self._poll
            if deadline is not None:
                patience = min(patience, deadline - monotonic())
            with self._grown:
                self._last_seen = max(self._last_seen, last)
                if self._last_seen > position:
                    return True
                if patience <= 0:
                    return False
                if not self._closed:
                    self._grown.wait(patience)
        return False

    # -- snapshots --

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, instead of one of the same stream, label and version.

        It is a cache: in a power cut it may be lost, with no harm done.
        """
        stream, label, version = snapshot.stream, snapshot.label, snapshot.version
        digest = snapshot_digest(stream, label, version, snapshot.payload)
        row = (stream, label, version, digest, snapshot.payload)
        self._check_writable()
        with self._writer.held_relaxed():
            self._writer.transact(lambda connection, _: connection.execute(SAVE_SNAPSHOT, row))

    def drop_snapshots(self, stream: str) -> None:
        """Forget all snapshots of a stream."""
        self._check_writable()
        with self._writer.held_relaxed():
            self._writer.transact(
                lambda connection, _: connection.execute(DROP_SNAPSHOTS, (stream,))
            )

    # -- keeping --

    def erase(self, stream: str, *, after: int | None = None, until: int | None = None) -> int:
        """Destroy payloads of a stream; see `atlas.core.log.engine.Engine.erase`.

        The bytes are overwritten in the file, and the journal that held them is emptied.

        Raises:
            ConfigurationError: The stream is the log's own.
            LogUnavailableError: They are erased, but another process reads and keeps the journal.
                Erase again when it has ended.
        """
        Erasure.check(stream)
        self._check_writable()
        # What nobody waited for yet is erased too.
        self._commits.drain()
        first = -LARGEST if after is None else after
        last = LARGEST if until is None else until

        def write(connection: sqlite3.Connection, planner: Planner) -> int:
            connection.execute(DROP_SNAPSHOTS, (stream,))
            stream_id = self._streams.id_of(connection, stream)
            if stream_id is None:
                return 0
            found = one(connection, ERASABLE, stream_id, first, last)
            count = whole(found[0])
            if count:
                connection.execute(ERASE, (stream_id, first, last))
                erasure = Erasure(stream, whole(found[1]) - 1, whole(found[2]), count)
                self._writer.remark(connection, planner, erasure.note())
            return count

        with self._writer.held():
            count = self._writer.transact(write)
            self._writer.empty_journal()
        return count

    def verify(self, progress: Progress | None = None) -> Verification:
        """Read everything and compare it with its hashes; see `atlas.core.log.engine.Engine.verify`.

        Takes about 5 µs per record, and does not hinder writers.
        """
        self._check_open()
        with suppress(LogError):  # which is what is looked for
            self.last_position()
        with self._looking_through():
            return examine(self._file, progress)

    def repair(self, progress: Progress | None = None) -> Repair:
        """Keep the good prefix; see `atlas.core.log.engine.Engine.repair`.

        The good records are written into a new file, which takes the place of the damaged one; that
        is kept whole beside it, as ``….set-aside-1``. Other processes should not have the log open:
        what they append meanwhile may end up in the file set aside. Snapshots are not kept.
        """
        self._check_open()
        with self._writer.held(), self._looking_through():
            found = examine(self._file, progress)
            if found.bad_position is None:
                return Repair(found.records, 0, "")
            self._check_writable()
            aside = self._file.free_name()
            saved = salvage(self._file, aside, self._clock.time_ns(), progress)
            self._file.checkpoint()
            self._writer.forget_file()
            self._forget_file()
            exchange(self._file.path, saved.path, aside)
            self._file.reopened()
        return Repair(saved.kept, saved.left, str(aside))

    @contextmanager
    def _looking_through(self) -> Iterator[None]:
        try:
            yield
        except LogError:
            raise
        except sqlite3.Error as error:
            raise self._writer.translated(error) from error
        except OSError as error:
            # Of a damaged file a copy is read, and what is good is written into another one.
            raise LogUnavailableError(
                f"The log {self.address} cannot be looked through or repaired now: {error}. Make room "
                f"on its disk, and see that its folder may be written."
            ) from error

    def close(self) -> None:
        """Store what is on its way and let go of the file. Idempotent.

        Raises:
            VersionConflictError: An append nobody waited for was refused.
            LogUnavailableError: One could not be stored.
        """
        if self._disowned:
            return
        self._closed = True
        with self._grown:
            self._grown.notify_all()
        try:
            self._commits.close()
            # What cannot be entered now is safe, and whoever opens the log next does it.
            with suppress(LogUnavailableError), self._writer.held():
                self._writer.enter_notes()
        finally:
            self._writer.close()
            self._disconnect_readers()

    def disown(self) -> None:
        """Refuse everything from now on; see `atlas.core.log.engine.Engine.disown`."""
        self._disowned = self._closed = True
        self._commits.disown()

    def _check_writable(self) -> None:
        self._check_open()
        if self._file.read_only:
            raise LogUnavailableError(
                f"The log {self.address} is open for reading only. Open it for writing to append, "
                f"erase or repair."
            )

"""`SqliteEngine`: the log in one file, for any number of threads and processes."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import chain
from os import PathLike
from pathlib import Path
from time import monotonic
from typing import Any, Final, TypeVar

from atlas.core.clock import SystemClock
from atlas.core.log.engine import (
    Append,
    Durability,
    Progress,
    Repair,
    Verification,
    check_durability,
)
from atlas.core.log.group_commit import GroupCommit, PendingAppend
from atlas.core.log.planning import Planner, Request, Tip
from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.core.log.sqlite.examination import examine
from atlas.core.log.sqlite.file import LogFile, is_of_one, one, translated
from atlas.core.log.sqlite.repair import exchange, salvage
from atlas.core.log.sqlite.statements import (
    AT_OR_BEFORE,
    DROP_SNAPSHOTS,
    ERASABLE,
    ERASE,
    FIELDS,
    INSERT,
    INSERT_ROWS,
    LAST_WITH_PREFIX,
    MOVE_TIP,
    READ,
    READ_NEWEST,
    ROWS_AT_ONCE,
    SAVE_SNAPSHOT,
    SNAPSHOT,
    TRACK,
    WITH_PREFIX,
    prefix_values,
)
from atlas.core.log.verification import Erasure
from atlas.errors import (
    LogClosedError,
    LogCorruptedError,
    LogError,
    LogUnavailableError,
    VersionConflictError,
)
from atlas.typing import Clock

__all__ = ["SqliteEngine"]

T = TypeVar("T")

_LARGEST: Final = 2**63 - 1

# Synchronous mode, and seconds until what nobody waits for is stored.
_DURABILITY: Final[Mapping[Durability, tuple[str, float]]] = {
    "power": ("FULL", 0.05),
    "process": ("NORMAL", 0.05),
    "lazy": ("NORMAL", 0.25),
}


class SqliteEngine:
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
        self.address = str(path)
        self._clock = clock or SystemClock()
        self._poll = poll
        self._file = LogFile(
            Path(path), synchronous=synchronous, busy_timeout=busy_timeout, read_only=read_only
        )
        self._closed = False
        self._gone = False
        self._grown = threading.Condition()
        self._last_seen = 0
        self._generation = 0
        self._readers: list[sqlite3.Connection] = []
        self._stream_ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        # What follows belongs to whoever holds the lock.
        self._writing = threading.RLock()
        self._writer: sqlite3.Connection | None = None
        self._planner: Planner | None = None
        self._name_ids: dict[str, int] = {}
        # Of the transaction, which may come to nothing.
        self._fresh_ids: dict[str, int] = {}
        self._data_version: object = None
        self._in_doubt = False
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

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything appended so far is stored; raise what failed unnoticed."""
        self._check_open()
        self._commits.flush(timeout)

    def _commit(self, group: Sequence[PendingAppend]) -> None:
        with self._writing:
            try:
                self._store(group)
            except (sqlite3.Error, LogError) as error:
                if len(group) > 1 and is_of_one(error):
                    for append in group:
                        self._commit([append])
                    return
                for append in group:
                    append.fail(self._translated(error))

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
            self._insert(connection, everything)

        def acknowledge() -> None:
            for append, records in planned:
                append.succeed(records)
            for append, error in refused:
                append.fail(error)

        self._transact(write, acknowledge)

    def _transact(
        self,
        write: Callable[[sqlite3.Connection, Planner], T],
        acknowledge: Callable[[], None] = lambda: None,
    ) -> T:
        """Do something in one transaction; acknowledge it exactly when it is stored."""
        connection = self._open_writer()
        if self._in_doubt:
            self._settle(connection)
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            result = write(connection, self._current_planner(connection))
            committing = True
            connection.execute("COMMIT")
            self._announce()
            acknowledge()
        except BaseException as error:
            # An interrupt may come when the commit is done already: then it must be acknowledged,
            # or it would be tried again.
            failed = isinstance(error, sqlite3.Error) or connection.in_transaction
            if committing and not failed:
                self._announce()
                acknowledge()
            else:
                self._planner = None
                self._roll_back(connection)
                if committing and isinstance(error, sqlite3.Error):
                    self._settle(connection)
                if _is_read_only(error):
                    # SQLite opens a file for reading that it cannot open for writing, also if merely
                    # too many files were open just then: the next time may be better.
                    self._give_up(connection)
            raise
        return result

    def _settle(self, connection: sqlite3.Connection) -> None:
        """Write over what a failed commit may have left in the journal.

        SQLite has forgotten it. Whoever opens the file after a crash would find it whole, as what
        was refused is in the journal when all of it was written, and merely the sync failed.
        """
        self._in_doubt = True
        with suppress(sqlite3.Error):
            connection.execute("BEGIN IMMEDIATE")
            # Changed and changed back, else SQLite writes nothing.
            connection.execute("UPDATE tip SET position = position + 1")
            connection.execute("UPDATE tip SET position = position - 1")
            connection.execute("COMMIT")
            self._in_doubt = False
        self._roll_back(connection)

    def _open_writer(self) -> sqlite3.Connection:
        if self._gone:
            raise LogClosedError(f"The log {self.address} is closed; open it again.")
        if not self._file.seems_in_place():
            raise LogUnavailableError(
                f"The log {self.address} was moved, replaced or deleted while it was open. Close it "
                f"and open it again; what was appended before went with the old file."
            )
        if self._writer is None:
            self._writer = self._file.writer()
            self._planner = None
        return self._writer

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._give_up(connection)

    def _give_up(self, connection: sqlite3.Connection) -> None:
        # It is of no use any more; the next transaction gets a new one.
        self._writer = None
        with suppress(sqlite3.Error):
            connection.close()

    def _current_planner(self, connection: sqlite3.Connection) -> Planner:
        """Return the planner, a new one if somebody else has written."""
        version = one(connection, "PRAGMA data_version")[0]
        if self._planner is None or version != self._data_version or self._planner.is_large:
            self._planner = Planner(
                self._read_tip(connection),
                lambda stream: self._head(connection, stream) or 0,
                lambda reader: self._tracked(connection, reader) or 0,
            )
            self._name_ids.clear()
            self._fresh_ids.clear()
            self._data_version = version
        return self._planner

    def _read_tip(self, connection: sqlite3.Connection) -> Tip:
        tip = one(connection, "SELECT position, chain, time_ns FROM tip")
        last = one(
            connection,
            "SELECT position, chain, time_ns FROM events ORDER BY position DESC LIMIT 1",
        )
        if not tip or (last or (0, tip[1], 0)) != tip:
            raise LogCorruptedError(
                f"The end of the log {self.address} is not what was appended there: its last record "
                f"is {last[:1] or 'none'}, it should be {tip[:1]}. `repair` keeps what is good.",
                position=_whole(last[0]) + 1 if last else 1,
            )
        return Tip(_whole(tip[0]), _whole(tip[2]), bytes(_blob(tip[1])))

    def _insert(self, connection: sqlite3.Connection, records: Sequence[Record]) -> None:
        if not records:
            return
        stream_ids, fresh, name_ids = self._stream_ids, self._fresh_ids, self._name_ids
        rows: list[tuple[object, ...]] = []
        for position, stream, version, name, time_ns, wall_ns, payload, digest, link in records:
            stream_id = (
                stream_ids.get(stream)
                or fresh.get(stream)
                or self._intern_stream(connection, stream)
            )
            name_id = name_ids.get(name) or self._intern_name(connection, name)
            rows.append(
                (
                    position,
                    stream_id,
                    version,
                    name_id,
                    time_ns,
                    wall_ns,
                    # Python looks for an adapter of each bytes object, which takes as long as storing
                    # it; a bytearray goes straight to SQLite.
                    bytearray(digest),
                    bytearray(link),
                    bytearray(payload or b""),
                )
            )
        single = len(rows) % ROWS_AT_ONCE
        for first in range(0, len(rows) - single, ROWS_AT_ONCE):
            connection.execute(
                INSERT_ROWS, [*chain.from_iterable(rows[first : first + ROWS_AT_ONCE])]
            )
        if single:
            connection.executemany(INSERT, rows[len(rows) - single :])
        last = records[-1]
        connection.execute(MOVE_TIP, (last.position, last.time_ns, bytearray(last.chain)))

    def _intern_stream(self, connection: sqlite3.Connection, stream: str) -> int:
        found = self._stream_id(connection, stream)
        if found is None:
            insert = "INSERT INTO streams (stream) VALUES (?)"
            found = connection.execute(insert, (stream,)).lastrowid
            assert found is not None
        self._fresh_ids[stream] = found
        return found

    def _intern_name(self, connection: sqlite3.Connection, name: str) -> int:
        connection.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (name,))
        found = _whole(one(connection, "SELECT id FROM names WHERE name = ?", name)[0])
        self._name_ids[name] = found
        return found

    def _announce(self) -> None:
        assert self._planner is not None
        for stream, stream_id in self._fresh_ids.items():
            self._remember(stream, stream_id)
        self._fresh_ids.clear()
        with self._grown:
            self._last_seen = self._planner.tip.position
            self._grown.notify_all()

    # -- reading --

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
        with self._reading() as connection:
            stream_id = self._stream_id(connection, stream)
            if stream_id is None:
                return []
            rows = connection.execute(
                READ_NEWEST if newest_first else READ,
                (
                    stream_id,
                    -_LARGEST if after is None else after,
                    _LARGEST if until is None else until,
                    -1 if limit is None else limit,
                ),
            ).fetchall()
            return self._records(connection, rows, stream)

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
        where = ["position > ?", "position <= ?"]
        values: list[object] = [after, _LARGEST if until is None else until]
        if names:
            marks = ", ".join("?" * len(names))
            where.append(f"name_id IN (SELECT id FROM names WHERE name IN ({marks}))")  # noqa: S608
            values += names
        if prefix:
            where.append(WITH_PREFIX)
            values += prefix_values(prefix)
        # CROSS keeps the order of positions the outer loop, whatever SQLite knows of the streams.
        join = "CROSS" if prefix else "LEFT"
        # Only what is written above stands in the statement; values are bound.
        statement = (
            f"SELECT {FIELDS}, stream FROM events "  # noqa: S608
            f"{join} JOIN streams ON streams.id = stream_id "
            f"WHERE {' AND '.join(where)} ORDER BY position LIMIT ?"
        )
        with self._reading() as connection:
            values.append(-1 if limit is None else limit)
            rows = connection.execute(statement, values).fetchall()
            return self._records(connection, rows)

    def head(self, stream: str) -> int | None:
        """Return the last version of a stream; None when it has no record."""
        with self._reading() as connection:
            return self._head(connection, stream)

    def last_position(self, prefix: str = "") -> int | None:
        """Return the last position in streams whose name begins so; None when there is no record.

        With a prefix it looks back from the end, for as long as it takes.
        """
        with self._reading() as connection:
            if not prefix:
                return self._last_position(connection) or None
            found = one(connection, LAST_WITH_PREFIX, *prefix_values(prefix))
            return _whole(found[0]) if found else None

    def position_at(self, time_ns: int) -> int:
        """Return the last position appended at this time or before; 0 when there is none."""
        with self._reading() as connection:
            low, high = 0, self._last_position(connection)
            # Times rise with positions. Mostly somebody asks for a time just gone by.
            middle = high
            while low < high:
                found = one(connection, AT_OR_BEFORE, middle)
                if not found or _whole(found[1]) <= time_ns:
                    low = middle
                else:
                    high = _whole(found[0]) - 1
                middle = (low + high + 1) // 2
            found = one(connection, AT_OR_BEFORE, low)
            return _whole(found[0]) if found else 0

    def streams(self, prefix: str = "") -> list[str]:
        """Return the streams whose name begins so, in order of their first record."""
        with self._reading() as connection:
            rows = connection.execute(
                f"SELECT stream FROM streams WHERE {WITH_PREFIX} "  # noqa: S608
                "AND EXISTS (SELECT 1 FROM events WHERE stream_id = streams.id) ORDER BY id",
                prefix_values(prefix),
            ).fetchall()
            return [row[0] for row in rows]

    def tracked(self, reader: str) -> int | None:
        """Return the highest position stored by ``tracking`` for a reader."""
        with self._reading() as connection:
            return self._tracked(connection, reader)

    def wait_beyond(self, position: int, timeout: float | None = None) -> bool:
        """Block until there is a record after this position; False: time is up, or it was closed."""
        deadline = None if timeout is None else monotonic() + timeout
        while not self._closed:
            if self._last_seen > position:
                return True
            try:
                last = self.last_position() or 0
            except LogClosedError:
                break
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
        digest = _snapshot_digest(stream, label, version, snapshot.payload)
        row = (stream, label, version, digest, snapshot.payload)
        with self._writing_relaxed():
            self._transact(lambda connection, _: connection.execute(SAVE_SNAPSHOT, row))

    def snapshot(self, stream: str, label: str, until: int | None = None) -> Snapshot | None:
        """Return the latest snapshot at this version or before; None also when it is damaged."""
        with self._reading() as connection:
            last = _LARGEST if until is None else until
            found = one(connection, SNAPSHOT, stream, label, last)
        if not found:
            return None
        version, digest, payload = found
        if not isinstance(version, int) or not isinstance(payload, bytes):
            return None
        if _snapshot_digest(stream, label, version, payload) != digest:
            return None
        return Snapshot(stream, version, label, payload)

    def drop_snapshots(self, stream: str) -> None:
        """Forget all snapshots of a stream."""
        with self._writing_relaxed():
            self._transact(lambda connection, _: connection.execute(DROP_SNAPSHOTS, (stream,)))

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
        self._check_open()
        self._check_writable()
        # What nobody waited for yet is erased too.
        self._commits.drain()
        first = -_LARGEST if after is None else after
        last = _LARGEST if until is None else until

        def write(connection: sqlite3.Connection, planner: Planner) -> int:
            connection.execute(DROP_SNAPSHOTS, (stream,))
            stream_id = self._stream_id(connection, stream)
            if stream_id is None:
                return 0
            found = one(connection, ERASABLE, stream_id, first, last)
            count = _whole(found[0])
            if count:
                connection.execute(ERASE, (stream_id, first, last))
                erasure = Erasure(stream, _whole(found[1]) - 1, _whole(found[2]), count)
                self._write_note(connection, planner, erasure.note())
            return count

        with self._writing, self._translating():
            count = self._transact(write)
            self._empty_journal()
        return count

    def verify(self, progress: Progress | None = None) -> Verification:
        """Read everything and compare it with its hashes; see `atlas.core.log.engine.Engine.verify`.

        Takes about 5 µs per record, and does not hinder writers.
        """
        self._check_open()
        with self._translating():
            return examine(self._file, progress)

    def repair(self, progress: Progress | None = None) -> Repair:
        """Keep the good prefix; see `atlas.core.log.engine.Engine.repair`.

        The good records are written into a new file, which takes the place of the damaged one; that
        is kept whole beside it, as ``….set-aside-1``. Other processes should not have the log open:
        what they append meanwhile may end up in the file set aside. Snapshots are not kept.
        """
        self._check_open()
        with self._writing, self._translating():
            found = examine(self._file, progress)
            if found.bad_position is None:
                return Repair(found.records, 0, "")
            self._check_writable()
            aside = self._file.free_name()
            saved = salvage(self._file, aside, self._clock.time_ns(), progress)
            self._file.checkpoint()
            self._disconnect()
            exchange(self._file.path, saved.path, aside)
            self._file.reopened()
            self._stream_ids.clear()
            self._names.clear()
            self._planner = None
        return Repair(saved.kept, saved.left, str(aside))

    def close(self) -> None:
        """Store what is on its way and let go of the file. Idempotent.

        Raises:
            VersionConflictError: An append nobody waited for was refused.
            LogUnavailableError: One could not be stored.
        """
        self._closed = True
        with self._grown:
            self._grown.notify_all()
        try:
            self._commits.close()
        finally:
            with self._writing:
                self._gone = True
                if self._in_doubt and self._writer is not None:
                    self._settle(self._writer)
                self._disconnect()

    # -- inside --

    def _check_open(self) -> None:
        if self._closed:
            raise LogClosedError(f"The log {self.address} is closed; open it again.")

    def _check_writable(self) -> None:
        if self._file.read_only:
            raise LogUnavailableError(
                f"The log {self.address} is open for reading only. Open it for writing to append, "
                f"erase or repair."
            )

    def _disconnect(self) -> None:
        # Readers in use close themselves.
        self._generation += 1
        self._disconnect_readers()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._check_open()
        with self._translating():
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._file.reader()
            generation = self._generation
            try:
                yield connection
            finally:
                if generation == self._generation:
                    self._readers.append(connection)
                else:
                    connection.close()
                if self._closed:
                    self._disconnect_readers()

    def _disconnect_readers(self) -> None:
        with suppress(IndexError):
            while True:
                self._readers.pop().close()

    @contextmanager
    def _writing_relaxed(self) -> Iterator[None]:
        self._check_open()
        self._check_writable()
        with self._writing, self._translating():
            connection = self._open_writer()
            self._file.relaxed(connection, relaxed=True)
            try:
                yield
            finally:
                # One that failed was given up; the next is made anew.
                if connection is self._writer:
                    self._file.relaxed(connection, relaxed=False)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def _translated(self, error: sqlite3.Error | LogError) -> LogError:
        if isinstance(error, LogError):
            return error
        known = translated(error, self.address, in_doubt=self._in_doubt)
        known.__cause__ = error
        return known

    def _write_note(
        self, connection: sqlite3.Connection, planner: Planner, note: NewRecord
    ) -> None:
        now_ns = self._clock.time_ns()
        self._insert(connection, planner.plan(Request((note,), {}, None, now_ns), now_ns))

    def _empty_journal(self) -> None:
        assert self._writer is not None
        busy = one(self._writer, "PRAGMA wal_checkpoint(TRUNCATE)")[0]
        if busy:
            raise LogUnavailableError(
                f"The payloads are erased from the log {self.address}, but another process reads it "
                f"and keeps old pages in the -wal file. End that, then erase again."
            )
        try:
            self._file.sync_journal()
        except OSError as error:
            raise LogUnavailableError(
                f"The payloads are erased from the log {self.address}, but the disk did not confirm "
                f"that its journal is empty: {error}. Look at the disk, then erase again."
            ) from error

    def _last_position(self, connection: sqlite3.Connection) -> int:
        found = one(connection, "SELECT position FROM events ORDER BY position DESC LIMIT 1")
        return _whole(found[0]) if found else 0

    def _stream_id(self, connection: sqlite3.Connection, stream: str) -> int | None:
        found = self._stream_ids.get(stream)
        if found is not None:
            return found
        row = one(connection, "SELECT id FROM streams WHERE stream = ?", stream)
        if not row:
            return None
        found = _whole(row[0])
        if not connection.in_transaction:
            self._remember(stream, found)
        return found

    def _remember(self, stream: str, stream_id: int) -> None:
        if len(self._stream_ids) > 50_000:
            self._stream_ids.clear()
        self._stream_ids[stream] = stream_id

    def _head(self, connection: sqlite3.Connection, stream: str) -> int | None:
        stream_id = self._stream_id(connection, stream)
        if stream_id is None:
            return None
        head = one(connection, "SELECT max(version) FROM events WHERE stream_id = ?", stream_id)[0]
        return None if head is None else _whole(head)

    def _tracked(self, connection: sqlite3.Connection, reader: str) -> int | None:
        found = one(connection, "SELECT position FROM tracking WHERE reader = ?", reader)
        return _whole(found[0]) if found else None

    # The rows are of no type that Python could know.
    def _records(
        self, connection: sqlite3.Connection, rows: list[Any], stream: str | None = None
    ) -> list[Record]:
        """Return the records of rows, which end with the stream if that is not given."""
        names = self._names
        records = []
        for row in rows:
            if stream is None:
                position, version, name_id, time_ns, wall_ns, payload, digest, chain, its = row
            else:
                position, version, name_id, time_ns, wall_ns, payload, digest, chain = row
                its = stream
            if payload is not None and (
                type(payload) is not bytes or sha256(payload).digest() != digest
            ):
                raise LogCorruptedError(
                    f"The payload at position {position} of the log {self.address} is not what was "
                    f"appended. `verify` looks for more damage, `repair` keeps what is before.",
                    position=position,
                )
            name = names.get(name_id)
            if name is None:
                name = self._name(connection, name_id, position)
            fields = (position, its, version, name, time_ns, wall_ns, payload, digest, chain)
            # Half the price of Record(...), on the path of everything that is rebuilt from a log.
            records.append(tuple.__new__(Record, fields))
        return records

    def _name(self, connection: sqlite3.Connection, name_id: object, position: int) -> str:
        found = one(connection, "SELECT id, name FROM names WHERE id = ?", name_id)
        if not found or not isinstance(found[1], str):
            raise LogCorruptedError(
                f"The record at position {position} of the log {self.address} has no name any more. "
                f"`verify` looks for more damage, `repair` keeps what is before.",
                position=position,
            )
        self._names[_whole(found[0])] = found[1]
        return found[1]


def _is_read_only(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_READONLY


def _whole(value: object) -> int:
    # A number that a flipped bit made something else.
    if type(value) is not int:
        raise LogCorruptedError(
            f"A number in the log is {value!r}. `verify` says where, `repair` keeps what is good.",
            position=0,
        )
    return value


def _blob(value: object) -> bytes:
    if type(value) is not bytes:
        raise LogCorruptedError(
            f"A link of the log is {value!r}. `verify` says where, `repair` keeps what is good.",
            position=0,
        )
    return value


def _snapshot_digest(stream: str, label: str, version: int, payload: bytes) -> bytes:
    head = repr((stream, label, version)).encode()
    return sha256(sha256(head).digest() + payload).digest()

"""Writing into the file of a log, one transaction after the other."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from typing import TypeVar

from atlas.core.log.engine import Join
from atlas.core.log.planning import Planner, Request, Tip
from atlas.core.log.records import NewRecord, Record
from atlas.core.log.sqlite.file import JOURNAL_PAGES, LogFile, is_busy, one, translated
from atlas.core.log.sqlite.header import PAGE_SIZE
from atlas.core.log.sqlite.notes import MOST_VERSIONS, as_records, note_id, note_row
from atlas.core.log.sqlite.reading import LARGEST, tracked
from atlas.core.log.sqlite.rows import Streams, blob, whole
from atlas.core.log.sqlite.statements import (
    DROP_NOTES,
    INSERT,
    INSERT_ROWS,
    MOVE_TIP,
    NOTE,
    ROWS_AT_ONCE,
)
from atlas.errors import LogClosedError, LogCorruptedError, LogError, LogUnavailableError
from atlas.typing import Clock

__all__ = ["Writer"]

T = TypeVar("T")


class Writer:
    """The one who writes for a process. Whoever holds it (`held`) may call the other methods.

    Args:
        file: The file.
        streams: The numbers of streams; told of new ones.
        grown: Told the last position that is stored.
        clock: Tells the time at which notes are entered.

    Attributes:
        joins: What joins notes of this process, by the names of records.
    """

    def __init__(
        self, file: LogFile, streams: Streams, grown: Callable[[int], None], clock: Clock
    ) -> None:
        self._address = file.address
        self._file = file
        self._streams = streams
        self._grown = grown
        self._clock = clock
        self._lock = threading.RLock()
        self._closed = False
        self._connection: sqlite3.Connection | None = None
        self._planner: Planner | None = None
        self._name_ids: dict[str, int] = {}
        # Of the transaction, which may come to nothing.
        self._fresh_ids: dict[str, int] = {}
        self._data_version: object = None
        self._in_doubt = False
        self._holders = 0
        # None: an interrupt came while this was changed.
        self._is_hurried: bool | None = False
        self._pages_left = 0
        # The last version noted of each stream that has notes of this process, and how to join them.
        self._noted: dict[str, int] = {}
        self.joins: dict[str, Join] = {}
        self._may_hold_notes = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other threads from writing; tell errors of SQLite as those of a log."""
        with self._lock:
            self._holders += 1
            try:
                yield
            except sqlite3.Error as error:
                raise self.translated(error) from error
            finally:
                self._holders -= 1

    @contextmanager
    def held_relaxed(self) -> Iterator[None]:
        """The same, for what may be lost in a power cut."""
        with self.held():
            connection = self._opened()
            self._file.relaxed(connection, relaxed=True)
            try:
                yield
            finally:
                # One that failed was given up; the next is made anew.
                if connection is self._connection:
                    self._file.relaxed(connection, relaxed=False)

    def translated(self, error: sqlite3.Error | LogError) -> LogError:
        """Return what an error means for the log."""
        if isinstance(error, LogError):
            return error
        known = translated(error, self._address, in_doubt=self._in_doubt)
        known.__cause__ = error
        return known

    def forget_file(self) -> None:
        """Let go of a file that another one takes the place of."""
        self._planner = None
        self._noted.clear()
        self._disconnect()

    def close(self) -> None:
        """Let go of the file, and write no more."""
        with self._lock:
            self._closed = True
            if self._in_doubt and self._connection is not None:
                self._settle(self._connection)
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- transactions --

    def transact(
        self,
        write: Callable[[sqlite3.Connection, Planner], T],
        acknowledge: Callable[[], None] = lambda: None,
        *,
        hurried: bool = False,
    ) -> T:
        """Do something in one transaction; acknowledge it exactly when it is stored.

        Notes are entered first, so that nothing overtakes them. A hurried one fails if another process
        is writing.
        """
        connection = self._opened()
        self._hurry(connection, hurried=hurried)
        if self._in_doubt:
            self._settle(connection)
        if not hurried:
            self._pages_left = JOURNAL_PAGES
        committing = False
        try:
            connection.execute("BEGIN IMMEDIATE")
            planner = self._current_planner(connection)
            if self._may_hold_notes:
                self._enter_notes(connection, planner)
            result = write(connection, planner)
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

    def note(self, records: Sequence[NewRecord], join: Join | None) -> bool:
        """Keep records as notes, if nobody has to be waited for; needs no holding.

        It leaves what it writes in the journal. Now and then, when there is much, it does nothing: a
        transaction that takes its time has to bring it all into the file.
        """
        if self._holders or self._in_doubt or self._connection is None or self._pages_left <= 0:
            return False
        with self._lock:  # not `held`, whose generator an interrupt can leave with the lock in it
            self._holders += 1
            try:
                return self._note(self._opened(), records, join)
            finally:
                self._holders -= 1

    def _note(
        self, connection: sqlite3.Connection, records: Sequence[NewRecord], join: Join | None
    ) -> bool:
        rows: list[tuple[object, ...]] = []
        noted: dict[str, int] = {}
        for stream, name, payload, version, wall_ns, _ in records:
            # What is none of these `append` refuses, and says why.
            if type(version) is not int or type(wall_ns) is not int or type(payload) is not bytes:
                return False
            stream_id, name_id = self._streams.known.get(stream), self._name_ids.get(name)
            head = None if self._planner is None else self._planner.known_head(stream)
            if stream_id is None or name_id is None or head is None:
                return False
            after = noted.get(stream) or self._noted.get(stream, head)
            row_id = note_id(stream_id, after)
            if row_id is None or not (after < version < MOST_VERSIONS and abs(wall_ns) < LARGEST):
                return False
            noted[stream] = version
            rows.append((*note_row(row_id, version, name_id, wall_ns, payload), stream_id, head))
            self._pages_left -= 2 + len(payload) // PAGE_SIZE
            if join is not None:
                self.joins[name] = join
        self._may_hold_notes = True  # now: an interrupt may come when it is written already
        try:
            if not self._is_hurried:
                self._hurry(connection, hurried=True)
            is_kept = _all_inserted(connection, rows)
        except sqlite3.Error as error:
            # Nothing was written if another process is writing, or has noted something else.
            if not (is_busy(error) or isinstance(error, sqlite3.IntegrityError)):
                self._settle(connection)
            return False
        if is_kept:
            self._noted.update(noted)
        return is_kept

    @property
    def has_noted(self) -> bool:
        """Whether there are notes of this process, as far as it knows."""
        return bool(self._noted)

    def enter_notes(self) -> None:
        """Give what was noted here its place in the log. For whoever holds it."""
        if self._noted:
            self.enter_all_notes()

    def enter_all_notes(self, *, hurried: bool = False) -> None:
        """The same, whoever noted it."""
        self.transact(lambda connection, planner: None, hurried=hurried)

    def _enter_notes(self, connection: sqlite3.Connection, planner: Planner) -> None:
        now_ns = self._clock.time_ns()
        records = as_records(connection, self.joins, planner.head)
        if records:
            self.insert(connection, planner.plan(Request((*records,), {}, None, now_ns), now_ns))
            connection.execute(DROP_NOTES)

    def _hurry(self, connection: sqlite3.Connection, *, hurried: bool) -> None:
        """Let what comes wait for no lock, and fail if another process has it; or not."""
        if hurried is not self._is_hurried:
            self._is_hurried = None
            self._file.hurried(connection, hurried=hurried)
            self._is_hurried = hurried

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

    def _opened(self) -> sqlite3.Connection:
        if self._closed:
            raise LogClosedError(f"The log {self._address} is closed; open it again.")
        self._file.check_in_place()
        if self._connection is None:
            self._connection = self._file.writer()
            self._planner = None
            self._is_hurried = False
        return self._connection

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            self._give_up(connection)

    def _give_up(self, connection: sqlite3.Connection) -> None:
        # It is of no use any more; the next transaction gets a new one.
        self._connection = None
        with suppress(sqlite3.Error):
            connection.close()

    def _current_planner(self, connection: sqlite3.Connection) -> Planner:
        """Return the planner, a new one if somebody else has written."""
        version = one(connection, "PRAGMA data_version")[0]
        if self._planner is None or version != self._data_version or self._planner.is_large:
            self._planner = Planner(
                self._read_tip(connection),
                lambda stream: self._streams.head(connection, stream) or 0,
                lambda reader: tracked(connection, reader) or 0,
            )
            self._name_ids.clear()
            self._fresh_ids.clear()
            self._may_hold_notes = True  # of whoever has written
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
                f"The end of the log {self._address} is not what was appended there: its last record "
                f"is {last[:1] or 'none'}, it should be {tip[:1]}. `repair` keeps what is good.",
                position=whole(last[0]) + 1 if last else 1,
            )
        return Tip(whole(tip[0]), whole(tip[2]), bytes(blob(tip[1])))

    def insert(self, connection: sqlite3.Connection, records: Sequence[Record]) -> None:
        """Store records, and where the log stands after them."""
        if not records:
            return
        stream_ids, fresh, name_ids = self._streams.known, self._fresh_ids, self._name_ids
        rows: list[tuple[object, ...]] = []
        size = 0
        for position, stream, version, name, time_ns, wall_ns, payload, digest, link in records:
            stream_id = (
                stream_ids.get(stream)
                or fresh.get(stream)
                or self._intern_stream(connection, stream)
            )
            name_id = name_ids.get(name) or self._intern_name(connection, name)
            size += len(payload or b"")
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
        # The end of the table, that of its index, and the tip.
        self._pages_left -= 3 + size // PAGE_SIZE
        last = records[-1]
        connection.execute(MOVE_TIP, (last.position, last.time_ns, bytearray(last.chain)))

    def _intern_stream(self, connection: sqlite3.Connection, stream: str) -> int:
        found = self._streams.id_of(connection, stream)
        if found is None:
            insert = "INSERT INTO streams (stream) VALUES (?)"
            found = connection.execute(insert, (stream,)).lastrowid
            assert found is not None
        self._fresh_ids[stream] = found
        return found

    def _intern_name(self, connection: sqlite3.Connection, name: str) -> int:
        connection.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (name,))
        found = whole(one(connection, "SELECT id FROM names WHERE name = ?", name)[0])
        self._name_ids[name] = found
        return found

    def _announce(self) -> None:
        assert self._planner is not None
        for stream, stream_id in self._fresh_ids.items():
            self._streams.remember(stream, stream_id)
        self._fresh_ids.clear()
        self._noted.clear()
        self._may_hold_notes = False
        self._grown(self._planner.tip.position)

    def remark(self, connection: sqlite3.Connection, planner: Planner, remark: NewRecord) -> None:
        """Store a remark of the log about itself."""
        now_ns = self._clock.time_ns()
        self.insert(connection, planner.plan(Request((remark,), {}, None, now_ns), now_ns))

    def empty_journal(self) -> None:
        """Bring everything into the file, and leave nothing in the journal.

        Raises:
            LogUnavailableError: Another process reads what is in it, or the disk does not confirm.
        """
        assert self._connection is not None
        busy = one(self._connection, "PRAGMA wal_checkpoint(TRUNCATE)")[0]
        if busy:
            raise LogUnavailableError(
                f"The payloads are erased from the log {self._address}, but another process reads it "
                f"and keeps old pages in the -wal file. End that, then erase again."
            )
        try:
            self._file.sync_journal()
        except OSError as error:
            raise LogUnavailableError(
                f"The payloads are erased from the log {self._address}, but the disk did not confirm "
                f"that its journal is empty: {error}. Look at the disk, then erase again."
            ) from error


def _all_inserted(connection: sqlite3.Connection, rows: Sequence[tuple[object, ...]]) -> bool:
    if len(rows) == 1:  # a transaction of its own
        return connection.execute(NOTE, rows[0]).rowcount == 1
    is_done = False
    connection.execute("BEGIN IMMEDIATE")
    try:
        if all(connection.execute(NOTE, row).rowcount == 1 for row in rows):
            connection.execute("COMMIT")
            is_done = True
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    return is_done


def _is_read_only(error: BaseException) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_READONLY

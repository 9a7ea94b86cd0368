"""The file: how it is made, recognised and opened, and what its errors mean.

Layout, format 1: ``events`` holds the records, numbered by position; the texts of streams and names
stand once in ``streams`` and ``names``. ``tip`` has one row: the last position ever given out, with
its time and link, so that rows lost from the end are missed. ``notes`` holds what is to be entered
into ``events`` next, see `atlas.core.log.sqlite.notes`. ``snapshots`` and ``tracking`` are not part of
the chain.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Final

from atlas.core.log.planning import START
from atlas.core.log.sqlite.header import (
    APPLICATION_ID,
    FORMAT,
    HEADER_SIZE,
    PAGE_SIZE,
    is_sound,
    restore,
    told_size,
)
from atlas.core.log.types import column
from atlas.errors import LogCorruptedError, LogError, LogFormatError, LogUnavailableError

__all__ = ["JOURNAL_PAGES", "LogFile", "is_busy", "is_of_one", "one", "translated"]

JOURNAL_PAGES: Final = 1_000
"""How many pages the journal may hold before a commit brings them into the file."""


def _columns(*names: str) -> str:
    return ", ".join(f"{column(name, 'sqlite')} NOT NULL" for name in names)


# The position is no AUTOINCREMENT: `tip` gives positions out and never one twice, for the price of
# the page that SQLite's own counter would cost. The payload is last, so that the columns before it
# are read without the pages it overflows to.
_SCHEMA: Final = f"""
CREATE TABLE streams (id INTEGER PRIMARY KEY, {_columns("stream")} UNIQUE);
CREATE TABLE names (id INTEGER PRIMARY KEY, {_columns("name")} UNIQUE);
CREATE TABLE events (
    position INTEGER PRIMARY KEY,
    {_columns("stream_id", "version", "name_id", "time_ns", "wall_ns", "digest", "chain")},
    {column("payload", "sqlite")},
    UNIQUE (stream_id, version)
);
CREATE TABLE tip (
    id INTEGER PRIMARY KEY CHECK (id = 1), {_columns("position", "time_ns", "chain")}
);
CREATE TABLE tracking (
    {column("reader", "sqlite")} PRIMARY KEY, {_columns("position")}
) WITHOUT ROWID;
CREATE TABLE snapshots (
    id INTEGER PRIMARY KEY, {_columns("stream", "label", "version", "digest", "payload")},
    UNIQUE (stream, label, version)
)"""
_STATEMENTS: Final = [statement.strip() for statement in _SCHEMA.split(";")]
# Younger than the rest: a file that was written before gets it when it is opened for writing.
_NOTES: Final = (
    "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, "
    f"{_columns('version', 'name_id', 'wall_ns', 'checksum', 'payload')})"
)

_CORRUPT: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def one(connection: sqlite3.Connection, statement: str, *values: object) -> tuple[object, ...]:
    """Return the first row of an answer, () when there is none; the statement is over then."""
    rows = connection.execute(statement, values).fetchall()
    return tuple(rows[0]) if rows else ()


def is_of_one(error: Exception) -> bool:
    """Whether a part of a failed transaction may succeed by itself: one too large for the disk's room."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF not in {sqlite3.SQLITE_BUSY, *_CORRUPT}


def is_busy(error: Exception) -> bool:
    """Whether somebody else had a lock, so that nothing was done."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF == sqlite3.SQLITE_BUSY


def translated(error: sqlite3.Error, address: str, *, in_doubt: bool = False) -> LogError:
    """Return what an error of SQLite means for the log.

    Args:
        error: The error.
        address: The log.
        in_doubt: Whether what failed may be in the journal still, and could not be written over.
    """
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in _CORRUPT or "decode to UTF-8" in str(error):
        return LogCorruptedError(
            f"The file of the log {address} is damaged: {error}. `verify` says where, `repair` "
            f"keeps what is good.",
            position=0,
        )
    if isinstance(error, sqlite3.IntegrityError):
        return LogCorruptedError(
            f"The log {address} contradicts itself ({error}): an index or its last row is damaged. "
            f"`verify` says where, `repair` keeps what is good.",
            position=0,
        )
    mend = {
        sqlite3.SQLITE_FULL: "Make room on the disk, then append again",
        sqlite3.SQLITE_IOERR: "Look at the disk (full, gone, failing?), then append again",
        sqlite3.SQLITE_BUSY: "Another process holds its lock; end that, or raise `busy_timeout`",
        sqlite3.SQLITE_READONLY: "It may only be read; check the rights of file and directory",
        sqlite3.SQLITE_CANTOPEN: "Check that the directory exists and may be written, and the file be read",
    }.get(primary or 0, "Try again; if it stays, look at the file")
    stored = (
        "Nothing of what failed is stored, unless the power or the process goes before the next "
        "append succeeds."
        if in_doubt
        else "Nothing of what failed is stored."
    )
    said = str(error).rstrip(".")
    return LogUnavailableError(f"The log {address} cannot be used now: {said}. {mend}. {stored}")


class LogFile:
    """Opens connections to one log file.

    Args:
        path: The file.
        synchronous: ``FULL`` or ``NORMAL``.
        busy_timeout: Seconds to wait for the lock of another process.
        read_only: Never write, and do not create the file.

    Attributes:
        has_notes: Whether it has a table for notes, which a log that an older Atlas wrote has not.

    Raises:
        LogFormatError: It is a file of something else, or of a newer Atlas.
        LogUnavailableError: It is not there, or cannot be opened.
    """

    def __init__(
        self, path: Path, *, synchronous: str, busy_timeout: float, read_only: bool
    ) -> None:
        # Absolute, so that it stays the same file wherever the process goes.
        self.path: Path = path.absolute()
        self.address: str = str(path)
        self.read_only = read_only
        self.has_notes: bool = True
        self._mode = "ro" if read_only else "rwc"
        self._synchronous = synchronous
        self._busy_timeout = busy_timeout
        self._check_place()
        try:
            with closing(self._connect()) as connection:
                self._recognise(connection)
        except sqlite3.Error as error:
            # A damaged log can be opened, to be looked through and repaired.
            if not (self._is_truncated() or self._has_tables_of_a_log()):
                if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_NOTADB:
                    raise self._foreign("It is no SQLite file") from error
                raise translated(error, self.address) from error
        self._inode = self.path.stat().st_ino
        self._looked_at = 0.0
        if not read_only:
            # Should it be gone one day, no empty one is made in its place.
            self._mode = "rw"

    def writer(self) -> sqlite3.Connection:
        """Return a connection for the one who writes."""
        return self._prepared(
            f"PRAGMA synchronous = {self._synchronous}", "PRAGMA secure_delete = ON"
        )

    def reader(self) -> sqlite3.Connection:
        """Return a connection that only reads."""
        return self._prepared("PRAGMA query_only = ON")

    def _prepared(self, *statements: str) -> sqlite3.Connection:
        self.check_in_place()
        connection = self._connect()
        try:
            for statement in statements:
                connection.execute(statement)
        except BaseException:
            # Of a damaged file, say.
            connection.close()
            raise
        return connection

    def examiner(self) -> sqlite3.Connection:
        """Return a connection that only reads, and gives texts as the bytes there are."""
        connection = self.reader()
        connection.text_factory = bytes
        return connection

    @contextmanager
    def readable(self) -> Iterator[tuple[sqlite3.Connection, str]]:
        """Give an examiner that reads what there is, also where the header or the end is missing.

        Beside it, what is wrong with the header, in a sentence; "" for nothing.
        """
        with closing(self.examiner()) as connection:
            problem = self._problem_with_header(connection)
            if not problem:
                yield connection, ""
                return
        # SQLite reads nothing of such a file, or reads it wrongly: read a copy with a header that is
        # right and tells the size it has.
        with TemporaryDirectory(dir=self.path.parent, prefix=f"{self.path.name}.") as folder:
            copy = Path(folder) / "copy.db"
            shutil.copy(self.path, copy)
            restore(copy)
            with suppress(FileNotFoundError):
                shutil.copy(f"{self.path}-wal", f"{copy}-wal")
            with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
                connection.text_factory = bytes
                yield connection, problem

    def _problem_with_header(self, connection: sqlite3.Connection) -> str:
        try:
            one(connection, "SELECT 1 FROM sqlite_master")
        except sqlite3.DatabaseError as error:
            if self._is_truncated() or self._has_tables_of_a_log():
                return f"SQLite cannot read the file: {error}."
        # The beginning or the end may be in the journal, or just being written.
        if self._has_journal():
            return ""
        header, size = self._start(HEADER_SIZE), self.path.stat().st_size
        if not is_sound(header):
            return "The header of the file, its first 100 bytes, is damaged."
        if told_size(header) < size:
            return f"The file has {size} bytes, and its header tells {told_size(header)}."
        return ""

    def _has_journal(self) -> bool:
        journal = self.path.with_name(f"{self.path.name}-wal")
        return journal.exists() and journal.stat().st_size > 0

    def _is_truncated(self) -> bool:
        header = self._start(HEADER_SIZE)
        return header[68:72] == APPLICATION_ID.to_bytes(4, "big") and (
            self.path.stat().st_size < told_size(header)
        )

    def _has_tables_of_a_log(self) -> bool:
        # They are described in the first page, right after the header.
        start = self._start(PAGE_SIZE)
        return all(statement.encode() in start for statement in _STATEMENTS)

    def _start(self, size: int) -> bytes:
        try:
            with self.path.open("rb") as file:
                return file.read(size)
        except OSError:
            # SQLite has said already that it cannot be opened.
            return b""

    def free_name(self) -> Path:
        """Return the path beside it under which the file can be set aside."""
        number = 1
        while (path := self.path.with_name(f"{self.path.name}.set-aside-{number}")).exists():
            number += 1
        return path

    def checkpoint(self) -> None:
        """Bring what is in the journal into the file, as far as it can be read."""
        with suppress(sqlite3.Error), closing(self._connect()) as connection:
            one(connection, "PRAGMA wal_checkpoint(TRUNCATE)")

    def sync_journal(self) -> None:
        """Make sure that a journal just emptied is empty on the disk, too."""
        # SQLite does not: for itself, what was checkpointed may well come back.
        with suppress(FileNotFoundError):
            journal = os.open(f"{self.path}-wal", os.O_RDWR)
            try:
                os.fsync(journal)
            finally:
                os.close(journal)

    def relaxed(self, connection: sqlite3.Connection, *, relaxed: bool) -> None:
        """Let the next transactions of a writer be lost in a power cut, or not any more."""
        if self._synchronous == "FULL":
            connection.execute(f"PRAGMA synchronous = {'NORMAL' if relaxed else 'FULL'}")

    def hurried(self, connection: sqlite3.Connection, *, hurried: bool) -> None:
        """Let the next transactions of a writer wait for no lock and leave the journal as it is, or not."""
        timeout = 0 if hurried else round(self._busy_timeout * 1000)
        connection.execute(f"PRAGMA busy_timeout = {timeout}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {0 if hurried else JOURNAL_PAGES}")

    def reopened(self) -> None:
        """Take note that another file was put in its place."""
        self._inode = self.path.stat().st_ino

    def check_in_place(self) -> None:
        """Raise `LogUnavailableError` if another file has this name now, or none.

        Looks ten times a second at most.
        """
        now = monotonic()
        if now < self._looked_at + 0.1:
            return
        try:
            found = self.path.stat().st_ino
        except OSError:
            found = None
        if found != self._inode:
            raise LogUnavailableError(
                f"The log {self.address} was moved, replaced or deleted while it was open. Close it "
                f"and open it again; what was appended before went with the old file."
            )
        self._looked_at = now

    def _check_place(self) -> None:
        try:
            self.path.stat()
        except FileNotFoundError:
            pass
        except OSError as error:
            # A name that is too long, a folder one may not enter.
            raise LogUnavailableError(
                f"The log {self.address!r} cannot be opened: {error.strerror}. Choose another path."
            ) from error
        if self.path.is_dir():
            raise LogFormatError(
                f"{self.address!r} is a directory; name a file in it, such as "
                f"{str(self.path / 'runs.db')!r}."
            )
        if self.read_only and not self.path.is_file():
            raise LogUnavailableError(
                f"There is no log at {self.address!r}. Check the path, or open it for writing, "
                f"which creates it."
            )
        if not self.path.parent.is_dir():
            raise LogUnavailableError(
                f"The log {self.address!r} cannot be created: there is no directory "
                f"{str(self.path.parent)!r}. Create it first."
            )

    def _connect(self) -> sqlite3.Connection:
        stays = "&immutable=1" if self._stays_as_it_is() else ""
        return sqlite3.connect(
            f"{self.path.as_uri()}?mode={self._mode}{stays}",
            uri=True,
            timeout=self._busy_timeout,
            isolation_level=None,
            check_same_thread=False,
        )

    def _stays_as_it_is(self) -> bool:
        """Return whether SQLite has to be told so: to read in WAL mode it else makes files beside it."""
        beside = self.path.with_name(f"{self.path.name}-shm")
        may_be_made = beside.exists() or os.access(self.path.parent, os.W_OK)
        return self.read_only and not may_be_made and not self._has_journal()

    def _recognise(self, connection: sqlite3.Connection) -> None:
        found = one(connection, "PRAGMA application_id")[0]
        if found == 0 and not self.read_only:
            self._create(connection)
            found = one(connection, "PRAGMA application_id")[0]
        if found != APPLICATION_ID:
            if self._has_tables_of_a_log():
                return
            if found == 0 and not one(connection, "SELECT 1 FROM sqlite_master"):
                raise LogUnavailableError(
                    f"There is no log at {self.address!r} yet: the file is empty. Check the path, or "
                    f"open it for writing, which makes a log of it."
                )
            raise self._foreign("It is another program's SQLite file")
        version = one(connection, "PRAGMA user_version")[0]
        if version != FORMAT:
            raise LogFormatError(
                f"{self.address!r} is a log of format {version}; this Atlas knows format "
                f"{FORMAT}. Open it with the version that wrote it, or a newer Atlas."
            )
        self.has_notes = bool(one(connection, "SELECT 1 FROM sqlite_master WHERE name = 'notes'"))
        if not self.has_notes and not self.read_only:
            connection.execute(_NOTES)
            self.has_notes = True

    def _create(self, connection: sqlite3.Connection) -> None:
        if one(connection, "SELECT 1 FROM sqlite_master"):
            if one(connection, "PRAGMA application_id")[0] == 0:
                raise self._foreign("It is another program's SQLite file")
            return
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        self._to_wal(connection)
        connection.execute("BEGIN IMMEDIATE")
        # Another process may have been faster.
        if not one(connection, "SELECT 1 FROM sqlite_master"):
            for statement in (*_STATEMENTS, _NOTES):
                connection.execute(statement)
            tip = (START.position, START.time_ns, START.chain)
            connection.execute("INSERT INTO tip VALUES (1, ?, ?, ?)", tip)
            connection.execute(f"PRAGMA user_version = {FORMAT}")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")

    def _to_wal(self, connection: sqlite3.Connection) -> None:
        # The change of mode does not wait for another process that makes it too.
        deadline = monotonic() + self._busy_timeout
        while True:
            try:
                mode = one(connection, "PRAGMA journal_mode = WAL")[0]
            except sqlite3.OperationalError as error:
                # A disk that fails gets no better by waiting.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or monotonic() > deadline:
                    raise
                sleep(0.005)
                continue
            if mode != "wal":
                raise LogUnavailableError(
                    f"The file system of {self.address!r} does not support SQLite's WAL mode "
                    f"(a network share?). Put the log on a local disk."
                )
            return

    def _foreign(self, what: str) -> LogFormatError:
        return LogFormatError(
            f"{self.address!r} is no Atlas log. {what}; nothing was changed in it. Choose another "
            f"path."
        )

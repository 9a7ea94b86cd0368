"""Reading the file of a log."""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from typing import Final, Literal

from atlas.core.log.engine import Join
from atlas.core.log.records import Record, Snapshot
from atlas.core.log.sqlite.file import LogFile, one, translated
from atlas.core.log.sqlite.notes import overlaid
from atlas.core.log.sqlite.rows import Names, Streams, whole
from atlas.core.log.sqlite.statements import (
    ANY_NOTE,
    AT_OR_BEFORE,
    FIELDS,
    LAST_WITH_PREFIX,
    READ,
    READ_NEWEST,
    SNAPSHOT,
    WITH_PREFIX,
    prefix_values,
)
from atlas.errors import ConfigurationError, LogClosedError

__all__ = ["LARGEST", "Reading", "snapshot_digest", "tracked"]

LARGEST: Final = 2**63 - 1


class Reading(ABC):
    """The half of `SqliteEngine` that reads: any number of threads, each with a connection of its own.

    Connections are kept for whoever reads next.

    Args:
        file: The file.
    """

    def __init__(self, file: LogFile) -> None:
        self.address: str = file.address
        self._file = file
        self._closed = False
        self._streams = Streams()
        self._names = Names(self.address)
        self._generation = 0
        self._readers: list[sqlite3.Connection] = []

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
        with self._lent("stream") as connection:
            stream_id = self._streams.id_of(connection, stream)
            if stream_id is None:
                return []
            rows = connection.execute(
                READ_NEWEST if newest_first else READ,
                (
                    stream_id,
                    -LARGEST if after is None else after,
                    LARGEST if until is None else until,
                    -1 if limit is None else limit,
                ),
            ).fetchall()
            return self._names.records(connection, rows, stream)

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
        values: list[object] = [after, LARGEST if until is None else until]
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
        with self._lent("position") as connection:
            values.append(-1 if limit is None else limit)
            rows = connection.execute(statement, values).fetchall()
            return self._names.records(connection, rows)

    def head(self, stream: str) -> int | None:
        """Return the last version of a stream; None when it has no record."""
        with self._lent("stream") as connection:
            return self._streams.head(connection, stream)

    def last_position(self, prefix: str = "") -> int | None:
        """Return the last position in streams whose name begins so; None when there is no record.

        With a prefix it looks back from the end, for as long as it takes.
        """
        with self._lent("position") as connection:
            if not prefix:
                return _last_position(connection) or None
            found = one(connection, LAST_WITH_PREFIX, *prefix_values(prefix))
            return whole(found[0]) if found else None

    def position_at(self, time_ns: int) -> int:
        """Return the last position appended at this time or before; 0 when there is none."""
        with self._lent("position") as connection:
            low, high = 0, _last_position(connection)
            # Times rise with positions. Mostly somebody asks for a time just gone by.
            middle = high
            while low < high:
                found = one(connection, AT_OR_BEFORE, middle)
                if not found or whole(found[1]) <= time_ns:
                    low = middle
                else:
                    high = whole(found[0]) - 1
                middle = (low + high + 1) // 2
            found = one(connection, AT_OR_BEFORE, low)
            return whole(found[0]) if found else 0

    def streams(self, prefix: str = "") -> list[str]:
        """Return the streams whose name begins so, in order of their first record."""
        with self._lent("stream") as connection:
            rows = connection.execute(
                f"SELECT stream FROM streams WHERE {WITH_PREFIX} "  # noqa: S608
                "AND EXISTS (SELECT 1 FROM events WHERE stream_id = streams.id) ORDER BY id",
                prefix_values(prefix),
            ).fetchall()
            return [row[0] for row in rows]

    def tracked(self, reader: str) -> int | None:
        """Return the highest position stored by ``tracking`` for a reader."""
        with self._lent() as connection:
            return tracked(connection, reader)

    def snapshot(self, stream: str, label: str, until: int | None = None) -> Snapshot | None:
        """Return the latest snapshot at this version or before; None also when it is damaged."""
        with self._lent() as connection:
            last = LARGEST if until is None else until
            found = one(connection, SNAPSHOT, stream, label, last)
        if not found:
            return None
        version, digest, payload = found
        if not isinstance(version, int) or not isinstance(payload, bytes):
            return None
        if snapshot_digest(stream, label, version, payload) != digest:
            return None
        return Snapshot(stream, version, label, payload)

    @property
    @abstractmethod
    def _joins(self) -> Mapping[str, Join]:
        """What joins notes of this process, by the names of records."""

    @abstractmethod
    def _has_entered(self, by: Literal["stream", "position"]) -> bool:
        """Give what somebody noted its place in the log; return False if it is to be shown without."""

    # -- connections --

    def _check_open(self) -> None:
        if self._closed:
            raise LogClosedError(f"The log {self.address} is closed; open it again.")

    @contextmanager
    def _lent(
        self, by: Literal["stream", "position", "neither"] = "neither"
    ) -> Iterator[sqlite3.Connection]:
        """Lend a connection that finds records by their stream, by their position, or none at all."""
        self._check_open()
        try:
            try:
                connection = self._readers.pop()
            except IndexError:
                connection = self._file.reader()
            generation = self._generation
            try:
                if (
                    by == "neither"
                    or not self._file.has_notes
                    or not one(connection, ANY_NOTE)
                    or self._has_entered(by)
                ):
                    yield connection
                else:
                    with overlaid(connection, self._streams, self._joins):
                        yield connection
            finally:
                if generation == self._generation:
                    self._readers.append(connection)
                else:
                    connection.close()
                if self._closed:
                    self._disconnect_readers()
        except sqlite3.Error as error:
            raise translated(error, self.address) from error
        except (UnicodeEncodeError, OverflowError) as error:
            raise ConfigurationError(
                f"Nothing in the log {self.address} can be found by that: {error}. Use texts without "
                f"lone surrogates, and numbers of 64 bits."
            ) from error

    def _forget_file(self) -> None:
        """Let go of a file that another one takes the place of."""
        # Connections in use are closed by those who have them.
        self._generation += 1
        self._disconnect_readers()
        self._streams.forget()
        self._names.forget()

    def _disconnect_readers(self) -> None:
        with suppress(IndexError):
            while True:
                self._readers.pop().close()


def tracked(connection: sqlite3.Connection, reader: str) -> int | None:
    """Return the highest position stored for a reader."""
    found = one(connection, "SELECT position FROM tracking WHERE reader = ?", reader)
    return whole(found[0]) if found else None


def snapshot_digest(stream: str, label: str, version: int, payload: bytes) -> bytes:
    """Return what tells whether a snapshot is as it was kept."""
    head = repr((stream, label, version)).encode()
    return sha256(sha256(head).digest() + payload).digest()


def _last_position(connection: sqlite3.Connection) -> int:
    found = one(connection, "SELECT position FROM events ORDER BY position DESC LIMIT 1")
    return whole(found[0]) if found else 0

"""Notes: records that are kept at once, and entered into the log later, together.

To append a record writes to four places of the file and makes two hashes; where little is committed
often, that is most of the price. A note is one row of a table of its own, which any connection may
read, and which is as safe as a record once it is written.

All notes are entered at the beginning of every other transaction, whoever makes it. So the first
note of a stream always follows its last record, and what another process appends is never overtaken: a note
says which record it follows, and is refused if that is the last one no more.
"""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Final, NamedTuple
from zlib import crc32

from atlas.core.log.engine import Join
from atlas.core.log.planning import Planner, Request, Tip
from atlas.core.log.records import NewRecord
from atlas.core.log.sqlite.file import one
from atlas.core.log.sqlite.rows import Streams, blob, whole
from atlas.core.log.sqlite.statements import EVENT_COLUMNS, NOTES
from atlas.errors import LogCorruptedError

__all__ = [
    "MOST_VERSIONS",
    "Note",
    "as_records",
    "examined_notes",
    "note_id",
    "note_row",
    "overlaid",
    "read_notes",
]

_BITS: Final = 40
MOST_VERSIONS: Final = 2**_BITS
"""Streams that are longer, and those of a higher number than `_MOST_STREAMS`, get no notes."""

_MOST_STREAMS: Final = 2 ** (63 - _BITS)
_pack: Final = struct.Struct(">qqqq").pack
_LARGEST_JOINED: Final = 65_536
"""Bytes of payloads that become one: about what is to be read to see one of them."""


def note_id(stream_id: int, after: int) -> int | None:
    """Return the id of the note that follows this version: there can be one only. None: none can."""
    if stream_id < _MOST_STREAMS and 0 <= after < MOST_VERSIONS:
        return stream_id << _BITS | after
    return None


def note_row(
    row_id: int, version: int, name_id: int, wall_ns: int, payload: bytes
) -> tuple[object, ...]:
    """Return the row of a note, in the order of `NOTE` and `NOTES`."""
    checksum = _checksum(row_id, version, name_id, wall_ns, payload)
    # Not bytes, for which Python looks for an adapter, which takes as long as storing them.
    return row_id, version, name_id, wall_ns, checksum, bytearray(payload)


def _checksum(row_id: int, version: int, name_id: int, wall_ns: int, payload: bytes) -> int:
    # Of a note that is to be gone in a quarter of a second, and made for each commit of a run: it finds
    # damage as surely as SHA-256 for all that happens to a disk, in a tenth of the time.
    return crc32(payload, crc32(_pack(row_id, version, name_id, wall_ns)))


class Note(NamedTuple):
    """A row of the table.

    Attributes:
        row_id: Its id, see `note_id`.
        version: Its place in the stream.
        name_id: The number that stands for its name.
        wall_ns: When it happened, in ns since 1970.
        checksum: CRC-32 of all the others.
        payload: Its bytes.
    """

    row_id: int
    version: int
    name_id: int
    wall_ns: int
    checksum: int
    payload: bytes

    @property
    def stream_id(self) -> int:
        """The number that stands for its stream."""
        return self.row_id >> _BITS

    @property
    def after(self) -> int:
        """The version that it follows."""
        return self.row_id & (MOST_VERSIONS - 1)

    def follows(self, version: object) -> bool:
        """Return whether it is what was noted, and follows this version of its stream."""
        is_next = self.after == version and self.version > self.after
        return is_next and self.checksum == _checksum(*self[:4], self.payload)


def read_notes(connection: sqlite3.Connection) -> list[Note]:
    """Return all notes, stream by stream, each in its order.

    Raises:
        LogCorruptedError: One holds something else than a note does.
    """
    return [
        Note(
            whole(row_id),
            whole(version),
            whole(name_id),
            whole(wall_ns),
            whole(checksum),
            blob(payload),
        )
        for row_id, version, name_id, wall_ns, checksum, payload in connection.execute(NOTES)
    ]


def as_records(
    connection: sqlite3.Connection, joins: Mapping[str, Join], head: Callable[[str], int]
) -> list[NewRecord]:
    """Return the records that the notes become: streams by their first note, joined where they can be.

    Args:
        connection: Reads them.
        joins: By the names of records, what joins their payloads.
        head: Returns the version of the last record of a stream.

    Raises:
        LogCorruptedError: They are not what was noted, or do not follow what is there.
    """
    by_stream = [[*of_one] for _, of_one in groupby(read_notes(connection), _stream_id)]
    by_stream.sort(key=lambda of_one: of_one[0].wall_ns)
    return [
        record for of_one in by_stream for record in _records_of(connection, of_one, joins, head)
    ]


def _stream_id(note: Note) -> int:
    return note.stream_id


def _records_of(
    connection: sqlite3.Connection,
    notes: Sequence[Note],
    joins: Mapping[str, Join],
    head: Callable[[str], int],
) -> Iterator[NewRecord]:
    stream = _text(connection, "SELECT stream FROM streams WHERE id = ?", notes[0].stream_id)
    misfit = _misfit(notes, head(stream))
    if misfit is not None:
        raise _damaged(f"the one after version {misfit.after} of stream {stream!r}")
    for name_id, of_one in groupby(notes, lambda note: note.name_id):
        name = _text(connection, "SELECT name FROM names WHERE id = ?", name_id)
        for together in _together([*of_one], is_joined=name in joins):
            last = together[-1]
            payloads = [note.payload for note in together]
            payload = joins[name](payloads) if name in joins else payloads[0]
            yield NewRecord(stream, name, payload, last.version, last.wall_ns)


def _misfit(notes: Iterable[Note], at: int) -> Note | None:
    """Return the first note of a stream that does not follow what is before it; None: all do."""
    for note in notes:
        if not note.follows(at):
            return note
        at = note.version
    return None


def _together(notes: Sequence[Note], *, is_joined: bool) -> Iterator[list[Note]]:
    together: list[Note] = []
    size = 0
    for note in notes:
        if together and (not is_joined or size + len(note.payload) > _LARGEST_JOINED):
            yield together
            together, size = [], 0
        together.append(note)
        size += len(note.payload)
    yield together


def _text(connection: sqlite3.Connection, statement: str, number: int) -> str:
    found = one(connection, statement, number)
    if not found or not isinstance(found[0], str):
        raise _damaged(f"one of number {number}, which stands for nothing")
    return found[0]


def _damaged(which: str) -> LogCorruptedError:
    return LogCorruptedError(
        f"A note that is not in the log yet is not what was noted: {which}. `verify` looks for more "
        f"damage, `repair` keeps what is good.",
        position=0,
    )


@contextmanager
def overlaid(
    connection: sqlite3.Connection, streams: Streams, joins: Mapping[str, Join]
) -> Iterator[None]:
    """Let a connection read notes as the records that they are going to be, with nothing written.

    Their time is not known yet: it is that after the last record.
    """
    connection.execute("PRAGMA query_only = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("BEGIN")  # one view of the file
    try:
        position, time_ns, link = one(connection, "SELECT position, time_ns, chain FROM tip")
        planner = Planner(
            Tip(whole(position), whole(time_ns), blob(link)),
            lambda stream: streams.head(connection, stream) or 0,
            lambda reader: 0,
        )
        records = planner.plan(
            Request((*as_records(connection, joins, planner.head),), {}, None, 0), 0
        )
        rows = [
            (
                each.position,
                streams.id_of(connection, each.stream),
                each.version,
                one(connection, "SELECT id FROM names WHERE name = ?", each.name)[0],
                each.time_ns,
                each.wall_ns,
                each.digest,
                each.chain,
                each.payload,
            )
            for each in records
        ]
        # Both are gone with the transaction. A view of that name is found before the table.
        connection.execute(f"CREATE TEMP TABLE entered ({EVENT_COLUMNS})")
        connection.executemany("INSERT INTO entered VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.execute(
            f"CREATE TEMP VIEW events AS SELECT {EVENT_COLUMNS} FROM main.events "  # noqa: S608
            f"UNION ALL SELECT {EVENT_COLUMNS} FROM entered"
        )
        yield
    finally:
        if connection.in_transaction:  # SQLite ends it by itself where a disk fails
            connection.execute("ROLLBACK")
        connection.execute("PRAGMA query_only = ON")


def examined_notes(connection: sqlite3.Connection) -> tuple[int, str]:
    """Return how many notes there are, and what is wrong with them, in a sentence; "" for nothing."""
    try:
        notes = read_notes(connection)
    except (sqlite3.DatabaseError, LogCorruptedError) as error:
        return 0, f"The notes that are not in the log yet cannot be read: {error}"
    last = "SELECT max(version) FROM events WHERE stream_id = ?"
    for stream_id, of_one in groupby(notes, _stream_id):
        misfit = _misfit(of_one, whole(one(connection, last, stream_id)[0] or 0))
        if misfit is not None:
            problem = (
                f"A note that is not in the log yet, after version {misfit.after} of a stream, is not "
                f"what was noted."
            )
            return len(notes), problem
    return len(notes), ""

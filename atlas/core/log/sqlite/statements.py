"""What the engine asks SQLite."""

from __future__ import annotations

from typing import Final

__all__ = [
    "ANY_NOTE",
    "AT_OR_BEFORE",
    "COPY_NOTE",
    "DROP_NOTES",
    "DROP_SNAPSHOTS",
    "ERASABLE",
    "ERASE",
    "EVENT_COLUMNS",
    "FIELDS",
    "INSERT",
    "INSERT_ROWS",
    "LAST_WITH_PREFIX",
    "MOVE_TIP",
    "NOTE",
    "NOTES",
    "NOTE_COLUMNS",
    "READ",
    "READ_NEWEST",
    "ROWS_AT_ONCE",
    "SAVE_SNAPSHOT",
    "SNAPSHOT",
    "TRACK",
    "WITH_PREFIX",
    "prefix_values",
]

FIELDS: Final = "position, version, name_id, time_ns, wall_ns, payload, digest, chain"
EVENT_COLUMNS: Final = (
    "position, stream_id, version, name_id, time_ns, wall_ns, digest, chain, payload"
)
INSERT: Final = f"INSERT INTO events ({EVENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
# One step of SQLite for many rows: each step lets go of Python's lock and asks for it again.
ROWS_AT_ONCE: Final = 16
INSERT_ROWS: Final = INSERT + ", (?, ?, ?, ?, ?, ?, ?, ?, ?)" * (ROWS_AT_ONCE - 1)
MOVE_TIP: Final = "UPDATE tip SET position = ?, time_ns = ?, chain = ? WHERE id = 1"
NOTE_COLUMNS: Final = "id, version, name_id, wall_ns, checksum, payload"
# Nothing, unless the last record of its stream is still the one that it was made after.
NOTE: Final = (
    f"INSERT INTO notes ({NOTE_COLUMNS}) SELECT ?, ?, ?, ?, ?, ? "  # noqa: S608
    "WHERE (SELECT max(version) FROM events WHERE stream_id = ?) IS ?"
)
COPY_NOTE: Final = f"INSERT INTO notes ({NOTE_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"  # noqa: S608
NOTES: Final = f"SELECT {NOTE_COLUMNS} FROM notes ORDER BY id"  # noqa: S608
ANY_NOTE: Final = "SELECT 1 FROM notes LIMIT 1"
DROP_NOTES: Final = "DELETE FROM notes"
TRACK: Final = (
    "INSERT INTO tracking (reader, position) VALUES (?, ?) "
    "ON CONFLICT (reader) DO UPDATE SET position = excluded.position"
)
READ: Final = (
    f"SELECT {FIELDS} FROM events WHERE stream_id = ? AND version > ? AND version <= ? "  # noqa: S608
    "ORDER BY version LIMIT ?"
)
READ_NEWEST: Final = READ.replace("ORDER BY version", "ORDER BY version DESC")
WITH_PREFIX: Final = "stream >= ? AND (? IS NULL OR stream < ?)"
LAST_WITH_PREFIX: Final = (
    "SELECT position FROM events CROSS JOIN streams ON streams.id = stream_id "  # noqa: S608
    f"WHERE {WITH_PREFIX} ORDER BY position DESC LIMIT 1"
)
AT_OR_BEFORE: Final = (
    "SELECT position, time_ns FROM events WHERE position <= ? ORDER BY position DESC LIMIT 1"
)
SAVE_SNAPSHOT: Final = (
    "INSERT OR REPLACE INTO snapshots (stream, label, version, digest, payload) "
    "VALUES (?, ?, ?, ?, ?)"
)
SNAPSHOT: Final = (
    "SELECT version, digest, payload FROM snapshots WHERE stream = ? AND label = ? "
    "AND version <= ? ORDER BY version DESC LIMIT 1"
)
DROP_SNAPSHOTS: Final = "DELETE FROM snapshots WHERE stream = ?"
ERASABLE: Final = (
    "SELECT count(*), min(version), max(version) FROM events WHERE stream_id = ? "
    "AND version > ? AND version <= ? AND payload IS NOT NULL"
)
ERASE: Final = (
    "UPDATE events SET payload = NULL WHERE stream_id = ? AND version > ? AND version <= ? "
    "AND payload IS NOT NULL"
)


def prefix_values(prefix: str) -> tuple[str, str | None, str | None]:
    """Return the parameters of `WITH_PREFIX`."""
    end = _successor(prefix)
    return prefix, end, end


def _successor(prefix: str) -> str | None:
    """Return the first text after all that begin with a prefix; None when there is none."""
    for end in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[end])
        if code < 0x10FFFF:
            following = 0xE000 if code == 0xD7FF else code + 1
            return prefix[:end] + chr(following)
    return None

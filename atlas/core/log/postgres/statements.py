"""The SQL of the log in PostgreSQL, with the names of the tables left open."""

from __future__ import annotations

from typing import Final

from psycopg import sql

from atlas.core.log.postgres.place import Place
from atlas.core.log.types import column

__all__ = [
    "BEGIN",
    "ERASE",
    "HEAD",
    "HEADS",
    "LAST",
    "NEWEST",
    "READ",
    "READ_ALL",
    "SAVE_SNAPSHOT",
    "SET_ASIDE",
    "SNAPSHOT",
    "STREAMS",
    "TABLES",
    "TRACKED",
    "WRITE",
    "Statements",
]

_FIELDS: Final = (
    "position",
    "stream",
    "version",
    "name",
    "time_ns",
    "wall_ns",
    "payload",
    "digest",
    "chain",
)


class Statements:
    """Turns SQL with the names of tables left open into what is sent to the server."""

    _TABLES: Final = ("records", "log", "snapshots", "tracking", "set_aside")

    def __init__(self, place: Place) -> None:
        tables = {name: sql.Identifier(place.schema, place.prefix + name) for name in self._TABLES}
        self._names: dict[str, sql.Composable] = {
            **tables,
            "fields": sql.SQL(", ").join(map(sql.Identifier, _FIELDS)),
            "schema": sql.Identifier(place.schema),
            "channel": sql.Identifier(place.channel),
        }
        self._made: dict[str, bytes] = {}

    def __call__(self, text: str) -> bytes:
        """Return the statement; remembered, for there are few."""
        made = self._made.get(text)
        if made is None:
            # Every text is written in this package; what varies are parameters, or names checked
            # by `Place`.
            template = sql.SQL(text)
            made = self._made[text] = template.format(**self._names).as_bytes(None)
        return made


def _columns(*names: str) -> str:
    return ", ".join(f"{column(name, 'postgresql')} NOT NULL" for name in names)


TABLES: Final = f"""
CREATE TABLE {{records}} (
    {_columns("position", "stream", "version", "name", "time_ns", "wall_ns")},
    {column("payload", "postgresql")},
    {_columns("digest", "chain")},
    PRIMARY KEY (position),
    UNIQUE (stream, version)
);
CREATE INDEX ON {{records}} (time_ns);
CREATE TABLE {{set_aside}} (LIKE {{records}}, repaired timestamptz NOT NULL DEFAULT now());
CREATE TABLE {{snapshots}} (
    {_columns("stream", "label", "version", "payload", "digest")},
    PRIMARY KEY (stream, label, version)
);
CREATE TABLE {{tracking}} ({_columns("reader", "position")}, PRIMARY KEY (reader));
CREATE TABLE {{log}} (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    commits bigint NOT NULL DEFAULT 0,
    {_columns("position", "time_ns", "chain")}
);
"""

BEGIN: Final = """
BEGIN ISOLATION LEVEL READ COMMITTED;
SELECT commits, position, time_ns, chain FROM {log} FOR UPDATE
"""

# One statement, one round trip: records, tracking, where the log stands now, and word to whoever
# follows.
WRITE: Final = """
WITH added AS (
    INSERT INTO {records} SELECT * FROM unnest(
        %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[],
        %s::bytea[], %s::bytea[], %s::bytea[])
), tracked AS (
    INSERT INTO {tracking} SELECT * FROM unnest(%s::text[], %s::bigint[])
    ON CONFLICT (reader) DO UPDATE SET position = excluded.position
)
UPDATE {log} SET commits = commits + 1, position = %s, time_ns = %s, chain = %s
RETURNING pg_notify(%s, position::text)
"""

HEADS: Final = """
SELECT s, (SELECT version FROM {records} WHERE stream = s ORDER BY version DESC LIMIT 1)
FROM unnest(%s::text[]) AS s
"""

HEAD: Final = "SELECT version FROM {records} WHERE stream = %s ORDER BY version DESC LIMIT 1"

TRACKED: Final = "SELECT position FROM {tracking} WHERE reader = %s"

LAST: Final = "SELECT position, chain FROM {records} ORDER BY position DESC LIMIT 1"

NEWEST: Final = "SELECT position FROM {log}"

READ: Final = "SELECT {fields} FROM {records} WHERE stream = %s AND version > %s AND version <= %s "

READ_ALL: Final = "SELECT {fields} FROM {records} WHERE position > %s AND position <= %s "

# Hops from name to name over the index: as quick for few streams with many records as it can be.
STREAMS: Final = """
WITH RECURSIVE names AS (
    (SELECT stream FROM {records} WHERE stream >= %(prefix)s ORDER BY stream LIMIT 1)
    UNION ALL
    SELECT (SELECT next.stream FROM {records} AS next
            WHERE next.stream > names.stream ORDER BY next.stream LIMIT 1)
    FROM names WHERE starts_with(names.stream, %(prefix)s)
)
SELECT stream FROM names WHERE starts_with(stream, %(prefix)s) ORDER BY (
    SELECT position FROM {records} AS first
    WHERE first.stream = names.stream ORDER BY version LIMIT 1)
"""

SAVE_SNAPSHOT: Final = """
INSERT INTO {snapshots} (stream, label, version, payload, digest) VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (stream, label, version)
DO UPDATE SET payload = excluded.payload, digest = excluded.digest RETURNING version
"""

ERASE: Final = """
UPDATE {records} SET payload = NULL
WHERE stream = %s AND version > %s AND version <= %s AND payload IS NOT NULL RETURNING version
"""

SET_ASIDE: Final = """
WITH bad AS (DELETE FROM {records} WHERE position >= %s RETURNING *)
INSERT INTO {set_aside} SELECT * FROM bad RETURNING position
"""

SNAPSHOT: Final = """
SELECT version, payload, digest FROM {snapshots}
WHERE stream = %s AND label = %s AND version <= %s ORDER BY version DESC LIMIT 1
"""

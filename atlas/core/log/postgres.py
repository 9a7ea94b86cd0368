"""The log in a PostgreSQL database.

The tables live in one schema, their names begin with one prefix, so that a database holds as many
logs as wanted. Whoever appends holds the lock of the log's one row in ``…log`` until its commit:
positions become visible in their order, and none fills up later. Readers take no lock. Whoever
follows is woken by ``NOTIFY``, which carries a position and nothing of what was appended.

The server may go away and come back: calls meanwhile raise `LogUnavailableError`, and later ones
connect anew. An append whose commit was not answered is looked up before anything is said about it.

Erased payloads are overwritten for every reader at once and vacuumed; archived WAL and backups of
the server are its owner's to renew.
"""

from __future__ import annotations

import re
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from time import monotonic
from typing import Any, Final, LiteralString, TypeAlias, TypeVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from atlas.core.clock import SystemClock
from atlas.core.log.chain import GENESIS, digest_of
from atlas.core.log.engine import Append, Durability, Progress, Repair, Verification
from atlas.core.log.group_commit import GroupCommit, PendingAppend
from atlas.core.log.planning import Planner, Request, Tip
from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.errors import (
    AtlasError,
    ConfigurationError,
    LogClosedError,
    LogCorruptedError,
    LogFormatError,
    LogUnavailableError,
    MissingDependencyError,
)
from atlas.typing import Clock

try:
    import psycopg
    from psycopg import sql
except ImportError as error:
    raise MissingDependencyError(
        "A log on PostgreSQL needs the package psycopg. Install it with "
        "`pip install 'atlas[postgres]'`.",
        extra="postgres",
    ) from error

__all__ = ["PostgresEngine"]

# Rows are what the queries below select; psycopg cannot know their types.
_Connection: TypeAlias = "psycopg.Connection[tuple[Any, ...]]"
_T = TypeVar("_T")

_FORMAT: Final = 1
_LARGEST: Final = 2**63 - 1
# PostgreSQL's limit for a key of an index is 2,704 bytes; a version has to fit beside the name.
_LONGEST_NAME: Final = 2_000
_IDLE_CONNECTIONS: Final = 8
_PAGE: Final = 2_000
_GRACE_S: Final[Mapping[Durability, float]] = {"power": 0.01, "process": 0.01, "lazy": 0.25}
_RECONNECT_S: Final = 0.5

_TABLES: Final[LiteralString] = """
CREATE TABLE {records} (
    position bigint PRIMARY KEY,
    stream text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    time_ns bigint NOT NULL,
    wall_ns bigint NOT NULL,
    payload bytea,
    digest bytea NOT NULL,
    chain bytea NOT NULL,
    UNIQUE (stream, version)
);
CREATE INDEX ON {records} (time_ns);
CREATE TABLE {set_aside} (LIKE {records}, repaired timestamptz NOT NULL DEFAULT now());
CREATE TABLE {snapshots} (
    stream text COLLATE "C",
    label text COLLATE "C",
    version bigint,
    payload bytea NOT NULL,
    digest bytea NOT NULL,
    PRIMARY KEY (stream, label, version)
);
CREATE TABLE {tracking} (reader text COLLATE "C" PRIMARY KEY, position bigint NOT NULL);
CREATE TABLE {log} (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    position bigint NOT NULL,
    time_ns bigint NOT NULL,
    chain bytea NOT NULL
);
"""

_COLUMNS: Final[LiteralString] = (
    "position, stream, version, name, time_ns, wall_ns, payload, digest, chain"
)

_INSERT: Final[LiteralString] = """
INSERT INTO {records} SELECT * FROM unnest(
    %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::bigint[], %s::bigint[],
    %s::bytea[], %s::bytea[], %s::bytea[])
"""

_HEADS: Final[LiteralString] = """
SELECT s, (SELECT version FROM {records} WHERE stream = s ORDER BY version DESC LIMIT 1)
FROM unnest(%s::text[]) AS s
"""

_TRACK: Final[LiteralString] = """
INSERT INTO {tracking} SELECT * FROM unnest(%s::text[], %s::bigint[])
ON CONFLICT (reader) DO UPDATE SET position = excluded.position
"""

# Hops from name to name over the index: as quick for few streams with many records as it can be.
_STREAMS: Final[LiteralString] = """
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


class PostgresEngine:
    """A log in a PostgreSQL database; see `atlas.core.log.engine.Engine` for what it promises.

    The tables are made when they are missing. Safe to use from many threads and processes at once.

    Args:
        address: Such as ``postgresql://user@host:5432/database``; what it leaves out comes from
            PostgreSQL's own environment variables. Better than a password in it is one in
            ``PGPASSWORD`` or ``~/.pgpass``. ``?schema=…&prefix=…`` may name the tables.
        durability: What an acknowledged append survives. ``power`` waits until the server has
            written it to the disk; ``process`` and ``lazy`` do not, and a crash of the server's
            machine may cost the last half second.
        schema: The schema of the tables; made when it is missing.
        prefix: How the names of the tables begin.
        clock: Where times come from; None: the system's clock.

    Raises:
        ConfigurationError: The address is none, or a name cannot be one of a table.
        LogUnavailableError: The server cannot be reached, or refuses.
        LogFormatError: The tables are of a newer Atlas.
    """

    def __init__(
        self,
        address: str,
        *,
        durability: Durability = "power",
        schema: str | None = None,
        prefix: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        place = _Place(address, schema, prefix)
        self._place = place
        self._clock = clock or SystemClock()
        self._connections = _Connections(place, durability)
        self._statements: dict[str, bytes] = {}
        self._planner: Planner | None = None
        self._closed = False
        self._set_up()
        self._commits = GroupCommit(
            self._commit, grace=_GRACE_S[durability], address=place.address
        )
        self._listener = _Listener(place, self._connections.connect, self._newest)

    @property
    def address(self) -> str:
        """Where the log is, without the password."""
        return self._place.address

    # -- writing --

    def append(
        self,
        records: Sequence[NewRecord],
        *,
        expect: Mapping[str, int] | None = None,
        tracking: tuple[str, int] | None = None,
    ) -> Append:
        """Append records; see `Engine.append`."""
        request = Request.checked(records, expect, tracking, self._clock.time_ns())
        for record in request.records:
            if len(record.stream) > _LONGEST_NAME // 4:
                self._check_length(record.stream)
        return self._commits.submit(request)

    def _check_length(self, stream: str) -> None:
        size = len(stream.encode())
        if size > _LONGEST_NAME:
            raise ValueError(
                f"The name of a stream may have {_LONGEST_NAME} bytes in UTF-8 on PostgreSQL; the "
                f"one that begins with {stream[:40]!r} has {size}. Use a shorter one."
            )

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything appended so far is stored; see `Engine.flush`."""
        self._commits.flush(timeout)

    def _commit(self, group: Sequence[PendingAppend]) -> None:
        try:
            outcomes = self._store_again_if_cut_off(group)
        except Exception as error:  # noqa: BLE001 - it is theirs who wait
            for append in group:
                append.fail(error)
            return

        self._tell(group, outcomes)

    def _tell(self, group: Sequence[PendingAppend], outcomes: Sequence[_Outcome]) -> None:
        for append, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, AtlasError):
                append.fail(outcome)
            else:
                append.succeed(outcome)
        if self._planner is not None:
            self._listener.heard(self._planner.tip.position)

    def _store_again_if_cut_off(self, group: Sequence[PendingAppend]) -> list[_Outcome]:
        # A connection kept from before a restart of the server fails on its first use; nothing was
        # sent to be committed then, and a new one may do.
        try:
            return self._store(group)
        except _CutOffError:
            return self._store(group)

    def _store(self, group: Sequence[PendingAppend]) -> list[_Outcome]:
        requests = [append.request for append in group]
        # Kept again when all went well: after a failure nothing is known.
        planner, self._planner = self._planner, None
        with self._connections.lend() as connection:
            with connection.transaction():
                planner = self._prepared(connection, planner, requests)
                before = planner.tip
                outcomes = self._plan(planner, requests)
                self._write(connection, requests, outcomes, before, planner.tip)
                connection.execute(b"SET CONSTRAINTS ALL IMMEDIATE")
        self._planner = planner
        return outcomes

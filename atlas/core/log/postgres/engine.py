"""`PostgresEngine`: the log in a PostgreSQL database, for any number of processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, TypeAlias, TypeVar

import psycopg

from atlas.core.clock import SystemClock
from atlas.core.log.chain import GENESIS, digest_of, link
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
from atlas.core.log.planning import Planner, Request, Tip
from atlas.core.log.postgres.connections import (
    Connection,
    Connections,
    CutOffError,
    Listener,
    RefusedError,
    Row,
)
from atlas.core.log.postgres.place import Place
from atlas.core.log.postgres.statements import (
    BEGIN,
    ERASE,
    HEAD,
    HEADS,
    LAST,
    NEWEST,
    READ,
    READ_ALL,
    SAVE_SNAPSHOT,
    SET_ASIDE,
    SNAPSHOT,
    STREAMS,
    TABLES,
    TRACKED,
    WRITE,
    Statements,
)
from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.core.log.verification import (
    ERASED,
    LOG_STREAM,
    Erasure,
    StoredRow,
    Verifier,
    repaired_note,
)
from atlas.errors import (
    ConfigurationError,
    LogCorruptedError,
    LogFormatError,
    LogUnavailableError,
    VersionConflictError,
)
from atlas.typing import Clock

__all__ = ["PostgresEngine"]

_Parameters: TypeAlias = "Sequence[object] | Mapping[str, object]"
_Outcome: TypeAlias = "tuple[Record, ...] | VersionConflictError"
_T = TypeVar("_T")

_FORMAT: Final = 1
_LARGEST: Final = 2**63 - 1
# PostgreSQL's limit for a key of an index is 2,704 bytes; a version has to fit beside the name.
_LONGEST_NAME: Final = 2_000
_PAGE: Final = 2_000
# So that a process that writes to ever new streams does not keep all their names.
_MOST_HEADS: Final = 50_000
# Seconds until what nobody waits for is stored.
_GRACE_S: Final[Mapping[Durability, float]] = {"power": 0.005, "process": 0.005, "lazy": 0.25}


class PostgresEngine:
    """A log in a PostgreSQL database; see `atlas.core.log.engine.Engine` for what it promises.

    The tables are made when they are missing. Safe to use from many threads and processes at once.

    Args:
        address: Such as ``postgresql://user@host:5432/database``; what it leaves out comes from
            PostgreSQL's own environment variables. Better than a password in it is one in
            ``PGPASSWORD`` or ``~/.pgpass``. ``?schema=…&prefix=…`` may name the tables.
        durability: What an acknowledged append survives. ``power`` waits until the server has
            written it to its disk; with ``process`` and ``lazy`` it survives the death of this
            process, but a crash of the server may cost the last half second.
        schema: The schema of the tables; made when it is missing. Default ``public``.
        prefix: How the names of the tables begin. Default ``atlas_``.
        clock: Where times come from; None: the system's clock.
        read_only: Never write; the tables must exist.

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
        read_only: bool = False,
    ) -> None:
        check_durability(durability)
        self._read_only = read_only
        self._place = Place.of(address, schema, prefix)
        self._clock = clock or SystemClock()
        self._sql = Statements(self._place)
        self._connections = Connections(self._place, durability)
        self._writing = threading.Lock()
        self._heads = _Heads(self._sql)
        self._kept: tuple[int, Planner] | None = None
        try:
            self._twice(self._set_up)
        except BaseException:
            self._connections.close()
            raise
        self._disowned = False
        self._listener = Listener(self._place, self._connections, self._sql, self._last)
        self._commits = GroupCommit(
            self._commit, grace=_GRACE_S[durability], address=self._place.address
        )

    @property
    def address(self) -> str:
        """Where the log is, without the password."""
        return self._place.address

    def _check_writable(self) -> None:
        if self._read_only:
            raise LogUnavailableError(
                f"The log {self.address} is open for reading only. Open it for writing to append, "
                f"erase or repair."
            )

    def _set_up(self, connection: Connection) -> None:
        if not self._is_set_up(connection):
            if self._read_only:
                raise LogUnavailableError(
                    f"There is no log at {self.address!r}. Check the address, or open it for writing, "
                    f"which creates it."
                )
            with connection.transaction():
                self._create(connection)
        ((number,),) = connection.execute(self._sql("SELECT format FROM {log}"))
        if number != _FORMAT:
            raise LogFormatError(
                f"The log {self.address} has format {number}; this Atlas reads format {_FORMAT}. "
                f"Use the Atlas that wrote it, or a newer one."
            )

    def _is_set_up(self, connection: Connection) -> bool:
        # Not to_regclass: it answers from a cache that may be older than the lock waited for.
        table = (self._place.schema, self._place.prefix + "log")
        found = connection.execute(
            "SELECT 1 FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace "
            "WHERE nspname = %s AND relname = %s",
            table,
        )
        return found.fetchone() is not None

    def _create(self, connection: Connection) -> None:
        # Two processes may start at once; the second finds the tables made.
        connection.execute("SELECT pg_advisory_xact_lock(hashtext(%s))", (self._place.channel,))
        if self._is_set_up(connection):
            return

        schema = self._place.schema
        text = "SELECT 1 FROM pg_namespace WHERE nspname = %s"
        if connection.execute(text, (schema,)).fetchone() is None:
            connection.execute(self._sql("CREATE SCHEMA {schema}"))
        connection.execute(self._sql(TABLES))
        connection.execute(
            self._sql("INSERT INTO {log} (format, position, time_ns, chain) VALUES (%s, 0, 0, %s)"),
            (_FORMAT, GENESIS),
        )

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
        for record in request.records:
            _check_length(record.stream)
        return self._commits.submit(request)

    def note(self, records: Sequence[NewRecord], join: Join | None = None) -> bool:
        """Return False: a server has to be waited for."""
        self._check_writable()
        return False

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything appended so far is stored; raise what failed unnoticed."""
        self._commits.flush(timeout)

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
        order = "DESC" if newest_first else "ASC"
        text = f"{READ} ORDER BY version {order} LIMIT %s"
        return self._records(text, (stream, *_bounds(after, until), limit))

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
        text = READ_ALL
        parameters: list[object] = [*_bounds(after, until)]
        if names:
            text += " AND name = ANY(%s)"
            parameters.append(list(names))
        if prefix:
            text += " AND starts_with(stream, %s)"
            parameters.append(prefix)
        return self._records(text + " ORDER BY position LIMIT %s", (*parameters, limit))

    def head(self, stream: str) -> int | None:
        """Return the last version of a stream; None when it has no record."""
        return self._number(HEAD, (stream,))

    def last_position(self, prefix: str = "") -> int | None:
        """Return the last position in streams whose name begins so; None when there is no record."""
        text = "SELECT max(position) FROM {records}"
        if prefix:
            return self._number(text + " WHERE starts_with(stream, %s)", (prefix,))
        return self._number(text)

    def position_at(self, time_ns: int) -> int:
        """Return the last position appended at this time or before; 0 when there is none."""
        text = "SELECT position FROM {records} WHERE time_ns <= %s ORDER BY time_ns DESC LIMIT 1"
        return self._number(text, (_fitting(time_ns),)) or 0

    def streams(self, prefix: str = "") -> list[str]:
        """Return the streams whose name begins so, in order of their first record."""
        return [stream for (stream,) in self._rows(STREAMS, {"prefix": prefix})]

    def tracked(self, reader: str) -> int | None:
        """Return the highest position stored by ``tracking`` for a reader."""
        return self._number(TRACKED, (reader,))

    def wait_beyond(self, position: int, timeout: float | None = None) -> bool:
        """Block until there is a record after this position; False: time is up, or it was closed.

        While the server is away it goes on waiting.
        """
        return self._listener.wait_beyond(position, timeout)

    def _last(self) -> int:
        return self._number(NEWEST) or 0

    def _records(self, text: str, parameters: _Parameters) -> list[Record]:
        records = [Record(*row) for row in self._rows(text, parameters)]
        for record in records:
            if record.payload is not None and digest_of(record.payload) != record.digest:
                raise LogCorruptedError(
                    f"The record at position {record.position} of {self.address} is not what was "
                    f"appended. `verify` tells what is wrong, `repair` sets it aside.",
                    position=record.position,
                )
        return records

    def _number(self, text: str, parameters: _Parameters = ()) -> int | None:
        rows = self._rows(text, parameters)
        return rows[0][0] if rows else None

    def _rows(self, text: str, parameters: _Parameters = ()) -> list[Row]:
        statement = self._sql(text)
        return self._twice(
            lambda connection: connection.execute(statement, parameters, binary=True).fetchall()
        )

    def _twice(self, operation: Callable[[Connection], _T]) -> _T:
        # A connection kept from before a restart of the server fails on its first use; nothing was
        # committed over it, and a new one may do.
        try:
            with self._connections.lend() as connection:
                return operation(connection)
        except CutOffError:
            with self._connections.lend(new=True) as connection:
                return operation(connection)

    # -- snapshots --

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, instead of one of the same stream, label and version."""
        self._check_writable()
        place = (snapshot.stream, snapshot.label, snapshot.version)
        self._rows(SAVE_SNAPSHOT, (*place, snapshot.payload, _snapshot_digest(snapshot)))

    def snapshot(self, stream: str, label: str, until: int | None = None) -> Snapshot | None:
        """Return the latest snapshot at this version or before; None also when it is damaged."""
        rows = self._rows(SNAPSHOT, (stream, label, _bounds(None, until)[1]))
        for version, payload, digest in rows:
            found = Snapshot(stream, version, label, payload)
            if _snapshot_digest(found) == digest:
                return found
        return None

    def drop_snapshots(self, stream: str) -> None:
        """Forget all snapshots of a stream."""
        self._check_writable()
        self._rows("DELETE FROM {snapshots} WHERE stream = %s RETURNING version", (stream,))

    # -- keeping --

    def erase(self, stream: str, *, after: int | None = None, until: int | None = None) -> int:
        """Destroy payloads of a stream; see `atlas.core.log.engine.Engine.erase`.

        The tables are vacuumed, so that the server does not keep old versions of the rows.
        """
        Erasure.check(stream)
        self._check_writable()
        # What nobody waited for yet is erased too.
        self._commits.drain()

        def erase(connection: Connection) -> int:
            with self._changing(connection) as change:
                found = connection.execute(self._sql(ERASE), (stream, *_bounds(after, until)))
                versions = [version for (version,) in found]
                connection.execute(
                    self._sql("DELETE FROM {snapshots} WHERE stream = %s"), (stream,)
                )
                if versions:
                    erasure = Erasure(stream, min(versions) - 1, max(versions), len(versions))
                    self._note(change, erasure.note())
            return len(versions)

        erased = self._twice(erase)
        self._twice(self._vacuum)
        return erased

    def _vacuum(self, connection: Connection) -> None:
        connection.execute(self._sql("VACUUM {records}, {snapshots}"))

    def verify(self, progress: Progress | None = None) -> Verification:
        """Read everything and compare it with its hashes."""

        def verify(connection: Connection) -> Verification:
            # As of one moment, while others go on to append.
            connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            text = "SELECT position, time_ns, chain FROM {log}"
            (tip,) = connection.execute(self._sql(text), binary=True)
            found, _ = self._verified(connection, Tip(*tip), progress)
            connection.execute("COMMIT")
            return found

        return self._twice(verify)

    def repair(self, progress: Progress | None = None) -> Repair:
        """Move everything from the first bad position on to the table ``…set_aside``."""
        self._check_writable()

        def repair(connection: Connection) -> Repair:
            with self._changing(connection, repairing=True) as change:
                found, right = self._verified(connection, change.planner.tip, progress)
                if found.bad_position is None:
                    return Repair(found.records, 0, "")

                highest = self._highest(connection, change.planner.tip)
                moved = connection.execute(self._sql(SET_ASIDE), (found.bad_position,)).rowcount
                connection.execute(self._sql("DELETE FROM {snapshots}"))
                saved_to = self._place.table("set_aside") if moved else ""
                change.planner = self._new_planner(Tip(highest, right.time_ns, right.chain))
                self._note(change, repaired_note(found.bad_position, highest, saved_to))
            return Repair(right.records, moved, saved_to)

        return self._twice(repair)

    def _highest(self, connection: Connection, tip: Tip) -> int:
        found = connection.execute(self._sql("SELECT max(position) FROM {records}")).fetchone()
        return max(tip.position, found[0] or 0) if found else tip.position

    def _verified(
        self, connection: Connection, tip: Tip, progress: Progress | None
    ) -> tuple[Verification, Verifier]:
        ((total,),) = connection.execute(self._sql("SELECT count(*) FROM {records}"))
        notes = connection.execute(
            self._sql("SELECT payload FROM {records} WHERE stream = %s AND name = %s"),
            (LOG_STREAM, ERASED),
            binary=True,
        )
        verifier = Verifier([payload for (payload,) in notes if payload])
        statement = self._sql(READ_ALL + " ORDER BY position LIMIT %s")
        bounds, done = (-_LARGEST, _LARGEST), 0
        while rows := connection.execute(statement, (*bounds, _PAGE), binary=True).fetchall():
            if progress is not None:
                progress(done, total)
            for row in rows:
                problem = verifier.problem_with(_as_stored(row))
                if problem:
                    return Verification(total, verifier.erased, row[0], problem), verifier
            bounds, done = (rows[-1][0], _LARGEST), done + len(rows)
        problem = _problem_with_end(verifier, tip)
        bad = verifier.position + 1 if problem else None
        return Verification(total, verifier.erased, bad, problem), verifier

    def close(self) -> None:
        """Store what is on its way and let go of everything. Idempotent."""
        if self._disowned:
            return
        try:
            self._commits.close()
        finally:
            self._listener.close()
            self._connections.close()

    def disown(self) -> None:
        """Refuse everything from now on; see `atlas.core.log.engine.Engine.disown`."""
        self._disowned = True
        self._commits.disown()
        self._listener.disown()
        self._connections.disown()

    # -- committing --

    def _commit(self, group: Sequence[PendingAppend]) -> None:
        try:
            self._twice(lambda connection: self._store(connection, group))
        except RefusedError as error:
            if len(group) == 1:
                group[0].fail(error)
                return
            # Perhaps one of them is at fault, say, larger than the server takes.
            for append in group:
                self._commit([append])
        # It is theirs who wait for the appends.
        except Exception as error:  # noqa: BLE001
            for append in group:
                if not append.done:
                    append.fail(error)

    def _store(self, connection: Connection, group: Sequence[PendingAppend]) -> None:
        requests = [append.request for append in group]
        outcomes: list[_Outcome] = []
        with self._changing(connection, requests, lambda: _tell(group, outcomes)) as change:
            now_ns = self._clock.time_ns()
            for request in requests:
                try:
                    records = change.planner.plan(request, now_ns)
                except VersionConflictError as error:
                    outcomes.append(error)
                    continue
                outcomes.append(records)
                change.records += records
                if request.tracking is not None:
                    change.tracked.update([request.tracking])

    def _note(self, change: _Change, note: NewRecord) -> None:
        now_ns = self._clock.time_ns()
        change.records += change.planner.plan(Request((note,), {}, None, now_ns), now_ns)

    @contextmanager
    def _changing(
        self,
        connection: Connection,
        requests: Sequence[Request] = (),
        stored: Callable[[], object] = lambda: None,
        *,
        repairing: bool = False,
    ) -> Iterator[_Change]:
        """Hold the log's lock; store what the body put into the change; then call ``stored``."""
        with self._writing:
            # Kept again when all went well: after a failure nothing is known.
            kept, self._kept = self._kept, None
            commits, tip = self._locked(connection)
            if kept and kept[0] == commits and kept[1].tip == tip:
                planner = kept[1]
            else:
                planner = self._new_planner(tip)
                if not repairing:
                    self._check_end(connection, tip)
            self._heads.fetch(connection, requests)
            change = _Change(planner)
            yield change
            if change.records or change.tracked:
                self._write(connection, change)
                commits += 1
            interrupt = self._finish(connection, change)
            self._kept = commits, change.planner
            stored()
            self._listener.heard(change.planner.tip.position)
            if interrupt is not None:
                raise interrupt

    def _new_planner(self, tip: Tip) -> Planner:
        self._heads.forget()
        return Planner(tip, self._heads.head, self._heads.tracked)

    def _check_end(self, connection: Connection, tip: Tip) -> None:
        last = connection.execute(self._sql(LAST), binary=True).fetchone() or (0, GENESIS)
        if last != (tip.position, tip.chain):
            raise LogCorruptedError(
                f"The end of the log {self.address} is not what was appended there: its last record "
                f"is {last[0]}, it should be {tip.position}. `repair` keeps what is good.",
                position=min(last[0], tip.position) + 1,
            )

    def _locked(self, connection: Connection) -> tuple[int, Tip]:
        # Two statements at once cannot be prepared.
        cursor = connection.execute(self._sql(BEGIN), prepare=False)
        cursor.nextset()
        ((commits, position, time_ns, chain),) = cursor
        return commits, Tip(position, time_ns, chain)

    def _write(self, connection: Connection, change: _Change) -> None:
        columns = zip(*change.records, strict=True) if change.records else [()] * 9
        tip = change.planner.tip
        parameters = (
            *map(list, columns),
            list(change.tracked),
            list(change.tracked.values()),
            tip.position,
            tip.time_ns,
            tip.chain,
            self._place.channel,
        )
        connection.execute(self._sql(WRITE), parameters, binary=True)

    def _finish(self, connection: Connection, change: _Change) -> BaseException | None:
        """Commit; return an interrupt that came too late to stop that."""
        try:
            connection.execute("COMMIT")
        except BaseException as error:
            # An interrupt may have come before it was sent: the lock is still ours then.
            with suppress(psycopg.Error):
                connection.rollback()
            if self._is_stored(change):
                return None if isinstance(error, Exception) else error
            raise
        return None

    def _is_stored(self, change: _Change) -> bool:
        """Return whether a commit that was not answered was carried out."""
        try:
            with closing(self._connections.connect()) as connection:
                # Waits until the server has ended what the lost connection began.
                self._locked(connection)
                return self._has(connection, change)
        except (LogUnavailableError, psycopg.Error) as error:
            raise LogUnavailableError(
                f"The connection to {self.address} was lost during a commit, and there is no new one "
                f"yet: what was appended may be stored or not. Read it before appending it again."
            ) from error

    def _has(self, connection: Connection, change: _Change) -> bool:
        if change.records:
            last = change.records[-1]
            text = "SELECT 1 FROM {records} WHERE position = %s AND chain = %s"
            found = connection.execute(self._sql(text), (last.position, last.chain))
            return found.fetchone() is not None

        stored: dict[str, int] = dict(
            connection.execute(self._sql("SELECT reader, position FROM {tracking}"))
        )
        return all(stored.get(reader, 0) >= at for reader, at in change.tracked.items())


@dataclass(slots=True)
class _Change:
    """What one transaction stores.

    Attributes:
        planner: Where the log stands with it.
        records: The records.
        tracked: Positions by reader.
    """

    planner: Planner
    records: list[Record] = field(default_factory=list)
    tracked: dict[str, int] = field(default_factory=dict)


class _Heads:
    """Looks up where streams and readers stand, for a planner that asks for each of them once."""

    def __init__(self, statements: Statements) -> None:
        self._sql = statements
        self._connection: Connection | None = None
        self._fetched: dict[str, int] = {}
        self._known: set[str] = set()

    def forget(self) -> None:
        """Begin anew, for a planner that knows nothing."""
        self._known.clear()

    def fetch(self, connection: Connection, requests: Sequence[Request]) -> None:
        """Look up at once what requests will ask for."""
        self._connection = connection
        if len(self._known) > _MOST_HEADS:
            self._known.clear()
        wanted = {record.stream for request in requests for record in request.records}
        wanted.update(*(request.expect for request in requests))
        wanted -= self._known
        found = connection.execute(self._sql(HEADS), (list(wanted),)) if wanted else ()
        self._fetched = {stream: version or 0 for stream, version in found}

    def head(self, stream: str) -> int:
        """Return the last version of a stream; 0 for one with no record."""
        self._known.add(stream)
        if stream in self._fetched:
            return self._fetched[stream]
        return self._number(HEAD, stream)

    def tracked(self, reader: str) -> int:
        """Return the position of a reader; 0 for one that stored none."""
        return self._number(TRACKED, reader)

    def _number(self, text: str, name: str) -> int:
        assert self._connection is not None
        found = self._connection.execute(self._sql(text), (name,)).fetchone()
        return found[0] if found else 0


def _tell(group: Sequence[PendingAppend], outcomes: Sequence[_Outcome]) -> None:
    for append, outcome in zip(group, outcomes, strict=True):
        if isinstance(outcome, VersionConflictError):
            append.fail(outcome)
        else:
            append.succeed(outcome)


def _as_stored(row: Row) -> StoredRow:
    position, stream, version, name, *rest = row
    return StoredRow(position, stream.encode(), version, name.encode(), *rest)


def _problem_with_end(verifier: Verifier, tip: Tip) -> str:
    if verifier.position != tip.position:
        return (
            f"The records end at position {verifier.position}; the log notes {tip.position} as its "
            f"last."
        )
    return "" if verifier.chain == tip.chain else "The last link is not the one the log notes."


def _snapshot_digest(snapshot: Snapshot) -> bytes:
    return link(
        GENESIS,
        digest_of(snapshot.payload),
        position=0,
        stream=snapshot.stream.encode(),
        version=snapshot.version,
        name=snapshot.label.encode(),
        time_ns=0,
        wall_ns=0,
    )


def _check_length(stream: str) -> None:
    if len(stream) > _LONGEST_NAME // 4 and len(stream.encode()) > _LONGEST_NAME:
        raise ConfigurationError(
            f"The name of a stream on PostgreSQL may have {_LONGEST_NAME} bytes in UTF-8; the one "
            f"that begins with {stream[:40]!r} has {len(stream.encode())}. Use a shorter one."
        )


def _bounds(after: int | None, until: int | None) -> tuple[int, int]:
    return _fitting(-1 if after is None else after), _fitting(_LARGEST if until is None else until)


def _fitting(number: int) -> int:
    return max(-_LARGEST, min(number, _LARGEST))

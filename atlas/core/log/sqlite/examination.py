"""Look through a file for the first record that is not what was appended."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from atlas.core.log.engine import Progress, Verification
from atlas.core.log.sqlite.file import LogFile, one
from atlas.core.log.sqlite.notes import examined_notes
from atlas.core.log.verification import ERASED, LOG_STREAM, StoredRow, Verifier

__all__ = ["erasure_notes", "examine", "stored_rows"]

_CHUNK: Final = 500

_ROWS: Final = (
    "SELECT position, stream, version, name, time_ns, wall_ns, payload, digest, chain FROM events "
    "LEFT JOIN streams ON streams.id = stream_id LEFT JOIN names ON names.id = name_id "
    "WHERE position > ? ORDER BY position LIMIT ?"
)


def examine(file: LogFile, progress: Progress | None) -> Verification:
    """Return what is wrong first; see `atlas.core.log.engine.Engine.verify`."""
    with file.readable() as (connection, problem):
        # One view of the file, whatever is written meanwhile.
        connection.execute("BEGIN")
        found = _examine(connection, progress)
        if file.has_notes and found.ok:
            count, wrong = examined_notes(connection)
            bad = found.records + 1 if wrong else None
            found = replace(found, bad_position=bad, problem=wrong, notes=count)
    if problem and found.ok:
        return replace(found, bad_position=0, problem=f"Every record is right, but: {problem}")
    return found


def _examine(connection: sqlite3.Connection, progress: Progress | None) -> Verification:
    try:
        verifier = Verifier(erasure_notes(connection))
        last = _last_position(connection)
    except sqlite3.DatabaseError as error:
        return Verification(0, 0, 1, f"SQLite cannot read the file: {error}.")

    for row, problem in judged(connection, verifier):
        if progress is not None and verifier.records % _CHUNK == 0:
            progress(verifier.records, max(last, verifier.records))
        if problem:
            position = row.position if row is not None else None
            missing = verifier.position + 1
            bad = min(missing, position) if isinstance(position, int) else missing
            return Verification(verifier.records, verifier.erased, max(bad, 1), problem)

    problem, bad = _problem_around(connection, verifier)
    if problem:
        return Verification(verifier.records, verifier.erased, bad, problem)
    if progress is not None:
        progress(verifier.records, verifier.records)
    return Verification(verifier.records, verifier.erased, None, "")


def judged(
    connection: sqlite3.Connection, verifier: Verifier
) -> Iterator[tuple[StoredRow | None, str]]:
    """Yield each record with what is wrong with it, up to the first with which something is."""
    try:
        for row in stored_rows(connection):
            problem = verifier.problem_with(row)
            yield row, problem
            if problem:
                return
    except sqlite3.DatabaseError as error:
        yield None, f"SQLite cannot read on after position {verifier.position}: {error}."


def stored_rows(connection: sqlite3.Connection, after: int = 0) -> Iterator[StoredRow]:
    """Yield the records as they are stored, by position."""
    while True:
        count = 0
        # One by one: those before a page that cannot be read are good.
        for row in connection.execute(_ROWS, (after, _CHUNK)):
            yield StoredRow(*row)
            after, count = row[0], count + 1
        if count < _CHUNK:
            return


def erasure_notes(connection: sqlite3.Connection) -> list[bytes]:
    """Return the payloads of the notes about what was erased."""
    rows = connection.execute(
        "SELECT payload FROM events WHERE stream_id = (SELECT id FROM streams WHERE stream = ?) "
        "AND name_id = (SELECT id FROM names WHERE name = ?) ORDER BY version",
        (LOG_STREAM, ERASED),
    ).fetchall()
    return [row[0] for row in rows if isinstance(row[0], bytes)]


def _last_position(connection: sqlite3.Connection) -> int:
    found = one(connection, "SELECT max(position) FROM events")[0]
    return found if isinstance(found, int) else 0


def _problem_around(connection: sqlite3.Connection, verifier: Verifier) -> tuple[str, int]:
    """Return what is wrong although each record is right, and the position to name for it."""
    tip = one(connection, "SELECT position, time_ns, chain FROM tip")
    if tip != (verifier.position, verifier.time_ns, verifier.chain):
        said = tip[0] if tip else "nothing"
        problem = (
            f"The log ends at position {verifier.position}, and says it ended at {said!r}: records "
            f"at the end are missing."
        )
        return problem, verifier.position + 1
    try:
        found = one(connection, "PRAGMA integrity_check(1)")[0]
    except sqlite3.DatabaseError as error:
        found = str(error)
    if found in (b"ok", "ok"):
        return "", 0
    text = found.decode(errors="replace") if isinstance(found, bytes) else str(found)
    return f"Every record is right, but the file around them is damaged: {text}.", 0

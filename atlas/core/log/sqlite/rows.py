"""What the rows of a log's file mean: numbers that stand for texts, and values that may be damaged."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from hashlib import sha256

# Any: the rows are of no type that Python could know.
from typing import Any, Final

from atlas.core.log.records import Record
from atlas.core.log.sqlite.file import one
from atlas.errors import LogCorruptedError

__all__ = ["Names", "Streams", "blob", "whole"]

_MOST_STREAMS: Final = 50_000


def whole(value: object) -> int:
    """Return a number, if a flipped bit has not made it something else."""
    if type(value) is not int:
        raise LogCorruptedError(
            f"A number in the log is {value!r}. `verify` says where, `repair` keeps what is good.",
            position=0,
        )
    return value


def blob(value: object) -> bytes:
    """Return bytes, if a flipped bit has not made them something else."""
    if type(value) is not bytes:
        raise LogCorruptedError(
            f"A link of the log is {value!r}. `verify` says where, `repair` keeps what is good.",
            position=0,
        )
    return value


class Streams:
    """The numbers that stand for streams, as they are stored. Safe for threads."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def id_of(self, connection: sqlite3.Connection, stream: str) -> int | None:
        """Return the number of a stream; None for one that has none."""
        found = self.known.get(stream)
        if found is not None:
            return found
        row = one(connection, "SELECT id FROM streams WHERE stream = ?", stream)
        if not row:
            return None
        found = whole(row[0])
        # A transaction may come to nothing.
        if not connection.in_transaction:
            self.remember(stream, found)
        return found

    def remember(self, stream: str, stream_id: int) -> None:
        """Take note of what is stored."""
        if len(self.known) > _MOST_STREAMS:
            self.known.clear()
        self.known[stream] = stream_id

    def head(self, connection: sqlite3.Connection, stream: str) -> int | None:
        """Return the last version of a stream; None when it has no record."""
        stream_id = self.id_of(connection, stream)
        if stream_id is None:
            return None
        head = one(connection, "SELECT max(version) FROM events WHERE stream_id = ?", stream_id)[0]
        return None if head is None else whole(head)

    def forget(self) -> None:
        """Take note that another file has other numbers."""
        self.known.clear()


class Names:
    """The names of records, by the numbers that stand for them. Safe for threads."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._known: dict[object, str] = {}

    def forget(self) -> None:
        """Take note that another file has other numbers."""
        self._known.clear()

    def records(
        self, connection: sqlite3.Connection, rows: list[Any], stream: str | None = None
    ) -> list[Record]:
        """Return the records of rows, which end with the stream if that is not given.

        Raises:
            LogCorruptedError: A payload is not what was appended, or a name is missing.
        """
        try:
            self._check_payloads(rows)
            return self._made(rows, stream)
        except KeyError:
            for name_id, position in {row[2]: row[0] for row in rows}.items():
                self._look_up(connection, name_id, position)
            return self._made(rows, stream)

    # Comprehensions, and not one loop that reads better: this is on the path of everything that is
    # rebuilt from a log, and takes three quarters of the time so.

    def _check_payloads(self, rows: list[Any]) -> None:
        found: list[object]
        try:
            found = [sha256(row[5]).digest() for row in rows]
        except TypeError:
            # One was erased, or is damaged.
            found = [_digest_if_any(row) for row in rows]
        if found != [row[6] for row in rows]:
            self._raise_changed(zip(found, rows, strict=True))

    def _raise_changed(self, found: Iterable[tuple[object, Any]]) -> None:
        position = next(row[0] for digest, row in found if digest != row[6])
        raise LogCorruptedError(
            f"The payload at position {position} of the log {self._address} is not what was "
            f"appended. `verify` looks for more damage, `repair` keeps what is before.",
            position=position,
        )

    def _made(self, rows: list[Any], stream: str | None) -> list[Record]:
        # Half the price of Record(...).
        new, names = tuple.__new__, self._known
        if stream is None:
            return [
                new(
                    Record,
                    (
                        position,
                        its,
                        version,
                        names[name_id],
                        time_ns,
                        wall_ns,
                        payload,
                        digest,
                        link,
                    ),
                )
                for position, version, name_id, time_ns, wall_ns, payload, digest, link, its in rows
            ]
        return [
            new(
                Record,
                (
                    position,
                    stream,
                    version,
                    names[name_id],
                    time_ns,
                    wall_ns,
                    payload,
                    digest,
                    link,
                ),
            )
            for position, version, name_id, time_ns, wall_ns, payload, digest, link in rows
        ]

    def _look_up(self, connection: sqlite3.Connection, name_id: object, position: int) -> None:
        found = one(connection, "SELECT name FROM names WHERE id = ?", name_id)
        if not found or not isinstance(found[0], str):
            raise LogCorruptedError(
                f"The record at position {position} of the log {self._address} has no name any more. "
                f"`verify` looks for more damage, `repair` keeps what is before.",
                position=position,
            )
        self._known[name_id] = found[0]


def _digest_if_any(row: Any) -> object:
    """Return the digest of a payload; of an erased one, what is stored; None for what is no payload."""
    payload = row[5]
    if payload is None:
        return row[6]
    return sha256(payload).digest() if type(payload) is bytes else None

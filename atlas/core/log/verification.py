"""Compare records with their hashes, one after the other; and read the log's notes about itself.

Engines share this. A `Verifier` is handed what is stored, column by column as the database returns
it, and trusts none of it: a flipped bit can turn a number into a text, or a payload into nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from atlas.core.log.chain import GENESIS, digest_of, link
from atlas.core.log.records import NewRecord, Record
from atlas.errors import ConfigurationError

__all__ = ["ERASED", "LOG_STREAM", "REPAIRED", "Erasure", "StoredRow", "Verifier", "repaired_note"]

LOG_STREAM: Final = "$log"
"""The stream in which a log keeps notes about itself. Its payloads cannot be erased."""

ERASED: Final = "$erased"
"""Name of the note that payloads were erased; an `Erasure` as JSON."""

REPAIRED: Final = "$repaired"
"""Name of the note that records were set aside. It may follow a gap in the positions."""

_LOG_STREAM: Final = LOG_STREAM.encode()
_REPAIRED: Final = REPAIRED.encode()


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was erased.

    Attributes:
        stream: From which stream.
        after: Above this version.
        until: Up to this one.
        records: How many payloads.
    """

    stream: str
    after: int
    until: int
    records: int

    @staticmethod
    def check(stream: str) -> None:
        """Raise `ConfigurationError` for a stream whose payloads must stay."""
        if stream == LOG_STREAM:
            raise ConfigurationError(
                f"The log's notes about itself, in {stream!r}, cannot be erased: they say what was."
            )

    def note(self) -> NewRecord:
        """Return the record that says so in the log."""
        return NewRecord(LOG_STREAM, ERASED, json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, payload: bytes) -> Erasure | None:
        """Return what a note says; None for one that cannot be read."""
        try:
            return cls(**json.loads(payload))
        except (ValueError, TypeError):
            return None


def repaired_note(first: int, last: int, saved_to: str) -> NewRecord:
    """Return the record that says that positions were set aside, and where they went."""
    said = {"first": first, "last": last, "saved_to": saved_to}
    return NewRecord(LOG_STREAM, REPAIRED, json.dumps(said).encode())


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A record as it is stored: of each column whatever the database made of its bytes."""

    position: object
    stream: object
    version: object
    name: object
    time_ns: object
    wall_ns: object
    payload: object
    digest: object
    chain: object

    @classmethod
    def of(cls, record: Record) -> StoredRow:
        """Return a record as it would be stored, texts in UTF-8."""
        return cls(
            record.position,
            record.stream.encode(),
            record.version,
            record.name.encode(),
            record.time_ns,
            record.wall_ns,
            record.payload,
            record.digest,
            record.chain,
        )


class Verifier:
    """Follows the chain.

    Attributes:
        position: The last position found right.
        time_ns: Its time.
        chain: Its link.
        records: How many were found right.
        erased: How many of them have no payload.

    Args:
        notes: The payloads of the notes about what was erased, in the order of the log.
    """

    def __init__(self, notes: Iterable[bytes] = ()) -> None:
        self.position: int = 0
        self.time_ns: int = 0
        self.chain: bytes = GENESIS
        self.records: int = 0
        self.erased: int = 0
        self._heads: dict[bytes, int] = {}
        self._erasures: dict[bytes, list[Erasure]] = {}
        for erasure in map(Erasure.read, notes):
            if erasure is not None:
                self._erasures.setdefault(erasure.stream.encode(), []).append(erasure)

    def problem_with(self, row: StoredRow) -> str:
        """Return what is wrong with the next record, in a sentence; "" when nothing is."""
        position, version, time_ns, wall_ns = row.position, row.version, row.time_ns, row.wall_ns
        stream, name, digest = row.stream, row.name, row.digest
        if not (
            isinstance(position, int)
            and isinstance(version, int)
            and isinstance(time_ns, int)
            and isinstance(wall_ns, int)
            and isinstance(stream, bytes)
            and isinstance(name, bytes)
            and isinstance(digest, bytes)
        ):
            return "A column holds something else than it should, or refers to nothing."
        note = stream == _LOG_STREAM and name == _REPAIRED
        if position != self.position + 1 and not note:
            return f"Position {self.position + 1} is missing; the next there is, is {position}."
        expected = link(
            self.chain,
            digest,
            position=position,
            stream=stream,
            version=version,
            name=name,
            time_ns=time_ns,
            wall_ns=wall_ns,
        )
        if expected != row.chain:
            return "The record does not match its link in the chain."
        problem = self._problem_with_payload(row.payload, digest, stream, version)
        if problem:
            return problem
        if time_ns <= self.time_ns or version <= self._heads.get(stream, 0):
            return "The record is not after the ones before, in time or in its stream."

        self.position, self.time_ns, self.chain = position, time_ns, expected
        self.records += 1
        self.erased += row.payload is None
        self._heads[stream] = version
        return ""

    def _problem_with_payload(
        self, payload: object, digest: bytes, stream: bytes, version: int
    ) -> str:
        if payload is None:
            erasures = self._erasures.get(stream, ())
            if any(erasure.after < version <= erasure.until for erasure in erasures):
                return ""
            return "The payload is gone, and the log does not say that it was erased."
        if not isinstance(payload, bytes) or digest_of(payload) != digest:
            return "The payload does not match its digest."
        return ""

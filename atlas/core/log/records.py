"""What a log is made of: records, and what is known of a stream of them.

Records are named tuples: a log makes them by the million, and a frozen dataclass costs five times
as much to make.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["NewRecord", "Record", "Snapshot"]


class NewRecord(NamedTuple):
    """A record to be appended.

    Attributes:
        stream: The stream it joins: any text that is not empty; ``$`` begins those of the log itself.
        name: What the payload is, such as ``order.placed@1``.
        payload: Its bytes; the log does not look inside.
        version: Its place in the stream, from 1 and above the last one there; None: the next.
        wall_ns: When it happened, by the clock on the wall, in ns since 1970; None: now.
        span: How many versions the next one is above the last one there, for a record that stands
            for several things; of no meaning where the version is given.
    """

    stream: str
    name: str
    payload: bytes
    version: int | None = None
    wall_ns: int | None = None
    span: int = 1


class Record(NamedTuple):
    """A record of a log. It never changes, but its payload may be erased.

    Attributes:
        position: Its place in the whole log, from 1; never given out twice.
        stream: The stream it was appended to.
        version: Its place in that stream.
        name: What the payload is.
        time_ns: When it was appended, in ns since 1970; above that of the record before, whatever the
            clock on the wall did.
        wall_ns: When it happened, as its writer said.
        payload: Its bytes; None when it was erased.
        digest: SHA-256 of the payload, also of an erased one.
        chain: SHA-256 over the record before and this one; see `atlas.core.log.chain`.
    """

    position: int
    stream: str
    version: int
    name: str
    time_ns: int
    wall_ns: int
    payload: bytes | None
    digest: bytes
    chain: bytes


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state computed from a stream, kept to save the time of computing it again.

    Attributes:
        stream: The stream it was computed from.
        version: The last record that went into it.
        label: What was computed, so that one stream may have snapshots of several states.
        payload: Its bytes.
    """

    stream: str
    version: int
    label: str
    payload: bytes

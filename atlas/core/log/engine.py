"""What every engine of the log does, whatever it keeps its records in."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

from atlas.core.log.records import NewRecord, Record, Snapshot
from atlas.errors import ConfigurationError

__all__ = [
    "Append",
    "Durability",
    "Engine",
    "Join",
    "Progress",
    "Repair",
    "Verification",
    "check_durability",
]

Durability: TypeAlias = Literal["power", "process", "lazy"]
"""What an acknowledged append survives: a power cut, the death of the process, or neither for sure
(it is written within a second)."""


def check_durability(durability: object) -> None:
    """Raise `ConfigurationError` if this is not one of `Durability`."""
    if durability not in get_args(Durability):
        raise ConfigurationError(
            f"durability is {durability!r}; use one of {', '.join(map(repr, get_args(Durability)))}."
        )


Progress: TypeAlias = Callable[[int, int], object]
"""Told (done, all) now and then during long work."""


Join: TypeAlias = Callable[[Sequence[bytes]], bytes]
"""Makes one payload of several, of records that follow one another."""


class Append(Protocol):
    """An append on its way: await it, or wait for it, to know that it is stored.

    An append that nobody waits for is stored all the same; if it fails, the engine's `flush` and
    `close` raise its error, so that it cannot get lost unnoticed.
    """

    @property
    def done(self) -> bool:
        """Whether it is stored, or has failed."""

    def wait(self, timeout: float | None = None) -> tuple[Record, ...]:
        """Block until it is stored; return the records as they are now in the log.

        Raises:
            VersionConflictError: A stream was not at the version expected, or a version is taken.
            LogUnavailableError: It could not be written (disk full, connection lost): nothing of it
                is. The text says so when that is not certain: a disk that does not sync, or a server
                that is gone, can leave it stored, as a whole.
            TimeoutError: It took longer; it may be stored yet.
        """

    def __await__(self) -> Generator[Any, Any, tuple[Record, ...]]: ...


@dataclass(frozen=True, slots=True)
class Verification:
    """What `Engine.verify` found.

    Attributes:
        records: How many records were looked at.
        erased: How many of them have no payload any more.
        bad_position: The first position that is not what was appended; None: all are.
        problem: What is wrong there, in a sentence; "" when nothing is.
        notes: How many notes are still to be entered, which are what was noted; see `Engine.note`.
    """

    records: int
    erased: int
    bad_position: int | None
    problem: str
    notes: int = 0

    @property
    def ok(self) -> bool:
        """Whether every record is what was appended."""
        return self.bad_position is None


@dataclass(frozen=True, slots=True)
class Repair:
    """What `Engine.repair` did.

    Attributes:
        kept: Records of the good prefix.
        set_aside: Records from the first bad position on, moved out of the log.
        saved_to: Where they went, for a person to look at; "" when there were none.
    """

    kept: int
    set_aside: int
    saved_to: str


class Engine(Protocol):
    """A log: records in one order, each in one stream, chained by hashes.

    Every method may be called from any thread. Appends are atomic: all records of one are stored,
    or none is; readers see them in the order of positions, without gaps that fill up later.
    """

    @property
    def address(self) -> str:
        """Where the log is: a path, ``:memory:``, or an address without its password."""

    # -- writing --

    def append(
        self,
        records: Sequence[NewRecord],
        *,
        expect: Mapping[str, int] | None = None,
        tracking: tuple[str, int] | None = None,
    ) -> Append:
        """Append records, in this order; returns at once.

        Args:
            records: What to append. No record and no tracking: the append is done, and empty.
            expect: The version at which streams must be, by name; 0 for one with no record.
            tracking: The name of a reader and the position in its source that these records result
                from, stored in the same transaction; one that is stored already is refused.
        """

    def note(self, records: Sequence[NewRecord], join: Join | None = None) -> bool:
        """Keep records in this thread, as safely as an append does, if that is quick.

        For an event loop, which must not stand still: a note costs a fraction of an append, and less
        than to have another thread do anything. It has no position yet. It gets one, in its place in its
        stream, before anything else is appended or read, here or elsewhere, by `flush` and by `close`.
        Where only reading is possible, `read` and `head` tell of it all the same.

        Args:
            records: Each says its version, above the last one of its stream, noted or not, and when it
                happened.
            join: Makes one payload of those of several notes of a stream that follow one another and
                have the same name; None: each becomes a record of its own.

        Returns:
            Whether they are kept. False: none of them is, and `append` has to do it: somebody has to
            be waited for, a stream or a name is new to this engine, a version is taken, the disk is slow.

        Raises:
            LogClosedError: The log is closed.
            LogUnavailableError: It may not be written, or is not where it was any more.
        """

    def flush(self, timeout: float | None = None) -> None:
        """Block until everything appended or noted so far is stored; raise what failed unnoticed."""

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
        """Return records of a stream by version: ``after`` < version <= ``until``.

        Raises:
            LogCorruptedError: A payload is not what was appended.
        """

    def read_all(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        limit: int | None = None,
        names: Sequence[str] = (),
        prefix: str = "",
    ) -> list[Record]:
        """Return records of the whole log by position.

        Args:
            after: Leave out this position and those before.
            until: Leave out the positions after this one.
            limit: No more than that many.
            names: Of these names only, when any are given.
            prefix: Of streams only whose name begins so.

        Raises:
            LogCorruptedError: A payload is not what was appended.
        """

    def head(self, stream: str) -> int | None:
        """Return the last version of a stream; None when it has no record."""

    def last_position(self, prefix: str = "") -> int | None:
        """Return the last position in streams whose name begins so; None when there is no record."""

    def position_at(self, time_ns: int) -> int:
        """Return the last position appended at this time or before; 0 when there is none."""

    def streams(self, prefix: str = "") -> list[str]:
        """Return the streams whose name begins so, in order of their first record."""

    def tracked(self, reader: str) -> int | None:
        """Return the highest position stored by ``tracking`` for a reader."""

    # -- following --

    def wait_beyond(self, position: int, timeout: float | None = None) -> bool:
        """Block until there is a record after this position, whichever process appended it.

        Returns:
            Whether there is; False when the time is up or the engine was closed.
        """

    # -- snapshots: a cache, not part of the chain --

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, instead of one of the same stream, label and version."""

    def snapshot(self, stream: str, label: str, until: int | None = None) -> Snapshot | None:
        """Return the latest snapshot at this version or before; None also when it is damaged."""

    def drop_snapshots(self, stream: str) -> None:
        """Forget all snapshots of a stream."""

    # -- keeping --

    def erase(self, stream: str, *, after: int | None = None, until: int | None = None) -> int:
        """Destroy payloads of a stream (and its snapshots); the chain still verifies.

        Returns:
            How many payloads were erased.
        """

    def verify(self, progress: Progress | None = None) -> Verification:
        """Read everything and compare it with its hashes."""

    def repair(self, progress: Progress | None = None) -> Repair:
        """Set everything from the first bad position on aside, so that the rest can be used."""

    def close(self) -> None:
        """Store what is on its way and let go of everything. Idempotent."""

    def disown(self) -> None:
        """Refuse everything from now on, and let go of nothing: it belongs to the parent process."""

"""What becomes of an append: which records it makes, or why it is refused.

Engines share this, so that they number, time and chain alike. Nothing here reads or writes; an
engine hands in how to look up what it has stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from types import MappingProxyType
from typing import Final, NamedTuple

from atlas.core.log.chain import GENESIS, link
from atlas.core.log.records import NewRecord, Record
from atlas.errors import ConfigurationError, SchemaError, VersionConflictError

__all__ = ["START", "Planner", "Request", "Tip"]

_LARGEST: Final = 2**63 - 1
_WIDEST: Final = 2**31 - 1
_MOST_HEADS: Final = 50_000
_NOTHING: Final[Mapping[str, int]] = MappingProxyType({})


class Tip(NamedTuple):
    """Where a log stands: what the next record is numbered, timed and chained after.

    Attributes:
        position: The highest position ever given out.
        time_ns: The time of the last record.
        chain: The link of the last record.
    """

    position: int
    time_ns: int
    chain: bytes


START: Final = Tip(0, 0, GENESIS)
"""Where an empty log stands."""


class Request(NamedTuple):
    """What a caller asked to append, checked.

    Attributes:
        records: The records.
        expect: The version at which streams must be.
        tracking: A reader and the position it has read up to.
        wall_ns: The time of records that name none.
    """

    records: tuple[NewRecord, ...]
    expect: Mapping[str, int]
    tracking: tuple[str, int] | None
    wall_ns: int

    @classmethod
    def checked(
        cls,
        records: Sequence[NewRecord],
        expect: Mapping[str, int] | None,
        tracking: tuple[str, int] | None,
        wall_ns: int,
    ) -> Request:
        """Return the request.

        Raises:
            SchemaError: A payload is no bytes.
            ConfigurationError: A text is none, is empty, holds NUL or lone surrogates; a number is
                none, or out of range.
        """
        records = tuple(records)
        for record in records:
            stream, name, payload, version, wall, span = record
            # Most are plain: told at a glance.
            if not (
                type(payload) is bytes
                and version is None
                and wall is None
                and span == 1
                and type(stream) is str
                and type(name) is str
                and stream
                and name
                and stream.isascii()
                and name.isascii()
                and "\0" not in stream
                and "\0" not in name
            ):
                _check(record)
        # Whatever got past here and cannot be stored would fail with all that is committed with it.
        if expect:
            for stream, version in expect.items():
                _check_text("stream", stream)
                _check_number("version expected", version, -_LARGEST, _LARGEST)
        if tracking is not None:
            reader, position = tracking
            _check_text("name of a reader", reader)
            _check_number("position tracked", position, -_LARGEST, _LARGEST)

        fields = (records, dict(expect) if expect else _NOTHING, tracking, wall_ns)
        # Half the price of cls(...), once for each append.
        return tuple.__new__(cls, fields)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to store and nothing to compare."""
        return not self.records and not self.expect and self.tracking is None


def _check(record: NewRecord) -> None:
    stream, name, payload, version, wall_ns, span = record
    if type(payload) is not bytes:
        raise SchemaError(
            f"The payload of a record must be bytes, not {type(payload).__name__}. Encode it first."
        )
    _check_text("stream", stream)
    _check_text("name of a record", name)
    if version is not None:
        _check_number("version of a record", version, 1, _LARGEST)
    if wall_ns is not None:
        _check_number("wall_ns of a record", wall_ns, -_LARGEST, _LARGEST)
    _check_number("span of a record", span, 1, _WIDEST)


def _check_number(what: str, number: object, least: int, most: int) -> None:
    if type(number) is not int or not least <= number <= most:
        raise ConfigurationError(
            f"The {what} must be an int from {least} to {most}; {number!r} is not."
        )


def _check_text(what: str, text: object) -> None:
    # PostgreSQL cannot hold NUL; lone surrogates have no UTF-8.
    if not isinstance(text, str) or not text or "\0" in text or not _is_utf8(text):
        raise ConfigurationError(
            f"The {what} must be a text that is not empty, without NUL and lone "
            f"surrogates; {text!r} is not."
        )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Planner:
    """Turns requests into records, one after the other.

    Not safe for threads: whoever may write to the log uses it. A refused request leaves it as it
    was. It believes to be the only writer; start a new one when somebody else wrote.

    Args:
        tip: Where the log stands.
        head: Returns the last version of a stream, 0 for none. Asked once for each stream.
        tracked: Returns the position stored for a reader, 0 for none. Asked once for each reader.
    """

    __slots__ = ("_head", "_heads", "_positions", "_tracked", "tip")

    def __init__(self, tip: Tip, head: Callable[[str], int], tracked: Callable[[str], int]) -> None:
        self.tip: Tip = tip
        self._head = head
        self._tracked = tracked
        self._heads: dict[str, int] = {}
        self._positions: dict[str, int] = {}

    @property
    def is_large(self) -> bool:
        """Whether it remembers so many streams that a new one should be made, between transactions."""
        return len(self._heads) > _MOST_HEADS

    def plan(self, request: Request, now_ns: int) -> tuple[Record, ...]:
        """Return the records a request becomes.

        Args:
            request: What to append.
            now_ns: The time now; when it is not above that of the last record, the next ns after
                that is taken.

        Raises:
            VersionConflictError: See `atlas.core.log.engine.Append.wait`.
        """
        if request.expect:
            self._check_expected(request.expect)
        if request.tracking is not None:
            self._check_tracking(*request.tracking)

        heads = self._heads
        position, time_ns, chain = self.tip
        if now_ns > time_ns:
            time_ns = now_ns - 1
        planned: list[Record] = []
        before: list[int] = []
        for stream, name, payload, version, wall_ns, span in request.records:
            head = heads.get(stream)
            if head is None:
                head = self._look_up(stream)
            if version is None:
                version = head + span
            elif version <= head:
                self._take_back(planned, before)
                raise _taken(stream, version, heads[stream])
            before.append(head)
            heads[stream] = version
            position += 1
            time_ns += 1
            if wall_ns is None:
                wall_ns = request.wall_ns
            digest = sha256(payload).digest()
            chain = link(
                chain,
                digest,
                position,
                stream.encode(),
                version,
                name.encode(),
                time_ns,
                wall_ns,
            )
            fields = (position, stream, version, name, time_ns, wall_ns, payload, digest, chain)
            # Half the price of Record(...), once for each record that is ever appended.
            planned.append(tuple.__new__(Record, fields))
        if planned:
            self.tip = tuple.__new__(Tip, (position, time_ns, chain))
        if request.tracking is not None:
            self._positions[request.tracking[0]] = request.tracking[1]
        return tuple(planned)

    def _take_back(self, planned: Sequence[Record], before: Sequence[int]) -> None:
        for record, head in zip(reversed(planned), reversed(before), strict=True):
            self._heads[record.stream] = head

    def _check_expected(self, expect: Mapping[str, int]) -> None:
        for stream, expected in expect.items():
            actual = self.head(stream)
            if actual != expected:
                raise VersionConflictError(
                    f"Stream {stream!r} was expected at version {expected} and is at version "
                    f"{actual}. Read what was appended meanwhile, then decide again.",
                    expected=expected,
                    actual=actual,
                )

    def known_head(self, stream: str) -> int | None:
        """Return the last version of a stream, without asking for it; None: it was not asked for yet."""
        return self._heads.get(stream)

    def head(self, stream: str) -> int:
        """Return the last version of a stream, 0 for none."""
        head = self._heads.get(stream)
        return self._look_up(stream) if head is None else head

    def _look_up(self, stream: str) -> int:
        head = self._heads[stream] = self._head(stream)
        return head

    def _check_tracking(self, reader: str, position: int) -> None:
        stored = self._positions.get(reader)
        if stored is None:
            stored = self._positions[reader] = self._tracked(reader)
        if position <= stored:
            raise VersionConflictError(
                f"Reader {reader!r} has stored position {stored} already; position {position} is "
                f"not beyond. What results from it is in the log.",
                expected=position - 1,
                actual=stored,
            )


def _taken(stream: str, version: int, head: int) -> VersionConflictError:
    return VersionConflictError(
        f"Version {version} of stream {stream!r} is taken: the stream is at version {head}. Read "
        f"what was appended meanwhile, then decide again.",
        expected=version - 1,
        actual=head,
    )

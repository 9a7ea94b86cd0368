"""When imported records were first appended: kept beside them, as the log gives each its own time."""

from __future__ import annotations

import json
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from atlas.core.log.engine import Engine
from atlas.core.log.records import NewRecord, Record

__all__ = ["Times", "times_of"]

_NAME = "$times@1"


@dataclass(frozen=True, slots=True)
class Times:
    """The times of the imported records of one stream.

    Attributes:
        versions: Their versions, rising.
        times: When each was first appended, in ns since 1970; never falling.
    """

    versions: Sequence[int]
    times: Sequence[int]

    def version_at(self, time_ns: int) -> int | None:
        """Return the last version appended at a time or before; None when none was."""
        index = bisect_right(self.times, time_ns)
        return self.versions[index - 1] if index else None

    def time_before(self, version: int) -> int:
        """Return when the record that contains a version, or the last before it, was appended."""
        return self.times[min(bisect_left(self.versions, version), len(self.times) - 1)]

    def time_of(self, version: int) -> int | None:
        """Return when a version was first appended; None for one that was not imported."""
        index = bisect_right(self.versions, version)
        is_here = index > 0 and self.versions[index - 1] == version
        return self.times[index - 1] if is_here else None

    def record(self, stream: str) -> NewRecord:
        """Return the record that keeps them."""
        content = [_steps(self.versions), _steps(self.times)]
        return NewRecord(_stream(stream), _NAME, zlib.compress(json.dumps(content).encode()))


def times_of(engine: Engine, stream: str) -> Times | None:
    """Return the times of the imported records of a stream; None for one that was not imported."""
    found: list[Record] = engine.read(_stream(stream), limit=1)
    if not found or found[0].payload is None:
        return None
    versions, times = json.loads(zlib.decompress(found[0].payload))
    return Times(list(accumulate(versions)), list(accumulate(times)))


def _stream(stream: str) -> str:
    return f"$times/{stream}"


def _steps(numbers: Sequence[int]) -> list[int]:
    """Return the first number and the difference of each to the one before: they are short."""
    return [*numbers[:1], *(after - before for before, after in pairwise(numbers))]

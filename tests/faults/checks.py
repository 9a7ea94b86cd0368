"""What is judged after a fault: that what was acknowledged is there, once, whole, and nothing else."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from faults.stores import Row, Store


def payload_of(batch: str, index: int, size: int, filling: str = "") -> bytes:
    """Return a payload that says which batch of how many records it belongs to."""
    return json.dumps({"batch": batch, "index": index, "of": size, "filling": filling}).encode()


def secret_of(stream: str) -> bytes:
    """Return the payload of what is erased."""
    return f"the secret of {stream}, ".encode() * 5


@dataclass(slots=True)
class Acknowledged:
    """What a writer was told is stored: lines of ``+ batch``, ``- erased stream``, ``/ forked timeline``."""

    batches: set[str] = field(default_factory=set)
    erased: set[str] = field(default_factory=set)
    forks: set[str] = field(default_factory=set)

    def read(self, lines: bytes) -> None:
        """Add complete lines; what a kill has cut off was never said."""
        for line in lines[: lines.rfind(b"\n") + 1].decode().splitlines():
            sign, name = line.split(" ", 1)
            {"+": self.batches, "-": self.erased, "/": self.forks}[sign].add(name)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a store.

    Attributes:
        lost: Batches that were acknowledged and are missing.
        torn: Batches of which a part is there.
        twins: Records that are there twice, or share a stream and version.
        kept: Streams whose erasure was acknowledged and that still have payloads.
        disordered: Positions or times that do not rise.
        records: How many records there are.
    """

    lost: list[str]
    torn: list[str]
    twins: list[str]
    kept: list[str]
    disordered: list[int]
    records: int

    @property
    def ok(self) -> bool:
        return not (self.lost or self.torn or self.twins or self.kept or self.disordered)


def judge(rows: Sequence[Row], acknowledged: Acknowledged) -> Verdict:
    found: dict[str, Counter[int]] = defaultdict(Counter)
    sizes: dict[str, int] = {}
    kept = []
    for row in rows:
        if row.stream.startswith("erase."):
            batch = row.stream.removeprefix("erase.")
            found[batch][row.version] += 1
            sizes[batch] = ERASABLE
            if row.payload is not None and row.stream in acknowledged.erased:
                kept.append(row.stream)
        else:
            assert row.payload is not None
            content = json.loads(row.payload)
            found[content["batch"]][content["index"]] += 1
            sizes[content["batch"]] = content["of"]
    places = Counter((row.stream, row.version) for row in rows)
    return Verdict(
        lost=sorted(acknowledged.batches - found.keys()),
        torn=[batch for batch, indexes in found.items() if len(indexes) != sizes[batch]],
        twins=[batch for batch, indexes in found.items() if max(indexes.values()) > 1]
        + [str(place) for place, times in places.items() if times > 1],
        kept=kept,
        disordered=[after.position for before, after in pairs(rows) if not rises(before, after)],
        records=len(rows),
    )


def examined(store: Store, acknowledged: Acknowledged) -> Verdict:
    """Judge a store by its records and by the forks it was said to have."""
    verdict = judge(store.rows(), acknowledged)
    missing = [name for name in sorted(acknowledged.forks) if not store.has_fork(name)]
    return replace(verdict, lost=verdict.lost + missing)


def pairs(rows: Sequence[Row]) -> Iterable[tuple[Row, Row]]:
    return itertools.pairwise(rows)


def rises(before: Row, after: Row) -> bool:
    timed = after.time_ns > before.time_ns or after.time_ns == 0
    return after.position > before.position and timed


ERASABLE = 3
"""How many records the writer appends to a stream that it then erases."""

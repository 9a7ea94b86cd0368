"""What making a message costs, against an unchecked frozen dataclass with slots.

Run ``python benchmarks/messages.py``; all contestants take turns in one process, the figures are
medians. The first column of ratios is the one to hold: it should stay at or below 1.0-1.1.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from atlas.core.messages import Event, Message, message, stamp

ROUNDS = 31
CALLS = 5_000


@dataclass(frozen=True, slots=True)
class PlainOrder:
    order_id: str
    total: float
    count: int
    paid: bool
    note: str | None = None


@message("benchmark.order")
class Order(Event):
    order_id: str
    total: float
    count: int
    paid: bool
    note: str | None = None


@dataclass(frozen=True, slots=True)
class PlainTagged:
    order_id: str
    total: float
    count: int
    tags: tuple[str, ...]
    notes: Mapping[str, str] = field(default_factory=dict)


@message("benchmark.tagged")
class Tagged(Event):
    order_id: str
    total: float
    count: int
    tags: tuple[str, ...]
    notes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PlainToken:
    reply: str
    index: int
    text: str


@message("benchmark.token")
class Token(Event):
    reply: str
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class PlainMark:
    reply: str


@message("benchmark.mark")
class Mark(Event):
    reply: str


ORDER = {"order_id": "A1", "total": 2.5, "count": 3, "paid": True, "note": "gift"}
TAGGED = {
    "order_id": "A1",
    "total": 2.5,
    "count": 3,
    "tags": ("a", "b"),
    "notes": {"by": "me", "to": "you"},
}
TOKEN = {"reply": "r-1", "index": 7, "text": " the"}
CASES: list[tuple[str, type, type, dict[str, object]]] = [
    ("5 fields", PlainOrder, Order, ORDER),
    ("5 fields, tuple and dict copied", PlainTagged, Tagged, TAGGED),
    ("3 fields (a token)", PlainToken, Token, TOKEN),
    ("1 field", PlainMark, Mark, {"reply": "r-1"}),
]


def loop(cls: type, fields: dict[str, object]) -> Callable[[], float]:
    """Return a function that times one call in ns; the call is written out, as in user code."""
    call = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    positional = ", ".join(repr(value) for value in fields.values())
    source = (
        f"def by_name():\n for _ in numbers: make({call})\n"
        f"def by_place():\n for _ in numbers: make({positional})\n"
    )
    names: dict[str, object] = {"make": cls, "numbers": range(CALLS)}
    exec(source, names)

    def timed(which: str) -> float:
        run = names[which]
        assert callable(run)
        start = time.process_time_ns()
        run()
        return (time.process_time_ns() - start) / CALLS

    return timed


def median_times() -> dict[tuple[str, str, str], float]:
    """Let all contestants take turns, so that a busy machine is as unfair to each."""
    runs = {
        (case, who): loop(cls, fields)
        for case, plain, ours, fields in CASES
        for who, cls in (("plain", plain), ("atlas", ours))
    }
    times: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for (case, who), timed in runs.items():
            for way in ("by_name", "by_place"):
                times.setdefault((case, who, way), []).append(timed(way))
    return {key: statistics.median(found) for key, found in times.items()}


def bytes_per_message() -> float:
    """Return what one kept, stamped message with fields and headers of its own takes."""
    count = 10_000
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    kept: list[Message] = []
    for number in range(count):
        made = Order(f"A{number}", number + 0.5, number, paid=True)
        origin = (1, number, 1_790_000_000_000_000_000 + number)
        stamp(made, (origin, None, origin, "run", None, NO_HEADERS, 0))
        kept.append(made)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / count


NO_HEADERS: Mapping[str, str] = {}


def main() -> None:
    print(f"Python {sys.version.split()[0]}; ns per message, ratio to the unchecked dataclass")
    times = median_times()
    print(f"{'':34} {'by name':>22} {'by place':>22}")
    for case, *_ in CASES:
        cells = []
        for way in ("by_name", "by_place"):
            plain, ours = times[case, "plain", way], times[case, "atlas", way]
            cells.append(f"{plain:6.0f} {ours:6.0f}  {ours / plain:5.2f}x")
        print(f"{case:34} {cells[0]:>22} {cells[1]:>22}")
    print(f"kept, stamped, with its own field values: {bytes_per_message():.0f} B")


if __name__ == "__main__":
    main()

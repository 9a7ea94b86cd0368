"""What making, reading and writing a message costs.

Run ``python benchmarks/messages.py``; all contestants take turns in one process, the figures are
medians. Making is compared with an unchecked frozen dataclass with slots; the first line should stay
at or below 1.0-1.1. Reading and writing are compared with marshmallow itself, and with pydantic and
msgspec where they are installed: load should stay at or above 12x marshmallow, dump at 5x.
"""

from __future__ import annotations

import contextlib
import enum
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from marshmallow import Schema, fields

from atlas.core.messages import Event, Message, message, stamp, value
from atlas.core.schema import decode, encode
from atlas.core.schema.compiled import compiled_for

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
class PlainNoted:
    order_id: str
    total: float
    count: int
    paid: bool
    notes: Mapping[str, str]


@message("benchmark.noted")
class Noted(Event):
    order_id: str
    total: float
    count: int
    paid: bool
    notes: Mapping[str, str]


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
NOTED = {"order_id": "A1", "total": 2.5, "count": 3, "paid": True, "notes": {"by": "me", "to": "x"}}
TOKEN = {"reply": "r-1", "index": 7, "text": " the"}
CASES: list[tuple[str, type, type, dict[str, object]]] = [
    ("5 fields", PlainOrder, Order, ORDER),
    ("5 fields, one a dict copied", PlainNoted, Noted, NOTED),
    ("5 fields, tuple and dict copied", PlainTagged, Tagged, TAGGED),
    ("3 fields (a token)", PlainToken, Token, TOKEN),
    ("1 field", PlainMark, Mark, {"reply": "r-1"}),
]


def loop(cls: type, data: dict[str, object]) -> Callable[[], float]:
    """Return a function that times one call in ns; the call is written out, as in user code."""
    call = ", ".join(f"{name}={value!r}" for name, value in data.items())
    positional = ", ".join(repr(value) for value in data.values())
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
        (case, who): loop(cls, data)
        for case, plain, ours, data in CASES
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


# -- reading and writing --------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class PlainPoint:
    x: float
    y: float


@value
class Point:
    x: float
    y: float


FLAT_TYPES = {
    "name": str, "place": str, "count": int, "size": int, "ratio": float, "share": float,
    "open": bool, "seen": bool, "note": str | None, "age": int | None,
}  # fmt: skip
FLAT = {
    "name": "x", "place": "here", "count": 1, "size": 123456, "ratio": 1.5, "share": 2.5,
    "open": True, "seen": False, "note": "a note", "age": None,
}  # fmt: skip
RICH_TYPES = {
    "key": UUID, "when": datetime, "colour": Colour, "price": Decimal, "tags": tuple[str, ...],
    "counts": dict[str, int], "point": Point, "number": int, "name": str, "note": str | None,
}  # fmt: skip
RICH = {
    "key": "12345678-1234-5678-1234-567812345678", "when": "2026-01-01T10:00:00+00:00",
    "colour": "red", "price": "1.50", "tags": ["a", "b"], "counts": {"a": 1, "b": 2},
    "point": {"x": 1.0, "y": 2.0}, "number": 1, "name": "x", "note": None,
}  # fmt: skip


class PointSchema(Schema):
    x = fields.Float(required=True)
    y = fields.Float(required=True)


class FlatSchema(Schema):
    """The flat fields as one would write them for marshmallow, without Atlas's stricter fields."""

    name = fields.String(required=True)
    place = fields.String(required=True)
    count = fields.Integer(required=True)
    size = fields.Integer(required=True)
    ratio = fields.Float(required=True)
    share = fields.Float(required=True)
    open = fields.Boolean(required=True)
    seen = fields.Boolean(required=True)
    note = fields.String(required=True, allow_none=True)
    age = fields.Integer(required=True, allow_none=True)


class RichSchema(Schema):
    """The rich fields, likewise."""

    key = fields.UUID(required=True)
    when = fields.AwareDateTime(required=True)
    colour = fields.Enum(Colour, by_value=True, required=True)
    price = fields.Decimal(required=True, as_string=True)
    tags = fields.List(fields.String(), required=True)
    counts = fields.Dict(keys=fields.String(), values=fields.Integer(), required=True)
    point = fields.Nested(PointSchema, required=True)
    number = fields.Integer(required=True)
    name = fields.String(required=True)
    note = fields.String(required=True, allow_none=True)


Contestants = dict[str, tuple[Callable[[], object], Callable[[], object]]]


def contestants(types: dict[str, object], data: dict[str, object]) -> Contestants:
    """Return load and dump of the same fields for everybody who is installed."""
    body = {"__annotations__": types, "__module__": __name__, "__qualname__": "f.<locals>.Made"}
    cls = message("benchmark.made")(type("Made", (Event,), body))
    compiled = compiled_for(cls)
    made = compiled.load(data)
    by_hand = RichSchema() if "key" in types else FlatSchema()
    found: Contestants = {
        "marshmallow": (lambda: by_hand.load(data), lambda: by_hand.dump(made)),
        "marshmallow, as derived": (
            lambda: compiled.schema.load(data),
            lambda: compiled.schema.dump(made),
        ),
        "atlas": (lambda: compiled.load(data), lambda: compiled.dump(made)),
        "atlas text": (lambda: compiled.load(json.loads(text)), lambda: compiled.dumps(made)),
        "atlas envelope": (lambda: decode(envelope), lambda: encode(made)),
    }
    text, envelope = compiled.dumps(made), encode(made)
    others = {name: PlainPoint if kind is Point else kind for name, kind in types.items()}
    with contextlib.suppress(ImportError):
        import pydantic

        made_of = {name: (kind, ...) for name, kind in others.items()}
        model = pydantic.create_model("Model", **made_of)
        instance = model.model_validate(data)
        found["pydantic"] = (
            lambda: model.model_validate(data),
            lambda: instance.model_dump(mode="json"),
        )
    with contextlib.suppress(ImportError):
        import msgspec

        struct = msgspec.defstruct("Struct", list(others.items()), frozen=True)
        whole = msgspec.convert(data, struct)
        found["msgspec"] = (
            lambda: msgspec.convert(data, struct),
            lambda: msgspec.to_builtins(whole),
        )
    return found


def schema_table(title: str, types: dict[str, object], data: dict[str, object]) -> None:
    """Print load and dump in us, and how many times faster than marshmallow each is."""
    runs = contestants(types, data)
    times: dict[tuple[str, int], list[float]] = {}
    for _ in range(ROUNDS):
        for who, pair in runs.items():
            for which, run in enumerate(pair):
                start = time.process_time_ns()
                for _ in range(100):
                    run()
                times.setdefault((who, which), []).append((time.process_time_ns() - start) / 1e5)
    median = {key: statistics.median(found) for key, found in times.items()}
    print(f"\n{title:34} {'load':>18} {'dump':>20}")
    for who in runs:
        cells = [
            f"{median[who, which]:8.2f} us {median['marshmallow', which] / median[who, which]:6.1f}x"
            for which in (0, 1)
        ]
        print(f"{who:34} {cells[0]} {cells[1]}")


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
    schema_table("10 flat fields", FLAT_TYPES, FLAT)
    schema_table("10 rich fields", RICH_TYPES, RICH)


if __name__ == "__main__":
    main()

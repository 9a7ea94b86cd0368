"""The compiled form of a schema does exactly what marshmallow does.

The differential test makes random message classes, random values and hostile inputs, and compares
the compiled functions with the marshmallow schema they were made from. ``ATLAS_SCHEMA_CASES`` sets
the number of cases (default 4,000; the full run is 120,000).
"""

from __future__ import annotations

import enum
import json
import math
import os
import pickle
import random
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal
from uuid import UUID

import marshmallow
import pytest
from marshmallow import validate

from atlas.core.messages import ALLOW_NAN, Event, message, value
from atlas.core.nodes import DOUBT
from atlas.core.schema.canonical import canonical_text
from atlas.core.schema.compiled import Compiled, compiled_for
from atlas.errors import ValidationError
from atlas.typing import JSON

CASES = int(os.environ.get("ATLAS_SCHEMA_CASES", "4000"))
CASES_PER_SCHEMA = 24


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Text(str):
    """What JSON never gives, and no field takes for a str."""

    __slots__ = ()


class Access(enum.Flag):
    READ = 1
    WRITE = 2


@value("fuzz.point")
class Point:
    x: float
    y: float = 0


@value("fuzz.point3")
class Point3(Point):
    z: float = 0


@value("fuzz.label")
class Label:
    text: str
    points: tuple[Point, ...] = ()


@value("fuzz.tree")
class Tree:
    name: str
    branches: tuple[Tree, ...] = ()


@dataclass(frozen=True)
class Plain:
    n: int
    names: tuple[str, ...] = ()


Random = random.Random
Maker = Callable[[Random], Any]


def text(rnd: Random) -> str:
    alphabet = 'abc "\\/\n\x00é漢😀\ud800\u2028$'
    return "".join(rnd.choice(alphabet) for _ in range(rnd.randrange(6)))


def moment(rnd: Random) -> datetime:
    zone = rnd.choice([UTC, timezone(timedelta(minutes=rnd.randrange(-800, 800)))])
    micro = rnd.choice([0, rnd.randrange(10**6)])
    return datetime(rnd.randrange(1, 9999), 3, 4, 5, 6, 7, micro, tzinfo=zone)


def number(rnd: Random) -> float:
    return rnd.choice([0.0, -0.0, 1.5, 1e300, -1e-300, rnd.uniform(-9, 9), 2.0**53])


def integer(rnd: Random) -> int:
    return rnd.choice([0, -1, 7, 2**31, 2**64, -(10**40), rnd.randrange(1000)])


def free(rnd: Random, depth: int = 0) -> Any:
    kinds: list[Maker] = [text, number, integer, lambda _: None, lambda _: True]
    if depth < 3:
        kinds += [
            lambda r: [free(r, depth + 1) for _ in range(r.randrange(3))],
            lambda r: {text(r): free(r, depth + 1) for _ in range(r.randrange(3))},
        ]
    return rnd.choice(kinds)(rnd)


def point(rnd: Random) -> Point:
    return rnd.choice([Point(number(rnd)), Point3(1.0, 2.0, number(rnd))])


def tree(rnd: Random, depth: int = 0) -> Tree:
    branches = [tree(rnd, depth + 1) for _ in range(rnd.randrange(3 - depth))] if depth < 3 else []
    return Tree(text(rnd), branches)


SCALARS: list[tuple[Any, Maker]] = [
    (str, text),
    (int, integer),
    (float, number),
    (bool, lambda r: r.random() < 0.5),
    (bytes, lambda r: r.randbytes(r.randrange(5))),
    (datetime, moment),
    (date, lambda r: moment(r).date()),
    (time, lambda r: moment(r).timetz()),
    (timedelta, lambda r: timedelta(r.randrange(99), microseconds=r.randrange(10**6))),
    (Decimal, lambda r: Decimal(r.randrange(-999, 999)).scaleb(-r.randrange(4))),
    (UUID, lambda r: UUID(int=r.getrandbits(128))),
    (Colour, lambda r: r.choice(list(Colour))),
    (Level, lambda r: r.choice(list(Level))),
    (Access, lambda r: r.choice([Access.READ, Access.READ | Access.WRITE, Access(0)])),
    (Literal["a", "b", 1, True], lambda r: r.choice(["a", "b", 1, True])),
    (Annotated[int, validate.Range(min=3)], lambda r: r.randrange(3, 9)),
    (Annotated[int | None, validate.Range(min=3)], lambda r: r.choice([None, 3, 10**30])),
    (Annotated[str, validate.Length(max=4)], lambda r: text(r)[:4]),
    (Annotated[float, ALLOW_NAN], lambda r: r.choice([1.5, math.inf, -math.inf, math.nan])),
    (JSON, free),
    (Point, point),
    (Label, lambda r: Label(text(r), [point(r)])),
    (Tree, tree),
    (Plain, lambda r: Plain(integer(r), (text(r),))),
]
UNIONS: list[tuple[Any, Maker]] = [
    (int | str, lambda r: r.choice([integer, text])(r)),
    (int | float, lambda r: r.choice([integer, number])(r)),
    (str | bytes | None, lambda r: r.choice([text, lambda s: s.randbytes(2), lambda _: None])(r)),
    (Point | Label, lambda r: r.choice([point(r), Label("x")])),
    (Label | None, lambda r: r.choice([None, Label(text(r))])),
    (Label | str, lambda r: r.choice([text(r), Label(text(r))])),
    (datetime | date | str, lambda r: r.choice([moment(r), moment(r).date(), text(r)])),
    (Colour | str | int, lambda r: r.choice([Colour.RED, text(r), integer(r)])),
    (
        tuple[int, ...] | frozenset[str] | dict[str, int],
        lambda r: r.choice([(1, 2), frozenset({"b", "a"}), {"k": 1}]),
    ),
    (Label | dict[str, int] | None, lambda r: r.choice([None, Label("x"), {"k": integer(r)}])),
    (Literal["auto", "none"] | Label, lambda r: r.choice(["auto", Label("x")])),
]
KEYS: list[tuple[Any, Maker]] = [
    (str, text),
    (int, integer),
    (UUID, lambda r: UUID(int=r.getrandbits(128))),
    (date, lambda r: moment(r).date()),
    (Colour, lambda r: r.choice(list(Colour))),
    (Literal["p", "q"], lambda r: r.choice("pq")),
]
HASHABLE = [
    *(pair for pair in SCALARS if pair[0] != JSON),
    (str | None, lambda r: r.choice([None, text(r)])),
    (UUID | None, lambda r: r.choice([None, UUID(int=r.getrandbits(128))])),
]


def a_type(rnd: Random, depth: int = 0) -> tuple[Any, Maker]:
    """Return a random annotation and a maker of values for it."""
    roll = rnd.random()
    if depth > 2 or roll < 0.5:
        return rnd.choice(SCALARS)
    if roll < 0.65:
        return rnd.choice(UNIONS)
    if roll < 0.75:
        inner, make = a_type(rnd, 3)
        return (inner if inner == JSON else inner | None), lambda r: r.choice([None, make(r)])
    if roll < 0.85:
        inner, make = a_type(rnd, depth + 1)
        return tuple[inner, ...], lambda r: [make(r) for _ in range(r.randrange(4))]
    if roll < 0.9:
        inner, make = rnd.choice(HASHABLE)
        return frozenset[inner], lambda r: {make(r) for _ in range(r.randrange(4))}
    if roll < 0.95:
        key, make_key = rnd.choice(KEYS)
        inner, make = a_type(rnd, depth + 1)
        return dict[key, inner], lambda r: {make_key(r): make(r) for _ in range(r.randrange(4))}
    first, second = a_type(rnd, depth + 1), a_type(rnd, depth + 1)
    return tuple[first[0], second[0]], lambda r: (first[1](r), second[1](r))


NAMES = [
    "a",
    "b",
    "zeta",
    "type",
    "cls",
    "load",
    "self",
    "data",
    "value",
    "count",
    "fields",
    "made",
]


def a_message(rnd: Random) -> tuple[type, dict[str, Maker]]:
    """Return a random message class and makers of values for its fields."""
    body: dict[str, Any] = {"__qualname__": "a_message.<locals>.Random", "__module__": __name__}
    annotations, makers = {}, {}
    for name in rnd.sample(NAMES, rnd.randrange(len(NAMES) // 2)):
        annotations[name], makers[name] = a_type(rnd)
        roll = rnd.random()
        if roll < 0.3:
            default, make = [makers[name](rnd)], makers[name]
            body[name] = field(default_factory=lambda d=default: d[0], kw_only=True)
            makers[name] = make
    body["__annotations__"] = annotations
    return message("fuzz.random")(type("Random", (Event,), body)), makers


HOSTILE: list[Any] = [
    None, True, 0, -1, 1.0, 5.7, "", "7", "NaN", "red", "RED", [], {}, [None], {"$type": "x"},
    {"$type": []}, {"x": 1}, {"$type": "fuzz.point", "x": 1}, {"$type": "fuzz.point3", "x": 1.5},
    {"$type": "bytes", "value": "AA=="}, {"$type": "bytes", "value": 1, "more": 2}, "AA==", "AA",
    "2026-01-01T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01", "20260101T000000Z", "12:00:00",
    10**5000, float("inf"), float("nan"), "1.50", "1.5e3", "Infinity", (1, 2), b"x", object(),
    "00000000-0000-0000-0000-000000000001", "00000000000000000000000000000001", {1: 2}, "\ud800",
    {"name": "x", "branches": [{"name": 1}]}, [[1]], [1, 1], ["a", 1], Text("red"), Text("1.50"),
    Text("2026-01-01"), Text("2026-01-01T00:00:00+00:00"), Text("12:00:00"), Text("AA=="),
    Text("00000000-0000-0000-0000-000000000001"), "AA==\n", "1.50 ", "1_0", "sNaN", "-0",
]  # fmt: skip


def hostile(rnd: Random, data: Any) -> Any:
    """Return the JSON values with something in them changed."""
    if isinstance(data, dict) and data and rnd.random() < 0.8:
        made = dict(data)
        key = rnd.choice(list(made))
        roll = rnd.random()
        if roll < 0.15:
            del made[key]
        elif roll < 0.25:
            made[rnd.choice(["extra", "$type", "", 5])] = rnd.choice(HOSTILE)
        else:
            made[key] = hostile(rnd, made[key])
        return made
    if isinstance(data, list) and data and rnd.random() < 0.7:
        made = list(data)
        at = rnd.randrange(len(made))
        made[at] = hostile(rnd, made[at])
        return made
    return rnd.choice(HOSTILE)


def outcome(load: Callable[[Any], Any], data: Any) -> tuple[Any, ...]:
    """Return what loading gives, in a form that tells -0.0, NaN, types and order apart."""
    try:
        made = load(data)
    except marshmallow.ValidationError as error:
        return "refused", repr(error.messages)
    except ValidationError as error:
        return "refused by the constructor", str(error)
    return "made", type(made), deep(made)


def deep(thing: Any) -> Any:
    if isinstance(thing, frozenset):
        return frozenset, sorted(repr(deep(item)) for item in thing)
    if isinstance(thing, dict):
        return type(thing), sorted(repr((deep(k), deep(v))) for k, v in thing.items())
    if isinstance(thing, tuple):
        return tuple, [deep(item) for item in thing]
    if hasattr(thing, "__dataclass_fields__"):
        return type(thing), [deep(getattr(thing, name)) for name in thing.__dataclass_fields__]
    return type(thing), repr(thing)


def test_compiled_and_marshmallow_agree_on_random_schemas():
    rnd = random.Random(int(os.environ.get("ATLAS_SCHEMA_SEED", "20261123")))
    loads = fast = 0
    while loads < CASES:
        cls, makers = a_message(rnd)
        compiled = compiled_for(cls)
        judge = compiled.schema
        for _ in range(CASES_PER_SCHEMA // 3):
            made = cls(**{name: make(rnd) for name, make in makers.items()})
            dumped = judge.dump(made)

            assert compiled.write(made) == dumped
            assert compiled.text(made) == canonical_text(dumped)

            wire = json.loads(json.dumps(dumped))
            good = judge.load(wire)
            assert deep(compiled.load(wire)) == deep(good)
            assert canonical_text(judge.dump(good)) == canonical_text(wire)
            for data in (wire, hostile(rnd, wire), hostile(rnd, wire)):
                assert outcome(compiled.load, data) == outcome(judge.load, data), data
                fast += compiled.read(data) is not DOUBT
                loads += 1

    assert fast > loads / 5


def both(cls: type) -> Compiled:
    return compiled_for(cls)


@pytest.mark.parametrize("data", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_values_in_each_field_are_refused_alike(data):
    names = {f"f{at}": pair for at, pair in enumerate(SCALARS + UNIONS)}
    body = {
        "__annotations__": {name: pair[0] for name, pair in names.items()},
        "__qualname__": "f.<locals>.Every",
        "__module__": __name__,
    }
    every = message("fuzz.every")(type("Every", (Event,), body))
    rnd = random.Random(1)
    valid = both(every).schema.dump(every(**{name: pair[1](rnd) for name, pair in names.items()}))
    for name in names:
        changed = {**valid, name: data}

        assert outcome(both(every).load, changed) == outcome(both(every).schema.load, changed), name


TIMES = [
    "2026-01-31T12:30:15", "2026-W05-6T12:30:15", "20260131T123015", "2026-01-31 12:30:15",
    "2026-01-31t12:30:15", "2026-01-31T12:30", "2026-01-31T1230", "2026-01-31T12:30:15.123456",
    "2026-01-31T12:30:15,123456", "2026-01-31T12:30:15.1", "2026-01-31T12:30:15.123456789",
    "2026-01-31T12:30:", "2026-01-31T12:30:1", "2026-01-31T24:00:00", "2026-01-31T12:30:60",
    "2026-02-30T12:30:15", "+026-01-31T12:30:15", "２026-01-31T12:30:15", "2026-01-31\ud800:30:15",
]  # fmt: skip
ZONES = [
    "", "Z", "z", "+00:00", "-00:00", "+02:00", "-23:59", "+24:00", "+0200", "+02", "+2:000", "+02:0",
    "+02:00:30", "+02:00:30.5", "+02:00:30.123456", "+02:00Z", "−02:00", "+02.00", "+02:00 ",
]  # fmt: skip


@message("fuzz.moment")
class Moment(Event):
    at: datetime


@pytest.mark.parametrize("zone", ZONES)
def test_every_form_of_a_datetime_is_taken_or_refused_alike(zone):
    for given in TIMES:
        data = {"at": given + zone}

        assert outcome(both(Moment).load, data) == outcome(both(Moment).schema.load, data), data


@message("fuzz.key")
class Key(Event):
    id: UUID


UUID_TEXT = "0123abcd-4567-89ab-cdef-0123456789ab"


def test_every_change_to_one_place_of_a_uuid_is_taken_or_refused_alike():
    assert both(Key).read({"id": UUID_TEXT}) == Key(UUID(UUID_TEXT))
    for place in range(36):
        for given in ("", "-", " ", "_", "A", "g", "0", "é", "٣", "00", "--"):
            data = {"id": UUID_TEXT[:place] + given + UUID_TEXT[place + 1 :]}

            assert outcome(both(Key).load, data) == outcome(both(Key).schema.load, data), data


def test_a_uuid_that_was_read_has_all_its_attributes():
    found = both(Key).read({"id": UUID_TEXT}).id

    assert (found.int, found.is_safe, found.version, str(found)) == (
        UUID(UUID_TEXT).int,
        UUID(UUID_TEXT).is_safe,
        UUID(UUID_TEXT).version,
        UUID_TEXT,
    )
    assert pickle.loads(pickle.dumps(found)) == found


def test_what_is_read_cannot_be_changed():
    for made in (both(Key).read({"id": UUID_TEXT}), both(Label).read({"text": "x"})):
        assert type(made) in (Key, Label)
        with pytest.raises(FrozenInstanceError):
            made.text = "y"
        with pytest.raises(FrozenInstanceError):
            del made.text


def test_classes_within_classes_are_read_however_deep_and_wide():
    made: Any = Point
    for depth in range(12):
        body = {
            "__annotations__": {f"f{at}": tuple[made, ...] for at in range(4)},
            "__qualname__": "f.<locals>.Level",
        }
        made = value("fuzz.level")(type("Level", (), body))
        data: Any = {"x": 1.0}
        for _ in range(depth + 1):
            data = {"f0": [data], "f1": [], "f2": [], "f3": []}

        assert both(made).read(data) == both(made).schema.load(data)


def test_a_plain_dataclass_made_at_run_time_is_read_and_written():
    made = make_dataclass("Made", [("x", int)], frozen=True)
    body = {"__annotations__": {"it": made}, "__qualname__": "f.<locals>.Holds"}
    holds = message("fuzz.holds")(type("Holds", (Event,), body))

    assert compiled_for(holds).load({"it": {"x": 1}}) == holds(made(1))


def test_a_generated_function_is_shown_in_tracebacks():
    import linecache

    compiled_for(Label).text(Label("x"))

    assert any("LabelSchema" in name for name in linecache.cache)

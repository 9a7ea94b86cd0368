"""Messages as bytes: one form for each value, old versions led up, hostile input refused."""

from __future__ import annotations

import asyncio
import enum
import json
import math
import random
import subprocess
import sys
from dataclasses import field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import marshmallow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import fields

from atlas.core.messages import (
    ALLOW_NAN,
    Event,
    FrozenDict,
    Message,
    message,
    stamp,
    value,
)
from atlas.core.schema import (
    UnknownMessage,
    canonical_text,
    decode,
    decode_fields,
    dump,
    encode,
    encode_fields,
    json_schema,
    load,
    schema_for,
    upcaster,
)
from atlas.core.schema.compact import pack, unpack
from atlas.errors import MigrationError, SchemaError, UnknownMessageError, ValidationError
from atlas.typing import JSON

T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@value("schema.point")
class Point:
    x: float
    y: float = 0.0


@value("schema.circle")
class Circle(Point):
    radius: float = 1.0


@value
class Page(Generic[T]):
    items: tuple[T, ...]


@message("schema.noted")
class Noted(Event):
    """Something was noted."""

    text: str
    count: int = 0
    free: JSON = None
    numbers: frozenset[int] = frozenset()
    ratio: float = 0.0


@value
class MaybeNan:
    ratio: Annotated[float, ALLOW_NAN]


@message("schema.nested")
class Nested(Event):
    name: str
    inner: tuple[Nested, ...] = ()


def there_and_back(made: Message) -> Message:
    binary = decode(encode(made, binary=True))
    text = decode(encode(made))
    assert text == binary
    assert type(text) is type(binary) is type(made)
    return text


def published(made: Message, **facts: Any) -> Message:
    origin = (5, 7, 1_790_000_000_123_456_789)
    stamp(
        made,
        (
            origin,
            facts.get("causation"),
            facts.get("correlation", origin),
            facts.get("run"),
            facts.get("source"),
            FrozenDict(facts.get("headers", {})),
            0,
        ),
    )
    return made


class TestEnvelope:
    def test_decode_gives_the_message_back_with_all_its_metadata(self):
        made = published(
            Noted("x"),
            causation=(5, 6, 10**18),
            run="r-1",
            source="me",
            headers={"b": "2", "a": ""},
        )
        again = there_and_back(made)

        for name in ("id", "sequence", "time_ns", "causation", "correlation", "run", "source"):
            assert getattr(again.meta, name) == getattr(made.meta, name) != None, name  # noqa: E711
        assert again.meta.headers == {"a": "", "b": "2"}
        assert again.meta.time == made.meta.time
        assert encode(again) == encode(made)

    def test_a_message_that_was_never_published_has_no_metadata(self):
        assert there_and_back(Noted("x")).meta.id is None

    def test_the_bytes_are_canonical(self):
        made = Noted("é", count=3, free={"b": 1, "a": [1.0, None]}, numbers={3, 1, 20})

        assert (
            encode(made)
            == (
                '{"fields":{"count":3,"free":{"a":[1.0,null],"b":1},"numbers":[1,20,3],'
                '"ratio":0.0,"text":"é"},"name":"schema.noted","version":1}'
            ).encode()
        )

    def test_other_processes_write_the_same_bytes(self):
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from test_schema import Noted, encode\n"
            "sys.stdout.buffer.write(encode(Noted('x', free={'z': 1, 'a': 2}, numbers=range(99))))"
        ).replace("range(99)", "set(range(99))")
        runs = {
            subprocess.run(
                [sys.executable, "-W", "error", "-c", code],
                capture_output=True,
                check=True,
                env={"PYTHONHASHSEED": seed, "PATH": ""},
            ).stdout
            for seed in ("1", "2")
        }

        assert runs == {encode(Noted("x", free={"z": 1, "a": 2}, numbers=set(range(99))))}

    def test_the_binary_form_is_smaller(self):
        made = published(Noted("x", free=list(range(50))), run="r-1")

        assert len(encode(made, binary=True)) < 0.85 * len(encode(made))

    @pytest.mark.parametrize(
        ("data", "field", "rule"),
        [
            (b"", "", "JSON"),
            (b"[]", "", "an object with name, version and fields"),
            (b"{}", "name", "the name"),
            (b'{"name":"schema.noted","version":"1","fields":{}}', "version", "an int"),
            (b'{"name":"schema.noted","version":1}', "fields", "an object with the fields"),
            (b'{"name":"schema.noted","version":1,"fields":[]}', "", "an object"),
            (
                b'{"name":"schema.noted","version":1,"fields":{},"x":1}',
                "x",
                "a key of the envelope",
            ),
            (b'{"name":"schema.noted","version":1,"fields":{}}', "text", "a value"),
            (
                b'{"name":"schema.noted","version":1,"fields":{"text":"x"},"meta":{}}',
                "meta.id",
                "a str",
            ),
            (
                b'{"name":"schema.noted","version":1,"fields":{"text":"x"},"meta":{"id":1}}',
                "meta.id",
                "a str",
            ),
            (
                b'{"name":"schema.noted","version":1,"fields":{"text":"x"},"meta":{"id":"x","headers":{"a":1}}}',
                "meta.headers.a",
                "a str",
            ),
            (
                b'{"name":"schema.noted","version":1,"fields":{"text":"x","nope":1}}',
                "nope",
                "known",
            ),
            (
                b'{"name":"schema.noted","version":1,"fields":{"text":"x","count":null}}',
                "count",
                "",
            ),
        ],
    )
    def test_what_is_no_message_is_refused_with_the_place(self, data, field, rule):
        with pytest.raises(ValidationError) as caught:
            decode(data)

        assert caught.value.field == field
        assert rule in caught.value.rule


class TestUnknownMessages:
    BYTES = b'{"fields":{"a":[1]},"meta":{"correlation":"i","id":"i"},"name":"schema.notet","version":1}'

    def test_an_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(UnknownMessageError, match=r"the nearest is 'schema\.noted'"):
            decode(self.BYTES)

    def test_keep_holds_it_and_writes_it_again_as_it_was(self):
        kept = decode(self.BYTES, unknown="keep")

        assert isinstance(kept, UnknownMessage)
        assert (kept.name, kept.version, kept.fields) == ("schema.notet", 1, {"a": (1,)})
        assert kept.meta.id == "i"
        assert encode(kept) == self.BYTES

    def test_a_payload_newer_than_the_code_is_unknown(self):
        data = b'{"fields":{},"name":"schema.noted","version":9}'

        with pytest.raises(UnknownMessageError, match="no version 9"):
            decode(data)
        assert decode(data, unknown="keep").version == 9


class TestMigrations:
    def test_an_old_payload_loads_as_todays_class_through_the_chain(self):
        @message("schema.moved", version=3)
        class Moved(Event):
            where: str
            count: int

        @upcaster("schema.moved", version=1)
        def rename(fields):
            return {"where": fields["place"]}

        @upcaster("schema.moved", version=2)
        def count(fields):
            return {**fields, "count": 1}

        data = b'{"fields":{"place":"x"},"name":"schema.moved","version":1}'

        assert decode(data) == Moved("x", 1)
        assert decode_fields("schema.moved", 2, b'{"where":"y"}') == Moved("y", 1)

    def test_a_renamed_message_is_found_under_its_new_name(self):
        @message("schema.renamed.new")
        class Renamed(Event):
            x: int

        @upcaster("schema.renamed.old", version=4, to=("schema.renamed.new", 1))
        def rename(fields):
            return fields

        assert decode_fields("schema.renamed.old", 4, b'{"x":1}') == Renamed(1)

    def test_a_missing_step_is_named(self):
        @message("schema.gap", version=3)
        class Gap(Event):
            x: int

        @upcaster("schema.gap", version=1)
        def first(fields):
            return fields

        with pytest.raises(MigrationError, match="leads on from version 2") as caught:
            decode_fields("schema.gap", 1, b'{"x":1}')

        assert (caught.value.from_version, caught.value.to_version) == (1, 3)

    def test_a_failing_step_is_named(self):
        @message("schema.broken", version=2)
        class Broken(Event):
            x: int

        @upcaster("schema.broken", version=1)
        def fails(fields):
            return {"x": fields["missing"]}

        with pytest.raises(MigrationError, match=r"fails failed on 'schema\.broken' version 1"):
            decode_fields("schema.broken", 1, b"{}")

    def test_a_circle_of_upcasters_is_told(self):
        @upcaster("schema.round", version=1, to=("schema.about", 1))
        def go(fields):
            return fields

        @upcaster("schema.about", version=1, to=("schema.round", 1))
        def come_back(fields):
            return fields

        with pytest.raises(
            MigrationError,
            match=r"in a circle: schema\.round 1 -> schema\.about 1 -> schema\.round 1",
        ):
            decode_fields("schema.round", 1, b"{}")

    @pytest.mark.parametrize(
        "place", [(5, 1), ("", 1), ("a", "1"), ("a", True), ("a", 1, 5), ("a", 1, ("a", "2"))]
    )
    def test_an_upcaster_of_what_is_no_version_is_refused(self, place):
        name, version, *to = place

        with pytest.raises(SchemaError, match=r"is no (name|version|message)"):
            upcaster(name, version=version, to=to[0] if to else None)

    @pytest.mark.parametrize("function", [5, asyncio.sleep])
    def test_an_upcaster_is_a_plain_function(self, function):
        with pytest.raises(SchemaError, match="is a plain function"):
            upcaster("schema.plain", version=1)(function)

    def test_an_upcaster_leads_forward(self):
        with pytest.raises(SchemaError, match="later version"):
            upcaster("schema.noted", version=2, to=("schema.noted", 1))

    def test_the_result_of_the_chain_is_checked(self):
        @message("schema.checked", version=2)
        class Checked(Event):
            x: int

        @upcaster("schema.checked", version=1)
        def wrong(fields):
            return {"x": "text"}

        with pytest.raises(ValidationError, match=r"schema\.checked\.x"):
            decode_fields("schema.checked", 1, b"{}")


class TestTraps:
    """What marshmallow, JSON or pickles get wrong; each is right here."""

    def check(self, annotation: Any, given: Any, written: Any) -> None:
        body = {"__annotations__": {"it": annotation}, "__qualname__": "f.<locals>.Trap"}
        trap = message("schema.trap")(type("Trap", (Event,), {**body, "__module__": __name__}))
        made = trap(given)

        assert dump(made) == {"it": written}
        assert there_and_back(made) == made
        assert json.loads(encode_fields(made)) == {"it": written}

    def test_bytes_are_base64_and_not_text(self):
        self.check(bytes, b"\x00\xff", "AP8=")

    def test_a_text_of_digits_in_a_union_stays_text(self):
        self.check(int | str, "7", "7")
        self.check(int | str, 7, 7)

    def test_int_and_float_in_a_union_stay_what_they_are(self):
        self.check(int | float, 1, 1)
        made = self.roundtrip(int | float, 1.0)

        assert type(made) is float

    def roundtrip(self, annotation: Any, given: Any) -> Any:
        body = {"__annotations__": {"it": annotation}, "__qualname__": "f.<locals>.Trap"}
        trap: Any = message("schema.trap")(type("Trap", (Event,), {**body, "__module__": __name__}))
        return there_and_back(trap(given)).it  # type: ignore[attr-defined]

    def test_members_of_a_union_that_look_alike_are_tagged(self):
        self.check(str | bytes, b"x", {"$type": "bytes", "value": "eA=="})
        self.check(str | bytes, "x", "x")
        self.check(Point | Nested, Point(1), {"$type": "schema.point", "x": 1.0, "y": 0.0})

    def test_two_members_of_one_name_are_refused(self):
        with pytest.raises(SchemaError, match="both be tagged 'tuple'"):
            self.roundtrip(tuple[int, ...] | tuple[str, ...], (1,))

    def test_a_subclass_of_the_annotated_class_comes_back_as_itself(self):
        self.check(Point, Circle(1), {"$type": "schema.circle", "x": 1.0, "y": 0.0, "radius": 1.0})
        self.check(Point, Point(1), {"x": 1.0, "y": 0.0})

    def test_enums_are_written_by_value(self):
        self.check(Colour, Colour.RED, "red")

    def test_a_literal_one_is_not_true(self):
        assert self.roundtrip(Literal[1, True, "x"], True) is True
        assert self.roundtrip(Literal[1, True, "x"], 1) is not True

    def test_annotated_rules_hold_when_reading(self):
        self.check(Annotated[str, fields.Email()], "a@example.org", "a@example.org")
        with pytest.raises(ValidationError, match="email"):
            self.roundtrip(Annotated[str, fields.Email()], "nonsense")

    def test_generics_are_read_as_what_they_hold(self):
        self.check(Page[Point], Page([Point(1)]), {"items": [{"x": 1.0, "y": 0.0}]})
        assert type(self.roundtrip(Page[datetime], Page([datetime.now(UTC)])).items[0]) is datetime

    def test_a_type_variable_left_open_cannot_be_written_with_objects(self):
        with pytest.raises(SchemaError, match="bind it"):
            dump(Page([Point(1)]))

    def test_sets_are_sorted(self):
        self.check(frozenset[str], {"b", "a", "c"}, ["a", "b", "c"])

    def test_decimals_keep_their_digits(self):
        self.check(Decimal, Decimal("1.500"), "1.500")
        self.check(Decimal, Decimal("1E+3"), "1E+3")

    def test_aware_datetimes_keep_the_moment(self):
        berlin = datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
        self.check(datetime, berlin, "2026-10-25T02:30:00+01:00")

    def test_durations_are_exact(self):
        self.check(timedelta, timedelta(days=10**6, microseconds=1), 86_400_000_000_000_001)

    def test_nan_is_text_where_it_is_declared(self):
        self.check(Annotated[float, ALLOW_NAN], math.inf, "Infinity")
        self.check(Annotated[float, ALLOW_NAN] | None, -math.inf, "-Infinity")
        assert math.isnan(load(MaybeNan, dump(MaybeNan(math.nan))).ratio)

    @pytest.mark.parametrize("text", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
    def test_nan_and_infinity_are_no_json(self, text):
        with pytest.raises(ValidationError):
            decode_fields("schema.noted", 1, b'{"text":"x","ratio":' + text + b"}")
        with pytest.raises(ValidationError):
            decode_fields("schema.noted", 1, b'{"text":"x","free":' + text + b"}")

    def test_huge_ints_are_exact_up_to_the_limit(self):
        big = 10**4300 - 1

        assert there_and_back(Noted("x", count=big)).count == big
        assert there_and_back(Noted("x", count=-(2**64) - 1)).count == -(2**64) - 1
        with pytest.raises(ValidationError):
            decode_fields("schema.noted", 1, b'{"text":"x","count":1' + b"0" * 4300 + b"}")

    def test_floats_are_no_ints(self):
        for text in (b"5.7", b"5.0", b"1e2"):
            with pytest.raises(ValidationError, match="an int"):
                decode_fields("schema.noted", 1, b'{"text":"x","count":' + text + b"}")

    def test_lone_surrogates_survive(self):
        made = Noted("a\ud800b\udfff", free={"\ud801": "\udc00"})

        assert there_and_back(made) == made
        assert b"\\ud800" in encode(made)

    def test_two_surrogates_that_form_a_pair_become_the_character(self):
        assert decode(encode(Noted("\ud83d\ude00"))).text == "😀"

    def test_keys_that_come_twice_are_refused(self):
        with pytest.raises(ValidationError, match="each key once"):
            decode_fields("schema.noted", 1, b'{"text":"x","text":"y"}')

    def test_nesting_is_bounded_when_reading(self):
        for data in (
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b'{"text":"' + b"[" * 300 + b'","x":["]"]',
        ):
            with pytest.raises(ValidationError):
                decode_fields("schema.noted", 1, data)

    def test_brackets_in_text_are_not_nesting(self):
        made = Noted("[" * 10_000 + '"\\')

        assert there_and_back(made) == made

    def test_nesting_is_bounded_when_writing(self):
        deep = Nested("x")
        for _ in range(5_000):
            deep = Nested("x", (deep,))

        with pytest.raises(ValidationError, match="nest"):
            encode(deep)

    def test_moderate_nesting_works(self):
        deep = Nested("x")
        for _ in range(90):
            deep = Nested("x", (deep,))

        assert there_and_back(deep) == deep

    def test_ten_megabytes_pass(self):
        made = Noted("x" * 10_000_000)

        assert there_and_back(made) == made

    def test_a_wrong_item_deep_inside_is_named(self):
        with pytest.raises(ValidationError) as caught:
            load(Nested, {"name": "x", "inner": [{"name": "y"}, {"name": 5}]})

        assert caught.value.message_name == "schema.nested"
        assert caught.value.field == "inner.1.name"
        assert caught.value.value == 5
        assert caught.value.rule == "a str"

    def test_base64_that_would_be_written_otherwise_is_refused(self):
        body = {"__annotations__": {"it": bytes}, "__qualname__": "f.<locals>.Trap"}
        trap = message("schema.trap")(type("Trap", (Event,), {**body, "__module__": __name__}))
        for text in ("AA", "AA==\n", "A A==", "AB=="):
            with pytest.raises(ValidationError, match="base64"):
                load(trap, {"it": text})


class TestSchemas:
    def test_the_schema_is_a_marshmallow_schema_by_class(self):
        schema = schema_for(Noted)

        assert isinstance(schema, marshmallow.Schema)
        assert schema is schema_for(Noted)
        assert (schema.message_name, schema.message_version) == ("schema.noted", 1)
        assert schema.load({"text": "x"}) == Noted("x")

    def test_an_undeclared_class_has_no_schema(self):
        with pytest.raises(SchemaError, match="not declared"):
            schema_for(int)

    def test_a_default_factory_is_called_for_a_missing_field(self):
        @message("schema.made")
        class Made(Event):
            tags: list[str] = field(default_factory=lambda: ["x"])

        assert load(Made, {}).tags == ("x",)

    def test_post_init_runs_when_reading(self):
        @message("schema.ruled")
        class Ruled(Event):
            low: int
            high: int

            def __post_init__(self):
                if self.high < self.low:
                    raise ValueError("high is below low")

        assert load(Ruled, {"low": 1, "high": 2}) == Ruled(1, 2)
        with pytest.raises(ValueError, match="below"):
            load(Ruled, {"low": 2, "high": 1})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_encode_then_decode_is_identity_for_any_json(free):
    made = Noted("x", free=free)

    assert there_and_back(made) == made


@given(json_values)
def test_canonical_text_and_cbor_are_read_back_as_they_were(free):
    assert json.loads(canonical_text(free)) == free
    assert unpack(pack(free)) == free
    assert pack(unpack(pack(free))) == pack(free)


@given(st.binary(max_size=60))
def test_random_bytes_are_refused_and_never_crash(data):
    for attempt in (data, b"\xa3" + data, b'{"name":' + data):
        with pytest.raises((ValidationError, SchemaError)):
            decode(attempt)


@pytest.mark.parametrize("binary", [False, True])
def test_damaged_bytes_are_refused_and_never_crash(binary):
    rnd = random.Random(3)
    made = published(Noted("x", free={"k": [1, None]}, numbers={1, 2}), run="r", headers={"a": "b"})
    data = encode(made, binary=binary)
    refused = 0
    for _ in range(2_000):
        damaged = bytearray(data)
        for _ in range(rnd.randrange(1, 4)):
            at = rnd.randrange(len(damaged))
            damaged[at : at + rnd.randrange(3)] = rnd.randbytes(rnd.randrange(3))
        try:
            decode(damaged)
        except (ValidationError, SchemaError):
            refused += 1

    assert refused > 1_000


def test_ids_of_a_decoded_message_are_the_original_ones():
    made = published(Noted("x"))
    again = decode(encode(made))

    assert UUID(again.meta.id) == UUID(made.meta.id)
    assert again.meta.correlation == made.meta.id


@pytest.mark.parametrize("data", ["{}", 5, None, 10**12])
def test_what_is_no_bytes_is_not_decoded(data):
    with pytest.raises(ValidationError, match="where bytes is expected"):
        decode(data)
    with pytest.raises(ValidationError, match="where bytes is expected"):
        decode_fields("schema.any", 1, data)


@pytest.mark.parametrize("ask", [encode, schema_for, json_schema, lambda thing: load(thing, {})])
def test_what_is_no_class_or_message_is_refused_by_the_schema_layer(ask):
    with pytest.raises(SchemaError, match=r"is no class|is not declared"):
        ask(5)


def test_a_name_or_version_that_cannot_be_one_is_refused():
    with pytest.raises(ValidationError, match="the name of a message type"):
        decode_fields(5, 1, b"{}")
    with pytest.raises(ValidationError, match=r"schema\.any\.version: '1'"):
        decode_fields("schema.any", "1", b"{}")

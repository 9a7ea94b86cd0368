"""Messages: checked, frozen, hashable, registered by name."""

from __future__ import annotations

import copy
import dataclasses
import enum
import importlib
import inspect
import pickle
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, NewType, TypeAlias, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from marshmallow import validate

from atlas.core.messages import (
    ALLOW_NAN,
    Command,
    Event,
    FrozenDict,
    Message,
    fillable,
    message,
    message_class,
    message_id,
    registered_messages,
    stamp,
    stamped_copy,
    value,
)
from atlas.errors import SchemaError, UnknownMessageError, ValidationError
from atlas.typing import JSON

OrderId = NewType("OrderId", str)
Amounts: TypeAlias = "tuple[float, ...]"
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


@value("test.item")
class Item:
    """Something ordered."""

    name: str
    price: float = 0


@dataclasses.dataclass(frozen=True)
class Address:
    street: str
    lines: tuple[str, ...] = ()


@message("test.order.placed")
class OrderPlaced(Event):
    """An order came in."""

    order_id: str
    total: float
    tags: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)


@message("test.everything")
class Everything(Event):
    flag: bool = True
    count: int = 0
    ratio: float = 0.0
    data: bytes = b""
    when: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    day: date = date(2026, 1, 1)
    at: time = time(12)
    span: timedelta = timedelta(1)
    price: Decimal = Decimal("1.50")
    key: UUID = UUID(int=1)
    colour: Colour = Colour.RED
    size: Size = Size.SMALL
    mode: Literal["a", "b", 3] = "a"
    order: OrderId = OrderId("x")
    amounts: Amounts = ()
    names: frozenset[str] = frozenset()
    pair: tuple[int, str] = (1, "x")
    free: JSON = None
    either: int | str | None = None
    numbers: float | int = 1
    address: Address = Address("High Street")
    by_day: Mapping[date, int] = field(default_factory=dict)
    nested: dict[str, list[dict[str, int]]] = field(default_factory=dict)
    positive: Annotated[int, validate.Range(min=1)] = 1
    even: Annotated[int, lambda number: number % 2 == 0] = 2
    anything: Annotated[float, ALLOW_NAN] = 0.0


@message("test.node")
class Node(Event):
    name: str
    children: tuple[Node, ...] = ()


@message("test.base")
class Base(Event):
    origin: str
    kind: ClassVar[str] = "base"


@message("test.derived")
class Derived(Base):
    extra: int = 0
    late: int = field(default=1, kw_only=True)


@value
class Page(Generic[T]):
    items: tuple[T, ...]


@message("test.paged")
class Paged(Event):
    page: Page[Item]


@message("test.numbers")
class Numbers(Event, Generic[T]):
    items: tuple[T, ...]


@message("test.ints")
class Ints(Numbers[int]):
    pass


@message("test.price.asked")
class PriceAsked(Command[float]):
    item: str


class TestConstruction:
    def test_fields_may_be_given_by_position_or_by_name(self):
        assert OrderPlaced("A1", 2.5) == OrderPlaced(order_id="A1", total=2.5)

    def test_an_int_is_converted_where_a_float_is_expected(self):
        order = OrderPlaced("A1", 250)

        assert type(order.total) is float

    def test_containers_become_immutable_all_the_way_down(self):
        event = Everything(nested={"a": [{"b": 1}]}, names={"x"}, amounts=[1, 2.5])

        assert event.nested == {"a": ({"b": 1},)}
        assert type(event.nested["a"][0]) is FrozenDict
        assert event.names == frozenset({"x"})
        assert event.amounts == (1.0, 2.5)

    def test_what_the_caller_does_to_his_containers_later_does_not_matter(self):
        tags, notes = ["a"], {"k": "v"}
        order = OrderPlaced("A1", 1.0, tags=tags, notes=notes)
        tags.append("b")
        notes["k"] = "changed"

        assert order.tags == ("a",)
        assert order.notes == {"k": "v"}

    def test_a_default_factory_makes_a_frozen_value_for_each_message(self):
        assert type(OrderPlaced("A1", 1.0).notes) is FrozenDict

    def test_keyword_only_fields_follow_inherited_ones(self):
        assert Derived("x", 2, late=3).late == 3
        with pytest.raises(ValidationError):
            Derived("x", 2, 3)

    def test_a_class_variable_is_no_field(self):
        assert [spec.name for spec in dataclasses.fields(Derived)] == ["origin", "extra", "late"]

    def test_a_recursive_message_holds_its_own_kind(self):
        assert Node("a", [Node("b")]).children[0].name == "b"

    def test_a_subclass_that_binds_a_type_variable_checks_it(self):
        assert Ints([1]).items == (1,)
        with pytest.raises(ValidationError, match="an int"):
            Ints(["x"])

    def test_a_generic_value_is_checked_where_its_variable_is_bound(self):
        assert Paged(Page([Item("x")])).page.items == (Item("x"),)
        with pytest.raises(ValidationError) as caught:
            Paged(Page(["x"]))

        assert caught.value.field == "page.items.0"

    def test_post_init_runs_after_the_checks_with_super(self):
        seen = []

        @message
        class Checked(Event):
            low: int

            def __post_init__(self):
                seen.append(self.low)

        @message
        class CheckedMore(Checked):
            high: int

            def __post_init__(self):
                super().__post_init__()
                if self.high < self.low:
                    raise ValueError("high is below low")

        CheckedMore(1, 2)
        with pytest.raises(ValueError, match="below"):
            CheckedMore(2, 1)
        with pytest.raises(ValidationError):
            CheckedMore("x", 1)

        assert seen == [1, 2]

    def test_local_classes_are_found_in_annotations_that_are_text(self):
        @value
        class Inner:
            x: int

        @message
        class Outer(Event):
            inner: Inner

        assert Outer(Inner(1)).inner.x == 1

    def test_a_name_defined_later_is_found_when_the_first_message_is_made(self):
        @message
        class Early(Event):
            late: Late

        @value
        class Late:
            x: int

        assert Early(Late(1)).late.x == 1

    def test_a_name_that_never_exists_is_named_when_the_first_message_is_made(self):
        @message
        class Lost(Event):
            field: Nowhere  # noqa: F821

        with pytest.raises(SchemaError, match="Nowhere"):
            Lost(1)

    def test_a_datetime_keeps_its_offset_and_not_its_zone(self):
        given = datetime(2026, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
        kept = Everything(when=given).when

        assert kept == given
        assert kept.tzinfo == timezone(timedelta(hours=2))

    def test_subclasses_of_builtin_types_become_the_plain_type(self):
        class Text(str):
            pass

        event = OrderPlaced(Text("A1"), 1.0, tags=[Text("x")])

        assert type(event.order_id) is str
        assert type(event.tags[0]) is str

    def test_the_signature_shows_the_fields(self):
        assert list(inspect.signature(Derived).parameters) == ["origin", "extra", "late"]

    def test_a_class_without_docstring_stays_without(self):
        assert Everything.__doc__ is None
        assert Item.__doc__ == "Something ordered."

    def test_mixins_bring_methods_and_an_undeclared_subclass_can_be_made(self):
        class Shown:
            __slots__ = ()

            def shown(self):
                return f"<{self.order_id}>"

        @message
        class Mixed(Shown, Event):
            order_id: str

        class Undeclared(Mixed):
            pass

        assert Mixed("A1").shown() == "<A1>"
        assert Undeclared("A1").shown() == "<A1>"
        assert Undeclared("A1") != Mixed("A1")

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="the syntax is new in 3.12")
    def test_type_parameters_and_aliases_of_newer_pythons_work(self):
        source = (
            "type Number = int | float\n"
            "type Row[T] = tuple[T, ...]\n"
            "@value\n"
            "class Box[T]:\n    items: Row[T]\n"
            "@message('test.newer')\n"
            "class Newer(Event):\n    box: 'Box[str]'\n    number: Number\n"
        )
        names = {"message": message, "value": value, "Event": Event, "__name__": __name__}
        exec(compile(source, "newer", "exec", dont_inherit=True), names)

        assert names["Newer"](names["Box"](["x"]), 1).box.items == ("x",)
        with pytest.raises(ValidationError):
            names["Newer"](names["Box"]([5]), 1)

    def test_many_threads_may_make_the_first_message(self):
        @message
        class Raced(Event):
            x: int

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(Raced, range(500)))

        assert [event.x for event in made] == list(range(500))

    def test_the_generated_constructor_is_shown_in_tracebacks(self):
        @message
        class Failing(Event):
            x: int

            def __post_init__(self):
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError) as caught:
            Failing(1)

        assert "_self.__post_init__()" in "".join(traceback.format_exception(caught.value))


class TestRefusal:
    @pytest.mark.parametrize(
        ("changes", "path", "rule"),
        [
            ({"flag": 1}, "flag", "a bool"),
            ({"count": True}, "count", "an int"),
            ({"count": 5.0}, "count", "an int"),
            ({"count": "7"}, "count", "an int"),
            ({"count": 10**5000}, "count", "an int of at most 4300 digits"),
            ({"ratio": float("nan")}, "ratio", "a finite float"),
            ({"ratio": float("inf")}, "ratio", "a finite float"),
            ({"ratio": 10**400}, "ratio", "a finite float"),
            ({"ratio": True}, "ratio", "a finite float"),
            ({"data": "text"}, "data", "bytes"),
            ({"when": datetime(2026, 1, 1)}, "when", "a datetime with a time zone"),  # noqa: DTZ001
            ({"day": datetime(2026, 1, 1, tzinfo=UTC)}, "day", "a date"),
            ({"price": Decimal("NaN")}, "price", "a finite Decimal"),
            ({"price": 1.5}, "price", "a finite Decimal"),
            ({"key": "00000000-0000-0000-0000-000000000001"}, "key", "a UUID"),
            ({"colour": "red"}, "colour", "a member of Colour"),
            ({"mode": "c"}, "mode", "one of 'a', 'b', 3"),
            ({"mode": True}, "mode", "one of 'a', 'b', 3"),
            ({"amounts": "12"}, "amounts", "a tuple or list, each item a finite float"),
            ({"amounts": (1.0, "x")}, "amounts.1", "a finite float"),
            ({"pair": (1,)}, "pair", "a tuple of 2: an int, a str"),
            ({"free": {"a": [1, object]}}, "free.a.1", None),
            ({"free": {1: 2}}, "free.1", "a str"),
            ({"free": float("inf")}, "free", "a finite float"),
            ({"either": 1.5}, "either", "an int or a str or None"),
            ({"address": Address("x", (1,))}, "address.lines.0", "a str"),
            ({"nested": {"a": [{"b": "c"}]}}, "nested.a.0.b", "an int"),
            ({"positive": 0}, "positive", None),
            ({"even": 3}, "even", "a value that passes <lambda>"),
        ],
    )
    def test_a_wrong_value_is_refused_with_field_value_and_rule(self, changes, path, rule):
        with pytest.raises(ValidationError) as caught:
            Everything(**changes)

        assert caught.value.message_name == "test.everything"
        assert caught.value.field == path
        assert rule is None or caught.value.rule == rule

    def test_the_words_of_a_marshmallow_validator_are_the_rule(self):
        with pytest.raises(ValidationError, match="greater than or equal to 1"):
            Everything(positive=0)

    def test_nan_is_taken_where_it_is_declared(self):
        assert Everything(anything=float("inf")).anything == float("inf")

    def test_a_missing_field_is_named(self):
        with pytest.raises(ValidationError, match="nothing was given") as caught:
            OrderPlaced(total=1.0)

        assert caught.value.field == "order_id"

    def test_an_unknown_field_is_named(self):
        with pytest.raises(ValidationError, match="a known field") as caught:
            OrderPlaced("A1", 1.0, colour="red")

        assert caught.value.field == "colour"

    def test_json_nested_without_end_is_refused(self):
        deep: Any = []
        for _ in range(200):
            deep = [deep]

        with pytest.raises(ValidationError, match="at most 100 deep"):
            Everything(free=deep)

    def test_a_class_without_the_decorator_cannot_be_made(self):
        class Plain(Event):
            x: int

        with pytest.raises(SchemaError, match="not declared as a message"):
            Plain(1)


class TestDeclaration:
    @pytest.mark.parametrize(
        ("annotation", "mend"),
        [
            (Any, "atlas.typing.JSON"),
            (object, "atlas.typing.JSON"),
            (Path, "keep the path as a str"),
            (list, r"tuple\[str, ...\]"),
            (dict, r"dict\[str, int\]"),
            (dict[float, str], "JSON has only text for keys"),
            (type[int], "no message can hold"),
            (complex, "no message can hold"),
        ],
    )
    def test_an_annotation_no_log_can_hold_is_refused_with_the_mend(self, annotation, mend):
        body = {"__annotations__": {"odd": annotation}, "__module__": __name__}

        with pytest.raises(SchemaError, match=mend) as caught:
            message("test.odd")(type("Odd", (Event,), body))

        assert f"{__name__}.Odd.odd" in str(caught.value)

    def test_a_rule_of_another_library_is_refused_instead_of_ignored(self):
        from annotated_types import Gt

        with pytest.raises(SchemaError, match="nobody would check"):

            @message
            class Foreign(Event):
                count: Annotated[int, Gt(0)]

    def test_a_mutable_dataclass_is_refused(self):
        @dataclasses.dataclass
        class Loose:
            x: int

        with pytest.raises(SchemaError, match="can be changed"):

            @message
            class Holder(Event):
                loose: Loose

    def test_a_wrong_default_is_refused(self):
        with pytest.raises(SchemaError, match="default 'x'"):

            @message
            class Wrong(Event):
                count: int = "x"

    def test_an_own_constructor_is_refused(self):
        with pytest.raises(SchemaError, match="__post_init__"):

            @message
            class Own(Event):
                def __init__(self):
                    pass

    def test_a_field_without_default_after_one_with_default_is_refused(self):
        with pytest.raises(SchemaError, match="kw_only"):

            @message
            class Mixed(Event):
                a: int = 1
                b: int

    def test_names_that_atlas_needs_are_refused(self):
        with pytest.raises(SchemaError, match="belong to Atlas"):

            @message
            class Clash(Event):
                meta: int

    def test_a_message_derives_from_event_or_command(self):
        with pytest.raises(SchemaError, match="neither Event nor Command"):

            @message
            class Loner:
                x: int

    @pytest.mark.parametrize("name", ["Order Placed", "order.*", "", ".x", "x."])
    def test_a_name_is_dotted_words(self, name):
        with pytest.raises(SchemaError, match="lower-case words"):
            message(name)

    @pytest.mark.parametrize("version", [0, -1, True, "1"])
    def test_versions_count_from_one(self, version):
        with pytest.raises(SchemaError, match="versions are ints from 1"):
            message("x", version=version)

    @pytest.mark.parametrize(
        ("class_name", "name"),
        [
            ("InvoiceSent", "invoice.sent"),
            ("HTTPRequestSent", "http.request.sent"),
            ("Ping", "ping"),
            ("OrderV2Placed", "order.v2.placed"),
        ],
    )
    def test_the_class_name_gives_the_message_name(self, class_name, name):
        made = message(type(class_name, (Event,), {"__qualname__": "f.<locals>." + class_name}))

        assert made.message_name == name
        assert made.message_version == 1


class TestValueSemantics:
    def test_a_message_cannot_be_changed(self):
        order = OrderPlaced("A1", 1.0)

        for name in ("total", "_stamp", "unknown"):
            with pytest.raises(dataclasses.FrozenInstanceError, match=r"dataclasses.replace"):
                setattr(order, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            del order.total
        with pytest.raises(dataclasses.FrozenInstanceError):
            Item("x").name = "y"

    def test_a_mapping_in_a_message_cannot_be_changed(self):
        notes = OrderPlaced("A1", 1.0, notes={"a": "b"}).notes

        for change in (
            lambda: notes.update(a="c"),
            lambda: notes.pop("a"),
            notes.clear,
            lambda: notes.setdefault("x", "y"),
            lambda: notes.__setitem__("a", "c"),
            lambda: notes.__ior__({"a": "c"}),
            lambda: notes.__delitem__("a"),
        ):
            with pytest.raises(TypeError, match="cannot be changed"):
                change()

    def test_equal_means_same_type_and_equal_fields(self):
        first, second = OrderPlaced("A1", 1.0), OrderPlaced("A1", 1.0)
        stamp(second, ((1, 1, 1), None, (1, 1, 1), None, None, {}, 0))

        assert first == second
        assert hash(first) == hash(second)
        assert Base("x") != Derived("x")
        assert first != ("A1", 1.0)

    def test_every_message_is_hashable(self):
        assert len({Everything(nested={"a": [{"b": 1}]}), Everything(names={"x"})}) == 2

    def test_repr_is_the_call_that_makes_it(self):
        assert repr(Item("x", 2)) == "Item(name='x', price=2.0)"

    @pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
    def test_pickling_keeps_fields_and_stamp(self, protocol):
        order = OrderPlaced("A1", 1.0, notes={"a": "b"}, items=[Item("x")])
        stamp(order, ((1, 2, 3), None, (1, 2, 3), "run", None, FrozenDict(a="b"), 0))
        again = pickle.loads(pickle.dumps(order, protocol))

        assert again == order
        assert again.meta.id == order.meta.id
        assert again.meta.headers == {"a": "b"}

    def test_copies_are_equal(self):
        order = OrderPlaced("A1", 1.0, notes={"a": "b"})

        assert copy.copy(order) == order
        assert copy.deepcopy({"x": order}) == {"x": order}

    def test_replace_checks_and_forgets_the_stamp(self):
        order = OrderPlaced("A1", 1.0)
        stamp(order, ((1, 1, 1), None, (1, 1, 1), None, None, {}, 0))
        changed = dataclasses.replace(order, total=2)

        assert changed == OrderPlaced("A1", 2.0)
        assert changed.meta.id is None
        with pytest.raises(ValidationError):
            dataclasses.replace(order, total="x")

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is new in 3.13")
    def test_copy_replace_works(self):
        assert copy.replace(OrderPlaced("A1", 1.0), total=2) == OrderPlaced("A1", 2.0)

    def test_messages_match_by_position(self):
        match OrderPlaced("A1", 1.0):
            case OrderPlaced(order_id, total):
                assert (order_id, total) == ("A1", 1.0)

    def test_asdict_works(self):
        assert dataclasses.asdict(Item("x", 1)) == {"name": "x", "price": 1.0}


class TestMetadata:
    def test_a_message_that_nobody_published_has_no_metadata(self):
        meta = OrderPlaced("A1", 1.0).meta

        assert (meta.name, meta.version) == ("test.order.placed", 1)
        assert meta.id is meta.time is meta.sequence is meta.causation is meta.correlation is None
        assert meta.headers == {}

    def test_a_stamp_shows_as_metadata(self):
        order = OrderPlaced("A1", 1.0)
        now = 1_790_000_000_123_456_789
        stamp(order, ((7, 2, now), (7, 1, now - 5), "first", "run", "me", {"a": "b"}, 1))
        meta = order.meta

        assert meta.id == message_id((7, 2, now))
        assert UUID(meta.id).version == 7
        assert meta.sequence == 2
        assert meta.time_ns == now
        assert meta.time == datetime(2026, 9, 21, 14, 13, 20, 123456, tzinfo=UTC)
        assert meta.causation == message_id((7, 1, now - 5))
        assert meta.correlation == "first"
        assert (meta.run, meta.source, meta.headers) == ("run", "me", {"a": "b"})

    def test_ids_sort_by_time_then_sequence(self):
        ids = [message_id((9, n, t)) for t in (10**18, 10**18 + 10**6) for n in (1, 2)]

        assert ids == sorted(ids)
        assert len(set(ids)) == 4

    def test_a_message_from_a_log_keeps_id_sequence_and_time(self):
        order = OrderPlaced("A1", 1.0)
        stamp(order, (("the-id", 5, 10**18), "cause", "first", None, None, {}, 0))

        assert order.meta.id == "the-id"
        assert order.meta.sequence == 5
        assert order.meta.time_ns == 10**18

    def test_a_stamped_copy_is_equal_and_has_its_own_stamp(self):
        order = OrderPlaced("A1", 1.0, tags=["x"])
        stamp(order, ((1, 1, 1), None, (1, 1, 1), None, None, {}, 0))
        again = stamped_copy(order, None)

        assert again == order
        assert again.meta.id is None
        assert order.meta.id is not None


class TestRegistry:
    def test_a_message_is_found_by_name_and_version(self):
        assert message_class("test.order.placed") is OrderPlaced
        assert message_class("test.order.placed", 1) is OrderPlaced
        assert OrderPlaced in registered_messages()

    def test_the_highest_version_is_the_one_without_a_number(self):
        @message("test.versioned", version=2)
        class Second(Event):
            x: int

        @message("test.versioned", version=1)
        class First(Event):
            x: int

        assert message_class("test.versioned") is Second
        assert message_class("test.versioned", 1) is First

    def test_an_unknown_name_is_refused_with_the_nearest(self):
        with pytest.raises(UnknownMessageError, match=r"the nearest is 'test\.order\.placed'"):
            message_class("test.order.plaxed")

    def test_an_unknown_version_is_refused_with_the_known_ones(self):
        with pytest.raises(UnknownMessageError, match="no version 9; declared are 1"):
            message_class("test.order.placed", 9)

    def test_two_classes_that_claim_one_name_are_refused(self, tmp_path, monkeypatch):
        source = "from atlas.core.messages import *\n@message('test.claimed')\nclass {}(Event):\n x: int\n"
        (tmp_path / "claim_one.py").write_text(source.format("One"))
        (tmp_path / "claim_two.py").write_text(source.format("Two"))
        monkeypatch.syspath_prepend(tmp_path)
        importlib.import_module("claim_one")

        with pytest.raises(SchemaError, match=r"claim_two\.Two and claim_one\.One both claim"):
            importlib.import_module("claim_two")

    def test_a_reloaded_module_takes_its_own_names_again(self, tmp_path, monkeypatch):
        source = "from atlas.core.messages import *\n@message('test.reloaded')\nclass One(Event):\n x: int\n"
        (tmp_path / "reloaded_one.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module("reloaded_one")
        importlib.reload(module)

        assert message_class("test.reloaded") is module.One

    def test_a_notebook_cell_may_run_again(self):
        cell = "@message('test.cell')\nclass Cell(Event):\n    x: int\n"
        names = {"message": message, "Event": Event, "__name__": "__main__"}
        exec(cell, names)
        exec(cell, names)

        assert message_class("test.cell") is names["Cell"]

    def test_a_script_works_and_may_import_itself(self, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            textwrap.dedent("""
            from __future__ import annotations
            from atlas.core.messages import Event, message, message_class

            @message
            class Pinged(Event):
                number: int
                again: Pinged | None = None

            if __name__ == "__main__":
                import script
                assert message_class("pinged") is script.Pinged
                print(Pinged(1, Pinged(2)))
            """)
        )
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=False
        )

        assert done.stdout == "Pinged(number=1, again=Pinged(number=2, again=None))\n", done.stderr


TYPED = """
from dataclasses import field, replace
from typing import Generic, TypeVar, reveal_type

from atlas.core.messages import Command, Event, message, value

T = TypeVar("T")

@value
class Page(Generic[T]):
    items: tuple[T, ...]

@message("order.placed", version=1)
class OrderPlaced(Event):
    order_id: str
    total: float
    tags: list[str] = field(default_factory=list)

@message
class PriceAsked(Command[float]):
    item: str

order = OrderPlaced(order_id="A1", total=250.0)
reveal_type(order)  # R: OrderPlaced
reveal_type(Page((1,)).items)  # R: tuple[int, ...]
replace(order, total=3.0)
PriceAsked("x")
order.total = 3  # E: read-only
OrderPlaced(order_id=1, total=2.0)  # E: incompatible type
OrderPlaced("x")  # E: Missing positional argument
OrderPlaced("x", 1.0, nope=1)  # E: Unexpected keyword
"""


def test_type_checkers_know_the_fields(tmp_path):
    api = pytest.importorskip("mypy.api", reason="mypy is in the lint group")
    file = tmp_path / "typed.py"
    file.write_text(TYPED)
    report, errors, _ = api.run(["--strict", "--cache-dir", str(tmp_path / "cache"), str(file)])
    said = {
        int(line.split(":")[1]): line for line in report.splitlines() if line.startswith(str(file))
    }
    expected = {
        number: line.split(": ", 1)[-1]
        for number, line in enumerate(TYPED.splitlines(), 1)
        if "  # R: " in line or "  # E: " in line
    }

    assert said.keys() == expected.keys(), report + errors
    for number, words in expected.items():
        assert words in said[number]


def test_importing_messages_loads_no_schema_library():
    code = (
        "import sys, atlas.core.messages\n"
        "print([n for n in ('marshmallow', 'pyrsistent', 'asyncio') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_a_command_knows_the_type_of_its_answer_only_for_type_checkers():
    asked = PriceAsked(item="x")

    assert isinstance(asked, Message)
    assert asked == PriceAsked("x")


def test_no_class_that_is_told_of_its_subclasses_is_told_of_one_that_nobody_wrote():
    told = []

    class Told:
        __slots__ = ()

        def __init_subclass__(cls, **options):
            told.append(cls.__name__)

    class Meta(type):
        def __init__(cls, *arguments):
            told.append(cls.__name__)

    @value("told.child")
    class Child(Told):
        a: int
        b: int
        c: int
        d: int

    @value("told.meta")
    class Made(metaclass=Meta):
        a: int

    told.clear()

    assert fillable(Child) is None
    assert fillable(Made) is None
    assert Child(1, 2, 3, 4) == Child(a=1, b=2, c=3, d=4)
    assert told == []


def test_what_is_filled_is_an_instance_like_any_other():
    @value("told.wide")
    class Wide:
        a: int
        b: int = 2

    made = object.__new__(fillable(Wide))
    made.a, made.b = 1, 2
    made.__class__ = Wide

    assert made == Wide(1)
    assert hash(made) == hash(Wide(1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.a = 2


def test_a_subclass_that_is_not_declared_is_checked_and_frozen_like_the_declared_one():
    @value("told.known")
    class Known:
        a: int
        b: int
        c: int
        d: int

    class Unknown(Known):
        pass

    made = Unknown(1, 2, 3, 4)

    assert (made.a, made.b, made.c, made.d) == (1, 2, 3, 4)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.a = 2
    with pytest.raises(ValidationError):
        Unknown(1, 2, 3, "4")

"""The published contract: JSON Schemas, samples, drift, promises kept to released versions."""

from __future__ import annotations

import enum
import json
import sys
import textwrap
from dataclasses import field, make_dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import pytest
from jsonschema import Draft202012Validator
from marshmallow import validate

from atlas.core.annotations import description_of
from atlas.core.messages import ALLOW_NAN, Event, message, value
from atlas.core.schema import decode_fields, dump, encode_fields, json_schema, load, upcaster
from atlas.core.schema.export import check, discover, export, release
from atlas.core.schema.jsonschema import breaking_changes
from atlas.core.schema.reference import reference
from atlas.core.schema.samples import invalid_samples, valid_samples
from atlas.errors import SchemaError, ValidationError
from atlas.typing import JSON

T = TypeVar("T")
ROOT = Path(__file__).parents[2]


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@value("export.point")
class Point:
    """A place."""

    x: float
    y: float = 0


@value("export.tree")
class Tree:
    name: str
    branches: tuple[Tree, ...] = ()


@message("export.everything")
class Everything(Event):
    """One of each kind of field."""

    text: Annotated[str, validate.Length(min=2), "two letters or more"]
    number: Annotated[int, validate.Range(min=1, max=9)]
    ratio: Annotated[float, ALLOW_NAN]
    when: datetime
    colour: Colour
    mode: Literal["a", "b"]
    data: bytes
    points: tuple[Point, ...]
    names: frozenset[str]
    by_number: dict[int, Point]
    pair: tuple[int, str]
    either: Point | Tree | bytes | str
    free: JSON
    tree: Tree
    note: str | None = None
    tags: list[str] = field(default_factory=list)


def at_least(number: int) -> Any:
    return Annotated[int, validate.Range(min=number)]


short: Any = Annotated[str, validate.Length(max=3)]


def is_even(number: int) -> bool:
    return number % 2 == 0


def made(name: str, /, version: int = 1, **annotations: Any) -> type[Event]:
    """Make a message type of these fields."""
    body = {
        "__annotations__": annotations,
        "__module__": __name__,
        "__qualname__": "made.<locals>.Made",
    }
    return message(name, version=version)(type("Made", (Event,), body))


class TestJsonSchema:
    def test_it_is_a_valid_schema_of_the_dialect_it_names(self):
        Draft202012Validator.check_schema(json_schema(Everything))

    def test_it_says_name_version_fields_and_rules(self):
        schema = json_schema(Everything)

        assert schema["$id"] == "urn:atlas:message:export.everything:1"
        assert schema["description"] == "One of each kind of field."
        assert schema["properties"]["number"] == {"type": "integer", "minimum": 1, "maximum": 9}
        assert schema["properties"]["text"]["description"] == "two letters or more"
        assert schema["properties"]["note"] == {"type": ["string", "null"], "default": None}
        assert schema["properties"]["points"]["items"] == {"$ref": "#/$defs/export.point"}
        assert schema["additionalProperties"] is False
        assert "note" not in schema["required"]

    @pytest.mark.parametrize(
        "cls", [Everything, *discover()], ids=lambda cls: description_of(cls).name
    )
    def test_the_samples_are_what_schema_and_code_say_they_are(self, cls):
        judge = Draft202012Validator(json_schema(cls))
        valid, invalid = valid_samples(cls), invalid_samples(cls)

        assert valid
        assert invalid
        for sample in valid:
            judge.validate(sample)
            made = load(cls, sample)
            name, version = made.message_name, made.message_version
            assert decode_fields(name, version, encode_fields(made)) == made
        for sample in invalid:
            assert not judge.is_valid(sample["fields"])
            with pytest.raises(ValidationError) as caught:
                load(cls, sample["fields"])
            assert caught.value.field == sample["field"]


@value("export.branch")
class Branch(Generic[T]):
    leaf: T
    branches: tuple[Branch[T], ...] = ()


def test_a_generic_value_that_holds_itself_has_a_schema_and_is_read_back():
    cls = made("export.recursive", numbers=Branch[int], names=Branch[str])
    tree = cls(Branch(1, (Branch(2),)), Branch("a", (Branch("b"),)))

    assert sorted(json_schema(cls)["$defs"]) == ["export.branch", "export.branch.2"]
    assert load(cls, json.loads(json.dumps(dump(tree)))) == tree
    with pytest.raises(ValidationError, match="an int"):
        load(cls, dump(cls(Branch(1), Branch("a"))) | {"numbers": {"leaf": "x"}})


class TestBreakingChanges:
    @pytest.mark.parametrize(
        ("old", "new", "broken"),
        [
            ({"a": int}, {"a": int}, False),
            ({"a": int}, {"a": float}, False),
            ({"a": float}, {"a": int}, True),
            ({"a": int}, {"a": int | None}, False),
            ({"a": int | None}, {"a": int}, True),
            ({"a": int | None}, {"a": int | str | None}, False),
            ({"a": int | str}, {"a": int}, True),
            ({"a": int}, {"a": JSON}, False),
            ({"a": JSON}, {"a": int}, True),
            ({"a": Literal["x"]}, {"a": Literal["x", "y"]}, False),
            ({"a": Literal["x", "y"]}, {"a": Literal["x"]}, True),
            ({"a": Literal["x"]}, {"a": str}, False),
            ({"a": str}, {"a": Literal["x"]}, True),
            ({"a": Colour}, {"a": Literal["red", "blue", "green"]}, False),
            ({"a": int}, {"b": int}, True),
            ({"a": int}, {"a": int, "b": int}, True),
            ({"a": tuple[int, ...]}, {"a": tuple[float, ...]}, False),
            ({"a": tuple[str, ...]}, {"a": tuple[int, ...]}, True),
            ({"a": tuple[str, ...]}, {"a": frozenset[str]}, True),
            ({"a": frozenset[str]}, {"a": tuple[str, ...]}, False),
            ({"a": tuple[int, int]}, {"a": tuple[int, int, int]}, True),
            ({"a": dict[str, int]}, {"a": dict[str, int | None]}, False),
            ({"a": dict[str, int]}, {"a": dict[int, int]}, True),
            ({"a": str}, {"a": datetime}, True),
            ({"a": Annotated[int, validate.Range(min=1)]}, {"a": int}, False),
            ({"a": int}, {"a": Annotated[int, validate.Range(min=1)]}, True),
            ({"a": Point}, {"a": Point | None}, False),
            ({"a": Point}, {"a": Point | Tree}, True),
            ({"a": Tree}, {"a": Tree}, False),
            # read, but as something else
            ({"a": bytes}, {"a": str}, True),
            ({"a": bytes}, {"a": str | bytes}, True),
            ({"a": bytes}, {"a": JSON}, True),
            ({"a": datetime}, {"a": str}, True),
            # told by the values alone
            ({"a": Literal["x"]}, {"a": int}, True),
            ({"a": Literal[1]}, {"a": float}, False),
            ({"a": Colour}, {"a": int}, True),
            ({"a": Annotated[float, ALLOW_NAN]}, {"a": float}, True),
            # bounds
            ({"a": at_least(1)}, {"a": at_least(2)}, True),
            ({"a": at_least(2)}, {"a": at_least(1)}, False),
            ({"a": Annotated[str, validate.Length(max=4)]}, {"a": short}, True),
            ({"a": short}, {"a": Annotated[str, validate.Length(max=4)]}, False),
            (
                {"a": Annotated[int, validate.Range(min=1), validate.Range(max=5)]},
                {"a": int},
                False,
            ),
            ({"a": int}, {"a": Annotated[int, validate.Range(min=1), validate.Range(max=5)]}, True),
            (
                {"a": Annotated[int, validate.Range(max=5)]},
                {"a": Annotated[int, validate.Range(min=1), validate.Range(max=5)]},
                True,
            ),
            # rules of one's own
            ({"a": int}, {"a": Annotated[int, is_even]}, True),
            ({"a": Annotated[int, is_even]}, {"a": Annotated[int, is_even]}, False),
            ({"a": Annotated[int, is_even]}, {"a": int}, False),
            ({"a": str}, {"a": Annotated[str, validate.NoneOf(["x"])]}, True),
        ],
    )
    def test_a_change_breaks_when_old_payloads_are_no_longer_read(self, old, new, broken):
        before, after = (
            json_schema(made("export.old", **old), rules=True),
            json_schema(made("export.new", **new), rules=True),
        )

        assert bool(breaking_changes(before, after)) is broken, breaking_changes(before, after)

    def test_a_new_field_with_a_default_breaks_nothing(self):
        @message("export.more")
        class More(Event):
            a: int
            b: int = 1

        assert breaking_changes(json_schema(made("export.less", a=int)), json_schema(More)) == []

    def test_another_default_breaks_what_payloads_without_the_field_mean(self):
        @message("export.defaulting_old")
        class Old(Event):
            a: int = 5
            b: bool = True

        @message("export.defaulting_new")
        class New(Event):
            a: int = 6
            b: bool = True

        assert breaking_changes(json_schema(Old), json_schema(New)) == [
            "a has another default: 5, now 6"
        ]
        assert breaking_changes(json_schema(Old), json_schema(Old)) == []

    def test_a_change_inside_a_nested_value_is_found_with_its_path(self):
        old = json_schema(made("export.a", at=make_dataclass("It", [("x", int)], frozen=True)))
        new = json_schema(made("export.b", at=make_dataclass("It", [("x", str)], frozen=True)))

        assert breaking_changes(old, new) == ["at.x no longer takes integer"]


class TestFolder:
    def test_export_then_check_finds_no_difference(self, tmp_path):
        changed = export(tmp_path, [Everything])

        assert changed == [
            "export.everything/1.json",
            "export.everything/1.samples.json",
            "index.json",
        ]
        assert check(tmp_path, [Everything]) == []
        assert export(tmp_path, [Everything]) == []

    def test_check_names_what_drifted(self, tmp_path):
        export(tmp_path, [made("export.drift", a=int), Everything])
        (tmp_path / "export.everything/1.json").unlink()
        found = check(tmp_path, [made("export.drift", a=str), Everything])

        assert "export.everything/1.json is missing: run the export." in found
        assert "export.drift/1.json differs from the code: run the export." in found

    def test_a_message_that_is_gone_leaves_no_files_behind(self, tmp_path):
        export(tmp_path, [made("export.gone", a=int), Everything])

        assert "export.gone/1.json describes what the code no longer has." in check(
            tmp_path, [Everything]
        )
        assert "export.gone/1.json" in export(tmp_path, [Everything])
        assert check(tmp_path, [Everything]) == []

    def test_a_breaking_change_to_a_released_version_is_refused(self, tmp_path):
        export(tmp_path, [made("export.promise", a=int)])

        assert release(tmp_path, "1.0") == ["export.promise 1"]

        before = (tmp_path / "export.promise/1.json").read_text()
        changed = [made("export.promise", a=str)]
        with pytest.raises(SchemaError, match=r"released in 1\.0\): a no longer takes integer"):
            export(tmp_path, changed)
        assert any("no longer takes integer" in line for line in check(tmp_path, changed))
        assert (tmp_path / "export.promise/1.json").read_text() == before

    @pytest.mark.parametrize("damage", ["not JSON", "[]", '{"messages": [5]}'])
    def test_a_damaged_index_is_told_by_its_path(self, tmp_path, damage):
        (tmp_path / "index.json").write_text(damage)

        with pytest.raises(SchemaError, match=r"index\.json"):
            check(tmp_path, [Everything])

    def test_a_promise_that_is_lost_is_told(self, tmp_path):
        export(tmp_path, [Everything])
        release(tmp_path, "1.0")
        (tmp_path / "export.everything" / "1.json").unlink()

        assert any(
            "is missing, so nobody can tell" in each for each in check(tmp_path, [Everything])
        )
        with pytest.raises(SchemaError, match="is missing, so nobody can tell"):
            export(tmp_path, [Everything])

    def test_a_harmless_change_to_a_released_version_is_taken(self, tmp_path):
        export(tmp_path, [made("export.kept", a=int)])
        release(tmp_path, "1.0")

        assert "export.kept/1.json" in export(tmp_path, [made("export.kept", a=int | None)])

    def test_a_released_version_stays_readable_through_an_upcaster(self, tmp_path):
        export(tmp_path, [made("export.next", a=int)])
        release(tmp_path, "1.0")
        newer = made("export.next", version=2, b=int)

        @upcaster("export.next", version=1)
        def rename(fields):
            return {"b": fields["a"]}

        export(tmp_path, [newer])
        index = json.loads((tmp_path / "index.json").read_text())

        assert [(entry["version"], entry["released"]) for entry in index["messages"]] == [
            (1, "1.0"),
            (2, None),
        ]
        assert (tmp_path / "export.next/1.json").is_file()

    def test_discovery_imports_only_modules_that_declare_messages(self, tmp_path, monkeypatch):
        package = tmp_path / "some_slice"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "broken.py").write_text("import a_package_that_is_not_installed\n")
        (package / "messages.py").write_text(
            textwrap.dedent("""
            from atlas.core.messages import Event, message

            @message("some.slice.started")
            class Started(Event):
                x: int
            """)
        )
        monkeypatch.syspath_prepend(tmp_path)

        assert [cls.message_name for cls in discover("some_slice")] == ["some.slice.started"]
        assert "some_slice.broken" not in sys.modules

    def test_an_unknown_package_is_refused(self):
        with pytest.raises(SchemaError, match="no package 'no_such_package'"):
            discover("no_such_package")


def test_the_published_contract_is_that_of_the_code():
    assert check(ROOT / "schemas") == []


def test_the_published_reference_is_that_of_the_code():
    page = ROOT / "docs" / "reference" / "messages.md"

    assert page.read_text(encoding="utf-8") == reference()


def test_the_reference_names_every_message_with_fields_and_a_payload():
    page = reference([Everything])

    assert "## export.everything" in page
    assert "| `number` | `int` |  |  |" in page
    assert "| `text` | `str` |  | two letters or more |" in page
    assert r"| `note` | `str \| None` | `None` |  |" in page
    assert "## export.point" in page

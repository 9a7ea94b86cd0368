"""Patches: what `diff` says is what `apply_patch` does, and it is RFC 6902."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from enum import Enum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import m, v

from atlas.core.patches import apply_patch, diff, plain
from atlas.core.persistent import PMap, PVector, freeze, pmap, pvector
from atlas.errors import PatchError, StateError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    count: int = 1
    colour: Colour = Colour.RED


@dataclass(frozen=True, slots=True)
class Order:
    lines: PVector[Line]
    notes: PMap[str, str]
    tags: frozenset[str] = frozenset()


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([0.0, 1.0, 2.5])
    | st.sampled_from(["", "a", "b", "a/b", "~1", "é"])
)
keys = st.sampled_from(["a", "b", "c", "a/b", "m~n", "", "0"])
documents = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def strict(document: object) -> str:
    """Tell True from 1, which ``==`` does not."""
    return json.dumps(_numbers_as_floats(document), sort_keys=True)


def _numbers_as_floats(document):
    if isinstance(document, dict):
        return {key: _numbers_as_floats(item) for key, item in document.items()}
    if isinstance(document, list):
        return [_numbers_as_floats(item) for item in document]
    if isinstance(document, int) and not isinstance(document, bool):
        return float(document)
    return document


@settings(max_examples=300, deadline=None, derandomize=True)
@given(before=documents, after=documents)
def test_applying_the_difference_leads_from_one_to_the_other(before, after):
    untouched = json.dumps(before)
    patch = diff(before, after)

    assert strict(apply_patch(before, patch)) == strict(after)
    assert strict(apply_patch(before, json.loads(json.dumps(patch)))) == strict(after)
    assert json.dumps(before) == untouched
    assert (patch == ()) == (strict(before) == strict(after))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(before=documents, after=documents)
def test_persistent_values_stay_persistent(before, after):
    old, new = freeze(before), freeze(after)
    result = apply_patch(old, diff(old, new))

    assert strict(plain(result)) == strict(after)
    if isinstance(before, dict) and isinstance(after, dict):
        assert isinstance(result, PMap)
        assert result == new
    if isinstance(before, list) and isinstance(after, list):
        assert isinstance(result, PVector)
        assert result == new


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.integers(0, 200),
    changes=st.lists(
        st.tuples(st.integers(0, 220), st.none() | st.integers(0, 3) | st.booleans()), max_size=60
    ),
)
def test_big_maps_that_share_most_of_what_they_hold_are_compared_right(size, changes):
    before = pmap({str(number): number % 3 for number in range(size)})
    after = before
    for key, value in changes:
        after = after.discard(str(key)) if value is None else after.set(str(key), value)
    result = apply_patch(before, diff(before, after))

    assert strict(plain(result)) == strict(plain(after))
    assert len(diff(before, after)) <= len(changes)


lines = st.builds(Line, st.sampled_from("xyz"), st.integers(0, 2), st.sampled_from(list(Colour)))
orders = st.builds(
    Order,
    st.lists(lines, max_size=4).map(pvector),
    st.dictionaries(keys, st.sampled_from(["", "n"]), max_size=3).map(pmap),
    st.frozensets(st.sampled_from("pqr")),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(before=orders, after=orders)
def test_records_are_objects_with_one_member_per_field(before, after):
    patch = diff(before, after)

    assert apply_patch(plain(before), patch) == plain(after)
    json.dumps(patch)


def test_a_change_of_a_record_keeps_its_types():
    before = Order(v(Line("x"), Line("y")), m(a="1"))
    after = replace(
        before,
        lines=before.lines.set(1, Line("y", 2, Colour.BLUE)),
        notes=before.notes.set("b", "2"),
        tags=frozenset({"q"}),
    )

    assert apply_patch(before, diff(before, after)) == after


def test_only_what_changed_is_in_the_patch():
    before = Order(v(Line("x"), Line("y")), m(a="1"))
    after = replace(before, lines=before.lines.set(1, Line("y", 2)).append(Line("z")))

    assert diff(before, after) == (
        {"op": "replace", "path": "/lines/1/count", "value": 2},
        {"op": "add", "path": "/lines/2", "value": {"name": "z", "count": 1, "colour": "red"}},
    )


def test_a_removal_in_the_middle_of_a_list_is_one_operation():
    assert diff(list("abcde"), list("abde")) == ({"op": "remove", "path": "/2"},)


def test_true_is_not_one():
    assert diff({"a": 1}, {"a": True}) == ({"op": "replace", "path": "/a", "value": True},)
    assert diff([1], [True]) == ({"op": "replace", "path": "/0", "value": True},)
    assert diff({"a": 1}, {"a": 1.0}) == ()


def test_what_both_versions_share_is_not_looked_into():
    class Opaque:
        pass

    shared = pmap({"x": Opaque()})

    assert diff({"big": shared, "a": 1}, {"big": shared, "a": 2}) == (
        {"op": "replace", "path": "/a", "value": 2},
    )


# The examples of RFC 6902, appendix A, by number.
RFC_EXAMPLES = [
    ({"foo": "bar"}, [{"op": "add", "path": "/baz", "value": "qux"}], {"baz": "qux", "foo": "bar"}),
    (
        {"foo": ["bar", "baz"]},
        [{"op": "add", "path": "/foo/1", "value": "qux"}],
        {"foo": ["bar", "qux", "baz"]},
    ),
    ({"baz": "qux", "foo": "bar"}, [{"op": "remove", "path": "/baz"}], {"foo": "bar"}),
    ({"foo": ["bar", "qux", "baz"]}, [{"op": "remove", "path": "/foo/1"}], {"foo": ["bar", "baz"]}),
    (
        {"baz": "qux", "foo": "bar"},
        [{"op": "replace", "path": "/baz", "value": "boo"}],
        {"baz": "boo", "foo": "bar"},
    ),
    (
        {"foo": {"bar": "baz", "waldo": "fred"}, "qux": {"corge": "grault"}},
        [{"op": "move", "from": "/foo/waldo", "path": "/qux/thud"}],
        {"foo": {"bar": "baz"}, "qux": {"corge": "grault", "thud": "fred"}},
    ),
    (
        {"foo": ["all", "grass", "cows", "eat"]},
        [{"op": "move", "from": "/foo/1", "path": "/foo/3"}],
        {"foo": ["all", "cows", "eat", "grass"]},
    ),
    (
        {"baz": "qux", "foo": ["a", 2, "c"]},
        [
            {"op": "test", "path": "/baz", "value": "qux"},
            {"op": "test", "path": "/foo/1", "value": 2},
        ],
        {"baz": "qux", "foo": ["a", 2, "c"]},
    ),
    (
        {"foo": "bar"},
        [{"op": "add", "path": "/child", "value": {"grandchild": {}}}],
        {"foo": "bar", "child": {"grandchild": {}}},
    ),
    ({"/": 9, "~1": 10}, [{"op": "test", "path": "/~01", "value": 10}], {"/": 9, "~1": 10}),
    (
        {"foo": ["bar"]},
        [{"op": "add", "path": "/foo/-", "value": ["abc", "def"]}],
        {"foo": ["bar", ["abc", "def"]]},
    ),
    ({"a": [1]}, [{"op": "copy", "from": "/a", "path": "/b"}], {"a": [1], "b": [1]}),
    ({"a": 1}, [{"op": "replace", "path": "", "value": [2]}], [2]),
]


@pytest.mark.parametrize(("document", "patch", "expected"), RFC_EXAMPLES)
@pytest.mark.parametrize("form", [lambda document: document, freeze], ids=["plain", "persistent"])
def test_the_operations_of_the_standard(document, patch, expected, form):
    assert plain(apply_patch(form(document), tuple(patch))) == expected


@pytest.mark.parametrize(
    ("document", "operation"),
    [
        ({"baz": "qux"}, {"op": "test", "path": "/baz", "value": "bar"}),
        ({"/": 9, "~1": 10}, {"op": "test", "path": "/~01", "value": "10"}),
        ({"a": 1}, {"op": "test", "path": "/a", "value": True}),
        ({"foo": "bar"}, {"op": "add", "path": "/baz/bat", "value": "qux"}),
        ({"foo": "bar"}, {"op": "replace", "path": "/baz", "value": 1}),
        ({"foo": "bar"}, {"op": "remove", "path": "/baz"}),
        ({"foo": [1]}, {"op": "remove", "path": "/foo/1"}),
        ({"foo": [1]}, {"op": "add", "path": "/foo/2", "value": 1}),
        ({"foo": [1]}, {"op": "add", "path": "/foo/01", "value": 1}),
        ({"foo": [1]}, {"op": "replace", "path": "/foo/-", "value": 1}),
        ({"foo": [1]}, {"op": "replace", "path": "/foo/-1", "value": 1}),
        ({"foo": {"bar": 1}}, {"op": "move", "from": "/foo", "path": "/foo/bar"}),
        ({"foo": 1}, {"op": "add", "path": "foo", "value": 1}),
        ({"foo": 1}, {"op": "explode", "path": "/foo"}),
        ({"foo": 1}, {"op": "add", "path": "/foo"}),
        ({"foo": 1}, {"op": "add", "path": "/foo/x", "value": 1}),
        (Line("x"), {"op": "remove", "path": "/name"}),
        (Line("x"), {"op": "add", "path": "/unknown", "value": 1}),
    ],
)
def test_a_patch_that_does_not_fit_is_refused_with_its_place(document, operation):
    with pytest.raises(PatchError) as caught:
        apply_patch(document, ({"op": "test", "path": "", "value": plain(document)}, operation))

    assert caught.value.index == 1
    assert isinstance(caught.value, StateError)


@pytest.mark.parametrize(
    "value", [object(), {1: "a"}, {"a": b"bytes"}, math.nan, [math.inf], {"a": -math.inf}]
)
def test_what_has_no_json_form_is_refused(value):
    with pytest.raises(PatchError):
        plain(value)
    with pytest.raises(PatchError):
        diff({"of": 1}, {"of": value})


def test_what_holds_itself_has_no_patch():
    one, other = [], []
    one.append(one)
    other.append(other)

    with pytest.raises(PatchError, match="holds itself"):
        diff(one, other)
    with pytest.raises(PatchError, match="holds itself"):
        diff(1, one)

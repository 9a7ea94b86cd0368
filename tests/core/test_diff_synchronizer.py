"""Three-way synchronisation: the plan first, conflicts by strategy, the laws as properties."""

from __future__ import annotations

import copy
import math
import sys
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyrsistent import PMap, PSet, PVector, freeze, pmap, pset, thaw

from atlas.core.diff_synchronizer import (
    MISSING,
    AddMember,
    Conflict,
    DiffSynchronizer,
    Item,
    Put,
    Remove,
    RemoveMember,
    Reorder,
    path_text,
)
from atlas.errors import MergeConflictError, ValidationError

scalars = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["a", "b", 0.5, math.nan])
)
names = st.sampled_from("pqrst")
items = st.lists(
    st.fixed_dictionaries({"id": st.integers(0, 5)}, optional={"x": scalars, "y": scalars}),
    max_size=5,
    unique_by=lambda item: item["id"],
)
values = st.recursive(
    scalars | st.frozensets(st.integers(0, 5), max_size=4),
    lambda inner: st.dictionaries(names, inner, max_size=4) | st.lists(inner, max_size=3),
    max_leaves=8,
)
documents = st.fixed_dictionaries({}, optional={"items": items, "free": values, "more": values})
synchronizer = DiffSynchronizer(keys={"/items": "id"})


def same(one: object, other: object) -> bool:
    """Whether two documents are the same but for the order of keys; strict about types."""
    return not synchronizer.plan(one, one, other).ours


# -- laws -----------------------------------------------------------------------------------------


@settings(deadline=None)
@given(documents, documents, documents)
def test_without_a_conflict_the_result_does_not_depend_on_the_side(base, ours, theirs):
    plan = synchronizer.plan(base, ours, theirs)
    swapped = synchronizer.plan(base, theirs, ours)

    assert bool(plan.conflicts) == bool(swapped.conflicts)
    if not plan.conflicts:
        assert same(plan.apply(ours), swapped.apply(theirs))


@settings(deadline=None)
@given(documents, documents, documents, st.sampled_from(["ours", "theirs"]))
def test_both_sides_agree_after_the_plan_is_applied(base, ours, theirs, winner):
    plan = DiffSynchronizer(keys={"/items": "id"}, conflicts=winner).plan(base, ours, theirs)

    assert same(plan.apply(ours), plan.apply(theirs, side="theirs"))


@settings(deadline=None)
@given(documents, documents, documents, st.sampled_from(["ours", "theirs"]))
def test_applying_a_plan_twice_is_applying_it_once(base, ours, theirs, winner):
    plan = DiffSynchronizer(keys={"/items": "id"}, conflicts=winner).plan(base, ours, theirs)
    for side, value in (("ours", ours), ("theirs", theirs)):
        once = plan.apply(value, side=side)

        assert plan.apply(once, side=side) == once


@settings(deadline=None)
@given(documents, documents)
def test_a_change_of_one_side_alone_is_taken_over_exactly(base, theirs):
    plan = synchronizer.plan(base, base, theirs)

    assert plan.theirs == plan.conflicts == ()
    assert same(plan.apply(base), theirs)
    assert same(synchronizer.merge(base, theirs, base), theirs)


@settings(deadline=None)
@given(documents, documents)
def test_sides_that_agree_need_nothing(base, ours):
    plan = synchronizer.plan(base, ours, copy.deepcopy(ours))

    assert plan.ours == plan.theirs == plan.conflicts == ()
    assert str(plan) == "nothing to do"


@settings(deadline=None)
@given(documents, documents, documents)
def test_no_argument_is_changed(base, ours, theirs):
    before = repr((base, ours, theirs))

    DiffSynchronizer(keys={"/items": "id"}, conflicts="ours").merge(base, ours, theirs)

    assert repr((base, ours, theirs)) == before


@settings(deadline=None)
@given(documents, documents, documents, st.sampled_from(["ours", "theirs"]))
def test_the_winner_of_every_conflict_is_in_the_result_where_the_conflict_was(
    base, ours, theirs, winner
):
    plan = DiffSynchronizer(keys={"/items": "id"}, conflicts=winner).plan(base, ours, theirs)
    merged = plan.apply(ours)
    for conflict in plan.conflicts:
        if conflict.about == "value":
            assert same_at(merged, conflict.path, getattr(conflict, winner))


def same_at(value: object, path: tuple, expected: object) -> bool:
    for segment in path:
        if isinstance(segment, Item):
            found = [each for each in value if each["id"] == segment.key]
            value = found[0] if found else MISSING
        else:
            value = value.get(segment, MISSING)
    return value is expected or same({"": value}, {"": expected})


@settings(deadline=None)
@given(documents, documents, documents)
def test_persistent_containers_merge_as_plain_ones_do(base, ours, theirs):
    merging = DiffSynchronizer(keys={"/items": "id"}, conflicts="theirs")

    plain = merging.merge(base, ours, theirs)
    persistent = merging.merge(freeze(base), freeze(ours), freeze(theirs))

    assert same(plain, thaw(persistent))
    assert isinstance(persistent, PMap)


# -- the plan -------------------------------------------------------------------------------------


def test_a_plan_is_typed_and_reads_as_a_dry_run():
    base = {"title": "T", "tags": {"x", "y"}, "items": [{"id": 1}, {"id": 2}, {"id": 3}]}
    ours = base | {"price": 2}
    theirs = {"tags": {"y", "z"}, "items": [{"id": 3}, {"id": 2, "n": 5}]}

    plan = synchronizer.plan(base, ours, theirs)

    assert plan.ours == (
        Remove(("title",), "T"),
        RemoveMember(("tags",), "x"),
        AddMember(("tags",), "z"),
        Remove(("items", Item("id", 1)), {"id": 1}),
        Put(("items", Item("id", 2), "n"), MISSING, 5),
        Reorder(("items",), "id", (3, 2)),
    )
    assert plan.theirs == (Put(("price",), MISSING, 2),)
    assert str(plan).splitlines() == [
        "ours    remove  /title  'T'",
        "ours    discard /tags  'x'",
        "ours    add     /tags  'z'",
        "ours    remove  /items/1  {'id': 1}",
        "ours    put     /items/2/n  MISSING -> 5",
        "ours    reorder /items  [3, 2]",
        "theirs  put     /price  MISSING -> 2",
    ]


def test_a_plan_changes_nothing_until_it_is_applied():
    ours = {"a": 1}

    plan = DiffSynchronizer().plan({"a": 1}, ours, {"a": 2})
    merged = plan.apply(ours)

    assert ours == {"a": 1}
    assert merged == {"a": 2}


def test_a_plan_that_no_longer_fits_is_refused():
    plan = DiffSynchronizer().plan(
        {"a": 1, "b": {"c": 1}}, {"a": 1, "b": {"c": 1}}, {"a": 2, "b": {"c": 2}}
    )

    with pytest.raises(MergeConflictError, match=r"/a.*there is now 7") as raised:
        plan.apply({"a": 7, "b": {"c": 1}})
    assert raised.value.paths == ("/a",)
    with pytest.raises(MergeConflictError, match="/b/c"):
        plan.apply({"a": 1, "b": 5})
    with pytest.raises(MergeConflictError, match="/b/c"):
        plan.apply({"a": 1})


def test_a_plan_leaves_alone_what_it_does_not_change():
    kept = {"deep": [1]}
    ours = {"a": 1, "kept": kept}

    merged = DiffSynchronizer().merge(ours, ours, {"a": 2, "kept": {"deep": [1]}})

    assert merged["kept"] is kept


def test_the_path_text_escapes_its_own_signs():
    assert path_text(("a/b", "c~d", 1)) == "/a~1b/c~0d/1"


# -- conflicts ------------------------------------------------------------------------------------


def test_a_conflict_is_shown_by_the_plan_and_refused_when_applied():
    plan = DiffSynchronizer().plan({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 3, "b": 2})

    assert plan.conflicts == plan.unresolved == (Conflict(("a",), 1, 2, 3),)
    assert plan.ours == (Put(("b",), 1, 2),)
    assert "conflict value of /a: base 1, ours 2, theirs 3 (unresolved)" in str(plan)
    with pytest.raises(MergeConflictError, match=r"base 1, ours 2, theirs 3.*strategy") as raised:
        plan.apply({"a": 2, "b": 1})
    assert raised.value.paths == ("/a",)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("ours", {"a": 2}),
        ("theirs", {"a": 3}),
        (lambda conflict: conflict.ours + conflict.theirs - conflict.base, {"a": 4}),
        (lambda conflict: MISSING, {}),
    ],
    ids=["ours", "theirs", "custom", "removed"],
)
def test_a_strategy_settles_a_conflict(strategy, expected):
    synchronizer = DiffSynchronizer(conflicts=strategy)

    assert synchronizer.merge({"a": 1}, {"a": 2}, {"a": 3}) == expected


def test_a_change_against_a_removal_is_a_conflict():
    plan = DiffSynchronizer(conflicts="theirs").plan({"a": 1}, {"a": 2}, {})

    assert plan.conflicts == (Conflict(("a",), 1, 2, MISSING, resolution="theirs"),)
    assert plan.apply({"a": 2}) == {}


def test_strategies_are_chosen_by_path_and_the_first_match_wins():
    synchronizer = DiffSynchronizer(
        conflicts="ours",
        strategies={
            "/x/*/price": "theirs",
            "/notes/**": lambda c: f"{c.ours}+{c.theirs}",
            "": "fail",
        },
    )

    def document(value):
        return {"x": {"1": {"price": value, "name": value}}, "notes": {"a": {"b": value}}}

    assert synchronizer.merge(document("0"), document("1"), document("2")) == {
        "x": {"1": {"price": "2", "name": "1"}},
        "notes": {"a": {"b": "1+2"}},
    }
    with pytest.raises(MergeConflictError, match="everything"):
        synchronizer.merge(0, 1, 2)


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0, False), (None, False), ("1", 1), ({}, [])]
)
def test_values_of_different_types_are_different(one, other):
    plan = DiffSynchronizer().plan({"a": one}, {"a": one}, {"a": other})

    assert plan.ours == (Put(("a",), one, other),)


def test_nan_is_the_same_as_nan():
    assert DiffSynchronizer().plan(float("nan"), float("nan"), float("nan")).ours == ()


@pytest.mark.parametrize("strategy", ["mine", None, 5])
def test_an_unknown_strategy_is_refused(strategy):
    with pytest.raises(ValidationError, match="'ours', 'theirs', 'fail' or callable"):
        DiffSynchronizer(conflicts=strategy)


def test_a_pattern_that_is_no_path_is_refused():
    with pytest.raises(ValidationError, match="a path pattern"):
        DiffSynchronizer(keys={"items": "id"})


# -- sets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [set, frozenset, pset])
def test_sets_merge_member_by_member_and_keep_their_kind(kind):
    merged = DiffSynchronizer().merge(
        {"s": kind([1, 2, 3])}, {"s": kind([2, 3, 4])}, {"s": kind([1, 2, 5])}
    )

    assert set(merged["s"]) == {2, 4, 5}
    assert isinstance(merged["s"], PSet if kind is pset else kind)


def test_sets_added_by_both_are_joined():
    assert DiffSynchronizer().merge({}, {"s": {1}}, {"s": {2}}) == {"s": {1, 2}}


# -- lists ----------------------------------------------------------------------------------------


def test_a_list_without_keys_is_one_value():
    assert DiffSynchronizer().merge([1], [1], [1, 2]) == [1, 2]
    with pytest.raises(MergeConflictError):
        DiffSynchronizer().merge([1], [1, 2], [1, 3])


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "expected"),
    [
        ("abc", "abxc", "aybc", "aybxc"),
        ("abc", "abc", "cba", "cba"),
        ("abc", "xabc", "cba", "xcba"),
        ("abc", "ac", "abcd", "acd"),
        ("", "ab", "cd", "abcd"),
        ("ab", "axb", "axb", "axb"),
        ("ab", "axyb", "ayzb", "axyzb"),
        ("abc", "", "abc", ""),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_keyed_items_keep_their_neighbours(base, ours, theirs, expected, swapped):
    synchronizer = DiffSynchronizer(keys={"": lambda item: item})
    if swapped:
        ours, theirs = theirs, ours

    assert synchronizer.merge(list(base), list(ours), list(theirs)) == list(expected)


def test_items_that_both_reordered_differently_are_a_conflict_of_order():
    letters = DiffSynchronizer(keys={"": lambda item: item})

    plan = letters.plan(list("abc"), list("acbx"), list("bac"))

    [conflict] = plan.unresolved
    assert (conflict.about, conflict.ours, conflict.theirs) == ("order", tuple("acb"), tuple("bac"))
    assert plan.ours == ()
    assert plan.theirs == (Put((Item(letters._keys[0][1], "x"),), MISSING, "x"),)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("ours", "acbx"), ("theirs", "bxac"), (lambda c: sorted(c.base, reverse=True), "cbxa")],
    ids=["ours", "theirs", "custom"],
)
def test_a_conflict_of_order_is_settled_by_the_strategy(strategy, expected):
    synchronizer = DiffSynchronizer(keys={"": lambda item: item}, conflicts=strategy)

    assert synchronizer.merge(list("abc"), list("acbx"), list("bac")) == list(expected)


def test_a_custom_order_must_be_an_order_of_the_keys():
    synchronizer = DiffSynchronizer(keys={"": lambda item: item}, conflicts=lambda conflict: ["a"])

    with pytest.raises(ValidationError, match="in some order"):
        synchronizer.merge(list("abc"), list("acb"), list("bac"))


def test_fields_of_one_item_changed_by_both_sides_come_together():
    merged = DiffSynchronizer(keys={"/lines": "id"}).merge(
        {"lines": [{"id": 7, "n": 1, "price": 5}]},
        {"lines": [{"id": 7, "n": 2, "price": 5}]},
        {"lines": [{"id": 7, "n": 1, "price": 6}]},
    )

    assert merged == {"lines": [{"id": 7, "n": 2, "price": 6}]}


def test_keys_work_in_lists_within_lists():
    synchronizer = DiffSynchronizer(keys={"/orders": "id", "/orders/*/lines": "sku"})

    def document(*lines):
        return {"orders": [{"id": 1, "lines": [{"sku": sku} for sku in lines]}]}

    assert synchronizer.merge(document("a"), document("a", "b"), document()) == document("b")


@pytest.mark.parametrize("wrong", [[{"id": 1}, {"id": 1}], [{}], [5], [{"id": [1]}]])
def test_an_item_without_a_key_of_its_own_is_told(wrong):
    with pytest.raises(ValidationError, match=r"/items.*unique key by 'id'"):
        synchronizer.plan({"items": []}, {"items": wrong}, {"items": [{"id": 9}]})


# -- kinds of containers --------------------------------------------------------------------------


def test_every_container_keeps_its_kind():
    base = {
        "t": ({"id": 1},),
        "p": pmap({"v": freeze([{"id": 1}])}),
        "m": MappingProxyType({"x": 1}),
    }
    theirs = {"t": ({"id": 1}, {"id": 2}), "p": {"v": [{"id": 1}, {"id": 2}]}, "m": {"x": 2}}
    synchronizer = DiffSynchronizer(keys={"/t": "id", "/p/v": "id"})

    merged = synchronizer.merge(base, base, theirs)

    assert merged["t"] == ({"id": 1}, {"id": 2})
    assert isinstance(merged["p"], PMap)
    assert isinstance(merged["p"]["v"], PVector)
    assert len(merged["p"]["v"]) == 2
    assert merged["m"] == {"x": 2}


def test_a_side_that_does_not_exist_is_refused():
    plan = DiffSynchronizer().plan({"a": 1}, {"a": 2}, {"a": 1})

    with pytest.raises(ValidationError, match="side: 'mine' was given where 'ours' or 'theirs'"):
        plan.apply({"a": 2}, side="mine")


@pytest.mark.parametrize("wrong", [{"keys": 5}, {"strategies": 5}, {"keys": {5: "id"}}])
def test_what_is_no_mapping_by_patterns_is_refused(wrong):
    with pytest.raises(ValidationError, match=r"DiffSynchronizer\.\w+: 5 was given where a"):
        DiffSynchronizer(**wrong)


def test_what_is_nested_without_end_is_refused():
    def deep(levels):
        made = {}
        for _ in range(levels):
            made = {"a": made}
        return made

    levels = 2 * sys.getrecursionlimit()
    with pytest.raises(ValidationError, match="nested so deep"):
        DiffSynchronizer().merge(deep(levels), deep(levels), deep(levels + 1))

"""Schedules: exact end points, never outside them, validated, the same after a JSON round trip."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from atlas.core.schedules import (
    Constant,
    Cosine,
    Exponential,
    Linear,
    Piecewise,
    Schedule,
    Step,
    WarmUp,
)
from atlas.errors import ConfigurationError, ValidationError

numbers = st.floats(allow_nan=False, allow_infinity=False)
positives = st.floats(min_value=1e-300, max_value=1e300)
any_step = st.integers() | st.floats(allow_nan=False)

lines = st.builds(Linear, numbers, numbers, positives)
cosines = st.builds(Cosine, numbers, numbers, positives)
exponentials = st.builds(Exponential, positives, positives, positives)
stairs = st.builds(Step, numbers, positives, positives, st.none() | st.integers(0, 50))
pieces = st.lists(st.tuples(numbers, numbers), min_size=1, unique_by=lambda pair: pair[0]).map(
    lambda points: Piecewise(tuple(sorted(points)))
)
simple = st.one_of(lines, cosines, exponentials, stairs, pieces, st.builds(Constant, numbers))
schedules = st.recursive(simple, lambda then: st.builds(WarmUp, positives, then, numbers))


@settings(deadline=None)
@given(lines | cosines | exponentials)
def test_both_end_points_are_exact(schedule):
    assert schedule(0) == schedule.start
    assert schedule(schedule.steps) == schedule.end


@settings(deadline=None)
@given(lines | cosines | exponentials, any_step)
def test_a_value_is_never_outside_the_end_points(schedule, step):
    low, high = sorted((schedule.start, schedule.end))

    assert low <= schedule(step) <= high


@settings(deadline=None)
@given(lines | cosines | exponentials, st.floats(0, 1), st.floats(0, 1))
def test_a_value_never_turns_back_by_more_than_rounding(schedule, one, other):
    earlier, later = sorted((one * schedule.steps, other * schedule.steps))
    scale = max(abs(schedule.start), abs(schedule.end))
    direction = math.copysign(1, schedule.end / 2 - schedule.start / 2)

    assert direction * (schedule(later) / 2 - schedule(earlier) / 2) >= -1e-12 * scale


@settings(deadline=None)
@given(schedules, st.floats(max_value=0, allow_nan=False) | st.integers(max_value=0))
def test_before_step_zero_a_schedule_has_its_first_value(schedule, step):
    assume(not isinstance(schedule, Piecewise))

    assert schedule(step) == schedule(0)


@settings(deadline=None)
@given(pieces)
def test_every_point_of_a_piecewise_schedule_is_exact(schedule):
    for step, value in schedule.points:
        assert schedule(step) == value


@settings(deadline=None)
@given(pieces, any_step)
def test_a_piecewise_schedule_holds_its_outer_values(schedule, step):
    values = [value for _, value in schedule.points]

    assert min(values) <= schedule(step) <= max(values)
    assert schedule(-math.inf) == values[0]
    assert schedule(math.inf) == values[-1]


@settings(deadline=None)
@given(simple, positives, numbers)
def test_a_warm_up_starts_exactly_and_hands_over_exactly(then, steps, start):
    schedule = WarmUp(steps, then, start)

    assert schedule(0) == start
    assert schedule(steps) == then(0)
    assert schedule(steps + 7) == then(steps + 7 - steps)


@settings(deadline=None)
@given(schedules, any_step)
def test_a_json_round_trip_gives_an_equal_schedule(schedule, step):
    copy = Schedule.from_json(json.loads(json.dumps(schedule.to_json())))

    assert copy == schedule
    assert hash(copy) == hash(schedule)
    assert copy(step) == schedule(step)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Linear(0, 10, 4), [0, 2.5, 5, 7.5, 10, 10]),
        (Cosine(0, 1, 2), [0, 0.5, 1, 1, 1, 1]),
        (Exponential(1, 16, 4), [1, 2, 4, 8, 16, 16]),
        (Step(8, 0.5, 2), [8, 8, 4, 4, 2, 2]),
        (Step(8, 0.5, 2, stairs=1), [8, 8, 4, 4, 4, 4]),
        (Piecewise(((1, 0), (3, 4))), [0, 0, 2, 4, 4, 4]),
        (WarmUp(2, Linear(4, 0, 2)), [0, 2, 4, 2, 0, 0]),
        (Constant(3), [3, 3, 3, 3, 3, 3]),
    ],
    ids=lambda each: each.kind if isinstance(each, Schedule) else "",
)
def test_known_values(schedule, expected):
    assert [schedule(step) for step in range(6)] == pytest.approx(expected)
    assert all(type(schedule(step)) is float for step in range(6))


def test_a_growing_stair_ends_at_infinity():
    assert Step(-1.0, 10.0, 1)(10**6) == -math.inf
    assert Step(0.0, 10.0, 1)(10**6) == 0


@settings(deadline=None)
@given(schedules)
def test_a_huge_whole_step_is_like_infinity(schedule):
    assert schedule(10**400) == schedule(math.inf)
    assert schedule(-(10**400)) == schedule(-math.inf)


def test_a_stair_at_infinity_has_climbed_all_its_stairs():
    assert Step(8, 0.5, 2)(math.inf) == 0
    assert Step(8, 2, 2)(math.inf) == math.inf
    assert Step(0, 2, 2)(math.inf) == 0
    assert Step(8, 0.5, 2, stairs=2)(math.inf) == 2


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Linear(0, 1, 0), "Linear.steps: 0.0 was given where a positive number"),
        (lambda: Linear("0", 1, 5), "Linear.start: '0' was given where a finite number"),
        (lambda: Linear(True, 1, 5), "Linear.start: True"),
        (lambda: Cosine(0, math.nan, 5), "Cosine.end: nan"),
        (lambda: Constant(10**400), "Constant.value: 1000"),
        (lambda: Exponential(0, 1, 5), "Exponential.start: 0.0"),
        (lambda: Step(1, -1, 5), "Step.factor: -1.0"),
        (lambda: Step(1, 1, 5, stairs=-1), "Step.stairs: -1"),
        (lambda: Piecewise(()), "Piecewise.points: ()"),
        (lambda: Piecewise("ab"), "Piecewise.points: 'ab'"),
        (lambda: Piecewise(((0, 1), (0, 2))), "Piecewise.points.1: (0, 2)"),
        (lambda: Piecewise(((0, 1, 2),)), "Piecewise.points.0: (0, 1, 2)"),
        (lambda: WarmUp(5, 1.0), "WarmUp.then: 1.0 was given where a Schedule"),
    ],
)
def test_a_wrong_value_is_told_with_its_field(make, told):
    with pytest.raises(ValidationError) as raised:
        make()

    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"kind": "liner"}, "the nearest is 'linear'"),
        ({"kind": ["linear"]}, "No schedule is of kind ['linear']"),
        ({}, "No schedule is of kind None"),
        ([1], "[1] is none"),
        ({"kind": "linear", "start": 1}, "start, end, steps"),
        ({"kind": "constant", "value": 1, "vale": 2}, "fields of a constant schedule: value"),
        ({"kind": "warm_up", "steps": 1, "then": 5}, "5 is none"),
    ],
)
def test_data_that_is_no_schedule_is_told(data, told):
    with pytest.raises(ConfigurationError) as raised:
        Schedule.from_json(data)

    assert told in str(raised.value)


def test_a_schedule_cannot_be_changed():
    schedule = Linear(0, 1, 5)

    with pytest.raises(AttributeError):
        schedule.start = 5


@pytest.mark.parametrize(
    "schedule",
    [Linear(0, 1, 3), Cosine(0, 1, 3), Exponential(1, 2, 3), Step(1, 2, 3), WarmUp(3, Constant(1))],
)
def test_a_step_that_is_no_number_is_told_as_one(schedule):
    with pytest.raises(ValidationError, match="step: 'soon' was given where a number is expected"):
        schedule("soon")
    with pytest.raises(ValidationError, match="step: nan was given where a number is expected"):
        schedule(math.nan)

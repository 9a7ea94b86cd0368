"""Schedules: values that change with a step, as immutable callables ``schedule(step) -> float``.

Use them for whatever is turned up or down over time: a routing share, a retry delay, a learning
rate. What a step is (an attempt, a second, a batch) is for the user to say; it may be fractional.
Every schedule is total: before step 0 it has its first value, after its last step its last one, and
both end points are exact. A schedule is a value: comparable, hashable, and written as JSON.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, cast

from atlas.errors import ConfigurationError, ValidationError, nearest_name

if TYPE_CHECKING:
    from atlas.typing import JSON

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "Piecewise",
    "Schedule",
    "Step",
    "WarmUp",
]


class Schedule:
    """Something that gives a value for a step; the base of all schedules here.

    Calls are pure and thread-safe. Where Atlas asks for a schedule, any callable of this shape will
    do; only the classes of this module are written as JSON.
    """

    __slots__ = ()
    kind: ClassVar[str]

    @abstractmethod
    def __call__(self, step: float) -> float:
        """Return the value at ``step``."""

    def to_json(self) -> dict[str, JSON]:
        """Return the schedule as JSON data: its ``kind`` beside its fields."""
        # Fields of a dataclass are Any to the type checker.
        own = {each.name: _plain(getattr(self, each.name)) for each in fields(cast("Any", self))}
        return {"kind": self.kind} | own

    @staticmethod
    def from_json(data: object) -> Schedule:
        """Return the schedule that `to_json` wrote.

        Raises:
            ConfigurationError: The kind is unknown, or a field is missing or too much.
            ValidationError: A field has a value that its schedule refuses.
        """
        if not isinstance(data, Mapping):
            raise ConfigurationError(
                f"A schedule is a mapping with a 'kind', and {data!r} is none. "
                f"Write, for example, {{'kind': 'constant', 'value': 1.0}}."
            )
        kind = data.get("kind")
        made = _KINDS.get(kind) if isinstance(kind, str) else None
        if made is None:
            raise ConfigurationError(
                f"No schedule is of kind {kind!r}{nearest_name(str(kind), _KINDS)}. "
                f"Kinds: {', '.join(map(repr, _KINDS))}."
            )
        given = {str(key): value for key, value in data.items() if key != "kind"}
        if "then" in given:
            given["then"] = Schedule.from_json(given["then"])
        try:
            return made(**given)
        except TypeError as error:
            known = ", ".join(each.name for each in fields(cast("Any", made)))
            raise ConfigurationError(
                f"The schedule {dict(data)!r} has not the fields of a {kind} schedule: {known}."
            ) from error


@dataclass(frozen=True, slots=True)
class Constant(Schedule):
    """The same ``value`` at every step."""

    kind = "constant"
    value: float

    def __post_init__(self) -> None:
        _set_numbers(self, "value")

    def __call__(self, step: float) -> float:
        """Return the value, whatever the step."""
        return self.value


@dataclass(frozen=True, slots=True)
class Linear(Schedule):
    """From ``start`` to ``end`` in a straight line over ``steps`` steps."""

    kind = "linear"
    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        _set_numbers(self, "start", "end")
        _set_positive(self, "steps")

    def __call__(self, step: float) -> float:
        """Return the value at ``step``."""
        return _between(self.start, self.end, step, self.steps, _even)


@dataclass(frozen=True, slots=True)
class Cosine(Schedule):
    """From ``start`` to ``end`` along half a cosine: slow at both ends, fast between."""

    kind = "cosine"
    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        _set_numbers(self, "start", "end")
        _set_positive(self, "steps")

    def __call__(self, step: float) -> float:
        """Return the value at ``step``."""
        return _between(self.start, self.end, step, self.steps, _half_cosine)


@dataclass(frozen=True, slots=True)
class Exponential(Schedule):
    """From ``start`` to ``end`` by the same factor at each step. Both are positive."""

    kind = "exponential"
    start: float
    end: float
    steps: float

    def __post_init__(self) -> None:
        _set_positive(self, "start", "end", "steps")

    def __call__(self, step: float) -> float:
        """Return the value at ``step``."""
        step = _as_float(step)
        if not step > 0:
            return self.start
        if step >= self.steps:
            return self.end
        part = step / self.steps
        # In logarithms: end / start may be too large, or too small, for a float.
        value = math.exp(math.log(self.start) * (1 - part) + math.log(self.end) * part)
        return _within(value, self.start, self.end)


@dataclass(frozen=True, slots=True)
class Step(Schedule):
    """``start``, multiplied by ``factor`` after ``every`` steps, and again after as many more.

    Attributes:
        start: The value of the first ``every`` steps.
        factor: What each stair multiplies by; positive.
        every: Length of a stair, in steps.
        stairs: How many times the factor is applied at most. None: without end.
    """

    kind = "step"
    start: float
    factor: float
    every: float
    stairs: int | None = None

    def __post_init__(self) -> None:
        _set_numbers(self, "start")
        _set_positive(self, "factor", "every")
        if self.stairs is not None and (type(self.stairs) is not int or self.stairs < 0):
            raise ValidationError("Step", "stairs", self.stairs, "a whole number from 0, or None")

    def __call__(self, step: float) -> float:
        """Return the value at ``step``; infinite when it outgrows a float."""
        step = _as_float(step)
        if not step >= self.every or not self.start:
            return self.start
        climbed = step // self.every if step < math.inf else step
        if self.stairs is not None:
            climbed = min(climbed, self.stairs)
        try:
            return self.start * math.pow(self.factor, climbed)
        except OverflowError:
            return math.copysign(math.inf, self.start)


@dataclass(frozen=True, slots=True)
class Piecewise(Schedule):
    """Straight lines between ``points``, which are ``(step, value)`` pairs with rising steps."""

    kind = "piecewise"
    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        given: object = self.points
        rule = "a list of [step, value] pairs with rising steps, at least one"
        if not isinstance(given, Sequence) or isinstance(given, str) or not given:
            raise ValidationError("Piecewise", "points", given, rule)
        points: list[tuple[float, float]] = []
        for index, pair in enumerate(given):
            if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
                raise ValidationError("Piecewise", f"points.{index}", pair, "a [step, value] pair")
            step, value = (_number("Piecewise", f"points.{index}", each) for each in pair)
            if points and step <= points[-1][0]:
                raise ValidationError("Piecewise", f"points.{index}", pair, rule)
            points.append((step, value))
        object.__setattr__(self, "points", tuple(points))

    def __call__(self, step: float) -> float:
        """Return the value at ``step``: that of the first point before it, of the last after it."""
        step = _as_float(step)
        before = self.points[0]
        for point in self.points:
            if not step > point[0]:
                return _between(before[1], point[1], step - before[0], point[0] - before[0], _even)
            before = point
        return before[1]


@dataclass(frozen=True, slots=True)
class WarmUp(Schedule):
    """A straight line from ``start`` to the first value of ``then``, which follows.

    Attributes:
        steps: Length of the warm-up; ``then`` is at its own step 0 after it.
        then: The schedule to warm up to.
        start: The value at step 0.
    """

    kind = "warm_up"
    steps: float
    then: Schedule
    start: float = 0.0

    def __post_init__(self) -> None:
        _set_numbers(self, "start")
        _set_positive(self, "steps")
        given: object = self.then
        if not isinstance(given, Schedule):
            raise ValidationError("WarmUp", "then", given, "a Schedule")

    def __call__(self, step: float) -> float:
        """Return the value at ``step``."""
        step = _as_float(step)
        if step >= self.steps:
            return self.then(step - self.steps)
        return _between(self.start, self.then(0), step, self.steps, _even)


_KINDS: dict[str, type[Schedule]] = {
    each.kind: each for each in (Constant, Cosine, Exponential, Linear, Piecewise, Step, WarmUp)
}


def _as_float(step: float) -> float:
    try:
        number = float(step)
    except OverflowError:  # a whole number beyond all floats
        return math.inf if step > 0 else -math.inf
    except (TypeError, ValueError) as error:
        raise ValidationError("Schedule", "step", step, "a number") from error
    if math.isnan(number):
        raise ValidationError("Schedule", "step", step, "a number")
    return number


def _even(part: float) -> float:
    return part


def _half_cosine(part: float) -> float:
    return (1 - math.cos(math.pi * part)) / 2


def _between(
    start: float, end: float, step: float, steps: float, curve: Callable[[float], float]
) -> float:
    step = _as_float(step)
    if not step > 0:
        return start
    if step >= steps:
        return end
    part = curve(step / steps)
    return _within(start * (1 - part) + end * part, start, end)


def _within(value: float, one: float, other: float) -> float:
    """Undo what rounding may have carried past an end point."""
    return min(max(value, min(one, other)), max(one, other))


def _number(owner: str, field: str, value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise ValidationError(owner, field, value, "a finite number")


def _set_numbers(schedule: Schedule, *names: str) -> None:
    for name in names:
        number = _number(type(schedule).__name__, name, getattr(schedule, name))
        object.__setattr__(schedule, name, number)


def _set_positive(schedule: Schedule, *names: str) -> None:
    _set_numbers(schedule, *names)
    for name in names:
        if (number := getattr(schedule, name)) <= 0:
            raise ValidationError(type(schedule).__name__, name, number, "a positive number")


def _plain(value: object) -> JSON:
    if isinstance(value, Schedule):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return cast("JSON", value)

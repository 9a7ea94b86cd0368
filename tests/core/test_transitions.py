"""Transitions: found by the class of the event, pure, and easy to call by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from atlas.core.transitions import Transitions
from atlas.errors import ConfigurationError


@dataclass(frozen=True)
class Added:
    amount: int


@dataclass(frozen=True)
class AddedTwice(Added):
    pass


@dataclass(frozen=True)
class Cleared:
    pass


def totals() -> Transitions[int]:
    transitions = Transitions[int]()

    @transitions.on(Added)
    def add(state: int, event: Added) -> int:
        return state + event.amount

    @transitions.on(Cleared)
    def clear(state: int, event: Cleared) -> int:
        return 0

    return transitions


def test_events_lead_from_state_to_state():
    assert totals().fold(0, [Added(1), Added(2), Cleared(), Added(4)]) == 4


def test_an_event_nobody_is_for_leaves_the_state_as_it_is():
    state = 1234567

    assert totals()(state, "something else") is state


def test_a_subclass_is_handled_by_its_nearest_base():
    transitions = totals()
    assert transitions(0, AddedTwice(2)) == 2

    @transitions.on(AddedTwice)
    def twice(state: int, event: AddedTwice) -> int:
        return state + 2 * event.amount

    assert transitions(0, AddedTwice(2)) == 4


def test_one_transition_may_be_for_several_classes():
    transitions = Transitions[int]()

    @transitions.on(Added, Cleared)
    def count(state: int, event: Added | Cleared) -> int:
        return state + 1

    assert transitions.fold(0, [Added(5), Cleared()]) == 2
    assert transitions.kinds == (Added, Cleared)
    assert count(0, Cleared()) == 1


def test_a_second_transition_for_a_class_is_refused():
    transitions = totals()

    with pytest.raises(ConfigurationError, match="Added already has"):
        transitions.on(Added)(lambda state, event: state)


@pytest.mark.parametrize("kinds", [(), ("Added",)])
def test_what_is_no_class_is_refused(kinds):
    with pytest.raises(ConfigurationError):
        Transitions[int]().on(*kinds)

"""State: changes by events only, versioned and observable."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.core.patches import apply_patch, plain
from atlas.core.persistent import PMap, PVector, pmap, pvector
from atlas.core.state import Change, State
from atlas.core.transitions import Transitions
from atlas.errors import (
    ConfigurationError,
    StateError,
    TransitionError,
    UnknownVersionError,
    VersionConflictError,
)


@dataclass(frozen=True)
class Stock:
    counts: PMap[str, int] = field(default_factory=pmap)
    journal: PVector[str] = field(default_factory=pvector)


@dataclass(frozen=True)
class Moved:
    item: str
    count: int


@dataclass(frozen=True)
class Removed:
    item: str


transitions = Transitions[Stock]()


@transitions.on(Moved)
def move(state: Stock, event: Moved) -> Stock:
    count = state.counts.get(event.item, 0) + event.count
    if count < 0:
        raise ValueError(f"{event.item} is out of stock")
    return Stock(state.counts.set(event.item, count), state.journal.append(event.item))


@transitions.on(Removed)
def remove(state: Stock, event: Removed) -> Stock:
    return replace(state, counts=state.counts.discard(event.item))


def stock(**options) -> State[Stock]:
    return State(Stock(), transitions, **options)


def test_each_event_makes_a_version():
    state = stock()
    change = state.apply(Moved("a", 2))

    assert (change.version, state.version) == (1, 1)
    assert change.before == Stock()
    assert change.after is state.value
    assert state.value.counts == {"a": 2}
    assert state.current == (1, state.value)


def test_old_versions_can_be_read():
    state = stock()
    for number in range(3):
        state.apply(Moved("a", number))

    assert [state.at(version).counts.get("a") for version in range(4)] == [None, 0, 1, 3]
    assert state.versions == range(4)


def test_the_history_is_bounded():
    state = stock(history=2)
    for _ in range(5):
        state.apply(Moved("a", 1))

    assert state.versions == range(3, 6)
    assert state.at(3).counts["a"] == 3
    for version in (2, 6, -1):
        with pytest.raises(UnknownVersionError) as caught:
            state.at(version)
        assert caught.value.version == version


def test_no_history_at_all_is_possible():
    state = stock(history=0)
    state.apply(Moved("a", 1))

    assert state.at(1) is state.value
    with pytest.raises(UnknownVersionError):
        state.at(0)


@pytest.mark.parametrize("history", [-1, "many", None])
def test_a_history_that_is_no_number_of_versions_is_refused(history):
    with pytest.raises(ConfigurationError, match="keep 0 or more versions"):
        stock(history=history)


def test_a_transition_that_cannot_be_called_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="transition=5 cannot be called"):
        State(0, 5)


def test_a_transition_that_raises_leaves_the_state_as_it_was():
    state = stock()
    state.apply(Moved("a", 1))
    event = Moved("a", -5)

    with pytest.raises(TransitionError, match="version 1 raised ValueError") as caught:
        state.apply(event)
    assert caught.value.event is event
    assert caught.value.version == 1
    assert isinstance(caught.value.__cause__, ValueError)
    assert state.version == 1
    assert state.apply(Moved("a", 1)).version == 2


def test_a_transition_without_a_return_is_named():
    state = State(0, lambda state, event: None)

    with pytest.raises(TransitionError, match="returned None"):
        state.apply("x")


def test_a_transition_that_changes_the_state_is_refused():
    def impure(value: int, event: object) -> int:
        state.apply("again")
        return value

    state = State(0, impure)

    with pytest.raises(TransitionError) as caught:
        state.apply("x")
    assert isinstance(caught.value.__cause__, StateError)
    assert state.version == 0


def test_compare_and_set_wants_the_version_it_was_decided_on():
    state = stock()
    replacement = Stock(pmap({"z": 9}))
    assert state.compare_and_set(0, replacement).event is None

    with pytest.raises(VersionConflictError) as caught:
        state.compare_and_set(0, Stock())
    assert (caught.value.expected, caught.value.actual) == (0, 1)
    assert state.value is replacement


def test_an_event_may_want_a_version_too():
    state = stock()
    state.apply(Moved("a", 1), expected=0)

    with pytest.raises(VersionConflictError):
        state.apply(Moved("a", 1), expected=0)
    assert state.version == 1


def test_of_concurrent_writers_one_wins_each_version():
    state = State(0, lambda value, event: value)

    def increment() -> int:
        lost = 0
        for _ in range(200):
            while True:
                version, value = state.current
                try:
                    state.compare_and_set(version, value + 1)
                except VersionConflictError:
                    lost += 1
                else:
                    break
        return lost

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: increment(), range(4)))

    assert state.current == (800, 800)


# -- subscribers ----------------------------------------------------------------------------------


def test_subscribers_get_every_change_until_they_close():
    state = stock()
    changes: list[Change[Stock]] = []
    with state.subscribe(changes.append) as subscription:
        state.apply(Moved("a", 1))
        state.fold([Moved("a", 1), Moved("b", 1)])
        assert subscription.is_open
    state.apply(Moved("a", 1))

    assert [change.version for change in changes] == [1, 2, 3]
    assert changes[1].before is changes[0].after
    assert changes[0].patch == (
        {"op": "add", "path": "/counts/a", "value": 1},
        {"op": "add", "path": "/journal/0", "value": "a"},
    )
    assert changes[0].patch is changes[0].patch


def test_a_failing_subscriber_does_not_stop_the_others(caplog):
    def fail(change: Change[Stock]) -> None:
        raise RuntimeError("subscriber")

    state = stock()
    seen = []
    state.subscribe(fail)
    state.subscribe(lambda change: seen.append(change.version))
    with caplog.at_level(logging.ERROR):
        state.apply(Moved("a", 1))

    assert seen == [1]
    assert "subscriber" in caplog.text


def test_a_subscriber_may_apply_events_and_all_see_the_versions_in_order():
    state = State(0, lambda value, event: value + event)
    seen = []

    def react(change: Change[int]) -> None:
        if change.version < 3:
            state.apply(10)

    state.subscribe(react)
    state.subscribe(lambda change: seen.append((change.version, change.after)))
    state.apply(1)

    assert seen == [(1, 1), (2, 11), (3, 21)]


def test_threads_that_apply_at_once_are_told_in_order():
    state = State(0, lambda value, event: value + event)
    seen: list[int] = []
    state.subscribe(lambda change: seen.append(change.version))
    start = threading.Barrier(4)

    def work() -> None:
        start.wait(30)
        for _ in range(250):
            state.apply(1)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: work(), range(4)))

    assert state.current == (1000, 1000)
    assert seen == list(range(1, 1001))


def test_what_came_before_a_failing_event_of_a_fold_is_applied():
    state = stock()

    with pytest.raises(TransitionError):
        state.fold([Moved("a", 1), Moved("a", -2), Moved("a", 1)])
    assert state.version == 1


# -- laws -----------------------------------------------------------------------------------------

events = st.builds(Moved, st.sampled_from("abc/"), st.integers(0, 3)) | st.builds(
    Removed, st.sampled_from("abc/")
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(events=st.lists(events, max_size=12), data=st.data())
def test_patches_lead_from_any_version_to_any_other(events, data):
    state = stock()
    changes = [state.apply(event) for event in events]
    start = data.draw(st.integers(0, state.version))
    stop = data.draw(st.integers(0, state.version))

    assert apply_patch(state.at(start), state.patch(start, stop)) == state.at(stop)
    document = plain(state.at(start))
    for change in changes[start:stop]:
        document = apply_patch(document, change.patch)
    if start <= stop:
        assert document == plain(state.at(stop))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(events=st.lists(events, max_size=12))
def test_a_replay_leads_to_the_same_state(events):
    state = stock()
    state.fold(events)

    assert transitions.fold(Stock(), events) == state.value
    assert state.version == len(events)

"""StateProjector: cheap for publishers, right for readers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.core.event_bus import EventBus
from atlas.core.messages import Event, message
from atlas.core.patches import apply_patch, plain
from atlas.core.state import State
from atlas.core.state_projector import StateProjector, selector
from atlas.core.transitions import Transitions
from atlas.errors import (
    ConfigurationError,
    StateError,
    TransitionError,
    UnknownVersionError,
)


@dataclass(frozen=True)
class Board:
    score: int = 0
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scored:
    points: int


@message("test_state_projector.points_scored", version=1)
class PointsScored(Event):
    points: int


@dataclass(frozen=True)
class Joined:
    name: str


def transitions_and_calls() -> tuple[Transitions[Board], list[object]]:
    transitions = Transitions[Board]()
    calls: list[object] = []

    @transitions.on(Scored)
    def score(state: Board, event: Scored) -> Board:
        calls.append(event)
        if event.points < 0:
            raise ValueError("negative points")
        return replace(state, score=state.score + event.points)

    @transitions.on(Joined)
    def join(state: Board, event: Joined) -> Board:
        calls.append(event)
        return replace(state, names=(*state.names, event.name))

    return transitions, calls


def board(**options) -> StateProjector[Board]:
    return StateProjector(Board(), transitions_and_calls()[0], **options)


class Source:
    """The least a bus must be."""

    def __init__(self) -> None:
        self.handlers = {}

    def subscribe(self, selector, handler):
        source, key = self, object()
        self.handlers[key] = (selector, handler)

        class Handle:
            def close(self) -> None:
                source.handlers.pop(key, None)

        return Handle()

    def publish(self, event) -> None:
        for kinds, handler in list(self.handlers.values()):
            if isinstance(event, kinds):
                handler(event)


def test_a_projector_follows_the_events_of_a_source():
    source = Source()
    projector = board().attach(source)
    source.publish(Scored(3))
    source.publish("nothing of mine")
    source.publish(Joined("Ann"))

    assert projector.value == Board(3, ("Ann",))
    assert projector.version == 2
    projector.close()
    source.publish(Scored(3))
    assert projector.value.score == 3
    assert source.handlers == {}


def test_a_projector_listens_to_a_bus():
    transitions = Transitions[int]()

    @transitions.on(PointsScored)
    def score(state: int, event: PointsScored) -> int:
        if event.points < 0:
            raise ValueError("negative points")
        return state + event.points

    with EventBus() as bus, StateProjector(0, transitions, max_pending=2).attach(bus) as projector:
        for points in (1, 2, 3):
            bus.publish(PointsScored(points=points))
        assert projector.current == (3, 6)

        bus.publish(PointsScored(points=-1))
        receipt = bus.publish(PointsScored(points=4))
        assert isinstance(receipt.errors[0], TransitionError)
        assert projector.current == (4, 10)


def test_events_are_applied_when_somebody_looks():
    transitions, calls = transitions_and_calls()
    projector = StateProjector(Board(), transitions)
    for _ in range(5):
        projector.project(Scored(1))
    assert calls == []

    assert projector.version == 5
    assert len(calls) == 5
    assert projector.value.score == 5
    assert len(calls) == 5


def test_events_are_applied_when_too_many_gather():
    transitions, calls = transitions_and_calls()
    projector = StateProjector(Board(), transitions, max_pending=3)
    for _ in range(4):
        projector.project(Scored(1))

    assert len(calls) == 3
    with pytest.raises(ConfigurationError):
        StateProjector(Board(), transitions, max_pending=0)
    with pytest.raises(ConfigurationError):
        StateProjector(Board(), transitions, max_pending="many")


def test_earlier_versions_and_patches_between_them_can_be_read():
    projector = board(history=2)
    for _ in range(4):
        projector.project(Scored(1))

    assert projector.at(2) == Board(2)
    assert projector.patch(2) == ({"op": "replace", "path": "/score", "value": 4},)
    with pytest.raises(UnknownVersionError):
        projector.at(1)


def test_a_failing_event_is_told_once_and_set_aside():
    projector = board()
    bad = Scored(-1)
    for event in (Scored(1), bad, Scored(2)):
        projector.project(event)

    with pytest.raises(TransitionError) as caught:
        _ = projector.value
    assert caught.value.event is bad
    assert caught.value.version == 1
    assert projector.value == Board(3)
    assert projector.version == 2


@pytest.mark.parametrize("count", [3, 4, 5, 50])
def test_events_folded_together_lead_to_the_same_versions(count):
    transitions, calls = transitions_and_calls()
    asked = []

    def together(state: Board, events) -> Board:
        asked.append(len(events))
        return transitions.fold(state, events)

    events = [Scored(n) if n % 3 else Joined(str(n)) for n in range(count)]
    plain, quick = board(history=3), StateProjector(Board(), transitions, history=3, fold=together)
    for projector in (plain, quick):
        for event in events:
            projector.project(event)

    assert quick.current == plain.current
    assert calls == events
    assert asked == ([count - 3] if count > 4 else [])
    assert [quick.at(n) for n in range(count - 3, count)] == [
        plain.at(n) for n in range(count - 3, count)
    ]
    if count > 3:
        with pytest.raises(UnknownVersionError, match=f"there are {count - 3} to {count}"):
            quick.at(count - 4)


def test_a_failing_event_among_those_folded_together_is_told_and_set_aside_alone():
    transitions, _ = transitions_and_calls()
    projector = StateProjector(Board(), transitions, history=0, fold=transitions.fold)
    bad = Scored(-1)
    for event in (Scored(1), bad, Scored(2), Scored(4)):
        projector.project(event)

    with pytest.raises(TransitionError) as caught:
        _ = projector.value
    assert (caught.value.event, caught.value.version) == (bad, 1)
    assert projector.current == (3, Board(7))


def test_a_state_with_subscribers_leaves_no_version_out():
    transitions, _ = transitions_and_calls()
    state = State(Board(), transitions)
    told = []
    with state.subscribe(told.append):
        assert not state.leap([Scored(1), Scored(2)], transitions.fold)
    assert (state.version, told) == (0, [])

    assert state.leap([Scored(1), Scored(2)], transitions.fold)
    assert (state.current, state.versions) == ((2, Board(3)), range(2, 3))


def test_what_folds_events_together_cannot_change_the_state_meanwhile():
    state = State(0, lambda value, event: value + event)

    def meddle(value: int, events) -> int:
        with pytest.raises(StateError):
            state.apply(1)
        return value + sum(events)

    assert state.leap([1, 2], meddle)
    assert state.current == (2, 3)


# -- live subscribers -----------------------------------------------------------------------------


def test_live_subscribers_get_versions_and_patches():
    projector = board()
    projector.project(Scored(1))
    told = []
    subscription = projector.subscribe(lambda version, patch: told.append((version, patch)))
    assert (subscription.version, subscription.value) == (1, Board(1))
    projector.project(Scored(2))
    projector.project(Joined("Ann"))

    assert told == [
        (2, ({"op": "replace", "path": "/score", "value": 3},)),
        (3, ({"op": "add", "path": "/names/0", "value": "Ann"},)),
    ]
    subscription.close()
    projector.project(Scored(2))
    assert len(told) == 2
    assert not subscription.is_open


def test_without_subscribers_projection_is_lazy_again():
    transitions, calls = transitions_and_calls()
    projector = StateProjector(Board(), transitions)
    with projector.subscribe(lambda version, patch: None):
        projector.project(Scored(1))
    projector.project(Scored(1))

    assert len(calls) == 1


def test_a_subscriber_may_read_and_project():
    projector = board()
    seen = []

    def react(version: int, patch: object) -> None:
        seen.append(projector.value.score)
        if projector.value.score < 3:
            projector.project(Scored(1))

    projector.subscribe(react)
    projector.project(Scored(1))

    assert seen == [1, 2, 3]


board_events = st.builds(Scored, st.integers(0, 2)) | st.builds(Joined, st.sampled_from("AB"))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(before=st.lists(board_events, max_size=4), after=st.lists(board_events, max_size=8))
def test_the_patches_of_a_subscriber_rebuild_the_state(before, after):
    projector = board()
    for event in before:
        projector.project(event)
    patches = []
    subscription = projector.subscribe(lambda version, patch: patches.append(patch))
    for event in after:
        projector.project(event)
    copy = plain(subscription.value)
    for patch in patches:
        copy = apply_patch(copy, patch)

    assert copy == plain(projector.value)


def test_threads_lose_no_event():
    projector = board(max_pending=7)
    told: list[int] = []
    projector.subscribe(lambda version, patch: told.append(version))

    def work() -> None:
        for _ in range(200):
            projector.project(Scored(1))
            assert projector.version > 0

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: work(), range(4)))

    assert projector.current == (800, Board(800))
    assert told == sorted(set(told))
    assert told[-1] == 800


# -- selectors ------------------------------------------------------------------------------------


def test_a_selector_computes_again_only_if_its_inputs_changed():
    @selector(lambda state: state.names)
    def roster(names: tuple[str, ...]) -> str:
        """Everybody, in order."""
        return ", ".join(sorted(names))

    projector = board()
    for event in (Joined("Bob"), Joined("Ann")):
        projector.project(event)
    first = roster(projector.value)
    projector.project(Scored(5))

    assert first == "Ann, Bob"
    assert roster(projector.value) is first
    assert roster.computations == 1
    assert roster.__doc__ == "Everybody, in order."
    projector.project(Joined("Cid"))
    assert roster(projector.value) == "Ann, Bob, Cid"
    assert roster.computations == 2


def test_selectors_build_on_selectors():
    @selector(lambda state: state.score // 10)
    def level(tens: int) -> int:
        return tens + 1

    @selector(level, lambda state: state.names)
    def title(level: int, names: tuple[str, ...]) -> str:
        return f"{len(names)} on level {level}"

    assert title(Board(12345, ("A",))) == "1 on level 1235"
    assert title(Board(12346, ("A",))) != title(Board(99999, ("A",)))
    assert (level.computations, title.computations) == (2, 2)


def test_a_selector_without_inputs_gets_the_state():
    @selector()
    def score(state: Board) -> int:
        return state.score

    assert score(Board(4)) == 4


def test_true_and_one_are_different_inputs():
    @selector(lambda state: state)
    def kind(value: object) -> type:
        return type(value)

    assert [kind(1), kind(True), kind(1.0)] == [int, bool, float]

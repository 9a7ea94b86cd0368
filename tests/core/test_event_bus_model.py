"""The bus beside a naive model of it: whatever is subscribed, closed and published, both agree.

The model is what the promises say, written down as simply as they can be: lists, sorted when they are
looked at, and recursion. It knows no routes, lanes or caches, which is what this looks for mistakes in.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from atlas.core.event_bus import EventBus, HandlerFailed
from atlas.core.messages import Event, message


@message("model.all.any")
class Anything(Event):
    number: int


@message("model.base")
class Base(Anything):
    pass


@message("model.base.child")
class Child(Base):
    pass


@message("model.other")
class Other(Anything):
    pass


KINDS = (Base, Child, Other)
SELECTORS = {
    "Base": (Base, {Base, Child}),
    "Child": (Child, {Child}),
    "Anything": (Anything, {Base, Child, Other}),
    "model.*": ("model.*", {Base, Other}),
    "model.**": ("model.**", {Base, Child, Other}),
    "both": ((Child, "model.other"), {Child, Other}),
    "one twice": ((Base, "model.base.*"), {Base, Child}),
}
Deed = Literal["nothing", "fail", "publish", "close", "subscribe"]


@dataclass(frozen=True)
class Wish:
    """What a handler is subscribed with, and what it does."""

    selector: str
    deed: Deed
    is_async: bool
    suspends: bool
    priority: int
    once: bool
    only_even: bool

    def fits(self, number: int) -> bool:
        return number % 2 == 0 or not self.only_even


BORN = Wish("Anything", "nothing", False, False, 0, False, False)
"""What a handler whose deed is to subscribe subscribes."""

wishes = st.builds(
    Wish,
    selector=st.sampled_from(sorted(SELECTORS)),
    deed=st.sampled_from(["nothing", "nothing", "fail", "publish", "close", "subscribe"]),
    is_async=st.booleans(),
    suspends=st.booleans(),
    priority=st.integers(-1, 1),
    once=st.booleans(),
    only_even=st.booleans(),
)


@dataclass
class Member:
    name: int
    wish: Wish
    is_open: bool = True
    is_used: bool = False


@dataclass
class Told:
    """What was seen: of plain handlers in which order, of each async one in its own."""

    plain: list[tuple[int, type, int]] = field(default_factory=list)
    by_async: dict[int, list[tuple[type, int]]] = field(default_factory=lambda: defaultdict(list))
    failures: int = 0


class Model:
    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.names = itertools.count()
        self.told = Told()

    def subscribe(self, wish: Wish) -> None:
        name = next(self.names)
        self.members[name] = Member(name, wish)

    def close(self, name: int) -> None:
        if name in self.members:
            self.members[name].is_open = False

    def publish(self, kind: type, number: int) -> None:
        waiting: list[tuple[Member, type, int]] = []
        self._dispatch(kind, number, waiting)
        for member, which, what in waiting:  # in the order published
            if self._takes(member, what):
                self.told.by_async[member.name].append((which, what))
                self.told.failures += member.wish.deed == "fail"

    def _dispatch(self, kind: type, number: int, waiting: list[tuple[Member, type, int]]) -> None:
        reached = [
            one
            for one in self.members.values()
            if one.is_open and kind in SELECTORS[one.wish.selector][1]
        ]
        reached.sort(key=lambda one: (-one.wish.priority, one.name))
        waiting += [(one, kind, number) for one in reached if one.wish.is_async]
        for member in reached:
            # who is closed meanwhile has been reached already
            if not member.wish.is_async and self._takes(member, number, also_closed=True):
                self.told.plain.append((member.name, kind, number))
                self._do(member, number, waiting)

    def _takes(self, member: Member, number: int, *, also_closed: bool = False) -> bool:
        if not (member.is_open or also_closed) or not member.wish.fits(number):
            return False
        if member.wish.once:
            if member.is_used:
                return False
            member.is_used, member.is_open = True, False
        return True

    def _do(self, member: Member, number: int, waiting: list[tuple[Member, type, int]]) -> None:
        match member.wish.deed:
            case "fail":
                self.told.failures += 1
            case "publish" if number > 0:
                self._dispatch(Other, number - 1, waiting)
            case "close":
                self.close(number)
            case "subscribe":
                self.subscribe(BORN)


class BusBesideModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.bus = EventBus(max_depth=1_000)
        self.model = Model()
        self.told = Told()
        self.names = itertools.count()
        self.handles = {}
        self.bus.subscribe(HandlerFailed, self._count_failure, priority=9)

    def _count_failure(self, failed: HandlerFailed) -> None:
        self.told.failures += 1

    def _subscribe(self, wish: Wish) -> None:
        name = next(self.names)

        def handle(happened: Base) -> None:
            self.told.plain.append((name, type(happened), happened.number))
            self._do(wish, happened.number)

        async def handle_async(happened: Base) -> None:
            if wish.suspends:
                await asyncio.sleep(0)
            self.told.by_async[name].append((type(happened), happened.number))
            if wish.deed == "fail":
                raise ValueError(name)

        self.handles[name] = self.bus.subscribe(
            SELECTORS[wish.selector][0],
            handle_async if wish.is_async else handle,
            where=(lambda happened: happened.number % 2 == 0) if wish.only_even else None,
            priority=wish.priority,
            once=wish.once,
            loop=self.loop if wish.is_async else None,
        )

    def _do(self, wish: Wish, number: int) -> None:
        match wish.deed:
            case "fail":
                raise ValueError(number)
            case "publish" if number > 0:
                self.bus.publish(Other(number - 1))
            case "close":
                self._close(number)
            case "subscribe":
                self._subscribe(BORN)

    def _close(self, name: int) -> None:
        if name in self.handles:
            self.handles[name].close()

    # -- what may happen --------------------------------------------------------------------------

    @rule(wish=wishes)
    def subscribe(self, wish: Wish) -> None:
        self.model.subscribe(wish)
        self._subscribe(wish)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.handles)))
        self.model.close(name)
        self._close(name)

    @rule(kind=st.sampled_from(KINDS), number=st.integers(0, 3), is_awaited=st.booleans())
    def publish(self, kind: type, number: int, is_awaited: bool) -> None:
        self.model.publish(kind, number)

        async def publish() -> None:
            receipt = self.bus.publish(kind(number))
            if is_awaited:
                await receipt
                assert receipt.done
            await self.bus.drain(5)

        self.runner.run(publish())

    # -- what always holds ------------------------------------------------------------------------

    @invariant()
    def both_have_seen_the_same(self) -> None:
        assert self.told.plain == self.model.told.plain
        assert dict(self.told.by_async) == dict(self.model.told.by_async)
        assert self.told.failures == self.model.told.failures

    @invariant()
    def both_have_the_same_subscriptions_open(self) -> None:
        mine = {name for name, handle in self.handles.items() if handle.is_open}
        assert mine == {name for name, one in self.model.members.items() if one.is_open}
        assert len(self.bus.metrics) == len(mine) + 1

    def teardown(self) -> None:
        self.bus.close()
        self.runner.close()


BusBesideModel.TestCase.settings = settings(
    max_examples=80, stateful_step_count=30, deadline=None, print_blob=True
)


class TestTheBusBesideANaiveModelOfIt(BusBesideModel.TestCase):
    pass

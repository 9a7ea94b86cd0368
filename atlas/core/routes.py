"""Routes: how messages of one class reach their handlers.

A route is made when the first message of a class is published, and made anew when subscriptions
change. What can be decided then is decided then: `Route.begin` hands a message over to lanes,
`Route.call` runs the plain handlers, and each is None where there is nothing to do.
"""

from __future__ import annotations

import asyncio
import functools
import types
from asyncio import AbstractEventLoop, CancelledError
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import length_hint
from typing import Any, TypeAlias, cast

from atlas.core.event_loops import Ports
from atlas.core.messages import Message
from atlas.core.ports import Failed, Group
from atlas.core.receipts import Joint, Receipt
from atlas.core.subscriptions import Subscription, check_returned

__all__ = ["Begin", "Call", "Route", "in_turn", "place_of_failure"]

Call: TypeAlias = Callable[[Any], object]
Begin: TypeAlias = Callable[[Any], Receipt[Any]]

_running_loop = asyncio._get_running_loop


class Route:
    """Where messages of one class go. Replaced, never changed, when subscriptions change.

    Attributes:
        all: Every subscription, in order.
        owners: Those with plain handlers, which run in the publisher's thread.
        lanes: Those with async handlers, on whose end receipts wait.
        observers: Those with a lane of their own.
        call: Runs the plain handlers in turn; None if there are none. Set by `open`, as is:
        begin: Hands a message over to lanes and observers and returns its receipt; None if there
            are none of those.
    """

    __slots__ = ("all", "begin", "call", "lanes", "observers", "owners", "posts")

    def __init__(self, subscriptions: Iterable[Subscription[Any]]) -> None:
        self.all: tuple[Subscription[Any], ...] = tuple(subscriptions)
        reliable = [one for one in self.all if one.options.mode == "reliable"]
        self.owners: tuple[Subscription[Any], ...] = tuple(
            one for one in reliable if not one.is_async
        )
        self.lanes: tuple[Subscription[Any], ...] = tuple(one for one in reliable if one.is_async)
        self.observers: tuple[Subscription[Any], ...] = tuple(
            one for one in self.all if one.options.mode == "observer"
        )
        self.call: Call | None = None
        self.begin: Begin | None = None
        self.posts: dict[AbstractEventLoop | None, tuple[Begin, tuple[Group, ...]]] = {}

    def open(self, ports: Ports, failed: Failed) -> None:
        """Make ready to take messages. Under the lock of the bus."""
        self.call = in_turn(
            [one.call for one in self.owners], [one.may_return for one in self.owners]
        )
        if self.lanes and all(one.options.loop is not None for one in self.lanes):
            # Where every handler has a loop of its own, nobody asks which one runs here.
            self.begin = self._post_on(None, ports)
        elif self.lanes:
            self.begin = functools.partial(self._post, ports)
        if self.observers:
            self.begin = _offering(self.observers, self.begin, failed)

    def _post(self, ports: Ports, message: Message) -> Receipt[Any]:
        """Hand a message over to handlers of which some belong to the publisher's loop."""
        running = _running_loop()
        found = self.posts.get(running)
        if found is not None:
            return found[0](message)
        with ports.lock:
            return self._post_on(running, ports)(message)

    def _post_on(self, running: AbstractEventLoop | None, ports: Ports) -> Begin:
        groups = ports.groups(self.lanes, running)
        post = groups[0].post if len(groups) == 1 else _joint_post(groups)
        self.posts[running] = post, groups
        return post

    def groups(self) -> Iterator[Group]:
        """Yield the lanes that messages were sent to on this route."""
        for _, groups in list(self.posts.values()):
            yield from groups


def _joint_post(groups: tuple[Group, ...]) -> Begin:
    def post(message: Message) -> Receipt[Message]:
        return Joint(message, [group.post(message) for group in groups])

    return post


def _offering(observers: Sequence[Subscription[Any]], then: Begin | None, failed: Failed) -> Begin:
    offers = tuple(
        (one.observer_lane, one.observer_lane.queue, one.options.where, one) for one in observers
    )

    def offer_to_all(message: Message) -> Receipt[Any]:
        for lane, queue, where, subscription in offers:
            if where is None and len(queue) < lane.room:  # most often: no call, no lock
                queue.append(message)
                if not lane.called:
                    lane.call()
                continue
            try:
                if where is None or where(message):
                    lane.offer(message)
            except (Exception, CancelledError) as error:  # noqa: BLE001  it stops nobody
                failed(subscription, message, error)
        if then is not None:
            return then(message)
        receipt: Receipt[Any] = Receipt()
        receipt.message = message
        return receipt

    return offer_to_all


# -- calling one handler after another ------------------------------------------------------------

_WRITTEN_OUT = 128
_FIRST_CALL = 3  # its line in the source below


def in_turn(calls: Sequence[Call], may_return: Sequence[bool]) -> Call | None:
    """Return one callable that calls all of these with its argument, in order; None for none.

    It ends with the first that raises; `place_of_failure` tells which. What those return that may
    return something goes through `check_returned`. Up to 128 calls are written out, not looped over:
    each then has an instruction of its own, which the interpreter adapts to the one function called
    there. That saves up to a fifth of what calling a handler costs.
    """
    if len(calls) > _WRITTEN_OUT:
        return _looped(
            tuple(
                _checked(call) if returns else call
                for call, returns in zip(calls, may_return, strict=True)
            )
        )
    if not any(may_return) and len(calls) < 2:
        return calls[0] if calls else None
    made = _writer(tuple(may_return))(*calls)
    # a copy of the code, for what the interpreter learns about calls is kept in the code
    return types.FunctionType(
        made.__code__.replace(), made.__globals__, made.__name__, None, made.__closure__
    )


def place_of_failure(error: BaseException, count: int) -> int:
    """Return which of so many calls in turn raised an error caught where they were called.

    It is told by the line the error came through, so that it costs nothing until something fails.
    """
    caught = error.__traceback__
    if count < 2 or caught is None or caught.tb_next is None:
        return 0
    through = caught.tb_next
    if count > _WRITTEN_OUT:
        return count - length_hint(through.tb_frame.f_locals["left"]) - 1
    return through.tb_lineno - _FIRST_CALL


def _looped(calls: tuple[Call, ...]) -> Call:
    def each(message: Message) -> None:
        left = iter(calls)
        for call in left:
            call(message)

    return each


def _checked(call: Call) -> Call:
    def checked(message: Message) -> None:
        check_returned(call(message))

    return checked


@functools.lru_cache(maxsize=_WRITTEN_OUT)
def _writer(may_return: tuple[bool, ...]) -> Callable[..., types.FunctionType]:
    names = [f"call{number}" for number in range(len(may_return))]
    lines = [
        f"if (got := {name}(message)) is not None: check_returned(got)"
        if returns
        else f"{name}(message)"
        for name, returns in zip(names, may_return, strict=True)
    ]
    text = "\n".join(
        [
            f"def write({', '.join(names)}):",
            "    def each(message):",
            *(f"        {line}" for line in lines),
            "    return each",
        ]
    )
    made: dict[str, object] = {"check_returned": check_returned}
    exec(compile(text, "<handlers in turn>", "exec"), made)  # noqa: S102  our own source
    return cast("Callable[..., types.FunctionType]", made["write"])

"""Letters between agents: to one by name, to a role, to a capability, to all.

A letter may be delivered more than once, by a sender that tries again or a wire that repeats; it is
handled once by each who gets it. Each ends in a confirmation, or as a dead letter that says why.
Letters are handled in the context in which the post office was opened: inside a recorded run, as part
of it. Each letter, and what becomes of it, is an event on the bus too.
"""

from __future__ import annotations

import asyncio
import heapq
import inspect
import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self, TypeAlias

from atlas.agents.messages import (
    AgentMessage,
    Kind,
    LetterStatus,
    MessageDead,
    MessageReceived,
    MessageRetried,
)
from atlas.agents.settings import check, is_count, is_number, listed
from atlas.agents.work import is_fatal
from atlas.core.causality import caused_by
from atlas.core.effects import current_run, uuid
from atlas.core.event_bus import EventBus
from atlas.core.subscriptions import Subscription
from atlas.errors import (
    ConfigurationError,
    UndeliverableError,
    WaitTimeoutError,
    nearest_name,
)
from atlas.typing import JSON

__all__ = ["Handler", "PostOffice"]

Handler: TypeAlias = "Callable[[AgentMessage], Awaitable[JSON] | JSON]"
"""What an agent does with a letter; what it returns, but None, is answered to the sender.

Answers are not answered: who handles one may return what it likes."""

_ANSWERS: Final[dict[Kind, Kind]] = {
    "query": "response",
    "task": "result",
    "tool_request": "tool_response",
}


@dataclass(slots=True, eq=False)
class _Delivery:
    """One letter on its way to one agent; ``came`` is when, ``ended`` whether it was handled."""

    letter: AgentMessage
    ended: asyncio.Future[bool]
    came: float
    status: LetterStatus = "waiting"
    why: str = ""


@dataclass(slots=True, eq=False)
class _Box:
    """The letters that wait for one agent."""

    name: str
    handler: Handler
    role: str
    capabilities: frozenset[str]
    where: Callable[[AgentMessage], bool] | None
    waiting: list[tuple[int, int, _Delivery]] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    seen: OrderedDict[str, _Delivery] = field(default_factory=OrderedDict)


class PostOffice:
    """Delivers letters between agents: an async context manager.

    ::

        async with PostOffice(bus) as post:
            post.open("fx", handle, capabilities={"currency"})
            answer = await post.ask("me", "capability:currency", {"amount": 12})

    Args:
        bus: Where letters, and what becomes of them, are told. Letters that others publish there are
            delivered too, but not inside a recorded run, which nothing may get into unrecorded.
        attempts: How often a letter is tried when handling it fails.
        wait: Seconds before the second attempt; doubled each time after.
        remembered: How many letters each agent remembers, so that none is handled twice.
    """

    def __init__(
        self, bus: EventBus, *, attempts: int = 3, wait: float = 0.1, remembered: int = 10_000
    ) -> None:
        check("bus", bus, isinstance(bus, EventBus), "bus=app.bus, or a bus of your own")
        check("attempts", attempts, is_count(attempts), "a whole number from 1")
        check("wait", wait, is_number(wait, 0), "seconds, 0 or more")
        check("remembered", remembered, is_count(remembered), "a whole number from 1")
        self._bus = bus
        self._attempts = attempts
        self._wait = wait
        self._remembered = remembered
        self._boxes: dict[str, _Box] = {}
        self._workers: dict[str, list[asyncio.Task[None]]] = {}
        self._asked: dict[str, asyncio.Future[AgentMessage]] = {}
        self._count = itertools.count()
        self._subscription: Subscription[AgentMessage] | None = None
        self._own: set[str] = set()

    async def __aenter__(self) -> Self:
        if current_run() is None:
            loop = asyncio.get_running_loop()

            def hear(letter: AgentMessage) -> None:
                if letter.id not in self._own:
                    loop.call_soon_threadsafe(self._take, letter)

            self._subscription = self._bus.subscribe(AgentMessage, hear)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._subscription is not None:
            self._subscription.close()
        for name in list(self._boxes):
            await self.close(name)

    # -- boxes ------------------------------------------------------------------------------------

    def open(
        self,
        name: str,
        handler: Handler,
        *,
        role: str = "",
        capabilities: Collection[str] = (),
        where: Callable[[AgentMessage], bool] | None = None,
        at_once: int = 1,
    ) -> None:
        """Let an agent get letters.

        Args:
            name: Its id.
            handler: What it does with a letter; plain or ``async``.
            role: Its role.
            capabilities: What it can do.
            where: Which letters it takes; others are dead letters.
            at_once: How many it handles side by side.

        Raises:
            ConfigurationError: The name is taken, or means several; or the handler cannot be called.
        """
        check("name", name, isinstance(name, str), "the name of an agent")
        if not name or name == "*" or ":" in name:
            raise ConfigurationError(
                f"Nobody can be called {name!r}: * means all, and what stands before a colon is role or "
                f"capability. Give a plain name."
            )
        check(f"The handler of {name!r}", handler, callable(handler), "a function")
        check(f"The role of {name!r}", role, isinstance(role, str), "a text")
        check(f"where of {name!r}", where, where is None or callable(where), "a function, or None")
        check(f"at_once of {name!r}", at_once, is_count(at_once), "a whole number from 1")
        able = listed(f"capabilities of {name!r}", capabilities, "a set of names")
        if name in self._boxes:
            raise ConfigurationError(f"{name!r} gets letters already. Close its box before.")
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise ConfigurationError(
                f"The box of {name!r} is opened where no event loop runs. Open it inside of `async with "
                f"PostOffice(bus) as post:`."
            ) from error
        box = _Box(name, handler, role, frozenset(able), where)
        self._boxes[name] = box
        self._workers[name] = [asyncio.create_task(self._work(box)) for _ in range(at_once)]

    async def close(self, name: str) -> None:
        """Let an agent get no more letters; those that wait are dead. Idempotent."""
        if name not in self._boxes:
            return
        box = self._boxes.pop(name)
        workers = self._workers.pop(name)
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        while box.waiting:
            self._bury(heapq.heappop(box.waiting)[2], f"{name} gets no more letters")

    def status(self, letter: str) -> dict[str, LetterStatus]:
        """Return how far a letter is, by the names of those it is for; empty: nobody has heard of it.

        Args:
            letter: The letter's id.
        """
        return {
            box.name: box.seen[letter].status for box in self._boxes.values() if letter in box.seen
        }

    # -- sending ----------------------------------------------------------------------------------

    async def send(self, letter: AgentMessage) -> tuple[str, ...]:
        """Deliver a letter and wait until it is handled: the confirmation.

        Args:
            letter: The letter; one with the id of an earlier one is that one again.

        Returns:
            Who handled it. Where each of them gave it up, nobody: then it is a dead letter, and `status`
            says so.

        Raises:
            UndeliverableError: Nobody is there; it is a dead letter.
        """
        check("letter", letter, isinstance(letter, AgentMessage), "an AgentMessage")
        self._own.add(letter.id)
        told = self._bus.publish(letter).message
        with caused_by(told):
            try:
                boxes = self._addressed(letter)
                deliveries = [(box.name, self._put(box, letter)) for box in boxes]
                for _, each in deliveries:
                    await asyncio.shield(each.ended)
            finally:
                self._own.discard(letter.id)
        return tuple(name for name, each in deliveries if each.status == "handled")

    async def ask(
        self,
        sender: str,
        to: str,
        body: JSON = None,
        *,
        kind: Kind = "query",
        priority: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109  it is also the letter's deadline
    ) -> AgentMessage:
        """Send a letter and return the answer to it, which is put into no box then.

        Args:
            sender: Who asks.
            to: Whom.
            body: What.
            kind: What sort of letter it is.
            priority: Higher is handled first.
            timeout: Seconds to wait for the answer; None: as long as it takes.

        Raises:
            UndeliverableError: Nobody is there, or nobody answers.
            WaitTimeoutError: There is no answer in time; a `TimeoutError`.
        """
        letter = AgentMessage(
            uuid().hex, sender, to, kind, body, priority=priority, deadline=timeout
        )
        answer: asyncio.Future[AgentMessage] = asyncio.get_running_loop().create_future()
        self._asked[letter.id] = answer
        try:
            async with asyncio.timeout(timeout):
                handled = await self.send(letter)
                if not answer.done():
                    raise UndeliverableError(self._unanswered(letter, handled))
                return answer.result()
        except TimeoutError as error:
            assert timeout is not None  # else nothing is late
            raise WaitTimeoutError(
                f"{to!r} did not answer within {timeout} s.", timeout=timeout
            ) from error
        finally:
            del self._asked[letter.id]

    def _unanswered(self, letter: AgentMessage, handled: Collection[str]) -> str:
        if handled:
            return (
                f"{', '.join(handled)} handled the letter to {letter.to!r} and did not answer. Let the "
                f"handler return something."
            )
        seen = [box.seen[letter.id] for box in self._boxes.values() if letter.id in box.seen]
        why = "; ".join(each.why for each in seen if each.why) or "its box was closed"
        return f"Nobody handled the letter to {letter.to!r}: {why}."

    def _addressed(self, letter: AgentMessage) -> list[_Box]:
        to = letter.to
        kind, _, name = to.partition(":")
        if to == "*":
            found = [box for box in self._boxes.values() if box.name != letter.sender]
        elif kind == "role" and name:
            found = [box for box in self._boxes.values() if box.role == name]
        elif kind == "capability" and name:
            able = [box for box in self._boxes.values() if name in box.capabilities]
            found = [min(able, key=lambda box: len(box.waiting))] if able else []
        else:
            found = [self._boxes[to]] if to in self._boxes else []
        if not found and letter.id not in self._asked and letter.correlation in self._asked:
            return []  # an answer to who asked without a box
        if not found:
            why = f"nobody is {to!r}{nearest_name(to, self._boxes)}"
            self._bus.publish(MessageDead(letter, why))
            raise UndeliverableError(
                f"The letter {letter.id} cannot be delivered: {why}. There are: "
                f"{', '.join(self._boxes) or 'none'}."
            )
        return found

    def _take(self, letter: AgentMessage) -> None:
        """Deliver a letter that somebody else published."""
        try:
            for box in self._addressed(letter):
                self._put(box, letter)
        except UndeliverableError:
            return  # told by `MessageDead`

    def _put(self, box: _Box, letter: AgentMessage) -> _Delivery:
        known = box.seen.get(letter.id)
        if known is not None:
            return known
        loop = asyncio.get_running_loop()
        made = box.seen[letter.id] = _Delivery(letter, loop.create_future(), loop.time())
        while len(box.seen) > self._remembered:
            box.seen.popitem(last=False)
        if why := _refused(box, letter):
            self._bury(made, why)
            return made
        heapq.heappush(box.waiting, (-letter.priority, next(self._count), made))
        box.news.set()
        if letter.deadline is not None:
            loop.call_later(letter.deadline, self._drop_late, box, made)
        return made

    def _drop_late(self, box: _Box, late: _Delivery) -> None:
        if late.status != "waiting":
            return
        box.waiting = [entry for entry in box.waiting if entry[2] is not late]
        heapq.heapify(box.waiting)
        self._bury(late, "it is too late")

    def _bury(self, given_up: _Delivery, why: str) -> None:
        given_up.status, given_up.why = "dead", why
        self._bus.publish(MessageDead(given_up.letter, why))
        if not given_up.ended.done():
            given_up.ended.set_result(False)

    # -- handling ---------------------------------------------------------------------------------

    async def _work(self, box: _Box) -> None:
        while True:
            while not box.waiting:
                box.news.clear()
                await box.news.wait()
            delivery = heapq.heappop(box.waiting)[2]
            delivery.status = "in_hand"
            try:
                await self._handle(box, delivery)
            except asyncio.CancelledError:
                self._bury(delivery, f"{box.name} gets no more letters")
                raise

    def _is_late(self, delivery: _Delivery, seconds: float) -> bool:
        """Return whether a letter is too late for being handled so many seconds from now."""
        deadline = delivery.letter.deadline
        now = asyncio.get_running_loop().time()
        return deadline is not None and now + seconds >= delivery.came + deadline

    async def _handle(self, box: _Box, delivery: _Delivery) -> None:
        letter = delivery.letter
        for attempt in range(1, self._attempts + 1):
            given = letter if attempt == 1 else replace(letter, attempt=attempt)
            try:
                body = box.handler(given)
                if inspect.isawaitable(body):
                    body = await body
                is_asked = body is not None and letter.direction != "answer"  # else it never ends
                answer = self._answer_to(letter, box.name, body) if is_asked else None
            except (Exception, asyncio.CancelledError) as error:
                # A handler may wait for what is cancelled by somebody else; its box goes on.
                if is_fatal(error) and (isinstance(error, Exception) or _is_being_cancelled()):
                    raise
                why = f"{type(error).__name__}: {error}"
                if attempt == self._attempts:
                    times = "once" if attempt == 1 else f"{attempt} times"
                    self._bury(delivery, f"{box.name} failed {times}, the last time with {why}")
                    return
                pause = self._wait * 2 ** (attempt - 1)
                if self._is_late(delivery, pause):
                    self._bury(delivery, f"it is too late for another attempt after {why}")
                    return
                self._bus.publish(MessageRetried(letter.id, box.name, attempt + 1, why))
                await asyncio.sleep(pause)
            else:
                delivery.status = "handled"
                self._bus.publish(MessageReceived(letter.id, box.name))
                if answer is not None:
                    self._send_back(letter, answer)
                if not delivery.ended.done():
                    delivery.ended.set_result(True)
                return

    @staticmethod
    def _answer_to(letter: AgentMessage, name: str, body: JSON) -> AgentMessage:
        """Return the letter that answers another; refuse what no letter can say, as a failure."""
        kind = _ANSWERS.get(letter.kind, "response")
        return AgentMessage(uuid().hex, name, letter.sender, kind, body, letter.id, letter.priority)

    def _send_back(self, letter: AgentMessage, answer: AgentMessage) -> None:
        asked = self._asked.get(letter.id)
        if asked is not None:
            if not asked.done():
                asked.set_result(answer)
        elif letter.sender in self._boxes:
            self._put(self._boxes[letter.sender], answer)
        self._own.add(answer.id)
        self._bus.publish(answer)
        self._own.discard(answer.id)


def _refused(box: _Box, letter: AgentMessage) -> str:
    """Return why a box does not take a letter, or nothing."""
    if box.where is None:
        return ""
    try:
        return "" if box.where(letter) else f"{box.name} takes no such letters"
    except Exception as error:  # noqa: BLE001  whatever a filter raises, the letter has an end
        return f"the filter of {box.name} failed: {type(error).__name__}: {error}"


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0

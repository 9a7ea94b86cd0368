"""The controller of a team: who does what, what becomes of it, and what when it fails.

Which agent gets a task is decided by code, from declared capabilities, load and health; models choose
only where they are asked to. All of it runs in the caller's context: inside a recorded run it is
part of the run. A controller holds definitions; what is going on belongs to the run it goes on in.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from atlas.agents.account import Account, Loops
from atlas.agents.agent import Agent, History
from atlas.agents.desk import AT_DESK, Desk, Team, current_desk
from atlas.agents.floor import Floor, Seat, Waiting
from atlas.agents.hosts import BareHost
from atlas.agents.messages import (
    AgentHealthChanged,
    AgentRegistered,
    AgentRemoved,
    Health,
    Limits,
    Task,
    TaskAccepted,
    TaskAssigned,
    TaskCancelled,
    TaskCompleted,
    TaskExpired,
    TaskFailed,
    TaskHandedOver,
    TaskProgressed,
    TaskQueued,
    TaskResumed,
    TaskWaiting,
)
from atlas.agents.outcome import Outcome
from atlas.agents.patience import Stuck, in_time, watched
from atlas.agents.settings import check, is_count, listed
from atlas.agents.together import gathered, in_order, settled
from atlas.agents.work import Work, is_fatal
from atlas.core.causality import CURRENT
from atlas.core.effects import current_run, uuid
from atlas.core.event_bus import EventBus
from atlas.errors import (
    ConfigurationError,
    LimitReachedError,
    NoAgentError,
    TaskExpiredError,
    TaskFailedError,
    nearest_name,
)
from atlas.providers.hosting import ModelHost, host_of
from atlas.typing import JSON

__all__ = ["Controller", "ErrorPolicy"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ErrorPolicy:
    """What to do when an agent fails at a task, or reaches a limit of its own.

    Where a limit of the task, or of the tree it belongs to, is reached, nobody else tries.

    Attributes:
        elsewhere: How many other agents try it then.
        escalate_to: Who tries it last, whatever it needs; None: nobody.
        compensate: Called with the task and the error when it failed for good; plain or ``async``. Not
            for a task that was cancelled, or expired. If it fails, the outcome's error says so.
        down_after: After how many failures in a row an agent counts as down, and is chosen only where
            no other can do the task.
    """

    elsewhere: int = 1
    escalate_to: str | None = None
    compensate: Callable[[Task, Exception], Awaitable[object] | object] | None = None
    down_after: int = 3

    def __post_init__(self) -> None:
        boss, undo = self.escalate_to, self.compensate
        check("elsewhere", self.elsewhere, is_count(self.elsewhere, 0), "a whole number from 0")
        check("escalate_to", boss, isinstance(boss, str | None), "an agent's name, or None")
        check("escalate_to", boss, boss != "", "an agent's name, or None")
        check("compensate", undo, undo is None or callable(undo), "a function, or None")
        check("down_after", self.down_after, is_count(self.down_after), "a whole number from 1")


class Controller:
    """A team of agents, and how tasks are shared among them.

    ::

        team = Controller([fx, writer], bus=app.bus)
        outcome = await team.delegate(Task("How much is 12 EUR in USD?", needs={"currency"}))
        print(outcome.text)

    Use it on one event loop. Any number of tasks, and of runs, at once.

    Args:
        agents: The agents, in order of preference where all else is equal.
        bus: The bus on which it is told what happens, and where models are found: those of the
            application that has this bus.
        app: Who answers for models, where that is not the bus's application.
        limits: For each task tree whose first task has no budget of its own.
        on_error: What to do when an agent fails.

    Raises:
        ConfigurationError: Two agents have one name.
    """

    def __init__(
        self,
        agents: Iterable[Agent] = (),
        *,
        bus: EventBus,
        app: ModelHost | None = None,
        limits: Limits | None = None,
        on_error: ErrorPolicy | None = None,
    ) -> None:
        check("bus", bus, isinstance(bus, EventBus), "the bus of an application, bus=app.bus")
        check("app", app, app is None or hasattr(app, "choose_model"), "an application, or None")
        check("limits", limits, isinstance(limits, Limits | None), "Limits, or None")
        is_policy = isinstance(on_error, ErrorPolicy | None)
        check("on_error", on_error, is_policy, "an ErrorPolicy, or None")
        self.bus = bus
        self.limits: Limits = limits or Limits()
        self.on_error: ErrorPolicy = on_error or ErrorPolicy()
        self._host = app
        self._agents: dict[str, Agent] = {}
        self._floors: WeakKeyDictionary[object, Floor] = WeakKeyDictionary()
        self._outside = Floor()
        for agent in listed("agents", agents, "a list of agents"):
            self._add(agent)

    def __repr__(self) -> str:
        return f"<Controller of {', '.join(self._agents) or 'nobody'}>"

    # -- the team ---------------------------------------------------------------------------------

    @property
    def agents(self) -> Mapping[str, Agent]:
        """The agents, by name."""
        return MappingProxyType(self._agents)

    def register(self, agent: Agent) -> None:
        """Let an agent join, or take the place of an older version of it. At any time.

        Raises:
            ConfigurationError: There is one of this name, of the same version or a later one.
        """
        self._add(agent)
        known = AgentRegistered(
            agent.name, agent.version, agent.role, agent.capabilities, agent.description
        )
        self.bus.publish(known)
        self._call_next()

    def _add(self, agent: Agent) -> None:
        if not isinstance(agent, Agent):
            raise ConfigurationError(f"{agent!r} is no agent. Give Agent('name', ...).")
        known = self._agents.get(agent.name)
        if known is not None and known.version >= agent.version:
            raise ConfigurationError(
                f"There is an agent {agent.name!r} of version {known.version} in this team. Give this "
                f"one another name, or a higher version."
            )
        self._agents[agent.name] = agent

    def remove(self, name: str) -> None:
        """Let an agent leave; what it works on it finishes.

        What waits for it goes to another that can do it; if there is none, `NoAgentError` is raised there.

        Raises:
            NoAgentError: There is none of this name.
        """
        self._named(name)
        del self._agents[name]
        self.bus.publish(AgentRemoved(name))
        self._call_next()

    def health(self, name: str) -> Health:
        """Return how an agent is doing in the caller's run.

        Raises:
            NoAgentError: There is none of this name.
        """
        return self._seat(self._named(name)).health

    def pause(self, name: str, reason: str = "") -> None:
        """Give an agent nothing more to do in the caller's run, until `unpause`.

        What it works on it finishes. Tasks that only it can do wait.

        Raises:
            NoAgentError: There is none of this name.
        """
        self._tell_health(self._seat(self._named(name)), "away", reason)

    def unpause(self, name: str) -> None:
        """Let a paused agent, or one that is stuck or down, count as well again.

        Raises:
            NoAgentError: There is none of this name.
        """
        seat = self._seat(self._named(name))
        seat.failures = 0
        if seat.health != "ready":
            self._tell_health(seat, "ready", "")
            self._call_next()

    def load(self, name: str) -> int:
        """Return how many tasks of the caller's run an agent works on."""
        return self._seat(self._named(name)).load

    def _named(self, name: str) -> Agent:
        check("name", name, isinstance(name, str), "an agent's name")
        found = self._agents.get(name)
        if found is None:
            raise NoAgentError(
                f"There is no agent {name!r} in this team{nearest_name(name, self._agents)}. There "
                f"are: {', '.join(self._agents) or 'none'}."
            )
        return found

    # -- delegating -------------------------------------------------------------------------------

    async def delegate(
        self, task: Task | str, *, to: str | None = None, history: History | None = None
    ) -> Outcome:
        """Have a task done by the agent that fits best, and return what came of it.

        Cancelling the caller cancels the task, its model call, its tools and all that it delegated.

        Args:
            task: The task; a text for one that needs nothing in particular.
            to: Name of the agent that is to do it, whatever it needs.
            history: What was said before; this task joins it.

        Returns:
            The outcome. It may be ``failed`` or ``expired``; reading its text then raises.

        Raises:
            NoAgentError: No agent of the team has what it needs.
            ConfigurationError: A task of this id goes on already.
            EffectError: The run that this is part of cannot go on.
        """
        asked = _task(task)
        if to is not None:
            check("to", to, isinstance(to, str), "an agent's name, or None")
        if history is not None:
            check("history", history, isinstance(history, History), "a History, or None")
        asked = asked if asked.id else _with_id(asked)
        floor = self._floor()
        if asked.id in floor.tasks:
            raise ConfigurationError(
                f"Task {asked.id!r} goes on already. Give this one another id, or none: it gets one then."
            )
        above = current_desk()
        queued = TaskQueued(asked, None if above is None else above.task)
        # As `caused_by` does it, without its generator: many tasks are small.
        token = CURRENT.set(self.bus.publish(queued).message._stamp)
        try:
            if above is None:
                return await self._carried_through(asked, floor, None, to, history)
            return await self._carried_through_for(above, asked, floor, to, history)
        finally:
            CURRENT.reset(token)

    async def _carried_through_for(
        self,
        above: Desk,
        task: Task,
        floor: Floor,
        to: str | None,
        history: History | None,
    ) -> Outcome:
        """Have a task done for somebody who does nothing else meanwhile; their place is free then."""
        team: Team = above.team or self
        above.wait()
        team.rest(above)
        waits = True
        try:
            return await self._carried_through(task, floor, above, to, history)
        except BaseException as error:
            waits = isinstance(error, Exception)  # who is cancelled does not go on
            raise
        finally:
            try:
                await team.return_to(above, waits=waits)
            finally:
                above.waited()

    async def _carried_through(
        self,
        task: Task,
        floor: Floor,
        above: Desk | None,
        to: str | None,
        history: History | None,
    ) -> Outcome:
        account = self._account(task, above)
        trip = _Trip(task, to, account, 1 if above is None else above.depth + 1)
        current = asyncio.current_task()
        assert current is not None
        floor.tasks[task.id] = current
        seconds = [each for each in (task.deadline, account.limits.seconds) if each is not None]
        scope: asyncio.Timeout | None = None
        try:
            if not seconds:
                return await self._attempts(trip, history)
            async with asyncio.timeout(min(seconds)) as scope:
                return await self._attempts(trip, history)
        except TimeoutError as error:
            if scope is None or not scope.expired():
                raise
            late = TaskExpiredError(
                f"Task {task.id} was not done within {min(seconds):g} s.", task=task.id
            )
            late.__cause__ = error
            self.bus.publish(TaskExpired(task.id, trip.agent, min(seconds), account.spent))
            return Outcome(task, "expired", trip.agent, None, late, account.spent)
        except asyncio.CancelledError:
            self.bus.publish(TaskCancelled(task.id, trip.agent, account.spent))
            if task.id in floor.cancelled and current.uncancel() == 0:
                error_ = TaskFailedError(f"Task {task.id} was cancelled.", task=task.id)
                return Outcome(task, "failed", trip.agent, None, error_, account.spent)
            raise
        except Exception as error:
            kind = type(error).__name__
            self.bus.publish(TaskFailed(task.id, trip.agent, kind, str(error), account.spent))
            if is_fatal(error) or isinstance(error, NoAgentError):
                raise
            failed = await self._compensated(task, error)
            return Outcome(task, "failed", trip.agent, None, failed, account.spent)
        finally:
            del floor.tasks[task.id]
            floor.cancelled.discard(task.id)

    def _account(self, task: Task, above: Desk | None) -> Account:
        if above is None:
            return Account(task.budget or self.limits)
        # One of its own in any case: what it used is told when it has ended.
        return Account(task.budget or above.account.limits, above.account)

    async def _compensated(self, task: Task, error: Exception) -> Exception:
        """Compensate for a task that failed; return its error, or one that says that this failed too."""
        if self.on_error.compensate is None:
            return error
        try:
            done = self.on_error.compensate(task, error)
            if isinstance(done, Awaitable):
                await done
        except Exception as second:
            if is_fatal(second):
                raise
            why = f"What was to compensate for it failed: {type(second).__name__}: {second}"
            self.bus.publish(TaskProgressed(task.id, why))
            failed = TaskFailedError(f"{error} {why}", task=task.id, kind=type(error).__name__)
            failed.__cause__ = second
            return failed
        return error

    async def _attempts(self, trip: _Trip, history: History | None) -> Outcome:
        """Let one agent after another try, as the policy and hand-overs have it."""
        trip.account.check_depth(trip.depth)
        before = () if history is None else history.messages
        above = current_desk()
        # Who delegates wants somebody else to do it, if there is anybody.
        tried = frozenset() if above is None else frozenset((above.agent,))
        loops = Loops(trip.account.limits)
        while True:
            seat = await self._seated(trip.task, tried, trip.to)
            agent = seat.agent
            trip.agent = agent.name
            trip.attempt += 1
            own = History(before)
            try:
                answer, desk = await self._worked(seat, trip, own)
            except Exception as error:
                if is_fatal(error) or _ends_the_task(error, agent):
                    raise
                self._note_failure(seat, error)
                tried |= {agent.name}
                trip.to = self._next_try(trip, tried, error)
                continue
            finally:
                self._freed(seat)
                if history is not None:
                    history.join(*own.joined)
            self._note_success(seat)
            if desk.handed_over is None:
                return self._done(trip, agent, answer)
            to, reason = desk.handed_over
            loops.note("Hand-overs", agent.name)
            self.bus.publish(TaskHandedOver(trip.task.id, agent.name, to, reason))
            self._named(to)
            trip.to, before = to, own.messages

    def _done(self, trip: _Trip, agent: Agent, answer: JSON) -> Outcome:
        spent = trip.account.spent
        self.bus.publish(TaskCompleted(trip.task.id, agent.name, answer, spent))
        return Outcome(trip.task, "done", agent.name, answer, None, spent, _maker(agent))

    def _next_try(self, trip: _Trip, tried: frozenset[str], error: Exception) -> str | None:
        """Return who is to try next, None for whoever fits; raise the error when nobody is."""
        policy = self.on_error
        others = [name for name in self._fitting(trip.task) if name not in tried]
        if trip.failures < policy.elsewhere and others and trip.to is None:
            trip.failures += 1
            return None
        boss = policy.escalate_to
        if boss is not None and boss not in tried:
            if boss in self._agents:
                return boss
            error.add_note(f"It could not be escalated: there is no agent {boss!r} in this team.")
        raise error

    async def _worked(self, seat: Seat, trip: _Trip, history: History) -> tuple[JSON, Desk]:
        agent, task = seat.agent, trip.task
        own = agent.limits
        account = trip.account if own is None else Account(own, trip.account, agent.name)
        desk = Desk(
            self.bus,
            self._found_host(),
            account,
            task.id,
            agent.name,
            trip.depth,
            trip.attempt,
            team=self,
            seat=seat,
            work=task,
        )
        told = self.bus.publish(TaskAssigned(task.id, agent.name, trip.attempt, trip.why(seat)))
        at_desk, cause = AT_DESK.set(desk), CURRENT.set(told.message._stamp)
        try:
            self.bus.publish(TaskAccepted(task.id, agent.name, trip.attempt))
            work = watched(Work(agent, task, desk, history).run, desk, agent)
            if own is None or own.seconds is None:
                return await work, desk
            return await in_time(own.seconds, work, agent), desk
        except Stuck as stuck:
            if seat.health != "away":
                self._tell_health(seat, "stuck", str(stuck))
            raise TaskFailedError(str(stuck), task=task.id, kind="stuck") from None
        finally:
            CURRENT.reset(cause)
            AT_DESK.reset(at_desk)

    def _found_host(self) -> ModelHost:
        return self._host or host_of(self.bus) or BareHost()

    def cancel(self, task: str) -> bool:
        """Cancel a task of the caller's run by its id; its outcome is then ``failed``.

        Returns:
            Whether it was going on.
        """
        check("task", task, isinstance(task, str), "the id of a task")
        floor = self._floor()
        found = floor.tasks.get(task)
        if found is None:
            return False
        if task in floor.cancelled:
            return True  # asked for before: once is enough
        floor.cancelled.add(task)
        return found.cancel()

    @property
    def tasks(self) -> tuple[str, ...]:
        """The ids of the tasks that go on in the caller's run."""
        return tuple(self._floor().tasks)

    # -- who gets it ------------------------------------------------------------------------------

    def _floor(self) -> Floor:
        run = current_run()
        if run is None:
            return self._outside
        floor = self._floors.get(run)
        if floor is None:
            floor = self._floors[run] = Floor()
        return floor

    def _seat(self, agent: Agent) -> Seat:
        seats = self._floor().seats
        seat = seats.get(agent.name)
        if seat is None:
            seat = seats[agent.name] = Seat(agent)
        seat.agent = agent
        return seat

    def _fitting(self, task: Task) -> dict[str, float]:
        """Return who has what a task needs, and how well, in order of preference."""
        if not task.needs and not task.grades:
            return dict.fromkeys(self._agents, 1.0)
        graded = {name: agent.grade(task) for name, agent in self._agents.items()}
        return {name: grade for name, grade in graded.items() if grade is not None}

    async def _seated(self, task: Task, tried: frozenset[str], to: str | None) -> Seat:
        """Return the seat of the agent that is to do a task; wait for one that is free."""
        seat = self._free(task, tried, to)
        if seat is None:
            chosen: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
            return await self._wait_for_seat(Waiting(task, tried, to, chosen))
        seat.load += 1
        return seat

    def _free(self, task: Task, tried: frozenset[str], to: str | None) -> Seat | None:
        """Return the best of the agents that fit and are free, or None if they are all busy."""
        if to is not None:
            seat = self._seat(self._named(to))
            return seat if seat.has_room else None
        fitting = self._fitting(task)
        if not fitting:
            raise self._nobody(task)
        seats = [
            (name in tried, seat.health != "ready", -grade, seat.load, place, seat)
            for place, (name, grade) in enumerate(fitting.items())
            if (seat := self._seat(self._agents[name])).has_room
        ]
        return min(seats, key=lambda each: each[:-1])[-1] if seats else None

    def _nobody(self, task: Task) -> NoAgentError:
        if not self._agents:
            return NoAgentError(
                f"This team has no agents, so nobody can do task {task.id} ({task.text!r:.60}). Register "
                f"one."
            )
        able = sorted({each for agent in self._agents.values() for each in agent.capabilities})
        wanted = ", ".join(
            f"{each} ≥ {task.grades[each]:g}" if each in task.grades else each
            for each in sorted(task.needs | task.grades.keys())
        )
        return NoAgentError(
            f"No agent of this team has all that task {task.id} ({task.text!r:.60}) needs: {wanted}. "
            f"There is: {', '.join(able) or 'nothing'}. Register one that has."
        )

    async def _wait_for_seat(self, waiting: Waiting) -> Seat:
        floor = self._floor()
        heapq.heappush(floor.queue, (-waiting.task.priority, next(floor.count), waiting))
        self.bus.publish(TaskWaiting(waiting.task.id, "a free agent"))
        try:
            seat = await waiting.chosen
        except asyncio.CancelledError:
            if waiting.chosen.done() and not waiting.chosen.cancelled():
                self._freed(waiting.chosen.result())
            raise
        self.bus.publish(TaskResumed(waiting.task.id))
        return seat

    def _freed(self, seat: Seat) -> None:
        seat.load -= 1
        self._call_next()

    def rest(self, desk: Desk) -> None:
        """Give the place of a desk to others while it waits for what it delegated."""
        desk.delegated += 1
        if desk.seat is not None and desk.delegated == 1:
            desk.seat.resting += 1
            if desk.seat.agent.capacity is not None:
                self._call_next()

    async def return_to(self, desk: Desk, *, waits: bool = True) -> None:
        """Take the place of a desk again, when what it delegated has ended; wait for it, if it may."""
        desk.delegated -= 1
        seat, task = desk.seat, desk.work
        if seat is None or task is None or desk.delegated:
            return
        if seat.has_place or not waits:
            seat.resting -= 1
            return
        floor = self._floor()
        chosen: asyncio.Future[Seat] = asyncio.get_running_loop().create_future()
        waiting = Waiting(task, frozenset(), None, chosen, seat)
        # Before all that has not begun: who goes on is nearer to its end.
        heapq.heappush(floor.queue, (float("-inf"), next(floor.count), waiting))
        self.bus.publish(TaskWaiting(task.id, "its place"))
        try:
            await chosen
        except asyncio.CancelledError:
            if chosen.cancelled():
                seat.resting -= 1  # else it was given the place, and gives it back as it ends
            raise
        self.bus.publish(TaskResumed(task.id))

    def _call_next(self) -> None:
        """Give free agents to those who wait, the highest priority first."""
        floor = self._floor()
        still: list[tuple[float, int, Waiting]] = []
        while floor.queue:
            entry = heapq.heappop(floor.queue)
            waiting = entry[2]
            if waiting.chosen.done():
                continue
            if waiting.back is not None:
                if waiting.back.has_place:
                    waiting.back.resting -= 1
                    waiting.chosen.set_result(waiting.back)
                else:
                    still.append(entry)
                continue
            try:
                seat = self._free(waiting.task, waiting.tried, waiting.to)
            except NoAgentError as error:
                waiting.chosen.set_exception(error)
                continue
            if seat is None:
                still.append(entry)
            else:
                seat.load += 1
                waiting.chosen.set_result(seat)
        floor.queue = still

    # -- how they are -----------------------------------------------------------------------------

    def _note_success(self, seat: Seat) -> None:
        seat.failures = 0
        if seat.health in ("stuck", "down"):
            self._tell_health(seat, "ready", "it did a task")

    def _note_failure(self, seat: Seat, error: Exception) -> None:
        seat.failures += 1
        if seat.failures == self.on_error.down_after and seat.health != "away":
            self._tell_health(seat, "down", f"{seat.failures} failures, the last: {error}")

    def _tell_health(self, seat: Seat, health: Health, reason: str) -> None:
        seat.health = health
        self.bus.publish(AgentHealthChanged(seat.agent.name, health, reason))

    # -- patterns ---------------------------------------------------------------------------------

    async def parallel(self, tasks: Iterable[Task | str]) -> list[Outcome]:
        """Have tasks done side by side; the outcomes are in the order of the tasks.

        One that fails does not stop the others.
        """
        several = [_task(each) for each in listed("tasks", tasks, "a list of tasks")]
        return await gathered([self.delegate(each) for each in several])

    async def map_reduce(
        self,
        items: Iterable[T],
        each: Callable[[T], Task | str],
        reduce: Callable[[Sequence[Outcome]], Task | str],
    ) -> Outcome:
        """Have a task done for each item, side by side, and one that makes one thing of it all.

        Args:
            items: The items.
            each: Returns the task for an item.
            reduce: Returns the last task, given what came of the others.
        """
        check("each", each, callable(each), "a function of an item that returns a task")
        check("reduce", reduce, callable(reduce), "a function of the outcomes that returns a task")
        outcomes = await self.parallel(map(each, listed("items", items, "a list")))
        return await self.delegate(reduce(outcomes))

    async def pipeline(
        self,
        stages: Sequence[Task | str | Callable[[Outcome], Task | str]],
        *,
        start: Task | str | None = None,
    ) -> Outcome:
        """Have tasks done one after the other, each given the answer before it.

        A task that is given as it is finds that answer in its inputs, as ``previous``. The first that
        is not done ends it, and its outcome is returned.

        Args:
            stages: The tasks, or functions of the outcome before that return them.
            start: The first task, where the first stage is a function.

        Raises:
            ConfigurationError: There is no first task.
        """
        outcome = None if start is None else await self.delegate(start)
        for stage in listed("stages", stages, "a list of tasks, or functions that return them"):
            if outcome is not None and not outcome.is_done:
                return outcome
            if isinstance(stage, Task | str):
                stage = _task(stage)
                more = {} if outcome is None else {"previous": outcome.answer}
                stage = replace(stage, inputs={**stage.inputs, **more})
            elif outcome is None:
                raise ConfigurationError("The first stage is a function; give start=Task(...).")
            else:
                stage = stage(outcome)
            outcome = await self.delegate(stage)
        if outcome is None:
            raise ConfigurationError("The pipeline has no stages. Give one task at least.")
        return outcome

    async def run(self, tasks: Iterable[Task]) -> dict[str, Outcome]:
        """Have tasks done that depend on each other by `Task.after`, as much as possible side by side.

        The answers of those that a task comes after are in its inputs, by their ids. What comes after
        one that is not done fails, and is not begun.

        Args:
            tasks: The tasks, each with an id.

        Returns:
            The outcomes, by id, in the order of the tasks.

        Raises:
            ConfigurationError: An id is missing or comes twice, or tasks wait for each other.
        """
        several = listed("tasks", tasks, "a list of tasks, each with an id")
        known = in_order([_task(each) for each in several])
        ended: dict[str, asyncio.Task[Outcome]] = {}

        async def one(task: Task) -> Outcome:
            before = [await asyncio.shield(ended[each]) for each in task.after]
            for each in before:
                if not each.is_done:
                    error = TaskFailedError(
                        f"Task {task.id} comes after {each.task.id}, which is {each.status}.",
                        task=task.id,
                    )
                    return Outcome(task, "failed", "", None, error)
            given: dict[str, JSON] = {each.task.id: each.answer for each in before}
            return await self.delegate(replace(task, inputs={**task.inputs, **given}))

        for task in known:  # each after those that it waits for
            ended[task.id] = asyncio.create_task(one(task))
        await settled(list(ended.values()))
        return {task.id: ended[task.id].result() for task in known}

    async def vote(
        self,
        task: Task | str,
        voters: Sequence[str],
        *,
        key: Callable[[Outcome], JSON] | None = None,
    ) -> tuple[Outcome, dict[str, int]]:
        """Let several agents do a task, and return the answer that most of them gave.

        Args:
            task: The task.
            voters: Who votes.
            key: What of an outcome counts; default: its text, without case and white space around.

        Returns:
            The outcome of the first of those that won, and how many votes each answer has.

        Raises:
            TaskFailedError: Nobody has an answer.
        """
        asked = _task(task)
        voters = _names("voters", voters)
        if not voters:
            raise ConfigurationError("Nobody votes. Name some agents.")
        asked = replace(asked, id="")
        outcomes = await gathered([self.delegate(asked, to=name) for name in voters])
        done = [each for each in outcomes if each.is_done]
        if not done:
            raise TaskFailedError(f"None of {', '.join(voters)} has an answer.", task="")
        counted = key or (lambda outcome: outcome.text.strip().casefold())
        ballots = [(str(counted(each)), each) for each in done]
        votes: dict[str, int] = {}
        for ballot, _ in ballots:
            votes[ballot] = votes.get(ballot, 0) + 1
        best = max(votes.values())
        return next(each for ballot, each in ballots if votes[ballot] == best), votes

    async def debate(
        self, task: Task | str, speakers: Sequence[str], *, judge: str, rounds: int = 2
    ) -> Outcome:
        """Let agents answer, see each other's answers and answer again; the judge decides.

        Args:
            task: The task.
            speakers: Who speaks.
            judge: Who decides, given the last answers.
            rounds: How often each speaks.

        Raises:
            ConfigurationError: Nobody speaks.
        """
        speakers = _names("speakers", speakers)
        check("rounds", rounds, is_count(rounds), "a whole number from 1")
        if not speakers:
            raise ConfigurationError("Nobody speaks. Name some agents.")
        asked = _task(task)
        said: dict[str, JSON] = {}
        for _ in range(rounds):
            seen: dict[str, JSON] = {"answers": dict(said)} if said else {}
            turn = replace(asked, id="", inputs={**asked.inputs, **seen})
            outcomes = await gathered([self.delegate(turn, to=name) for name in speakers])
            said = {each.agent: each.answer for each in outcomes if each.is_done}
        last = replace(asked, inputs={**asked.inputs, "answers": dict(said)})
        return await self.delegate(last, to=judge)

    async def supervise(
        self,
        task: Task | str,
        decide: Callable[[Task, Sequence[Outcome]], Task | str | Outcome | None],
        *,
        rounds: int = 20,
    ) -> list[Outcome]:
        """Have tasks done one after the other, as a function decides from what came of those before.

        For a model that decides, give an agent the tool `delegation` instead.

        Args:
            task: What is wanted in the end.
            decide: Returns the next task, or None when it is enough.
            rounds: How many tasks there may be.

        Raises:
            LimitReachedError: It is not enough after so many.
        """
        asked = _task(task)
        check("rounds", rounds, is_count(rounds), "a whole number from 1")
        check("decide", decide, callable(decide), "a function of the task and the outcomes")
        outcomes: list[Outcome] = []
        while (following := decide(asked, tuple(outcomes))) is not None:
            if isinstance(following, Outcome):
                return [*outcomes, following]
            if len(outcomes) >= rounds:
                raise LimitReachedError(
                    f"{rounds} tasks were done for {asked.text!r:.60} and it is not enough. Raise "
                    f"rounds=, or find out why.",
                    limit="turns",
                )
            outcomes.append(await self.delegate(following))
        return outcomes


@dataclass(slots=True, eq=False)
class _Trip:
    """The way of one task through a team."""

    task: Task
    to: str | None
    account: Account
    depth: int
    agent: str = ""
    attempt: int = 0
    failures: int = 0

    def why(self, seat: Seat) -> str:
        if self.to is not None:
            return "asked for by name"
        grade = seat.agent.grade(self.task) or 0.0
        return f"grade {grade:g}, load {seat.load - 1}, {seat.health}"


def _ends_the_task(error: Exception, agent: Agent) -> bool:
    """Return whether nobody else could do better: what the task may use is used up, or nobody fits.

    An agent that reaches a limit of its own has failed as any other, and others may try.
    """
    if isinstance(error, LimitReachedError):
        return error.agent != agent.name
    return isinstance(error, NoAgentError)


def _task(given: Task | str) -> Task:
    if isinstance(given, Task):
        return given
    if not isinstance(given, str):
        raise ConfigurationError(f"{given!r} is no task. Give Task('what is to be done', ...).")
    return Task(given)


def _names(what: str, given: Iterable[str]) -> list[str]:
    """Return the names of agents."""
    names = listed(what, given, "a list of agents' names")
    for name in names:
        check(f"One of {what}", name, isinstance(name, str), "an agent's name")
    return names


def _with_id(task: Task) -> Task:
    """Return a task with an id that no other has; in a run, it follows from its seed."""
    # A UUID only for a run that records it, and fields named one by one: `replace`, and making a UUID,
    # each cost more than all else that happens to a task before it is begun.
    digits = os.urandom(6).hex() if current_run() is None else uuid().hex[:12]
    return Task(
        task.text,
        task.needs,
        task.grades,
        task.inputs,
        task.after,
        task.kind,
        task.priority,
        task.deadline,
        task.budget,
        f"t-{digits}",
    )


# Any: whatever the output is
def _maker(agent: Agent) -> Callable[[JSON], Any] | None:
    output, shape = agent.output, agent.output_shape
    if output is None or shape is None:
        return None
    return lambda answer: output(**shape.checked(answer))

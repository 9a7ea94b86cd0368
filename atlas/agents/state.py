"""The state of agents and tasks, as it follows from the events of a run.

``project_agents()`` is live: attach it to a bus. For a stored run, ``agents_at(app.runs[id], 12)`` is the
state after event 12; states are immutable, and ``agents_at(run, 7).diff(agents_at(run, 12))`` is what became
different between two events.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import Any, Final, Protocol

from atlas.agents.messages import (
    AgentHealthChanged,
    AgentRegistered,
    AgentRemoved,
    ApprovalAsked,
    Health,
    Spent,
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
    TaskStatus,
    TaskWaiting,
    ToolCalled,
    ToolFinished,
    TurnEnded,
    TurnStarted,
)
from atlas.agents.outcome import checked_transition
from atlas.agents.settings import check
from atlas.core.messages import Message, value
from atlas.core.patches import Patch, diff
from atlas.core.persistent import PMap, pmap
from atlas.core.runs import holding
from atlas.core.state_projector import StateProjector
from atlas.core.transitions import Transitions
from atlas.errors import UnknownVersionError
from atlas.providers.messages import (
    ChatMessage,
    StreamCompleted,
    ToolCallPart,
    ToolResultPart,
)
from atlas.typing import JSON

__all__ = [
    "AgentState",
    "AgentsState",
    "OpenTurn",
    "TaskState",
    "agents_at",
    "events_at",
    "project_agents",
    "transitions",
]


@value
class AgentState:
    """What an agent does."""

    name: str
    health: Health = "ready"
    tasks: tuple[str, ...] = ()
    done: int = 0
    failed: int = 0
    turns: int = 0


@value
class TaskState:
    """How a task stands.

    Attributes:
        id: Its id.
        text: What is to be done.
        status: How far it is.
        parent: The task that it belongs to.
        agent: Who works on it.
        attempt: Which attempt this is.
        turns: Model calls of the agent.
        open_calls: Tool calls that have not ended.
        waiting_for: What it waits for.
        progress: How far it is, in words.
        answer: The answer.
        error: What went wrong.
        spent: What it used, once it has ended.
        history: What the model and the tools said, whole turns only.
    """

    id: str
    text: str
    status: TaskStatus = "queued"
    parent: str | None = None
    agent: str = ""
    attempt: int = 0
    turns: int = 0
    open_calls: tuple[str, ...] = ()
    waiting_for: str = ""
    progress: str = ""
    answer: JSON = None
    error: str = ""
    spent: Spent = Spent()
    history: tuple[ChatMessage, ...] = ()


@value
class OpenTurn:
    """A turn that has not ended: what the model said, and the results so far, by call."""

    said: ChatMessage | None = None
    calls: tuple[tuple[str, ToolCallPart], ...] = ()
    results: tuple[tuple[str, ToolResultPart], ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class AgentsState:
    """The agents and tasks of a run. Immutable; two of them can be compared with `diff`.

    Attributes:
        agents: The agents seen so far, by name.
        tasks: The tasks, by id.
        turns: The turns that have not ended, by the ids of their replies.
        calls: The tasks of tool calls that have not ended, by the ids of the calls.
    """

    agents: PMap[str, AgentState] = field(default_factory=pmap)
    tasks: PMap[str, TaskState] = field(default_factory=pmap)
    turns: PMap[str, OpenTurn] = field(default_factory=pmap)
    calls: PMap[str, str] = field(default_factory=pmap)

    def __repr__(self) -> str:
        return f"<AgentsState of {len(self.agents)} agents, {len(self.tasks)} tasks>"

    def diff(self, other: AgentsState) -> Patch:
        """Return how another state is different, as RFC 6902 operations that lead from this to it."""
        return diff(self, other)

    # Any: fields of the state of a task
    def task(self, task: str, **changes: Any) -> AgentsState:
        """Return the state with a task changed; the same when there is no such task."""
        known = self.tasks.get(task)
        if known is None:
            return self
        if "status" in changes and changes["status"] == known.status:
            del changes["status"]
        if "status" in changes:
            checked_transition(known.status, changes["status"])
        return AgentsState(
            self.agents, self.tasks.set(task, _changed(known, changes)), self.turns, self.calls
        )

    # Any: fields of the state of an agent
    def agent(self, name: str, **changes: Any) -> AgentsState:
        """Return the state with an agent changed, which is made if it was not seen before."""
        known = self.agents.get(name) or AgentState(name)
        made = replace(known, **changes)
        return AgentsState(self.agents.set(name, made), self.tasks, self.turns, self.calls)

    def seen(self, name: str) -> AgentState:
        """Return what is known of an agent."""
        return self.agents.get(name) or AgentState(name)

    def turn(self, reply: str) -> OpenTurn:
        """Return a turn that has not ended."""
        return self.turns.get(reply) or OpenTurn()

    def with_turn(self, reply: str, turn: OpenTurn | None) -> AgentsState:
        """Return the state with a turn changed, or ended."""
        turns = self.turns.discard(reply) if turn is None else self.turns.set(reply, turn)
        return AgentsState(self.agents, self.tasks, turns, self.calls)


_TASK_FIELDS: Final = tuple(each.name for each in fields(TaskState))


# Any: fields of the state of a task
def _changed(task: TaskState, changes: Mapping[str, Any]) -> TaskState:
    """Return the state of a task with some fields changed, which are not checked again.

    `replace` would look at each message of the history, at each event: what was checked when it came.
    """
    made = object.__new__(TaskState)
    for name in _TASK_FIELDS:
        given = changes[name] if name in changes else getattr(task, name)
        object.__setattr__(made, name, given)
    return made


transitions: Final[Transitions[AgentsState]] = Transitions()


@transitions.on(AgentRegistered)
def _registered(state: AgentsState, event: AgentRegistered) -> AgentsState:
    return state.agent(event.agent)


@transitions.on(AgentRemoved)
def _removed(state: AgentsState, event: AgentRemoved) -> AgentsState:
    return AgentsState(state.agents.discard(event.agent), state.tasks, state.turns, state.calls)


@transitions.on(AgentHealthChanged)
def _health(state: AgentsState, event: AgentHealthChanged) -> AgentsState:
    return state.agent(event.agent, health=event.health)


@transitions.on(TaskQueued)
def _queued(state: AgentsState, event: TaskQueued) -> AgentsState:
    task = event.task
    made = TaskState(task.id, task.text, parent=event.parent)
    return AgentsState(state.agents, state.tasks.set(task.id, made), state.turns, state.calls)


@transitions.on(TaskAssigned)
def _assigned(state: AgentsState, event: TaskAssigned) -> AgentsState:
    tasks = (*state.seen(event.agent).tasks, event.task)
    state = _released(state, event.task).agent(event.agent, tasks=tasks)
    return state.task(event.task, agent=event.agent, attempt=event.attempt)


def _released(state: AgentsState, task: str) -> AgentsState:
    known = state.tasks.get(task)
    if known is None or known.agent not in state.agents:
        return state
    left = tuple(each for each in state.agents[known.agent].tasks if each != task)
    return state.agent(known.agent, tasks=left)


@transitions.on(TaskAccepted)
def _accepted(state: AgentsState, event: TaskAccepted) -> AgentsState:
    return state.task(event.task, status="accepted", waiting_for="")


@transitions.on(TaskWaiting)
def _waiting(state: AgentsState, event: TaskWaiting) -> AgentsState:
    return state.task(event.task, status="waiting", waiting_for=event.reason)


@transitions.on(TaskResumed)
def _resumed(state: AgentsState, event: TaskResumed) -> AgentsState:
    return state.task(event.task, status="running", waiting_for="")


@transitions.on(TaskProgressed)
def _progressed(state: AgentsState, event: TaskProgressed) -> AgentsState:
    return state.task(event.task, progress=event.text)


@transitions.on(TaskHandedOver)
def _handed_over(state: AgentsState, event: TaskHandedOver) -> AgentsState:
    return state.task(event.task, progress=f"handed over to {event.to}")


@transitions.on(TurnStarted)
def _turn_started(state: AgentsState, event: TurnStarted) -> AgentsState:
    state = state.agent(event.agent, turns=state.seen(event.agent).turns + 1)
    return state.task(event.task, status="running", turns=event.turn)


@transitions.on(StreamCompleted)
def _said(state: AgentsState, event: StreamCompleted) -> AgentsState:
    if event.conversation not in state.tasks:
        return state
    said = ChatMessage("assistant", event.completion.parts)
    return state.with_turn(event.reply, replace(state.turn(event.reply), said=said))


@transitions.on(ToolCalled)
def _called(state: AgentsState, event: ToolCalled) -> AgentsState:
    known = state.tasks.get(event.task)
    if known is None:
        return state
    reply = event.call.rpartition(".")[0]
    turn = state.turn(reply)
    part = ToolCallPart(event.id, event.tool, event.arguments)
    state = state.with_turn(reply, replace(turn, calls=(*turn.calls, (event.call, part))))
    state = AgentsState(
        state.agents, state.tasks, state.turns, state.calls.set(event.call, event.task)
    )
    return state.task(event.task, open_calls=(*known.open_calls, event.call))


@transitions.on(ApprovalAsked)
def _asked(state: AgentsState, event: ApprovalAsked) -> AgentsState:
    return state.task(event.task, waiting_for=f"approval {event.approval} of {event.tool}")


@transitions.on(ToolFinished)
def _finished(state: AgentsState, event: ToolFinished) -> AgentsState:
    task = state.calls.get(event.call)
    if task is None:
        return state
    reply = event.call.rpartition(".")[0]
    turn = state.turn(reply)
    part = next(part for call, part in turn.calls if call == event.call)
    result = ToolResultPart(part.id, event.content, event.outcome != "done")
    state = state.with_turn(reply, replace(turn, results=(*turn.results, (event.call, result))))
    left = tuple(each for each in state.tasks[task].open_calls if each != event.call)
    state = AgentsState(state.agents, state.tasks, state.turns, state.calls.discard(event.call))
    return state.task(task, open_calls=left)


@transitions.on(TurnEnded)
def _turn_ended(state: AgentsState, event: TurnEnded) -> AgentsState:
    """Let a turn join the history whole: never a call without its result."""
    known = state.tasks.get(event.task)
    if known is None:
        return state
    turn = state.turn(event.reply)
    texts = tuple(
        p for p in (turn.said.parts if turn.said else ()) if p.__class__ is not ToolCallPart
    )
    calls = tuple(part for _, part in turn.calls)
    joined: list[ChatMessage] = []
    if texts or calls:
        joined.append(ChatMessage("assistant", (*texts, *calls)))
    results = dict(turn.results)
    if calls:
        joined.append(ChatMessage("tool", tuple(results[call] for call, _ in turn.calls)))
    state = state.with_turn(event.reply, None)
    return state.task(event.task, history=(*known.history, *joined))


@transitions.on(TaskCompleted)
def _completed(state: AgentsState, event: TaskCompleted) -> AgentsState:
    state = _released(state, event.task)
    state = state.agent(event.agent, done=state.seen(event.agent).done + 1)
    return state.task(event.task, status="done", answer=event.answer, spent=event.spent)


@transitions.on(TaskFailed)
def _failed(state: AgentsState, event: TaskFailed) -> AgentsState:
    state = _released(state, event.task)
    if event.agent:
        state = state.agent(event.agent, failed=state.seen(event.agent).failed + 1)
    error = f"{event.kind}: {event.error}"
    return state.task(event.task, status="failed", error=error, spent=event.spent)


@transitions.on(TaskCancelled)
def _cancelled(state: AgentsState, event: TaskCancelled) -> AgentsState:
    return _released(state, event.task).task(event.task, status="cancelled", spent=event.spent)


@transitions.on(TaskExpired)
def _expired(state: AgentsState, event: TaskExpired) -> AgentsState:
    state = _released(state, event.task)
    error = f"not done within {event.deadline:g} s"
    return state.task(event.task, status="expired", error=error, spent=event.spent)


def project_agents() -> StateProjector[AgentsState]:
    """Return the live state of agents and tasks; attach it to a bus."""
    return StateProjector(AgentsState(), transitions)


class StoredRun(Protocol):
    """What is asked of a stored run: `atlas.core.runs.Run` is one."""

    def __len__(self) -> int:
        """Return how many events it has."""
        ...

    def read(self, after: int = 0, until: int | None = None) -> Iterable[Message]:
        """Yield its events by number."""
        ...


def events_at(run: StoredRun, number: int | None = None) -> list[Message]:
    """Return the events of a run that hold after one of them; default: after the last.

    Those of a part that was broken off, and done again when the run was resumed, do not hold.

    Args:
        run: The run, such as ``app.runs[run_id]``.
        number: Number of the event; negative: counted from the end.

    Raises:
        UnknownVersionError: The run has no such event.
    """
    check("run", run, hasattr(run, "read"), "a stored run, such as app.runs[run_id]")
    count = len(run)
    asked = count if number is None else number
    wanted = asked + count + 1 if asked < 0 else asked
    if not 0 <= wanted <= count:
        raise UnknownVersionError(f"The run has no event {asked}; it has {count}.", version=asked)
    return [event for _, event in holding(run.read(until=wanted))]


def agents_at(run: StoredRun, number: int | None = None) -> AgentsState:
    """Return the state of a run's agents and tasks after an event; see `events_at`."""
    return reduce(transitions, events_at(run, number), AgentsState())

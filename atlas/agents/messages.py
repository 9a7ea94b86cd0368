"""What agents say to each other, and what happens while they work.

The values are plain data: a `Task`, its `Limits`, what it used (`Spent`). The events are published by
`atlas.agents` in this order for each task::

    task.queued  task.assigned  task.accepted
    (agent.turn_started  stream.*  (tool.called  (approval.asked approval.given)  tool.progressed*
     tool.finished)*  agent.turn_ended)*
    then exactly one of  task.completed | task.failed | task.cancelled | task.expired

Each ``tool.called`` is followed by exactly one ``tool.finished``, whatever happens. It stands for the
``stream.tool_call`` that a chat has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal, TypeAlias

from atlas.core.messages import Command, Event, message, value
from atlas.errors import ValidationError
from atlas.typing import JSON

__all__ = [
    "AgentHealthChanged",
    "AgentMessage",
    "AgentRegistered",
    "AgentRemoved",
    "ApprovalAsked",
    "ApprovalGiven",
    "Health",
    "HistorySummarised",
    "Kind",
    "LetterStatus",
    "Limits",
    "MessageDead",
    "MessageReceived",
    "MessageRetried",
    "Permission",
    "Spent",
    "Task",
    "TaskAccepted",
    "TaskAssigned",
    "TaskCancelled",
    "TaskCompleted",
    "TaskExpired",
    "TaskFailed",
    "TaskHandedOver",
    "TaskProgressed",
    "TaskQueued",
    "TaskResumed",
    "TaskStatus",
    "TaskWaiting",
    "ToolCalled",
    "ToolFinished",
    "ToolOutcome",
    "ToolProgressed",
    "TurnEnded",
    "TurnStarted",
]

TaskStatus: TypeAlias = Literal[
    "queued", "accepted", "running", "waiting", "done", "failed", "cancelled", "expired"
]

Permission: TypeAlias = Literal["read", "write", "network", "dangerous"]
"""What a tool may do: look, change something, talk to the world, or what nobody should do unasked."""

ToolOutcome: TypeAlias = Literal[
    "done",
    "failed",  # the function raised
    "refused",  # a person, or a layer, said no
    "invalid",  # the arguments were wrong; the function was not called
    "unknown",  # there is no such tool
    "timeout",
    "cancelled",
]

Health: TypeAlias = Literal["ready", "stuck", "down", "away"]
"""How an agent is: well; silent for too long; failing again and again; or not to be given anything."""

Kind: TypeAlias = Literal[
    "query", "task", "response", "result", "error", "status", "tool_request", "tool_response"
]

LetterStatus: TypeAlias = Literal["waiting", "in_hand", "handled", "dead"]
"""How far a letter is with one of those it is for."""


# -- what is asked ------------------------------------------------------------------------------


@value("limits")
class Limits:
    """What a task, and all that it delegates, may use together. None: no limit.

    Attributes:
        turns: Model calls.
        depth: How deep tasks may delegate.
        repeats: How often the same tool call may come in a row, with the same result: who polls
            makes progress when something else comes.
        alternations: How often two things, or up to eight, may come one after the other in the same
            order: tool calls with the same results, or agents that hand over.
        tokens: Tokens in and out; an estimate is reserved before each call.
        cost: Money, in the currency of the agents' prices; an estimate is reserved before each call.
        seconds: Time for the task.
        repairs: How often an answer that does not fit is sent back.
    """

    turns: int | None = 100
    depth: int | None = 8
    repeats: int | None = 4
    alternations: int | None = 6
    tokens: int | None = 1_000_000
    cost: float | None = 5.0
    seconds: float | None = None
    repairs: int = 2

    def __post_init__(self) -> None:
        for name in ("turns", "depth", "repeats", "alternations", "tokens", "cost", "seconds"):
            given = getattr(self, name)
            if given is not None and given <= 0:
                raise ValidationError("limits", name, given, "a number above 0, or None")
        if self.repairs < 0:
            raise ValidationError("limits", "repairs", self.repairs, "0 or more")


@value("spent")
class Spent:
    """What was used: model calls, tool calls, tokens, money."""

    turns: int = 0
    tool_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@value("task")
class Task:
    """Something to do.

    Attributes:
        text: What is to be done, in words.
        needs: Capabilities that whoever does it must have.
        grades: For some of them, the least grade, from 0 to 1.
        inputs: Facts for it, given to the agent as JSON below the text.
        after: Ids of tasks whose answers it needs; see `Controller.run`.
        kind: What sort of task it is, for agents that adapt to it.
        priority: Higher goes first where tasks wait for a free agent.
        deadline: Seconds from when it is queued.
        budget: What it may use; None: what is left of the task it belongs to, or the defaults.
        id: Its id; empty: given when it is queued.
    """

    text: str
    needs: frozenset[str] = frozenset()
    grades: Mapping[str, float] = field(default_factory=dict)
    inputs: Mapping[str, JSON] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    kind: str = ""
    priority: int = 0
    deadline: float | None = None
    budget: Limits | None = None
    id: str = ""

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValidationError("task", "text", self.text, "words that say what to do")
        if self.deadline is not None and self.deadline <= 0:
            raise ValidationError("task", "deadline", self.deadline, "seconds above 0")
        if "" in self.needs:
            raise ValidationError("task", "needs", self.needs, "names that are not empty")
        for name, grade in self.grades.items():
            if not 0 <= grade <= 1:
                raise ValidationError("task", f"grades.{name}", grade, "a grade from 0 to 1")


# -- what becomes of a task ---------------------------------------------------------------------


@message("task.queued")
class TaskQueued(Event):
    """A task was taken in; ``parent`` is the task that it belongs to."""

    task: Task
    parent: str | None = None


@message("task.assigned")
class TaskAssigned(Event):
    """An agent was chosen; ``why`` says how it compared to the others."""

    task: str
    agent: str
    attempt: int = 1
    why: str = ""


@message("task.accepted")
class TaskAccepted(Event):
    """The agent has the task and begins: the confirmation that it was delivered."""

    task: str
    agent: str
    attempt: int = 1


@message("task.waiting")
class TaskWaiting(Event):
    """The task waits: for a free agent, for an approval, for other tasks."""

    task: str
    reason: str


@message("task.resumed")
class TaskResumed(Event):
    """The task waits no more."""

    task: str


@message("task.progressed")
class TaskProgressed(Event):
    """How far a task is, in words, and as a share from 0 to 1 where that is known."""

    task: str
    text: str
    share: float | None = None


@message("task.handed_over")
class TaskHandedOver(Event):
    """An agent gave its task to another."""

    task: str
    agent: str
    to: str
    reason: str = ""


@message("task.completed")
class TaskCompleted(Event):
    """The task is done."""

    task: str
    agent: str
    answer: JSON
    spent: Spent = Spent()


@message("task.failed")
class TaskFailed(Event):
    """The task failed for good; ``kind`` is the type of the error."""

    task: str
    agent: str
    kind: str
    error: str
    spent: Spent = Spent()


@message("task.cancelled")
class TaskCancelled(Event):
    """Whoever wanted the task wants it no more."""

    task: str
    agent: str
    spent: Spent = Spent()


@message("task.expired")
class TaskExpired(Event):
    """The task's deadline passed before it was done."""

    task: str
    agent: str
    deadline: float
    spent: Spent = Spent()


# -- what an agent does -------------------------------------------------------------------------


@message("agent.registered")
class AgentRegistered(Event):
    """An agent joined a team."""

    agent: str
    version: int
    role: str
    capabilities: Mapping[str, float]
    description: str = ""


@message("agent.removed")
class AgentRemoved(Event):
    """An agent left a team."""

    agent: str


@message("agent.health_changed")
class AgentHealthChanged(Event):
    """An agent is well again, or is not."""

    agent: str
    health: Health
    reason: str = ""


@message("agent.turn_started")
class TurnStarted(Event):
    """An agent asks its model; the reply's id is ``task/attempt:turn``."""

    task: str
    agent: str
    turn: int
    reply: str


@message("agent.turn_ended")
class TurnEnded(Event):
    """What the model said, and the results of all tools it asked for, joined the history together."""

    task: str
    agent: str
    turn: int
    reply: str
    calls: int = 0


@message("agent.history_summarised")
class HistorySummarised(Event):
    """The oldest messages of an agent's history were replaced by a summary."""

    task: str
    agent: str
    messages: int
    summary: str


# -- tools --------------------------------------------------------------------------------------


@message("tool.called")
class ToolCalled(Event):
    """A model asked for a tool. ``call`` is unique; ``id`` is the model's own word for it."""

    call: str
    task: str
    agent: str
    tool: str
    id: str
    arguments: str


@message("tool.progressed")
class ToolProgressed(Event):
    """A tool told how far it is."""

    call: str
    text: str


@message("tool.finished")
class ToolFinished(Event):
    """A tool call ended: what the model is told, and how it came to that."""

    call: str
    outcome: ToolOutcome
    content: str


@message("approval.asked")
class ApprovalAsked(Event):
    """A tool waits for a person's yes; answer with `ApprovalGiven`, or ``app.approve``.

    Attributes:
        approval: Its id, which no other question has, of no run: a decision holds for this one only.
        task: The task that waits.
        agent: Who wants to call it.
        tool: Which tool.
        arguments: With what, as JSON text.
        call: The tool call; see `ToolCalled`.
    """

    approval: str
    task: str
    agent: str
    tool: str
    arguments: str
    call: str = ""


@message("approval.given")
class ApprovalGiven(Event):
    """A person decided."""

    approval: str
    approved: bool
    by: str = ""
    reason: str = ""


# -- letters between agents ---------------------------------------------------------------------


@message("agent.message")
class AgentMessage(Command[None]):
    """A letter from one agent to others.

    ``to`` is an agent's id, ``role:<role>``, ``capability:<name>`` or ``*`` for all.

    Attributes:
        id: Unique; a letter that comes twice is handled once.
        sender: Id of the agent that sent it.
        to: To whom.
        kind: What it is.
        body: What it says.
        correlation: Id of the letter that it answers, or belongs to.
        priority: Higher is handled first.
        deadline: Seconds from sending after which it is not handled any more.
        attempt: Which delivery this is, from 1.
    """

    id: str
    sender: str
    to: str
    kind: Kind
    body: JSON = None
    correlation: str | None = None
    priority: int = 0
    deadline: float | None = None
    attempt: int = 1

    def __post_init__(self) -> None:
        for name in ("id", "sender", "to"):
            if not getattr(self, name):
                raise ValidationError("agent.message", name, "", "a name that is not empty")
        if self.deadline is not None and self.deadline <= 0:
            raise ValidationError("agent.message", "deadline", self.deadline, "seconds above 0")
        if self.attempt < 1:
            raise ValidationError("agent.message", "attempt", self.attempt, "a number from 1")

    @property
    def direction(self) -> Literal["request", "answer", "notice"]:
        """Whether it wants an answer, is one, or neither. What became of it is told by events."""
        if self.kind in ("query", "task", "tool_request"):
            return "request"
        return "notice" if self.kind == "status" else "answer"


@message("agent.message_received")
class MessageReceived(Event):
    """A letter was handled by an agent: the confirmation of its delivery."""

    id: str
    agent: str


@message("agent.message_retried")
class MessageRetried(Event):
    """A letter could not be handled and is delivered again."""

    id: str
    agent: str
    attempt: int
    error: str


@message("agent.message_dead")
class MessageDead(Event):
    """A letter was given up: nobody is there, it is too late, or handling it failed each time."""

    letter: AgentMessage
    reason: str

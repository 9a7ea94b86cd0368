"""Draws what agents did in a run: a tree of its tasks, and a sequence diagram for Mermaid."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from atlas.agents.messages import (
    AgentMessage,
    ApprovalAsked,
    ApprovalGiven,
    TaskAssigned,
    TaskCancelled,
    TaskCompleted,
    TaskExpired,
    TaskFailed,
    TaskHandedOver,
    TaskProgressed,
    TaskQueued,
    ToolCalled,
    ToolFinished,
    TurnStarted,
)
from atlas.agents.settings import check
from atlas.core.effects import EffectDelivered, EffectStarted
from atlas.core.messages import Message
from atlas.core.runs import RunEnded, RunStarted
from atlas.providers.messages import StreamCompleted, StreamFailed, StreamStarted

__all__ = ["sequence_diagram", "task_tree"]

_LONGEST = 60


# -- a sequence diagram -------------------------------------------------------------------------


def sequence_diagram(events: Iterable[Message]) -> str:
    """Return what happened in a run as a sequence diagram, in the language of Mermaid.

    Works for any run: agents, their models and tools, people who approve, letters, and the model
    calls and effects of runs without agents.

    Args:
        events: The events of a run, in their order.
    """
    _check_events(events)
    drawing = _Drawing()
    for event in events:
        drawing.take(event)
    return drawing.text


def _check_events(given: object) -> None:
    holds = hasattr(given, "__iter__") and not isinstance(given, str)
    check("events", given, holds, "the events of a run, such as app.runs[run_id].events")


class _Drawing:
    """A sequence diagram while it is drawn."""

    def __init__(self) -> None:
        self._actors: dict[str, str] = {}
        self._lines: list[str] = []
        self._agent_of: dict[str, str] = {}
        self._parent: dict[str, str] = {}
        self._calls: dict[str, ToolCalled] = {}
        self._asked: dict[str, str] = {}
        self._models: dict[str, tuple[str, str]] = {}
        self._effects: dict[str, str] = {}

    @property
    def text(self) -> str:
        """The diagram."""
        actors = [f"    participant {key} as {_short(name)}" for name, key in self._actors.items()]
        return "\n".join(["sequenceDiagram", *actors, *self._lines, ""])

    def _actor(self, name: str) -> str:
        if name not in self._actors:
            self._actors[name] = f"p{len(self._actors)}"
        return self._actors[name]

    def _arrow(self, one: str, kind: str, other: str, text: str) -> None:
        self._lines.append(f"    {self._actor(one)}{kind}{self._actor(other)}: {_short(text)}")

    def _above(self, task: str) -> str:
        return self._agent_of.get(self._parent.get(task, ""), "caller")

    def take(self, event: Message) -> None:
        """Draw an event."""
        match event:
            case RunStarted(name=name):
                self._lines.append(f"    Note over {self._actor('caller')}: {_short(name)}")
            case RunEnded(status=status):
                self._lines.append(f"    Note over {self._actor('caller')}: {_short(status)}")
            case StreamStarted() | StreamCompleted() | StreamFailed():
                self._draw_model(event)
            case EffectStarted() | EffectDelivered():
                self._draw_effect(event)
            case ToolCalled() | ToolFinished() | ApprovalAsked() | ApprovalGiven():
                self._draw_tool(event)
            case AgentMessage(sender=sender, to=to, kind=kind):
                self._arrow(sender, "-)", to, f"{kind}: {event.body!r}")
            case _:
                self._draw_task(event)

    def _draw_task(self, event: Message) -> None:
        match event:
            case TaskQueued(task=task, parent=parent):
                self._parent[task.id] = parent or ""
                self._agent_of[task.id] = task.text
            case TaskAssigned(task=task_id, agent=agent):
                text = self._agent_of[task_id] if event.attempt == 1 else f"attempt {event.attempt}"
                self._agent_of[task_id] = agent
                self._arrow(self._above(task_id), "->>", agent, text)
            case TaskHandedOver(agent=agent, to=to, reason=reason):
                self._arrow(agent, "->>", to, f"hands over {reason}")
            case TaskCompleted(task=task_id, agent=agent, answer=answer):
                self._arrow(agent, "-->>", self._above(task_id), str(answer))
            case TaskFailed(task=task_id, agent=agent, error=error):
                self._arrow(agent or "caller", "--x", self._above(task_id), error)
            case TaskCancelled(task=task_id, agent=agent):
                self._arrow(agent or "caller", "--x", self._above(task_id), "cancelled")
            case TaskExpired(task=task_id, agent=agent):
                self._arrow(agent or "caller", "--x", self._above(task_id), "too late")
            case _:
                return

    def _draw_model(self, event: StreamStarted | StreamCompleted | StreamFailed) -> None:
        if isinstance(event, StreamStarted):
            asker = self._agent_of.get(event.conversation, "caller")
            self._models[event.reply] = (asker, f"{event.provider} {event.model}".strip())
            self._arrow(asker, "->>", self._models[event.reply][1], event.prompt or "and now?")
            return
        asker, model = self._models.get(event.reply, ("caller", "model"))
        if isinstance(event, StreamFailed):
            self._arrow(model, "--x", asker, event.error)
            return
        given = event.completion
        calls = ", ".join(f"{call.name}({call.arguments})" for call in given.tool_calls)
        self._arrow(model, "-->>", asker, given.text or calls or given.finish_reason)

    def _draw_tool(self, event: ToolCalled | ToolFinished | ApprovalAsked | ApprovalGiven) -> None:
        match event:
            case ToolCalled(call=call, agent=agent, tool=tool, arguments=arguments):
                self._calls[call] = event
                self._arrow(agent, "->>", tool, arguments)
            case ToolFinished(call=call, outcome=outcome, content=content):
                called = self._calls.get(call)
                if called is not None:
                    arrow = "-->>" if outcome == "done" else "--x"
                    self._arrow(called.tool, arrow, called.agent, content)
            case ApprovalAsked(approval=approval, agent=agent, tool=tool):
                self._asked[approval] = agent
                self._arrow(agent, "-)", "a person", f"may I {tool}?")
            case ApprovalGiven(approved=approved, by=by):
                said = f"{'yes' if approved else 'no'} {f'({by})' if by else ''}"
                self._arrow("a person", "-)", self._asked.get(event.approval) or "caller", said)

    def _draw_effect(self, event: EffectStarted | EffectDelivered) -> None:
        """Draw an effect that is no tool and no model call: these have words of their own."""
        if isinstance(event, EffectStarted):
            if event.kind not in ("model", "approval") and not event.kind.startswith("tool."):
                self._effects[event.effect] = event.kind
                self._arrow("caller", "->>", event.kind, event.rest)
        elif event.effect in self._effects and event.what != "chunk":
            kind = self._effects.pop(event.effect)
            self._arrow(kind, "--x" if event.what == "error" else "-->>", "caller", event.value)


def _short(text: str) -> str:
    """Return a text that means nothing to Mermaid, on one line, not too long."""
    return _cut(re.sub(r"[;#<>{}\"`]", " ", text)) or "."


def _cut(text: str) -> str:
    """Return a text on one line, not too long."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


# -- a tree of tasks ----------------------------------------------------------------------------


@dataclass(slots=True)
class _Branch:
    """A task, and what came of it so far."""

    text: str
    agent: str = ""
    status: str = "queued"
    turns: int = 0
    said: str = ""
    children: list[str] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)


def task_tree(events: Iterable[Message]) -> list[str]:
    """Return the tasks of a run as lines, each below the one that it belongs to, with its tools.

    Args:
        events: The events of a run, in their order, up to any of them.
    """
    _check_events(events)
    tasks: dict[str, _Branch] = {}
    roots: list[str] = []
    calls: dict[str, tuple[_Branch, int, str]] = {}
    for event in events:
        _grow(event, tasks, roots, calls)
    return [line for root in roots for line in _drawn(root, tasks, "", "")]


def _grow(
    event: Message,
    tasks: dict[str, _Branch],
    roots: list[str],
    calls: dict[str, tuple[_Branch, int, str]],
) -> None:
    match event:
        case TaskQueued(task=task, parent=parent):
            tasks[task.id] = _Branch(task.text)
            (tasks[parent].children if parent in tasks else roots).append(task.id)
        case ToolFinished(call=call, outcome=outcome, content=content) if call in calls:
            branch, place, said = calls[call]
            branch.tools[place] = f"{said} → {_cut(content)}{_mark(outcome)}"
        case ToolCalled(task=task_id) if task_id in tasks:
            branch = tasks[task_id]
            said = f"{event.tool}({_cut(event.arguments)})"
            calls[event.call] = (branch, len(branch.tools), said)
            branch.tools.append(said)
        case ApprovalAsked(approval=approval, call=call) if call in calls:
            branch, place, said = calls[call]
            branch.tools[place] = f"{said} waits for approval {approval}"
        case TaskAssigned(task=task_id, agent=agent) if task_id in tasks:
            tasks[task_id].agent, tasks[task_id].status = agent, "running"
        case TurnStarted(task=task_id) if task_id in tasks:
            tasks[task_id].turns += 1
        case TaskProgressed(task=task_id, text=text) if task_id in tasks:
            tasks[task_id].said = text
        case TaskCompleted(task=task_id) if task_id in tasks:
            tasks[task_id].status, tasks[task_id].said = "done", str(event.answer)
        case TaskFailed(task=task_id, error=error) if task_id in tasks:
            tasks[task_id].status, tasks[task_id].said = "failed", error
        case TaskCancelled(task=task_id) if task_id in tasks:
            tasks[task_id].status = "cancelled"
        case TaskExpired(task=task_id) if task_id in tasks:
            tasks[task_id].status = "expired"
        case _:
            return


def _mark(outcome: str) -> str:
    return "" if outcome == "done" else f" ({outcome})"


def _drawn(task: str, tasks: dict[str, _Branch], first: str, below: str) -> Iterator[str]:
    branch = tasks[task]
    said = f": {_cut(branch.said)}" if branch.said else ""
    who = branch.agent or "nobody yet"
    turns = f"{branch.turns} turn{'s' * (branch.turns != 1)}"
    yield f"{first}{who} — {_cut(branch.text)} [{branch.status}, {turns}]{said}"
    leaves: list[str | None] = [None] * len(branch.tools)
    rest = [*leaves, *branch.children]
    for place, child in enumerate(rest):
        is_last = place == len(rest) - 1
        edge, inner = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        if child is None:
            yield f"{below}{edge}{branch.tools[place]}"
        else:
            yield from _drawn(child, tasks, below + edge, below + inner)

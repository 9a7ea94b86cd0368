"""Agents for common ends, and the tools with which models delegate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

from atlas.agents.agent import Agent, ModelOf
from atlas.agents.desk import current_desk
from atlas.agents.messages import Task, TaskProgressed
from atlas.agents.settings import check, is_count, listed
from atlas.agents.tools import Shape, Tool
from atlas.errors import ConfigurationError, NoAgentError
from atlas.providers.scripted import Reply, ScriptedProvider

__all__ = [
    "Retriever",
    "delegation",
    "hand_over_to",
    "knowledge_agent",
    "report_progress",
    "scripted_agent",
    "task_aware",
]


def delegation(
    *agents: str, name: str = "delegate", description: str | None = None
) -> Tool[..., Any]:
    """Return a tool with which a model has tasks done by other agents of its team.

    Several calls in one turn go on side by side. What the other agent cannot do, the model is told.

    Args:
        agents: Among whom the model may choose; none: the team chooses, by what the task needs.
        name: By which the model calls it.
        description: What the model is told.
    """
    _check_names(agents)

    async def delegate(task: str, to: str | None = None, needs: tuple[str, ...] = ()) -> str:
        desk = current_desk()
        if desk is None or desk.team is None:
            raise ConfigurationError("delegate() was called outside of a task of a team.")
        outcome = await desk.team.delegate(Task(task, needs=frozenset(needs)), to=to)
        return outcome.text

    if agents:

        def shown(task: str, to: str) -> None: ...

        shown.__annotations__["to"] = Literal[agents]
    else:

        def shown(task: str, needs: tuple[str, ...] = ()) -> None: ...  # type: ignore[misc]

    told = description or "Have a task done by another agent and get its answer."
    return _inside(delegate, name, told, Shape(shown, name))


def hand_over_to(*agents: str, name: str = "hand_over") -> Tool[..., Any]:
    """Return a tool with which a model gives its whole task to another agent of its team.

    Args:
        agents: Among whom the model may choose.
        name: By which the model calls it.
    """
    if not agents:
        raise ConfigurationError("hand_over_to() needs the names of the agents to choose among.")
    _check_names(agents)

    async def hand_over(to: str, reason: str = "") -> str:
        desk = current_desk()
        if desk is None or desk.team is None:
            raise ConfigurationError("hand_over() was called outside of a task of a team.")
        if to not in desk.team.agents:
            raise NoAgentError(
                f"There is no agent {to!r} in this team now. Do it yourself, or give it to another one."
            )
        desk.handed_over = (to, reason)
        return f"{to} goes on with it."

    def shown(to: str, reason: str = "") -> None: ...

    shown.__annotations__["to"] = Literal[agents]
    told = "Give this task to another agent, who answers in your place."
    return _inside(hand_over, name, told, Shape(shown, name))


def _check_names(agents: Sequence[str]) -> None:
    for name in agents:
        check("One to choose among", name, name and isinstance(name, str), "an agent's name")


# Any: what the tool takes is in its shape
def _inside(
    function: Callable[..., Any], name: str, description: str, shape: Shape
) -> Tool[..., Any]:
    return Tool(
        function,
        name=name,
        description=description,
        timeout=None,
        schema=shape,
        is_inside=True,
    )


def report_progress(text: str, share: float | None = None) -> None:
    """Tell how far the caller's task is; does nothing outside of tasks.

    For agent logic, such as hooks and tools that are inside. A tool that is an effect yields instead.

    Args:
        text: How far, in words.
        share: From 0 to 1, where that is known.
    """
    desk = current_desk()
    if desk is not None:
        desk.touch()
        desk.bus.publish(TaskProgressed(desk.task, text, share))


# -- agents -------------------------------------------------------------------------------------


def task_aware(prompts: Mapping[str, str], *, otherwise: str = "") -> Callable[[Task], str]:
    """Return instructions that depend on the kind of a task: ``Agent(instructions=task_aware(...))``.

    Args:
        prompts: Instructions by `Task.kind`.
        otherwise: For other kinds.
    """
    check("prompts", prompts, isinstance(prompts, Mapping), "instructions by the kind of task")
    for kind, told in prompts.items():
        check("A kind of task", kind, isinstance(kind, str), "its name")
        check(f"The instructions for {kind!r}", told, isinstance(told, str), "a text")
    check("otherwise", otherwise, isinstance(otherwise, str), "a text")
    return lambda task: prompts.get(task.kind, otherwise)


def scripted_agent(
    name: str,
    replies: Iterable[Reply] | None = None,
    # Any: whatever Agent takes
    **options: Any,
) -> Agent:
    """Return an agent whose model plays given replies: for tests.

    The script is no part of the log: a run that is resumed in a new process asks it from its first reply
    on. To go on there, give functions of the request, which see how far the conversation is.

    Args:
        name: The agent's name.
        replies: What its model says, turn by turn; see `ScriptedProvider`.
        **options: As for `Agent`.
    """
    provider = ScriptedProvider(replies, name=f"scripted-{name}")
    return Agent(name, **{"model": provider, **options})


class Retriever(Protocol):
    """Whatever finds texts: `atlas.knowledge.Knowledge`, or something of yours.

    A hit is a text, or has one as ``text``; where it also has a ``source``, the model is told.
    """

    # Any: hits have a text, and otherwise what the retriever gives them
    async def search(self, query: str, *, k: int = 5) -> Sequence[Any]:
        """Return the best hits, each with a ``text``, or texts."""
        ...


def knowledge_agent(
    name: str,
    retriever: Retriever,
    *,
    k: int = 5,
    instructions: str = "Answer from what you find with search. Say so if it is not there.",
    model: ModelOf = None,
    # Any: whatever Agent takes
    **options: Any,
) -> Agent:
    """Return an agent that answers from what a retriever finds.

    Args:
        name: The agent's name.
        retriever: Finds texts; asked as a tool that reads.
        k: How many hits the model is shown.
        instructions: What the model is told first.
        model: Whom to ask.
        **options: As for `Agent`.
    """
    has_search = callable(getattr(retriever, "search", None))
    check("retriever", retriever, has_search, "something with a `search`")
    check("k", k, is_count(k), "a whole number from 1")

    async def search(query: str) -> str:
        hits = await retriever.search(query, k=k)
        hits = listed("What the retriever found", hits, "a list of hits")
        return "\n\n".join(map(_passage, hits)) or "Nothing was found."

    found = Tool(search, description="Search the knowledge base.")
    more = listed(f"Agent {name!r}: tools", options.pop("tools", ()), "a list of tools")
    return Agent(name, instructions=instructions, tools=[found, *more], model=model, **options)


# Any: whatever a retriever finds
def _passage(hit: Any) -> str:
    text, source = str(getattr(hit, "text", hit)), getattr(hit, "source", None)
    return f"{text}\n(from {source})" if source else text

"""What an agent is: an immutable definition. What it does, and remembers, belongs to a run.

One `Agent` serves any number of tasks at once, in any number of teams.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from atlas.agents.account import FREE, Price
from atlas.agents.messages import Limits, Task
from atlas.agents.settings import check, is_count, is_number, is_text_or_function, listed
from atlas.agents.tools import Shape, Tool
from atlas.errors import ConfigurationError
from atlas.providers.base import Provider
from atlas.providers.messages import ChatMessage

__all__ = ["Agent", "History", "Memory", "ModelOf", "is_model_name"]

ModelOf: TypeAlias = "str | Provider | Callable[[Task], str | Provider | None] | None"
"""Whom an agent asks: ``"provider"`` or ``"provider/model"``, a provider of your own, a function that
chooses for each task, or None for the application's default."""


@dataclasses.dataclass(frozen=True, slots=True)
class Memory:
    """How much of a long history the model is shown.

    Attributes:
        window: Messages shown, the latest, and the task; older ones are left out, or summed up.
        summarise: Whether the agent's model sums up what is left out.
    """

    window: int = 40
    summarise: bool = False

    def __post_init__(self) -> None:
        check("window", self.window, is_count(self.window, 2), "2 messages to show, or more")
        check("summarise", self.summarise, type(self.summarise) is bool, "True or False")


class History:
    """What was said so far, for a task that follows another: hand one history to both.

    Turns join it whole: what the model said and the results of all the tools it asked for, also when
    the task is cancelled in the middle. So no history holds a tool call without a result.
    """

    __slots__ = ("_joined", "_messages")

    def __init__(self, messages: Iterable[ChatMessage] = ()) -> None:
        self._messages = listed("messages", messages, "a list of ChatMessage")
        for each in self._messages:
            check("A message of the history", each, isinstance(each, ChatMessage), "a ChatMessage")
        self._joined: list[ChatMessage] = []

    def __len__(self) -> int:
        return len(self._messages)

    def __repr__(self) -> str:
        return f"<History of {len(self)} messages>"

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """The messages, oldest first."""
        return tuple(self._messages)

    @property
    def joined(self) -> tuple[ChatMessage, ...]:
        """All that joined since it was made, also what a summary stands for by now."""
        return tuple(self._joined)

    def join(self, *messages: ChatMessage) -> None:
        """Let messages that belong together join.

        Raises:
            ConfigurationError: One of them is no `ChatMessage`.
        """
        for each in messages:
            if not isinstance(each, ChatMessage):
                check("A message of the history", each, False, "a ChatMessage")
        self._messages.extend(messages)
        self._joined.extend(messages)

    def replace(self, count: int, summary: ChatMessage) -> None:
        """Put a summary in the place of the oldest messages."""
        self._messages[:count] = [summary]


class Agent:
    """Somebody who can do tasks: instructions, tools, capabilities, a model. Immutable.

    Args:
        name: Its id in a team: letters, digits, ``_``, ``-`` and ``.``.
        instructions: What the model is told first; or a function of the task that returns it.
        tools: What the model may call: made by `tool`, or plain annotated functions.
        capabilities: What it can do: names, or grades from 0 to 1 by name.
        model: Whom to ask; see `ModelOf`.
        output: A frozen dataclass that the answer has to fit; default: text.
        role: Its role, for letters and for people.
        description: What it is good for, for models that choose among agents.
        version: Of this definition.
        capacity: How many tasks of a run it does at once, those not counted that do nothing but wait
            for what they delegated; None: any number.
        memory: How much of a long history the model is shown; None: all of it.
        tool_choice: ``"auto"``; ``"required"``: the model starts with a tool; ``"once"``: it calls tools
            in its first turn and answers in the second.
        finish: Who has the last word: the ``"model"``, or the first ``"tool"`` that is done.
        max_tokens: Longest answer, in tokens.
        temperature: 0 for the likeliest words.
        price: What its model costs, so that limits of cost can be kept.
        limits: What a task of it, and all below that, may use at most, within the limits of the tree;
            None: those of the tree only.
        stuck_after: Seconds without a sign of life after which a task of it is given up; None: never.

    Raises:
        ConfigurationError: Something makes no sense.
    """

    __slots__ = (
        "capabilities",
        "capacity",
        "description",
        "finish",
        "instructions",
        "limits",
        "max_tokens",
        "memory",
        "model",
        "name",
        "output",
        "output_shape",
        "price",
        "role",
        "stuck_after",
        "temperature",
        "tool_choice",
        "tools",
        "version",
    )

    def __init__(
        self,
        name: str,
        *,
        instructions: str | Callable[[Task], str] = "",
        # Any, twice: a tool takes and gives whatever it does
        tools: Sequence[Tool[..., Any] | Callable[..., Any]] = (),
        capabilities: Collection[str] | Mapping[str, float] = (),
        model: ModelOf = None,
        output: type | None = None,
        role: str = "",
        description: str = "",
        version: int = 1,
        capacity: int | None = None,
        memory: Memory | None = None,
        tool_choice: Literal["auto", "required", "once"] = "auto",
        finish: Literal["model", "tool"] = "model",
        max_tokens: int | None = None,
        temperature: float | None = None,
        price: Price = FREE,
        limits: Limits | None = None,
        stuck_after: float | None = 600.0,
    ) -> None:
        if not _is_name(name):
            raise ConfigurationError(
                f"An agent cannot be called {name!r}. Use letters, digits, _, - and . only."
            )
        if isinstance(capabilities, str):
            raise ConfigurationError(
                f"capabilities is {capabilities!r}. Give a set: {{{capabilities!r}}}."
            )
        is_model = model is None or is_model_name(model) or _gives_model(model)
        is_shape = isinstance(output, type) and dataclasses.is_dataclass(output)
        for holds, what, given, wanted in (
            (
                is_text_or_function(instructions),
                "instructions",
                instructions,
                "text, or a function of the task",
            ),
            (
                is_model,
                "model",
                model,
                "'provider' or 'provider/model', a provider (no class), a function of the task or None",
            ),
            (output is None or is_shape, "output", output, "a frozen dataclass, or None for text"),
            (isinstance(role, str), "role", role, "a text"),
            (isinstance(description, str), "description", description, "a text"),
            (
                capacity is None or is_count(capacity),
                "capacity",
                capacity,
                "a whole number from 1, or None",
            ),
            (is_count(version), "version", version, "a whole number from 1"),
            (
                max_tokens is None or is_count(max_tokens),
                "max_tokens",
                max_tokens,
                "a whole number from 1, or None",
            ),
            (
                temperature is None or is_number(temperature, 0, 2),
                "temperature",
                temperature,
                "a number from 0 to 2, or None",
            ),
            (
                stuck_after is None or is_number(stuck_after, 1e-9),
                "stuck_after",
                stuck_after,
                "seconds above 0, or None",
            ),
            (isinstance(memory, Memory | None), "memory", memory, "a Memory, or None"),
            (isinstance(price, Price), "price", price, "a Price"),
            (isinstance(limits, Limits | None), "limits", limits, "Limits, or None"),
            (tool_choice in _CHOICES, "tool_choice", tool_choice, f"one of {', '.join(_CHOICES)}"),
            (finish in ("model", "tool"), "finish", finish, "'model' or 'tool'"),
        ):
            check(f"Agent {name!r}: {what}", given, holds, wanted)
        several = listed(f"Agent {name!r}: tools", tools, "a list of tools")
        for what, given, is_idle in (
            ("tool_choice", tool_choice, tool_choice == "auto"),
            ("finish", finish, finish == "model"),
        ):
            wanted = "it tools, tools=[...], of which it has none, or leave this out"
            check(f"Agent {name!r}: {what}", given, several or is_idle, wanted)
        made = tuple(each if isinstance(each, Tool) else Tool(each) for each in several)
        settle = object.__setattr__
        settle(self, "name", name)
        settle(self, "instructions", instructions)
        settle(self, "tools", MappingProxyType(_by_name(name, made)) if made else _NONE)
        settle(self, "capabilities", _graded(capabilities))
        settle(self, "model", model)
        settle(self, "output", output)
        settle(self, "output_shape", None if output is None else Shape(output, output.__name__))
        settle(self, "role", role)
        settle(self, "description", description)
        settle(self, "version", version)
        settle(self, "capacity", capacity)
        settle(self, "memory", memory)
        settle(self, "tool_choice", tool_choice)
        settle(self, "finish", finish)
        settle(self, "max_tokens", max_tokens)
        settle(self, "temperature", temperature)
        settle(self, "price", price)
        settle(self, "limits", limits)
        settle(self, "stuck_after", stuck_after)

    name: str
    instructions: str | Callable[[Task], str]
    tools: Mapping[str, Tool[..., Any]]
    capabilities: Mapping[str, float]
    model: ModelOf
    output: type | None
    output_shape: Shape | None
    role: str
    description: str
    version: int
    capacity: int | None
    memory: Memory | None
    tool_choice: Literal["auto", "required", "once"]
    finish: Literal["model", "tool"]
    max_tokens: int | None
    temperature: float | None
    price: Price
    limits: Limits | None
    stuck_after: float | None

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __setattr__(self, name: str, value: object) -> None:
        raise dataclasses.FrozenInstanceError(
            f"Agent.{name} cannot be changed: agents are definitions that many tasks share. Make "
            f"another one with agent.changed({name}=...)."
        )

    def __repr__(self) -> str:
        able = ", ".join(sorted(self.capabilities)) or "nothing in particular"
        return f"<Agent {self.name} v{self.version} for {able}>"

    # Any: whatever the constructor takes
    def changed(self, **changes: Any) -> Agent:
        """Return an agent like this one, but for what is given; its version is one higher."""
        own = {each: getattr(self, each) for each in self.__slots__ if each != "output_shape"}
        own["tools"] = tuple(self.tools.values())
        return Agent(**{**own, "version": self.version + 1, **changes})

    def grade(self, task: Task) -> float | None:
        """Return how well it fits a task, from 0 to 1; None if something is missing."""
        least = 1.0
        for need in task.needs | task.grades.keys():
            own = self.capabilities.get(need)
            if own is None or own < task.grades.get(need, 0.0):
                return None
            least = min(least, own)
        return least

    def told(self, task: Task) -> str:
        """Return the instructions for a task.

        Raises:
            ConfigurationError: They are a function, and what it gave is no text.
        """
        given = self.instructions
        if isinstance(given, str):
            return given
        told = given(task)
        if inspect.iscoroutine(told):
            told.close()  # which nobody awaits
        holds = isinstance(told, str)
        check(f"Agent {self.name!r}: what instructions(task) gave", told, holds, "a text")
        return told


_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHOICES: Final = ("auto", "required", "once")
# Any: see Agent
_NONE: Final[Mapping[str, Tool[..., Any]]] = MappingProxyType({})


# Any: see Agent
def _by_name(name: str, tools: Sequence[Tool[..., Any]]) -> dict[str, Tool[..., Any]]:
    made = {each.name: each for each in tools}
    if len(made) < len(tools):
        names = [each.name for each in tools]
        twice = next(each for each in names if names.count(each) > 1)
        raise ConfigurationError(
            f"Agent {name!r} has two tools called {twice!r}. Give one of them name=."
        )
    return made


def is_model_name(given: object) -> bool:
    """Return whether something names a provider, and maybe a model of it."""
    return isinstance(given, str) and given.partition("/")[0].strip() != ""


def _gives_model(given: object) -> bool:
    is_provider = hasattr(given, "stream") or callable(given)
    return is_provider and not isinstance(given, str | type)


def _is_name(given: object) -> bool:
    return isinstance(given, str) and _NAME.fullmatch(given) is not None


def _graded(capabilities: Collection[str] | Mapping[str, float]) -> Mapping[str, float]:
    for name in listed("capabilities", capabilities, "a set of names, or grades by name"):
        check("A capability", name, name and isinstance(name, str), "its name")
    if not isinstance(capabilities, Mapping):
        return MappingProxyType(dict.fromkeys(sorted(capabilities), 1.0))
    for name, grade in capabilities.items():
        if not is_number(grade, 0, 1) or not grade:
            raise ConfigurationError(
                f"The grade of capability {name!r} is {grade!r}. Give a number above 0, up to 1."
            )
    return MappingProxyType(dict(capabilities))

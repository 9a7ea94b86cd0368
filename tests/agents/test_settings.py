"""What makes no sense is refused where it is given: the error names it, its value and what does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from atlas import EventBus
from atlas.agents import (
    Agent,
    Controller,
    ErrorPolicy,
    History,
    Price,
    Task,
    agents_at,
    knowledge_agent,
    scripted_agent,
    sequence_diagram,
    task_aware,
    task_tree,
    tool,
)
from atlas.errors import AtlasError, ConfigurationError
from atlas.providers.scripted import ScriptedProvider


class Shelf:
    def __init__(self, found: Any) -> None:
        self.found = found

    async def search(self, query: str, *, k: int = 5) -> Any:
        return self.found


@dataclass
class NoSearch:
    search: int = 1


def team() -> Controller:
    return Controller([scripted_agent("one", ["Hi."])], bus=EventBus())


async def idle(*given: object) -> None:
    """Do nothing."""


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Price(True, False), "The price of input is True. Give a number, 0 or more."),
        (lambda: Price(1, "2"), "The price of output is '2'."),
        (lambda: Price(float("inf")), "The price of input is inf."),
        (lambda: scripted_agent("a", [5]), "5 is no scripted reply."),
        (lambda: scripted_agent("a", "Hi."), "replies is 'Hi.'."),
        (lambda: scripted_agent("a", {"a": "b"}), "replies is {'a': 'b'}."),
        (lambda: Agent("a", model=ScriptedProvider), "Agent 'a': model is <class"),
        (lambda: Agent("a", model="/small"), "Agent 'a': model is '/small'."),
        (lambda: Agent("a", instructions=int), "Agent 'a': instructions is <class 'int'>."),
        (lambda: Agent("a", stuck_after=float("inf")), "Agent 'a': stuck_after is inf."),
        (lambda: Agent("a", tool_choice="required"), "Agent 'a': tool_choice is 'required'."),
        (lambda: Agent("a", finish="tool"), "Agent 'a': finish is 'tool'."),
        (lambda: History().join(5), "A message of the history is 5."),
        (lambda: tool(permission=[])(idle), "Tool 'idle' has permission []."),
        (lambda: task_aware({"a": 5}), "The instructions for 'a' is 5."),
        (lambda: task_aware({5: "a"}), "A kind of task is 5."),
        (lambda: task_aware({}, otherwise=5), "otherwise is 5."),
        (lambda: knowledge_agent("a", NoSearch()), "retriever is NoSearch(search=1)."),
        (lambda: knowledge_agent("a", Shelf([]), tools=5), "Agent 'a': tools is 5."),
        (lambda: ErrorPolicy(escalate_to=""), "escalate_to is ''."),
        (lambda: team().remove(5), "name is 5."),
        (lambda: team().health([]), "name is []."),
        (lambda: team().load(None), "name is None."),
        (lambda: team().cancel([]), "task is []."),
        (lambda: Task("Go.", needs={""}), "task.needs: frozenset({''})"),
        (lambda: agents_at("run-1"), "run is 'run-1'. Give a stored run"),
        (lambda: task_tree("run-1"), "events is 'run-1'. Give the events of a run"),
        (lambda: sequence_diagram(5), "events is 5. Give the events of a run"),
    ],
)
async def test_it_is_refused_where_it_is_given(made: Any, told: str) -> None:
    with pytest.raises(AtlasError) as refused:
        made()

    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("each", "reduce", "told"),
    [(5, lambda outcomes: "Sum up.", "each is 5."), (lambda item: "Do.", 5, "reduce is 5.")],
)
async def test_what_is_no_function_is_refused_before_anything_is_done(
    each: Any, reduce: Any, told: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        await team().map_reduce([1], each, reduce)

    assert str(refused.value).startswith(told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"instructions": lambda task: 5}, "what instructions(task) gave is 5. Give a text."),
        ({"instructions": lambda task: None}, "what instructions(task) gave is None."),
        ({"instructions": idle}, "what instructions(task) gave is <coroutine"),
        ({"model": lambda task: 5}, "what model(task) gave is 5."),
        ({"model": lambda task: ""}, "what model(task) gave is ''."),
    ],
)
async def test_what_a_function_of_the_task_may_not_give_is_the_error_of_the_task(
    options: Any, told: str
) -> None:
    one = Agent("one", **{"model": ScriptedProvider(["Hi."]), **options})
    outcome = await Controller([one], bus=EventBus()).delegate("Go.")

    assert isinstance(outcome.error, ConfigurationError)
    assert str(outcome.error).startswith(f"Agent 'one': {told}")


@pytest.mark.parametrize("found", [None, 5, "a text, which is no list"])
async def test_a_model_is_told_when_a_retriever_gives_no_list(found: Any) -> None:
    agent = knowledge_agent("one", Shelf(found))
    search = agent.tools["search"]
    with pytest.raises(ConfigurationError) as refused:
        await search(query="x")

    assert str(refused.value) == f"What the retriever found is {found!r}. Give a list of hits."

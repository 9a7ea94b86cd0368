"""Agents for common ends: they adapt to the task, and answer from what a retriever finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atlas import Atlas, EventBus
from atlas.agents import (
    Agent,
    Controller,
    Task,
    knowledge_agent,
    report_progress,
    scripted_agent,
    task_aware,
    tool,
)
from atlas.agents.messages import TaskProgressed
from atlas.agents.tools import Tool
from atlas.providers.messages import ToolCallPart
from atlas.providers.scripted import ScriptedProvider


async def test_instructions_and_model_follow_from_the_kind_of_the_task() -> None:
    fast, deep = ScriptedProvider(["fast"], name="fast"), ScriptedProvider(["deep"], name="deep")
    agent = Agent(
        "one",
        instructions=task_aware({"summary": "Be short."}, otherwise="Be thorough."),
        model=lambda task: fast if task.kind == "summary" else deep,
    )
    team = Controller([agent], bus=EventBus())
    short = await team.delegate(Task("This.", kind="summary"))
    long = await team.delegate(Task("That.", kind="essay"))

    assert (short.text, long.text) == ("fast", "deep")
    assert fast.requests[0].messages[0].text == "Be short."
    assert deep.requests[0].messages[0].text == "Be thorough."


@dataclass(frozen=True)
class Found:
    text: str
    source: str


class Shelf:
    """A retriever as anybody may write one."""

    def __init__(self, *found: Any) -> None:
        self.found = found
        self.asked: list[tuple[str, int]] = []

    async def search(self, query: str, *, k: int = 5) -> Sequence[Any]:
        self.asked.append((query, k))
        return self.found[:k]


async def test_a_knowledge_agent_answers_from_what_any_retriever_finds() -> None:
    shelf = Shelf(Found("Tea is hot.", "tea.md"), "Just a text.", "One too many.")
    model = ScriptedProvider([[ToolCallPart("c", "search", '{"query":"tea"}')], "Hot."])
    async with Atlas(provider="scripted") as app:
        team = Controller([knowledge_agent("librarian", shelf, k=2, model=model)], bus=app.bus)
        async with app.recording("tea", strict=True) as run:
            outcome = await team.delegate("Is tea hot?")
        again = ScriptedProvider([])
        nobody = Controller([knowledge_agent("librarian", Shelf(), k=2, model=again)], bus=app.bus)
        async with app.replaying(run.id):
            assert (await nobody.delegate("Is tea hot?")).text == "Hot."

    told = model.requests[-1].messages[-1].parts[0].content  # type: ignore[union-attr]
    assert outcome.text == "Hot."
    assert shelf.asked == [("tea", 2)]
    assert told == "Tea is hot.\n(from tea.md)\n\nJust a text."


async def test_an_empty_shelf_is_said_to_be_empty() -> None:
    model = ScriptedProvider([[ToolCallPart("c", "search", '{"query":"tea"}')], "It is not there."])
    team = Controller([knowledge_agent("librarian", Shelf(), model=model)], bus=EventBus())
    await team.delegate("Is tea hot?")

    assert "Nothing was found." in str(model.requests[-1].messages[-1])


async def test_progress_is_told_of_the_task_that_makes_it() -> None:
    seen: list[TaskProgressed] = []
    bus = EventBus()
    bus.subscribe(TaskProgressed, seen.append)

    async def halfway() -> str:
        report_progress("half of it", 0.5)
        return "ok"

    inside = Tool(halfway, is_inside=True)
    agent = scripted_agent("one", [[ToolCallPart("c", "halfway", "{}")], "Done."], tools=[inside])
    outcome = await Controller([agent], bus=bus).delegate("Go.")
    report_progress("of nothing")

    assert [(each.task, each.text, each.share) for each in seen] == [
        (outcome.task.id, "half of it", 0.5)
    ]


async def test_an_agent_with_tools_needs_nothing_else() -> None:
    @tool
    def sign(name: str) -> str:
        return f"signed by {name}"

    agent = scripted_agent(
        "clerk", [[ToolCallPart("c", "sign", '{"name":"Ann"}')]], tools=[sign], finish="tool"
    )

    assert (await Controller([agent], bus=EventBus()).delegate("Sign.")).text == "signed by Ann"

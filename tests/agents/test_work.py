"""One agent at one task: what the model sees, and that no history ever misses a result."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from atlas import Atlas, EventBus
from atlas.agents import (
    Agent,
    AgentsState,
    Controller,
    History,
    Limits,
    Memory,
    Price,
    Task,
    delegation,
    tool,
)
from atlas.agents.messages import HistorySummarised, ToolCalled, ToolFinished, TurnEnded
from atlas.agents.state import transitions
from atlas.core.messages import Message
from atlas.errors import AnswerInvalidError, LimitReachedError, ServerError, TaskFailedError
from atlas.providers.base import Capabilities, ChatRequest, UsageDelta
from atlas.providers.messages import (
    ChatMessage,
    StreamToken,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    Usage,
)
from atlas.providers.scripted import Reply, ScriptedProvider


def call(name: str, *, id: str = "c1", **arguments: object) -> ToolCallPart:  # noqa: A002
    return ToolCallPart(id, name, json.dumps(arguments))


def complete(messages: Sequence[ChatMessage]) -> bool:
    """Whether each tool call has exactly one result, right after it."""
    for place, message in enumerate(messages):
        calls = [part.id for part in message.parts if isinstance(part, ToolCallPart)]
        after = messages[place + 1].parts if place + 1 < len(messages) else ()
        results = [part.call_id for part in after if isinstance(part, ToolResultPart)]
        if calls != results and calls:
            return False
    return True


@tool
async def double(x: int) -> int:
    "Double a number."
    return 2 * x


@tool
async def broken(x: int) -> int:
    "Fail."
    raise ValueError(f"no {x}")


class Bench:
    """A team of one, with a script."""

    def __init__(self, replies: Sequence[Reply], *tools: Any, **options: Any) -> None:
        self.provider = ScriptedProvider(replies)
        self.bus = EventBus()
        self.seen: list[Message] = []
        self.bus.subscribe("**", self.seen.append)
        self.agent = Agent("one", tools=tools, model=self.provider, **options)
        self.team = Controller([self.agent], bus=self.bus)

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.seen if isinstance(each, kind)]

    @property
    def last_request(self) -> ChatRequest:
        return self.provider.requests[-1]

    @property
    def told(self) -> list[str]:
        return [
            part.content
            for message in self.last_request.messages
            for part in message.parts
            if isinstance(part, ToolResultPart)
        ]


async def test_a_tool_is_called_and_its_result_told_to_the_model() -> None:
    bench = Bench([[call("double", x=21)], "It is 42."], double, instructions="Calculate.")
    outcome = await bench.team.delegate("Twice 21?")

    assert outcome.text == "It is 42."
    assert bench.told == ["42"]
    assert bench.last_request.messages[0].text == "Calculate."
    assert (outcome.spent.turns, outcome.spent.tool_calls) == (2, 1)


@pytest.mark.parametrize(
    ("part", "outcome", "told"),
    [
        (call("broken", x=1), "failed", "ValueError: no 1"),
        (call("double", x="1"), "invalid", "double.x: '1'"),
        (ToolCallPart("c1", "double", "{oops"), "invalid", "JSON"),
        (call("duble", x=1), "unknown", "the nearest is 'double'"),
    ],
    ids=["raises", "wrong type", "no JSON", "unknown"],
)
async def test_what_goes_wrong_with_a_tool_is_told_with_its_cause(
    part: ToolCallPart, outcome: str, told: str
) -> None:
    bench = Bench([[part], "Sorry."], double, broken)
    ended = await bench.team.delegate("Go.")

    assert ended.text == "Sorry."
    assert told in bench.told[0]
    assert [each.outcome for each in bench.of(ToolFinished)] == [outcome]


async def test_tools_run_side_by_side_and_one_that_fails_keeps_its_siblings() -> None:
    both = asyncio.Barrier(2)

    @tool
    async def meet(x: int) -> str:
        await both.wait()
        return f"met {x}"

    calls = [call("meet", id="a", x=1), call("broken", id="b", x=2), call("meet", id="c", x=3)]
    bench = Bench([calls, "Done."], meet, broken)
    await bench.team.delegate("Go.")

    assert bench.told == ["met 1", "ValueError: no 2", "met 3"]


async def test_calls_of_the_same_id_are_told_apart() -> None:
    script = [[call("double", x=1)], [call("double", x=2), call("double", x=3)], "Done."]
    history = History()
    bench = Bench(script, double)
    await bench.team.delegate("Go.", history=history)
    ids = [p.id for m in history.messages for p in m.parts if isinstance(p, ToolCallPart)]

    assert len(set(ids)) == 3
    assert complete(history.messages)


async def test_cancelled_in_the_middle_of_a_tool_the_history_is_whole() -> None:
    running, stopped = asyncio.Event(), asyncio.Event()

    @tool
    async def hang(x: int) -> str:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    history = History()
    script = [[call("hang", id="a", x=1), call("double", id="b", x=4)], "And on."]
    bench = Bench(script, hang, double)
    task = asyncio.create_task(bench.team.delegate("Go.", history=history))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert stopped.is_set()
    assert complete(history.messages)
    assert [each.outcome for each in bench.of(ToolFinished)] == ["done", "cancelled"] or [
        each.outcome for each in bench.of(ToolFinished)
    ] == ["cancelled", "done"]
    again = await bench.team.delegate("And now?", history=history)
    assert again.text == "And on."
    assert complete(bench.last_request.messages)


async def test_cancelled_at_whatever_moment_each_call_has_one_result_at_any_depth() -> None:
    """One run for each event of the whole: it is cancelled there."""

    @tool
    async def slow(x: int) -> int:
        await asyncio.sleep(0)
        return x

    @tool
    async def tells(x: int) -> AsyncIterator[str]:
        for piece in range(x):
            await asyncio.sleep(0)
            yield f"{piece}"

    async def run(cancel_at: int | None) -> int:
        tasks = [call("delegate", id=f"d{n}", task="go", to="low") for n in range(2)]
        low = [[call("slow", x=1), call("tells", id="c2", x=2)], "Done."]
        boss = ScriptedProvider([tasks, "All done.", "And on."])
        bus, seen, history = EventBus(), list[Message](), History()
        team = Controller(
            [
                Agent("boss", tools=[delegation("low")], model=boss),
                Agent("low", tools=[slow, tells], model=ScriptedProvider([low[0], *low, low[1]])),
            ],
            bus=bus,
        )
        work = asyncio.create_task(team.delegate("Go.", to="boss", history=history))

        def hear(event: Message) -> None:
            seen.append(event)
            if len(seen) == cancel_at:
                work.cancel()

        bus.subscribe("**", hear)
        await asyncio.wait([work])
        assert work.cancelled() == (cancel_at is not None)

        assert complete(history.messages)
        states = list(itertools.accumulate(seen, transitions, initial=AgentsState()))
        assert all(complete(task.history) for each in states for task in each.tasks.values())
        assert not states[-1].calls
        assert {t.status for t in states[-1].tasks.values()} <= {"cancelled", "done", "failed"}
        called = [each.call for each in seen if isinstance(each, ToolCalled)]
        assert sorted(called) == sorted(e.call for e in seen if isinstance(e, ToolFinished))
        if cancel_at is not None and len(boss.requests) < 3:
            await team.delegate("And now?", to="boss", history=history)
            assert complete(boss.requests[-1].messages)
        return len(seen)

    whole = await run(None)
    assert whole > 40
    for moment in range(1, whole):
        await run(moment)


async def test_each_call_has_exactly_one_end_and_joins_its_history_with_its_turn() -> None:
    bench = Bench([[call("double", x=1)], [call("broken", id="d", x=1)], "Done."], double, broken)
    await bench.team.delegate("Go.")
    kinds = [type(e) for e in bench.seen if isinstance(e, ToolCalled | ToolFinished | TurnEnded)]

    assert kinds == [ToolCalled, ToolFinished, TurnEnded] * 2 + [TurnEnded]


async def test_the_same_call_for_ever_is_noticed() -> None:
    bench = Bench([[call("double", x=1)]] * 20, double)
    outcome = await bench.team.delegate("Go.")

    assert outcome.status == "failed"
    assert isinstance(outcome.error, LimitReachedError)
    assert (outcome.error.limit, len(bench.provider.requests)) == ("repeats", 5)
    with pytest.raises(TaskFailedError, match="no progress"):
        _ = outcome.text


async def test_two_calls_that_take_turns_are_noticed() -> None:
    bench = Bench([[call("double", x=1)], [call("double", x=2)]] * 20, double)
    outcome = await bench.team.delegate("Go.")

    assert isinstance(outcome.error, LimitReachedError)
    assert outcome.error.limit == "alternations"


@pytest.mark.parametrize("several", range(2, 9))
async def test_calls_that_go_round_are_noticed_when_they_begin_anew_too_often(several: int) -> None:
    bench = Bench([[call("double", x=each)] for each in range(several)] * 9, double)
    outcome = await bench.team.delegate("Go.")

    assert isinstance(outcome.error, LimitReachedError)
    assert (outcome.error.limit, len(bench.provider.requests)) == ("alternations", 6 * several + 1)
    assert " → ".join(["double"] * (several + 1)) in str(outcome.error)


async def test_a_circle_in_which_one_call_comes_twice_is_noticed_and_named_from_its_first() -> None:
    bench = Bench(
        [[call("double", x=1)], [call("double", x=1)], [call("broken", x=2)]] * 9, double, broken
    )
    limits = Limits(alternations=3)
    outcome = await bench.team.delegate(Task("Go.", budget=limits))

    assert isinstance(outcome.error, LimitReachedError)
    assert len(bench.provider.requests) == 10
    assert "double → double → broken → double, 3 times" in str(outcome.error)


async def test_a_circle_that_brings_something_new_each_time_is_none() -> None:
    counted = itertools.count()

    @tool
    async def look() -> int:
        "Look how far it is."
        return next(counted)

    around = [[call("double", x=1)], [call("double", x=2)], [call("look")]]
    bench = Bench([*around * 9, "Done."], double, look)
    outcome = await bench.team.delegate("Go.")

    assert outcome.text == "Done."


async def test_the_same_again_and_again_is_left_to_the_limit_of_repeats() -> None:
    bench = Bench([*[[call("double", x=1)]] * 60, "Done."], double)
    outcome = await bench.team.delegate(Task("Go.", budget=Limits(repeats=None)))

    assert outcome.text == "Done."


@pytest.mark.parametrize(
    ("limits", "named", "asked"),
    [
        (Limits(turns=3), "turns", 3),
        (Limits(tokens=3_000), "tokens", 1),
        (Limits(cost=0.05), "cost", 2),
    ],
)
async def test_limits_hold_before_the_call_that_would_break_them(
    limits: Limits, named: str, asked: int
) -> None:
    script = [[call("double", x=n), UsageDelta(Usage(1000, 1000))] for n in range(9)]
    bench = Bench(script, double, price=Price(10, 10), max_tokens=1500)
    outcome = await bench.team.delegate(Task("Go.", budget=limits))

    assert isinstance(outcome.error, LimitReachedError)
    assert outcome.error.limit == named
    assert len(bench.provider.requests) == asked


@dataclass(frozen=True)
class Person:
    name: str
    age: int


def stop() -> str:
    return next(iter(()))  # PEP 479 is for generators only


async def give_up() -> str:
    "Wait for something that is cancelled."
    waiting = asyncio.create_task(asyncio.Event().wait())
    waiting.cancel()
    await waiting
    return ""


@pytest.mark.parametrize(
    ("function", "told"),
    [(stop, "RuntimeError: The tool raised StopIteration."), (give_up, "CancelledError: ")],
)
@pytest.mark.parametrize("recorded", [False, True])
async def test_whatever_a_tool_raises_it_has_failed_and_the_task_goes_on(
    function: Any, told: str, recorded: bool
) -> None:
    said = [[call(function.__name__)], "So what."]
    async with Atlas(provider="scripted") as app:

        async def work(script: Sequence[Reply]) -> str:
            agent = Agent("one", tools=[function], model=ScriptedProvider(script))
            return (await Controller([agent], bus=app.bus).delegate("Go.")).text

        finished: list[ToolFinished] = []
        app.bus.subscribe(ToolFinished, finished.append)
        if not recorded:
            assert await work(said) == "So what."
        else:
            async with app.recording("x") as run:
                assert await work(said) == "So what."
            async with app.replaying(run.id):
                assert await work([]) == "So what."

    assert [each.outcome for each in finished] == ["failed"] * (1 + recorded)
    assert finished[0].content.startswith(told)


@dataclass(frozen=True)
class Share:
    percent: int

    def __post_init__(self) -> None:
        if self.percent > 100:
            raise ValueError("there is no more than 100 %")


async def test_what_the_dataclass_itself_refuses_is_sent_back() -> None:
    bench = Bench(['{"percent": 101}', '{"percent": 99}'], output=Share)
    outcome = await bench.team.delegate("How much?")

    assert outcome.output == Share(99)
    assert "ValueError: there is no more than 100 %." in bench.last_request.messages[-1].text


async def test_structured_output_is_checked_and_sent_back() -> None:
    bench = Bench(
        ["Bob is 7.", '{"name": "Bob"}', '```json\n{"name": "Bob", "age": 7}\n```'], output=Person
    )
    outcome = await bench.team.delegate("Who?")

    assert outcome.output == Person("Bob", 7)
    assert outcome.answer == {"name": "Bob", "age": 7}
    assert "Person.age" in bench.last_request.messages[-1].text
    assert json.loads(bench.last_request.json_schema or "")["required"] == ["name", "age"]


async def test_repairs_are_bounded() -> None:
    bench = Bench(["no"] * 9, output=Person)
    outcome = await bench.team.delegate(Task("Who?", budget=Limits(repairs=3)))

    assert isinstance(outcome.error, AnswerInvalidError)
    assert len(bench.provider.requests) == 4


async def test_a_model_without_tools_is_constrained_to_call_them() -> None:
    said = ['{"tool": "double", "arguments": {"x": 4}}', '{"answer": "Eight."}']
    bench = Bench(said, double, tool_choice="required")
    bench.provider._capabilities = Capabilities(json_schema=True)
    outcome = await bench.team.delegate("Twice 4?")
    first, second = (json.loads(each.json_schema or "") for each in bench.provider.requests)

    assert outcome.text == "Eight."
    assert bench.provider.requests[0].tools == ()
    assert first["properties"]["tool"] == {"const": "double"}
    assert len(second["anyOf"]) == 2
    assert bench.last_request.messages[-1].text == "Result: 8"


async def test_a_tool_may_have_the_last_word() -> None:
    bench = Bench([[call("double", x=4)]], double, finish="tool")

    assert (await bench.team.delegate("Twice 4?")).text == "8"


async def test_tokens_of_an_agent_are_on_the_bus_while_they_come() -> None:
    gate = asyncio.Event()
    bench = Bench([["Hel", "lo ", gate, "there"]])
    task = asyncio.create_task(bench.team.delegate("Hi."))
    await bench.bus.wait_for(StreamToken, where=lambda e: e.text == "lo ", timeout=5)

    assert not task.done()
    gate.set()
    assert (await task).text == "Hello there"


async def test_a_long_history_is_shown_short_and_whole() -> None:
    script: list[Reply] = [[call("double", id=f"c{n}", x=n)] for n in range(30)] + ["Done."]
    bench = Bench(script, double, memory=Memory(window=8))
    await bench.team.delegate("Go.")

    assert max(len(each.messages) for each in bench.provider.requests) <= 13
    assert all(complete(each.messages) for each in bench.provider.requests)
    assert all("Go." in each.messages[0].text for each in bench.provider.requests)
    assert bench.last_request.messages[0].text.startswith("(53 earlier messages are left out.)")


async def test_what_is_left_out_can_be_summed_up_and_joins_the_history_all_the_same() -> None:
    def model(request: ChatRequest) -> Reply:
        if request.messages[-1].text.startswith("Sum up"):
            return "Doubled some numbers."
        done = sum(each.role == "tool" for each in bench.provider.requests[-1].messages)
        turns = sum(each.role == "tool" for each in history.messages) + len(seen)
        seen.append(done)
        return [call("double", id=f"c{turns}", x=turns)] if len(seen) < 12 else "Done."

    seen: list[int] = []
    history = History([ChatMessage("user", (TextPart("Hello."),))])
    bench = Bench([model] * 99, double, memory=Memory(window=6, summarise=True))
    await bench.team.delegate("Go.", history=history)
    summed = [each for each in bench.seen if isinstance(each, HistorySummarised)]

    assert len(summed) >= 2
    assert "Doubled some numbers." in bench.last_request.messages[0].text
    assert "The task is still: Go." in bench.last_request.messages[0].text
    assert len(history) == 1 + 1 + 2 * 11 + 1
    assert complete(history.messages)


async def test_a_model_that_fails_is_the_outcome_and_not_a_surprise() -> None:
    bench = Bench([ServerError("down")] * 9)
    async with Atlas(provider="scripted", bus=bench.bus) as app:
        from atlas.providers.reply import StreamOptions
        from atlas.providers.resilience import RetryPolicy

        app._stream_options = StreamOptions(retries=RetryPolicy(attempts=1))
        outcome = await bench.team.delegate("Hi.")

    assert outcome.status == "failed"
    assert isinstance(outcome.error, ServerError)


async def test_progress_of_a_tool_is_seen() -> None:
    from atlas.agents.messages import ToolProgressed

    @tool
    async def steps() -> AsyncIterator[str]:
        yield "half"
        yield "whole"

    bench = Bench([[call("steps")], "Done."], steps)
    await bench.team.delegate("Go.")

    assert [each.text for each in bench.of(ToolProgressed)] == ["half"]
    assert bench.told == ["whole"]


async def test_an_agent_cannot_be_changed() -> None:
    agent = Agent("one", tools=[double])
    with pytest.raises(AttributeError, match="changed"):
        agent.name = "other"
    other = agent.changed(instructions="More.")

    assert (other.version, other.instructions, set(other.tools)) == (2, "More.", {"double"})
    assert agent.instructions == ""

"""A team: who gets a task, what becomes of it, and what when somebody fails."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from atlas import EventBus
from atlas.agents import (
    Agent,
    Controller,
    ErrorPolicy,
    History,
    Limits,
    Outcome,
    Price,
    Spent,
    Task,
    checked_transition,
    delegation,
    hand_over_to,
    scripted_agent,
    tool,
)
from atlas.agents.messages import (
    AgentHealthChanged,
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
    TaskWaiting,
    ToolFinished,
)
from atlas.core.messages import Message
from atlas.errors import (
    BadRequestError,
    ConfigurationError,
    IllegalTransitionError,
    LimitReachedError,
    NoAgentError,
    TaskExpiredError,
    TaskFailedError,
)
from atlas.providers.base import ChatRequest, UsageDelta
from atlas.providers.messages import StreamToken, ToolCallPart, Usage
from atlas.providers.scripted import ScriptedProvider

from support.skipped_time import skipping_time

FAIL = BadRequestError("no")


def call(name: str, call_id: str = "c1", **arguments: object) -> ToolCallPart:
    return ToolCallPart(call_id, name, json.dumps(arguments))


class Team:
    def __init__(self, *agents: Agent, **options: Any) -> None:
        self.bus = EventBus()
        self.seen: list[Message] = []
        self.bus.subscribe("**", self.seen.append)
        self.controller = Controller(agents, bus=self.bus, **options)

    def of(self, kind: type) -> list[Any]:
        return [each for each in self.seen if isinstance(each, kind)]


def gate() -> tuple[Callable[[], Any], asyncio.Event, list[str]]:
    """Return a tool that waits until it is let go, the event for it, and who came."""
    go, came = asyncio.Event(), []

    @tool
    async def wait(who: str) -> str:
        came.append(who)
        await go.wait()
        return who

    return wait, go, came


# -- what makes no sense ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "a b"}, "'a b'"),
        ({"name": 5}, "5"),
        ({"instructions": 5}, "instructions is 5"),
        ({"tools": ["x"]}, "'x' is no tool"),
        ({"capabilities": "x"}, "capabilities is 'x'"),
        ({"capabilities": [1]}, "A capability is 1"),
        ({"capabilities": {"x": 3}}, "capability 'x' is 3"),
        ({"model": 5}, "model is 5"),
        ({"output": int}, "output is <class 'int'>"),
        ({"version": 0}, "version is 0"),
        ({"capacity": 0}, "capacity is 0"),
        ({"memory": 40}, "memory is 40"),
        ({"tool_choice": "maybe"}, "tool_choice is 'maybe'"),
        ({"finish": "x"}, "finish is 'x'"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperature": 9}, "temperature is 9"),
        ({"price": 5}, "price is 5"),
        ({"limits": 5}, "limits is 5"),
        ({"stuck_after": 0}, "stuck_after is 0"),
        ({"tools": 5}, "tools is 5"),
        ({"capabilities": 5}, "capabilities is 5"),
        ({"role": 5}, "role is 5"),
        ({"description": 5}, "description is 5"),
        ({"model": ""}, "model is ''"),
        ({"output": Spent()}, "output is Spent("),
    ],
)
def test_what_is_no_agent_is_refused_by_name(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        Agent(**{"name": "a", **options})


async def test_what_is_no_team_and_no_task_is_refused() -> None:
    bus = EventBus()
    with pytest.raises(ConfigurationError, match="Give the bus"):
        Controller([Agent("a")], bus=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="'a' is no agent"):
        Controller(["a"], bus=bus)  # type: ignore[list-item]
    team = Controller([scripted_agent("a", [FAIL])], bus=bus)
    with pytest.raises(ConfigurationError, match="5 is no task"):
        await team.delegate(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="Nobody votes"):
        await team.vote("x", [])
    with pytest.raises(ConfigurationError, match="rounds is 0"):
        await team.debate("x", ["a"], judge="a", rounds=0)
    for setting, wrong in (
        ("elsewhere", -1),
        ("elsewhere", "1"),
        ("down_after", 0),
        ("escalate_to", Agent("a")),
        ("compensate", 5),
    ):
        with pytest.raises(ConfigurationError, match=f"{setting} is "):
            ErrorPolicy(**{setting: wrong})  # type: ignore[arg-type]
    for option, wrong in (("limits", 5), ("on_error", 5), ("app", 5), ("agents", Agent("a"))):
        with pytest.raises(ConfigurationError, match=f"{option} is "):
            Controller(**{"bus": bus, option: wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="to is <Agent a"):
        await team.delegate("x", to=Agent("a"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="history is 5"):
        await team.delegate("x", history=5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="tasks is 'abc'"):
        await team.parallel("abc")
    with pytest.raises(ConfigurationError, match="voters is 'a'"):
        await team.vote("x", "a")
    with pytest.raises(ConfigurationError, match="One of speakers is <Agent a"):
        await team.debate("x", [Agent("a")], judge="a")  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="rounds is '2'"):
        await team.supervise("x", lambda *_: None, rounds="2")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="A message of the history is 'a'"):
        History(["a"])  # type: ignore[list-item]
    with pytest.raises(ConfigurationError, match="One to choose among is <Agent a"):
        delegation(Agent("a"))  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="before is 'x'"):
        checked_transition("x", "done")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="price of input is -1"):
        Price(-1)


async def test_who_is_not_there_cannot_be_escalated_to_and_the_first_error_stays() -> None:
    team = Team(scripted_agent("a", [FAIL]), on_error=ErrorPolicy(escalate_to="boss"))
    outcome = await team.controller.delegate("Go.")

    assert isinstance(outcome.error, BadRequestError)
    assert "no agent 'boss'" in outcome.error.__notes__[0]


# -- who gets it --------------------------------------------------------------------------------


async def test_a_task_goes_to_who_has_what_it_needs_best() -> None:
    team = Team(
        scripted_agent("poor", ["poor"], capabilities={"fx": 0.4, "tax": 1}),
        scripted_agent("good", ["good"], capabilities={"fx": 0.9}),
        scripted_agent("other", ["other"], capabilities={"poems"}),
    )
    outcome = await team.controller.delegate(Task("12 EUR?", needs={"fx"}))

    assert (outcome.text, outcome.agent) == ("good", "good")
    outcome = await team.controller.delegate(Task("12 EUR?", needs={"fx", "tax"}))
    assert outcome.agent == "poor"


async def test_a_task_that_nobody_can_do_is_refused_with_what_there_is() -> None:
    team = Team(scripted_agent("poor", capabilities={"fx": 0.4}))
    with pytest.raises(NoAgentError, match=r"fx ≥ 0.5.*There is: fx"):
        await team.controller.delegate(Task("12 EUR?", grades={"fx": 0.5}))

    assert [each.kind for each in team.of(TaskFailed)] == ["NoAgentError"]


async def test_the_one_with_less_to_do_is_chosen() -> None:
    wait, go, _ = gate()
    agents = [
        scripted_agent(name, [[call("wait", who=name)], "done"], tools=[wait]) for name in "ab"
    ]
    team = Team(*agents)
    both = asyncio.create_task(team.controller.parallel(["one", "two"]))
    await team.bus.wait_for("tool.called", where=lambda e: e.agent == "b", timeout=5)
    assert [team.controller.load(name) for name in "ab"] == [1, 1]
    go.set()

    assert {each.agent for each in await both} == {"a", "b"}
    assert team.controller.load("a") == 0


async def test_tasks_wait_for_a_free_agent_and_the_urgent_goes_first() -> None:
    wait, go, _ = gate()
    script = [[call("wait", who="x")], "1", "2", "3", "4"]
    team = Team(scripted_agent("one", script, tools=[wait], capacity=1))
    tasks = [Task(f"p{n}", priority=n, id=f"p{n}") for n in (0, 1, 3, 2)]
    running = asyncio.create_task(team.controller.parallel(tasks))
    await team.bus.wait_for("tool.called", timeout=5)
    while len(team.of(TaskWaiting)) < 3:
        await asyncio.sleep(0)
    go.set()
    await running

    assert [each.task for each in team.of(TaskAssigned)] == ["p0", "p3", "p2", "p1"]


async def test_a_paused_agent_is_given_nothing_until_it_is_back() -> None:
    wait, go, came = gate()
    calls = [[call("wait", who="first")], "first done"]
    one = scripted_agent("one", [*calls, "second done"], tools=[wait], capabilities={"x"})
    other = scripted_agent("other", ["other"], capabilities={"x"})
    team = Team(one, other)
    first = asyncio.create_task(team.controller.delegate("Go."))
    while not came:
        await asyncio.sleep(0)
    team.controller.pause("one", "for lunch")
    elsewhere = await team.controller.delegate(Task("Go.", needs={"x"}))
    waits = asyncio.create_task(team.controller.delegate("Go.", to="one"))
    go.set()
    assert (await first).text == "first done"
    assert team.controller.health("one") == "away"
    assert not waits.done()
    team.controller.unpause("one")

    assert (await waits).text == "second done"
    assert elsewhere.agent == "other"
    assert [e.health for e in team.of(AgentHealthChanged)] == ["away", "ready"]


async def test_agents_join_and_leave_while_tasks_run() -> None:
    team = Team()
    with pytest.raises(NoAgentError, match="This team has no agents"):
        await team.controller.delegate(Task("Go.", needs={"x"}))
    team.controller.register(scripted_agent("late", ["here"], capabilities={"x"}))
    assert (await team.controller.delegate(Task("Go.", needs={"x"}))).text == "here"
    with pytest.raises(ConfigurationError, match="higher version"):
        team.controller.register(scripted_agent("late"))
    newer = team.controller.agents["late"].changed(capabilities={"y"})
    team.controller.register(newer)
    team.controller.remove("late")

    with pytest.raises(NoAgentError, match="no agent 'late'"):
        team.controller.health("late")


# -- what becomes of it -------------------------------------------------------------------------


async def test_what_happens_to_a_task_is_told_in_order_and_linked() -> None:
    team = Team(scripted_agent("one", ["done"]))
    await team.controller.delegate("Go.")
    names = [each.message_name for each in team.seen if "task" in each.message_name]

    assert names == ["task.queued", "task.assigned", "task.accepted", "task.completed"]
    assert {each.meta.correlation for each in team.seen} == {team.seen[0].meta.id}


async def test_a_task_that_is_late_expires_and_its_model_call_is_stopped() -> None:
    never = asyncio.Event()
    agent = scripted_agent("slow", [["half", never]])
    team = Team(agent)
    outcome = await team.controller.delegate(Task("Go.", deadline=0.02))

    assert outcome.status == "expired"
    assert isinstance(outcome.error, TaskExpiredError)
    assert agent.model.open_streams == 0  # type: ignore[union-attr]
    assert [each.deadline for each in team.of(TaskExpired)] == [0.02]


async def test_cancelling_the_caller_reaches_model_tools_and_all_below() -> None:
    wait, _, _ = gate()
    team = Team(
        scripted_agent(
            "boss", [[call("delegate", task="go", to="low")]], tools=[delegation("low")]
        ),
        scripted_agent("low", [[call("wait", who="low")]], tools=[wait]),
    )
    task = asyncio.create_task(team.controller.delegate("Go.", to="boss"))
    await team.bus.wait_for("tool.called", where=lambda e: e.tool == "wait", timeout=5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert len(team.of(TaskCancelled)) == 2
    assert team.controller.tasks == ()
    assert [each.outcome for each in team.seen if each.message_name == "tool.finished"] == [
        "cancelled",
        "cancelled",
    ]


async def test_an_impatient_second_cancellation_leaves_nothing_running() -> None:
    started, let_go, ended = asyncio.Event(), asyncio.Event(), []

    @tool
    async def tidy(who: str) -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            while not let_go.is_set():  # it tidies up, whoever cancels it
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue
            ended.append(who)
        return who

    agent = scripted_agent(
        "a", [[call("tidy", "c1", who="one"), call("tidy", "c2", who="two")]], tools=[tidy]
    )
    task = asyncio.create_task(Team(agent).controller.delegate("Go."))
    await started.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    let_go.set()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert sorted(ended) == ["one", "two"]


async def test_one_task_can_be_cancelled_by_its_id() -> None:
    wait, go, _ = gate()
    script = [[call("wait", who="x")], "done"]
    team = Team(*(scripted_agent(name, script, tools=[wait]) for name in "ab"))
    running = asyncio.create_task(
        team.controller.parallel([Task("1", id="t1"), Task("2", id="t2")])
    )
    await team.bus.wait_for("tool.called", where=lambda e: e.agent == "b", timeout=5)

    assert team.controller.cancel("t1")
    assert not team.controller.cancel("t9")
    go.set()
    first, second = await running
    assert (first.status, second.status) == ("failed", "done")


async def test_a_task_goes_on_once_at_a_time() -> None:
    wait, go, came = gate()
    team = Team(scripted_agent("a", [[call("wait", who="x")], "done", "again"], tools=[wait]))
    task = Task("Go.", id="t1")
    running = asyncio.create_task(team.controller.delegate(task))
    await team.bus.wait_for("tool.called", timeout=5)
    with pytest.raises(ConfigurationError, match="'t1' goes on already"):
        await team.controller.delegate(task)
    go.set()

    assert (await running).text == "done"
    assert (await team.controller.delegate(task)).text == "again"
    assert came == ["x"]


async def test_a_task_cancelled_by_its_id_swallows_no_later_cancellation() -> None:
    wait, _, _ = gate()
    team = Team(scripted_agent("a", [[call("wait", who="x")]] * 2, tools=[wait]))
    task = Task("Go.", id="t1")

    async def begun() -> asyncio.Task[Outcome]:
        running = asyncio.create_task(team.controller.delegate(task))
        await team.bus.wait_for("tool.called", timeout=5)
        return running

    running = await begun()
    assert team.controller.cancel("t1")
    assert team.controller.cancel("t1")  # an impatient second time
    assert (await running).status == "failed"
    running = await begun()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_another_agent_tries_when_one_fails() -> None:
    team = Team(scripted_agent("bad", [FAIL]), scripted_agent("good", ["done"]))
    outcome = await team.controller.delegate("Go.")

    assert (outcome.text, outcome.agent) == ("done", "good")
    assert [(e.agent, e.attempt) for e in team.of(TaskAssigned)] == [("bad", 1), ("good", 2)]


async def test_what_fails_everywhere_is_escalated_and_then_compensated() -> None:
    undone: list[str] = []

    async def undo(task: Task, error: Exception) -> None:
        undone.append(f"{task.text} {error}")

    team = Team(
        *(scripted_agent(name, [FAIL], capabilities={"x"}) for name in "abc"),
        scripted_agent("boss", [FAIL]),
        on_error=ErrorPolicy(elsewhere=1, escalate_to="boss", compensate=undo),
    )
    outcome = await team.controller.delegate(Task("Go.", needs={"x"}))

    assert outcome.status == "failed"
    assert outcome.error is not None
    assert [each.agent for each in team.of(TaskAssigned)] == ["a", "b", "boss"]
    assert undone == ["Go. no"]
    with pytest.raises(TaskFailedError):
        _ = outcome.text


async def test_a_compensation_that_fails_is_told_and_the_outcome_is_kept() -> None:
    def undo(task: Task, error: Exception) -> None:
        raise LookupError("nothing to undo")

    team = Team(
        *(scripted_agent(name, [FAIL] * 2) for name in "ab"),
        on_error=ErrorPolicy(compensate=undo),
    )
    outcomes = await team.controller.parallel(["Go.", "Go."])

    assert [each.status for each in outcomes] == ["failed", "failed"]
    assert "no What was to compensate for it failed: LookupError" in str(outcomes[0].error)
    assert "nothing to undo" in team.of(TaskProgressed)[0].text


async def test_an_agent_that_fails_again_and_again_is_down_until_it_succeeds() -> None:
    team = Team(
        scripted_agent("bad", [FAIL, FAIL, "better"]),
        scripted_agent("good", ["1", "2", "3"]),
        on_error=ErrorPolicy(down_after=2),
    )
    for _ in range(3):
        await team.controller.delegate("Go.")

    assert team.controller.health("bad") == "down"
    assert [each.agent for each in team.of(TaskAssigned)] == ["bad", "good"] * 2 + ["good"]
    await team.controller.delegate("Go.", to="bad")
    assert [each.health for each in team.of(AgentHealthChanged)] == ["down", "ready"]


async def test_an_agent_that_gives_no_sign_of_life_is_given_up() -> None:
    stuck = scripted_agent("stuck", [["...", asyncio.Event()]], stuck_after=0.02)
    team = Team(stuck, scripted_agent("good", ["done"]))
    outcome = await team.controller.delegate("Go.")

    assert outcome.agent == "good"
    assert [(e.agent, e.health) for e in team.of(AgentHealthChanged)] == [("stuck", "stuck")]


async def nothing() -> None:
    """Do nothing."""


@tool(timeout=None)
async def take_steps() -> Any:
    """Take ten hours, and tell every hour."""
    for number in range(10):
        await asyncio.sleep(3600)
        yield str(number)


def test_a_sign_of_life_now_and_then_is_enough() -> None:
    said = [[call("take_steps")], "done"]
    agent = scripted_agent("busy", said, tools=[take_steps], stuck_after=3660)
    assert skipping_time(Team(agent).controller.delegate("Go.")).text == "done"


def test_who_waits_for_a_specialist_is_not_stuck_as_long_as_that_one_is_not() -> None:
    said = [[call("take_steps")], "done"]
    low = scripted_agent("low", said, tools=[take_steps], stuck_after=3660)
    calls = [call("delegate", task="x", to="low")]
    boss = scripted_agent("boss", [calls, "All done."], tools=[delegation("low")], stuck_after=60)
    outcome = skipping_time(Team(boss, low).controller.delegate("Go.", to="boss"))

    assert (outcome.text, outcome.agent) == ("All done.", "boss")


def test_who_waits_for_a_person_is_not_stuck_whatever_else_goes_on_meanwhile() -> None:
    erase = tool(name="erase", approval=True)(nothing)
    look = tool(name="look")(nothing)
    calls = [call("erase", "a"), call("look", "b")]
    low = scripted_agent("low", [calls, "done"], tools=[erase, look], stuck_after=60)
    asks = [call("delegate", task="x", to="low")]
    boss = scripted_agent("boss", [asks, "All done."], tools=[delegation("low")], stuck_after=60)
    team = Team(boss, low)

    @team.bus.on(ApprovalAsked)
    async def decide(asked: ApprovalAsked) -> None:
        await asyncio.sleep(600)
        team.bus.publish(ApprovalGiven(asked.approval, approved=True))

    outcome = skipping_time(team.controller.delegate("Go.", to="boss"))
    assert (outcome.text, outcome.agent) == ("All done.", "boss")


def test_only_legal_steps_of_a_task_are_taken() -> None:
    assert checked_transition("queued", "accepted") == "accepted"
    with pytest.raises(IllegalTransitionError, match="done cannot become running"):
        checked_transition("done", "running")


# -- delegation by models -----------------------------------------------------------------------


async def test_a_model_delegates_side_by_side_and_every_token_is_seen() -> None:
    calls = [call("delegate", f"c{n}", task=f"part {n}", to="low") for n in range(3)]
    boss = scripted_agent("boss", [calls, "All done."], tools=[delegation("low")])
    team = Team(boss, scripted_agent("low", ["one", "two", "three"]))
    outcome = await team.controller.delegate("Go.", to="boss")
    tasks = {each.task.id: each.parent for each in team.of(TaskQueued)}

    assert outcome.text == "All done."
    assert outcome.spent.turns == 5
    assert list(tasks.values()) == [None, *[outcome.task.id] * 3]
    assert {each.text for each in team.of(StreamToken)} >= {"one", "two", "three", "All "}


async def test_what_a_specialist_fails_at_is_told_to_who_delegated() -> None:
    boss = scripted_agent(
        "boss", [[call("delegate", task="x", to="low")], "Sorry."], tools=[delegation("low")]
    )
    team = Team(boss, scripted_agent("low", [FAIL]))
    outcome = await team.controller.delegate("Go.", to="boss")
    told = boss.model.requests[-1].messages[-1].parts[0].content  # type: ignore[union-attr]

    assert outcome.text == "Sorry."
    assert "failed" in told
    assert "no" in told


async def test_who_delegates_what_it_can_do_best_itself_gets_somebody_else_for_it() -> None:
    asks = [call("delegate", task="x", needs=["fx"])]
    boss = scripted_agent("boss", [asks, "Done."], tools=[delegation()], capabilities={"fx": 0.9})
    team = Team(boss, scripted_agent("low", ["12"], capabilities={"fx": 0.5}))
    await team.controller.delegate(Task("Go.", needs={"fx"}))

    assert [each.agent for each in team.of(TaskAssigned)] == ["boss", "low"]


async def test_who_waits_for_what_it_delegated_takes_no_place() -> None:
    def both(name: str, other: str) -> Agent:
        asks = [call("delegate", task="help", to=other)]
        return Agent(
            name, model=_Asks([asks]), tools=[delegation(other)], capacity=1, stuck_after=None
        )

    team = Team(both("a", "b"), both("b", "a"), limits=Limits(depth=3))
    async with asyncio.timeout(20):
        outcomes = await team.controller.parallel([Task("1"), Task("2"), Task("3")])
        alone = Team(both("a", "a"), limits=Limits(depth=3))
        itself = await alone.controller.delegate("Go.")

    assert [each.text for each in [*outcomes, itself]] == ["Done."] * 4
    assert (team.controller.load("a"), team.controller.load("b")) == (0, 0)


class _Asks(ScriptedProvider):
    """Delegates once, then has an answer; whoever asks, however deep."""

    def _next_reply(self, request: ChatRequest) -> Any:
        return "Done." if request.messages[-1].role == "tool" else self._replies[0]


async def test_a_place_that_was_given_to_others_is_waited_for() -> None:
    wait, go, _ = gate()
    help_, helped, _ = gate()
    asks = [call("delegate", task="help", to="low")]
    said = [asks, [call("wait", who="second")], "2", "1"]
    boss = scripted_agent("boss", said, tools=[delegation("low"), wait], capacity=1)
    low = scripted_agent("low", [[call("wait", who="low")], "helped"], tools=[help_])
    team = Team(boss, low)

    def called(agent: str) -> Any:
        is_it = lambda e: (e.agent, e.tool) == (agent, "wait")  # noqa: E731
        return team.bus.wait_for("tool.called", where=is_it, timeout=5)

    first = asyncio.create_task(team.controller.delegate("1", to="boss"))
    await called("low")
    second = asyncio.create_task(team.controller.delegate("2", to="boss"))
    await called("boss")
    helped.set()
    await team.bus.wait_for(TaskWaiting, where=lambda e: e.reason == "its place", timeout=5)
    assert not first.done()
    go.set()

    assert ((await second).text, (await first).text) == ("2", "1")


async def test_who_gives_a_task_to_somebody_who_is_not_there_is_told() -> None:
    said = [[call("hand_over", to="gone")], "I did it myself."]
    team = Team(scripted_agent("a", said, tools=[hand_over_to("gone")]))
    outcome = await team.controller.delegate("Go.")

    assert outcome.text == "I did it myself."
    assert "no agent 'gone'" in team.of(ToolFinished)[0].content


async def test_what_waits_for_an_agent_that_leaves_waits_no_more() -> None:
    team = Team(scripted_agent("a", ["done"]))
    team.controller.pause("a")
    waiting = asyncio.create_task(team.controller.delegate("Go."))
    await team.bus.wait_for(TaskWaiting, timeout=5)
    team.controller.remove("a")
    with pytest.raises(NoAgentError):
        await waiting


async def test_the_depth_of_the_tree_is_limited() -> None:
    me = scripted_agent(
        "me", [[call("delegate", task="x", to="me")]] * 3 + ["end"] * 3, tools=[delegation("me")]
    )
    team = Team(me, limits=Limits(depth=3))
    await team.controller.delegate("Go.")

    assert len(team.of(TaskQueued)) == 4
    assert [each.kind for each in team.of(TaskFailed)][:1] == ["LimitReachedError"]


async def test_a_budget_of_its_own_does_not_let_a_task_delegate_deeper_than_the_tree_may() -> None:
    me = scripted_agent(
        "me", [[call("delegate", task="x", to="me")]] * 3 + ["end"] * 3, tools=[delegation("me")]
    )
    team = Team(me.changed(limits=Limits(depth=None)), limits=Limits(depth=3))
    await team.controller.delegate("Go.")

    assert len(team.of(TaskQueued)) == 4


async def test_an_agent_has_limits_of_its_own_within_those_of_the_tree() -> None:
    look = tool(name="look")(lambda: "nothing")
    calls = [[call("look", f"c{n}")] for n in range(9)]
    eager = scripted_agent("eager", calls, tools=[look], limits=Limits(turns=2, repeats=None))
    team = Team(eager)
    outcome = await team.controller.delegate("Go.")

    assert isinstance(outcome.error, LimitReachedError)
    assert (outcome.error.limit, outcome.spent.turns) == ("turns", 2)


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (Limits(turns=2), "turns"),
        (Limits(tokens=1_500), "tokens"),
        (Limits(cost=0.01), "cost"),
        (Limits(repeats=1), "repeats"),
    ],
)
async def test_an_agent_that_reaches_its_own_limit_has_failed_and_another_one_tries(
    limits: Limits, named: str
) -> None:
    look = tool(name="look")(lambda: "nothing")
    calls = [[call("look", f"c{n}")] for n in range(9)]
    priced = {"tools": [look], "price": Price(10, 10), "max_tokens": 600}
    team = Team(
        scripted_agent("eager", calls, limits=limits, **priced),
        scripted_agent("calm", ["Done."], limits=Limits(turns=1)),
    )
    outcome = await team.controller.delegate("Go.")

    assert (outcome.text, outcome.agent) == ("Done.", "calm")
    assert [each.agent for each in team.of(TaskAssigned)] == ["eager", "calm"]
    assert outcome.spent.turns > 1, f"what was spent up to the limit of {named} counts"


async def test_a_limit_of_the_tree_is_reached_for_every_agent() -> None:
    look = tool(name="look")(lambda: "nothing")
    calls = [[call("look", f"c{n}", n=n)] for n in range(9)]
    eager = scripted_agent("eager", calls, tools=[look], limits=Limits(turns=5, repeats=None))
    team = Team(eager, scripted_agent("calm", ["Done."]), limits=Limits(turns=2))
    outcome = await team.controller.delegate("Go.")

    assert isinstance(outcome.error, LimitReachedError)
    assert (outcome.error.limit, outcome.error.agent) == ("turns", "")
    assert [each.agent for each in team.of(TaskAssigned)] == ["eager"]


async def test_what_failed_attempts_spent_counts_for_the_tree() -> None:
    look = tool(name="look")(lambda: "nothing")
    eager = [
        scripted_agent(
            name,
            [[call("look", f"c{n}")] for n in range(9)],
            tools=[look],
            limits=Limits(turns=2, repeats=None),
        )
        for name in "abc"
    ]
    team = Team(*eager, limits=Limits(turns=3), on_error=ErrorPolicy(elsewhere=2))
    outcome = await team.controller.delegate("Go.")

    assert isinstance(outcome.error, LimitReachedError)
    assert (outcome.error.agent, outcome.spent.turns) == ("", 3)
    assert [each.agent for each in team.of(TaskAssigned)] == ["a", "b"]


@pytest.mark.parametrize(
    ("used", "price", "named", "turns"),
    [
        (Usage(10, 10), Price(), "turns", 100),
        (Usage(300_000, 10), Price(), "tokens", 8),
        (Usage(100_000, 10), Price(10, 10), "cost", 10),
    ],
)
async def test_limits_are_on_for_the_whole_tree_when_nobody_asks_for_any(
    used: Usage, price: Price, named: str, turns: int
) -> None:
    calls = [[call("delegate", f"c{n}", task=f"{n}", to="low")] for n in range(99)]
    boss = scripted_agent("boss", calls, tools=[delegation("low")], price=price)
    low = scripted_agent("low", [["ok", UsageDelta(used)]] * 99, price=price)
    outcome = await Team(boss, low).controller.delegate("Go.", to="boss")

    assert isinstance(outcome.error, LimitReachedError)
    assert (outcome.error.limit, outcome.error.agent) == (named, "")
    assert outcome.spent.turns == turns


async def test_depth_is_limited_when_nobody_asks_for_it() -> None:
    deeper = [[call("delegate", task="x", to="me")]] * 8 + ["end"] * 8
    team = Team(scripted_agent("me", deeper, tools=[delegation("me")]))
    await team.controller.delegate("Go.")

    assert len(team.of(TaskQueued)) == 9
    assert team.of(TaskFailed)[0].kind == "LimitReachedError"


async def test_an_agent_may_work_for_so_long_only() -> None:
    slow = scripted_agent("slow", [[asyncio.Event(), "late"]], limits=Limits(seconds=0.01))
    outcome = await Team(slow).controller.delegate("Go.")

    assert isinstance(outcome.error, LimitReachedError)
    assert outcome.error.limit == "seconds"


async def test_a_budget_exhausted_in_the_middle_of_a_tree_ends_the_tree() -> None:
    calls = [call("delegate", f"c{n}", task="x", to="low") for n in range(4)]
    boss = scripted_agent("boss", [calls] * 9, tools=[delegation("low")])
    team = Team(boss, scripted_agent("low", ["ok"] * 99), limits=Limits(turns=7))
    outcome = await team.controller.delegate("Go.", to="boss")

    assert isinstance(outcome.error, LimitReachedError)
    assert outcome.spent.turns == 7


async def test_a_task_is_handed_over_with_what_was_said() -> None:
    first = scripted_agent(
        "first", [[call("hand_over", to="second", reason="better")]], tools=[hand_over_to("second")]
    )
    second = scripted_agent("second", ["Here."])
    team = Team(first, second)
    outcome = await team.controller.delegate("Go.", to="first")
    shown = second.model.requests[0].messages  # type: ignore[union-attr]

    assert (outcome.text, outcome.agent) == ("Here.", "second")
    assert [(each.agent, each.to) for each in team.of(TaskHandedOver)] == [("first", "second")]
    assert "hand_over" in str(shown)


@pytest.mark.parametrize("names", ["ab", "abc", "abcde"])
async def test_agents_that_hand_over_in_a_circle_for_ever_are_stopped(names: str) -> None:
    agents = [
        scripted_agent(one, [[call("hand_over", to=other)]] * 50, tools=[hand_over_to(other)])
        for one, other in zip(names, names[1:] + names[:1], strict=True)
    ]
    outcome = await Team(*agents).controller.delegate("Go.")

    assert isinstance(outcome.error, LimitReachedError)
    assert outcome.error.limit == "alternations"
    assert f"{' → '.join(names + 'a')}, 6 times" in str(outcome.error)


# -- patterns -----------------------------------------------------------------------------------


async def test_map_and_reduce() -> None:
    team = Team(scripted_agent("one", ["1", "2", "3", "six"]))

    def together(outcomes: Sequence[Outcome]) -> Task:
        return Task("+".join(each.text for each in outcomes))

    outcome = await team.controller.map_reduce([1, 2, 3], lambda n: Task(f"n {n}"), together)

    assert outcome.text == "six"
    assert team.of(TaskQueued)[-1].task.text == "1+2+3"


async def test_a_pipeline_hands_each_answer_on_and_ends_where_one_fails() -> None:
    agent = scripted_agent("one", ["a", "b", FAIL])
    team = Team(agent)
    outcome = await team.controller.pipeline([Task("1"), Task("2"), Task("3"), Task("4")])

    assert outcome.status == "failed"
    assert [each.task.inputs.get("previous") for each in team.of(TaskQueued)] == [None, "a", "b"]


async def test_tasks_run_as_soon_as_those_before_them_are_done() -> None:
    team = Team(scripted_agent("one", [lambda request: request.messages[-1].text[:1]] * 4))
    tasks = [
        Task("d", id="d", after=("b", "c")),
        Task("b", id="b", after=("a",)),
        Task("c", id="c", after=("a",)),
        Task("a", id="a"),
    ]
    outcomes = await team.controller.run(tasks)

    assert {name: each.text for name, each in outcomes.items()} == {n: n for n in "abcd"}
    last = next(each.task for each in team.of(TaskQueued) if each.task.id == "d")
    assert last.inputs == {"b": "b", "c": "c"}


async def test_what_comes_after_a_failure_is_not_begun() -> None:
    team = Team(scripted_agent("one", [FAIL]))
    outcomes = await team.controller.run([Task("a", id="a"), Task("b", id="b", after=("a",))])

    assert [each.status for each in outcomes.values()] == ["failed", "failed"]
    assert len(team.of(TaskQueued)) == 1
    with pytest.raises(ConfigurationError, match="wait for each other"):
        await team.controller.run(
            [Task("a", id="a", after=("b",)), Task("b", id="b", after=("a",))]
        )


async def test_the_majority_wins() -> None:
    team = Team(
        *(scripted_agent(n, [said]) for n, said in zip("abc", ("Yes", "no", "yes "), strict=True))
    )
    outcome, votes = await team.controller.vote("Is it?", ["a", "b", "c"])

    assert outcome.agent == "a"
    assert votes == {"yes": 2, "no": 1}


async def test_a_debate_shows_each_what_the_others_said() -> None:
    judge = scripted_agent("judge", ["a is right"])
    a = scripted_agent("a", ["one", "two"])
    team = Team(a, scripted_agent("b", ["uno", "due"]), judge)
    outcome = await team.controller.debate("Count.", ["a", "b"], judge="judge")

    assert outcome.text == "a is right"
    assert "uno" in a.model.requests[1].messages[-1].text  # type: ignore[union-attr]
    assert "due" in judge.model.requests[0].messages[-1].text  # type: ignore[union-attr]


async def test_a_supervisor_decides_by_what_came_of_it() -> None:
    team = Team(scripted_agent("one", ["no", "no", "yes"]))

    def again(task: Task, outcomes: Sequence[Outcome]) -> Task | None:
        return None if outcomes and outcomes[-1].text == "yes" else Task(task.text)

    assert len(await team.controller.supervise("Is it?", again)) == 3


async def test_one_agent_serves_many_tasks_at_once_and_keeps_nothing() -> None:
    agent = scripted_agent("one", [lambda request: request.messages[-1].text] * 1000)
    outcomes = await Team(agent).controller.parallel([f"task {n}" for n in range(1000)])

    assert [each.text for each in outcomes] == [f"task {n}" for n in range(1000)]


async def test_tasks_follow_each_other_through_a_history() -> None:
    agent = scripted_agent("one", ["Hello Bob.", "Bob."])
    team, history = Team(agent), History()
    await team.controller.delegate("I am Bob.", history=history)
    await team.controller.delegate("Who am I?", history=history)

    assert len(agent.model.requests[-1].messages) == 3  # type: ignore[union-attr]
    assert len(history) == 4


async def test_a_team_without_an_application_says_what_it_misses() -> None:
    team = Team(Agent("one", model="local"))
    outcome = await team.controller.delegate("Hi.")

    assert "Start an application" in str(outcome.error)
    assert len(team.of(TaskCompleted)) == 0


async def test_a_thousand_agents_each_get_their_task() -> None:
    agents = [scripted_agent(f"a{n}", [f"{n}"], capabilities={f"c{n}"}) for n in range(1000)]
    tasks = [Task("Go.", needs={f"c{n}"}) for n in range(1000)]
    outcomes = await Team(*agents).controller.parallel(tasks)

    assert [each.text for each in outcomes] == [str(n) for n in range(1000)]


async def test_a_tool_that_never_returns_is_given_up_and_its_siblings_are_kept() -> None:
    @tool(timeout=0.02)
    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    @tool
    async def quick() -> str:
        return "here"

    agent = scripted_agent(
        "one", [[call("never", "a"), call("quick", "b")], "Done."], tools=[never, quick]
    )
    await Team(agent).controller.delegate("Go.")
    told = agent.model.requests[-1].messages[-1].parts  # type: ignore[union-attr]

    assert [each.content for each in told] == [
        "TimeoutError: Effect 'tool.never' took longer than 0.02 seconds.",
        "here",
    ]

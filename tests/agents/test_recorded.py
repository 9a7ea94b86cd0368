"""Teams in recorded runs: replayed, forked, approved across a restart, killed and resumed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atlas import Atlas, ReplayDiverged
from atlas.agents import (
    Agent,
    Controller,
    Task,
    agents_at,
    delegation,
    pending_approvals,
    tool,
)
from atlas.agents.messages import ApprovalAsked, ToolCalled, ToolFinished, TurnEnded
from atlas.cli.runs import opened
from atlas.core.effect_layers import EffectCall
from atlas.core.effects import Skip
from atlas.core.messages import Message
from atlas.errors import InDoubtError, UnknownApprovalError
from atlas.providers.base import ChatRequest
from atlas.providers.messages import StreamStarted, ToolCallPart
from atlas.providers.scripted import Reply, ScriptedProvider, Step

from support import teams

performed: list[str] = []


@tool(permission="write")
async def book(room: str) -> str:
    "Book a room."
    performed.append(room)
    return f"{room} is booked"


@tool(permission="dangerous")
async def erase(path: str) -> str:
    "Erase a file."
    performed.append(path)
    return f"{path} is erased"


def script() -> ScriptedProvider:
    return ScriptedProvider(
        [
            [
                ToolCallPart("c1", "book", '{"room":"A"}'),
                ToolCallPart("c2", "book", '{"room":"B"}'),
            ],
            "Both are booked.",
        ]
    )


def team(app: Atlas, provider: ScriptedProvider, instructions: str = "You book.") -> Controller:
    agent = Agent("clerk", instructions=instructions, tools=[book, erase], model=provider)
    return Controller([agent], bus=app.bus)


@pytest.fixture(autouse=True)
def nothing_performed() -> None:
    performed.clear()


@pytest.fixture
async def recorded(tmp_path: Path) -> tuple[str, str]:
    db = str(tmp_path / "runs.db")
    async with Atlas(db, provider="scripted") as app:
        async with app.recording("book", strict=True) as run:
            await team(app, script()).delegate("Book A and B.")
        assert run.is_exact
    return db, run.id


async def test_a_team_is_replayed_without_model_and_tools(recorded: tuple[str, str]) -> None:
    db, run = recorded
    nobody = ScriptedProvider([])
    async with Atlas(db, provider="scripted") as app:
        async with app.replaying(run) as session:
            outcome = await team(app, nobody).delegate("Book A and B.")
        lines = app.runs[run].lines

    assert outcome.text == "Both are booked."
    assert session.lines == lines
    assert (nobody.requests, performed) == ([], ["A", "B"])


async def test_other_instructions_are_found_out(recorded: tuple[str, str]) -> None:
    db, run = recorded
    async with Atlas(db, provider="scripted") as app:
        with pytest.raises(ReplayDiverged, match="You never book"):
            async with app.replaying(run):
                await team(app, script(), "You never book.").delegate("Book A and B.")

    assert performed == ["A", "B"]


async def test_a_fork_repeats_the_tools_that_were_performed_and_goes_on_live(
    recorded: tuple[str, str],
) -> None:
    db, run = recorded
    other = ScriptedProvider(["Something else."])
    async with Atlas(db, provider="scripted") as app:
        events = app.runs[run].events
        place = next(n for n, e in enumerate(events, 1) if isinstance(e, TurnEnded))
        async with app.forking(run, at=place) as fork:
            outcome = await team(app, other).delegate("Book A and B.")
        calls = [e for e in app.runs[fork.id].events if isinstance(e, ToolCalled)]

    assert outcome.text == "Something else."
    assert len(other.requests) == 1
    assert performed == ["A", "B"]
    assert len(calls) == 2


async def test_a_fork_to_another_model_asks_it_in_the_turns_after_it_and_can_be_replayed(
    recorded: tuple[str, str],
) -> None:
    db, run = recorded
    other = ScriptedProvider(["Something else."])
    async with Atlas(db, provider="scripted") as app:
        events = app.runs[run].events
        place = next(n for n, e in enumerate(events, 1) if isinstance(e, TurnEnded))
        async with app.forking(run, at=place, model="larger") as fork:
            await team(app, other).delegate("Book A and B.")
        asked = [e.model for e in app.runs[fork.id].events if isinstance(e, StreamStarted)]
        async with app.replaying(fork.id):
            again = await team(app, ScriptedProvider([])).delegate("Book A and B.")

    assert len(asked) == 2
    assert asked[0] != "larger"
    assert asked[1] == "larger"
    assert again.text == "Something else."
    assert [request.model for request in other.requests] == ["larger"]


async def test_an_approval_is_waited_for_and_given(tmp_path: Path) -> None:
    provider = ScriptedProvider([[ToolCallPart("c1", "erase", '{"path":"x"}')], "Done."])
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:

        @app.bus.on(ApprovalAsked)
        async def decide(asked: ApprovalAsked) -> None:
            assert performed == []
            await app.approve(asked.approval, by="Ann")

        async with app.recording("erase", strict=True) as run:
            await team(app, provider).delegate("Erase x.")
        assert pending_approvals(app.runs[run.id].events) == []
        async with app.replaying(run.id):
            await team(app, provider).delegate("Erase x.")

    assert performed == ["x"]


async def test_a_yes_holds_for_no_other_call_of_a_task_of_the_same_id(tmp_path: Path) -> None:
    asked: list[str] = []
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:

        @app.bus.on(ApprovalAsked)
        async def decide(event: ApprovalAsked) -> None:
            asked.append(event.approval)
            await app.approve(event.approval, approved=len(asked) == 1)

        for path in ("x", "y"):  # of two runs
            said = [[ToolCallPart("c1", "erase", json.dumps({"path": path}))], "Done."]
            async with app.recording("erase"):
                await team(app, ScriptedProvider(said)).delegate(Task(f"Erase {path}.", id="same"))
        said = [[ToolCallPart("c1", "erase", '{"path":"z"}')], "Done."]  # and of none
        await team(app, ScriptedProvider(said)).delegate(Task("Erase z.", id="same"))

    assert performed == ["x"]
    assert len(set(asked)) == 3


async def test_a_refused_call_is_told_why() -> None:
    provider = ScriptedProvider([[ToolCallPart("c1", "erase", '{"path":"x"}')], "All right."])
    async with Atlas(provider="scripted") as app:

        @app.bus.on(ApprovalAsked)
        async def decide(asked: ApprovalAsked) -> None:
            await app.approve(asked.approval, approved=False, reason="too risky")

        outcome = await team(app, provider).delegate("Erase x.")

    assert outcome.text == "All right."
    assert "too risky" in str(provider.requests[-1].messages[-1])
    assert performed == []


async def test_nobody_is_asked_twice_about_the_call_that_was_refused() -> None:
    same = [ToolCallPart("c", "erase", '{"path":"x"}')]
    other = [ToolCallPart("d", "erase", '{"path":"y"}')]
    provider = ScriptedProvider([same, same, other, "All right."])
    asked: list[str] = []
    async with Atlas(provider="scripted") as app:

        @app.bus.on(ApprovalAsked)
        async def decide(event: ApprovalAsked) -> None:
            asked.append(event.arguments)
            await app.approve(event.approval, approved=False)

        outcome = await team(app, provider).delegate("Erase x.")

    assert outcome.text == "All right."
    assert asked == ['{"path":"x"}', '{"path":"y"}']


async def test_an_approval_inside_a_specialist_survives_a_restart(
    tmp_path: Path,
) -> None:
    program = f"""
import asyncio, os, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from atlas import Atlas
from agents.test_recorded import asking
async def main():
    async with Atlas({str(tmp_path / "runs.db")!r}, provider="scripted") as app:
        app.bus.subscribe("approval.asked", lambda e: print(e.approval, flush=True))
        async with app.recording("erase") as run:
            print(run.id, flush=True)
            await asking(app)
asyncio.run(main())
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        run = process.stdout.readline().strip()
        approval = process.stdout.readline().strip()
        stored(tmp_path / "runs.db", run)
        process.send_signal(signal.SIGKILL)

    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        assert [each.approval for each in pending_approvals(app.runs[run].events)] == [approval]
        assert [each.approval for each in await app.approvals()] == [approval]
        await app.approve(approval, by="Ann")
        late = await app.approve(approval, approved=False, by="Bob")
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        async with app.resume(run):
            outcome = await asking(app)

    assert (late.approved, late.by) == (True, "Ann")
    assert outcome == "Erased."
    assert performed == ["x"]


async def test_a_decision_that_nobody_waits_for_is_refused_and_what_waits_can_be_listed() -> None:
    asked: list[ApprovalAsked] = []
    listed: list[list[ApprovalAsked]] = []
    async with Atlas(provider="scripted") as app:

        @app.bus.on(ApprovalAsked)
        async def decide(event: ApprovalAsked) -> None:
            asked.append(event)
            listed.append(await app.approvals())
            with pytest.raises(UnknownApprovalError, match=f"the nearest is {event.approval!r}"):
                await app.approve(f"{event.approval[:-1]}x")
            await app.approve(event.approval)

        async with app.recording("erase"):
            recorded = await asking(app)
        alone = await asking(app)
        with pytest.raises(UnknownApprovalError) as refused:
            await app.approve("typo")
        again = await app.approve(asked[0].approval, approved=False)
        left = await app.approvals()

    assert (recorded, alone) == ("Erased.", "Erased.")
    assert listed == [[each] for each in asked]
    assert refused.value.approval == "typo"
    assert again.approved  # what was decided holds, and is told
    assert left == []


async def test_a_call_that_was_given_up_waits_no_more() -> None:
    async with Atlas(provider="scripted") as app:
        going = asyncio.create_task(asking(app))
        asked = await app.bus.wait_for(ApprovalAsked, timeout=10)
        going.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await going

        with pytest.raises(UnknownApprovalError):
            await app.approve(asked.approval)


def stored(db: Path, run: str) -> None:
    """Wait until the log has what was asked for."""
    with opened(str(db)) as (engine, runs):
        while True:
            position = engine.last_position() or 0
            if pending_approvals(runs[run].events):
                return
            assert engine.wait_beyond(position, 30), "it was not stored"


async def asking(app: Atlas) -> str:
    """Have a specialist do what needs a yes. The models' words follow from what was said."""

    def first(said: list[Step], then: str) -> ScriptedProvider:
        return ScriptedProvider([lambda r: then if len(r.messages) > 2 else said] * 9)

    boss = first([ToolCallPart("d", "delegate", '{"task":"erase x","to":"low"}')], "Erased.")
    low = first([ToolCallPart("c1", "erase", '{"path":"x"}')], "Done.")
    both = [
        Agent("boss", tools=[delegation("low")], model=boss),
        Agent("low", tools=[erase], model=low),
    ]
    return (await Controller(both, bus=app.bus).delegate("Erase x.", to="boss")).text


async def test_many_recorded_teams_at_once_do_not_mix(tmp_path: Path) -> None:
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:

        async def one(room: str) -> str:
            said = [[ToolCallPart("c", "book", f'{{"room":"{room}"}}')], f"{room}."]
            async with app.recording(room, strict=True) as run:
                await team(app, ScriptedProvider(said)).delegate(f"Book {room}.")
            return run.id

        runs = await asyncio.gather(*(one(f"r{n}") for n in range(8)))
        for number, run in enumerate(runs):
            finished = [e for e in app.runs[run].events if isinstance(e, ToolFinished)]
            assert [each.content for each in finished] == [f"r{number} is booked"]


# -- kill -9 ------------------------------------------------------------------------------------

CRASHES = int(os.environ.get("ATLAS_CRASHES", "3"))


def begun(db: Path, world: Path) -> subprocess.Popen[str]:
    """Begin the program in a process of its own; return when its run is open."""
    arguments = [sys.executable, teams.__file__, str(db), str(world)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def undisturbed(db: Path, world: Path) -> tuple[float, list[str]]:
    """Return how long the program takes from when its run is open, and its result."""
    with begun(db, world) as process:
        assert process.stdout is not None
        process.stdout.readline()
        began = time.monotonic()
        output = process.stdout.read()
        assert process.wait() == 0
        return time.monotonic() - began, results_in(output)


def results_in(output: str) -> list[str]:
    return re.findall(r"marked \S+|in doubt", output.split("RESULT ")[1])


def kill_after(db: Path, world: Path, after: float) -> tuple[str, bool]:
    with begun(db, world) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(after)  # not to synchronise: the kill is to come at any moment
        process.send_signal(signal.SIGKILL)
        process.stdout.read()
        return first.split()[1], process.wait() == -signal.SIGKILL


def check_ends(events: list[Message]) -> None:
    """Check that each tool call has exactly one end."""
    called = [each.call for each in events if isinstance(each, ToolCalled)]
    ended = [each.call for each in events if isinstance(each, ToolFinished)]

    assert sorted(called) == sorted(ended)
    assert len(set(called)) == len(called)


@pytest.mark.timeout(3600)
async def test_a_killed_team_is_resumed_and_no_tool_runs_twice(tmp_path: Path) -> None:
    randomness = random.Random(os.environ.get("ATLAS_CRASH_SEED", "5"))
    whole, results = undisturbed(tmp_path / "whole.db", tmp_path / "whole.txt")
    killed = doubts = 0
    for number in range(CRASHES * 20):
        if killed == CRASHES:
            break
        db, world = tmp_path / f"{number}.db", tmp_path / f"{number}.txt"
        run, was_killed = kill_after(db, world, randomness.random() * whole)
        with opened(str(db)) as (_, runs):
            if not was_killed or runs[run].status == "completed":
                continue  # it was through
            stored = [event.meta.id for event in runs[run].read()]
        killed += 1
        before = Counter(world.read_text().split() if world.exists() else [])
        resumed = subprocess.run(
            [sys.executable, teams.__file__, str(db), str(world), run],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert resumed.returncode == 0, resumed.stderr[-3000:]
        marks = Counter(world.read_text().split())
        assert max(marks.values()) == 1, "a tool ran twice"
        doubted = int(resumed.stdout.split("DOUBTED ")[1].split()[0])
        wanted = teams.SPECIALISTS * teams.STEPS
        assert wanted - doubted <= len(marks) <= wanted
        assert before <= marks
        resulted = results_in(resumed.stdout)
        assert resulted.count("in doubt") == doubted
        for one, other in zip(resulted, results, strict=True):
            assert one in (other, "in doubt")
        doubts += doubted
        async with Atlas(str(db), provider="scripted") as app:
            check_ends(app.runs[run].held())
            kept = [event.meta.id for event in app.runs[run].read()]
            state = agents_at(app.runs[run])  # what was done twice is seen once
        assert [each.done for each in state.agents.values()] == [1] * (teams.SPECIALISTS + 1)
        assert state.tasks.keys() == {t.id for t in state.tasks.values() if t.status == "done"}
        assert kept[: len(stored)] == stored, "a message was lost"
    print(f"{killed} kills, {doubts} tools in doubt")
    assert killed == CRASHES


async def test_an_external_tool_in_flight_is_reported_in_doubt(tmp_path: Path) -> None:
    program = f"""
import asyncio, os, sys
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from atlas import Atlas
import agents.test_recorded as these
async def main():
    async with Atlas({str(tmp_path / "runs.db")!r}, provider="scripted") as app:
        app.bus.subscribe("tool.called", lambda e: None)
        async with app.recording("die") as run:
            print(run.id, flush=True)
            await these.dying(app, dies=True)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    run = done.stdout.strip()
    assert done.returncode == -signal.SIGKILL, done.stderr
    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:

        async def skip(call: object) -> Skip:
            return Skip("nobody knows")

        with pytest.raises(InDoubtError):
            async with app.resume(run):
                await dying(app, dies=False)
        check_ends(app.runs[run].held())


async def dying(app: Atlas, *, dies: bool) -> str:
    @tool(permission="write")
    async def last(x: int) -> str:
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return "reached"

    call = ToolCallPart("c", "last", '{"x":1}')
    provider = ScriptedProvider([lambda r: "End." if len(r.messages) > 2 else [call]] * 9)
    agent = Agent("one", tools=[last], model=provider)
    outcome = await Controller([agent], bus=app.bus).delegate(Task("Go."))
    return outcome.text


# -- forked in the middle of a task --------------------------------------------------------------


@tool
async def ring(room: str) -> str:
    "Ring somebody up there."
    performed.append(f"ring {room}")
    return f"nobody is in {room}"


def booking(app: Atlas, provider: ScriptedProvider, **changes: object) -> Controller:
    agent = Agent("clerk", instructions="You book.", tools=[book, erase], model=provider)
    return Controller([agent.changed(**changes) if changes else agent], bus=app.bus)


@pytest.mark.parametrize("instructions", ["You doubt.", ""])
async def test_an_agent_goes_on_from_a_fork_with_other_instructions(
    recorded: tuple[str, str], instructions: str
) -> None:
    db, run = recorded
    other = ScriptedProvider(["I doubt it."])
    async with Atlas(db, provider="scripted") as app:
        events = app.runs[run].events
        place = next(n for n, e in enumerate(events, 1) if isinstance(e, TurnEnded))
        async with app.forking(run, at=place) as fork:
            outcome = await booking(app, other, instructions=instructions).delegate("Book A and B.")
        shared = app.runs[fork.id].forked_at or 0
        assert app.runs[fork.id].events[:shared] == events[:shared]
        async with app.replaying(fork.id):
            again = await booking(app, ScriptedProvider([]), instructions=instructions).delegate(
                "Book A and B."
            )
        with pytest.raises(ReplayDiverged, match="You cheat"):
            async with app.replaying(fork.id):
                await booking(app, ScriptedProvider([]), instructions="You cheat.").delegate(
                    "Book A and B."
                )

    (request,) = other.requests
    told = [m.text for m in request.messages if m.role == "system"]
    assert told == ([instructions] if instructions else [])
    assert [m.role for m in request.messages if m.role != "system"] == ["user", "assistant", "tool"]
    assert outcome.text == again.text == "I doubt it."
    assert performed == ["A", "B"]


async def test_an_agent_goes_on_from_a_fork_with_other_tools_and_another_model(
    recorded: tuple[str, str],
) -> None:
    db, run = recorded
    said = [[ToolCallPart("c3", "ring", '{"room":"A"}')], "I rang."]
    other = ScriptedProvider(said, name="other", model="other-1")

    async def program(provider: ScriptedProvider) -> str:
        changes = {"tools": [book, ring], "model": provider}
        return (await booking(app, provider, **changes).delegate("Book A and B.")).text

    async with Atlas(db, provider="scripted") as app:
        events = app.runs[run].events
        place = next(n for n, e in enumerate(events, 1) if isinstance(e, TurnEnded))
        async with app.forking(run, at=place) as fork:
            assert await program(other) == "I rang."
        async with app.replaying(fork.id):
            assert await program(ScriptedProvider([], name="other", model="other-1")) == "I rang."
        asked = [e.model for e in app.runs[fork.id].events if isinstance(e, StreamStarted)]

    assert asked == ["scripted-1", "other-1", "other-1"]
    assert [each.name for each in other.requests[0].tools] == ["book", "ring"]
    assert performed == ["A", "B", "ring A"]


async def test_a_tool_that_was_called_before_a_fork_is_missed_there(
    recorded: tuple[str, str],
) -> None:
    db, run = recorded
    async with Atlas(db, provider="scripted") as app:
        events = app.runs[run].events
        place = next(n for n, e in enumerate(events, 1) if isinstance(e, TurnEnded))
        with pytest.raises(ReplayDiverged, match=r"'clerk' called 'book' before.* tools="):
            async with app.forking(run, at=place):
                await booking(app, ScriptedProvider([]), tools=[ring]).delegate("Book A and B.")

    assert performed == ["A", "B"]


async def test_something_else_that_was_said_is_no_other_instruction(
    recorded: tuple[str, str],
) -> None:
    db, run = recorded
    async with Atlas(db, provider="scripted") as app:
        events = app.runs[run].events
        place = next(n for n, e in enumerate(events, 1) if isinstance(e, TurnEnded))
        with pytest.raises(ReplayDiverged, match="Book C"):
            async with app.forking(run, at=place):
                await team(app, ScriptedProvider([])).delegate("Book C.")


# -- broken off and resumed ----------------------------------------------------------------------


async def test_a_tool_that_finished_beside_an_open_stream_is_not_performed_again(
    tmp_path: Path,
) -> None:
    is_booked, go_on = asyncio.Event(), asyncio.Event()

    @tool(permission="write")
    async def paint(room: str) -> AsyncIterator[str]:
        "Paint a room."
        performed.append(f"paint {room}")
        yield "half"
        await go_on.wait()
        yield "all"

    @tool(permission="write")
    async def note(room: str) -> str:
        "Make a note."
        is_booked.set()
        await go_on.wait()
        return "noted"

    def painter(request: ChatRequest) -> Reply:
        painted = any(m.role == "tool" for m in request.messages)
        return "Painted." if painted else [ToolCallPart("p", "paint", '{"room":"A"}')]

    def clerk(request: ChatRequest) -> Reply:
        turn = sum(m.role == "tool" for m in request.messages)
        called = [("book", "B"), ("book", "C"), ("note", "D")]
        if turn == len(called):
            return "Booked."
        name, room = called[turn]
        return [ToolCallPart(f"c{turn}", name, json.dumps({"room": room}))]

    async def program(app: Atlas) -> list[str]:
        both = [
            Agent("painter", tools=[paint], model=ScriptedProvider([painter] * 9)),
            Agent("clerk", tools=[book, note], model=ScriptedProvider([clerk] * 9)),
        ]
        controller = Controller(both, bus=app.bus)
        works = (controller.delegate("Go.", to=each.name) for each in both)
        return [each.text for each in await asyncio.gather(*works)]

    asked: list[str] = []

    async def ask(call: EffectCall) -> Skip:
        asked.append(call.kind)
        return Skip("nobody knows")

    async with Atlas(str(tmp_path / "runs.db"), provider="scripted") as app:
        run = app.recording("works", strict=True)

        async def recorded() -> None:
            async with run:
                await program(app)

        work = asyncio.create_task(recorded())
        await is_booked.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        go_on.set()
        async with app.resume(run.id, in_doubt=ask):
            answers = await program(app)
        async with app.replaying(run.id):
            assert await program(app) == answers

    assert answers == ["Painted.", "Booked."]
    assert sorted(asked) == ["tool.note", "tool.paint"]
    assert performed == ["paint A", "B", "C"]

"""What is known of agents and tasks at any moment of a run, and how it is drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from atlas import Atlas
from atlas.agents import (
    AgentMessage,
    AgentsState,
    Controller,
    Task,
    agents_at,
    delegation,
    project_agents,
    scripted_agent,
    sequence_diagram,
    task_tree,
    tool,
)
from atlas.cli.__main__ import root
from atlas.core.patches import Patch, apply_patch, plain
from atlas.core.runs import Run
from atlas.errors import AtlasError, UnknownVersionError
from atlas.providers.chat_state import ChatState
from atlas.providers.messages import ToolCallPart, ToolResultPart


@tool
async def double(x: int) -> int:
    "Double a number."
    return 2 * x


def team(app: Atlas) -> Controller:
    calls = [
        ToolCallPart("d1", "delegate", '{"task":"twice 4","to":"low"}'),
        ToolCallPart("d2", "delegate", '{"task":"twice x","to":"low"}'),
    ]
    low = [
        [ToolCallPart("c", "double", '{"x":4}')],
        [ToolCallPart("c", "double", '{"x":"x"}')],
        "Eight; done.",
        "I cannot.",
    ]
    return Controller(
        [
            scripted_agent("boss", [calls, "Finished."], tools=[delegation("low")]),
            scripted_agent("low", low, tools=[double]),
        ],
        bus=app.bus,
    )


@pytest.fixture
async def stored(tmp_path: Path) -> tuple[Path, str]:
    db = tmp_path / "runs.db"
    async with Atlas(str(db), provider="scripted") as app:
        async with app.recording("team", strict=True) as run:
            await team(app).delegate(Task("Both."), to="boss")
    return db, run.id


def complete(run: Run[ChatState]) -> None:
    for number in range(len(run) + 1):
        for task in agents_at(run, number).tasks.values():
            for place, message in enumerate(task.history):
                calls = [p.id for p in message.parts if isinstance(p, ToolCallPart)]
                if calls:
                    after = task.history[place + 1].parts
                    assert [p.call_id for p in after if isinstance(p, ToolResultPart)] == calls


async def test_the_state_is_known_at_each_event_and_no_history_misses_a_result(
    stored: tuple[Path, str],
) -> None:
    db, name = stored
    async with Atlas(str(db), provider="scripted") as app:
        run = app.runs[name]
        complete(run)
        end, start = agents_at(run), agents_at(run, 0)
        assert start.tasks == {}
        assert apply_patch(plain(start), start.diff(end)) == plain(end)
        assert agents_at(run, -1) == end
        with pytest.raises(UnknownVersionError, match="no event 999"):
            agents_at(run, 999)

    assert {task.status for task in end.tasks.values()} == {"done"}
    assert end.agents["low"].done == 2
    assert end.agents["boss"].tasks == ()
    assert sorted(len(task.history) for task in end.tasks.values()) == [3, 3, 3]


async def test_the_live_state_is_the_stored_one(stored: tuple[Path, str]) -> None:
    async with Atlas(provider="scripted") as app:
        live = project_agents()
        live.attach(app.bus)
        async with app.recording("team") as run:
            await team(app).delegate(Task("Both."), to="boss")

        assert live.value == agents_at(app.runs[run.id])
        live.close()


async def test_changes_of_the_live_state_are_patches() -> None:
    async with Atlas(provider="scripted") as app:
        copy, live = plain(AgentsState()), project_agents()

        def follow(version: int, patch: Patch) -> None:
            nonlocal copy
            copy = apply_patch(copy, patch)

        live.subscribe(follow)
        live.attach(app.bus)
        await team(app).delegate(Task("Both."), to="boss")

        assert copy == plain(live.value)
        live.close()


async def test_each_task_tells_what_it_used_and_the_first_what_all_did(
    stored: tuple[Path, str],
) -> None:
    async with Atlas(str(stored[0]), provider="scripted") as app:
        tasks = agents_at(app.runs[stored[1]]).tasks.values()
    spent = {task.parent is None: task.spent for task in tasks}

    assert (spent[True].turns, spent[False].turns) == (6, 2)
    assert (spent[True].tool_calls, spent[False].tool_calls) == (4, 1)


async def test_a_run_is_drawn_as_a_tree_and_as_a_diagram(stored: tuple[Path, str]) -> None:
    db, name = stored
    async with Atlas(str(db), provider="scripted") as app:
        events = app.runs[name].events
    tree, drawn = task_tree(events), sequence_diagram(events)

    assert tree[0].startswith("boss — Both. [done, 2 turns]: Finished.")
    assert any('double({"x":4}) → 8' in line for line in tree)
    assert any("(invalid)" in line for line in tree)
    assert drawn.startswith("sequenceDiagram\n    participant p0 as caller\n")
    assert "as boss" in drawn
    assert "->>" in drawn
    assert all(line.count(": ") or "Note" in line or "participant" in line or line in ("", "sequenceDiagram") for line in drawn.splitlines())  # fmt: skip


def test_whatever_a_letter_or_a_tool_says_a_diagram_stays_one() -> None:
    odd = 'a;b\n"c" #1'
    drawn = sequence_diagram([AgentMessage("1", odd, "*", "query", odd)])

    assert drawn.splitlines() == [
        "sequenceDiagram",
        "    participant p0 as a b c 1",
        "    participant p1 as *",
        "    p0-)p1: query: 'a b\\n c 1'",
    ]


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(root, arguments)
    assert done.exit_code == 0, done.output
    return done.output


async def test_the_command_line_shows_agents(stored: tuple[Path, str]) -> None:
    db, name = str(stored[0]), stored[1]

    assert "low" in invoke("agents", "list", "--db", db)
    assert f"{name}  completed" in invoke("agents", "list", "--db", db)
    assert "boss — Both." in invoke("agents", "tree", name, "--db", db)
    assert "running" in invoke("agents", "tree", "--at", "10", "--db", db)
    assert "task.completed" in invoke("agents", "tail", "--db", db)
    assert invoke("agents", "diagram", "--db", db).startswith("sequenceDiagram")
    assert json.loads(invoke("agents", "list", "--db", db, "--json"))["run"] == name
    assert len(json.loads(invoke("agents", "tree", "--db", db, "--json"))["tasks"]) == 3
    assert "Nothing waits" in invoke("agents", "approvals", "--db", db)
    for arguments in (("approve", "x"), ("tree", "--at", "9999"), ("list", "nothing")):
        done = CliRunner().invoke(root, ["agents", *arguments, "--db", db])
        assert done.exit_code != 0
        assert isinstance(done.exception, SystemExit | AtlasError)

"""Exact replay of concurrent agents, in this process and in others, and what must not pass."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import atlas
from atlas.core.effects import (
    EffectDelivered,
    EffectRead,
    EffectStarted,
    MemoryJournal,
    RunContext,
    effect,
    now,
    random,
)
from atlas.errors import ReplayDiverged

from support import concurrent_agents as agents

REPLAYS = int(os.environ.get("ATLAS_REPLAYS", "0"))
"""How many runs `make replays` records, with every Python found; 0: a few, with this Python alone."""

RUNS = REPLAYS or 10
SEEDS = ("2", "3", "444", "31337", "4294967295") if REPLAYS else ("2", "444")
THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
VERSIONS = ("3.11", "3.12", "3.13") if REPLAYS else (THIS,)


def python_of(version: str) -> str:
    """Return the path of an interpreter that can run the agents; skip the test if there is none."""
    if version == THIS:
        return sys.executable
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    for found in (shutil.which(f"python{version}"), *map(str, kept)):
        if found is not None and runs([found, "-c", "import atlas.core.effects"]).returncode == 0:
            return found
    pytest.skip(f"no Python {version} that can import what Atlas needs")


def runs(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    # What is installed here serves other versions too: what the agents import is pure Python.
    path = os.pathsep.join([str(Path(atlas.__file__).parents[1]), sysconfig.get_path("purelib")])
    return subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "default"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def run_agents(python: str, *arguments: str, seed: str) -> str:
    # a timer is compared with what was recorded, so its length is part of the program
    command = [python, agents.__file__, *arguments]
    made = runs(command, PYTHONHASHSEED=seed, AGENTS_SPEED="0.0005")
    assert made.returncode == 0, made.stderr
    return made.stdout


@pytest.mark.timeout(120 + 6 * RUNS)
@pytest.mark.parametrize("version", VERSIONS)
def test_concurrent_agents_replay_byte_for_byte_in_fresh_processes(version: str, tmp_path: Path):
    python = python_of(version)
    file = str(tmp_path / "runs.jsonl")
    run_agents(python, "record", file, str(RUNS), seed="1")

    for seed in SEEDS:
        answer = json.loads(run_agents(python, "replay", file, seed=seed))
        assert answer == {"same": RUNS, "performed": 0, "connections": 0}


@pytest.mark.parametrize(
    ("before", "after"), [("3.11", "3.13"), ("3.12", "3.11"), ("3.13", "3.12")]
)
def test_what_one_python_recorded_another_replays(before: str, after: str, tmp_path: Path):
    recorder, other = python_of(before), python_of(after)
    file = str(tmp_path / "runs.jsonl")
    run_agents(recorder, "record", file, "5", seed="1")

    answer = json.loads(run_agents(other, "replay", file, seed="2"))

    assert answer == {"same": 5, "performed": 0, "connections": 0}


async def test_ten_recordings_replay_in_the_same_process():
    for _ in range(10):
        entries, made = await agents.record()
        before = agents.performed

        assert await agents.replay(entries) == made
        assert agents.performed == before


@effect
async def ask(question: str) -> str:
    await asyncio.sleep(0)
    return question.upper()


@effect(pure=True)
async def look(where: str) -> str:
    return where * 2


async def original() -> str:
    first, second = await asyncio.gather(ask("one"), look("two"))
    return await ask(f"{first} and {second}")


async def with_another_prompt() -> str:
    first, second = await asyncio.gather(ask("eins"), look("two"))
    return await ask(f"{first} and {second}")


async def with_calls_swapped() -> str:
    first, second = await asyncio.gather(look("two"), ask("one"))
    return await ask(f"{second} and {first}")


async def with_one_more() -> str:
    result = await original()
    await ask("more")
    return result


async def with_one_more_inside() -> str:
    first, second = await asyncio.gather(ask("one"), look("two"))
    await ask("more")
    return await ask(f"{first} and {second}")


async def with_one_less() -> str:
    await asyncio.gather(ask("one"), look("two"))
    return ""


async def with_one_less_at_first() -> str:
    first = await ask("one")
    return await ask(f"{first} and twotwo")


async def with_a_look_at_the_clock() -> str:
    now()
    return await original()


async def with_a_timer() -> str:
    first, second = await asyncio.gather(ask("one"), look("two"))
    await asyncio.sleep(0.001)
    return await ask(f"{first} and {second}")


async def hiding_what_diverged() -> str:
    try:
        return await with_another_prompt()
    except Exception:
        return "hidden"


MUTATIONS = {
    with_another_prompt: "0.0:0",
    with_calls_swapped: "0.0:0",
    with_one_more: "0:1",
    with_one_more_inside: "0:0",
    with_one_less: "0:0",
    with_one_less_at_first: "0:0",
    with_a_look_at_the_clock: "0:0",
    with_a_timer: "0:1",
    hiding_what_diverged: "0.0:0",
}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda program: program.__name__)
async def test_another_program_than_the_recorded_one_diverges(mutation):
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await original()

    with pytest.raises(ReplayDiverged) as caught:
        async with RunContext("r", mode="replay", recorded=journal.entries):
            await mutation()

    assert caught.value.effect
    assert repr(caught.value.effect) in str(caught.value) or "waits for" in str(caught.value)


async def test_the_divergence_shows_the_difference_of_the_requests():
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await original()

    with pytest.raises(ReplayDiverged) as caught:
        async with RunContext("r", mode="replay", recorded=journal.entries):
            await with_another_prompt()

    assert caught.value.effect == "0.0:0"
    assert '- "question": "one"' in str(caught.value).replace("-  ", "- ")
    assert '+ "question": "eins"' in str(caught.value).replace("+  ", "+ ")


async def test_a_recording_that_ends_early_never_reaches_the_live_world():
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await original()
    performed = []

    @effect("ask")
    async def dangerous(question: str) -> str:
        performed.append(question)
        return ""

    for cut in range(len(journal.entries)):
        with pytest.raises(ReplayDiverged):
            async with RunContext("r", mode="replay", recorded=journal.entries[:cut]):
                first, second = await asyncio.gather(dangerous("one"), look("two"))
                await dangerous(f"{first} and {second}")
    assert performed == []


async def test_names_of_tasks_do_not_matter():
    async def named(name: str | None) -> str:
        return await asyncio.create_task(ask("one"), name=name)

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await named("first")
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await named(None) == "ONE"


async def test_what_came_first_comes_first_again():
    gates = {"slow": asyncio.Event(), "fast": asyncio.Event()}
    order = []

    @effect(pure=True)
    async def wait_for(gate: str) -> str:
        if mode == "record":
            await gates[gate].wait()
        if gate == "fast":
            gates["slow"].set()
        return gate

    async def racing():
        async def one(gate):
            order.append(await wait_for(gate))

        await asyncio.gather(one("slow"), one("fast"))

    mode = "record"
    gates["fast"].set()
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await racing()
    recorded, order = order, []
    mode = "replay"
    async with RunContext("r", mode="replay", recorded=journal.entries):
        await racing()

    assert recorded == order == ["fast", "slow"]


async def test_a_replay_at_the_recorded_pace_takes_its_time():
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await asyncio.sleep(0.05)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with RunContext("r", mode="replay", recorded=journal.entries):
        await asyncio.sleep(0.05)
    flat_out = loop.time() - began
    began = loop.time()
    async with RunContext("r", mode="replay", recorded=journal.entries, pace=1.0):
        await asyncio.sleep(0.05)

    assert flat_out < 0.05 <= loop.time() - began + 1e-3


async def test_every_kind_of_entry_is_needed():
    async def everything() -> list[object]:
        return [await original(), now(), random().random()]

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await everything()

    for at, entry in enumerate(journal.entries):
        if isinstance(entry, EffectStarted | EffectRead | EffectDelivered):
            without = journal.entries[:at] + journal.entries[at + 1 :]
            with pytest.raises(ReplayDiverged):
                async with RunContext("r", mode="replay", recorded=without):
                    await everything()

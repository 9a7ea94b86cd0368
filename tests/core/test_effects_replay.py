"""Exact replay of concurrent agents, in this process and in others, and what must not pass."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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

RUNS = 30


def run_agents(*arguments: str, seed: str, speed: str) -> str:
    environment = os.environ | {"PYTHONHASHSEED": seed, "AGENTS_SPEED": speed}
    made = subprocess.run(
        [sys.executable, agents.__file__, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return made.stdout


def test_concurrent_agents_replay_byte_for_byte_in_fresh_processes(tmp_path: Path):
    file = str(tmp_path / "runs.jsonl")
    run_agents("record", file, str(RUNS), seed="1", speed="0.0005")

    for seed in ("2", "3", "444"):
        # a timer is compared with what was recorded, so its length is part of the program
        answer = json.loads(run_agents("replay", file, seed=seed, speed="0.0005"))
        assert answer == {"same": RUNS, "performed": 0, "connections": 0}


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

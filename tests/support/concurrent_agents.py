"""Twelve agents that share a board: a program whose order nobody can foresee, for tests of replay.

Run as ``concurrent_agents.py record FILE COUNT`` it records runs of the program into a file; as
``concurrent_agents.py replay FILE`` it replays all of them and prints, for each, the digest of what it
gave and of its journal. Every function of the world counts its calls; a replay must make none.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random as real_random
import sys
import time
from pathlib import Path

from atlas.core.effects import (
    Entry,
    MemoryJournal,
    RunContext,
    effect,
    now,
    now_ns,
    random,
    uuid,
)
from atlas.core.schema import decode, encode

AGENTS = 12
SPEED = float(os.environ.get("AGENTS_SPEED", "0.001"))
performed = 0


async def latency() -> None:
    global performed
    performed += 1
    await asyncio.sleep(real_random.random() * SPEED)


@effect("model", pure=True)
async def model(prompt: str):
    for _ in range(real_random.randrange(1, 5)):
        await latency()
        yield f"{prompt[-3:]}{real_random.randrange(1000)} "


@effect
async def tool(name: str, number: int) -> dict[str, object]:
    await latency()
    if number % 7 == 3:
        raise ValueError(f"{name} does not like {number}")
    return {"z": number, "a": real_random.random(), "at": (name, time.time_ns())}


@effect("configuration")
def configuration(name: str) -> str:
    global performed
    performed += 1
    return f"{name}={real_random.random()}"


async def agent(
    number: int, board: list[str], lock: asyncio.Lock, prompt: str = "step"
) -> list[str]:
    notes = [configuration(f"agent{number}")]
    for step in range(3):
        text = ""
        async for piece in model(f"agent {number} {prompt} {step} sees {board[-2:]}"):
            text += piece
        try:
            found: object = await tool(f"tool{number}", random().randrange(100))
        except ValueError as error:
            found = str(error)
        notes.append(f"{found}")

        async def child(at: int, step: int = step, said: str = text) -> str:
            await asyncio.sleep(SPEED * random().random())
            async with lock:
                board.append(f"{number}/{step}/{at} {said} {now_ns()}")
                return str(await tool("lock", at))

        try:
            async with asyncio.timeout(SPEED * 8):
                both = [asyncio.create_task(child(at)) for at in range(2)]
                done, _ = await asyncio.wait(both)
                notes += [task.result() for task in done]
        except TimeoutError:
            board.append(f"{number} gave up at {asyncio.get_running_loop().time()}")
        try:
            notes.append(await asyncio.wait_for(child(2), SPEED * 400))
        except TimeoutError:
            board.append(f"{number} waited too long")
        for first in asyncio.as_completed([tool(f"raced{number}", at) for at in range(2)]):
            notes.append(str(await first))
        notes.append(f"{uuid()} {now()}")
    return notes


async def program(prompt: str = "step") -> object:
    board: list[str] = []
    lock = asyncio.Lock()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(agent(at, board, lock, prompt)) for at in range(AGENTS)]
    return [board, [task.result() for task in tasks]]


def digest(result: object, entries: list[Entry]) -> str:
    given = hashlib.sha256(repr(result).encode())
    for entry in entries:
        given.update(encode(entry))
    return given.hexdigest()


async def record() -> tuple[list[Entry], str]:
    journal = MemoryJournal()
    async with RunContext("agents", journal=journal, strict=True) as run:
        result = await program()
    assert run.exact
    return journal.entries, digest(result, journal.entries)


async def replay(entries: list[Entry]) -> str:
    journal = MemoryJournal()
    async with RunContext("agents", mode="replay", recorded=entries, journal=journal):
        result = await program()
    return digest(result, journal.entries)


def main() -> None:
    command, path = sys.argv[1:3]
    if command == "record":
        runs = [asyncio.run(record()) for _ in range(int(sys.argv[3]))]
        lines = [
            json.dumps([made, [encode(entry).decode() for entry in entries]])
            for entries, made in runs
        ]
        Path(path).write_text("\n".join(lines))
        return
    connections = []
    sys.addaudithook(
        lambda event, args: connections.append(args) if event.startswith("socket.connect") else None
    )
    recorded = [json.loads(line) for line in Path(path).read_text().splitlines()]
    same = sum(
        asyncio.run(replay([decode(text.encode()) for text in entries])) == made
        for made, entries in recorded
    )
    print(json.dumps({"same": same, "performed": performed, "connections": len(connections)}))


if __name__ == "__main__":
    main()

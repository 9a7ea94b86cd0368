"""A program that is killed and resumed: ten agents whose tools leave a mark in the world.

``crashing.py DB WORLD [RUN]`` records the program, or resumes the run RUN. Each tool appends a line to
the file WORLD when it is performed, so that one performed twice shows. What is acknowledged on
standard output was finished as far as the program knows.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

from atlas import Atlas, effect
from atlas.core.effects import Skip

AGENTS, STEPS = 10, 4


@effect("tool", external=True)
async def tool(world: str, agent: int, step: int) -> str:
    await asyncio.sleep(random.random() * 0.004)
    descriptor = os.open(world, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{agent}.{step}\n".encode())
    finally:
        os.close(descriptor)
    await asyncio.sleep(random.random() * 0.004)
    return f"done {agent}.{step}"


async def agent(app: Atlas, world: str, number: int) -> list[str]:
    said = []
    for step in range(STEPS):
        reply = await app.chat(f"agent {number} step {step}")
        said.append(f"{reply.text[:12]} {await tool(world, number, step)}")
    return said


async def program(app: Atlas, world: str) -> list[list[str]]:
    return list(await asyncio.gather(*(agent(app, world, number) for number in range(AGENTS))))


async def main(db: str, world: str, run: str | None) -> None:
    async with Atlas(db, provider="scripted") as app:
        if run is None:
            async with app.recording("crashing", strict=True) as session:
                print("RUN", session.id, flush=True)
                result = await program(app, world)
        else:
            doubted = []

            async def ask(call) -> Skip:
                doubted.append(call.request)
                return Skip("in doubt")

            async with app.resume(run, in_doubt=ask) as session:
                result = await program(app, world)
            print("DOUBTED", len(doubted), flush=True)
        print("RESULT", result, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None))

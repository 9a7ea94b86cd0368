"""A team that is killed and resumed: a boss, nine specialists, tools that leave a mark in the world.

``teams.py DB WORLD [RUN]`` records the program, or resumes the run RUN, asking nobody about what is in
doubt: it is skipped, and counted.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys

from atlas import Atlas
from atlas.agents import Agent, Controller, Limits, Task, delegation, tool
from atlas.core.effects import Skip
from atlas.providers.base import ChatRequest
from atlas.providers.messages import ToolCallPart
from atlas.providers.scripted import Reply, ScriptedProvider

SPECIALISTS, STEPS = 9, 3
WORLD = ""


@tool(permission="write")
async def mark(agent: str, step: int) -> str:
    """Leave a mark."""
    await asyncio.sleep(random.random() * 0.003)
    descriptor = os.open(WORLD, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{agent}.{step}\n".encode())
    finally:
        os.close(descriptor)
    await asyncio.sleep(random.random() * 0.003)
    return f"marked {agent}.{step}"


def specialist(request: ChatRequest) -> Reply:
    """Call the tool so often, then say what came of it. A function of what was said: it may be asked
    in any process.
    """
    who = request.messages[1].text.split()[-1]
    done = (len(request.messages) - 2) // 2
    if done < STEPS:
        arguments = json.dumps({"agent": who, "step": done})
        return ["Next: ", ToolCallPart(f"c{done}", "mark", arguments)]
    results = [part.content for m in request.messages if m.role == "tool" for part in m.parts]
    return " ".join(results)


def boss(request: ChatRequest) -> Reply:
    """Have all specialists do something at once, then say what came of it."""
    if len(request.messages) == 2:
        return [
            ToolCallPart(f"d{n}", "delegate", json.dumps({"task": f"work as s{n}", "to": f"s{n}"}))
            for n in range(SPECIALISTS)
        ]
    results = [part.content for m in request.messages if m.role == "tool" for part in m.parts]
    return " | ".join(results)


def team(app: Atlas) -> Controller:
    names = [f"s{n}" for n in range(SPECIALISTS)]
    agents = [
        Agent(
            "boss",
            instructions="Delegate.",
            tools=[delegation(*names)],
            model=ScriptedProvider([boss] * 99, name="boss-model"),
        ),
        *(
            Agent(
                name,
                instructions="Mark.",
                tools=[mark],
                model=ScriptedProvider([specialist] * 99, name=f"{name}-model"),
            )
            for name in names
        ),
    ]
    return Controller(agents, bus=app.bus, limits=Limits(turns=None))


async def program(app: Atlas) -> str:
    outcome = await team(app).delegate(Task("Go."), to="boss")
    return outcome.text


async def main(db: str, run: str | None) -> None:
    async with Atlas(db, provider="scripted") as app:
        if run is None:
            async with app.recording("team", strict=True) as session:
                print("RUN", session.id, flush=True)
                result = await program(app)
        else:
            doubted = []

            async def ask(call: object) -> Skip:
                doubted.append(call)
                return Skip("in doubt")

            async with app.resume(run, in_doubt=ask) as session:
                result = await program(app)
            print("DOUBTED", len(doubted), flush=True)
        print("RESULT", result, flush=True)


if __name__ == "__main__":
    WORLD = sys.argv[2]
    asyncio.run(main(sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else None))

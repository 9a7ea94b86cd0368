"""Delegate tasks to agents with tools, watch them live, kill the program in the middle and go on.

    python examples/08_agent_delegation.py
    python examples/08_agent_delegation.py --crash          # dies when two tools are done, and resumes
    python examples/08_agent_delegation.py --db runs.db     # then: atlas agents tree --db runs.db

With no argument, no key and no network this runs a model of 135 million parameters. It is far too small
to be trusted with a choice of words (of four sums asked for in words it got one right), so its answers
are *constrained* by the JSON Schemas of the tools, and what a tool returns is the answer. Which agent does
what is decided by code. A large model needs no such crutches. In a terminal you are asked first.
"""

import argparse
import asyncio
import sys
import tempfile
from datetime import datetime
from functools import partial
from pathlib import Path
from signal import raise_signal
from typing import Literal
from zoneinfo import ZoneInfo

from atlas import Atlas, AtlasError, Event
from atlas.agents import Agent, Controller, Task, task_tree, tool
from atlas.agents.messages import ApprovalAsked, ToolCalled, ToolFinished

FOLDER = Path(tempfile.mkdtemp(prefix="atlas-"))
SUM = {"first": 3, "operator": "times", "second": 17}
ASK = sys.stdin.isatty() and not {"--crash", "--die"} & set(sys.argv)


@tool(approval=ASK)
def calculate(first: int, operator: Literal["plus", "minus", "times"], second: int) -> int:
    """Calculate with two whole numbers."""
    return {"plus": first + second, "minus": first - second, "times": first * second}[operator]


@tool
def read_note(name: Literal["shopping"]) -> str:
    """Read a note; no other file can be named at all: that is the sandbox."""
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


@tool
async def clock(place: Literal["Berlin", "New York", "Tokyo"]) -> str:
    """Tell the time at a place."""
    zones = {"Berlin": "Europe/Berlin", "New York": "America/New_York", "Tokyo": "Asia/Tokyo"}
    return f"{datetime.now(ZoneInfo(zones[place])):%H:%M} in {place}"


def team(app: Atlas) -> Controller:
    """Return three specialists. An agent is a definition; what goes on belongs to the run."""
    constrained = {"tool_choice": "required", "finish": "tool", "temperature": 0.0}
    calculator = Agent("calculator", tools=[calculate], capabilities={"sums"}, **constrained)
    reader = Agent("reader", tools=[read_note], capabilities={"notes"}, **constrained)
    watchman = Agent("watch", tools=[clock], capabilities={"time"}, **constrained)
    return Controller([calculator, reader, watchman], bus=app.bus)


async def morning(app: Atlas) -> list[str]:
    """Do what there is to do: two tasks side by side, then one that depends on an answer."""
    note = Task("Read the note.", needs={"notes"}, inputs={"name": "shopping"}, id="note")
    hour = Task("What time is it in Tokyo?", needs={"time"}, id="time")
    price = Task("Calculate this.", needs={"sums"}, inputs=SUM, after=("note",), id="sum")
    outcomes = await team(app).run([note, hour, price])
    return [each.text if each.is_done else f"({each.error})" for each in outcomes.values()]


def watch(event: Event) -> None:
    """Print what happens while it happens; any number of others could watch too."""
    match event:
        case ToolCalled(agent=agent, tool=name, arguments=arguments):
            print(f"  {agent} calls {name}({arguments})", flush=True)
        case ToolFinished(outcome=outcome, content=content):
            print(f"  {outcome}: {content}", flush=True)


async def decide(app: Atlas, asked: ApprovalAsked) -> None:
    """Ask whoever sits at the terminal, until the run ends. It waits, also across a restart."""
    print(f"  May {asked.agent} call {asked.tool}? [Y/n] ", end="", flush=True)
    typed = asyncio.Event()  # input() in a thread would not let itself be interrupted
    asyncio.get_running_loop().add_reader(sys.stdin, typed.set)
    await typed.wait()
    await app.approve(asked.approval, approved=sys.stdin.readline() in ("\n", "y\n"), by="you")


async def live(db: str, options: argparse.Namespace) -> None:
    """Record a run of the program, or go on with the one that died."""
    async with Atlas(db, provider=options.provider, model=options.model) as app:
        app.bus.subscribe("tool.*", watch)
        app.bus.subscribe(ApprovalAsked, partial(decide, app))
        app.bus.subscribe("run.*", lambda _: asyncio.get_running_loop().remove_reader(sys.stdin))
        if options.die:  # as in a power cut, when it is known what time it is
            app.bus.subscribe(ToolFinished, lambda e: "Tokyo" in e.content and raise_signal(9))
        session = app.resume(options.resume) if options.resume else app.recording("morning")
        async with session as run:
            options.resume = run.id  # should somebody interrupt it
            answers = await morning(app)
        print("\nAnswers:", *answers, sep="\n  ")
        print("\nThe run as it is kept:", *task_tree(app.runs[run.id].held()), sep="\n  ")
        print(*(app.runs[run.id].held() if options.verbose else ()), sep="\n")


async def crash(db: str, options: argparse.Namespace) -> None:
    """Let another process do it and die, then resume: what finished there is not done again."""
    print("Another process begins, and dies when its second tool has finished:", flush=True)
    again = ["--die", "--db", db, *(f"--provider={each}" for each in [options.provider] if each)]
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, *again)
    print(f"It ended with {await process.wait()}. This one tells again what finished, and goes on:")
    async with Atlas(db, provider="scripted") as app:
        options.resume = app.runs.latest().id
    await live(db, options)


def main() -> int:
    """Read the options and run the example; errors become one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--provider", help="anthropic, openai, ollama or local")
    parser.add_argument("--model", help="the provider's name of a model, or a GGUF file")
    parser.add_argument("--db", default=f"{FOLDER}/runs.db", help="keep the runs in this file")
    parser.add_argument("--verbose", action="store_true", help="print the events of the run")
    parser.add_argument("--crash", action="store_true", help="die in the middle, and resume")
    parser.add_argument("--die", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", metavar="RUN", help="go on with a run in the file of --db")
    options = parser.parse_args()
    Path(FOLDER, "shopping.txt").write_text("3 kettles at 17 EUR each", encoding="utf-8")
    try:
        asyncio.run((crash if options.crash else live)(options.db, options))
    except AtlasError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. Go on with: --db {options.db} --resume {options.resume or 'RUN'}")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

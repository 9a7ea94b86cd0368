"""What agents cost: processor time of turns and of delegated tasks, with a model that takes no time.

    python -m benchmarks agents

The model answers at once; what is measured is everything around it. The same conversation is held
by a loop written by hand, which validates arguments with pydantic where that is installed, and by
those of ``agent-framework-core``, ``openai-agents`` and ``pydantic-ai-slim`` that are installed.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import random
import sqlite3
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

from _agents_peers import PEERS

from atlas import Atlas, EventBus, effect
from atlas.agents import Agent, Controller, Limits, Task, delegation, tool
from atlas.providers.base import (
    Capabilities,
    ChatRequest,
    Delta,
    Finished,
    TextDelta,
    ToolCallDelta,
    UsageDelta,
)
from atlas.providers.messages import Usage

TURNS = 41
DURABILITIES: Final[tuple[Literal["process", "power"], ...]] = ("process", "power")
_PRAGMA: Final = {"process": "NORMAL", "power": "FULL"}
FREE = Limits(turns=None, repeats=None, alternations=None, tokens=None)


class InstantModel:
    """Asks for a tool so many times, then answers; takes no time."""

    name = "instant"
    default_model = "instant-1"
    capabilities = Capabilities(tools=True, json_schema=True)

    def __init__(
        self,
        turns: int,
        tool: str = "add",
        arguments: Callable[[int], str] = '{{"one":{},"other":2}}'.format,
    ) -> None:
        self._turns = turns
        self._tool = tool
        self._arguments = arguments

    async def stream(self, request: ChatRequest) -> AsyncIterator[Delta]:
        done = len(request.messages) // 2
        if done < self._turns - 1:
            yield ToolCallDelta(0, f"c{done}", self._tool, self._arguments(done))
            yield UsageDelta(Usage(100, 10))
            yield Finished("tool_calls")
        else:
            yield TextDelta("Done.")
            yield UsageDelta(Usage(100, 10))
            yield Finished("stop")

    async def models(self) -> list[str]:
        return [self.default_model]

    async def aclose(self) -> None:
        pass


@tool
async def add(one: int, other: int) -> int:
    """Add two numbers."""
    return one + other


def team(bus: EventBus, turns: int) -> Controller:
    return Controller([Agent("one", tools=[add], model=InstantModel(turns))], bus=bus)


def pair(bus: EventBus) -> Controller:
    boss = Agent(
        "boss",
        tools=[delegation("worker")],
        model=InstantModel(2, "delegate", lambda _: '{"task":"do it","to":"worker"}'),
    )
    return Controller([boss, Agent("worker", model=InstantModel(1))], bus=bus)


# -- by hand ------------------------------------------------------------------------------------


def by_hand() -> tuple[str, Callable[[str], object]]:
    """Return how the hand-written loop validates arguments."""
    try:
        import pydantic
    except ImportError:
        return "json only", json.loads

    class Arguments(pydantic.BaseModel):
        one: int
        other: int

    return "pydantic", Arguments.model_validate_json


async def hand_loop(turns: int, check: Callable[[str], object]) -> str:
    messages: list[dict[str, object]] = [{"role": "user", "content": "Go."}]
    for turn in range(turns - 1):
        call = {"id": f"c{turn}", "name": "add", "arguments": f'{{"one":{turn},"other":2}}'}
        messages.append({"role": "assistant", "tool_calls": [call]})
        check(call["arguments"])
        result = await add(one=turn, other=2)
        messages.append({"role": "tool", "id": call["id"], "content": json.dumps(result)})
    return "Done."


# -- measuring ----------------------------------------------------------------------------------


async def cpu(work: Callable[[], Awaitable[object]], *, repeat: int = 7) -> float:
    """Return the least processor time of this thread, in ms."""
    await work()
    gc.collect()
    found = []
    for _ in range(repeat):
        began = time.process_time()
        await work()
        found.append(time.process_time() - began)
    return min(found) * 1000


async def turns_in(app: Atlas, turns: int, name: str | None) -> float:
    """Return ms per turn; recorded under a name, or not at all."""
    one = team(app.bus, turns)

    async def work() -> None:
        if name is None:
            (await one.delegate(Task("Go.", budget=FREE))).text  # noqa: B018  raises
            return
        async with app.recording(name, is_durable=name != "quick"):
            (await one.delegate(Task("Go.", budget=FREE))).text  # noqa: B018  raises

    return await cpu(work, repeat=25 if name is None else 5) / turns


async def tasks_in(bus: EventBus, count: int) -> float:
    """Return ms per delegated task, so many at once."""
    both = pair(bus)
    repeat = max(5, 60 // count)

    async def work() -> None:
        for _ in range(max(1, 20 // count)):
            await both.parallel([Task("Go.", budget=FREE) for _ in range(count)])

    return await cpu(work, repeat=repeat) / (count * max(1, 20 // count))


async def many(bus: EventBus, count: int) -> tuple[int, float]:
    """Return how many of so many tasks at once were done, and ms for each."""
    both = pair(bus)
    began = time.process_time()
    outcomes = await both.parallel([Task("Go.", budget=FREE) for _ in range(count)])
    return sum(each.is_done for each in outcomes), (time.process_time() - began) * 1000 / count


def idle_agent() -> float:
    """Return KiB of an agent with one tool that does nothing."""
    model = InstantModel(1)
    Agent("one", tools=[add], capabilities={"sums"}, model=model)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    agents = [
        Agent(f"agent-{n}", instructions="Add.", tools=[add], capabilities={"sums"}, model=model)
        for n in range(1000)
    ]
    used = (tracemalloc.get_traced_memory()[0] - before) / len(agents) / 1024
    tracemalloc.stop()
    return used


def words(step: int) -> str:
    """Return 150 characters that nothing can make shorter than three quarters of them."""
    return base64.b64encode(random.Random(step).randbytes(112)).decode()


def bare(folder: Path, durability: str, *, rows: int = 400) -> float:
    """Return ms of processor time of a bare append to SQLite and its commit, as durable as the log."""
    database = sqlite3.connect(folder / f"bare-{durability}.db", isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute(f"PRAGMA synchronous={_PRAGMA[durability]}")
        database.execute("CREATE TABLE steps (id INTEGER PRIMARY KEY, said TEXT)")
        texts = [words(row) for row in range(rows)]
        began = time.process_time()
        for text in texts:
            database.execute("INSERT INTO steps (said) VALUES (?)", (text,))
        return (time.process_time() - began) * 1000 / rows
    finally:
        database.close()


async def durable(
    folder: Path, steps: int, durability: Literal["process", "power"]
) -> tuple[float, float, float]:
    """Return ms of processor time, bytes on disk and bytes of payload per recorded turn.

    A turn is two steps: the payload is what a model says and a tool gives, each of which has to be kept.
    """
    path = folder / f"{durability}-{steps}.db"
    async with Atlas(str(path), durability=durability, provider=InstantModel(1)) as app:

        @tool
        async def note(number: int, text: str) -> str:
            """Take a note."""
            return words(-number - 1)

        def arguments(step: int) -> str:
            return f'{{"number":{step},"text":"{words(step)}"}}'

        one = Controller(
            [Agent("one", tools=[note], model=InstantModel(steps + 1, "note", arguments))],
            bus=app.bus,
        )
        began = time.process_time()
        async with app.recording("durable"):
            (await one.delegate(Task("Go.", budget=FREE))).text  # noqa: B018  raises
        used = (time.process_time() - began) * 1000
    size = sum(each.stat().st_size for each in folder.glob(f"{path.name}*"))
    return used / steps, size / steps, len(arguments(steps)) + len(words(0))


async def bare_steps(
    folder: Path, durability: Literal["process", "power"], steps: int = 1_000
) -> tuple[float, float, float]:
    """Return ms of processor time of the first and the last hundred of steps, and bytes on disk a step.

    A step is an effect that gives 199 bytes, which is what peers were measured with: one message, one commit.
    """
    said = [words(step).ljust(199, "=") for step in range(steps)]

    @effect(idempotent=True)
    async def step(number: int) -> str:
        return said[number]

    path = folder / f"steps-{durability}.db"
    used: list[float] = []
    async with (
        Atlas(str(path), durability=durability, provider=InstantModel(1)) as app,
        app.recording("steps"),
    ):
        for first in range(0, steps, 100):
            began = time.process_time()
            for number in range(first, first + 100):
                await step(number)
            used.append((time.process_time() - began) * 10)
    size = sum(each.stat().st_size for each in folder.glob(f"{path.name}*"))
    return used[0], used[-1], size / steps


async def measure() -> None:
    checked, check = by_hand()
    raw = await cpu(lambda: hand_loop(TURNS, check)) / TURNS
    print(f"hand-written loop ({checked}): {raw:.4f} ms per turn")
    for name, made in PEERS.items():
        try:
            conversation = made(TURNS)
        except ImportError as error:
            print(f"{name}: skipped ({error})")
            continue
        spent = await cpu(conversation, repeat=5) / TURNS
        print(f"{name}: {spent:.4f} ms per turn, {spent / raw:.0f}x of the loop")
    bus = EventBus()
    async with Atlas(bus=bus, provider=InstantModel(1)) as app:
        turn = await turns_in(app, TURNS, None)
        print(f"turn, no log:           {turn:.4f} ms, {turn / raw:.0f}x of the loop")
        short, long = await turns_in(app, 40, None), await turns_in(app, 200, None)
        late = (long * 200 - short * 40) / 160
        print(f"turns 40-200, no log:   {late:.4f} ms, {late / short:.2f}x of the first 40")
        print(f"turn, recorded, memory: {await turns_in(app, TURNS, 'quick'):.4f} ms")
        alone = await tasks_in(bus, 1)
        print(f"delegated task,   1 at once: {alone:.4f} ms")
        for count in (10, 100):
            each = await tasks_in(bus, count)
            print(f"delegated task, {count:>3} at once: {each:.4f} ms, {each / alone:.2f}x of one")
        done, each = await many(bus, 10_000)
        print(f"10,000 at once: {done} done, {each:.4f} ms each")
    print(f"idle agent: {idle_agent():.2f} KiB")
    with tempfile.TemporaryDirectory() as folder:
        for durability in DURABILITIES:
            await measure_durable(Path(folder), durability)


async def measure_durable(folder: Path, durability: Literal["process", "power"]) -> None:
    """Print what turns cost with a log that survives this, beside the floor of a bare append."""
    print(f'with the log, durability "{durability}":')
    floor = bare(folder, durability)
    print(f"  bare append to SQLite:  {floor:.4f} ms (synchronous={_PRAGMA[durability]})")
    log = str(folder / f"turns-{durability}.db")
    async with Atlas(log, durability=durability, provider=InstantModel(1)) as app:
        turn = await turns_in(app, TURNS, "turns")
        print(f"  turn:                   {turn:.4f} ms, {turn - floor:.4f} above a bare append")
        short, long = await turns_in(app, 40, "a"), await turns_in(app, 200, "b")
        late = (long * 200 - short * 40) / 160
        print(f"  turns 40-200:           {late:.4f} ms, {late / short:.2f}x of the first 40")
    first, last, size = await bare_steps(folder, durability)
    print(
        f"  an effect as a step:    {first:.3f} -> {last:.3f} ms, {last - floor:.3f} above a bare append; "
        f"{size:,.0f} bytes on disk a step (199 of payload)"
    )
    for steps in (100, 1_000, 10_000):
        ms, size, payload = await durable(folder, steps, durability)
        print(
            f"  {steps:>6,} turns: {ms:.3f} ms, {ms - floor:.3f} above a bare append; {size:,.0f} bytes "
            f"on disk a turn ({payload:.0f} of payload, so {size - 2 * payload:,.0f} more than twice that)"
        )


def main() -> None:
    """Measure and print."""
    asyncio.run(measure())


if __name__ == "__main__":
    main()

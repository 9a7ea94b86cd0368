"""Whatever program of tasks, timers, queues and effects is recorded replays alike."""

from __future__ import annotations

import asyncio
import random as real_random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atlas.core.effects import MemoryJournal, RunContext, effect, now_ns, random, uuid
from atlas.core.schema import encode

live = {"calls": 0}


@effect(pure=True)
async def slow(name: str) -> str:
    live["calls"] += 1
    for _ in range(real_random.randrange(4)):
        await asyncio.sleep(real_random.random() * 0.0004)
    if name.endswith("!"):
        raise LookupError(name)
    return f"{name}{real_random.randrange(10)}"


@effect(pure=True)
async def pieces(many: int):
    live["calls"] += 1
    for at in range(many):
        await asyncio.sleep(real_random.random() * 0.0003)
        yield at


class World:
    """What the tasks of one program share."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.left: list[asyncio.Task[None]] = []
        self.lock = asyncio.Lock()
        self.event = asyncio.Event()
        self.gate = asyncio.Semaphore(2)


Program = Any  # a nested tuple: what to do, and its parts


async def do(world: World, program: Program) -> None:
    kind, *parts = program
    log = world.log.append
    match kind:
        case "effect":
            try:
                log(await slow(parts[0]))
            except LookupError as error:
                log(repr(error))
        case "stream":
            many, stop = parts
            stream = pieces(many)
            async for piece in stream:
                log(piece)
                if piece == stop:
                    await stream.aclose()
        case "read":
            log((now_ns(), random().random(), str(uuid()), asyncio.get_running_loop().time()))
        case "sleep":
            await asyncio.sleep(parts[0])
            log("slept")
        case "steps":
            for part in parts[0]:
                await do(world, part)
        case "gather":
            log(
                await asyncio.gather(
                    *(do(world, part) for part in parts[0]), return_exceptions=True
                )
            )
        case "group":
            try:
                async with asyncio.TaskGroup() as group:
                    for part in parts[0]:
                        group.create_task(do(world, part))
                    if parts[1]:
                        await slow("in group")
                        raise KeyError("group")
            except* KeyError:
                log("group failed")
        case "wait":
            tasks = [asyncio.create_task(do(world, part)) for part in parts[0]]
            done, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            log((len(done), len(left)))
            for task in left:
                task.cancel()
        case "completed":
            tasks = [asyncio.create_task(do(world, part)) for part in parts[0]]
            for first in asyncio.as_completed(tasks):
                await first
                log("one")
        case "timeout":
            try:
                async with asyncio.timeout(parts[0]):
                    await do(world, parts[1])
            except TimeoutError:
                log("timeout")
        case "shield":
            task = asyncio.create_task(do(world, parts[0]))
            try:
                await asyncio.wait_for(asyncio.shield(task), 0.0005)
            except TimeoutError:
                log("shielded")
        case "cancel":
            task = asyncio.create_task(do(world, parts[0]))
            await slow("before cancel")
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                log("cancelled")
        case "lock":
            async with world.lock, world.gate:
                await do(world, parts[0])
        case "finally":
            try:
                await do(world, parts[0])
            finally:
                log(await slow("finally"))
        case "queue":
            queue: asyncio.Queue[object] = asyncio.Queue(2)

            async def producer() -> None:
                for at in range(4):
                    await queue.put(await slow(f"item{at}"))

            task = asyncio.create_task(producer())
            for _ in range(4):
                log(await queue.get())
            await task
        case "leave":
            world.left.append(asyncio.create_task(do(world, parts[0])))


delays = st.sampled_from([0.0, 0.0001, 0.0004, 0.001])
leaves = st.one_of(
    st.tuples(st.just("effect"), st.sampled_from(["a", "b", "c!"])),
    st.tuples(st.just("stream"), st.integers(0, 4), st.integers(0, 5)),
    st.tuples(st.just("read")),
    st.tuples(st.just("sleep"), delays),
    st.tuples(st.just("queue")),
)


def nested(inner: Any) -> Any:
    some = st.lists(inner, min_size=1, max_size=4)
    return st.one_of(
        st.tuples(st.sampled_from(["steps", "gather", "wait", "completed"]), some),
        st.tuples(st.just("group"), some, st.booleans()),
        st.tuples(st.just("timeout"), delays, inner),
        st.tuples(st.sampled_from(["shield", "cancel", "finally", "lock", "leave"]), inner),
    )


def locks_once(program: Program, *, held: bool = False) -> bool:
    """Whether no part takes the lock that a part around it holds."""
    is_lock = program[0] == "lock"
    if is_lock and held:
        return False
    parts = [part for part in program[1:] if isinstance(part, tuple)]
    parts += [one for part in program[1:] if isinstance(part, list) for one in part]
    return all(locks_once(part, held=held or is_lock) for part in parts)


programs = st.recursive(leaves, nested, max_leaves=12).filter(locks_once)


async def run(context: RunContext, program: Program) -> list[object]:
    world = World()
    async with context:
        try:
            async with asyncio.timeout(5):
                await do(world, program)
        except KeyError as error:
            world.log.append(repr(error))
    return world.log


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs)
def test_a_recorded_program_replays_alike(program: Program):
    async def check() -> None:
        journal, again = MemoryJournal(), MemoryJournal()
        log = await run(RunContext("r", journal=journal, strict=True), program)
        before = live["calls"]
        replayed = await run(
            RunContext("r", mode="replay", recorded=journal.entries, journal=again), program
        )

        assert repr(replayed) == repr(log)
        assert list(map(encode, again.entries)) == list(map(encode, journal.entries))
        assert live["calls"] == before

    asyncio.run(check())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs, st.integers(0, 100))
def test_a_forked_program_repeats_the_prefix_and_can_be_replayed_itself(
    program: Program, share: int
):
    async def check() -> None:
        journal, forked, again = MemoryJournal(), MemoryJournal(), MemoryJournal()
        await run(RunContext("r", journal=journal), program)
        many = sum(type(entry).__name__ == "EffectDelivered" for entry in journal.entries)
        at = many * share // 100
        fork = RunContext(
            "f", mode="fork", recorded=journal.entries, at=at, journal=forked, rewrite=True
        )
        log = await run(fork, program)
        replayed = await run(
            RunContext("f", mode="replay", recorded=forked.entries, journal=again), program
        )

        assert repr(replayed) == repr(log)
        assert list(map(encode, again.entries)) == list(map(encode, forked.entries))

    asyncio.run(check())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs, st.integers(0, 100))
def test_a_program_that_broke_off_anywhere_resumes_and_replays(program: Program, share: int):
    async def check() -> None:
        journal, again = MemoryJournal(), MemoryJournal()
        await run(RunContext("r", journal=journal), program)
        del journal.entries[1 + (len(journal.entries) - 1) * share // 100 :]
        log = await run(
            RunContext("r", mode="resume", recorded=tuple(journal.entries), journal=journal),
            program,
        )
        replayed = await run(
            RunContext("r", mode="replay", recorded=journal.entries, journal=again), program
        )

        assert repr(replayed) == repr(log)

    asyncio.run(check())

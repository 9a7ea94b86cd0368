"""A run beside other work on its loop: order, what gets in, what is put back."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import itertools
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable

import pytest
import trio

from atlas.core.effects import EffectDelivered, MemoryJournal, RunContext, effect
from atlas.errors import (
    EffectError,
    ReplayDiverged,
    UndeclaredEffectError,
    UndeclaredEffectWarning,
)


@effect(pure=True)
async def echo(text: str) -> str:
    await asyncio.sleep(0)
    return text


@effect
async def write(text: str) -> str:
    """Do something that a run waits to have made safe before."""
    await asyncio.sleep(0)
    return text


WRAPPED = ("call_soon", "call_soon_threadsafe", "call_at", "call_later", "create_task", "time")


async def test_the_loop_is_as_it_was_when_the_last_run_has_ended():
    loop = asyncio.get_running_loop()
    assert not any(name in vars(loop) for name in WRAPPED)
    async with RunContext("a", mode="live"):
        assert all(name in vars(loop) for name in WRAPPED)

    assert not any(name in vars(loop) for name in WRAPPED)


async def test_what_runs_after_the_block_is_outside():
    async with RunContext("a") as run:
        await echo("x")
    await asyncio.sleep(0)
    task = asyncio.create_task(echo("y"))

    assert type(task) is asyncio.Task
    assert await task == "y"
    assert not run.pending


async def test_runs_side_by_side_on_one_loop_keep_apart():
    async def one(name: str) -> tuple[list[object], list[str]]:
        journal = MemoryJournal()
        async with RunContext(name, journal=journal):
            said = await asyncio.gather(*(echo(f"{name}{at}") for at in range(5)))
        return journal.entries, said

    runs = await asyncio.gather(*(one(name) for name in "abc"))

    for (entries, said), name in zip(runs, "abc", strict=True):
        assert said == [f"{name}{at}" for at in range(5)]
        async with RunContext(name, mode="replay", recorded=entries):
            assert await asyncio.gather(*(echo(f"{name}{at}") for at in range(5))) == said


def test_runs_on_loops_in_threads_keep_apart():
    problems = []

    async def one(name: str) -> None:
        journal = MemoryJournal()
        async with RunContext(name, journal=journal):
            said = await asyncio.gather(*(echo(f"{name}{at}") for at in range(50)))
        async with RunContext(name, mode="replay", recorded=journal.entries):
            assert await asyncio.gather(*(echo(f"{name}{at}") for at in range(50))) == said

    def thread(name: str) -> None:
        try:
            asyncio.run(one(name))
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=thread, args=(name,)) for name in "abcd"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert problems == []


async def test_a_run_inside_a_run_is_refused():
    async with RunContext("outer", mode="live"):
        with pytest.raises(EffectError, match="'inner' was opened inside run 'outer'"):
            async with RunContext("inner"):
                pass
        assert await echo("still") == "still"


def test_a_run_on_trio_is_refused():
    async def main() -> None:
        async with RunContext("r"):
            pass

    with pytest.raises(EffectError, match="needs a running loop of asyncio"):
        trio.run(main)


async def test_a_run_in_a_context_that_is_not_its_tasks_own_is_refused():
    class Within:
        """Steps a coroutine in another context, as the lanes of a bus do."""

        def __init__(self, coroutine):
            self.coroutine = coroutine

        def __await__(self):
            context = contextvars.copy_context()
            sent = None
            while True:
                try:
                    sent = yield context.run(self.coroutine.send, sent)
                except StopIteration as end:
                    return end.value

    async def main():
        async with RunContext("r"):
            pass

    with pytest.raises(EffectError, match="not its task's own"):
        await Within(main())
    assert "call_soon" not in vars(asyncio.get_running_loop())


async def test_a_run_left_by_another_task_is_refused():
    run = RunContext("r")

    async def enter():
        await run.__aenter__()

    await asyncio.create_task(enter())
    with pytest.raises(EffectError, match="left by another task"):
        await run.__aexit__(None, None, None)


async def test_the_host_goes_on_while_a_run_works():
    turns = 0
    over = asyncio.Event()

    async def host():
        nonlocal turns
        while not over.is_set():
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(host())
    async with RunContext("r", mode="live") as run:
        for at in range(20):
            await echo(str(at))
    over.set()
    await task

    assert turns >= 20
    assert run.exact


async def test_an_error_in_a_callback_of_the_run_goes_to_the_loops_handler():
    told = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: told.append(context["exception"]))
    async with RunContext("r", mode="live"):
        loop.call_soon(lambda: 1 / 0)
        await echo("x")

    assert [type(error) for error in told] == [ZeroDivisionError]


async def test_a_future_resolved_by_the_host_is_told_once_per_place_and_marks_the_run():
    waiting: list[asyncio.Future[int]] = []
    done = asyncio.Event()

    async def host():
        while not done.is_set():
            for future in waiting:
                if not future.done():
                    future.set_result(1)
            await asyncio.sleep(0)

    task = asyncio.create_task(host())
    with pytest.warns(UndeclaredEffectWarning, match=r"task 0 .*@effect") as told:  # noqa: PT031  the run is what warns
        async with RunContext("r") as run:
            for _ in range(3):
                future = asyncio.get_running_loop().create_future()
                waiting.append(future)
                await future
    done.set()
    await task

    assert len(told) == len(run.warnings) == 1
    assert "test_inner_loop.py:" in run.warnings[0]
    assert not run.exact


class Foreign:
    """A future that a task of the host resolves once somebody waits for it."""

    def __init__(self) -> None:
        self.awaited = False
        self.future = asyncio.get_running_loop().create_future()
        self.host = asyncio.create_task(self.resolve())

    async def resolve(self) -> None:
        while not self.awaited:
            await asyncio.sleep(0)
        self.future.set_result(1)

    async def wait(self) -> None:
        self.awaited = True
        await self.future


async def test_a_strict_run_refuses_a_wake_up_from_outside():
    foreign = Foreign()
    with pytest.raises(UndeclaredEffectError, match="was woken from outside"):
        async with RunContext("r", strict=True):
            await foreign.wait()


async def test_a_replay_refuses_a_wake_up_from_outside():
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await asyncio.sleep(0.002)
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    with pytest.raises((UndeclaredEffectError, ReplayDiverged)):
        async with RunContext("r", mode="replay", recorded=journal.entries):
            await event.wait()


async def test_a_warning_made_an_error_ends_the_run():
    foreign = Foreign()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UndeclaredEffectError):
            async with RunContext("r"):
                await foreign.wait()


async def test_a_thread_is_told_by_what_it_is_to_do_and_works():
    with pytest.warns(UndeclaredEffectWarning, match="'r', time was given to a thread"):
        async with RunContext("r") as run:
            assert await asyncio.to_thread(functools.partial(time.time)) > 0

    assert not run.exact


async def test_a_thread_as_an_effect_is_recorded():
    @effect(pure=True)
    async def count() -> int:
        return await asyncio.to_thread(threading.active_count)

    journal = MemoryJournal()
    async with RunContext("r", journal=journal, strict=True):
        counted = await count()
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await count() == counted


async def test_an_effect_asked_for_in_a_thread_is_refused():
    async with RunContext("r") as run:
        with pytest.warns(UndeclaredEffectWarning), pytest.raises(UndeclaredEffectError):
            await asyncio.to_thread(run.check)


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs POSIX signals")
async def test_a_signal_handler_set_inside_is_told():
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    with pytest.warns(UndeclaredEffectWarning):  # noqa: PT031  the run is what warns
        async with RunContext("r") as run:
            loop.add_signal_handler(signal.SIGUSR1, event.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await event.wait()
            loop.remove_signal_handler(signal.SIGUSR1)

    assert not run.exact


async def test_a_generator_left_open_is_closed_inside_without_being_told():
    closed = []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            closed.append(1)

    async with RunContext("r", strict=True) as run:
        async for _ in numbers():
            break
        gc.collect()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    assert closed == [1]
    assert run.exact


async def test_coroutines_given_to_as_completed_run_in_the_order_given():
    seen = []

    async def one(number: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        seen.append((number, task.get_name()))
        return number

    async with RunContext("r", strict=True) as run:
        kept = [one(number) for number in range(30)]
        shuffled = random.Random(3).sample(kept, 30)
        given = [await first for first in asyncio.as_completed([*shuffled, shuffled[0]])]
        assert asyncio.create_task(one(30)).get_name() == "Task-0.30"

    order = [kept.index(each) for each in shuffled]
    assert run.exact
    assert seen[:30] == [(number, f"Task-0.{at}") for at, number in enumerate(order)]
    assert given == order


async def test_coroutines_of_which_as_completed_has_no_list_are_told_and_tasks_are_not():
    with pytest.warns(UndeclaredEffectWarning, match="as_completed"):  # noqa: PT031  the run is what warns
        async with RunContext("r"):
            for first in asyncio.as_completed({echo("a"), echo("b")}):
                await first
    async with RunContext("r", strict=True) as run:
        for first in asyncio.as_completed({asyncio.create_task(echo(x)) for x in "ab"}):
            await first
        await asyncio.gather(echo("a"), echo("b"))

    assert run.exact


async def test_tasks_left_behind_are_cancelled_in_order():
    ended = []

    async def left(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(await echo(name))

    journal = MemoryJournal()
    tasks: list[asyncio.Task[None]] = []

    async def program() -> None:
        tasks.extend(asyncio.create_task(left(name)) for name in "abc")
        await echo("go")

    async with RunContext("r", journal=journal):
        await program()
    recorded, ended = ended, []
    async with RunContext("r", mode="replay", recorded=journal.entries):
        await program()

    assert sorted(recorded) == ["a", "b", "c"]
    assert ended == recorded


async def test_cancelling_the_main_task_from_outside_is_recorded():
    seen: list[str] = []
    journal = MemoryJournal()

    async def program(**options: object) -> None:
        async with RunContext("r", **options):
            try:
                await asyncio.gather(asyncio.sleep(100), asyncio.Event().wait())
            except asyncio.CancelledError:
                seen.append(await echo("tidy"))
                raise

    task = asyncio.create_task(program(journal=journal))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(program(mode="replay", recorded=journal.entries))

    assert seen == ["tidy", "tidy"]
    assert any(
        isinstance(entry, EffectDelivered) and entry.what == "cancel" for entry in journal.entries
    )


class SlowJournal(MemoryJournal):
    """Takes some turns to make things safe, and tells of one of these times."""

    def __init__(self, tells: int) -> None:
        super().__init__()
        self.reached = asyncio.Event()
        self._tells = tells

    async def commit(self) -> None:
        await super().commit()
        if self.commits == self._tells:
            self.reached.set()
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.mark.parametrize("commits", range(2, 8))
async def test_cancelling_the_main_task_is_recorded_while_something_else_is_made_safe(commits: int):
    seen: list[list[object]] = []

    async def child(name: str) -> list[str]:
        return [await write(f"{name}{at}") for at in range(4)]

    async def program(**options: object) -> None:
        seen.append([])
        async with RunContext("r", **options):
            tasks = [asyncio.create_task(child(name)) for name in "abc"]
            try:
                await asyncio.wait(tasks)
            except asyncio.CancelledError:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                seen[-1] += [await write("tidy"), *(task.cancelled() for task in tasks)]
                raise

    journal = SlowJournal(commits)
    task = asyncio.create_task(program(journal=journal, strict=True))
    await journal.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(program(mode="replay", recorded=journal.entries))

    assert seen[0] == seen[1] == ["tidy", True, True, True]


# -- cancelled from outside at any moment of a commit --


class CancellingJournal(MemoryJournal):
    """Takes some turns to make things safe, and cancels a task at one moment of one of these times."""

    TURNS = 4

    def __init__(self, commit: int, turn: int, *, as_future: bool) -> None:
        super().__init__()
        self.task: asyncio.Task[object] | None = None
        self.reached = False
        self._moment = (commit, turn)
        self._as_future = as_future

    def commit(self) -> Awaitable[object]:
        self.commits += 1
        self._pass(self.commits, -1)
        turns = self._turns(self.commits)
        if not self._as_future:
            return turns
        return asyncio.get_running_loop().create_task(turns, context=contextvars.Context())

    async def _turns(self, commit: int) -> None:
        for turn in range(self.TURNS):
            self._pass(commit, turn)
            await asyncio.sleep(0)

    def _pass(self, commit: int, turn: int) -> None:
        if (commit, turn) == self._moment:
            assert self.task is not None
            self.reached = True
            self.task.cancel()


Log = list[object]


def breaks_off(entry: object) -> bool:
    return isinstance(entry, EffectDelivered) and (entry.effect, entry.what) == ("0", "cancel")


async def two(name: str) -> list[str]:
    return [await write(f"{name}{at}") for at in range(2)]


async def tidying(name: str) -> list[str]:
    try:
        return await two(name)
    except asyncio.CancelledError:
        return [await write(f"tidy {name}")]


async def in_a_row(log: Log) -> None:
    for name in "ab":
        log.append(await write(name))


async def that_tidies(log: Log) -> None:
    try:
        await in_a_row(log)
    finally:
        log.append(await write("tidy"))


async def that_goes_on(log: Log) -> None:
    try:
        await in_a_row(log)
    except asyncio.CancelledError:
        log.append("goes on")
    log.append(await write("c"))


async def shielded(log: Log) -> None:
    task = asyncio.create_task(two("a"))
    try:
        log.append(await asyncio.shield(task))
    except asyncio.CancelledError:
        log.append(["late", *await task])


async def gathered(log: Log) -> None:
    log.append(await asyncio.gather(two("a"), two("b")))


async def gathered_with_errors(log: Log) -> None:
    log.append(repr(await asyncio.gather(two("a"), two("b"), return_exceptions=True)))
    log.append(await write("c"))


async def gathered_twice(log: Log) -> None:
    log.append(await asyncio.gather(tidying("a"), asyncio.gather(tidying("b"), two("c"))))


async def awaited(log: Log) -> None:
    log.append(await asyncio.create_task(tidying("a")))
    log.append(await asyncio.create_task(two("b")))


async def grouped(log: Log) -> None:
    async with asyncio.TaskGroup() as group:
        for name in "ab":
            group.create_task(tidying(name))
    log.append("together")


async def timed(log: Log) -> None:
    log.append(await asyncio.wait_for(write("a"), 60))
    async with asyncio.timeout(60):
        log.append(await write("b"))


@pytest.mark.parametrize("as_future", [False, True])
@pytest.mark.parametrize(
    "program",
    [
        in_a_row,
        that_tidies,
        that_goes_on,
        shielded,
        gathered,
        gathered_with_errors,
        gathered_twice,
        awaited,
        grouped,
        timed,
    ],
)
async def test_a_run_cancelled_at_any_moment_of_any_commit_is_replayed_as_it_was(
    program: Callable[[Log], Awaitable[None]], *, as_future: bool
):
    async def run(log: Log, **options: object) -> bool:
        """Do it, and return whether it came to its end before it was cancelled."""
        try:
            async with RunContext("r", **options):
                try:
                    await program(log)
                except asyncio.CancelledError:
                    log.append("cancelled")
                    raise
        except asyncio.CancelledError:
            return log[-1] != "cancelled"
        return True

    whole: Log = []
    await run(whole)
    commit, moments = 1, 0
    while True:
        for turn in range(-1, CancellingJournal.TURNS):
            journal = CancellingJournal(commit, turn, as_future=as_future)
            log: Log = []
            journal.task = asyncio.create_task(run(log, journal=journal, strict=True))
            done = await journal.task
            if not journal.reached:
                break
            again: Log = []
            copied = MemoryJournal()
            options = {"mode": "replay", "recorded": journal.entries, "journal": copied}
            assert await asyncio.create_task(run(again, **options)) == done
            assert (again, copied.entries) == (log, journal.entries), (commit, turn)
            kept = list(itertools.takewhile(lambda entry: not breaks_off(entry), journal.entries))
            resumed: Log = []
            options = {"mode": "resume", "recorded": kept, "in_doubt": "retry"}
            assert await asyncio.create_task(run(resumed, **options))
            assert resumed == whole, (commit, turn)
            moments += 1
        else:
            commit += 1
            continue
        break
    assert moments > 5 * CancellingJournal.TURNS


async def test_a_timeout_around_a_run_is_recorded_as_a_cancellation():
    journal = MemoryJournal()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            async with RunContext("r", journal=journal, strict=True):
                await asyncio.gather(echo("x"), asyncio.Event().wait())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0

    async def again() -> None:
        async with RunContext("r", mode="replay", recorded=journal.entries):
            await asyncio.gather(echo("x"), asyncio.Event().wait())

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(again())


async def test_a_task_goes_on_as_it_was_after_a_replay_that_diverged():
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await echo("x")
    with pytest.raises(ReplayDiverged):
        async with RunContext("r", mode="replay", recorded=journal.entries):
            await asyncio.gather(echo("y"), asyncio.Event().wait())
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    async with asyncio.timeout(5):
        await asyncio.sleep(0)


async def test_cancelling_a_child_from_outside_is_recorded():
    children: list[asyncio.Task[None]] = []
    journal = MemoryJournal()

    async def program() -> str:
        child = asyncio.create_task(asyncio.Event().wait())
        children.append(child)
        try:
            await child
        except asyncio.CancelledError:
            return await echo("child ended")

    async def host():
        while not children:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        children[0].cancel()

    killer = asyncio.create_task(host())
    async with RunContext("r", journal=journal, strict=True):
        assert await program() == "child ended"
    await killer
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await program() == "child ended"


async def test_cancelling_a_replay_stops_it():
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await asyncio.sleep(0.05)

    async def program():
        async with RunContext("r", mode="replay", recorded=journal.entries, pace=0.001):
            await asyncio.sleep(0.05)

    task = asyncio.create_task(program())
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_clock_of_the_loop_stands_still_between_deliveries():
    loop = asyncio.get_running_loop()
    journal = MemoryJournal()

    async def program() -> list[float]:
        times = [loop.time(), loop.time()]
        await asyncio.sleep(0.002)
        return [*times, loop.time()]

    async with RunContext("r", journal=journal):
        times = await program()
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await program() == times

    assert times[0] == times[1]
    assert times[2] - times[0] >= 0.002


async def test_a_timer_cancelled_in_time_leaves_no_trace():
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        async with asyncio.timeout(60):
            await echo("x")
    whats = [entry.what for entry in journal.entries if isinstance(entry, EffectDelivered)]

    assert whats == ["value"]


async def test_a_run_works_in_debug_mode():
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    journal = MemoryJournal()
    async with RunContext("r", journal=journal, strict=True):
        said = await asyncio.gather(echo("a"), echo("b"), asyncio.sleep(0.001))
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await asyncio.gather(echo("a"), echo("b"), asyncio.sleep(0.001)) == said


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with 3.12")
async def test_a_run_works_with_eager_tasks():
    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)
    journal = MemoryJournal()

    async def program() -> list[str]:
        async def one(text: str) -> str:
            return await echo(await echo(text))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(text)) for text in "abc"]
        return [task.result() for task in tasks]

    async with RunContext("r", journal=journal, strict=True):
        said = await program()
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await program() == said


async def test_a_context_given_to_a_task_takes_it_out_of_the_run():
    async def main() -> str:
        return type(asyncio.current_task()).__name__

    async with RunContext("r"):
        inside = await asyncio.create_task(main())
        loop = asyncio.get_running_loop()
        outside = loop.create_task(main(), context=contextvars.Context())

    assert inside == "InnerTask"
    assert await outside == "Task"


def test_an_interrupt_in_the_middle_leaves_the_loop_usable():
    async def main():
        async with RunContext("r"):
            asyncio.get_running_loop().call_soon(interrupt)
            await echo("x")

    def interrupt():
        raise KeyboardInterrupt

    loop = asyncio.new_event_loop()
    try:
        task = loop.create_task(main())
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        loop.run_until_complete(task)
    finally:
        loop.close()


def test_a_loop_that_ends_with_a_run_open_ends():
    async def forgotten():
        async with RunContext("r", mode="live"):
            await asyncio.Event().wait()

    async def main():
        task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    assert asyncio.run(main()).cancelled()

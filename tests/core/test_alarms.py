"""Alarms: many deadlines, one timer."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from atlas.core.alarms import Patience, set_alarm


async def test_alarms_ring_in_the_order_in_which_they_are_due() -> None:
    rung: list[str] = []
    over = asyncio.Event()
    set_alarm(0.03, over.set)
    set_alarm(0.02, lambda: rung.append("second"))
    set_alarm(0.01, lambda: rung.append("first"))
    set_alarm(0.015, lambda: rung.append("never")).cancel()
    await over.wait()

    assert rung == ["first", "second"]


async def test_one_that_raises_does_not_stop_the_others() -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    over = asyncio.Event()

    def fails() -> None:
        raise ValueError("no")

    set_alarm(0.0, fails)
    set_alarm(0.0, over.set)
    await over.wait()

    assert len(told) == 1


async def test_cancelled_alarms_are_forgotten_and_any_number_shares_one_timer() -> None:
    loop = asyncio.get_running_loop()

    class Thing:
        def ring(self) -> None: ...

    # The loop's own heap of timers has no public face.
    before = len([each for each in loop._scheduled if not each.cancelled()])
    kept = set_alarm(60, Thing().ring)
    refs = []
    for _ in range(10_000):
        thing = Thing()
        refs.append(weakref.ref(thing))
        set_alarm(60, thing.ring).cancel()
    del thing
    gc.collect()

    assert not any(each() for each in refs)
    assert len(kept._alarms._heap) < 200
    assert len([each for each in loop._scheduled if not each.cancelled()]) <= before + 1
    kept.cancel()


def test_each_loop_has_its_own() -> None:
    async def waits() -> str:
        rung = asyncio.Event()
        set_alarm(0.01, rung.set)
        set_alarm(60, rung.clear)
        await rung.wait()
        return "rung"

    assert [asyncio.run(waits()) for _ in range(3)] == ["rung"] * 3


async def test_patience_ends_what_takes_too_long() -> None:
    with pytest.raises(TimeoutError):
        with Patience(0.01):
            await asyncio.sleep(60)

    with Patience(60):
        pass


async def test_patience_leaves_a_cancellation_by_others_alone() -> None:
    async def patient() -> None:
        with Patience(60):
            await asyncio.sleep(60)

    task = asyncio.create_task(patient())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_at_the_same_moment_wins() -> None:
    async def patient() -> None:
        with Patience(0.01):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                raise

    task = asyncio.create_task(patient())
    with pytest.raises(asyncio.CancelledError):
        await task

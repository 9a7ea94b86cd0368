"""Going on after a crash, and going on otherwise: resumed runs, doubt, forks."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from atlas.core.effects import (
    EffectDelivered,
    EffectNoted,
    EffectStarted,
    MemoryJournal,
    RunContext,
    RunContinued,
    Skip,
    current_effect,
    current_run,
    effect,
    effective,
    random,
    uuid,
)
from atlas.errors import InDoubtError, ReplayDiverged

calls: list[str] = []
keys: dict[str, list[str]] = {}


def called(what: str) -> None:
    calls.append(what)
    current = current_effect()
    assert current is not None
    keys.setdefault(what, []).append(current.idempotency_key)


@effect(external=True)
async def pay(what: str) -> str:
    called(what)
    await asyncio.sleep(0)
    return f"paid {what}"


@effect(idempotent=True)
async def put(what: str) -> str:
    called(what)
    return f"put {what}"


@effect(pure=True)
async def pieces(what: str):
    called(what)
    for at in range(4):
        await asyncio.sleep(0)
        yield f"{what}{at}"


@pytest.fixture(autouse=True)
def _fresh():
    calls.clear()
    keys.clear()


async def program() -> list[object]:
    async def branch(name: str) -> list[str]:
        return [await pay(f"{name}1"), await put(f"{name}2"), await pay(f"{name}3")]

    done = await asyncio.gather(branch("a"), branch("b"))
    text = [piece async for piece in pieces("s")]
    return [done, text, await pay("last")]


EXPECTED = [
    [["paid a1", "put a2", "paid a3"], ["paid b1", "put b2", "paid b3"]],
    ["s0", "s1", "s2", "s3"],
    "paid last",
]


async def record() -> MemoryJournal:
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        assert await program() == EXPECTED
    return journal


async def test_a_run_broken_off_anywhere_does_nothing_finished_twice():
    whole = (await record()).entries
    for end in range(1, len(whole) + 1):
        journal = MemoryJournal()
        journal.entries = whole[:end]
        kept = list(journal.entries)
        finished = {
            entry.effect
            for entry in kept
            if isinstance(entry, EffectDelivered) and entry.what in ("value", "end")
        }
        names = {
            entry.effect: entry.rest.split('"')[3]
            for entry in whole
            if isinstance(entry, EffectStarted)
        }
        calls.clear()
        async with RunContext("r", mode="resume", recorded=kept, journal=journal, in_doubt="retry"):
            assert await program() == EXPECTED

        assert not {names[done] for done in finished} & set(calls)
        assert len(calls) == len(set(calls))
        async with RunContext("r", mode="replay", recorded=journal.entries):
            assert await program() == EXPECTED


async def test_a_resumed_run_can_break_off_and_be_resumed_again():
    journal = await record()
    for _ in range(5):
        del journal.entries[-3:]
        before = list(journal.entries)
        async with RunContext(
            "r", mode="resume", recorded=before, journal=journal, in_doubt="retry"
        ):
            assert await program() == EXPECTED

    assert sum(isinstance(entry, RunContinued) for entry in journal.entries) > 1
    assert effective(effective(journal.entries)) == effective(journal.entries)
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await program() == EXPECTED


async def broken_off_in(what: str) -> MemoryJournal:
    journal = await record()
    at = next(
        at
        for at, entry in enumerate(journal.entries)
        if isinstance(entry, EffectStarted) and what in entry.rest
    )
    del journal.entries[at + 1 :]
    calls.clear()
    return journal


async def resumed(journal: MemoryJournal, **options: object) -> list[object]:
    async with RunContext(
        "r", mode="resume", recorded=list(journal.entries), journal=journal, **options
    ):
        return await program()


async def test_an_external_effect_in_doubt_is_never_performed_silently():
    journal = await broken_off_in("last")
    with pytest.raises(InDoubtError, match="nobody knows whether it happened") as caught:
        await resumed(journal)

    assert "last" not in calls
    assert caught.value.effect == "0:1"


async def test_doubt_is_settled_by_a_second_try():
    assert await resumed(await broken_off_in("last"), in_doubt="retry") == EXPECTED
    assert calls == ["last"]


async def test_doubt_is_settled_by_a_given_answer():
    journal = await broken_off_in("last")
    done = await resumed(journal, in_doubt=Skip("paid by hand"))

    assert done[-1] == "paid by hand"
    assert calls == []
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert (await program())[-1] == "paid by hand"


async def test_doubt_is_settled_by_asking():
    asked = []

    async def ask(call):
        asked.append((call.id, call.kind))
        await asyncio.sleep(0)
        return Skip("asked")

    journal = await broken_off_in("last")
    done = await resumed(journal, in_doubt=ask)

    assert done[-1] == "asked"
    assert asked == [("0:1", "pay")]
    assert any(isinstance(e, EffectNoted) and e.what == "decision" for e in journal.entries)


async def test_an_idempotent_effect_is_performed_again_with_the_same_key():
    journal = await broken_off_in("a2")
    before = list(keys["a2"])
    assert await resumed(journal, in_doubt="retry") == EXPECTED

    assert keys["a2"] == before * 2
    everything = [key for made in keys.values() for key in set(made)]
    assert len(set(everything)) == len(everything)


async def test_chance_goes_on_where_it_was_in_a_resumed_run():
    async def chances() -> list[object]:
        return [random().random(), await put("x"), random().random(), uuid()]

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        given = await chances()
    del journal.entries[-1:]
    async with RunContext("r", mode="resume", recorded=list(journal.entries), journal=journal):
        assert await chances() == given


async def test_a_fork_goes_its_own_way_after_the_delivery_it_was_made_at():
    async def talk(prompt: str) -> list[object]:
        first = await put("hello")
        second = await put(f"{first} {prompt}")
        return [second, random().random(), uuid()]

    journal, forked = MemoryJournal(), MemoryJournal()
    async with RunContext("r", journal=journal):
        original = await talk("one")
    calls.clear()
    async with RunContext(
        "f", mode="fork", recorded=journal.entries, at=1, journal=forked, rewrite=True
    ):
        other = await talk("two")
    async with RunContext("f", mode="replay", recorded=forked.entries):
        assert await talk("two") == other

    assert calls == ["put hello two"]
    assert other[0] == "put put hello two"
    assert not {str(each) for each in original} & {str(each) for each in other}


async def test_a_run_knows_its_legs_in_a_replay_as_it_did():
    async def legs() -> list[int]:
        seen = [current_run().leg]
        for word in "ab":
            await put(word)
            seen.append(current_run().leg)
        return seen

    journal, forked = MemoryJournal(), MemoryJournal()
    async with RunContext("r", journal=journal):
        assert await legs() == [1, 1, 1]
    async with RunContext(
        "f", mode="fork", recorded=journal.entries, at=1, journal=forked, rewrite=True
    ):
        assert await legs() == [1, 2, 2]
    async with RunContext("f", mode="replay", recorded=forked.entries):
        assert await legs() == [1, 2, 2]
    del journal.entries[-1:]
    async with RunContext("r", mode="resume", recorded=list(journal.entries), journal=journal):
        assert await legs() == [1, 1, 1]
    async with RunContext("r", mode="replay", recorded=effective(journal.entries)):
        assert await legs() == [1, 1, 1]


async def test_a_fork_begins_anew_what_was_under_way():
    journal = await record()
    calls.clear()
    async with RunContext("f", mode="fork", recorded=journal.entries, at=0):
        assert await program() == EXPECTED
    assert len(calls) == 8

    calls.clear()
    many = sum(isinstance(entry, EffectDelivered) for entry in journal.entries)
    async with RunContext("f", mode="fork", recorded=journal.entries, at=many):
        assert await program() == EXPECTED
    assert calls == []


async def test_a_fork_in_the_middle_of_a_stream_begins_the_stream_anew():
    journal = await record()
    seen = [entry for entry in journal.entries if isinstance(entry, EffectDelivered)]
    at = next(at for at, entry in enumerate(seen) if entry.what == "chunk") + 2
    calls.clear()
    async with RunContext("f", mode="fork", recorded=journal.entries, at=at):
        assert await program() == EXPECTED

    assert calls == ["s", "last"]


async def leaving() -> list[str]:
    async for piece in endless("s"):
        first = piece
        break
    return [first, await put("a"), await put("b")]


@effect(pure=True)
async def endless(what: str):
    called(what)
    for at in itertools.count():
        await asyncio.sleep(0)
        yield f"{what}{at}"


async def test_a_stream_left_in_its_middle_is_stopped_and_holds_nobody_up():
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        given = await leaving()
    whats = [entry.what for entry in journal.entries if isinstance(entry, EffectNoted)]
    assert whats == ["left"]

    calls.clear()
    async with RunContext("r", mode="replay", recorded=journal.entries):
        assert await leaving() == given
    many = sum(isinstance(entry, EffectDelivered) for entry in journal.entries)
    async with RunContext("f", mode="fork", recorded=journal.entries, at=many - 1):
        assert await leaving() == given
    assert calls == ["b"]

    calls.clear()
    last = max(n for n, entry in enumerate(journal.entries) if isinstance(entry, EffectDelivered))
    del journal.entries[last:]
    async with RunContext("r", mode="resume", recorded=list(journal.entries), journal=journal):
        assert await leaving() == given
    assert calls == ["b"]


async def test_a_fork_of_another_program_diverges_before_it_goes_live():
    journal = await record()
    calls.clear()
    with pytest.raises(ReplayDiverged):
        async with RunContext("f", mode="fork", recorded=journal.entries, at=3):
            await put("something else")
    assert calls == []


async def test_timers_under_way_go_on_in_a_resumed_run():
    async def sleepy() -> str:
        sleep = asyncio.create_task(asyncio.sleep(0.01))
        said = await put("x")
        await sleep
        return said

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await sleepy()
    assert journal.entries.pop().what == "timer"
    async with RunContext("r", mode="resume", recorded=list(journal.entries), journal=journal):
        assert await sleepy() == "put x"


async def test_what_a_crashed_run_did_and_is_not_asked_for_again_is_told():
    async def unsure(sure: bool) -> None:
        async for _ in pieces("s"):
            pass
        if sure:
            await pay("x")

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        await unsure(sure=True)
    # as if the crash had lost the end of the stream, which is not committed piece by piece
    ends = [e for e in journal.entries if isinstance(e, EffectDelivered) and e.what == "end"]
    journal.entries.remove(ends[0])
    calls.clear()
    async with RunContext("r", mode="resume", recorded=journal.entries) as run:
        await unsure(sure=False)

    assert calls == ["s"]
    assert len(run.warnings) == 1
    assert "'0:1' (pay)" in run.warnings[0]


async def test_what_finished_is_kept_through_several_crashes():
    paid = asyncio.Event()

    @effect(pure=True)
    async def slow_pieces():
        yield 1
        await paid.wait()
        yield 2

    @effect(external=True)
    async def pay_once() -> str:
        called("once")
        return "paid"

    async def both() -> list[object]:
        async def read() -> list[int]:
            got = []
            async for piece in slow_pieces():
                got.append(piece)
                if piece == 1:
                    seen.set()
            return got

        async def buy() -> str:
            await seen.wait()
            done = await pay_once()
            paid.set()
            return done

        seen = asyncio.Event()
        return list(await asyncio.gather(read(), buy()))

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        assert await both() == [[1, 2], "paid"]
    at = next(
        at
        for at, entry in enumerate(journal.entries)
        if isinstance(entry, EffectDelivered) and entry.value == '"paid"'
    )
    del journal.entries[at + 1 :]
    for _ in range(3):
        # each try breaks off right after it has gone live
        again = MemoryJournal()
        async with RunContext("r", mode="resume", recorded=journal.entries, journal=again):
            assert await both() == [[1, 2], "paid"]
        journal.entries.append(again.entries[0])

    assert isinstance(journal.entries[-1], RunContinued)
    assert calls == ["once"]

"""Effects inside and outside of runs: requests, results, errors, streams, clock and chance."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import enum
import gc
import uuid as real_uuid
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas import Event, message, value
from atlas.core.effect_layers import Retry
from atlas.core.effects import (
    REDACTED,
    Effect,
    EffectCancelled,
    EffectDelivered,
    EffectNoted,
    EffectStarted,
    Entry,
    MemoryJournal,
    RunContext,
    current_effect,
    current_run,
    effect,
    monotonic,
    now,
    now_ns,
    perform,
    random,
    rebuild_requests,
    stream,
    uuid,
)
from atlas.core.effects.codec import error_from, error_text, from_text, to_text
from atlas.core.effects.entries import RequestStore
from atlas.core.schema import encode
from atlas.errors import (
    DeadlineExceededError,
    EffectError,
    EffectFailedError,
    ReplayDiverged,
    VersionConflictError,
)
from atlas.typing import SECRET


@message("effects_test.happened")
class Happened(Event):
    what: str
    many: tuple[int, ...] = ()


@value("effects_test_point")
class Point:
    x: int
    y: int


@dataclasses.dataclass(frozen=True)
class Login:
    user: str
    key: Annotated[str, SECRET]


@value("effects_test_inner")
class Inner:
    key: Annotated[str, SECRET]


class Colour(enum.Enum):
    RED = "red"


@effect(pure=True)
async def take_turns() -> None:
    """Let everything outside of the run do all it can do without waiting."""
    for _ in range(200):
        await asyncio.sleep(0)


VALUES = [
    None,
    True,
    3,
    2.5,
    float("inf"),
    "text \ud800",
    [1, [2]],
    (1, (2, "x")),
    {"b": 1, "a": 2},
    {1: "x", (2, 3): "y"},
    {"$tuple": 1},
    {1, 2},
    frozenset({"a"}),
    b"\x00\xff",
    dt.datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=dt.UTC),
    dt.date(2026, 1, 2),
    dt.time(1, 2),
    dt.timedelta(days=-1, microseconds=3),
    Decimal("1.10"),
    real_uuid.UUID(int=5),
    PurePosixPath("/a/b"),
    Happened("x", (1, 2)),
    Point(1, 2),
    Login("u", "k"),
    Colour.RED,
]


async def recorded(program):
    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        given = await program()
    return journal.entries, given


async def replayed(entries, program):
    async with RunContext("r", mode="replay", recorded=entries):
        return await program()


@pytest.mark.parametrize("one", VALUES, ids=repr)
def test_values_come_back_as_they_were(one):
    back = from_text(to_text(one))

    assert back == one
    assert type(back) is type(one) or isinstance(one, PurePosixPath)
    assert list(back) == list(one) if isinstance(one, dict) else True


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.text(), inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["$tuple", "$object", "$x"]), inner, max_size=1)
    ),
)


@given(json_like)
def test_any_json_like_value_comes_back(one):
    assert from_text(to_text(one)) == one


async def test_every_kind_of_value_is_replayed():
    @effect(pure=True)
    async def give(at: int) -> object:
        return values[at] if current_run() is None else None

    async def program():
        return [await give(at) for at in range(len(values))]

    values = [one for one in VALUES if not isinstance(one, Login)]  # which holds a secret
    entries, given = await recorded(program)

    assert given == values
    assert await replayed(entries, program) == values


class Unwritable:
    pass


async def test_what_has_no_json_form_is_refused_by_name():
    @effect
    async def take(thing: object) -> object:
        return Unwritable()

    async with RunContext("r"):
        with pytest.raises(EffectError, match=r"'take'.*thing\[1\] is a .*Unwritable"):
            await take([1, Unwritable()])
        with pytest.raises(EffectError, match="'take' gave .*cannot be recorded"):
            await take(1)


async def test_outside_of_runs_an_effect_is_just_called():
    @effect
    async def take(thing: object) -> object:
        return thing

    @effect
    def plain(thing: object) -> object:
        return thing

    @effect
    async def many(thing: object):
        yield thing

    it = Unwritable()

    assert await take(it) is it
    assert plain(it) is it
    assert [piece async for piece in many(it)] == [it]


async def test_a_result_is_a_copy():
    kept = {"a": [1]}

    @effect(pure=True)
    async def give() -> dict[str, list[int]]:
        return kept

    async with RunContext("r"):
        given = await give()
        given["a"].append(2)

    assert kept == {"a": [1]}


class OwnError(Exception):
    def __init__(self, text: str, *, code: int) -> None:
        super().__init__(text)
        self.code = code


class OddError(Exception):
    def __init__(self) -> None:
        super().__init__("odd")
        self.thing = object()


ERRORS = [
    ValueError("x", 1),
    KeyError("k"),
    FileNotFoundError(2, "no", "file"),
    TimeoutError(),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    OwnError("own", code=5),
    VersionConflictError("text", expected=1, actual=2),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_come_back_as_they_were(error):
    back = error_from(error_text(error))

    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    assert vars(back) == vars(error)


class OwnGroup(ExceptionGroup):
    pass


@pytest.mark.parametrize("kind", [ExceptionGroup, OwnGroup])
async def test_a_group_of_errors_comes_back_with_those_in_it(kind: type[ExceptionGroup]):
    @effect(redact=("key",))
    async def fail(key: str) -> None:
        inner = ExceptionGroup("inner", [KeyError("k"), FileNotFoundError(2, "no", "file")])
        raise kind("several", [OwnError(f"own {key}", code=5), inner])

    async def program() -> list[str]:
        seen = []
        try:
            await fail(SECRETS[0])
        except* OwnError as group:
            seen.append(repr(group.exceptions[0].code))
        except* OSError as group:
            seen.append(repr(group))
        except* KeyError as group:
            seen.append(f"{group!r} {type(group)}")
        return seen

    entries, seen = await recorded(program)

    assert len(seen) == 3
    assert SECRETS[0] not in b"".join(map(encode, entries)).decode()
    assert await replayed(entries, program) == seen


async def test_an_error_that_cannot_be_made_again_keeps_its_name_also_while_recording():
    @effect
    async def fail() -> None:
        raise OddError

    async def program():
        with pytest.raises(EffectFailedError, match="OddError: odd") as caught:
            await fail()
        return caught.value.type

    entries, name = await recorded(program)

    assert name.endswith("OddError")
    assert await replayed(entries, program) == name


async def test_an_error_keeps_its_cause_while_recording():
    @effect
    def fail() -> None:
        raise DeadlineExceededError("late", provider="p") if False else ValueError("late")

    async with RunContext("r"):
        with pytest.raises(ValueError, match="late") as caught:
            fail()

    assert isinstance(caught.value.__cause__, ValueError)


SECRETS = ("sk-123456789", "hunter2-secret")


async def test_secrets_do_not_reach_the_journal():
    @effect(redact=("api_key",))
    async def login(api_key: str, nested: dict[str, str], who: Login) -> str:
        raise ValueError(f"{api_key} was refused")

    async def program(key: str = SECRETS[0]):
        with pytest.raises(ValueError, match="was refused") as caught:
            await login(key, {"api_key": key, "x": "y"}, Login("me", SECRETS[1]))
        return str(caught.value)

    entries, text = await recorded(program)
    written = b"".join(map(encode, entries)).decode()

    assert not any(secret in written or secret in text for secret in SECRETS)
    assert REDACTED in written
    assert await replayed(entries, lambda: program("sk-another-key")) == text


@value("effects_test_account")
class Account:
    name: str
    login: Inner


@pytest.mark.parametrize(
    "secret", ["hush-hush", b"hush\xff\xfe-hush", 31415926, PurePosixPath("/keys/hush")]
)
async def test_what_is_hidden_is_not_quoted_anywhere_in_the_recording(secret):
    @effect(redact=("key",))
    async def ask(key: object, url: str, fails: bool) -> dict[str, object]:
        if fails:
            raise LookupError(f"{key!r} is of no use, nor {key}", {"key": [key]})
        return {"asked": url, f"{key}": f"with {key}", "list": [str(key)]}

    @effect(redact=("key",))
    async def tell(key: object):
        yield f"the key is {key}"

    async def program() -> object:
        given: list[object] = [await ask(secret, f"https://x/?key={secret}", fails=False)]
        with pytest.raises(LookupError):
            await ask(secret, "x", fails=True)
        return [*given, *[piece async for piece in tell(secret)]]

    entries, given = await recorded(program)
    written = repr(entries)

    assert await replayed(entries, program) == given
    for text in ("hush", r"\xff\xfe", "aHVzaP/", "31415926"):
        assert text not in written


async def test_names_in_redact_are_hidden_in_results_from_the_run_too():
    @effect(redact=("token", "key"))
    async def login(user: str) -> dict[str, object]:
        return {"token": SECRETS[0], "deep": [{"token": [SECRETS[1]]}], "who": Login(user, "k-123")}

    @effect(redact=("token",))
    async def pieces():
        yield {"token": SECRETS[0]}
        raise LookupError(f"{SECRETS[0]} is of no use")

    @effect(redact=("token",))
    def look() -> dict[str, str]:
        return {"token": SECRETS[0]}

    async def program():
        given = [await login("me"), look()]
        with pytest.raises(LookupError, match="<redacted> is of no use"):
            async for piece in pieces():
                given.append(piece)
        return given

    entries, given = await recorded(program)
    written = b"".join(map(encode, entries)).decode()

    assert not any(secret in written for secret in (*SECRETS, "k-123"))
    assert given == [
        {"token": REDACTED, "deep": [{"token": REDACTED}], "who": Login("me", REDACTED)},
        {"token": REDACTED},
        {"token": REDACTED},
    ]
    assert await replayed(entries, program) == given


@pytest.mark.parametrize(
    "result",
    [Login("me", SECRETS[0]), [{"who": Login("me", SECRETS[0])}], Account("a", Inner(SECRETS[0]))],
)
async def test_a_secret_in_a_result_is_refused_and_not_written(result):
    @effect
    async def login() -> object:
        return result

    async def program():
        with pytest.raises(EffectError, match=r"key is marked SECRET.*`redact`") as caught:
            await login()
        return str(caught.value)

    entries, text = await recorded(program)

    assert SECRETS[0] not in b"".join(map(encode, entries)).decode() + text
    assert await replayed(entries, program) == text


async def test_secrets_of_the_request_do_not_show_in_errors_nor_in_notes():
    @effect(pure=True, retry=Retry(2, wait=0))
    async def login(who: object) -> str:
        error = PermissionError(f"{SECRETS[0]} was refused")
        error.key = {"given": SECRETS[0], "who": who}
        raise error

    async def program():
        with pytest.raises(PermissionError, match="<redacted> was refused"):
            await login(Account("a", Inner(SECRETS[0])))

    entries, _ = await recorded(program)
    written = b"".join(map(encode, entries)).decode()

    assert SECRETS[0] not in written
    assert "attempt 1 of 2 failed" in written


async def test_what_is_hidden_does_not_spoil_the_form_of_an_error():
    @effect(redact=("password",))
    async def login(password: str) -> None:
        raise ValueError(f"{password} is too short")

    async def program():
        for word in ("type", "text", "args", "builtins"):
            with pytest.raises(ValueError, match="<redacted> is too short"):
                await login(word)

    entries, _ = await recorded(program)
    await replayed(entries, program)


async def test_an_effect_that_fails_when_nobody_waits_any_more_is_noted_and_no_noise():
    told = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, about: told.append(about))

    @effect(pure=True)
    async def fail_late(how: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError(how)

    journal = MemoryJournal()
    async with RunContext("r", journal=journal):
        left = asyncio.create_task(fail_late("left"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                await fail_late("in time")
    with contextlib.suppress(RuntimeError):
        async with RunContext("r", journal=journal):
            again = asyncio.create_task(fail_late("aborted"))
            await take_turns()
            raise RuntimeError
    del left, again
    gc.collect()
    notes = [entry.text for entry in journal.entries if isinstance(entry, EffectNoted)]

    assert told == []
    assert [how for how in ("in time", "left", "aborted") if how in "".join(notes)] == [
        "in time",
        "left",
        "aborted",
    ]


async def test_an_effect_that_fails_after_an_abandoned_run_is_told(caplog):
    told = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, about: told.append(about))

    class Closed(MemoryJournal):
        def write(self, entry: Entry) -> None:
            if isinstance(entry, EffectNoted):
                raise OSError("closed")
            super().write(entry)

    @effect(pure=True)
    async def fail_late() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise LookupError("too late")

    async def enter() -> None:
        run = RunContext("r", journal=Closed())
        await run.__aenter__()
        left = asyncio.create_task(fail_late())
        await take_turns()
        await run.__aexit__(GeneratorExit, GeneratorExit(), None)
        left.cancel()

    await asyncio.create_task(enter())
    for _ in range(5):
        await asyncio.sleep(0)
    gc.collect()

    assert "failed after run 'r' was over" in caplog.text
    assert "too late" in caplog.text
    assert told == []


async def test_streams_are_recorded_piece_by_piece():
    @effect(pure=True)
    async def count(to: int):
        for at in range(to):
            await asyncio.sleep(0)
            yield at
        if to == 3:
            raise LookupError("three")

    async def program():
        first = [piece async for piece in count(2)]
        with pytest.raises(LookupError, match="three"):
            async for piece in count(3):
                first.append(piece)
        return first

    entries, given = await recorded(program)
    whats = [entry.what for entry in entries if isinstance(entry, EffectDelivered)]

    assert given == [0, 1, 0, 1, 2]
    # the last piece comes with the end: both were there at once
    assert whats == ["chunk", "end", "chunk", "chunk", "chunk", "error"]
    assert await replayed(entries, program) == given


async def test_a_stream_left_early_stops_its_function():
    stopped = asyncio.Event()

    @effect(pure=True)
    async def count():
        try:
            for at in range(1000):
                await asyncio.sleep(0)
                yield at
        finally:
            stopped.set()

    async def program():
        pieces = count()
        async for piece in pieces:
            if piece == 2:
                await pieces.aclose()
        return piece

    entries, _ = await recorded(program)

    assert stopped.is_set()
    assert any(isinstance(entry, EffectCancelled) for entry in entries)
    assert await replayed(entries, program) == 2


async def test_a_slow_reader_holds_a_stream_back():
    made = 0

    @effect(pure=True)
    async def count():
        nonlocal made
        for at in range(10_000):
            made += 1
            yield at

    async with RunContext("r", mode="live"):
        pieces = count()
        await anext(pieces)
        await take_turns()
        assert made <= 70
        await pieces.aclose()


async def test_a_cancelled_effect_is_cancelled_outside():
    ended = []

    @effect
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)

    async def program():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await hang()

    entries, _ = await recorded(program)
    await replayed(entries, program)

    assert ended == [1]


async def test_plain_functions_are_recorded_in_place():
    calls = []

    @effect("config")
    def read_config(name: str, *, default: int = 3) -> dict[str, object]:
        calls.append(name)
        if name == "bad":
            raise KeyError(name)
        return {"name": name, "default": default}

    async def program():
        given = [read_config("a"), read_config("b", default=4)]
        with pytest.raises(KeyError):
            read_config("bad")
        return given

    entries, given = await recorded(program)

    assert await replayed(entries, program) == given
    assert calls == ["a", "b", "bad"]


def test_a_plain_function_cannot_promise_what_it_cannot_keep():
    with pytest.raises(EffectError, match="Make it `async`"):
        effect(external=True)(lambda: None)
    with pytest.raises(EffectError, match="not both"):
        effect(external=True, pure=True)


async def test_clock_and_chance_are_repeated():
    async def program():
        return [now(), now_ns(), monotonic(), random().random(), uuid(), random().random()]

    entries, given = await recorded(program)

    assert await replayed(entries, program) == given
    assert given[0].tzinfo is dt.UTC
    assert given[4].version == 4
    assert (await recorded(program))[1] != given


def test_clock_and_chance_work_outside_of_runs():
    assert now().year >= 2024
    assert now_ns() < now_ns() + 1
    assert monotonic() <= monotonic()
    assert 0 <= random().random() < 1
    assert uuid() != uuid()


async def test_an_effect_inside_an_effect_is_part_of_it():
    @effect(pure=True)
    async def inner() -> int:
        return 1

    @effect(pure=True)
    async def outer() -> int:
        assert current_run() is None
        assert current_effect() is not None
        return await inner() + now_ns() * 0

    entries, _ = await recorded(outer)

    assert [entry.kind for entry in entries if isinstance(entry, EffectStarted)] == ["outer"]


async def test_an_effect_sees_the_callers_context():
    import contextvars

    name = contextvars.ContextVar("name", default="")

    @effect(pure=True)
    async def read() -> str:
        return name.get()

    async with RunContext("r"):
        name.set("caller")
        assert await read() == "caller"


async def test_methods_leave_self_out_of_the_request():
    class Client:
        @effect(ignore=("session",))
        async def get(self, url: str, session: object = None) -> str:
            return url

    entries, _ = await recorded(lambda: Client().get("u", session=object()))

    assert rebuild_requests(entries, "0:0") == '{"url":"u"}'


async def test_each_of_several_conversations_is_told_as_what_is_new_in_it():
    @effect(pure=True)
    async def ask(said: list[str]) -> int:
        return len(said)

    async def program() -> None:
        talks = {name: [f"{name}, " * 30] for name in ("Ann", "Ben", "Cid")}
        for turn in range(6):
            for name, talk in talks.items():
                talk.append(f"{name} says {turn}. " * 3)
                await ask(talk)

    entries, _ = await recorded(program)

    started = [entry for entry in entries if isinstance(entry, EffectStarted)]
    assert [entry.base for entry in started] == ["", "", "", *(e.effect for e in started[:-3])]
    assert rebuild_requests(entries, started[-1].effect).count("Cid says 0") == 3


BEGINNINGS = ["a" * 63, "a" * 64, "a" * 70, "b" * 70, "a" * 40 + "b" * 40]


@given(st.lists(st.tuples(st.sampled_from(BEGINNINGS), st.text("xy", max_size=90)), max_size=30))
def test_a_request_is_an_earlier_one_as_far_as_they_share_it_and_the_rest(parts):
    store = RequestStore()
    asked: dict[str, str] = {}

    for number, (beginning, end) in enumerate(parts):
        text = asked[str(number)] = beginning + end
        base, shared, rest = store.delta(str(number), "kind", text)

        assert (asked[base][:shared] if base else "") + rest == text
        assert len(asked.get(base, "")) >= shared >= (64 if base else 0)


async def test_arguments_by_position_and_by_name_are_one_request():
    @effect(pure=True)
    async def take(a: int, b: int = 2, *more: int, **options: int) -> int:
        return a

    entries, _ = await recorded(lambda: take(1))

    assert await replayed(entries, lambda: take(a=1, b=2)) == 1
    with pytest.raises(ReplayDiverged):
        await replayed(entries, lambda: take(1, 3))


async def test_perform_and_stream_take_effects_as_values():
    async def add(one: int, other: int) -> int:
        return one + other

    async def spell(word: str):
        for letter in word:
            yield letter

    async def program():
        total = await perform(Effect("add", {"one": 1, "other": 2}), add, 1, 2)
        return [total, [x async for x in stream(Effect("spell", "ab"), spell, "ab")]]

    entries, given = await recorded(program)

    assert given == [3, ["a", "b"]]
    assert await replayed(entries, program) == given


async def test_growing_requests_are_stored_once():
    @effect(pure=True)
    async def chat(messages: list[str]) -> str:
        return f"answer {len(messages)} " + "x" * 50

    async def program():
        async def one(name: str) -> None:
            messages = [f"{name} asks something"]
            for turn in range(20):
                messages += [await chat(messages), f"{name} asks again {turn}"]

        await asyncio.gather(*(one(name) for name in "abcd"))

    entries, _ = await recorded(program)
    started = [entry for entry in entries if isinstance(entry, EffectStarted)]
    stored = sum(len(entry.rest) for entry in started)
    whole = [rebuild_requests(entries, entry.effect) for entry in started]

    assert stored < sum(map(len, whole)) / 5
    import hashlib

    assert [hashlib.sha256(text.encode()).hexdigest()[:32] for text in whole] == [
        entry.digest for entry in started
    ]


class SlowJournal(MemoryJournal):
    """A journal whose commits take a turn of the loop and are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.safe = 0

    async def commit(self) -> None:
        many = len(self.entries)
        await asyncio.sleep(0)
        self.safe = many


async def test_what_matters_is_safe_before_it_goes_on():
    journal = SlowJournal()
    seen = []

    @effect(external=True)
    async def pay(amount: int) -> int:
        assert any(isinstance(e, EffectStarted) for e in journal.entries[: journal.safe])
        return amount

    async with RunContext("r", journal=journal):
        for amount in range(3):
            await pay(amount)
            seen.append(journal.safe)
            assert isinstance(journal.entries[journal.safe - 1], EffectDelivered)

    assert journal.safe == len(journal.entries)


async def test_a_journal_that_fails_ends_the_run():
    class Full(MemoryJournal):
        async def commit(self) -> None:
            raise OSError(28, "No space left on device")

    performed = []

    @effect
    async def pay() -> None:
        performed.append(1)

    with pytest.raises(OSError, match="No space"):
        async with RunContext("r", journal=Full()):
            await pay()
    assert performed == []


@effect(pure=True)
async def twice(number: int) -> int:
    return 2 * number


@effect(pure=True)
async def counted_to(last: int, *, fails: bool = False):
    for number in range(last):
        yield number
    if fails:
        raise ValueError("that was it")


async def garbage_of(many: int) -> int:
    """Return how many objects the garbage collector finds after a run with so many effects."""
    gc.collect()
    journal = MemoryJournal()
    async with RunContext("tidy", journal=journal):
        for _ in range(many):
            assert await twice(4) == 8
            assert [number async for number in counted_to(3)] == [0, 1, 2]
            with contextlib.suppress(ValueError):
                assert [number async for number in counted_to(1, fails=True)]
    return gc.collect()


async def test_what_effects_leave_behind_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        await garbage_of(1)
        assert await garbage_of(40) - await garbage_of(4) < 18  # less than half an object each
    finally:
        gc.enable()

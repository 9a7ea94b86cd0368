"""The weaver: every kind of function keeps its kind, and undoing leaves no trace."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import itertools
import random
import threading
import types
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.core.aspect_weaver import AspectWeaver
from atlas.errors import ConfigurationError


class Parent:
    def inherited(self, x):
        """Inherited."""
        return ("inherited", x)


def make_target() -> type:
    """Return a fresh class, so that no test sees the weaves of another."""

    class Target(Parent):
        attribute = 5

        def method(self, x: int, *, y: int = 2) -> tuple[int, int]:
            """Method."""
            return (x, y)

        @classmethod
        def of_class(cls, x):
            """Class method."""
            return (cls, x)

        @staticmethod
        def static(x):
            """Static method."""
            return x

        async def coroutine(self, x):
            """Coroutine."""
            await asyncio.sleep(0)
            return x

        def generator(self, x):
            """Generator."""
            try:
                got = yield x
            except KeyError as error:
                got = error.args[0]
            yield got
            return "returned"

        async def async_generator(self, x):
            """Async generator."""
            try:
                got = yield x
            except KeyError as error:
                got = error.args[0]
            yield got

        @classmethod
        async def async_of_class(cls, x):
            """Async class method."""
            return (cls, x)

        def fail(self):
            """Fail."""
            raise KeyError("failed")

        @property
        def computed(self):
            raise AssertionError("looking for functions computed a property")

    return Target


NAMES = (
    "method",
    "of_class",
    "static",
    "coroutine",
    "generator",
    "async_generator",
    "async_of_class",
    "inherited",
)


class Log:
    """Advice that writes down what it sees."""

    def __init__(self, tag: str = "") -> None:
        self.lines: list[tuple] = []
        self.tag = tag

    def before(self, call):
        self.lines.append((f"{self.tag}before", call.name))

    def after(self, call, result):
        self.lines.append((f"{self.tag}after", result))

    def on_error(self, call, error):
        self.lines.append((f"{self.tag}error", type(error)))

    def advice(self):
        return {"before": self.before, "after": self.after, "on_error": self.on_error}


@pytest.fixture
def weaver():
    weaver = AspectWeaver()
    yield weaver
    weaver.close()


# -- what is seen from outside --------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_woven_function_looks_as_before(weaver, name):
    target = make_target()
    before = getattr(target, name)

    weaver.weave(target, name, **Log().advice())
    woven = getattr(target, name)

    assert woven is not before
    for attribute in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__"):
        assert getattr(woven, attribute) == getattr(before, attribute)
    assert inspect.signature(woven) == inspect.signature(before)
    for kind in (
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
        inspect.ismethod,
        inspect.isfunction,
    ):
        assert kind(woven) == kind(before)
    assert type(inspect.getattr_static(target, name)) is type(inspect.getattr_static(target, name))


@pytest.mark.parametrize("name", NAMES)
def test_undoing_restores_the_very_object(weaver, name):
    target = make_target()
    own = dict(vars(target))

    weave = weaver.weave(target, name, before=Log().before)
    assert weave.is_active
    assert weave.names == (name,)
    weave.undo()
    weave.undo()

    assert not weave.is_active
    assert set(vars(target)) == set(own)
    assert all(vars(target)[each] is own[each] for each in own)


@settings(deadline=None)
@given(st.permutations(range(4)), st.lists(st.sampled_from(NAMES), min_size=4, max_size=4))
def test_weaves_are_undone_in_any_order_without_a_trace(order, names):
    target, weaver = make_target(), AspectWeaver()
    own = dict(vars(target))
    logs = [Log(str(index)) for index in range(4)]
    weaves = [
        weaver.weave(target, name, before=log.before) for name, log in zip(names, logs, strict=True)
    ]

    for undone, index in enumerate(order):
        assert dict(vars(target)) != own
        weaves[index].undo()
        for log in logs:
            log.lines.clear()
        target().method(1)
        active = [each for each in order[undone + 1 :] if names[each] == "method"]
        assert [bool(log.lines) for log in logs] == [each in active for each in range(4)]

    assert {name: id(each) for name, each in vars(target).items()} == {
        name: id(each) for name, each in own.items()
    }


# -- each kind ------------------------------------------------------------------------------------


def test_a_method_is_advised(weaver):
    target, log = make_target(), Log()
    weaver.weave(target, "method", **log.advice())

    assert target().method(1, y=3) == (1, 3)
    assert log.lines == [("before", "Target.method"), ("after", (1, 3))]


def test_class_and_static_methods_are_advised(weaver):
    target, log = make_target(), Log()
    weaver.weave(target, "of_class", **log.advice())
    weaver.weave(target, "static", **log.advice())
    below = type("Below", (target,), {})

    assert below.of_class(1) == (below, 1)
    assert below().of_class(1) == (below, 1)
    assert target.static(5) == target().static(5) == 5
    assert [line[0] for line in log.lines] == ["before", "after"] * 4


async def test_a_coroutine_is_advised_when_it_runs(weaver):
    target, log = make_target(), Log()
    weaver.weave(target, "*coroutine", **log.advice())
    weaver.weave(target, "async_of_class", **log.advice())

    waiting = target().coroutine(1)
    assert log.lines == []
    assert await waiting == 1
    assert await target.async_of_class(2) == (target, 2)
    assert [line[0] for line in log.lines] == ["before", "after"] * 2


async def test_cancelling_a_coroutine_is_seen_and_goes_on(weaver):
    target, log = make_target(), Log()
    weaver.weave(target, "coroutine", **log.advice())
    task = asyncio.ensure_future(target().coroutine(1))
    await asyncio.sleep(0)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.lines[-1] == ("error", asyncio.CancelledError)


def test_a_generator_keeps_send_throw_close_and_its_result(weaver):
    target, log = make_target(), Log()
    weaver.weave(target, "generator", **log.advice())

    generator = target().generator(1)
    assert log.lines == []
    assert next(generator) == 1
    assert generator.send("sent") == "sent"
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    assert stopped.value.value == "returned"

    generator = target().generator(1)
    next(generator)
    assert generator.throw(KeyError("thrown")) == "thrown"
    generator.close()

    generator = target().generator(1)
    next(generator)
    with pytest.raises(ValueError, match="not handled"):
        generator.throw(ValueError("not handled"))
    assert [line for line in log.lines if line[0] != "before"] == [
        ("after", "returned"),
        ("after", None),
        ("error", ValueError),
    ]


async def test_an_async_generator_keeps_asend_athrow_and_aclose(weaver):
    target, log = make_target(), Log()
    weaver.weave(target, "async_generator", **log.advice())
    weaver.weave(target, "async_generator", before=log.before)

    stream = target().async_generator(1)
    assert log.lines == []
    assert await anext(stream) == 1
    assert await stream.asend("sent") == "sent"
    with pytest.raises(StopAsyncIteration):
        await anext(stream)

    stream = target().async_generator(1)
    await anext(stream)
    assert await stream.athrow(KeyError("thrown")) == "thrown"
    await stream.aclose()

    stream = target().async_generator(1)
    await anext(stream)
    with pytest.raises(ValueError, match="not handled"):
        await stream.athrow(ValueError("not handled"))
    assert [item async for item in target().async_generator(2)] == [2, None]
    assert [line for line in log.lines if line[0] != "before"] == [
        ("after", None),
        ("after", None),
        ("error", ValueError),
        ("after", None),
    ]


async def test_closing_a_woven_stream_early_closes_the_stream_itself(weaver):
    closed = []

    class Streams:
        async def stream(self):
            try:
                while True:
                    yield 1
            finally:
                await asyncio.sleep(0)
                closed.append(True)

    for _ in range(3):
        weaver.weave(Streams, "stream", before=Log().before)
    stream = Streams().stream()
    await anext(stream)
    await stream.aclose()

    assert closed == [True]


async def test_a_stream_that_raises_stop_async_iteration_fails_as_it_would_unwoven(weaver):
    class Streams:
        async def stream(self):
            yield 1
            raise StopAsyncIteration

    log = Log()
    weaver.weave(Streams, "stream", **log.advice())

    with pytest.raises(RuntimeError, match="StopAsyncIteration"):
        [item async for item in Streams().stream()]
    assert log.lines[-1] == ("error", RuntimeError)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["next", "send", "key", "value", "close"]), max_size=6),
    st.integers(0, 3),
)
def test_a_woven_async_generator_behaves_as_the_plain_one(steps, depth):
    async def outcomes(stream):
        seen = []
        for step in steps:
            try:
                match step:
                    case "next":
                        seen.append(await anext(stream))
                    case "send":
                        seen.append(await stream.asend("s" if seen else None))
                    case "key":
                        seen.append(await stream.athrow(KeyError("k")))
                    case "value":
                        seen.append(await stream.athrow(ValueError("v")))
                    case "close":
                        seen.append(await stream.aclose())
            except BaseException as error:
                seen.append(repr(error))
        await stream.aclose()
        return seen

    plain, woven, weaver = make_target(), make_target(), AspectWeaver()

    for _ in range(depth):
        weaver.weave(woven, "async_generator", **Log().advice())

    assert asyncio.run(outcomes(woven().async_generator(1))) == asyncio.run(
        outcomes(plain().async_generator(1))
    )


def test_an_error_is_seen_and_goes_on(weaver):
    target, log = make_target(), Log()
    weaver.weave(target, "fail", **log.advice())

    with pytest.raises(KeyError, match="failed"):
        target().fail()
    assert log.lines == [("before", "Target.fail"), ("error", KeyError)]


# -- around ---------------------------------------------------------------------------------------


def test_around_may_change_arguments_and_result_or_not_call_at_all(weaver):
    target = make_target()

    def double(call, proceed):
        this, x = call.args
        return proceed(call._replace(args=(this, x * 2), kwargs={"y": 9})) + ("around",)

    with weaver.woven(target, "method", around=double):
        assert target().method(2) == (4, 9, "around")
    with weaver.woven(target, "method", around=lambda call, proceed: "instead"):
        assert target().method(2) == "instead"
    assert target().method(2) == (2, 2)


async def test_around_of_a_coroutine_and_of_streams(weaver):
    target = make_target()

    async def twice(call, proceed):
        return (await proceed(call), await proceed(call))

    async def upper(call, proceed):
        async for item in proceed(call):
            yield str(item).upper()

    def counted(call, proceed):
        result = yield from proceed(call)
        return (result, "counted")

    weaver.weave(target, "coroutine", around=twice)
    weaver.weave(target, "async_generator", around=upper)
    weaver.weave(target, "generator", around=counted)

    assert await target().coroutine(1) == (1, 1)
    assert [item async for item in target().async_generator("a")] == ["A", "NONE"]
    generator = target().generator(1)
    assert list(itertools.islice(generator, 2)) == [1, None]
    with pytest.raises(StopIteration) as stopped:
        next(generator)
    assert stopped.value.value == ("returned", "counted")


async def test_advice_of_an_asynchronous_function_may_be_a_coroutine_function(weaver):
    target, seen = make_target(), []

    async def note(*args):
        await asyncio.sleep(0)
        seen.append(len(args))

    weaver.weave(target, "coroutine", before=note, after=note, on_error=note)
    weaver.weave(target, "async_generator", before=note, after=note, on_error=note)

    await target().coroutine(1)
    [item async for item in target().async_generator(1)]

    assert seen == [1, 2, 1, 2]


def test_advice_can_remember_something_until_the_end_of_the_call(weaver):
    target, seen = make_target(), []
    weaver.weave(
        target,
        "method",
        before=lambda call: call.notes.update(began=call.args[1]),
        after=lambda call, result: seen.append(call.notes["began"]),
    )

    target().method(1)
    target().method(2)

    assert seen == [1, 2]


def test_what_advice_raises_the_caller_gets(weaver):
    target, log = make_target(), Log()

    def refuse(call):
        raise PermissionError("not now")

    weaver.weave(target, "method", before=refuse, on_error=log.on_error)

    with pytest.raises(PermissionError, match="not now"):
        target().method(1)


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("coroutine", "is a coroutine function, and its around"),
        ("async_generator", "Write the advice as an async generator function"),
        ("*", "is an async generator function"),
    ],
)
def test_around_of_another_kind_is_refused_and_nothing_is_woven(weaver, pattern, told):
    target = make_target()
    own = dict(vars(target))

    with pytest.raises(ConfigurationError, match=told):
        weaver.weave(target, pattern, around=lambda call, proceed: None)
    assert dict(vars(target)) == own


def test_asynchronous_advice_of_a_plain_function_is_refused(weaver):
    async def note(call):
        raise AssertionError

    with pytest.raises(ConfigurationError, match="Write the advice as a plain function"):
        weaver.weave(make_target(), "method", before=note)


# -- order ----------------------------------------------------------------------------------------


def test_the_lowest_order_is_outermost_and_of_equals_the_one_woven_last(weaver):
    target, lines = make_target(), []

    def note(tag):
        def around(call, proceed):
            lines.append(tag)
            return proceed(call)

        return around

    for tag, order in (("a", 0), ("b", 1), ("c", 0), ("d", -1)):
        weaver.weave(target, "method", around=note(tag), order=order)
    target().method(1)

    assert lines == ["d", "c", "a", "b"]


def test_two_weavers_share_a_function_and_closing_one_leaves_the_other(weaver):
    target, mine, theirs = make_target(), Log(), Log()
    other = AspectWeaver()
    weaver.weave(target, "method", before=mine.before)
    other.weave(target, "method", before=theirs.before)

    weaver.close()
    target().method(1)
    other.close()

    assert (len(mine.lines), len(theirs.lines)) == (0, 1)
    assert vars(target)["method"].__code__.co_name == "method"


# -- targets --------------------------------------------------------------------------------------


def test_a_pattern_chooses_functions_and_leaves_hidden_ones_alone(weaver):
    target = make_target()

    assert weaver.weave(target, "async_*", before=Log().before).names == (
        "async_generator",
        "async_of_class",
    )
    names = weaver.weave(target, before=Log().before).names
    assert set(NAMES) <= set(names)
    assert not any(name.startswith("__") for name in names)
    assert weaver.weave(target, "__init__", before=Log().before).names == ("__init__",)


@pytest.mark.parametrize("pattern", ["metod", "attribute", "computed"])
def test_a_pattern_that_matches_nothing_is_refused(weaver, pattern):
    with pytest.raises(ConfigurationError, match=f"no function that matches '{pattern}'") as raised:
        weaver.weave(make_target(), pattern, before=Log().before)

    assert "method" in str(raised.value)


def test_no_advice_is_refused(weaver):
    with pytest.raises(ConfigurationError, match="no advice to weave"):
        weaver.weave(make_target())


def test_functions_of_a_module_are_woven(weaver):
    module = types.ModuleType("woven_module")
    exec("from os.path import join\ndef double(x): return x * 2", module.__dict__)
    log, before = Log(), dict(vars(module))

    assert weaver.weave(module, **log.advice()).names == ("double",)
    assert module.double(2) == 4
    weaver.close()

    assert log.lines == [("before", "double"), ("after", 4)]
    assert dict(vars(module)) == before


def test_one_object_is_woven_alone(weaver):
    target, log = make_target(), Log()
    woven, other = target(), target()

    weaver.weave(woven, "method", **log.advice())
    weaver.weave(woven, "method", before=log.before)

    assert woven.method(1) == other.method(1) == (1, 2)
    assert len(log.lines) == 3
    weaver.close()
    assert vars(woven) == {}


def test_an_inherited_method_is_woven_for_the_class_alone(weaver):
    class Base:
        def inherited(self):
            return "base"

        @staticmethod
        def static():
            return "static"

    class Below(Base):
        pass

    log = Log()
    weaver.weave(Below, "*", before=log.before)
    parent = weaver.weave(Base, "inherited", around=lambda call, proceed: proceed(call) + "!")

    assert (Below().inherited(), Base().inherited(), Below.static()) == ("base!", "base!", "static")
    assert log.lines == [("before", "Below.inherited"), ("before", "Below.static")]
    parent.undo()
    weaver.close()
    assert "inherited" not in vars(Below)


@pytest.mark.parametrize(
    "target", [dict, type("S", (), {"__slots__": (), "m": make_target().method})()]
)
def test_what_cannot_be_woven_is_told(weaver, target):
    with pytest.raises(ConfigurationError, match="does not let its attributes be set"):
        weaver.weave(target, "[mg]*", before=Log().before)


def test_a_weave_that_fails_half_way_leaves_nothing(weaver):
    class Picky(type):
        def __setattr__(cls, name, value):
            if name == "second":
                raise AttributeError("not second")
            super().__setattr__(name, value)

    class Target(metaclass=Picky):
        def first(self): ...
        def second(self): ...

    own = dict(vars(Target))

    with pytest.raises(ConfigurationError, match="not second"):
        weaver.weave(Target, before=Log().before)
    assert dict(vars(Target)) == own


def test_what_was_put_over_a_woven_function_is_left_there(weaver):
    target, log = make_target(), Log()
    weave = weaver.weave(target, "method", before=log.before)
    woven = vars(target)["method"]

    @functools.wraps(woven)
    def foreign(self, x):
        return ("foreign", *woven(self, x))

    target.method = foreign
    weave.undo()

    assert vars(target)["method"] is foreign
    assert target().method(1) == ("foreign", 1, 2)
    assert log.lines == []
    weaver.weave(target, "method", before=log.before)
    assert target().method(1) == ("foreign", 1, 2)
    assert len(log.lines) == 1


def test_a_call_keeps_the_advice_it_began_with(weaver):
    target, log = make_target(), Log()
    weave = weaver.weave(target, "generator", **log.advice())
    generator = target().generator(1)
    next(generator)

    weave.undo()
    generator.close()

    assert log.lines == [("before", "Target.generator"), ("after", None)]


def test_a_woven_class_can_be_collected():
    target = make_target()
    AspectWeaver().weave(target, before=Log().before)
    gone = weakref.ref(target)

    del target
    gc.collect()

    assert gone() is None


def test_weaving_from_many_threads_leaves_no_trace():
    target = make_target()
    own = dict(vars(target))
    all_ready = threading.Barrier(4)
    errors = []

    def work(seed):
        chance, mine = random.Random(seed), AspectWeaver()
        all_ready.wait(10)
        try:
            for _ in range(100):
                weave = mine.weave(target, chance.choice(NAMES), before=lambda call: None)
                assert target().method(1) == (1, 2)
                weave.undo()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert errors == []
    assert {name: id(each) for name, each in vars(target).items()} == {
        name: id(each) for name, each in own.items()
    }


@pytest.mark.parametrize(
    ("pattern", "options", "told"),
    [
        (5, {"before": print}, "The pattern is 5"),
        ("*", {"before": 5}, "The advice 5 cannot be called"),
        ("*", {"around": "no"}, "The advice 'no' cannot be called"),
    ],
)
def test_what_is_no_pattern_or_no_advice_is_refused_before_anything_is_woven(
    pattern, options, told
):
    class Target:
        def run(self):
            return 1

    weaver = AspectWeaver()
    with pytest.raises(ConfigurationError, match=told):
        weaver.weave(Target, pattern, **options)

    assert Target().run() == 1

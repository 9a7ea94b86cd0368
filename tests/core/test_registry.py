"""The registry: lazy, built once, claims checked before anything is built, nothing silent."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas.core.registry import FallbackTaken, Registry
from atlas.errors import (
    CloseFailedError,
    MissingCredentialsError,
    MissingDependencyError,
    RegistrationError,
    UnknownNameError,
    UnknownProviderError,
)


class Thing:
    def __init__(self, **config):
        self.config = config


def things(*names: str) -> Registry[Thing]:
    registry = Registry[Thing](kind="thing")
    for name in names:
        registry.register(name, Thing)
    return registry


def raising(error: Exception):
    def factory(**config):
        raise error

    return factory


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution with entry points: a directory like the one pip leaves."""

    def install(distribution: str, **points: str) -> None:
        where = tmp_path / distribution
        info = where / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        lines = "\n".join(f"{name} = {target}" for name, target in points.items())
        (info / "entry_points.txt").write_text(f"[acme.things]\n{lines}\n")
        monkeypatch.syspath_prepend(str(where))

    return install


# -- names ----------------------------------------------------------------------------------------


def test_an_unknown_name_names_the_nearest_and_the_list():
    registry = things("anthropic", "openai")

    with pytest.raises(UnknownNameError) as raised:
        registry.create("opnai")

    assert "No thing is registered as 'opnai'; the nearest is 'openai'" in str(raised.value)
    assert "'anthropic', 'openai'" in str(raised.value)
    assert raised.value.name == "opnai"
    assert isinstance(raised.value, LookupError)


def test_the_class_of_the_unknown_name_error_is_the_registrys_choice():
    registry = Registry[Thing](kind="provider", unknown_error=UnknownProviderError)

    with pytest.raises(UnknownProviderError, match="Registered: none"):
        registry.load("x")


def test_a_name_taken_is_refused_and_replaced_only_on_request():
    registry = things("a")

    with pytest.raises(RegistrationError, match="already registered by this process"):
        registry.register("a", dict)
    registry.register("a", lambda: "new", replace=True)

    assert registry.create("a") == "new"


def test_names_are_sorted_and_can_be_asked_for():
    registry = things("b", "a")

    assert registry.names() == ("a", "b")
    assert list(registry) == ["a", "b"]
    assert "a" in registry
    assert "c" not in registry


def test_an_unregistered_entry_is_unknown_and_its_instance_forgotten():
    registry = things("a", "b")
    registry.create("a")

    registry.unregister("a")

    assert registry.names() == ("b",)
    with pytest.raises(UnknownNameError):
        registry.create("a")
    with pytest.raises(UnknownNameError):
        registry.unregister("a")


def test_a_replaced_entry_builds_a_new_instance():
    registry = things("a")
    old = registry.create("a")

    registry.register("a", Thing, replace=True)

    assert registry.create("a") is not old


# -- lazy targets ---------------------------------------------------------------------------------


def test_a_string_target_is_imported_only_when_it_is_used(tmp_path, monkeypatch):
    (tmp_path / "lazy_thing_module.py").write_text("class Made:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = Registry[object](kind="thing")
    registry.register("lazy", "lazy_thing_module:Made")
    registry.check()
    assert "lazy_thing_module" not in sys.modules

    made = registry.load("lazy")

    assert made is sys.modules.pop("lazy_thing_module").Made


@pytest.mark.parametrize("target", ["json", "json:", ":loads", "json:a:b"])
def test_a_malformed_target_is_refused_at_registration(target):
    with pytest.raises(RegistrationError, match=r"package\.module:attribute"):
        things().register("a", target)


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("no_such_module_here:X", "No module named 'no_such_module_here'"),
        ("json:nothing", "no attribute 'nothing'"),
        ("json:__name__", "cannot be called"),
    ],
)
def test_a_target_that_cannot_be_loaded_is_told_with_its_source(target, told):
    registry = things()
    registry.register("a", target)

    with pytest.raises(RegistrationError, match=told) as raised:
        registry.create("a")

    assert "of this process" in str(raised.value)


def test_a_missing_package_is_told_as_the_module_tells_it(tmp_path, monkeypatch):
    (tmp_path / "needs_package.py").write_text(
        "from atlas.errors import MissingDependencyError\n"
        "raise MissingDependencyError('install it', extra='x')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = things()
    registry.register("a", "needs_package:X")

    with pytest.raises(MissingDependencyError, match="install it"):
        registry.create("a")


# -- entry points ---------------------------------------------------------------------------------


def test_entry_points_of_installed_distributions_are_found_on_first_use(installed):
    registry = Registry[object](kind="thing", group="acme.things")
    installed("acme", counter="collections:Counter")

    assert registry.names() == ("counter",)
    assert registry.source("counter") == "distribution 'acme' 1.0"
    assert registry.create("counter", a=1) == {"a": 1}


def test_a_name_two_distributions_offer_is_refused_naming_both(installed):
    installed("acme", counter="collections:Counter", other="collections:OrderedDict")
    installed("evil", counter="collections:ChainMap")
    registry = Registry[object](kind="thing", group="acme.things")

    with pytest.raises(RegistrationError) as raised:
        registry.create("counter")

    assert "'acme' 1.0" in str(raised.value)
    assert "'evil' 1.0" in str(raised.value)
    assert registry.create("other") == {}


def test_a_name_offered_twice_can_be_settled_in_the_process(installed):
    installed("acme", counter="collections:Counter")
    installed("evil", counter="collections:ChainMap")
    registry = Registry[object](kind="thing", group="acme.things")

    registry.register("counter", "collections:Counter", replace=True)

    assert registry.create("counter") == {}


def test_an_entry_point_cannot_be_shadowed_silently(installed):
    installed("acme", counter="collections:Counter")
    registry = Registry[object](kind="thing", group="acme.things")

    with pytest.raises(RegistrationError, match=r"distribution 'acme' 1\.0"):
        registry.register("counter", dict)


def test_atlas_offers_its_providers_without_importing_them():
    names = Registry[object](kind="provider", group="atlas.providers").names()

    assert {"anthropic", "local", "ollama", "openai", "scripted"} <= set(names)


# -- the cache ------------------------------------------------------------------------------------


def test_equal_configurations_share_an_instance():
    registry = things("a")

    first = registry.create("a", options={"x": [1, {2, 3}], "y": None}, model="m")

    assert registry.create("a", model="m", options={"y": None, "x": [1, {3, 2}]}) is first
    assert registry.create("a", model="other") is not first
    assert first.config["model"] == "m"


@pytest.mark.parametrize(("one", "other"), [(1, True), (1, 1.0), ([1], (1,)), ("1", 1)])
def test_values_of_different_types_are_different_configurations(one, other):
    registry = things("a")

    assert registry.create("a", value=one) is not registry.create("a", value=other)


def test_values_that_cannot_be_hashed_are_equal_to_themselves_only():
    registry = things("a")
    one, other = bytearray(b"x"), bytearray(b"x")

    first = registry.create("a", value=one)

    assert registry.create("a", value=one) is first
    assert registry.create("a", value=other) is not first


def test_a_freed_value_is_not_mistaken_for_a_new_one():
    registry = things("a")
    made = []
    for _ in range(10):
        made.append(registry.create("a", value=[bytearray(b"x")]))
        made[-1].config.clear()
        gc.collect()

    assert len(set(map(id, made))) == 10


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_a_copy_of_any_plain_configuration_finds_the_same_instance(value):
    registry = things("a")

    def copied(value):
        if isinstance(value, dict):
            return {key: copied(each) for key, each in reversed(value.items())}
        return [copied(each) for each in value] if isinstance(value, list) else value

    assert registry.create("a", value=value) is registry.create("a", value=copied(value))


def test_a_failed_build_is_not_cached():
    registry = Registry[str](kind="thing")
    outcomes: list[Exception | str] = [OSError("down"), "up"]

    def factory():
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    registry.register("a", factory)

    with pytest.raises(OSError, match="down"):
        registry.create("a")
    assert registry.create("a") == "up"


# -- threads --------------------------------------------------------------------------------------


def test_concurrent_creates_build_once():
    registry = Registry[object](kind="thing")
    all_asking = threading.Barrier(8)
    built = []

    def factory():
        built.append(1)
        return object()

    def ask():
        all_asking.wait(10)
        return registry.create("a")

    registry.register("a", factory)
    with ThreadPoolExecutor(8) as pool:
        made = {id(asked.result()) for asked in [pool.submit(ask) for _ in range(8)]}

    assert len(made) == 1
    assert len(built) == 1


def test_threads_that_wait_for_a_failing_build_get_its_error():
    registry = Registry[object](kind="thing")
    building, go_on = threading.Event(), threading.Event()
    calls = []

    def factory():
        calls.append(1)
        building.set()
        go_on.wait(10)
        raise OSError("down")

    registry.register("a", factory)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(registry.create, "a")
        building.wait(10)
        second = pool.submit(registry.create, "a")
        while not registry._waiting:  # no public sign tells that a thread waits
            pass
        go_on.set()

        assert str(first.exception(10)) == str(second.exception(10)) == "down"
    assert len(calls) == 1


def test_different_entries_are_built_side_by_side():
    registry = Registry[str](kind="thing")
    both_building = threading.Barrier(2)

    def factory():
        both_building.wait(10)
        return "made"

    registry.register("a", factory)
    registry.register("b", factory)
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(registry.create, ("a", "b"), timeout=10))

    assert made == ["made", "made"]


def test_a_factory_that_asks_for_itself_is_refused():
    registry = Registry[object](kind="thing")
    registry.register("a", lambda: registry.create("b"))
    registry.register("b", lambda: registry.create("a"))

    with pytest.raises(RegistrationError, match=r"'a' needs itself.*'a'"):
        registry.create("a")


def test_two_threads_whose_factories_ask_for_each_other_do_not_deadlock():
    registry = Registry[object](kind="thing")
    both_building = threading.Barrier(2)

    def factory(other):
        def build():
            both_building.wait(10)
            return registry.create(other)

        return build

    registry.register("a", factory("b"))
    registry.register("b", factory("a"))
    with ThreadPoolExecutor(2) as pool:
        errors = [pool.submit(registry.create, name).exception for name in "ab"]

        assert all(isinstance(error(10), RegistrationError) for error in errors)


# -- dependencies and conflicts -------------------------------------------------------------------


def test_dependencies_are_built_first_and_passed_by_parameter():
    registry = Registry[object](kind="thing")
    order = []

    def made(name):
        def factory(**config):
            order.append(name)
            return (name, config)

        return factory

    registry.register("top", made("top"), depends_on={"below": "middle"})
    registry.register("middle", made("middle"), depends_on=["bottom"])
    registry.register("bottom", made("bottom"))

    assert registry.create("top", x=1) == ("top", {"below": ("middle", {}), "x": 1})
    assert order == ["bottom", "middle", "top"]


def test_a_configuration_may_bring_its_own_dependency():
    registry = things("b")
    registry.register("a", Thing, depends_on={"below": "b"})

    assert registry.create("a", below="mine").config == {"below": "mine"}


@pytest.mark.parametrize(
    ("declare", "told"),
    [
        (lambda r: r.register("a", Thing, depends_on=["leaf", "leav"]), "nearest is 'leaf'"),
        (lambda r: r.register("a", Thing, depends_on=["leaf", "a"]), "a -> a"),
        (lambda r: r.register("a", Thing, depends_on=["leaf", "p"]), "p -> q -> p"),
        (lambda r: r.register("a", Thing, depends_on=["leaf", "x", "y"]), "conflicts with"),
    ],
    ids=["missing", "itself", "circle", "conflict"],
)
def test_claims_are_checked_before_anything_is_built(declare, told):
    registry = things("y")
    built = []
    registry.register("leaf", lambda: built.append("leaf"))
    registry.register("p", Thing, depends_on=["q"])
    registry.register("q", Thing, depends_on=["p"])
    registry.register("x", Thing, conflicts_with=["y"])
    declare(registry)

    for attempt in (registry.create, registry.check):
        with pytest.raises(RegistrationError, match=told):
            attempt("a")

    assert built == []


@pytest.mark.parametrize(("first", "second"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_entries_that_conflict_are_not_alive_together_until_closed(first, second):
    registry = things("cpu")
    registry.register("gpu", Thing, conflicts_with=["cpu"])
    registry.create(first)

    with pytest.raises(RegistrationError, match="conflicts with"):
        registry.create(second)
    registry.close()

    assert registry.create(second)


# -- fallback -------------------------------------------------------------------------------------


def test_a_fallback_is_taken_and_reported():
    registry = things("spare")
    refused = MissingCredentialsError("no key")
    registry.register("main", raising(refused))
    registry.register("second", raising(OSError("down")))
    reports: list[FallbackTaken] = []
    registry.on_fallback(reports.append)

    chosen = registry.create("main", fallback=("second", "spare"), model="m")

    assert chosen is registry.create("spare")
    [report] = reports
    assert (report.kind, report.requested, report.chosen) == ("thing", "main", "spare")
    assert [name for name, _ in report.failures] == ["main", "second"]
    assert report.failures[0][1] is refused


def test_a_fallback_may_have_its_own_configuration():
    registry = things("spare")
    registry.register("main", raising(OSError("down")))

    assert registry.create("main", fallback={"spare": {"model": "s"}}).config == {"model": "s"}


def test_nothing_is_reported_when_no_fallback_is_needed():
    registry = things("main", "spare")
    reports: list[FallbackTaken] = []
    registry.on_fallback(reports.append)

    assert registry.create("main", fallback=["spare"], model="m").config == {"model": "m"}
    assert reports == []


def test_without_a_fallback_the_error_itself_is_raised():
    registry = Registry[object](kind="thing")
    refused = MissingCredentialsError("no key")
    registry.register("main", raising(refused))

    with pytest.raises(MissingCredentialsError) as raised:
        registry.create("main")

    assert raised.value is refused


def test_when_every_fallback_fails_all_errors_are_told():
    registry = Registry[object](kind="thing")
    registry.register("main", raising(OSError("one")))
    registry.register("spare", raising(OSError("two")))

    with pytest.raises(RegistrationError, match=r"'main': one; 'spare': two") as raised:
        registry.create("main", fallback=["spare"])

    assert [str(error) for error in raised.value.errors] == ["one", "two"]


def test_a_mistake_in_the_code_is_not_hidden_by_a_fallback():
    registry = things("spare")
    registry.register("main", raising(TypeError("wrong argument")))

    with pytest.raises(TypeError, match="wrong argument"):
        registry.create("main", fallback=["spare"])


@pytest.mark.parametrize(("name", "fallback"), [("mian", ["spare"]), ("main", ["spair"])])
def test_a_mistyped_name_is_never_settled_by_a_fallback(name, fallback):
    built = []
    registry = things("spare")
    registry.register("main", lambda: built.append(1))

    with pytest.raises(UnknownNameError):
        registry.create(name, fallback=fallback)
    assert built == []


# -- hooks ----------------------------------------------------------------------------------------


def test_hooks_run_around_each_build_once():
    registry = things("a")
    seen = []
    registry.before_build(lambda name, config: seen.append(("before", name, dict(config))))
    registry.after_build(lambda name, made: seen.append(("after", name, made)))

    made = registry.create("a", x=1)
    registry.create("a", x=1)

    assert seen == [("before", "a", {"x": 1}), ("after", "a", made)]


def test_an_error_of_a_hook_fails_the_build():
    registry = things("a")

    @registry.before_build
    def refuse(name, config):
        raise PermissionError("not here")

    with pytest.raises(PermissionError, match="not here"):
        registry.create("a")
    registry.remove_hook(refuse)

    assert registry.create("a")


def test_an_instance_refused_by_a_hook_is_closed_with_the_registry():
    registry = Registry[Closing](kind="thing")
    closed: list[str] = []
    registry.register("a", lambda: Closing("a", closed))

    @registry.after_build
    def refuse(name, made):
        raise PermissionError("not this one")

    with pytest.raises(PermissionError):
        registry.create("a")
    registry.close()

    assert closed == ["a"]


# -- closing --------------------------------------------------------------------------------------


class Closing:
    def __init__(self, name: str, closed: list[str], error: Exception | None = None):
        self.name, self.closed, self.error = name, closed, error

    def close(self) -> None:
        self.closed.append(self.name)
        if self.error is not None:
            raise self.error


class AsyncClosing:
    def __init__(self, *args):
        self._closing = Closing(*args)

    async def aclose(self) -> None:
        self._closing.close()


def test_instances_are_closed_in_reverse_order_and_errors_collected():
    registry = Registry[object](kind="thing")
    closed: list[str] = []
    for name, error in (("a", None), ("b", OSError("stuck")), ("c", None)):
        registry.register(name, lambda name=name, error=error: Closing(name, closed, error))
        registry.create(name)
    registry.register("plain", Thing)
    registry.create("plain")

    with pytest.raises(CloseFailedError, match="stuck") as raised:
        registry.close()
    registry.close()

    assert closed == ["c", "b", "a"]
    assert raised.value.errors[0].__notes__ == ["while closing the thing 'b'"]


async def test_aclose_closes_both_kinds_in_reverse_order():
    registry = Registry[object](kind="thing")
    closed: list[str] = []
    registry.register("a", lambda: Closing("a", closed))
    registry.register("b", lambda: AsyncClosing("b", closed, OSError("stuck")))
    first = registry.create("a")
    registry.create("b")

    with pytest.raises(CloseFailedError) as raised:
        await registry.aclose()

    assert closed == ["b", "a"]
    assert len(raised.value.errors) == 1
    assert registry.create("a") is not first


def test_close_refuses_what_only_aclose_can_close_and_closes_nothing():
    registry = Registry[object](kind="thing")
    closed: list[str] = []
    registry.register("a", lambda: AsyncClosing("a", closed))
    registry.register("b", lambda: Closing("b", closed))
    registry.create("a")
    registry.create("b")

    with pytest.raises(RegistrationError, match=r"await registry.aclose\(\)"):
        registry.close()
    assert closed == []


def test_an_instance_shared_by_configurations_is_closed_with_its_dependents_first():
    registry = Registry[object](kind="thing")
    closed: list[str] = []
    registry.register("base", lambda: Closing("base", closed))
    registry.register("top", lambda below: Closing("top", closed), depends_on={"below": "base"})
    registry.create("top")

    registry.close()

    assert closed == ["top", "base"]


@pytest.mark.parametrize("name", ["", None, 5])
def test_a_name_that_is_no_text_is_refused(name: object) -> None:
    with pytest.raises(RegistrationError, match="Give it a name"):
        Registry[object](kind="thing").register(name, dict)  # type: ignore[arg-type]


def test_a_factory_that_cannot_be_called_is_refused_when_it_is_registered() -> None:
    with pytest.raises(RegistrationError, match="'x' cannot be registered as 5"):
        Registry[object](kind="thing").register("x", 5)  # type: ignore[arg-type]


def test_a_list_of_names_given_as_text_is_refused() -> None:
    things = Registry[object](kind="thing")

    with pytest.raises(RegistrationError, match=r"Write a list: \['search'\]"):
        things.register("x", dict, depends_on="search")


def test_a_configuration_that_the_factory_does_not_take_is_told_by_name_and_without_values() -> (
    None
):
    things = Registry[object](kind="thing")
    things.register("x", lambda path: path)

    with pytest.raises(RegistrationError, match="'pathh'.*It takes: path") as caught:
        things.create("x", pathh="a secret")

    assert "a secret" not in str(caught.value)
    with pytest.raises(RegistrationError, match="no configuration: .*'path'"):
        things.create("x")


def test_no_fallback_hides_a_configuration_that_the_factory_does_not_take() -> None:
    things = Registry[object](kind="thing")
    things.register("x", lambda path: path)
    things.register("spare", lambda: "spare")

    with pytest.raises(RegistrationError, match="'pathh'"):
        things.create("x", pathh="q", fallback=["spare"])


def test_a_type_error_of_the_factory_itself_is_its_own() -> None:
    things = Registry[object](kind="thing")
    things.register("x", lambda: len(5))  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="len"):
        things.create("x")


@pytest.mark.parametrize("name", [5, None, []])
def test_what_is_no_name_is_not_looked_up(name: object) -> None:
    things = Registry[object](kind="thing")
    things.register("x", int)

    for ask in (things.create, things.load, things.source, things.check, things.unregister):
        if ask == things.check and name is None:
            continue  # checks all
        with pytest.raises(UnknownNameError, match="Give its name, which is text"):
            ask(name)  # type: ignore[operator]


@pytest.mark.parametrize("option", ["depends_on", "conflicts_with"])
@pytest.mark.parametrize("names", [5, [5], {"x": 5}])
def test_names_of_others_are_a_list_of_texts(option: str, names: object) -> None:
    with pytest.raises(RegistrationError, match=f"{option} of the thing 'x' is"):
        Registry[object](kind="thing").register("x", int, **{option: names})  # type: ignore[arg-type]


def test_names_of_others_may_come_from_an_iterator() -> None:
    things = Registry[object](kind="thing")
    things.register("x", int)
    things.register("y", int, conflicts_with=(name for name in ["x"]))
    things.create("x")

    with pytest.raises(RegistrationError, match="conflicts with 'x'"):
        things.create("y")


def test_an_asynchronous_factory_is_refused_when_it_is_called() -> None:
    async def make() -> int:
        return 5

    things = Registry[object](kind="thing")
    things.register("x", make)

    with pytest.raises(RegistrationError, match="is asynchronous, and nobody awaits it"):
        things.create("x")


def test_a_fallback_that_is_one_text_is_refused() -> None:
    things = Registry[object](kind="thing")
    things.register("x", int)

    with pytest.raises(RegistrationError, match=r"Write a list: \['spare'\]"):
        things.create("x", fallback="spare", base=2)


def test_a_hook_that_cannot_be_called_is_refused_at_once() -> None:
    things = Registry[object](kind="thing")

    for add in (things.before_build, things.after_build, things.on_fallback):
        with pytest.raises(RegistrationError, match="5 of the registry of each thing"):
            add(5)  # type: ignore[operator]

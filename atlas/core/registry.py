"""Registry: things built by name, lazily and once, with every claim checked before anything is built.

A registry maps names to factories. A factory is a callable, or a ``"module:attribute"`` string that
is imported on first use; third parties add theirs through an entry point group. Instances are
cached by name and configuration, dependencies are built first, and nothing is ever replaced
silently: not a name claimed by two distributions, not a provider by its fallback.

A registry knows no bus. Who wants fallbacks as events passes a callback to `Registry.on_fallback`.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import Any, Generic, TypeAlias, TypeVar, cast

from atlas.errors import (
    AtlasError,
    CloseFailedError,
    RegistrationError,
    UnknownNameError,
    nearest_name,
)

__all__ = ["FallbackTaken", "Registry"]

T = TypeVar("T")

BeforeBuild: TypeAlias = Callable[[str, Mapping[str, object]], None]
AfterBuild: TypeAlias = Callable[[str, T], None]
Hook = TypeVar("Hook", bound=Callable[..., None])
_Key: TypeAlias = "tuple[str, object]"

_FALLBACK_ON: tuple[type[Exception], ...] = (AtlasError, ImportError, OSError)


@dataclass(frozen=True, slots=True)
class FallbackTaken:
    """What a registry reports when it built another entry than the one asked for.

    Attributes:
        kind: What the registry holds (``"provider"``).
        requested: The name asked for.
        chosen: The name that was built instead.
        failures: Each name that failed before it and what it raised, in the order tried.
    """

    kind: str
    requested: str
    chosen: str
    failures: tuple[tuple[str, Exception], ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    target: Callable[..., object] | str
    source: str
    depends_on: tuple[str, ...] = ()
    parameters: Mapping[str, str] = field(default_factory=dict)
    conflicts_with: frozenset[str] = frozenset()
    also: tuple[str, ...] = ()  # the other distributions that claim the name


@dataclass(eq=False, slots=True)
class _Build:
    """One instance, finished or being built by the thread ``owner``."""

    name: str
    config: Mapping[str, object]
    owner: int
    result: Future[Any] = field(default_factory=Future)


class Registry(Generic[T]):
    """Builds instances of ``T`` by name.

    All methods may be called from any thread. Concurrent calls that ask for the same name with the
    same configuration share one build: the factory runs once and all get its instance or its error.
    An error is not cached; the next call builds anew.

    Args:
        kind: What is registered, in one word; used in errors and reports.
        group: Entry point group in which installed distributions offer entries. It is read on
            first use, not before. None: only what is registered in this process.
        unknown_error: Class of the error for a name that is not registered.

    Example:
        >>> shapes = Registry[list[int]](kind="shape")
        >>> shapes.register("line", lambda size=2: list(range(size)))
        >>> shapes.create("line", size=3)
        [0, 1, 2]
        >>> shapes.create("line", size=3) is shapes.create("line", size=3)
        True
    """

    def __init__(
        self,
        *,
        kind: str = "entry",
        group: str | None = None,
        unknown_error: type[UnknownNameError] = UnknownNameError,
    ) -> None:
        self.kind = kind
        self.group = group
        self._unknown_error = unknown_error
        self._lock = threading.RLock()
        self._entries: dict[str, _Entry] = {}
        self._discovered = group is None
        self._builds: dict[_Key, _Build] = {}
        self._made: list[tuple[str, T]] = []  # everything to close, in the order it was built
        self._waiting: dict[int, _Build] = {}  # thread -> the build it waits for
        self._before: list[BeforeBuild] = []
        self._after: list[AfterBuild[T]] = []
        self._observers: list[Callable[[FallbackTaken], None]] = []

    # -- what there is ----------------------------------------------------------------------------

    def register(
        self,
        name: str,
        factory: Callable[..., T] | str,
        *,
        depends_on: Sequence[str] | Mapping[str, str] = (),
        conflicts_with: Iterable[str] = (),
        replace: bool = False,
    ) -> None:
        """Add an entry.

        Args:
            name: The name under which it is created.
            factory: A callable that takes the configuration as keywords and returns an instance, or
                a ``"module:attribute"`` string naming one, imported on first use.
            depends_on: Names of entries that must be built first, without configuration. Given as
                ``{parameter: name}``, their instances are also passed to the factory.
            conflicts_with: Names of entries that may not be alive in this registry beside this one.
            replace: Take the place of an entry of the same name. Instances already built from that
                one stay open for their holders and are closed with the registry.

        Raises:
            RegistrationError: The name is taken and ``replace`` is False; it is no text; the factory
                cannot be called, or its string is not of the form ``"module:attribute"``.
        """
        if isinstance(conflicts_with, Iterator):  # which could be looked at only once
            conflicts_with = tuple(conflicts_with)
        self._check_claim(name, factory, depends_on, conflicts_with)
        named = depends_on if isinstance(depends_on, Mapping) else {}
        entry = _Entry(
            name=name,
            target=factory,
            source="this process",
            depends_on=tuple(named.values()) if named else tuple(depends_on),
            parameters=MappingProxyType(dict(named)),
            conflicts_with=frozenset(conflicts_with),
        )
        with self._lock:
            taken = self._known().get(name)
            if taken is not None and not replace:
                raise RegistrationError(
                    f"The {self.kind} {name!r} is already registered by {taken.source}. "
                    f"Choose another name, or pass replace=True to take its place.",
                    name=name,
                )
            self._forget(name)
            self._entries[name] = entry

    def unregister(self, name: str) -> None:
        """Remove an entry and forget its cached instances, which `close` still closes.

        Raises:
            UnknownNameError: Nothing is registered under ``name``; of the class given to the
                registry.
        """
        with self._lock:
            self._entry(name)
            self._forget(name)
            del self._entries[name]

    def names(self) -> tuple[str, ...]:
        """Return the names of all entries, sorted; nothing of theirs is imported."""
        with self._lock:
            return tuple(sorted(self._known()))

    def __contains__(self, name: object) -> bool:
        with self._lock:
            return name in self._known()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def source(self, name: str) -> str:
        """Return who registered an entry: ``"this process"`` or ``"distribution 'x' 1.0"``.

        Raises:
            UnknownNameError: Nothing is registered under ``name``.
        """
        with self._lock:
            return self._entry(name).source

    def check(self, name: str | None = None) -> None:
        """Check that an entry (by default every entry) could be built, without building anything.

        Raises:
            UnknownNameError: Nothing is registered under ``name``.
            RegistrationError: Two distributions claim a name, a dependency is not registered,
                dependencies form a circle, or two entries needed together exclude each other.
        """
        with self._lock:
            for each in self.names() if name is None else (name,):
                self._plan(each)

    def load(self, name: str) -> Callable[..., T]:
        """Return the factory of an entry (usually a class), importing it when needed.

        Raises:
            UnknownNameError: Nothing is registered under ``name``.
            RegistrationError: The factory cannot be imported, or cannot be called.
        """
        with self._lock:
            entry = self._claimed_once(name)
        factory = self._resolve(entry) if isinstance(entry.target, str) else entry.target
        return cast("Callable[..., T]", factory)

    # -- building ---------------------------------------------------------------------------------

    def create(
        self,
        name: str,
        /,
        *,
        fallback: Sequence[str] | Mapping[str, Mapping[str, object]] = (),
        **config: object,
    ) -> T:
        """Return the instance of an entry for a configuration, building it on first use.

        Before anything is built, all names (those of the fallback too) are checked as in `check`.

        Args:
            name: The entry.
            fallback: Entries to try in this order when building ``name`` fails with an
                `AtlasError`, `ImportError` or `OSError` (other errors are mistakes in the code and
                propagate). ``config`` belongs to ``name`` alone: a fallback is built without
                configuration, or with its own when given as ``{name: configuration}``. Whoever
                registered with `on_fallback` is told when one is taken.
            **config: Passed to the factory. Equal configurations share one instance; ``1``, ``1.0``
                and ``True`` are not equal here, mappings are whatever their order, and values that
                cannot be hashed are equal to themselves only.

        Raises:
            UnknownNameError: Nothing is registered under ``name`` or a name in ``fallback``.
            RegistrationError: A check failed; or the factory takes no such configuration, which no
                fallback hides; or ``name`` and all of its fallbacks failed, then ``errors`` holds
                what each raised.
            Exception: Whatever the factory or a hook raised, when there is no fallback.
        """
        given: object = name
        if not isinstance(given, str):
            self._entry(name)  # says so
        build = self._builds.get((name, canonical := _canonical(config)))
        if build is not None and build.result.done() and build.result.exception() is None:
            return cast("T", build.result.result())
        if isinstance(fallback, str):
            raise RegistrationError(
                f"fallback of the {self.kind} {name!r} is the text {fallback!r}. Write a list: "
                f"[{fallback!r}].",
                name=name,
            )
        for each in (name, *fallback):
            self.check(each)
        if not fallback:
            return self._create(name, config, canonical)
        return self._create_first(name, config, fallback)

    def before_build(self, hook: BeforeBuild) -> BeforeBuild:
        """Have ``hook(name, config)`` called before each build; an error it raises fails the build.

        Returns ``hook``, so that it also works as a decorator; `remove_hook` undoes it.
        """
        return self._hook(self._before, hook)

    def after_build(self, hook: AfterBuild[T]) -> AfterBuild[T]:
        """Have ``hook(name, instance)`` called after each build, before anybody gets the instance.

        An error it raises fails the build; the instance is closed with the registry.
        """
        return self._hook(self._after, hook)

    def on_fallback(
        self, observer: Callable[[FallbackTaken], None]
    ) -> Callable[[FallbackTaken], None]:
        """Have ``observer`` called, in the thread of `create`, each time a fallback is taken.

        Its errors propagate from `create`. Returns ``observer``; `remove_hook` undoes it.
        """
        return self._hook(self._observers, observer)

    def remove_hook(self, hook: Callable[..., None]) -> None:
        """Undo `before_build`, `after_build` or `on_fallback`; nothing happens when it is unknown."""
        with self._lock:
            self._before = [each for each in self._before if each != hook]
            self._after = [each for each in self._after if each != hook]
            self._observers = [each for each in self._observers if each != hook]

    # -- closing ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every instance built, last one first; those without a ``close`` are let go.

        The registry stays usable: what is created afterwards is built anew.

        Raises:
            RegistrationError: An instance has only an ``aclose``. Nothing is closed; await
                `aclose` instead.
            CloseFailedError: Some instances raised; the others were closed all the same.
        """
        with self._lock:
            for name, instance in self._made:
                if not hasattr(instance, "close") and hasattr(instance, "aclose"):
                    raise RegistrationError(
                        f"The {self.kind} {name!r} can only be closed asynchronously. "
                        f"Use `await registry.aclose()`.",
                        name=name,
                    )
        errors: list[Exception] = []
        while (made := self._take_last()) is not None:
            name, instance = made
            try:
                _closer(instance, "close")()
            # Whatever one instance raises, the others must be closed; all errors are raised below.
            except Exception as error:  # noqa: BLE001
                errors.append(_noted(error, f"while closing the {self.kind} {name!r}"))
        self._raise_close_errors(errors)

    async def aclose(self) -> None:
        """Close every instance built, last one first, by its ``aclose``, else its ``close``.

        The registry stays usable. When this is cancelled, instances not reached yet stay with the
        registry, to be closed by another call.

        Raises:
            CloseFailedError: Some instances raised; the others were closed all the same.
        """
        errors: list[Exception] = []
        while (made := self._take_last()) is not None:
            name, instance = made
            try:
                outcome = _closer(instance, "aclose", "close")()
                if inspect.isawaitable(outcome):
                    await outcome
            # As in close().
            except Exception as error:  # noqa: BLE001
                errors.append(_noted(error, f"while closing the {self.kind} {name!r}"))
        self._raise_close_errors(errors)

    # -- inside: entries --------------------------------------------------------------------------

    def _known(self) -> dict[str, _Entry]:
        if not self._discovered:
            self._discover()
        return self._entries

    def _discover(self) -> None:
        # Imported here: with it and asyncio alone, `import atlas` would reach its module budget.
        from importlib.metadata import entry_points  # noqa: PLC0415

        found: dict[str, _Entry] = {}
        for point in entry_points(group=self.group or ""):
            offered = point.dist
            source = (
                f"distribution {offered.name!r} {offered.version}"
                if offered is not None
                else "an unnamed distribution"
            )
            first = found.get(point.name)
            found[point.name] = (
                _Entry(name=point.name, target=point.value, source=source)
                if first is None
                else _Entry(first.name, first.target, first.source, also=(*first.also, source))
            )
        self._entries = found
        self._discovered = True

    def _entry(self, name: str) -> _Entry:
        given: object = name
        if not isinstance(given, str):
            raise self._unknown_error(
                f"A {self.kind} is asked for as {given!r}. Give its name, which is text.",
                name=repr(given),
            )
        entry = self._known().get(name)
        if entry is None:
            known = ", ".join(map(repr, self.names())) or "none"
            raise self._unknown_error(
                f"No {self.kind} is registered as {name!r}{nearest_name(name, self._entries)}. "
                f"Registered: {known}.",
                name=name,
            )
        return entry

    def _claimed_once(self, name: str) -> _Entry:
        entry = self._entry(name)
        if entry.also:
            raise RegistrationError(
                f"The {self.kind} {name!r} is offered by {' and by '.join((entry.source, *entry.also))}. "
                f"Uninstall one of them, or register the one you mean with replace=True.",
                name=name,
            )
        return entry

    def _plan(self, name: str) -> tuple[str, ...]:
        """Return ``name`` after all it depends on, in build order; everything checked."""
        self._entry(name)
        order: dict[str, None] = {}
        self._visit(name, order, ())
        alive = {build.name for build in self._builds.values()}
        for each in order:
            self._check_conflicts(each, order.keys() | alive)
        return tuple(order)

    def _visit(self, name: str, order: dict[str, None], path: tuple[str, ...]) -> None:
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise RegistrationError(
                f"The {self.kind} {name!r} depends on itself: {circle}. Remove one of these "
                f"dependencies.",
                name=name,
            )
        if name in order:
            return
        if path and name not in self._known():
            raise RegistrationError(
                f"The {self.kind} {path[-1]!r} depends on {name!r}, which is not registered"
                f"{nearest_name(name, self._entries)}. Register it first.",
                name=path[-1],
            )
        for dependency in self._claimed_once(name).depends_on:
            self._visit(dependency, order, (*path, name))
        order[name] = None

    def _check_conflicts(self, name: str, others: AbstractSet[str]) -> None:
        for other in sorted(others):
            theirs = self._entries.get(other)
            if other in self._entries[name].conflicts_with or (
                theirs is not None and name in theirs.conflicts_with
            ):
                raise RegistrationError(
                    f"The {self.kind} {name!r} conflicts with {other!r}, which is needed or alive "
                    f"beside it. Close the registry first, or use only one of them.",
                    name=name,
                )

    def _check_claim(
        self, name: object, factory: object, depends_on: object, conflicts_with: object
    ) -> None:
        if not isinstance(name, str) or not name:
            raise RegistrationError(
                f"A {self.kind} cannot be registered as {name!r}. Give it a name that is text.",
                name=str(name),
            )
        if isinstance(factory, str):
            self._check_target(name, factory)
        elif not callable(factory):
            raise RegistrationError(
                f"The {self.kind} {name!r} cannot be registered as {factory!r}, which cannot be "
                f"called. Pass a class or a function, or 'package.module:attribute'.",
                name=name,
            )
        for option, given in (("depends_on", depends_on), ("conflicts_with", conflicts_with)):
            if isinstance(given, str):
                raise RegistrationError(
                    f"{option} of the {self.kind} {name!r} is the text {given!r}. Write a list: "
                    f"[{given!r}].",
                    name=name,
                )
            names = given.values() if isinstance(given, Mapping) else given
            if not isinstance(names, Iterable) or not all(isinstance(one, str) for one in names):
                raise RegistrationError(
                    f"{option} of the {self.kind} {name!r} is {given!r}. Write a list of names.",
                    name=name,
                )

    def _check_configuration(
        self, entry: _Entry, factory: Callable[..., T], config: Mapping[str, object]
    ) -> None:
        """Refuse what a factory does not take, before it is called: later, a TypeError may be its own."""
        try:
            signature = inspect.signature(factory)
        except (TypeError, ValueError):  # some classes written in C do not tell
            return
        try:
            signature.bind(**{**dict.fromkeys(entry.parameters), **config})
        except TypeError as error:
            own = [each for each in signature.parameters if each not in entry.parameters]
            raise RegistrationError(
                f"The {self.kind} {entry.name!r} cannot be built with "
                f"{', '.join(map(repr, config)) or 'no configuration'}: {error}. "
                f"It takes: {', '.join(own) or 'nothing'}.",
                name=entry.name,
            ) from error

    def _check_target(self, name: str, target: str) -> None:
        module, colon, attribute = target.partition(":")
        if not (module and colon and attribute) or ":" in attribute:
            raise RegistrationError(
                f"The {self.kind} {name!r} cannot be registered as {target!r}. "
                f"Write 'package.module:attribute', or pass the factory itself.",
                name=name,
            )

    def _resolve(self, entry: _Entry) -> object:
        target = cast("str", entry.target)
        self._check_target(entry.name, target)
        module, _, attribute = target.partition(":")
        try:
            found: object = import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            if isinstance(error, AtlasError):
                raise  # a missing optional package already says what to install
            raise RegistrationError(
                f"The {self.kind} {entry.name!r} of {entry.source} cannot be loaded from "
                f"{target!r}: {error}. Mend that module, or unregister the entry.",
                name=entry.name,
            ) from error
        if not callable(found):
            raise RegistrationError(
                f"The {self.kind} {entry.name!r} of {entry.source} names {target!r}, which is "
                f"{found!r} and cannot be called. Name a class or a function.",
                name=entry.name,
            )
        return found

    def _forget(self, name: str) -> None:
        for key in [key for key in self._builds if key[0] == name]:
            del self._builds[key]

    # -- inside: builds ---------------------------------------------------------------------------

    def _create_first(
        self,
        name: str,
        config: Mapping[str, object],
        fallback: Sequence[str] | Mapping[str, Mapping[str, object]],
    ) -> T:
        own = fallback if isinstance(fallback, Mapping) else dict.fromkeys(fallback, _NO_CONFIG)
        failures: list[tuple[str, Exception]] = []
        for candidate, settings in ((name, config), *own.items()):
            try:
                factory = self.load(candidate)
            except _FALLBACK_ON as error:
                failures.append((candidate, error))
                continue
            self._check_configuration(self._entry(candidate), factory, settings)
            try:
                instance = self._create(candidate, settings, _canonical(settings))
            except _FALLBACK_ON as error:
                failures.append((candidate, error))
                continue
            if failures:
                report = FallbackTaken(self.kind, name, candidate, tuple(failures))
                for observer in self._observers:
                    observer(report)
            return instance
        told = "; ".join(f"{failed!r}: {error}" for failed, error in failures)
        raise RegistrationError(
            f"The {self.kind} {name!r} and all its fallbacks failed. {told}",
            name=name,
            errors=[error for _, error in failures],
        ) from failures[-1][1]

    def _create(self, name: str, config: Mapping[str, object], canonical: object) -> T:
        with self._lock:
            needed = self._plan(name)[:-1]
        for dependency in needed:
            self._instance(dependency, _NO_CONFIG, _canonical(_NO_CONFIG))
        return self._instance(name, config, canonical)

    def _instance(self, name: str, config: Mapping[str, object], canonical: object) -> T:
        me = threading.get_ident()
        with self._lock:
            build = self._builds.get((name, canonical))
            if build is None:
                # Once more: another thread may have built what excludes this one meanwhile.
                entry = self._claimed_once(name)
                self._check_conflicts(name, {build.name for build in self._builds.values()})
                mine = self._builds[name, canonical] = _Build(name, config, me)
            elif not build.result.done():
                self._refuse_deadlock(build, me)
                self._waiting[me] = build
        if build is not None:
            try:
                return cast("T", build.result.result())
            finally:
                self._waiting.pop(me, None)
        return self._build(entry, mine, canonical)

    def _build(self, entry: _Entry, build: _Build, canonical: object) -> T:
        try:
            instance = self._run_factory(entry, build.config)
        # BaseException: threads that wait for this build must never be left waiting.
        except BaseException as error:
            with self._lock:
                if self._builds.get((entry.name, canonical)) is build:
                    del self._builds[entry.name, canonical]
            build.result.set_exception(error)
            raise
        build.result.set_result(instance)
        return instance

    def _run_factory(self, entry: _Entry, config: Mapping[str, object]) -> T:
        for before in self._before:
            before(entry.name, MappingProxyType(dict(config)))
        factory = self.load(entry.name)
        self._check_configuration(entry, factory, config)
        passed = {
            parameter: self._instance(name, _NO_CONFIG, _canonical(_NO_CONFIG))
            for parameter, name in entry.parameters.items()
        }
        instance = factory(**{**passed, **config})
        if inspect.iscoroutine(instance):
            instance.close()
            raise RegistrationError(
                f"The factory of the {self.kind} {entry.name!r} is asynchronous, and nobody awaits "
                f"it. Build in a plain function, and open what has to be awaited later.",
                name=entry.name,
            )
        with self._lock:
            self._made.append((entry.name, instance))
        for after in self._after:
            after(entry.name, instance)
        return instance

    def _refuse_deadlock(self, build: _Build, me: int) -> None:
        """Refuse to wait for a build that, through others, waits for this thread."""
        awaited: _Build | None = build
        chain: list[str] = []
        while awaited is not None and not awaited.result.done():
            chain.append(repr(awaited.name))
            if awaited.owner == me:
                raise RegistrationError(
                    f"Building the {self.kind} {build.name!r} needs itself: its factory asks for "
                    f"{' -> '.join(chain)}, which is being built. Declare the dependency with "
                    f"depends_on, in one direction only.",
                    name=build.name,
                )
            awaited = self._waiting.get(awaited.owner)

    def _hook(self, hooks: list[Hook], hook: Hook) -> Hook:
        if not callable(hook):
            raise RegistrationError(
                f"{hook!r} of the registry of each {self.kind} cannot be called. Give a function.",
                name="",
            )
        with self._lock:
            hooks.append(hook)
        return hook

    def _take_last(self) -> tuple[str, T] | None:
        with self._lock:
            if not self._made:
                return None
            name, instance = self._made.pop()
            for key, build in list(self._builds.items()):
                if build.result.done() and build.result.result() is instance:
                    del self._builds[key]
            return name, instance

    def _raise_close_errors(self, errors: Sequence[Exception]) -> None:
        if errors:
            told = "; ".join(repr(error) for error in errors)
            raise CloseFailedError(
                f"{len(errors)} of the registry's {self.kind} instances failed to close: {told}. "
                f"The others are closed.",
                errors=errors,
            )


_NO_CONFIG: Mapping[str, object] = MappingProxyType({})


def _closer(instance: object, *names: str) -> Callable[[], object]:
    for name in names:
        if callable(method := getattr(instance, name, None)):
            return cast("Callable[[], object]", method)
    return lambda: None


def _noted(error: Exception, note: str) -> Exception:
    error.add_note(note)
    return error


class _Same:
    """Stands in a key for a value that cannot be hashed: equal to itself only."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value  # held, so that its id is not given to another object meanwhile

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def _canonical(value: object) -> object:
    """Return a hashable stand-in for a configuration value, equal for equal values of one type."""
    if isinstance(value, Mapping):
        return Mapping, frozenset((_canonical(k), _canonical(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(_canonical(each) for each in value)
    if isinstance(value, AbstractSet):
        return AbstractSet, frozenset(_canonical(each) for each in value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value

"""DiffSynchronizer: bring two copies that changed apart back together, by a plan you can read first.

`DiffSynchronizer.plan` compares both copies with the value they come from and returns a `SyncPlan`:
what each side has to take over, and where both changed the same thing. Nothing is touched until
`SyncPlan.apply`, which returns a new value. It works on JSON-like data: mappings, lists, sets and
whatever is compared as a whole, in plain, frozen or pyrsistent containers.

It is no text merge, and no RFC 6902 patch: those address list items by place, which means nothing
once two sides have changed.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar, cast

from atlas.errors import MergeConflictError, ValidationError

__all__ = [
    "MISSING",
    "AddMember",
    "Conflict",
    "DiffSynchronizer",
    "Item",
    "KeyOf",
    "Missing",
    "Operation",
    "Path",
    "Put",
    "Remove",
    "RemoveMember",
    "Reorder",
    "Strategy",
    "SyncPlan",
    "path_text",
]


class Missing(enum.Enum):
    """The type of `MISSING`."""

    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING
"""Stands for "there is nothing here", in a conflict and as the answer of a custom strategy."""

KeyOf: TypeAlias = "str | Callable[[Any], Hashable]"  # Any: the items of the user's own list
"""What identifies an item of a list: the name of a field of it, or a function of it."""


@dataclass(frozen=True, slots=True)
class Item:
    """A path segment: the item of a list whose key, by ``by``, is ``key``."""

    by: KeyOf
    key: Hashable


Path: TypeAlias = "tuple[Hashable | Item, ...]"
"""Where in a value: mapping keys, and `Item` for items of keyed lists; empty for the whole."""


def path_text(path: Path) -> str:
    """Return a path as text (``"/items/7/price"``), with ``~`` and ``/`` as ``~0`` and ``~1``."""
    return "".join("/" + _segment_text(segment) for segment in path)


# -- operations -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Put:
    """Set the value at ``path`` to ``after``; ``before`` is MISSING when it is new."""

    path: Path
    before: object
    after: object

    def __str__(self) -> str:
        return f"put     {_shown_path(self.path)}  {self.before!r} -> {self.after!r}"


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove what is at ``path``."""

    path: Path
    before: object

    def __str__(self) -> str:
        return f"remove  {_shown_path(self.path)}  {self.before!r}"


@dataclass(frozen=True, slots=True)
class AddMember:
    """Add ``member`` to the set at ``path``."""

    path: Path
    member: Hashable

    def __str__(self) -> str:
        return f"add     {_shown_path(self.path)}  {self.member!r}"


@dataclass(frozen=True, slots=True)
class RemoveMember:
    """Remove ``member`` from the set at ``path``."""

    path: Path
    member: Hashable

    def __str__(self) -> str:
        return f"discard {_shown_path(self.path)}  {self.member!r}"


@dataclass(frozen=True, slots=True)
class Reorder:
    """Bring the items of the list at ``path`` into the order of ``keys``."""

    path: Path
    by: KeyOf
    keys: tuple[Hashable, ...]

    def __str__(self) -> str:
        return f"reorder {_shown_path(self.path)}  {list(self.keys)!r}"


Operation: TypeAlias = Put | Remove | AddMember | RemoveMember | Reorder
"""One step of a plan. Operations state the outcome: applied twice, they do the same as once."""


# -- conflicts and plans --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Conflict:
    """A place where both sides changed the same thing differently.

    Attributes:
        path: Where.
        base: What both come from; MISSING when there was nothing.
        ours: What our side made of it; MISSING when it removed it.
        theirs: What their side made of it; MISSING when it removed it.
        about: ``"value"``; or ``"order"`` when both sides reordered the items of a list, then the
            three are the keys of the items that all have.
        resolution: The strategy that settled it; None while nothing has.
    """

    path: Path
    base: object
    ours: object
    theirs: object
    about: Literal["value", "order"] = "value"
    resolution: Literal["ours", "theirs", "custom"] | None = None

    def __str__(self) -> str:
        return (
            f"{self.about} of {_shown_path(self.path)}: base {self.base!r}, ours {self.ours!r}, "
            f"theirs {self.theirs!r} ({self.resolution or 'unresolved'})"
        )


Strategy: TypeAlias = Literal["ours", "theirs", "fail"] | Callable[[Conflict], object]
"""Who wins a conflict. A function returns the value to use, or MISSING to have none."""


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """What has to happen for two sides to agree; ``str(plan)`` is the dry run to read.

    Attributes:
        ours: What our side has to take over, in order.
        theirs: What their side has to take over, in order.
        conflicts: Where both changed the same thing, resolved or not. Operations leave alone what
            is unresolved.
    """

    ours: tuple[Operation, ...]
    theirs: tuple[Operation, ...]
    conflicts: tuple[Conflict, ...] = ()

    @property
    def unresolved(self) -> tuple[Conflict, ...]:
        """The conflicts that no strategy settled."""
        return tuple(each for each in self.conflicts if each.resolution is None)

    def apply(self, value: object, *, side: Literal["ours", "theirs"] = "ours") -> object:
        """Return ``value`` with the operations of one side done; ``value`` itself is not changed.

        Containers keep their kind (``dict``, ``tuple``, ``pmap``, ...); what did not change is
        shared with ``value``. Applying a plan to its own result returns it unchanged.

        Args:
            value: The side the plan was made for.
            side: Which of the two it is.

        Raises:
            ValidationError: There is no such side.
            MergeConflictError: A conflict is unresolved; or ``value`` is no longer what the plan
                was made for, in a place that it changes.
        """
        if side not in ("ours", "theirs"):
            raise ValidationError("Plan.apply", "side", side, "'ours' or 'theirs'")
        if self.unresolved:
            raise MergeConflictError(
                "Both sides changed the same thing: "
                + "; ".join(str(each) for each in self.unresolved)
                + ". Give a strategy for these paths.",
                paths=[path_text(each.path) for each in self.unresolved],
            )
        operations = self.ours if side == "ours" else self.theirs
        return _apply(value, operations, ())

    def __str__(self) -> str:
        lines = [f"ours    {each}" for each in self.ours]
        lines += [f"theirs  {each}" for each in self.theirs]
        lines += [f"conflict {each}" for each in self.conflicts]
        return "\n".join(lines) or "nothing to do"


class DiffSynchronizer:
    """Three-way synchronisation of JSON-like values. Immutable; may be used from any thread.

    Mappings are merged key by key and sets member by member. A list is merged item by item when
    ``keys`` says what identifies an item, and is one value otherwise. Everything is compared
    strictly: ``1``, ``1.0`` and ``True`` are different values; the kind of a container is none.

    Without a conflict the result does not depend on which side is called ours.

    Args:
        conflicts: Who wins where no entry of ``strategies`` applies. ``"fail"``: the plan shows the
            conflict and refuses to be applied.
        strategies: Who wins, by path pattern; the first that matches applies. Patterns are paths
            in which ``*`` stands for one segment and ``**`` for any number:
            ``{"/items/*/price": "theirs", "/notes/**": join}``.
        keys: What identifies an item of a list, by path pattern: ``{"/items": "id"}``.

    Example:
        >>> plan = DiffSynchronizer().plan({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 1})
        >>> print(plan)
        ours    remove  /b  1
        theirs  put     /a  1 -> 2
        >>> plan.apply({"a": 2, "b": 1})
        {'a': 2}
    """

    def __init__(
        self,
        *,
        conflicts: Strategy = "fail",
        strategies: Mapping[str, Strategy] | None = None,
        keys: Mapping[str, KeyOf] | None = None,
    ) -> None:
        for name, given in (("strategies", strategies), ("keys", keys)):
            if not isinstance(given, Mapping | None):
                raise ValidationError("DiffSynchronizer", name, given, "a mapping by path patterns")
        for strategy in (conflicts, *(strategies or {}).values()):
            if not callable(strategy) and strategy not in ("ours", "theirs", "fail"):
                raise ValidationError(
                    "DiffSynchronizer", "strategy", strategy, "'ours', 'theirs', 'fail' or callable"
                )
        self._strategies = [
            (_pattern(pattern), strategy) for pattern, strategy in (strategies or {}).items()
        ]
        self._strategies.append((("**",), conflicts))
        self._keys = [(_pattern(pattern), key) for pattern, key in (keys or {}).items()]

    def plan(self, base: object, ours: object, theirs: object) -> SyncPlan:
        """Return what has to happen for ``ours`` and ``theirs``, made from ``base``, to agree.

        Raises:
            ValidationError: An item of a keyed list has no key, or the key of another item; or something
                is nested deeper than Python's stack is.
        """
        try:
            return self._planned(base, ours, theirs)
        except RecursionError as error:
            raise ValidationError(
                "DiffSynchronizer", "", "what is nested so deep", "values that Python can compare"
            ) from error

    def _planned(self, base: object, ours: object, theirs: object) -> SyncPlan:
        conflicts: list[Conflict] = []
        merged = self._merge((), _Sides(base, ours, theirs), conflicts)
        open_values = [c.path for c in conflicts if c.resolution is None and c.about == "value"]
        open_orders = {c.path for c in conflicts if c.resolution is None and c.about == "order"}
        open_orders |= {path[:-1] for path in open_values if path}

        def settled(operation: Operation) -> bool:
            if isinstance(operation, Reorder) and operation.path in open_orders:
                return False  # the order of the items, or whether one is there at all, is open
            return not any(operation.path[: len(path)] == path for path in open_values)

        return SyncPlan(
            ours=tuple(filter(settled, self._diff((), ours, merged))),
            theirs=tuple(filter(settled, self._diff((), theirs, merged))),
            conflicts=tuple(conflicts),
        )

    def merge(self, base: object, ours: object, theirs: object) -> object:
        """Return what both sides agree on, in the containers of ``ours``: `plan` and apply in one.

        Raises:
            MergeConflictError: A conflict is left to the strategy ``"fail"``.
            ValidationError: As in `plan`.
        """
        return self.plan(base, ours, theirs).apply(ours)

    # -- merging ----------------------------------------------------------------------------------

    def _merge(self, path: Path, sides: _Sides[object], conflicts: list[Conflict]) -> object:
        base, ours, theirs = sides
        if _same(ours, theirs) or _same(theirs, base):
            return ours
        if _same(ours, base):
            return theirs
        kinds = {_kind(side) for side in sides if side is not base or base is not MISSING}
        if kinds == {"map"}:
            return self._merge_maps(path, [_as_map(side) for side in sides], conflicts)
        if kinds == {"set"}:
            was, mine, other = (_as_set(side) for side in sides)
            return (mine & other) | (mine - was) | (other - was)
        if kinds == {"list"} and (by := self._key_of(path)) is not None:
            return self._merge_lists(path, by, sides, conflicts)
        return self._settle(Conflict(path, base, ours, theirs), conflicts)

    def _merge_maps(
        self, path: Path, maps: Sequence[Mapping[Any, object]], conflicts: list[Conflict]
    ) -> dict[Any, object]:
        base, ours, theirs = maps
        merged: dict[Any, object] = {}
        for key in dict.fromkeys((*ours, *theirs, *base)):
            sides = _Sides(*(each.get(key, MISSING) for each in maps))
            value = self._merge((*path, key), sides, conflicts)
            if value is not MISSING:
                merged[key] = value
        return merged

    def _merge_lists(
        self, path: Path, by: KeyOf, sides: _Sides[object], conflicts: list[Conflict]
    ) -> list[object]:
        maps = [_items(path, by, side) for side in sides]
        merged = self._merge_maps(path, maps, conflicts)
        was, mine, other = ([item for item in each if item in merged] for each in maps)
        shared = set(mine) & set(other) & set(was)
        orders = _Sides(*([item for item in side if item in shared] for side in (was, mine, other)))
        skeleton = self._merge_orders(path, orders, conflicts)
        order = _with_additions(skeleton, sorted((mine, other), key=repr))
        return [merged[item] for item in order]

    def _merge_orders(
        self, path: Path, orders: _Sides[list[Item]], conflicts: list[Conflict]
    ) -> list[Item]:
        base, ours, theirs = orders
        if theirs in (ours, base):
            return ours
        if ours == base:
            return theirs
        was, mine, other = (tuple(item.key for item in order) for order in orders)
        answer = self._settle(Conflict(path, was, mine, other, about="order"), conflicts)
        by_key = {item.key: item for item in base}
        if _kind(answer) != "list" or set(cast("Sequence[object]", answer)) != by_key.keys():
            rule = f"the keys {list(by_key)!r} in some order"
            raise ValidationError("DiffSynchronizer", path_text(path), answer, rule)
        return [by_key[key] for key in dict.fromkeys(cast("Sequence[Hashable]", answer))]

    def _settle(self, conflict: Conflict, conflicts: list[Conflict]) -> object:
        segments = [_segment_text(segment) for segment in conflict.path]
        strategy = next(who for pattern, who in self._strategies if _matches(pattern, segments))
        if callable(strategy):
            conflicts.append(replace(conflict, resolution="custom"))
            return strategy(conflict)
        resolution = None if strategy == "fail" else strategy
        conflicts.append(replace(conflict, resolution=resolution))
        return conflict.theirs if strategy == "theirs" else conflict.ours

    def _key_of(self, path: Path) -> KeyOf | None:
        segments = [_segment_text(segment) for segment in path]
        return next((by for pattern, by in self._keys if _matches(pattern, segments)), None)

    # -- comparing --------------------------------------------------------------------------------

    def _diff(self, path: Path, before: object, after: object) -> Iterator[Operation]:
        if _same(before, after):
            return
        kinds = {_kind(before), _kind(after)}
        if kinds == {"map"}:
            yield from self._diff_maps(path, _as_map(before), _as_map(after))
        elif kinds == {"set"}:
            was, now = _as_set(before), _as_set(after)
            yield from (RemoveMember(path, each) for each in sorted(was - now, key=repr))
            yield from (AddMember(path, each) for each in sorted(now - was, key=repr))
        elif kinds == {"list"} and (by := self._key_of(path)) is not None:
            yield from self._diff_lists(path, by, before, after)
        elif after is MISSING:
            yield Remove(path, before)
        else:
            yield Put(path, before, after)

    def _diff_maps(
        self, path: Path, before: Mapping[Any, object], after: Mapping[Any, object]
    ) -> Iterator[Operation]:
        for key in dict.fromkeys((*before, *after)):
            yield from self._diff((*path, key), before.get(key, MISSING), after.get(key, MISSING))

    def _diff_lists(
        self, path: Path, by: KeyOf, before: object, after: object
    ) -> Iterator[Operation]:
        was, now = _items(path, by, before), _items(path, by, after)
        yield from self._diff_maps(path, was, now)
        left = [item for item in was if item in now] + [item for item in now if item not in was]
        if left != list(now):
            yield Reorder(path, by, tuple(item.key for item in now))


T = TypeVar("T")


class _Sides(NamedTuple, Generic[T]):
    base: T
    ours: T
    theirs: T


# -- paths and patterns ---------------------------------------------------------------------------


def _segment_text(segment: Hashable | Item) -> str:
    text = str(segment.key if isinstance(segment, Item) else segment)
    return text.replace("~", "~0").replace("/", "~1")


def _shown_path(path: Path) -> str:
    return path_text(path) or "(everything)"


def _pattern(text: str) -> tuple[str, ...]:
    given: object = text
    if not isinstance(given, str) or (given and not given.startswith("/")):
        rule = "a path pattern that starts with '/', such as '/items/*/price', or '' for the whole"
        raise ValidationError("DiffSynchronizer", "pattern", text, rule)
    return tuple(text.split("/")[1:])


def _matches(pattern: Sequence[str], segments: Sequence[str]) -> bool:
    if not pattern:
        return not segments
    if pattern[0] == "**":
        return any(_matches(pattern[1:], segments[at:]) for at in range(len(segments) + 1))
    return (
        bool(segments) and pattern[0] in ("*", segments[0]) and _matches(pattern[1:], segments[1:])
    )


# -- values ---------------------------------------------------------------------------------------


_Kind: TypeAlias = Literal["map", "set", "list", "leaf"]

# The usual types at once: asking abstract classes takes most of the time of a comparison.
_KINDS: Mapping[type, _Kind] = {
    dict: "map",
    **dict.fromkeys((str, int, float, bool, type(None)), "leaf"),
    **dict.fromkeys((list, tuple), "list"),
}


def _kind(value: object) -> _Kind:
    known = _KINDS.get(type(value))
    if known is not None:
        return known
    if isinstance(value, Mapping):
        return "map"
    if isinstance(value, AbstractSet):
        return "set"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return "list"
    return "leaf"


def _as_map(value: object) -> Mapping[Any, object]:
    return {} if value is MISSING else cast("Mapping[Any, object]", value)


def _as_set(value: object) -> frozenset[Hashable]:
    return frozenset() if value is MISSING else frozenset(cast("Iterable[Hashable]", value))


def _same(one: object, other: object) -> bool:
    if one is other:
        return True
    kind = _kind(one)
    if kind != _kind(other):
        return False
    if kind == "map":
        mine, yours = _as_map(one), _as_map(other)
        return mine.keys() == yours.keys() and all(_same(mine[key], yours[key]) for key in mine)
    if kind == "set":
        return _as_set(one) == _as_set(other)
    if kind == "list":
        left, right = cast("Sequence[object]", one), cast("Sequence[object]", other)
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(one, float) and isinstance(other, float) and isnan(one):
        return isnan(other)
    return type(one) is type(other) and one == other


def _items(path: Path, by: KeyOf, items: object) -> dict[Item, object]:
    keyed: dict[Item, object] = {}
    for item in () if items is MISSING else cast("Sequence[object]", items):
        segment = Item(by, _key(by, item))
        if segment.key is MISSING or segment in keyed:
            rule = f"an item with a unique key by {by!r}"
            raise ValidationError("DiffSynchronizer", path_text(path), item, rule)
        keyed[segment] = item
    return keyed


def _key(by: KeyOf, item: object) -> Hashable:
    if callable(by):
        return by(item)
    found = item.get(by, MISSING) if isinstance(item, Mapping) else MISSING
    return cast("Hashable", found) if _kind(found) == "leaf" else MISSING


def _with_additions(skeleton: list[Item], sides: Iterable[list[Item]]) -> list[Item]:
    """Put what each side has beside the skeleton behind what it follows on its side."""
    known = set(skeleton)
    following: dict[Item | None, list[Item]] = {each: [] for each in (None, *skeleton)}
    for side in sides:
        anchor: Item | None = None
        for item in side:
            if item in known:
                anchor = item
            else:
                following[anchor].append(item)
    order = list(following[None])
    for item in skeleton:
        order += [item, *following[item]]
    return list(dict.fromkeys(order))


# -- applying -------------------------------------------------------------------------------------


def _apply(value: object, operations: Sequence[Operation], path: Path) -> object:
    """Apply operations that all lie at or below ``path``, where ``value`` is, in one pass."""
    depth = len(path)
    below: dict[Hashable, list[Operation]] = {}
    for operation in operations:
        if len(operation.path) > depth:
            below.setdefault(operation.path[depth], []).append(operation)
    if below:
        value = _edited(value, below, path)
    for operation in operations:
        if len(operation.path) == depth:
            value = _apply_here(value, operation)
    return value


def _apply_here(value: object, operation: Operation) -> object:
    match operation:
        case Put(before=before, after=after):
            if _same(value, after):
                return value
            if not _same(value, before):
                raise _stale(operation, value)
            return after
        case Remove(before=before):
            if value is not MISSING and not _same(value, before):
                raise _stale(operation, value)
            return MISSING
        case AddMember(member=member):
            if not isinstance(value, AbstractSet):
                raise _stale(operation, value)
            return value if member in value else _rebuilt_set(value, value | {member})
        case RemoveMember(member=member):
            if not isinstance(value, AbstractSet):
                raise _stale(operation, value)
            return _rebuilt_set(value, value - {member}) if member in value else value
        case Reorder(by=by, keys=keys):
            if _kind(value) != "list":
                raise _stale(operation, value)
            items = _items(operation.path, by, value)
            wanted = dict.fromkeys(Item(by, key) for key in keys)
            order = [item for item in wanted if item in items]
            order += [item for item in items if item not in wanted]
            return (
                value if order == list(items) else _rebuilt_list(value, [items[i] for i in order])
            )


def _edited(value: object, below: Mapping[Hashable, list[Operation]], path: Path) -> object:
    first = next(iter(below))
    if isinstance(first, Item) and _kind(value) == "list":
        items = _items(path, first.by, value)
        return _rebuilt_list(value, list(_edits(items, below, path).values()))
    if not isinstance(first, Item) and isinstance(value, Mapping):
        return _rebuilt_map(value, _edits(value, below, path))
    if value is MISSING and all(isinstance(op, Remove) for ops in below.values() for op in ops):
        return MISSING
    raise _stale(below[first][0], value)


def _edits(
    values: Mapping[Any, object], below: Mapping[Any, list[Operation]], path: Path
) -> dict[Any, object]:
    edited = dict(values)
    for segment, operations in below.items():
        made = _apply(values.get(segment, MISSING), operations, (*path, segment))
        if made is MISSING:
            edited.pop(segment, None)
        else:
            edited[segment] = made
    return edited


def _stale(operation: Operation, value: object) -> MergeConflictError:
    return MergeConflictError(
        f"The plan does not fit any more: it would {operation}, and there is now {value!r}. "
        f"Make a new plan.",
        paths=[path_text(operation.path)],
    )


# pyrsistent containers are rebuilt by their own methods, found by name: this module works without
# the package, and a persistent container shares what did not change.


def _rebuilt_map(like: Mapping[Any, object], content: dict[Any, object]) -> Mapping[Any, object]:
    if isinstance(like, dict) or not hasattr(like, "evolver"):
        return content
    made = cast("Any", like)
    for key in like.keys() - content.keys():
        made = made.remove(key)
    return cast(
        "Mapping[Any, object]",
        functools.reduce(
            lambda built, pair: built.set(*pair),
            ((key, new) for key, new in content.items() if like.get(key, MISSING) is not new),
            made,
        ),
    )


def _rebuilt_list(like: object, content: list[object]) -> object:
    if isinstance(like, tuple):
        return tuple(content)
    if hasattr(like, "evolver"):
        return cast("Any", like)[:0].extend(content)
    return content


def _rebuilt_set(like: AbstractSet[Any], content: AbstractSet[Any]) -> AbstractSet[Any]:
    return content if type(content) is type(like) else frozenset(content)

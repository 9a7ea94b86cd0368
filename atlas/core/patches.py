"""Differences between two values as data: RFC 6902 (JSON Patch) over plain and persistent values.

A patch is a tuple of operations, each a plain dict that ``json.dumps`` takes, so that it can be
stored, sent, and applied elsewhere. `diff` looks into dicts, lists and tuples, pyrsistent maps
and vectors, and (frozen) dataclasses, which are objects with one member per field. It skips what
two versions share, so that the cost follows the change and not the size of the state, and it
never copies the state into a plain form first, which is why it is not built on the `jsonpatch`
package: that takes plain documents only.

Patches are exact but not always the shortest: a list is compared after its common beginning and
end are set aside, and nothing is ever expressed as a move.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from enum import Enum
from math import isfinite

# The operands are whatever a program keeps in its state; only JSON leaves this module.
from typing import Any, TypeAlias, TypeVar, cast

from atlas.core.persistent import PMap, PVector, differing_parts, freeze, pmap, pvector
from atlas.errors import PatchError
from atlas.typing import JSON

__all__ = ["Operation", "Patch", "apply_patch", "diff", "plain"]

Operation: TypeAlias = dict[str, JSON]
"""One operation of RFC 6902: ``op``, ``path``, and ``value`` or ``from`` as the operation asks."""

Patch: TypeAlias = tuple[Operation, ...]
"""What leads from one value to another, in the order to be applied."""

V = TypeVar("V")

_SCALARS = (str, int, float, bool, type(None))


def plain(value: object) -> JSON:
    """Return ``value`` as JSON: what patches carry and what a remote copy of the state looks like.

    Maps and dataclasses become dicts, sequences lists, sets sorted lists, enums their values.

    Raises:
        PatchError: If something inside is none of these and not a JSON scalar, or a key is not a
            string.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, _SCALARS) and (type(value) is not float or isfinite(value)):
        return value
    if _is_object(value):
        return {key: plain(item) for key, item in _members(value).items()}
    if isinstance(value, (list, tuple, PVector)):
        return [plain(item) for item in value]
    if isinstance(value, AbstractSet):
        return cast("JSON", sorted((plain(item) for item in value), key=repr))
    raise PatchError(
        f"{value!r} has no JSON form. Keep finite scalars, enums, dataclasses, maps, sequences and sets "
        f"in a state of which you want patches."
    )


def diff(before: object, after: object) -> Patch:
    """Return the patch that turns ``before`` into ``after``; empty if they are the same.

    ``apply_patch(plain(before), diff(before, after)) == plain(after)`` for all values that have a
    JSON form. Pure; safe from any thread.

    Raises:
        PatchError: If something that changed has no JSON form; see `plain`.
    """
    operations: list[Operation] = []
    try:
        _diff(before, after, "", operations)
    except RecursionError as error:
        raise PatchError(
            "A value holds itself, or is nested too deep for a patch. Refer to things by an id, or "
            "flatten it."
        ) from error
    return tuple(operations)


def apply_patch(document: V, patch: Patch) -> V:
    """Return ``document`` with ``patch`` applied; the document itself is never changed.

    All six operations of RFC 6902 are understood. Applied to persistent values and dataclasses,
    the result has their types; what the patch itself brings is plain, or persistent inside a
    persistent parent, because a patch does not know of which class a new member was.

    Raises:
        PatchError: If an operation does not fit the document, or a ``test`` fails; nothing is
            applied then. Its ``index`` says which.
    """
    # Any: the value changes its type from step to step and is V again at the end.
    result: Any = document
    for index, operation in enumerate(patch):
        try:
            result = _apply(result, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise PatchError(
                f"Operation {index} of the patch, {operation!r}, does not fit the document: "
                f"{error}. Apply patches in the order of their versions, to the version they "
                f"start from.",
                index=index,
            ) from error
    return cast("V", result)


# -- looking at values ----------------------------------------------------------------------------


def _is_record(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_object(value: object) -> bool:
    return isinstance(value, Mapping) or _is_record(value)


def _is_array(value: object) -> bool:
    return isinstance(value, (list, tuple, PVector))


def _members(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        # Any: `fields` wants a type that mypy cannot express for an unknown dataclass.
        record = cast("Any", value)
        return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    for key in value:
        if not isinstance(key, str):
            raise PatchError(f"The key {key!r} is not a string, as JSON wants it.")
    return value


def _same(one: object, other: object) -> bool:
    """Whether two values have the same JSON form; unlike ``==``, True is not 1."""
    if one is other:
        return True
    if _is_object(one) and _is_object(other):
        mine, theirs = _members(one), _members(other)
        return len(mine) == len(theirs) and all(
            key in theirs and _same(item, theirs[key]) for key, item in mine.items()
        )
    if _is_array(one) and _is_array(other):
        ours, others = cast("list[object]", one), cast("list[object]", other)
        return len(ours) == len(others) and all(map(_same, ours, others))
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)


# -- making patches -------------------------------------------------------------------------------


def _diff(before: object, after: object, path: str, operations: list[Operation]) -> None:
    if before is after:
        return
    if isinstance(before, PMap) and isinstance(after, PMap):
        old, new = differing_parts(before, after)
        _diff_objects(_members(old), _members(new), path, operations)
    elif _is_object(before) and _is_object(after):
        _diff_objects(_members(before), _members(after), path, operations)
    elif _is_array(before) and _is_array(after):
        olds, news = cast("list[object]", before), cast("list[object]", after)
        _diff_arrays(list(olds), list(news), path, operations)
    elif not _same(before, after):
        operations.append({"op": "replace", "path": path, "value": plain(after)})


def _diff_objects(
    before: Mapping[str, object],
    after: Mapping[str, object],
    path: str,
    operations: list[Operation],
) -> None:
    for key, old in before.items():
        if key not in after:
            operations.append({"op": "remove", "path": _join(path, key)})
        elif (new := after[key]) is not old:
            _diff(old, new, _join(path, key), operations)
    for key, new in after.items():
        if key not in before:
            operations.append({"op": "add", "path": _join(path, key), "value": plain(new)})


def _diff_arrays(
    before: list[object], after: list[object], path: str, operations: list[Operation]
) -> None:
    start = _common_length(before, after)
    end = _common_length(reversed(before[start:]), reversed(after[start:]))

    common = min(len(before), len(after)) - end
    for index in range(start, common):
        _diff(before[index], after[index], f"{path}/{index}", operations)
    # From the back, so that each index is still right when its turn comes.
    operations.extend(
        {"op": "remove", "path": f"{path}/{index}"}
        for index in range(len(before) - end - 1, common - 1, -1)
    )
    operations.extend(
        {"op": "add", "path": f"{path}/{index}", "value": plain(after[index])}
        for index in range(common, len(after) - end)
    )


def _common_length(one: Iterable[object], other: Iterable[object]) -> int:
    length = 0
    for old, new in zip(one, other, strict=False):
        if old is not new and not _same(old, new):
            break
        length += 1
    return length


def _join(path: str, key: str) -> str:
    return f"{path}/{key.replace('~', '~0').replace('/', '~1')}"


# -- applying patches -----------------------------------------------------------------------------


def _split(path: JSON) -> list[str]:
    if not isinstance(path, str) or (path and not path.startswith("/")):
        raise ValueError(f"{path!r} is not a JSON pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


# Any, here and below: a step of a path can lead to a value of whatever type.
def _apply(document: Any, operation: Operation) -> Any:
    keys = _split(operation["path"])
    match operation["op"]:
        case "add" | "replace" as op:
            return _put(document, keys, operation["value"], insert=op == "add")
        case "remove":
            return _remove(document, keys)
        case "test":
            if not _same(plain(_get(document, keys)), operation["value"]):
                raise ValueError(f"the value there is {_get(document, keys)!r}")
            return document
        case "copy":
            return _put(document, keys, _get(document, _split(operation["from"])), insert=True)
        case "move":
            source = _split(operation["from"])
            if keys[: len(source)] == source and keys != source:
                raise ValueError("a value cannot be moved into itself")
            return _put(_remove(document, source), keys, _get(document, source), insert=True)
        case unknown:
            raise ValueError(f"there is no operation {unknown!r}")


def _get(container: Any, keys: list[str]) -> Any:
    for key in keys:
        container = _child(container, key)
    return container


def _child(container: Any, key: str) -> Any:
    if _is_array(container):
        return container[_index(key, len(container) - 1)]
    return _named(container)[key]


def _named(container: Any) -> Mapping[str, Any]:
    if isinstance(container, Mapping):
        return container  # not `_members`, which would look at every key
    if _is_record(container):
        return _members(container)
    raise TypeError(f"{container!r} has no members")


def _index(key: str, last: int) -> int:
    if not (key.isascii() and key.isdigit()) or (key != "0" and key.startswith("0")):
        raise ValueError(f"{key!r} is not an index")
    if int(key) > last:
        raise IndexError(f"the index {key} is beyond the end")
    return int(key)


def _put(container: Any, keys: list[str], value: Any, *, insert: bool) -> Any:
    if not keys:
        return _fit(value, container)
    key, rest = keys[0], keys[1:]
    if rest:
        return _with(container, key, _put(_child(container, key), rest, value, insert=insert))
    if _is_array(container):
        if insert:
            return _with_inserted(container, key, value)
        return _with(container, key, _fit(value, _child(container, key), container))
    members = _named(container)
    if key not in members and not insert:
        raise KeyError(f"there is no member {key!r}")
    return _with(container, key, _fit(value, members.get(key), container))


def _remove(container: Any, keys: list[str]) -> Any:
    if not keys:
        return None
    key, rest = keys[0], keys[1:]
    if rest:
        return _with(container, key, _remove(_child(container, key), rest))
    child = _child(container, key)
    if _is_array(container):
        index = int(key)
        return _same_kind(container, [*container[:index], *container[index + 1 :]])
    if isinstance(container, PMap):
        return container.remove(key)
    if isinstance(container, Mapping):
        return {name: item for name, item in container.items() if name != key}
    raise TypeError(f"the field {key!r} of a record, {child!r}, cannot be removed")


def _with(container: Any, key: str, child: Any) -> Any:
    if isinstance(container, PMap):
        return container.set(key, child)
    if isinstance(container, PVector):
        return container.set(int(key), child)
    if _is_record(container):
        return dataclasses.replace(container, **{key: child})
    if isinstance(container, Mapping):
        return {**container, key: child}
    index = int(key)
    return _same_kind(container, [*container[:index], child, *container[index + 1 :]])


def _with_inserted(container: Any, key: str, value: Any) -> Any:
    index = len(container) if key == "-" else _index(key, len(container))
    child = _fit(value, None, container)
    if isinstance(container, PVector) and index == len(container):
        return container.append(child)
    return _same_kind(container, [*container[:index], child, *container[index:]])


def _same_kind(container: Any, items: list[Any]) -> Any:
    return pvector(items) if isinstance(container, PVector) else type(container)(items)


def _fit(value: Any, old: Any, parent: Any = None) -> Any:
    """Give a value that came as JSON the type of what it replaces, or that suits its parent."""
    if isinstance(old, Enum):
        return type(old)(value)
    if isinstance(old, PMap) and isinstance(value, dict):
        return pmap({key: freeze(item) for key, item in value.items()})
    if isinstance(old, (tuple, frozenset)) and isinstance(value, list):
        return type(old)(value)
    if isinstance(old, PVector) or isinstance(parent, (PMap, PVector)):
        return freeze(value)
    return value

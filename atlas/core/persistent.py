"""The one door to pyrsistent: immutable maps and vectors for the parts of a state that grow.

Setting a key costs the same in a `PMap` of five entries and of five thousand, and the old map
stays as it was; so versions of a state share what did not change. A small record is better off
as a frozen dataclass, whose fields are read some six times faster. For many changes at once use
``.evolver()``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pyrsistent import PMap, PVector, freeze, pmap, pvector, thaw

__all__ = ["PMap", "PVector", "differing_parts", "freeze", "pmap", "pvector", "thaw"]

K = TypeVar("K")
V = TypeVar("V")


def differing_parts(before: PMap[K, V], after: PMap[K, V]) -> tuple[Mapping[K, V], Mapping[K, V]]:
    """Return those parts of two maps in which they may differ; whatever is left out is the same.

    Two versions of a map share the buckets that no change touched, so that a few changed keys
    among thousands are found without looking at the others. Maps that do not share their buckets
    (one was built anew, or has grown into more of them) are returned whole.
    """
    # pyrsistent has no public way to see what two maps share. Should its inside look different
    # one day, nothing is left out, which is right and only slower.
    olds, news = getattr(before, "_buckets", ()), getattr(after, "_buckets", ())
    if not olds or len(olds) != len(news):
        return dict(before.items()), dict(after.items())
    old: dict[K, V] = {}
    new: dict[K, V] = {}
    # A key is in the bucket of the same number in both maps.
    for one, other in zip(olds, news, strict=True):
        if one is not other:
            old.update(one or ())
            new.update(other or ())
    return old, new

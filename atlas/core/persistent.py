"""The one door to pyrsistent: immutable maps and vectors for the parts of a state that grow.

Setting a key costs the same in a `PMap` of five entries and of five thousand, and the old map
stays as it was; so versions of a state share what did not change. A small record is better off
as a frozen dataclass, whose fields are read some six times faster. For many changes at once use
``.evolver()``.
"""

from __future__ import annotations

from pyrsistent import PMap, PVector, freeze, pmap, pvector, thaw

__all__ = ["PMap", "PVector", "freeze", "pmap", "pvector", "thaw"]

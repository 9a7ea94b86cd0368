"""Public names that are loaded when they are first used (PEP 562).

A package that re-exported its names eagerly would import all of its modules for each of them; then
``import atlas`` would cost what everything costs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["exported"]


# Any: a module's attributes have no common type; type checkers see the real imports.
def exported(
    package: str, home: Mapping[str, tuple[str, ...]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: The package's ``__name__``.
        home: Its public names, by the module that defines them.
    """
    modules = {name: module for module, names in home.items() for name in names}

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(import_module(modules[name]), name)
        setattr(sys.modules[package], name, found)
        return found

    return load, lambda: sorted({*vars(sys.modules[package]), *modules})

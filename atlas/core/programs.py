"""Programs by name: how a recorded run finds the code that made it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atlas.errors import ConfigurationError

__all__ = ["load_program", "program_of"]


def program_of(function: Callable[..., Any]) -> str | None:
    """Return the name under which `load_program` finds a function; None when it finds it nowhere.

    A function of a script that was started as one is found by the script's path.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "")
    if module is None or not name or "<" in name:
        return None
    if module == "__main__":
        path = getattr(sys.modules["__main__"], "__file__", None)
        return None if path is None else f"{Path(path).resolve()}:{name}"
    return f"{module}:{name}"


def load_program(program: str) -> Callable[..., Any]:
    """Import a function by its name: ``package.module:function`` or ``path/to/script.py:function``.

    Raises:
        ConfigurationError: There is no such module, file or function.
    """
    place, _, name = program.rpartition(":")
    if not place or not name:
        raise ConfigurationError(
            f"{program!r} names no program. Write package.module:function, or "
            f"path/to/script.py:function."
        )
    try:
        found: Any = _script(Path(place)) if place.endswith(".py") else _module(place)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, OSError) as error:
        raise ConfigurationError(
            f"The program {program!r} cannot be found: {error}. Name one that can be imported here."
        ) from error
    if not inspect.iscoroutinefunction(found):
        raise ConfigurationError(
            f"The program {program!r} is {found!r}. It has to be an `async def` that takes the "
            f"application first."
        )
    return found  # type: ignore[no-any-return]  # whatever it returns


def _module(name: str) -> object:
    # as `python -m` would: a module beside where the command is run
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(name)


def _script(path: Path) -> object:
    main = sys.modules["__main__"]
    if getattr(main, "__file__", None) and Path(str(main.__file__)).resolve() == path.resolve():
        return main
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module

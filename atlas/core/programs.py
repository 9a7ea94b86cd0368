"""Programs by name: how a recorded run finds the code that made it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atlas.errors import ConfigurationError

__all__ = ["check_arguments", "load_program", "program_of"]


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
        ConfigurationError: There is no such module, file or function, or the module fails when it is
            loaded.
    """
    place, _, name = program.rpartition(":")
    if not place or not name:
        raise ConfigurationError(
            f"{program!r} names no program. Write package.module:function, or "
            f"path/to/script.py:function."
        )
    try:
        found: Any = _loaded(program, place)
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


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, object]) -> None:
    """Refuse arguments that a program does not take, or lacks; and what is no program.

    Raises:
        ConfigurationError: The text names the argument and those that the program has.
    """
    if not callable(function):
        raise ConfigurationError(
            f"The program is {function!r}. It has to be an `async def` that takes the application first."
        )
    signature = inspect.signature(function)
    try:
        signature.bind(None, **arguments)
    except TypeError as error:
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigurationError(
            f"The program {name}{signature} cannot be called with the arguments {dict(arguments)!r}: "
            f"{error}. Name those that it has."
        ) from error


def _loaded(program: str, place: str) -> object:
    try:
        return _script(Path(place)) if place.endswith(".py") else _module(place)
    except (ImportError, OSError):
        raise
    # Whatever a foreign module does, or has its top level do, such as to exit.
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"The program {program!r} cannot be loaded: {place} failed with "
            f"{type(error).__name__}: {error}. Have it define the function and nothing more; what it "
            f"does when it is started belongs below `if __name__ == '__main__':`."
        ) from error


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
    is_new = sys.modules.setdefault(path.stem, module) is module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if is_new:
            del sys.modules[path.stem]
        raise
    return module

"""Middleware: what every message of a bus passes before it is stamped.

A step sees the message; one that takes two arguments also sees, and may change, what is said about
it: its headers, source, run, and so on. No step sees the stamp, for there is none yet.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TypeAlias, cast

from atlas.core.causality import CURRENT, NO_SCOPE, Links, Scope, merged_headers
from atlas.core.messages import Message
from atlas.errors import ConfigurationError

__all__ = ["Middleware", "Step", "check_said", "said_about", "steps_of"]

Middleware: TypeAlias = (
    "Callable[[Message], Message | None] | Callable[[Message, Links], Message | None]"
)
"""Sees every message before it is stamped; returns it, another one, or None to drop it.

One that takes two arguments gets, as the second, a dictionary of what is said about the message, by
its publisher and by the scope; what it changes there counts.
"""

Step: TypeAlias = Callable[[Message, Links], "Message | None"]


def steps_of(middleware: object) -> tuple[Step, ...]:
    """Return the steps of a bus, each to be called with the message and what is said about it.

    Raises:
        ConfigurationError: One cannot be called with a message.
    """
    steps = middleware if isinstance(middleware, Iterable) else (middleware,)
    return tuple(map(_step_of, steps))


def _step_of(step: object) -> Step:
    if not callable(step):
        raise _refusal(step, "cannot be called")
    if any(map(inspect.iscoroutinefunction, (step, type(step).__call__))):
        raise _refusal(step, "is asynchronous, while publishing waits for nobody")
    try:
        signature = inspect.signature(step)
    except (ValueError, TypeError):  # some builtins have none to look at
        return _of_the_message_alone(step)
    if _takes(signature, 1):
        return _of_the_message_alone(step)
    if _takes(signature, 2):
        return cast("Step", step)
    raise _refusal(step, f"takes {signature}")


def _takes(signature: inspect.Signature, many: int) -> bool:
    try:
        signature.bind(*[None] * many)
    except TypeError:
        return False
    return True


def _of_the_message_alone(step: Callable[[Message], Message | None]) -> Step:
    return lambda message, _: step(message)


def _refusal(step: object, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"middleware holds {step!r}, which {why}; give functions that take a message, or a message "
        f"and what is said about it, and return a message, or None to drop it."
    )


def said_about(links: Links) -> Links:
    """Return what is said about a message published here with these links, to be changed at will.

    Raises:
        ValidationError: The headers are no strings by strings.
    """
    current = CURRENT.get()
    scope = current if isinstance(current, Scope) else NO_SCOPE
    said: Links = {"run": scope.run, "source": scope.source}
    said.update(links)
    said["headers"] = dict(merged_headers(scope.headers, links.get("headers")))
    return said


_SAYABLE = frozenset(Links.__annotations__)


def check_said(links: Links) -> None:
    """Refuse what cannot be said about a message.

    Raises:
        ConfigurationError: A middleware put in something else; the text lists what there is.
    """
    if not links.keys() <= _SAYABLE:
        raise ConfigurationError(
            f"A middleware says {', '.join(sorted(map(repr, links.keys() - _SAYABLE)))} about a "
            f"message; what can be said is {', '.join(sorted(_SAYABLE))}. Other facts are headers."
        )

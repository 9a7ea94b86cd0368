"""States as bytes, and whether bytes kept earlier were made by the same code."""

from __future__ import annotations

import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import partial
from types import CodeType

# Any: states are of whatever type the caller keeps.
from typing import Any, Generic, Protocol, TypeVar

from atlas.core.persistent import PMap, PVector
from atlas.core.schema.canonical import canonical_text
from atlas.core.temporal.values import UNREADABLE, Values, is_storable
from atlas.core.transitions import Transition, Transitions
from atlas.errors import AtlasError, ConfigurationError, StateError

__all__ = ["DEFAULT_SNAPSHOTS", "SnapshotPolicy", "StateCodec", "View"]

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """When a state is kept, so that it need not be computed from the first event again.

    Attributes:
        events: After so many events since the one before; fewer make reading quicker and the log
            larger.
        size: Or after so many bytes of events since the one before, whichever comes first.
        share: But only once the events since the one before take so many times the room of a
            snapshot, so that a state that grows with every event does not fill the log; at most once
            for a state that has hardly grown since.
    """

    events: int = 128
    size: int = 1 << 20
    share: float = 3.0

    def __post_init__(self) -> None:
        numbers: tuple[object, ...] = (self.events, self.size)
        share: object = self.share
        if not (
            all(isinstance(number, int) and number >= 1 for number in numbers)
            and isinstance(share, (int, float))
            and share >= 0
        ):
            raise ConfigurationError(
                f"{self!r} makes no sense: events and size are ints of at least 1, share is a number "
                f"of at least 0. For no snapshots at all use `snapshot=None`."
            )


DEFAULT_SNAPSHOTS = SnapshotPolicy()


class StateCodec(Protocol):
    """Turns states into bytes and back. Must be pure and safe for threads."""

    def dump(self, state: Any) -> bytes:
        """Return the bytes of a state."""
        ...

    def load(self, data: bytes) -> Any:
        """Return the state that has these bytes."""
        ...


class ValueStates:
    """The codec for states of JSON values, declared classes, frozen dataclasses, pmap and pvector."""

    def __init__(self, root: type, classes: tuple[type, ...] = ()) -> None:
        self._values = Values(root, classes)

    def dump(self, state: object) -> bytes:
        """Return the bytes of a state; small ones can be read by people."""
        text = canonical_text(self._values.dump(state)).encode("utf-8", "backslashreplace")
        return text if len(text) < 512 else _PACKED + zlib.compress(text, 1)

    def load(self, data: bytes) -> Any:
        """Return the state that has these bytes.

        Raises:
            StateError: Other code has written it.
        """
        try:
            text = zlib.decompress(data[1:]) if data[:1] == _PACKED else data
            return self._values.load(json.loads(text))
        except StateError:
            raise
        except (*UNREADABLE, zlib.error) as error:
            raise StateError(f"A stored state cannot be read: {error}") from error


_PACKED = b"\x01"


class View(Generic[S]):
    """How a state follows from events.

    Attributes:
        name: What it is called in the log; base states are found by it.
        is_named: Whether the name is good enough for that: a lambda has none of its own.
        label: A hash that changes with the code; snapshots are found by it.
    """

    def __init__(
        self,
        transition: Transition[S, Any],
        initial: S,
        *,
        name: str | None = None,
        version: int | str = 1,
        codec: StateCodec | None = None,
        policy: SnapshotPolicy | None = DEFAULT_SNAPSHOTS,
    ) -> None:
        if not callable(transition):
            raise ConfigurationError(
                f"The transition {transition!r} cannot be called; give a function "
                f"`(state, event) -> state` or a `Transitions` object."
            )
        _check_options(name, version, codec, policy)
        self.transition = transition
        self.initial = initial
        self.name: str = name or _name_of(transition, initial)
        # A name that other views may have as well finds states; it must not find the wrong ones.
        self.is_named: bool = name is not None or (":" in self.name and "<lambda>" not in self.name)
        self.codec: StateCodec = codec or ValueStates(type(initial))
        self.policy = policy
        self.label: str = self._fingerprint(version)

    def dump(self, state: S, what: str) -> bytes:
        """Return the bytes of a state.

        Raises:
            StateError: The codec cannot write it; the text says so of ``what``.
        """
        try:
            return self.codec.dump(state)
        except (AtlasError, TypeError, ValueError, RecursionError) as error:
            raise StateError(
                f"{what} cannot be stored: {str(error).rstrip('.')}. Give the timeline a `state_codec=` that can, or "
                f"`snapshot=None` for no snapshots."
            ) from error

    def _fingerprint(self, version: int | str) -> str:
        digest = hashlib.sha256(f"{self.name}\n{version!r}\n".encode("utf-8", "backslashreplace"))
        if self.policy is not None:
            digest.update(self.dump(self.initial, "The initial state"))
        for kind, function in _functions(self.transition):
            digest.update(f"{kind}:{_code_text(function)}\n".encode("utf-8", "backslashreplace"))
        return f"{self.name}#{digest.hexdigest()[:16]}"


def _check_options(name: object, version: object, codec: object, policy: object) -> None:
    if name is not None and not (isinstance(name, str) and name and is_storable(name)):
        raise ConfigurationError(
            f"{name!r} is no name of a view; use a text such as 'totals', without NUL and lone "
            f"surrogates."
        )
    if not isinstance(version, (int, str)):
        raise ConfigurationError(f"The version of a view is {version!r}; use an int or a text.")
    if codec is not None and not (hasattr(codec, "dump") and hasattr(codec, "load")):
        raise ConfigurationError(
            f"`state_codec=` is {codec!r}; give an object with `dump` and `load`, see StateCodec."
        )
    if policy is not None and not isinstance(policy, SnapshotPolicy):
        raise ConfigurationError(
            f"`snapshot=` is {policy!r}; give a SnapshotPolicy, or None for no snapshots."
        )


def _name_of(transition: object, initial: object) -> str:
    named: Any = transition if hasattr(transition, "__qualname__") else type(initial)
    if named is type(initial) and not isinstance(transition, Transitions):
        return named.__qualname__ or ""
    is_general = named.__module__ in ("builtins", PMap.__module__, PVector.__module__)
    return named.__qualname__ if is_general else f"{named.__module__}:{named.__qualname__}"


def _functions(transition: object) -> list[tuple[str, object]]:
    """Return what a transition does, and for which class of events; "" for all of them."""
    if isinstance(transition, Transitions):
        kinds = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in transition.kinds}
        return [(name, transition._registered[kinds[name]]) for name in sorted(kinds)]
    return [("", transition)]


def _code_text(function: Any, depth: int = 0) -> str:
    """Return what a function does, as a text that is the same in every process on one Python.

    What it calls is not looked into: whoever changes that counts the version of the view up.
    """
    if isinstance(function, partial):
        bound = [*function.args, *sorted(function.keywords.items())]
        return "|".join([_code_text(function.func, depth + 1), *map(_value_text, bound)])
    function = getattr(function, "__wrapped__", function)
    code = getattr(function, "__code__", None)
    if code is None:
        # An object that can be called: what it does is in its class.
        method = next(
            (c.__dict__["__call__"] for c in type(function).__mro__ if "__call__" in c.__dict__),
            None,
        )
        code = getattr(method, "__code__", None)
    if code is None or depth > 4:
        return type(function).__qualname__
    cells = [_cell_value(cell) for cell in getattr(function, "__closure__", None) or ()]
    bound = [*(getattr(function, "__defaults__", None) or ()), *cells]
    parts = [_code_text(each, depth + 1) if callable(each) else _value_text(each) for each in bound]
    return "|".join([_text(code), *parts])


def _cell_value(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not yet bound
        return None


def _value_text(value: object) -> str:
    try:
        return canonical_text(Values().dump(value))
    except UNREADABLE:
        return type(value).__qualname__  # its repr would be another one in each process


def _text(constant: object) -> str:
    if isinstance(constant, CodeType):
        parts = [constant.co_code.hex(), *map(_text, constant.co_consts), *constant.co_names]
        return "|".join([constant.co_name, *parts])
    if isinstance(constant, frozenset):
        # A set of texts has another order in each process.
        return repr(sorted(map(repr, constant)))
    return repr(constant)

"""Perspectives: what a role gets to see of a message, and what it does not.

A view names the fields that a role sees: a public log, an operator's screen, a model's prompt. There
is no default view and none is ever taken instead of another: an unknown view is an error. Fields
marked ``Annotated[str, SECRET]`` are redacted in every view that was not granted them by name.

A view is for showing. It cannot be read back into a message; the log stores messages whole.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, cast

from atlas.core import nodes
from atlas.core.annotations import description_of
from atlas.core.messages import declarations
from atlas.core.schema.canonical import canonical_text
from atlas.core.schema.derive import schema_for
from atlas.errors import ConfigurationError, RegistrationError, UnknownNameError, nearest_name
from atlas.typing import JSON, SECRET

__all__ = ["Perspectives", "reaches_secrets", "without_secrets"]


class Perspectives:
    """The views of messages, by class and name. Reading is thread-safe; define views first.

    Args:
        marker: What stands in the place of a value that is redacted.

    Example:
        >>> from typing import Annotated
        >>> from atlas.core.messages import Event, message
        >>> @message("person.seen")
        ... class PersonSeen(Event):
        ...     name: str
        ...     phone: Annotated[str, SECRET]
        >>> perspectives = Perspectives()
        >>> perspectives.define(PersonSeen, "internal")
        >>> perspectives.show(PersonSeen(name="Ada", phone="123"), "internal")
        {'name': 'Ada', 'phone': '[redacted]'}
    """

    def __init__(self, *, marker: str = "[redacted]") -> None:
        told: object = marker
        if not isinstance(told, str):
            raise ConfigurationError(f"The marker is {told!r}. Give a text, as '[redacted]' is.")
        self.marker = marker
        self._views: dict[type, dict[str, _View]] = {}

    def define(
        self,
        cls: type,
        view: str,
        *,
        only: Iterable[str] | None = None,
        without: Iterable[str] = (),
        redact: Iterable[str] = (),
        grant: Iterable[str] = (),
    ) -> None:
        """Define a view of a class made by `message` or `value`.

        Fields are named by dotted paths, which go through lists, sets and the values of mappings:
        ``"lines.price"`` is the price of every line.

        Args:
            cls: The class. A view is of this class alone, not of its subclasses, which may have
                fields that nobody thought of here.
            view: Name of the view, such as ``"public"``, ``"internal"`` or ``"model"``.
            only: The fields it shows. None: all of them.
            without: Fields it leaves out nevertheless.
            redact: Fields it shows the marker for.
            grant: Secret fields it shows in clear.

        Raises:
            UnknownNameError: The class has no field of such a name.
            ConfigurationError: A field that is granted is not secret; the view has no name; one path
                is given where a list of them is expected.
            RegistrationError: The class has a view of this name already.
            SchemaError: The class is not declared.
        """
        description_of(cls)
        named: object = view
        if not isinstance(named, str) or not named:
            raise ConfigurationError(f"A view is called {named!r}. Give it a name that is text.")
        for option, given in (
            ("only", only),
            ("without", without),
            ("redact", redact),
            ("grant", grant),
        ):
            if isinstance(given, str):
                raise ConfigurationError(
                    f"{option} of the view {view!r} is the text {given!r}. Write a list: [{given!r}]."
                )
            if not isinstance(given, Iterable | None):
                raise ConfigurationError(
                    f"{option} of the view {view!r} is {given!r}. Write a list of fields."
                )
        views = self._views.setdefault(cls, {})
        if view in views:
            raise RegistrationError(
                f"{cls.__name__} already has a view {view!r}. Choose another name for this one.",
                name=view,
            )
        made = _View(
            only=None if only is None else frozenset(only),
            without=frozenset(without),
            redact=frozenset(redact),
            grant=frozenset(grant),
        )
        for path in (*(made.only or ()), *made.without, *made.redact, *made.grant):
            is_secret = _check_path(cls, path)
            if path in made.grant and not is_secret:
                raise ConfigurationError(
                    f"{cls.__name__}.{path} is granted and is not secret. "
                    f"Mark it Annotated[..., SECRET], or do not grant it."
                )
        views[view] = made

    def views(self, cls: type) -> tuple[str, ...]:
        """Return the names of the views of a class, sorted."""
        return tuple(sorted(self._views.get(cls, {})))

    def show(self, message: object, view: str) -> dict[str, JSON]:
        """Return what a view shows of a message, as JSON data.

        Raises:
            UnknownNameError: The class of the message has no view of this name.
            ConfigurationError: The view shows a set that mixes values with fields and without.
        """
        cls = type(message)
        given: object = view
        found = self._views.get(cls, {}).get(view) if isinstance(given, str) else None
        if found is None:
            known = self.views(cls)
            raise UnknownNameError(
                f"{cls.__name__} has no view {view!r}{nearest_name(str(view), known)}. "
                f"Views: {', '.join(map(repr, known)) or 'none'}. Define it; none is taken instead.",
                name=str(view),
            )
        kept = [name for name in _fields(cls) if found.shows(name)]
        # Narrowed by marshmallow itself, so that what is not seen is not even written.
        data = type(schema_for(cls))(only=kept).dump(message)
        return cast("dict[str, JSON]", _Sight(found, self.marker).of(message, data, ""))


def without_secrets(message: object, marker: str = "[redacted]") -> dict[str, JSON] | None:
    """Return the fields of a message as JSON data with the marker in the place of every secret.

    Returns:
        None when the class of the message has no secret anywhere, and needs no such care.
    """
    cls: Any = type(message)  # to mypy, the type of an object is not hashable
    if not reaches_secrets(cls):
        return None
    data = schema_for(cls).dump(message)
    return cast("dict[str, JSON]", _Sight(_WHOLE, marker).of(message, data, ""))


def reaches_secrets(cls: type) -> bool:
    """Return whether a field of a class, or of a class it is made of, is secret."""
    # One more class that is declared may stand where its base is annotated.
    return _reaches_secrets_now(cls, declarations())


@functools.lru_cache(maxsize=4096)
def _reaches_secrets_now(cls: type, _: int) -> bool:
    seen: set[type] = {cls}
    places: list[object] = [cls]
    while places:
        for node in _fields(places.pop()).values():
            if _holds_secret(node):
                return True
            for inner in _objects(node):
                known: Any = inner  # a class, or a node that names one
                found: type = known if isinstance(known, type) else known.cls
                for each in _with_subclasses(found):
                    if each not in seen:
                        seen.add(each)
                        places.append(inner if each is found else each)
    return False


def _with_subclasses(cls: type) -> Iterator[type]:
    """Yield a class and what derives from it, however far: all that may stand in its place.

    Of a declared class only declared ones may.
    """
    yield cls
    direct: list[type] = cls.__subclasses__()
    for subclass in direct:
        if "__description__" in subclass.__dict__ or not hasattr(subclass, "__description__"):
            yield from _with_subclasses(subclass)


@dataclass(frozen=True, slots=True)
class _View:
    """Dotted paths of fields, by what is done with them."""

    only: frozenset[str] | None
    without: frozenset[str]
    redact: frozenset[str]
    grant: frozenset[str]

    def shows(self, path: str) -> bool:
        if path in self.without:
            return False
        return self.only is None or any(
            path == each or path.startswith(f"{each}.") or each.startswith(f"{path}.")
            for each in self.only
        )

    def redacts(self, path: str, *, secret: bool) -> bool:
        return path in self.redact or (secret and path not in self.grant)


_WHOLE = _View(only=None, without=frozenset(), redact=frozenset(), grant=frozenset())


def _check_path(cls: type, path: str) -> bool:
    """Return whether the field at a path is secret; an error if there is no such field."""
    given: object = path
    if not isinstance(given, str):
        raise UnknownNameError(
            f"{cls.__name__} has no field {given!r}. Name fields by dotted paths, which are text.",
            name=repr(given),
        )
    places: list[object] = [cls]
    found: list[object] = []
    for name in path.split("."):
        known = [_fields(place) for place in places]
        found = [fields[name] for fields in known if name in fields]
        if not found:
            names = list(dict.fromkeys(each for fields in known for each in fields))
            raise UnknownNameError(
                f"{cls.__name__} has no field {path!r}: {name!r} is unknown"
                f"{nearest_name(name, names)}. Fields: {', '.join(names) or 'none'}.",
                name=path,
            )
        places = [inner for node in found for inner in _objects(node)]
    return any(map(_holds_secret, found))


# -- what classes consist of ----------------------------------------------------------------------
# Declared classes are described by nodes, plain dataclasses inside them by their annotations.


# Any: a type to the caller, and whatever a dataclass is annotated with to mypy.
def _fields(place: Any) -> Mapping[str, object]:
    """Return what the fields of a class, or of the class a node names, hold."""
    if isinstance(place, nodes.ClassNode):
        return dict(place.fields())
    cls = place.cls if isinstance(place, nodes.DataclassNode) else place
    if "__description__" in cls.__dict__:
        return description_of(cls).nodes
    return typing.get_type_hints(cls, include_extras=True)


def _parts(node: object) -> Sequence[object]:
    """Return what a node, or an annotation, is made of."""
    match node:
        case nodes.RuleNode():
            return (node.inner, *node.extras)
        case nodes.UnionNode():
            return node.members
        case nodes.SequenceNode() | nodes.SetNode():
            return (node.item,)
        case nodes.MappingNode():
            return (node.key, node.item)
        case nodes.PairNode():
            return node.items
        case nodes.ClassNode():
            return node.arguments
        case _:
            return typing.get_args(node)


def _objects(node: object) -> list[object]:
    """Return the classes with fields, or nodes of such, that a value may be of or hold."""
    is_class = isinstance(node, type) and dataclasses.is_dataclass(node)
    if is_class or isinstance(node, nodes.ClassNode | nodes.DataclassNode):
        return [node]
    return [inner for part in _parts(node) for inner in _objects(part)]


def _holds_secret(node: object) -> bool:
    return node is SECRET or any(map(_holds_secret, _parts(node)))


@functools.lru_cache(maxsize=4096)
def _secrets(cls: type) -> frozenset[str]:
    return frozenset(name for name, node in _fields(cls).items() if _holds_secret(node))


# -- showing --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sight:
    """One look at a message through a view."""

    view: _View
    marker: str

    def of(self, value: object, data: JSON, path: str) -> JSON:
        """Return the part of ``data`` that is seen; ``value`` is what it was written from."""
        if isinstance(data, list):
            return self._of_list(value, data, path)
        if not isinstance(data, dict):
            return data
        if dataclasses.is_dataclass(value):
            return self._of_fields(value, data, path)
        if isinstance(value, Mapping):
            # Written in the order of the value, with its keys as text.
            pairs = zip(data.items(), value.values(), strict=True)
            return {key: self.of(inner, item, path) for (key, item), inner in pairs}
        # The wrapped member of a union: {"$type": ..., "value": ...}.
        return {**data, "value": self.of(value, data["value"], path)}

    def _of_fields(self, value: object, data: dict[str, JSON], path: str) -> JSON:
        cls: type = type(value)
        known, secrets = _fields(cls), _secrets(cls)
        seen: dict[str, JSON] = {}
        for name, item in data.items():
            inside = f"{path}.{name}" if path else name
            if name not in known:
                seen[name] = item  # the tag that tells a class apart
            elif self.view.shows(inside):
                redacted = self.view.redacts(inside, secret=name in secrets)
                inner = getattr(value, name)
                seen[name] = self.marker if redacted else self.of(inner, item, inside)
        return seen

    def _of_list(self, value: object, data: list[JSON], path: str) -> JSON:
        if not isinstance(value, AbstractSet):
            pairs = zip(cast("Sequence[object]", value), data, strict=True)
            return [self.of(inner, item, path) for inner, item in pairs]
        if not any(map(dataclasses.is_dataclass, value)):
            return data
        if not all(map(dataclasses.is_dataclass, value)):
            raise ConfigurationError(
                f"{path!r} is a set that mixes values with fields and without, of which no part can "
                f"be shown. Leave it out of the view, or make it a tuple."
            )
        # Sorted when written, so data does not tell which member is which: they are written anew.
        written = [(schema_for(type(each)).dump(each), each) for each in value]
        written.sort(key=lambda pair: canonical_text(pair[0]))
        return [self.of(each, item, path) for item, each in written]

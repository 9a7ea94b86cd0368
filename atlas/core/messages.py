"""Messages: the small immutable values that cross the bus.

`message` turns a subclass of `Event` or `Command` into a validated, frozen, slotted dataclass under
a wire name and a version; `value` does the same for the plain values that messages are made of.
Their constructor is Python source generated once per class, on first use: it recognises valid values
of the exact builtin types quickly and leaves every doubt to `atlas.core.annotations`. Containers
become immutable on the way in, so that a message never changes once it is made.

What a bus knows about a message (its place, time, cause, run) is kept out of its fields in one
hidden slot, the *stamp*, and read through ``message.meta``.

This module knows no JSON and no schema: see `atlas.core.schema`.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import inspect
import itertools
import linecache
import operator
import re
import struct
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    TypeAlias,
    TypeVar,
    cast,
    dataclass_transform,
    overload,
)

from atlas.core.annotations import Description, FieldSpec, description_of
from atlas.core.nodes import ALLOW_NAN, Code, FrozenDict, RefusedError
from atlas.errors import SchemaError, UnknownMessageError, ValidationError

__all__ = [
    "ALLOW_NAN",
    "Command",
    "Event",
    "FrozenDict",
    "Message",
    "Metadata",
    "Origin",
    "OriginIndex",
    "Place",
    "Stamp",
    "causation_in",
    "fillable",
    "message",
    "message_class",
    "message_id",
    "origin_in",
    "registered_messages",
    "spelled_out",
    "stamp",
    "stamped_copy",
    "time_of",
    "value",
]

Place: TypeAlias = "tuple[int | str, int, int]"
"""Who stamped a message, in what place, when: (bus identity, sequence, time in ns since 1970).

For a message read back from a log the first part is its id instead.
"""

Origin: TypeAlias = "Place | str"
"""What tells a message apart. Of one of which only the id is known, it is that id alone."""

Stamp: TypeAlias = (
    "tuple[Origin, Origin | None, Origin, str | None, str | None, Mapping[str, str], int]"
)
"""origin, causation, correlation, run, source, headers, depth of re-entrant dispatch.

A message that nothing caused, and of which nothing else is known, carries its place alone: most
messages are such, and one small tuple is quicker made, kept and freed. `spelled_out` makes it whole.
"""

MessageT = TypeVar("MessageT", bound="Message")
ClassT = TypeVar("ClassT", bound=type)
AnswerT = TypeVar("AnswerT")
FoundT = TypeVar("FoundT")

_PACK_ID = struct.Struct(">QQ").pack
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NO_HEADERS: Mapping[str, str] = FrozenDict()


def message_id(origin: Origin) -> str:
    """Return the id of the message with this origin: always the same for the same origin.

    It has the form of a UUIDv7: ids sort by time, to a quarter of a microsecond. Sequences of one
    bus are told apart up to 2**32 in the same quarter.
    """
    if isinstance(origin, str):
        return origin
    bus, sequence, time_ns = origin
    if isinstance(bus, str):
        return bus
    return _formatted(bus, sequence, time_ns)


@functools.lru_cache(maxsize=4096)  # all messages of a run ask for the id of its first one
def _formatted(bus: int, sequence: int, time_ns: int) -> str:
    milliseconds, rest = divmod(time_ns, 1_000_000)
    head = (milliseconds & 0xFFFF_FFFF_FFFF) << 16 | 0x7000 | (rest << 12) // 1_000_000
    tail = 0b10 << 62 | (sequence & 0xFFFF_FFFF) << 30 | (bus & 0x3FFF_FFFF)
    text = _PACK_ID(head, tail).hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class OriginIndex(Generic[FoundT]):
    """Finds what is known of messages by their origins, in whichever form these are told.

    Ids are made only where a message is referred to by its id: to make one takes as long as reading a
    message.
    """

    __slots__ = ("_by_id", "_by_place")

    def __init__(self) -> None:
        self._by_place: dict[Origin, FoundT] = {}
        self._by_id: dict[str, FoundT] | None = None

    def __setitem__(self, origin: Origin, found: FoundT) -> None:
        self._by_place[origin] = found
        if self._by_id is not None:
            self._by_id[message_id(origin)] = found

    def get(self, origin: Origin | None) -> FoundT | None:
        """Return what is known of the message with this origin, or None."""
        if origin is None:
            return None
        found = self._by_place.get(origin)
        if found is not None or not isinstance(origin, str):
            return found
        if self._by_id is None:
            self._by_id = {message_id(place): known for place, known in self._by_place.items()}
        return self._by_id.get(origin)


def spelled_out(known: Stamp | Place) -> Stamp:
    """Return all parts of what a message carries, also of one that carries its place alone."""
    return known if len(known) == 7 else (known, None, known, None, None, _NO_HEADERS, 0)


def origin_in(known: Stamp | Place) -> Origin:
    """Return the origin of the message that carries this."""
    return known[0] if len(known) == 7 else known


def causation_in(known: Stamp | Place) -> Origin | None:
    """Return the origin of what caused the message that carries this."""
    return known[1] if len(known) == 7 else None


def time_of(each: Message) -> int | None:
    """Return when a message was stamped, in ns since 1970, as its metadata tell it; None: unknown."""
    if each._stamp is None:
        return None
    origin = origin_in(each._stamp)
    return None if isinstance(origin, str) else origin[2]


class Metadata:
    """What is known about a message besides its fields; None or empty until it is published.

    A view, built when ``message.meta`` is read; ids are made on reading.
    """

    __slots__ = ("_class", "_stamp")

    def __init__(self, cls: type[Message], known: Stamp | Place | None) -> None:
        self._class = cls
        self._stamp = None if known is None else spelled_out(known)

    def __repr__(self) -> str:
        return f"Metadata(name={self.name!r}, version={self.version}, id={self.id!r})"

    @property
    def name(self) -> str:
        """The wire name of the message type (``"order.placed"``)."""
        return self._class.message_name

    @property
    def version(self) -> int:
        """The version of the message type, from 1."""
        return self._class.message_version

    @property
    def id(self) -> str | None:
        """The message's own id, ordered by time."""
        return None if self._stamp is None else message_id(self._stamp[0])

    @property
    def sequence(self) -> int | None:
        """Its place among the messages of its bus."""
        origin = None if self._stamp is None else self._stamp[0]
        return None if origin is None or isinstance(origin, str) else origin[1]

    @property
    def time_ns(self) -> int | None:
        """When it was published, in nanoseconds since the Unix epoch."""
        origin = None if self._stamp is None else self._stamp[0]
        return None if origin is None or isinstance(origin, str) else origin[2]

    @property
    def time(self) -> datetime | None:
        """When it was published, in UTC, to the microsecond."""
        time_ns = self.time_ns
        return None if time_ns is None else _EPOCH + timedelta(microseconds=time_ns // 1000)

    @property
    def causation(self) -> str | None:
        """The id of the message whose handler published this one."""
        cause = None if self._stamp is None else self._stamp[1]
        return None if cause is None else message_id(cause)

    @property
    def correlation(self) -> str | None:
        """The id that all messages with one first cause share: the id of that first one."""
        return None if self._stamp is None else message_id(self._stamp[2])

    @property
    def run(self) -> str | None:
        """The run it belongs to."""
        return None if self._stamp is None else self._stamp[3]

    @property
    def source(self) -> str | None:
        """Who published it, in the publisher's own word."""
        return None if self._stamp is None else self._stamp[4]

    @property
    def headers(self) -> Mapping[str, str]:
        """Free annotations, read-only."""
        return _NO_HEADERS if self._stamp is None else self._stamp[5]


# -- the base classes -----------------------------------------------------------------------------


def _refuse_assignment(self: object, name: str, _value: object = None) -> NoReturn:
    raise dataclasses.FrozenInstanceError(
        f"{type(self).__name__}.{name} cannot be changed: messages are immutable. "
        f"Make a changed copy with dataclasses.replace({type(self).__name__.lower()}, {name}=...)."
    )


class Message:
    """What `Event` and `Command` have in common; subclass one of those.

    Attributes:
        message_name: The wire name of the type.
        message_version: The version of the type, from 1.
    """

    __slots__ = ("_stamp",)

    message_name: ClassVar[str] = ""
    message_version: ClassVar[int] = 0
    _stamp: Stamp | Place | None

    def __init__(self, *_arguments: object, **_fields: object) -> None:
        cls = type(self)
        raise SchemaError(
            f"{cls.__module__}.{cls.__qualname__} is not declared as a message; "
            f"put @message above a class that derives from Event or Command."
        )

    @property
    def meta(self) -> Metadata:
        """What is known about this message besides its fields."""
        return Metadata(type(self), self._stamp)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        _refuse_assignment(self, name)

    def __delattr__(self, name: str) -> NoReturn:
        _refuse_assignment(self, name)


class Event(Message):
    """A message that tells what happened."""

    __slots__ = ()


class Command(Message, Generic[AnswerT]):
    """A message that asks for something; ``AnswerT`` is the type of the answer."""

    __slots__ = ()


stamp: Callable[[Message, Stamp | Place], None] = Message.__dict__["_stamp"].__set__
"""Set the stamp of a message: what a bus or a log does, once, before anybody else sees it.

The one way to write to a message; whoever is no bus and no log has no use for it.
"""


def stamped_copy(original: MessageT, new_stamp: Stamp | Place | None) -> MessageT:
    """Return an equal message of its own with another stamp, without checking the fields again."""
    cls = type(original)
    made = object.__new__(cls)
    for spec in _description(cls).fields:
        object.__setattr__(made, spec.name, getattr(original, spec.name))
    object.__setattr__(made, "_stamp", new_stamp)
    return made


# -- the decorators -------------------------------------------------------------------------------


@overload
def message(cls: ClassT, /) -> ClassT: ...
@overload
def message(name: str | None = None, /, *, version: int = 1) -> Callable[[ClassT], ClassT]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
# Any: either a class, a name or nothing; the overloads above tell callers which
def message(cls: Any = None, /, *, version: int = 1) -> Any:
    """Declare a subclass of `Event` or `Command` as a message type.

    The class becomes a frozen, slotted, hashable dataclass whose constructor checks every field and
    makes containers immutable. A ``__post_init__`` runs after the checks, for rules of its own.

    Args:
        cls: The class, when used bare; or the wire name, of dotted lower-case words. Without a name
            the class name gives it: ``OrderPlaced`` becomes ``order.placed``.
        version: The version of the fields, from 1. Add one when a change would break old readers.

    Returns:
        The class, made anew.

    Raises:
        SchemaError: A field cannot be described, or the name and version are taken by another
            class. (The same class run again, as in a notebook, takes its own place.)
    """
    given = None if isinstance(cls, type) else cls
    _check_label(given, version)
    if isinstance(cls, type):
        return _declare_message(cls, None, version, sys._getframe(1))
    return lambda target: _declare_message(target, given, version, sys._getframe(1))


@overload
def value(cls: ClassT, /) -> ClassT: ...
@overload
def value(name: str | None = None, /) -> Callable[[ClassT], ClassT]: ...
@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
# Any: either a class, a name or nothing; the overloads above tell callers which
def value(cls: Any = None, /) -> Any:
    """Declare a class as a plain value that messages can hold: a message without an envelope.

    Args:
        cls: The class, when used bare; or the word that tells it apart from the other members of a
            union in JSON. Without one the class name gives it, as for `message`.

    Returns:
        The class, made anew: frozen, slotted, hashable, validated.

    Raises:
        SchemaError: A field cannot be described.
    """
    given = None if isinstance(cls, type) else cls
    _check_label(given, 1)
    if isinstance(cls, type):
        return _declare(cls, "value", _words(cls.__name__), 0, sys._getframe(1))
    return lambda target: _declare(
        target, "value", given or _words(target.__name__), 0, sys._getframe(1)
    )


def _declare_message(
    target: type, name: str | None, version: int, frame: types.FrameType
) -> type[Message]:
    if not issubclass(target, Message):
        raise SchemaError(
            f"{_place(target)} is declared as a message and derives from neither Event nor "
            f"Command. Derive it from one of the two, or declare it with @value."
        )
    made: type[Message] = _declare(
        target, "message", name or _words(target.__name__), version, frame
    )
    _register(made)
    return made


_LABEL = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def _check_label(name: object, version: object) -> None:
    if name is not None and not (isinstance(name, str) and _LABEL.fullmatch(name)):
        raise SchemaError(
            f"{name!r} is no name for a message type; write lower-case words with dots between, "
            f"as in 'order.placed'."
        )
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise SchemaError(f"{version!r} is no version; versions are ints from 1.")


def _words(class_name: str) -> str:
    """Return the wire name of a class: ``HTTPRequestSent`` becomes ``http.request.sent``."""
    words = re.findall(r"[A-Z]+(?![a-z])[0-9]*|[A-Z][a-z0-9]*|[a-z0-9]+", class_name)
    return ".".join(words).lower() or class_name.lower()


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


# -- making the class -----------------------------------------------------------------------------

_RESERVED = frozenset({"meta", "message_name", "message_version"})
_PARAMETER_KINDS = {
    False: inspect.Parameter.POSITIONAL_OR_KEYWORD,
    True: inspect.Parameter.KEYWORD_ONLY,
}


def _declare(
    target: type,
    kind: Literal["message", "value"],
    name: str,
    version: int,
    frame: types.FrameType,
) -> Any:  # the class made anew, of a type that only the overloads can tell
    if "__init__" in target.__dict__:
        raise SchemaError(
            f"{_place(target)} has an __init__ of its own, and the constructor of a {kind} is "
            f"generated. Put extra checks into __post_init__."
        )
    made = _as_dataclass(target)
    description = Description(
        made,
        kind=kind,
        name=name,
        version=version,
        fields=tuple(_specs(made)),
        frame=frame,
    )
    _check_fields(description)
    _equip(made, description)
    if description.try_to_resolve():
        _settle_defaults(description)
    _latest_mark[0] = next(_marks)  # threads that declare at once give it two values it never had
    return made


_marks = itertools.count(1)
_latest_mark = [0]


def declarations() -> int:
    """Return a number that is another one whenever a class has been declared since."""
    return _latest_mark[0]


def _as_dataclass(target: type) -> type:
    """Let `dataclasses` collect the fields and lay out the slots; the methods are ours."""
    doc = target.__doc__  # dataclasses writes a signature where there is none
    try:
        made: type = dataclasses.dataclass(
            frozen=True, slots=True, init=False, repr=False, eq=False
        )(target)
    except (TypeError, ValueError) as error:
        raise SchemaError(f"{_place(target)} cannot be declared: {error}.") from error
    made.__doc__ = doc
    _move_class_cell(target, made)
    return made


def _move_class_cell(old: type, new: type) -> None:
    """Point ``super()`` in the methods at the slotted class instead of the one it was made from."""
    for member in vars(new).values():
        function = inspect.unwrap(
            getattr(member, "fget", None) or getattr(member, "__func__", member)
        )
        code = getattr(function, "__code__", None)
        if code is None or "__class__" not in code.co_freevars:
            continue
        cell = function.__closure__[code.co_freevars.index("__class__")]
        if cell.cell_contents is old:
            cell.cell_contents = new


def _specs(cls: type) -> Iterator[FieldSpec]:
    for field in dataclasses.fields(cls):
        factory = field.default_factory
        owner = next(base for base in cls.__mro__ if field.name in _annotated(base))
        yield FieldSpec(
            name=field.name,
            annotation=field.type,
            owner=owner,
            default=field.default,
            factory=None if factory is dataclasses.MISSING else factory,
            kw_only=bool(field.kw_only),
            compared=bool(field.compare),
            shown=field.repr,
            metadata=field.metadata,
        )


def _annotated(cls: type) -> Mapping[str, object]:
    return inspect.get_annotations(cls)


def _check_fields(description: Description) -> None:
    cls = description.cls
    names = {spec.name for spec in description.fields}
    for name, field in cls.__dataclass_fields__.items():  # type: ignore[attr-defined]  # a dataclass
        if name not in names and "InitVar" in str(field.type):
            raise SchemaError(
                f"{_place(cls)}.{name} is an InitVar, which no message keeps; make it a field."
            )
        if name in names and not field.init:
            raise SchemaError(f"{_place(cls)}.{name} has init=False; every field must be given.")
        if name in names and (name.startswith("_") or name in _RESERVED):
            raise SchemaError(
                f"{_place(cls)}.{name} cannot be a field: names with a leading underscore, and "
                f"{', '.join(sorted(_RESERVED))}, belong to Atlas. Choose another name."
            )
    optional = None
    for spec in description.fields:
        if spec.kw_only:
            continue
        if spec.required and optional is not None:
            raise SchemaError(
                f"{_place(cls)}.{spec.name} has no default and follows {optional}, which has one. "
                f"Give it a default, move it up, or use field(kw_only=True)."
            )
        optional = optional if spec.required else spec.name


def _equip(cls: Any, description: Description) -> None:  # Any: attributes are set by name
    """Give the class its methods; the constructor is generated when it is first called."""
    compared = tuple(spec.name for spec in description.fields if spec.compared)
    shown = tuple(spec.name for spec in description.fields if spec.shown)
    read = _reader(compared)

    def eq_(self: object, other: object) -> object:
        return read(self) == read(other) if type(other) is type(self) else NotImplemented

    def hash_(self: object) -> int:
        return hash(read(self))

    def repr_(self: object) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)
        return f"{type(self).__qualname__}({fields})"

    def init_(self: object, /, *arguments: object, **fields: object) -> None:
        _generate(description)
        cls.__init__(self, *arguments, **fields)

    own = {
        "__eq__": eq_,
        "__hash__": hash_,
        "__repr__": repr_,
    }
    for name, method in own.items():
        if name not in cls.__dict__ or (name == "__hash__" and cls.__dict__[name] is None):
            setattr(cls, name, method)
    cls.__init__ = init_
    cls.__setattr__ = cls.__delattr__ = _refuse_assignment
    cls.__reduce__ = _reduce
    cls.__deepcopy__ = _same
    cls.__signature__ = _signature(description)
    cls.__description__ = description
    cls.message_name = description.name
    cls.message_version = description.version
    # dataclasses makes these for pickling slots; __reduce__ goes through the constructor instead
    for name in ("__getstate__", "__setstate__"):
        if name in cls.__dict__:
            delattr(cls, name)


def _reader(names: tuple[str, ...]) -> Callable[[object], object]:
    if not names:
        return lambda _instance: ()
    return operator.attrgetter(*names)


def _same(self: object, _memo: object) -> object:
    return self


def _reduce(self: object) -> tuple[object, ...]:
    cls = type(self)
    fields = {spec.name: getattr(self, spec.name) for spec in _description(cls).fields}
    return _restore, (cls, fields, self._stamp if isinstance(self, Message) else None)


def _restore(cls: type, fields: dict[str, object], old_stamp: Stamp | Place | None) -> object:
    """Make a pickled message again, checking it: the class may have changed since."""
    made = cls(**fields)
    if old_stamp is not None:
        stamp(made, old_stamp)
    return made


def _signature(description: Description) -> inspect.Signature:
    parameters = [
        inspect.Parameter(
            spec.name,
            _PARAMETER_KINDS[spec.kw_only],
            default=inspect.Parameter.empty
            if spec.required
            else (spec.default if spec.factory is None else spec.factory),
            annotation=spec.annotation,
        )
        for spec in _in_call_order(description)
    ]
    return inspect.Signature(parameters, return_annotation=None)


def _in_call_order(description: Description) -> list[FieldSpec]:
    return sorted(description.fields, key=lambda spec: spec.kw_only)


def _description(cls: type) -> Description:
    """Return the description of a class or of the nearest declared class it derives from."""
    return cast("Description", cls.__description__)  # type: ignore[attr-defined]  # set by _equip


# -- the generated constructor --------------------------------------------------------------------


class _Marker(enum.Enum):
    """What a parameter of a constructor holds when the caller gave nothing."""

    NOTHING = "nothing"
    FACTORY = "factory"

    def __repr__(self) -> str:
        return self.value


def _generate(description: Description) -> None:
    """Write the constructor of a class as source, compile it, put it in place."""
    defaults = _settle_defaults(description)
    code = Code()
    cls = description.cls
    specs = _in_call_order(description)
    code.names |= {
        "_NOTHING": _Marker.NOTHING,
        "_FACTORY": _Marker.FACTORY,
        "_settle": _settle,
    }
    tests = ["not _unknown", "not _extra"]
    results = {}
    factories = []
    for spec in specs:
        test, results[spec.name] = code.check(description.nodes[spec.name], spec.name)
        tests.append(test)
        if spec.factory is not None:
            made = code.bind(spec.factory, "factory")
            factories.append(f"    if {spec.name} is _FACTORY: {spec.name} = {made}()")
    lines = [
        f"def __init__({', '.join(_parameters(specs, defaults, code))}):",
        *factories,
        "    if not (",
        *(f"        {'and ' if at else ''}{test}" for at, test in enumerate(tests)),
        "    ):",
        *_settle_lines(specs, results),
        *_fill_lines(cls, {spec.name: results[spec.name] for spec in specs}, code),
        *(["    _self.__post_init__()"] if hasattr(cls, "__post_init__") else []),
    ]
    text = "\n".join([*code.functions, *lines, ""])
    filename = f"<constructor of {_place(cls)}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), code.names)  # noqa: S102  # our own source
    made_init = cast("types.FunctionType", code.names["__init__"])
    made_init.__qualname__ = f"{cls.__qualname__}.__init__"
    made_init.__module__ = cls.__module__
    cls.__init__ = made_init  # type: ignore[misc]  # replaces the one that called us


_AS_FILLABLE = 4
"""From how many slots on it pays to change the class of an instance twice."""

_become: Callable[[object, type], None] = vars(object)["__class__"].__set__


def _fill_lines(cls: type, results: Mapping[str, str], code: Code) -> list[str]:
    """Return lines that fill the slots of a new instance, and the stamp with None."""
    if issubclass(cls, Message):
        results = {**results, "_stamp": "None"}
    for name in results:
        code.names[f"_set_{name}"] = _slot(cls, name).__set__
    by_setters = [f"_set_{name}(_self, {result})" for name, result in results.items()]
    filled = fillable(cls) if len(results) >= _AS_FILLABLE else None
    if filled is None:
        return [f"    {line}" for line in by_setters]
    code.names |= {"_class": cls, "_fillable": filled, "_become": _become}
    return [
        "    if _type(_self) is _class:",
        "        _become(_self, _fillable)",
        *(f"        _self.{name} = {result}" for name, result in results.items()),
        "        _self.__class__ = _class",
        "    else:",  # a subclass that is not declared
        *(f"        {line}" for line in by_setters),
    ]


def fillable(cls: type) -> type | None:
    """Return the subclass of a declared class whose slots take assignments; None for none.

    An instance of it, filled and then given ``cls`` as its ``__class__``, is an instance of ``cls``
    like any other. Assigning to a slot takes a tenth of the time that calling its setter takes, so
    this pays from the third field on. It is for whoever has checked and frozen the values.

    There is none where one more subclass would be noticed: by a metaclass, or by a base that is told
    of its subclasses.
    """
    kept = description_of(cls).derived
    if "fillable" not in kept:
        kept["fillable"] = _make_fillable(cls)
    return cast("type | None", kept["fillable"])


def _make_fillable(cls: type) -> type | None:
    told = next(base for base in cls.__mro__ if "__init_subclass__" in base.__dict__)
    if type(cls) is not type or told not in (object, Generic):
        return None
    body = {
        "__slots__": (),
        "__setattr__": object.__setattr__,
        "__delattr__": object.__delattr__,
        "__module__": cls.__module__,
        "__qualname__": f"{cls.__qualname__}.<being filled>",
    }
    return type(cls.__name__, (cls,), body)


def _slot(cls: type, name: str) -> Any:  # a member descriptor, which typing does not know
    """Return the slot of a field, which may belong to a base class."""
    return next(base.__dict__[name] for base in cls.__mro__ if name in base.__dict__)


def _parameters(
    specs: list[FieldSpec], defaults: Mapping[str, object], code: Code
) -> Iterator[str]:
    yield "_self"
    starred = False
    for spec in specs:
        if spec.kw_only and not starred:
            starred = True
            yield "*_extra"
        if spec.required:
            yield f"{spec.name}=_NOTHING"
        elif spec.factory is not None:
            yield f"{spec.name}=_FACTORY"
        else:
            yield f"{spec.name}={code.bind(defaults[spec.name], 'default')}"
    if not starred:
        yield "*_extra"
    yield "**_unknown"


def _settle_lines(specs: list[FieldSpec], results: Mapping[str, str]) -> list[str]:
    given = ", ".join(spec.name for spec in specs)
    comma = "," if specs else ""
    call = f"_settle(_self, ({given}{comma}), _extra, _unknown)"
    if not specs:
        return [f"        {call}"]
    targets = ", ".join(results[spec.name] for spec in specs)
    return [f"        {targets}{comma} = {call}"]


def _settle(
    self: object, given: tuple[object, ...], extra: tuple[object, ...], unknown: dict[str, object]
) -> list[object]:
    """Check field by field what the generated test was not sure of; return the frozen values."""
    description = _description(type(self))
    specs = _in_call_order(description)
    for name, refused in unknown.items():
        known = ", ".join(spec.name for spec in specs)
        raise ValidationError(description.name, name, refused, f"a known field ({known})")
    if extra:
        count = sum(not spec.kw_only for spec in specs)
        raise ValidationError(description.name, "", extra, f"at most {count} positional fields")
    frozen = []
    for spec, field in zip(specs, given, strict=True):
        try:
            frozen.append(description.nodes[spec.name].freeze(field, (spec.name,)))
        except RefusedError as refused:
            raise ValidationError(
                description.name, ".".join(refused.path), refused.value, refused.rule
            ) from refused.__cause__
    return frozen


def _settle_defaults(description: Description) -> Mapping[str, object]:
    """Freeze the defaults, which are checked once here and not in every call."""
    frozen = {}
    for spec in description.fields:
        if spec.default is dataclasses.MISSING:
            continue
        try:
            frozen[spec.name] = description.nodes[spec.name].freeze(spec.default, ())
        except RefusedError as refused:
            raise SchemaError(
                f"{_place(description.cls)}.{spec.name} has the default {spec.default!r}, and "
                f"{refused.rule} is expected. Correct the default or the annotation."
            ) from refused
    return frozen


# -- the registry ---------------------------------------------------------------------------------

_registry: dict[tuple[str, int], type[Message]] = {}
_newest: dict[str, type[Message]] = {}
_registry_lock = threading.Lock()


def registered_messages() -> tuple[type[Message], ...]:
    """Return every message type declared so far in this process, by name, then version."""
    return tuple(cls for _, cls in sorted(_registry.items(), key=operator.itemgetter(0)))


def message_class(name: str, version: int | None = None) -> type[Message]:
    """Return the message type of this name: of this version, or of the highest one.

    Raises:
        UnknownMessageError: No such type is declared; the text names the nearest.
        ValidationError: The name is no text.
    """
    known_as: object = name
    if not isinstance(known_as, str):
        raise ValidationError("message", "name", known_as, "the name of a message type")
    found = _newest.get(name) if version is None else _registry.get((name, version))
    if found is not None:
        return found
    versions = sorted(known[1] for known in list(_registry) if known[0] == name)
    if versions:
        raise UnknownMessageError(
            f"{name!r} has no version {version}; declared are {', '.join(map(str, versions))}. "
            f"Install the code that wrote it, or decode with unknown='keep'.",
            name=name,
            version=version,
        )
    nearest = difflib.get_close_matches(name, {known[0] for known in list(_registry)}, n=1)
    hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
    raise UnknownMessageError(
        f"No message type is registered as {name!r}{hint}. Import the module that defines it, "
        f"or decode with unknown='keep'.",
        name=name,
        version=version,
    )


def _register(cls: type[Message]) -> None:
    key = cls.message_name, cls.message_version
    with _registry_lock:
        other = _registry.get(key)
        if other is not None and not _gives_way(other, cls):
            raise SchemaError(
                f"{_place(cls)} and {_place(other)} both claim the message name {key[0]!r} in "
                f"version {key[1]}. Give one of them another name: "
                f"@message({(cls.__module__.rpartition('.')[2] + '.' + key[0])!r})."
            )
        _registry[key] = cls
        newest = _newest.get(key[0])
        if newest is None or newest.message_version <= key[1]:
            _newest[key[0]] = cls


def _gives_way(old: type, new: type) -> bool:
    """Whether a class takes the place of an older one: the same code run again, or a local class.

    A class inside a function is made anew by each call and can be imported by nobody, so it holds
    no name for good.
    """
    if "<locals>" in old.__qualname__:
        return True
    return old.__qualname__ == new.__qualname__ and (
        old.__module__ == new.__module__ or (_file(old) is not None and _file(old) == _file(new))
    )


def _file(cls: type) -> str | None:
    """The file of the class: a script is the same code as ``__main__`` and under its own name."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None)

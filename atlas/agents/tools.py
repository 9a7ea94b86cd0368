"""Tools: typed Python functions that a model may call.

The signature is the schema and the docstring the description; what a model gives for arguments is
validated before the function sees any of it. Performing a tool is an effect: recorded in a run, not
repeated when the run is replayed or resumed, see `atlas.core.effects`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, Generic, Literal, ParamSpec, TypeVar, cast, overload

from atlas.agents.messages import Permission
from atlas.agents.settings import check, is_number, listed
from atlas.agents.threads import in_a_thread
from atlas.core.effect_layers import Layer, Timeout
from atlas.core.effects import Effect, stream
from atlas.core.effects.entries import Declared
from atlas.core.effects.perform import perform_as
from atlas.core.messages import value
from atlas.core.schema import dump, json_schema, load
from atlas.errors import ConfigurationError, SchemaError, ValidationError
from atlas.providers.messages import ToolSpec
from atlas.typing import JSON

__all__ = ["Shape", "Tool", "tool"]

P = ParamSpec("P")
T = TypeVar("T")

_DECLARED: Final[Mapping[Permission, Declared]] = {
    "read": "idempotent",
    "write": "external",
    "network": "external",
    "dangerous": "external",
}


# -- shapes -------------------------------------------------------------------------------------


class Shape:
    """What a function or a dataclass takes: its JSON Schema, and how to check what comes.

    Args:
        target: A function, or a dataclass. Each parameter has to be annotated, with what messages may
            hold; see `atlas.core.messages`.
        name: For errors.
        known: What there is to know of parameters, in words, by name.

    Raises:
        SchemaError: A parameter has no annotation, or one that no schema describes.
    """

    __slots__ = ("_class", "_hints", "_text", "_thaw", "known", "name")

    def __init__(
        self, target: Callable[..., object], name: str, known: Mapping[str, str] | None = None
    ) -> None:
        self.name: str = name
        self.known = known or {}
        self._text = ""
        self._hints, defaults = _fields_of(target, name)
        self._thaw = [key for key, hint in self._hints.items() if not _is_plain(hint)]
        members = {**defaults, "__annotations__": dict(self._hints), "__module__": __name__}
        label = re.sub(r"\W+", "_", name).lower().strip("_") or "tool"
        self._class = value(f"tool.{label}")(type(label, (), members))

    @property
    def schema(self) -> dict[str, JSON]:
        """The JSON Schema of all parameters together."""
        made = json_schema(self._class)
        for key in ("$schema", "title", "description"):
            made.pop(key, None)
        properties = cast("dict[str, dict[str, JSON]]", made["properties"])
        for name, words in self.known.items():
            if name in properties:
                properties[name] = {**properties[name], "description": words}
        return made

    @property
    def text(self) -> str:
        """The JSON Schema as text."""
        if not self._text:
            self._text = json.dumps(self.schema, ensure_ascii=False, separators=(",", ":"))
        return self._text

    def parse(self, text: str) -> dict[str, Any]:
        """Return the arguments that a JSON text gives, checked.

        Raises:
            ValidationError: It is no JSON, or an argument is missing, unknown or wrong.
        """
        try:
            return self.checked(_parsed(text))
        except RecursionError as error:
            raise ValidationError(self.name, "", text, "JSON that is nested less deeply") from error
        except ValidationError:
            raise
        except ValueError as error:
            raise ValidationError(self.name, "", text, f"JSON ({error})") from error

    def checked(self, given: JSON) -> dict[str, Any]:
        """Return arguments given as a JSON value, checked; see `parse`."""
        if not isinstance(given, dict):
            raise ValidationError(self.name, "", given, "a JSON object with the arguments")
        try:
            made = load(self._class, given)
        except ValidationError as error:
            raise ValidationError(self.name, error.field, error.value, error.rule) from error
        arguments = {name: getattr(made, name) for name in self._hints}
        for name in self._thaw:
            arguments[name] = _thawed(arguments[name], self._hints[name])
        return arguments


def _fields_of(
    target: Callable[..., object], name: str
) -> tuple[dict[str, object], dict[str, object]]:
    try:
        hints = _hints_of(_called_by(target))
        parameters = inspect.signature(target).parameters.values()
    except NameError as error:
        raise SchemaError(
            f"An annotation of {name} cannot be understood: {error}. Define it before {name}, outside "
            f"of functions and of `if TYPE_CHECKING`."
        ) from error
    except (TypeError, ValueError) as error:  # of what is written in C, or no annotation at all
        raise SchemaError(
            f"The signature of {name} cannot be read ({error}). Write a function of your own, each "
            f"parameter annotated, that calls it."
        ) from error
    found: dict[str, object] = {}
    defaults: dict[str, object] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise SchemaError(
                f"{name} takes *{parameter.name}, which a model cannot be told of. Name each "
                f"parameter."
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise SchemaError(
                f"Parameter {parameter.name!r} of {name} can only be given by its position, and a model "
                f"gives each by its name. Take the / out of its signature."
            )
        if parameter.name not in hints:
            raise SchemaError(
                f"Parameter {parameter.name!r} of {name} has no annotation, so that nothing can be "
                f"checked. Write {parameter.name}: str, or what it is."
            )
        found[parameter.name] = hints[parameter.name]
        if parameter.default is not parameter.empty:
            defaults[parameter.name] = _default(parameter.default)
    # what has a default goes last, as in a dataclass
    return {each: found[each] for each in sorted(found, key=lambda n: n in defaults)}, defaults


def _called_by(target: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that is called in the end: of a partial, or of an object that can be called."""
    while isinstance(target, functools.partial):
        target = target.func
    if inspect.isroutine(target) or isinstance(target, type):
        return target
    return cast("Callable[..., Any]", getattr(target, "__call__", target))  # noqa: B004  as bound


def _hints_of(target: Callable[..., object]) -> dict[str, object]:
    """Return what parameters are annotated with; what is returned may be known to type checkers only."""
    if isinstance(target, type):
        return typing.get_type_hints(target, include_extras=True)
    inner = inspect.unwrap(target)
    annotations = {k: v for k, v in inspect.get_annotations(inner).items() if k != "return"}
    bare = types.SimpleNamespace(__annotations__=annotations)
    known = getattr(inspect.unwrap(getattr(inner, "__func__", inner)), "__globals__", {})
    return typing.get_type_hints(bare, globalns=known, include_extras=True)


def _default(given: object) -> object:
    if isinstance(given, list | dict | set):
        return dataclasses.field(default_factory=lambda: given)
    return given


_MUTABLE = (list, dict, set)
_read_json: Final = json.JSONDecoder().raw_decode


def _parsed(text: str) -> JSON:
    try:
        given, end = _read_json(text)  # `loads` looks for spaces around it first
    except ValueError:
        end = -1
    if end == len(text):
        return given  # type: ignore[no-any-return]  # what is read from JSON is JSON
    return json.loads(text) if text.strip() else {}


def _is_plain(hint: object, above: tuple[object, ...] = ()) -> bool:
    """Return whether nothing that an annotation promises is one of our frozen things instead."""
    if typing.get_origin(hint) is Literal or hint in above:
        return True
    if inside := _hints_in(hint):
        return all(_is_plain(each, (*above, hint)) for each in inside.values())
    parts = typing.get_args(hint)
    return typing.get_origin(hint) not in _MUTABLE and all(_is_plain(p, above) for p in parts)


def _hints_in(hint: object) -> dict[str, object]:
    """Return what the fields of a dataclass are annotated with; nothing for ours, which are frozen."""
    is_ours = not isinstance(hint, type) or "__description__" in hint.__dict__
    if is_ours or not dataclasses.is_dataclass(hint):
        return {}
    try:
        return typing.get_type_hints(hint, include_extras=True)
    except NameError:  # declared inside of a function
        return {}


# Any: whatever the parameter holds
def _thawed(given: Any, hint: object) -> Any:
    """Return a value with the lists, dicts and sets that its annotation promises; ours are frozen."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple) and not isinstance(given, tuple):
        return given
    if origin is list:
        return [_thawed(each, inside[0]) for each in given]
    if origin is dict and isinstance(given, Mapping):
        return {key: _thawed(each, inside[1]) for key, each in given.items()}
    if origin is set and isinstance(given, frozenset):
        return set(given)
    if type(given) is hint and (fields := _hints_in(hint)):
        changed = {
            name: _thawed(getattr(given, name), each)
            for name, each in fields.items()
            if not _is_plain(each)
        }
        return dataclasses.replace(given, **changed) if changed else given
    if origin is tuple:
        each_of = inside[:1] * len(given) if inside[-1:] == (...,) else inside
        return tuple(map(_thawed, given, each_of))
    if given is not None and origin is not None and origin is not Literal:  # a union: one fits
        made = (_thawed(given, each) for each in inside if not _is_plain(each))
        return next((each for each in made if each is not given), given)
    return given


# -- tools --------------------------------------------------------------------------------------


class Tool(Generic[P, T]):
    """A function that a model may call. Made by `tool`; calling it calls the function.

    Attributes:
        name: By which the model calls it.
        description: What the model is told of it.
        permission: What it may do.
        declared: What performing it twice would do, see `Effect`.
        needs_approval: Whether a person is asked before each call.
        timeout: Seconds; None: as long as it takes.
        is_inside: Whether it is agent logic, which delegates and asks models, and no effect.
    """

    __slots__ = (
        "__wrapped__",
        "_effect",
        "_kind",
        "_shape",
        "_spec",
        "declared",
        "description",
        "is_inside",
        "name",
        "needs_approval",
        "permission",
        "timeout",
    )

    def __init__(
        self,
        function: Callable[P, T],
        *,
        name: str | None = None,
        description: str | None = None,
        permission: Permission = "read",
        idempotent: bool | None = None,
        approval: bool | None = None,
        timeout: float | None = 120.0,
        layers: Sequence[Layer] = (),
        schema: Shape | None = None,
        is_inside: bool = False,
    ) -> None:
        if not callable(function):
            raise ConfigurationError(
                f"{function!r} is no tool. Give a function whose parameters are annotated, or what "
                f"`tool` made of one."
            )
        if isinstance(function, Tool):
            raise ConfigurationError(
                f"{function!r} is a tool already. Give the function, {function.name}.__wrapped__, to make "
                f"another one of it."
            )
        of = function.func if isinstance(function, functools.partial) else function
        own = str(getattr(of, "__name__", type(of).__name__))
        self.name: str = _checked_name(own if name is None else name)
        if permission not in _DECLARED:
            raise ConfigurationError(
                f"Tool {self.name!r} has permission {permission!r}. Give one of "
                f"{', '.join(_DECLARED)}."
            )
        for what, given, holds, wanted in (
            ("description", description, isinstance(description, str | None), "a text"),
            ("idempotent", idempotent, isinstance(idempotent, bool | None), "True or False"),
            ("approval", approval, isinstance(approval, bool | None), "True or False"),
            (
                "timeout",
                timeout,
                timeout is None or is_number(timeout, 1e-9),
                "seconds above 0, or None",
            ),
        ):
            check(f"Tool {self.name!r}: {what}", given, holds, wanted)
        around = listed(f"Tool {self.name!r}: layers", layers, "a list of layers")
        for layer in around:
            check(f"Tool {self.name!r}: a layer", layer, callable(layer), "a layer")
        told, known = _told_by(of)
        self.description: str = told if description is None else description
        self.permission: Permission = permission
        self.declared: Declared = "idempotent" if idempotent else _DECLARED[permission]
        self.needs_approval: bool = permission == "dangerous" if approval is None else approval
        self.timeout: float | None = timeout
        self.is_inside: bool = is_inside
        self.__wrapped__: Callable[P, T] = function
        self._shape = schema or Shape(function, self.name, known)
        in_all = (*around, *(() if timeout is None else (Timeout(timeout),)))
        self._effect = Effect(f"tool.{self.name}", None, self.declared, (), in_all)
        self._kind = _kind_of(self.name, function)
        self._spec: ToolSpec | None = None

    def __call__(self, *args: P.args, **options: P.kwargs) -> T:
        """Call the function itself: no effect, nothing checked."""
        return self.__wrapped__(*args, **options)

    def __repr__(self) -> str:
        return f"<Tool {self.name} ({self.permission})>"

    @property
    def spec(self) -> ToolSpec:
        """What a model is told of the tool."""
        if self._spec is None:
            self._spec = ToolSpec(self.name, self.description, self._shape.text)
        return self._spec

    @property
    def schema(self) -> dict[str, JSON]:
        """The JSON Schema of its arguments."""
        return self._shape.schema

    def parse(self, text: str) -> dict[str, Any]:
        """Return the arguments that a JSON text gives, checked.

        Raises:
            ValidationError: An argument is missing, unknown or wrong.
        """
        return self._shape.parse(text)

    async def perform(
        self,
        arguments: Mapping[str, Any],
        on_progress: Callable[[str], object],
        on_piece: Callable[[], object] = lambda: None,
    ) -> str:
        """Perform the tool as an effect, and return what the model is told.

        Args:
            arguments: As `parse` gave them.
            on_progress: Called with what a generator tool yields before its last word, when it is
                known that it was not the last.
            on_piece: Called for each piece that a generator tool yields, when it does.

        Raises:
            Exception: What the function raised.
        """
        if self.is_inside:
            return _content(await cast("Awaitable[object]", self.__wrapped__(**arguments)))  # type: ignore[call-arg]  # by name
        if self._kind == "generator":
            return await self._follow(arguments, on_progress, on_piece)
        return await perform_as(self._effect, arguments, self._call, (arguments,))

    async def _call(self, arguments: Mapping[str, Any]) -> str:
        # A plain function may block; in a thread it holds nobody up.
        call: Callable[..., Any] = self.__wrapped__
        if self._kind == "plain":
            given = await in_a_thread(self.name, functools.partial(_called, call, arguments))
            return _content(await given if inspect.isawaitable(given) else given)
        return _content(await call(**arguments))

    async def _follow(
        self,
        arguments: Mapping[str, Any],
        on_progress: Callable[[str], object],
        on_piece: Callable[[], object],
    ) -> str:
        last: str | None = None
        effect = dataclasses.replace(self._effect, request=arguments)
        async with aclosing(stream(effect, self._pieces, arguments)) as pieces:
            async for piece in pieces:
                on_piece()
                if last is not None:
                    on_progress(last)
                last = piece
        return last or ""

    async def _pieces(self, arguments: Mapping[str, Any]) -> AsyncIterator[str]:
        call: Callable[..., Any] = self.__wrapped__
        async with aclosing(call(**arguments)) as pieces:
            async for piece in pieces:
                yield _content(piece)


# Any, twice: a tool takes and gives whatever it does
def _called(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a plain function, in a thread."""
    try:
        return function(**arguments)
    except StopIteration as error:  # which no future takes: who waits would wait for ever
        raise RuntimeError("The tool raised StopIteration.") from error


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def _checked_name(name: object) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"A tool cannot be called {name!r}. Vendors take letters, digits, _ and -, 64 at most, "
            f"the first no digit: give name=."
        )
    return name


def _kind_of(name: str, function: Callable[..., object]) -> Literal["async", "generator", "plain"]:
    called = _called_by(function)
    if inspect.isasyncgenfunction(called):
        return "generator"
    if inspect.isgeneratorfunction(called):
        raise ConfigurationError(
            f"Tool {name!r} is a generator function. Make it `async def`: then what it yields is "
            f"progress, and the last of it the result. Or let it return a list."
        )
    return "async" if inspect.iscoroutinefunction(called) else "plain"


_ARGUMENT = re.compile(r"^\s*\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def _told_by(function: Callable[..., object]) -> tuple[str, dict[str, str]]:
    """Return the description in a docstring, and what its ``Args`` say."""
    text = inspect.getdoc(function) or ""
    head, _, rest = re.sub(
        r"\n(Returns|Raises|Yields|Example):.*", "", text, flags=re.DOTALL
    ).partition("\nArgs:\n")
    known: dict[str, str] = {}
    name, depth = "", 0
    for line in rest.splitlines():
        indent = len(line) - len(line.lstrip())
        if (found := _ARGUMENT.match(line)) and (not known or indent <= depth):
            name, depth = found[1], indent
            known[name] = found[2]
        elif name and line.strip():
            known[name] = f"{known[name]} {line.strip()}"
    return head.strip(), known


def _content(result: object) -> str:
    """Return a result as the text that the model reads."""
    if isinstance(result, str):
        return result
    if type(result) is int:
        return int.__repr__(result)
    return _JSON.encode(result)


def _jsonable(item: Any) -> JSON:
    if hasattr(type(item), "message_name"):
        return dump(item)
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {each.name: getattr(item, each.name) for each in dataclasses.fields(item)}
    if isinstance(item, Mapping):
        return dict(item)
    return list(item) if isinstance(item, set | frozenset | tuple) else str(item)


_JSON: Final = json.JSONEncoder(ensure_ascii=False, default=_jsonable)  # `dumps` makes one a call


@overload
def tool(function: Callable[P, T], /) -> Tool[P, T]: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    permission: Permission = "read",
    idempotent: bool | None = None,
    approval: bool | None = None,
    timeout: float | None = 120.0,
    layers: Sequence[Layer] = (),
) -> Callable[[Callable[P, T]], Tool[P, T]]: ...
# Any: either the function or its options; the overloads above tell callers which
def tool(  # noqa: D417  the options are those of the overload above
    function: Any = None, /, **options: Any
) -> Any:
    """Make a function a tool for agents.

    A plain function runs in a thread, which goes on when the call is cancelled or takes too long (nothing
    can stop it), but holds nobody up then; an ``async`` one on the loop; of an async generator function
    each piece is progress, and the last one the result. In a run, a tool with permission ``"read"`` is
    performed again if a crash caught it in flight; another one is reported in doubt, unless it is
    declared ``idempotent`` (see `current_effect` for its key).

    Args:
        function: The function; each parameter annotated.
        name: By which the model calls it; default: the function's name.
        description: What the model is told; default: the docstring up to ``Args:``.
        permission: What it may do: ``"read"``, ``"write"``, ``"network"`` or ``"dangerous"``.
        idempotent: Whether performing it twice does nothing more than once.
        approval: Whether a person is asked before each call; default: for ``"dangerous"`` ones.
        timeout: Seconds for a call, or for each piece; None: as long as it takes.
        layers: Around its effect, the outermost first; see `atlas.core.effect_layers`.

    Raises:
        SchemaError: A parameter has no annotation, or one that no schema describes.
        ConfigurationError: The name or the permission makes no sense.
    """
    if function is not None:
        return Tool(function)
    return lambda decorated: Tool(decorated, **options)

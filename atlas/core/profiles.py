"""Profiles: settings from TOML and YAML files, as a typed immutable value that knows its origins.

A profile file may extend others, and take values from the environment as ``${NAME}`` or
``${NAME:-default}``. It is checked against a frozen dataclass: an unknown key, a missing value and a
wrong type are told with the file and the key, all in one error. Each value remembers where it comes
from, and secrets are masked wherever a profile is shown.

TOML is read by the standard library; YAML needs the extra ``atlas[yaml]``.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
import tomllib
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar, cast

from atlas.core.redaction import names_a_secret
from atlas.errors import (
    AtlasError,
    ConfigurationError,
    MissingDependencyError,
    ProfileError,
    nearest_name,
)
from atlas.typing import JSON, is_secret

__all__ = ["Origin", "Profile", "load_profile", "read_tables"]

T = TypeVar("T")

_MASK = "********"
_MAX_DEPTH = 32
_NUMBERS = frozenset({int, float, bool, type(None)})
_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<body>[^}]*)(?P<end>\}?)")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)
_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True} | {
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from.

    Attributes:
        source: ``"file"``; ``"environment"`` for a value of a file that has environment variables
            in it; ``"default"`` of the dataclass.
        file: The file the value stands in; None for a default.
        variables: The environment variables that were set and used, in order.
    """

    source: Literal["file", "environment", "default"]
    file: Path | None = None
    variables: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.source == "environment":
            return f"{', '.join('$' + name for name in self.variables)} in {self.file}"
        return str(self.file or self.source)


@dataclass(frozen=True, slots=True, repr=False)
class Profile(Generic[T]):
    """A checked profile. Immutable, if the dataclass it was loaded into is.

    Attributes:
        value: The settings, an instance of the dataclass given to `load_profile`.
        origins: Where each single value comes from, by dotted key (``"model.name"``).
        files: All files that were read, the most basic one first.
    """

    value: T
    origins: Mapping[str, Origin]
    files: tuple[Path, ...]
    _secrets: frozenset[str] = field(default=frozenset(), kw_only=True)

    def origin(self, key: str) -> Origin:
        """Return where the value of a dotted key comes from.

        Raises:
            ConfigurationError: The profile has no such value.
        """
        if key not in self.origins:
            raise ConfigurationError(
                f"The profile has no value {key!r}{nearest_name(key, self.origins)}. "
                f"Values: {', '.join(self.origins)}."
            )
        return self.origins[key]

    def show(self, *, origin: bool = False) -> str:
        """Return the profile as text, a line for each value; secrets are masked.

        Args:
            origin: Say at the end of each line where the value comes from.
        """
        lines = [(f"{key} = {self._shown(key)}", self.origins[key]) for key in self.origins]
        if not origin:
            return "\n".join(line for line, _ in lines)
        width = max((len(line) for line, _ in lines), default=0)
        return "\n".join(f"{line:<{width}}  # {where}" for line, where in lines)

    def masked(self) -> dict[str, JSON]:
        """Return each value by its dotted key, as JSON data for programs; secrets are masked."""
        shown = {key: self._shown(key) for key in self.origins}
        return {key: _MASK if text == _MASK else json.loads(text) for key, text in shown.items()}

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={self._shown(key)}" for key in self.origins)
        return f"<Profile {type(self.value).__name__}: {shown}>"

    def _shown(self, key: str) -> str:
        value = _at(self.value, key)
        if key in self._secrets:
            return _MASK if value else _rendered(value)
        return _rendered(value)


def load_profile(
    path: str | Path, into: type[T], *, environ: Mapping[str, str] | None = None
) -> Profile[T]:
    """Read a profile file, and those it extends, into a frozen dataclass.

    A file may name others in ``extends`` (one path or a list, relative to it). Tables are merged key
    by key, everything else is replaced; later files of the list win over earlier ones and the file
    itself over all of them. Environment variables are looked up after that, so that what is replaced
    needs none. ``${NAME:-default}`` is the default when the variable is unset or empty, and ``$${``
    is a literal ``${``. A text that is made from the environment may stand where a number or a truth
    value is expected; text written in the file may not.

    Fields may be ``bool``, ``int``, ``float``, ``str``, ``Path`` (relative to the file it stands in),
    dates, `Enum` classes (by value), ``Literal``, unions, lists, tuples, sets and mappings of these,
    other frozen dataclasses, classes with a static ``from_json`` such as `Schedule`, and ``Any``.
    Lists become tuples and mappings read-only. A field marked ``Annotated[str, SECRET]`` is masked
    when shown, and so is one, unless it is a number, whose name ends in key, token, secret, password or
    credentials. A field declared with ``compare=False`` is no setting: it is not shown.

    Args:
        path: A ``.toml``, ``.yaml`` or ``.yml`` file.
        into: A frozen dataclass.
        environ: Environment variables; those of the process by default.

    Raises:
        ProfileError: A file cannot be read, extends itself, or does not fit ``into``; its
            ``problems`` list everything found wrong.
        MissingDependencyError: The file is YAML and PyYAML is not installed.
        ConfigurationError: ``into`` is no frozen dataclass.
    """
    if not _is_frozen_dataclass(into):
        raise ConfigurationError(
            f"A profile is loaded into a frozen dataclass, and {into!r} is none. "
            f"Decorate it with @dataclass(frozen=True)."
        )
    _check_sources(path, environ)
    files: list[Path] = []
    tree = _read(Path(path), (), files)
    reader = _Reader(Path(path), os.environ if environ is None else environ)
    value = reader.dataclass(tree, cast("type[Any]", into), "")
    if reader.problems:
        raise ProfileError(
            f"The profile {str(path)!r} cannot be used. " + " ".join(reader.problems),
            problems=reader.problems,
        )
    return Profile(
        cast("T", value),
        types.MappingProxyType(reader.origins),
        tuple(files),
        _secrets=frozenset(reader.secrets),
    )


def _check_sources(path: object, environ: object) -> None:
    if not isinstance(path, str | Path):
        raise ConfigurationError(f"A profile is read from {path!r}. Give the path of a file.")
    if environ is None:
        return
    is_environment = isinstance(environ, Mapping) and all(
        isinstance(part, str) for pair in environ.items() for part in pair
    )
    if not is_environment:  # not shown: there are keys in it
        raise ConfigurationError(
            f"environ is a {type(environ).__name__} in which not everything is text. Give a mapping "
            f"from names to texts, as os.environ is."
        )


# Any: a file may say anything.
def read_tables(path: str | Path) -> dict[str, Any]:
    """Return what one profile file says, as it says it: nothing extended, looked up or checked.

    Raises:
        ProfileError: The file cannot be read.
        MissingDependencyError: The file is YAML and PyYAML is not installed.
    """
    return _parsed(Path(path), ())


# -- reading files --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A single value, and the file it stands in."""

    value: object
    file: Path


_Node: TypeAlias = "dict[str, _Node] | list[_Node] | _Leaf"
_Table: TypeAlias = "dict[str, _Node]"


def _read(path: Path, chain: tuple[Path, ...], files: list[Path]) -> _Table:
    """Return the tables of a file merged over those it extends."""
    resolved = path.resolve()
    if resolved in (each.resolve() for each in chain):
        circle = " -> ".join(str(each) for each in (*chain, path))
        raise ProfileError(
            f"The profile {str(chain[0])!r} extends itself: {circle}. Cut the circle."
        )
    content = _parsed(path, chain)
    bases = content.pop("extends", [])
    if isinstance(bases, str):
        bases = [bases]
    if not isinstance(bases, list) or not all(isinstance(each, str) for each in bases):
        raise ProfileError(f"{path}: extends is {bases!r}; write a path or a list of paths.")
    merged: _Table = {}
    for base in bases:
        merged = _merged(merged, _read(path.parent / base, (*chain, path), files))
    if path not in files:
        files.append(path)
    return _merged(merged, _marked(content, path, ""))


def _parsed(path: Path, chain: tuple[Path, ...]) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        asked = f", which {chain[-1]} extends," if chain else ""
        raise ProfileError(f"The profile {str(path)!r}{asked} cannot be read: {error}.") from error
    if path.suffix == ".toml":
        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ProfileError(f"{path} is not valid TOML: {error}.") from error
        except RecursionError as error:
            raise _too_deep(path) from error
    if path.suffix in {".yaml", ".yml"}:
        return _parsed_yaml(path, text)
    raise ProfileError(
        f"The profile {str(path)!r} has an unknown format. Name it .toml, .yaml or .yml."
    )


def _parsed_yaml(path: Path, text: str) -> dict[str, object]:
    # Imported here: an optional package, and dear to import for who uses TOML.
    try:
        import yaml  # noqa: PLC0415
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading {path} needs PyYAML. Install it with `pip install 'atlas[yaml]'`, "
            f"or write the profile as TOML.",
            extra="yaml",
        ) from error

    class Loader(yaml.SafeLoader):
        """Refuses a key given twice, of which YAML would silently keep the last."""

        # Any: the package's stubs state another type than it passes.
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
            return node

    try:
        # A SafeLoader: it builds plain values only.
        content = yaml.load(text, Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise ProfileError(f"{path} is not valid YAML: {error}.") from error
    except RecursionError as error:
        raise _too_deep(path) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ProfileError(f"{path} holds {content!r}; write a mapping of keys to values.")
    return content


def _too_deep(path: Path) -> ProfileError:
    return ProfileError(f"{path} is nested too deep to be read; {_MAX_DEPTH} levels are taken.")


def _marked(content: Mapping[Any, object], file: Path, prefix: str) -> _Table:
    table: _Table = {}
    for key, value in content.items():
        if not isinstance(key, str):
            raise ProfileError(f"{file}: the key {prefix}{key!r} is no text. Put it in quotes.")
        table[key] = _node(value, file, prefix + key)
    return table


def _node(value: object, file: Path, key: str) -> _Node:
    if key.count(".") > _MAX_DEPTH:
        raise ProfileError(f"{file}: the value of {key!r} is nested too deep, or holds itself.")
    if isinstance(value, Mapping):
        return _marked(value, file, f"{key}.")
    if isinstance(value, list):
        return [_node(each, file, f"{key}.{index}") for index, each in enumerate(value)]
    return _Leaf(value, file)


def _merged(below: _Table, above: _Table) -> _Table:
    merged = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        both = isinstance(under, dict) and isinstance(value, dict)
        merged[key] = _merged(cast("_Table", under), cast("_Table", value)) if both else value
    return merged


# -- checking against the dataclass ---------------------------------------------------------------


class _Reader:
    """One pass over a tree: converts, and notes origins, secrets and problems by dotted key.

    What has a problem becomes None; the result is used only when there was none.
    """

    def __init__(self, path: Path, environ: Mapping[str, str]) -> None:
        self.path = path
        self.origins: dict[str, Origin] = {}
        self.secrets: set[str] = set()
        self.problems: list[str] = []
        self._environ = environ

    def dataclass(self, table: _Table, into: type[Any], prefix: str) -> object:
        """Return an instance of ``into``."""
        before = len(self.problems)
        hints = typing.get_type_hints(into, include_extras=True)
        known = {each.name: each for each in dataclasses.fields(into) if each.init}
        for key in sorted(table.keys() - known.keys()):
            self.problems.append(
                f"{_file(table[key], self.path)}: the key {prefix + key!r} is unknown"
                f"{nearest_name(key, known)}; known are {', '.join(known)}."
            )
        given: dict[str, object] = {}
        for name, each in known.items():
            if name in table:
                given[name] = self._value(table[name], hints[name], prefix + name)
            elif _is_required(each):
                needed = f"{_type_text(hints[name])} is needed"
                self.problems.append(f"{self.path}: {prefix + name!r} is missing, {needed}.")
        if len(self.problems) > before:
            return None
        made = self._made(into, given, prefix)
        if made is not None:
            self._note_defaults(made, prefix, known.keys() - given.keys())
        return made

    def _made(self, into: type[Any], given: Mapping[str, object], prefix: str) -> object:
        try:
            return cast("object", into(**given))
        except (AtlasError, ValueError, TypeError) as error:
            # What the class itself refuses: a rule of its __post_init__, for instance.
            where = f"the table {prefix[:-1]!r}" if prefix else "the profile"
            self.problems.append(f"{self.path}: {where} is refused: {error}")
            return None

    # Any: the instance of a dataclass has no type of its own.
    def _note_defaults(self, made: Any, prefix: str, names: Collection[str] | None = None) -> None:
        hints = typing.get_type_hints(type(made), include_extras=True)
        for each in dataclasses.fields(made):
            value, key = getattr(made, each.name), prefix + each.name
            if (names is not None and each.name not in names) or not each.compare:
                continue
            if _is_frozen_dataclass(type(value)) and not hasattr(value, "from_json"):
                self._note_defaults(value, f"{key}.")
                continue
            if is_secret(hints[each.name]):
                self.secrets.add(key)
            self._note(key, Origin("default"), hints[each.name])

    def _note(self, key: str, origin: Origin, hint: object = object) -> None:
        self.origins[key] = origin
        # A number is no secret for its name alone: `first_token` is a deadline.
        names = () if _NUMBERS.issuperset(_options(hint)) else (key.rpartition(".")[2],)
        if any(map(names_a_secret, (*names, *origin.variables))):
            self.secrets.add(key)

    # -- one value of a type ----------------------------------------------------------------------

    def _value(self, node: _Node, hint: object, key: str) -> object:
        options = tuple(_options(hint))
        if is_secret(hint):
            self.secrets.add(key)
        if isinstance(node, _Leaf):
            return self._single(node, hint, options, key)
        if any(hasattr(option, "from_json") for option in options):
            return self._from_json(node, options, key)
        for option in options:
            if isinstance(node, dict) and _is_frozen_dataclass(option):
                return self.dataclass(node, cast("type[Any]", option), f"{key}.")
            if isinstance(node, dict) and (member := _member(option, Mapping)) is not None:
                return types.MappingProxyType(
                    {
                        name: self._value(each, member, f"{key}.{name}")
                        for name, each in node.items()
                    }
                )
            if isinstance(node, list) and _member(option, Collection) is not None:
                return self._collection(node, option, key)
        what = "a table" if isinstance(node, dict) else "a list"
        expected = f"{_type_text(hint)} is expected"
        self.problems.append(f"{_file(node, self.path)}: {key!r} is {what} where {expected}.")
        return None

    def _single(self, leaf: _Leaf, hint: object, options: Sequence[object], key: str) -> object:
        value, origin = self._filled(leaf, key)
        self._note(key, origin, hint)
        for candidate in _readings(value):
            for option in options:
                try:
                    return _scalar(candidate, option, leaf.file)
                except _WrongTypeError:
                    continue
        shown = _MASK if key in self.secrets else repr(value)
        expected = f"{_type_text(hint)} is expected"
        self.problems.append(f"{leaf.file}: {key!r} is {shown} where {expected}.")
        return None

    def _collection(self, nodes: list[_Node], hint: object, key: str) -> object:
        container = typing.get_origin(hint) or hint
        members = typing.get_args(hint)
        if container is tuple and members and members[-1] is not Ellipsis:
            if len(members) != len(nodes):
                expected = f"a list of {len(members)} is expected"
                self.problems.append(
                    f"{_file(nodes, self.path)}: {key!r} is a list of {len(nodes)} where {expected}."
                )
                return None
        else:
            members = (_member(hint, Collection),) * len(nodes)
        values = [
            self._value(node, member, f"{key}.{index}")
            for index, (node, member) in enumerate(zip(nodes, members, strict=True))
        ]
        if all(isinstance(node, _Leaf) for node in nodes):
            self._note_as_one(key, len(nodes), _file(nodes, self.path))
        is_set = isinstance(container, type) and issubclass(container, AbstractSet)
        return frozenset(values) if is_set else tuple(values)

    def _note_as_one(self, key: str, length: int, file: Path) -> None:
        """Put one note in the place of those of the items of a list of single values."""
        keys = [f"{key}.{index}" for index in range(length)]
        variables = [name for each in keys for name in self.origins.pop(each).variables]
        if self.secrets & set(keys):
            self.secrets.add(key)
        source: Literal["environment", "file"] = "environment" if variables else "file"
        self._note(key, Origin(source, file, tuple(variables)))

    def _from_json(self, node: _Node, options: Sequence[object], key: str) -> object:
        """Build what is one value and reads itself, such as a schedule."""
        file = _file(node, self.path)
        plain = self._plain(node, key)
        self._note(key, Origin("file", file))
        made = next(option for option in options if hasattr(option, "from_json"))
        try:
            return cast("Any", made).from_json(plain)
        except AtlasError as error:
            self.problems.append(f"{file}: {key!r} is refused: {error}")
            return None

    def _plain(self, node: _Node, key: str) -> object:
        if isinstance(node, dict):
            return {name: self._plain(each, f"{key}.{name}") for name, each in node.items()}
        if isinstance(node, list):
            return [self._plain(each, f"{key}.{index}") for index, each in enumerate(node)]
        return list(_readings(self._filled(node, key)[0]))[-1]

    # -- environment ------------------------------------------------------------------------------

    def _filled(self, leaf: _Leaf, key: str) -> tuple[object, Origin]:
        if not isinstance(leaf.value, str):
            return leaf.value, Origin("file", leaf.file)
        used: list[str] = []
        referred = False

        def fill(match: re.Match[str]) -> str:
            nonlocal referred
            if match["body"] is None:
                return "${"
            referred = True
            return self._looked_up(match, leaf.file, key, used)

        text = _REFERENCE.sub(fill, leaf.value)
        origin = Origin("environment" if used else "file", leaf.file, tuple(used))
        return _FromEnvironment(text) if referred else text, origin

    def _looked_up(self, match: re.Match[str], file: Path, key: str, used: list[str]) -> str:
        variable = _VARIABLE.fullmatch(match["body"])
        if variable is None or not match["end"]:
            self.problems.append(
                f"{file}: {key!r} has {match[0]!r}, which is no reference to the environment; "
                f"write ${{NAME}} or ${{NAME:-default}}, or $${{ for the characters."
            )
            return ""
        name, default = variable["name"], variable["default"]
        found = self._environ.get(name)
        if found or (found is not None and default is None):
            used.append(name)
            return found
        if default is None:
            self.problems.append(
                f"{file}: {key!r} needs the environment variable {name}, which is not set; "
                f"set it, or write ${{{name}:-default}}."
            )
        return default or ""


class _FromEnvironment(str):
    """A text with something from the environment in it, which may stand for a number."""

    __slots__ = ()


# -- types ----------------------------------------------------------------------------------------


class _WrongTypeError(Exception):
    """The value does not fit the type; which ones these are the catcher knows."""


def _is_frozen_dataclass(cls: object) -> bool:
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        return False
    # The parameters of a dataclass have no public name.
    return bool(cast("Any", cls).__dataclass_params__.frozen)


# Any: the type parameter of a field says nothing here.
def _is_required(each: dataclasses.Field[Any]) -> bool:
    return each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING


def _options(hint: object) -> Iterator[object]:
    """Yield the types a value may have: the members of a union, annotations taken off."""
    if typing.get_origin(hint) is Annotated:
        yield from _options(typing.get_args(hint)[0])
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for each in typing.get_args(hint):
            yield from _options(each)
    else:
        yield hint


def _member(hint: object, container: type) -> object | None:
    """Return the type of what such a container holds; None when the type is another one."""
    if _is_free(hint):
        return hint
    origin = typing.get_origin(hint) or hint
    if not isinstance(origin, type) or not issubclass(origin, container):
        return None
    if issubclass(origin, Mapping) != (container is Mapping) or issubclass(origin, str | bytes):
        return None
    arguments: tuple[object, ...] = typing.get_args(hint)
    if not arguments:
        return object
    return arguments[1] if container is Mapping else arguments[0]


def _is_free(hint: object) -> bool:
    # A recursive alias such as JSON ends in a forward reference that nothing resolves.
    return hint is Any or hint is object or isinstance(hint, str | typing.ForwardRef)


def _readings(value: object) -> Iterator[object]:
    """Yield a value, and what else a text from the environment may stand for."""
    if not isinstance(value, _FromEnvironment):
        yield value
        return
    yield str(value)
    if value.lower() in _BOOLEANS:
        yield _BOOLEANS[value.lower()]
    for number in (float, int):
        try:
            yield number(value)
        except ValueError:
            continue


def _scalar(value: object, hint: object, file: Path) -> object:
    """Return a single value as the type says; strict: no text is a number, no truth value an int.

    Raises:
        _WrongTypeError: It is of another type.
    """
    if _is_free(hint):
        return value
    if typing.get_origin(hint) is Literal:
        return _choice(value, {each: each for each in typing.get_args(hint)})
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(hint, type):
        if issubclass(hint, enum.Enum):
            return _choice(value, {member.value: member for member in hint})
        if issubclass(hint, Path) and isinstance(value, str):
            return file.parent / Path(value).expanduser()
        if type(value) is hint:
            return value
    raise _WrongTypeError


def _choice(value: object, choices: Mapping[Any, object]) -> object:
    for each, chosen in choices.items():
        if type(each) is type(value) and each == value:
            return chosen
    raise _WrongTypeError


def _type_text(hint: object) -> str:
    options = list(_options(hint))
    if len(options) > 1:
        return " or ".join(map(_type_text, options))
    hint = options[0]
    if hint is type(None):
        return "nothing"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(repr(member.value) for member in hint)
    if typing.get_origin(hint) is not None:
        return str(hint).replace("typing.", "").replace("collections.abc.", "")
    return str(getattr(hint, "__name__", hint))


# -- showing --------------------------------------------------------------------------------------


def _file(node: _Node, otherwise: Path) -> Path:
    """Return the file in which the first value of a node stands."""
    while isinstance(node, dict | list) and node:
        node = next(iter(node.values())) if isinstance(node, dict) else node[0]
    return node.file if isinstance(node, _Leaf) else otherwise


def _at(value: object, key: str) -> object:
    """Return the value of a dotted key, in which names of mappings may have dots themselves."""
    if not key:
        return value
    for name, rest in _heads(key):
        if isinstance(value, Mapping):
            if name in value:
                return _at(value[name], rest)
        elif isinstance(value, tuple):
            return _at(value[int(name)], rest)
        elif hasattr(value, name):
            return _at(getattr(value, name), rest)
    raise KeyError(key)


def _heads(key: str) -> Iterator[tuple[str, str]]:
    parts = key.split(".")
    for at in range(1, len(parts) + 1):
        yield ".".join(parts[:at]), ".".join(parts[at:])


def _rendered(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_as_plain)


def _as_plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, AbstractSet):
        return sorted(value, key=repr)
    if isinstance(value, enum.Enum):
        return value.value
    to_json = getattr(value, "to_json", None)
    return to_json() if callable(to_json) else str(value)

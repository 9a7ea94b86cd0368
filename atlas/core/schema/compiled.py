"""The compiled form of a schema: the same reading and writing, as Python source made for it.

For each schema three functions are generated on first use: ``read`` (JSON values to instance),
``write`` (instance to JSON values) and ``text`` (instance to canonical JSON text). ``read`` takes
only the exact builtin types it is sure of; whatever else comes, and every error, leaves by one door
and goes to the untouched `marshmallow.Schema.load`, which is the judge and words all errors. A
validator therefore runs twice on the way to a refusal.

A schema must not be changed after it is compiled.
"""

from __future__ import annotations

import binascii
import dataclasses
import enum
import linecache
import threading
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from operator import itemgetter
from typing import Any, cast
from uuid import UUID, SafeUUID

from atlas.core.annotations import description_of
from atlas.core.conversions import BIG
from atlas.core.messages import Message, fillable, stamp
from atlas.core.nodes import DOUBT, FrozenDict
from atlas.core.schema import fields as our
from atlas.core.schema.canonical import canonical_text, quote
from atlas.core.schema.derive import MessageSchema, schema_for

__all__ = ["Compiled", "compiled_for", "compiled_schema"]


class Compiled:
    """The three functions of one schema.

    Attributes:
        schema: The schema they do the work of.
        read: JSON values to an instance, or ``DOUBT``.
        write: An instance of exactly the schema's class to JSON values.
        text: The same to canonical JSON text.
    """

    __slots__ = ("read", "schema", "text", "write")

    def __init__(self, schema: MessageSchema) -> None:
        self.schema: MessageSchema = schema
        self.read: Callable[[Any], Any] = self._read_first
        self.write: Callable[[Any], dict[str, Any]] = self._write_first
        self.text: Callable[[Any], str] = self._text_first

    def load(self, data: object) -> Any:
        """Return the instance for JSON values.

        Raises:
            marshmallow.ValidationError: As `marshmallow.Schema.load` raises it.
        """
        made = self.read(data)
        return self.schema.load(cast("Any", data)) if made is DOUBT else made

    def dump(self, instance: object) -> dict[str, Any]:
        """Return the JSON values of an instance."""
        return self.write(instance)

    def dumps(self, instance: object) -> str:
        """Return the canonical JSON text of an instance."""
        return self.text(instance)

    # Each function is generated when it is first called, so that schemas may refer to each other.

    def _read_first(self, data: object) -> object:
        if self.read == self._read_first:
            self.read = _generate(_read_source, self.schema, "read")
        return self.read(data)

    def _write_first(self, instance: object) -> dict[str, Any]:
        if self.write == self._write_first:
            self.write = _generate(_write_source, self.schema, "write")
        return self.write(instance)

    def _text_first(self, instance: object) -> str:
        if self.text == self._text_first:
            self.text = _generate(_text_source, self.schema, "text")
        return self.text(instance)


_lock = threading.RLock()


def compiled_schema(schema: MessageSchema) -> Compiled:
    """Return the compiled form of a schema derived by Atlas, made once and kept with it."""
    with _lock:
        found: Compiled | None = vars(schema).get("_compiled")
        if found is None:
            found = vars(schema)["_compiled"] = Compiled(schema)
        return found


def compiled_for(cls: type) -> Compiled:
    """Return the compiled form of the schema of a declared class."""
    # anything may be asked for, an instance also
    described: Any = getattr(cls, "__dict__", {}).get("__description__")
    found: Compiled | None = None if described is None else described.derived.get("compiled")
    if found is None:
        found = compiled_schema(schema_for(cls))
        description_of(cls).derived["compiled"] = found
    return found


# -- source ---------------------------------------------------------------------------------------


class _Source:
    """Lines of a function under construction and the objects they refer to.

    Attributes:
        within: The schemas whose objects the line written next reads, outermost first.
    """

    def __init__(self) -> None:
        self.names: dict[str, Any] = {
            "_DOUBT": DOUBT,
            "_MISSING": object(),
            "_BIG": BIG,
            "_MINUS_BIG": -BIG,
            "_FrozenDict": FrozenDict,
            "_quote": quote,
            "_canonical": canonical_text,
            "_int_text": int.__repr__,
            "_float_text": float.__repr__,
            "_first": itemgetter(0),
            "_new": object.__new__,
        }
        self.within: list[MessageSchema] = []
        self.lines: list[str] = []
        self.indent = 1
        self._count = 0

    def fresh(self, hint: str) -> str:
        """Return a name for a variable."""
        self._count += 1
        return f"{hint}{self._count}"

    def bind(self, thing: object, hint: str) -> str:
        """Make an object known to the source and return its name there."""
        name = f"_{self.fresh(hint)}"
        self.names[name] = thing
        return name

    def add(self, line: str) -> None:
        """Add a line at the current depth."""
        self.lines.append("    " * self.indent + line)

    def doubt_unless(self, test: str) -> None:
        """Leave by the one door unless the test holds."""
        self.add(f"if not ({test}): return _DOUBT")


def _generate(
    write: Callable[[_Source, MessageSchema], None], schema: MessageSchema, kind: str
) -> Any:  # a function whose signature depends on the kind
    source = _Source()
    write(source, schema)
    text = "\n".join(source.lines) + "\n"
    filename = f"<{kind} of {type(schema).__module__}.{type(schema).__name__}>"
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    exec(compile(text, filename, "exec"), source.names)  # noqa: S102  # our own source
    return source.names[kind]


# -- reading --------------------------------------------------------------------------------------


def _read_source(source: _Source, schema: MessageSchema) -> None:
    source.indent = 0
    source.add("def read(data):")
    source.indent = 1
    source.add("try:")
    source.indent = 2
    source.add(f"return {_read_object(source, schema, 'data')}")
    source.indent = 1
    source.add("except Exception:")
    source.add("    return _DOUBT")


def _read_object(source: _Source, schema: MessageSchema, given: str) -> str:
    """Add the lines that make an instance of a schema's class; return the expression for it."""
    source.doubt_unless(f"type({given}) is dict")
    source.within.append(schema)
    required = sum(field.required for field in schema.fields.values())
    count = str(required)
    if required < len(schema.fields):
        count = source.fresh("count")
        source.add(f"{count} = {required}")
    results = {}
    for name, field in schema.fields.items():
        item = source.fresh("v")
        if field.required:
            source.add(f"{item} = {given}[{name!r}]")
            results[name] = _read_field(source, field, item)
        else:
            results[name] = _read_optional(source, schema.cls, name, field, (given, item, count))
    source.doubt_unless(f"len({given}) == {count}")
    source.within.pop()
    return _make_instance(source, schema, results)


def _read_optional(
    source: _Source, cls: type, name: str, field: Any, variables: tuple[str, str, str]
) -> str:
    given, item, count = variables
    result = source.fresh("r")
    default = source.bind(_default_of(cls, name), "default")
    source.add(f"{item} = {given}.get({name!r}, _MISSING)")
    source.add(f"if {item} is _MISSING:")
    source.add(f"    {result} = {default}()")
    source.add("else:")
    source.indent += 1
    source.add(f"{count} += 1")
    source.add(f"{result} = {_read_field(source, field, item)}")
    source.indent -= 1
    return result


def _default_of(cls: type, name: str) -> Callable[[], object]:
    """Return a function that makes the default of a field, frozen as the constructor would."""
    described: Any = cls.__dict__.get("__description__")  # absent in a plain dataclass
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    factory = field.default_factory
    if described is None:
        constant = field.default
        return (lambda: constant) if factory is dataclasses.MISSING else factory
    node = described.nodes[name]
    if factory is not dataclasses.MISSING:
        return lambda: node.freeze(factory(), ())
    frozen = node.freeze(field.default, ())
    return lambda: frozen


def _make_instance(source: _Source, schema: MessageSchema, results: Mapping[str, str]) -> str:
    """Fill the slots: every value is checked and frozen by now."""
    cls = schema.cls
    known = source.bind(cls, "cls")
    if "__description__" not in cls.__dict__:
        given = ", ".join(f"{name}={result}" for name, result in results.items())
        return f"{known}({given})"
    made = source.fresh("made")
    filled = fillable(cls)
    if filled is None:
        source.add(f"{made} = _new({known})")
        for name, result in results.items():
            slot = next(base.__dict__[name] for base in cls.__mro__ if name in base.__dict__)
            source.add(f"{source.bind(slot.__set__, 'set')}({made}, {result})")
        if issubclass(cls, Message):
            source.add(f"{source.bind(stamp, 'stamp')}({made}, None)")
    else:
        source.add(f"{made} = _new({source.bind(filled, 'fillable')})")
        for name, result in results.items():
            source.add(f"{made}.{name} = {result}")
        if issubclass(cls, Message):
            source.add(f"{made}._stamp = None")
        source.add(f"{made}.__class__ = {known}")
    if hasattr(cls, "__post_init__"):
        source.add(f"{made}.__post_init__()")
    return made


def _read_field(source: _Source, field: Any, given: str) -> str:
    """Add the lines that read a value; return the expression for the result."""
    test = _leaf_test(field, given)
    if test is not None and not field.validators:
        source.doubt_unless(f"{given} is None or {test}" if field.allow_none else test)
        return given
    result = source.fresh("r")
    if field.allow_none and not isinstance(field, our.JsonField):
        source.add(f"if {given} is None: {result} = None")
        source.add("else:")
        source.indent += 1
        source.add(f"{result} = {_read_value(source, field, given, test)}")
        _add_checks(source, field, result)
        source.indent -= 1
        return result
    source.add(f"{result} = {_read_value(source, field, given, test)}")
    _add_checks(source, field, result)
    return result


def _add_checks(source: _Source, field: Any, result: str) -> None:
    for validator in field.validators:
        source.add(f"{source.bind(validator, 'check')}({result})")


def _leaf_test(field: Any, given: str) -> str | None:
    """Return a test for the values that are read as they are, if there are any others than those."""
    cls = type(field)
    if cls is our.TextField:
        return f"type({given}) is str"
    if cls is our.IntegerField:
        return f"type({given}) is int and _MINUS_BIG < {given} < _BIG"
    if cls is our.BooleanField:
        return f"({given} is True or {given} is False)"
    return None


def _read_value(source: _Source, field: Any, given: str, test: str | None) -> str:
    if test is not None:
        source.doubt_unless(test)
        return given
    reader = _READERS.get(type(field))
    if reader is not None:
        return reader(source, field, given)
    return f"{source.bind(field.deserialize, 'field')}({given})"


def _read_float(source: _Source, field: our.FloatField, given: str) -> str:
    if field.allow_nan:
        return f"{source.bind(field.read, 'float')}({given})"
    result = source.fresh("r")
    source.add(f"{result} = {given}")
    source.add(f"if type({given}) is not float:")
    source.add(f"    if type({given}) is not int: return _DOUBT")
    source.add(f"    {result} = float({given})")
    source.doubt_unless(f"{result} * 0.0 == 0.0")
    return result


# What text stands for is read by what the judge reads it with, after a test that is quicker than the
# judge's and takes less, or before the result is written again and compared.

_DATETIME = our.DATETIME.fullmatch
_SLOTS: Mapping[str, Any] = vars(UUID)
_SET_INT, _AS_INT = _SLOTS["int"].__set__, int.from_bytes
_SET_SAFE, _UNKNOWN = _SLOTS["is_safe"].__set__, SafeUUID.unknown


def _read_datetime(source: _Source, field: Any, given: str) -> str:
    """Look, in the two forms that are written most, only at what stands between the digits.

    `datetime.fromisoformat` looks at the digits themselves: each of the forms it takes that has the
    same length has something else in one of these places.
    """
    del field
    source.doubt_unless(
        f"type({given}) is str and ("
        f"len({given}) == 25 and {given}[4::3] in ('--T::+:', '--T::-:')"
        f" or len({given}) == 32 and {given}[4:20:3] == '--T::.' and {given}[26::3] in ('+:', '-:')"
        f" or {source.bind(_DATETIME, 'pattern')}({given}))"
    )
    return f"{source.bind(datetime.fromisoformat, 'datetime')}({given})"


def _read_and_compare(read: Callable[[Any], Any], form: str) -> Callable[[_Source, Any, str], str]:
    """Take text that is what would be written for what is read."""

    def add(source: _Source, field: Any, given: str) -> str:
        del field
        result = source.fresh("r")
        source.doubt_unless(f"type({given}) is str")
        source.add(f"{result} = {source.bind(read, 'convert')}({given})")
        source.doubt_unless(form.format(result, given))
        return result

    return add


def _read_bytes(source: _Source, field: Any, given: str) -> str:
    del field
    result = source.fresh("r")
    encode = source.bind(binascii.b2a_base64, "encode")
    source.doubt_unless(f"type({given}) is str")
    source.add(f"{result} = {source.bind(binascii.a2b_base64, 'decode')}({given})")
    source.doubt_unless(f"{encode}({result}, newline=False).decode() == {given}")
    return result


def _read_timedelta(source: _Source, field: Any, given: str) -> str:
    del field
    source.doubt_unless(f"type({given}) is int")
    return f"{source.bind(timedelta(microseconds=1), 'microsecond')} * {given}"


def _read_uuid(source: _Source, field: Any, given: str) -> str:
    """Set the two slots of a UUID: its constructor and ``str`` take thrice as long as all of this."""
    del field
    digits, number, result = source.fresh("digits"), source.fresh("number"), source.fresh("r")
    source.doubt_unless(f"type({given}) is str and len({given}) == 36")
    source.add(f"{digits} = {given}.replace('-', '')")
    source.add(f"{number} = {source.bind(bytes.fromhex, 'number')}({digits})")
    source.doubt_unless(
        f"{given}[8:24:5] == '----' and len({number}) == 16 and {number}.hex() == {digits}"
    )
    source.add(f"{result} = _new({source.bind(UUID, 'uuid')})")
    source.add(f"{source.bind(_SET_INT, 'set')}({result}, {source.bind(_AS_INT, 'int')}({number}))")
    source.add(f"{source.bind(_SET_SAFE, 'set')}({result}, {source.bind(_UNKNOWN, 'unknown')})")
    return result


def _read_choice(source: _Source, field: our.ChoiceField, given: str) -> str:
    if field.enum is not None:
        return f"{source.bind(field.read, 'flag')}({given})"
    if all(cls is str for cls, _ in field.choices):
        by_text = {text: choice for (_, text), choice in field.choices.items()}
        source.doubt_unless(f"type({given}) is str")
        return f"{source.bind(by_text, 'choices')}[{given}]"
    return f"{source.bind(field.choices, 'choices')}[type({given}), {given}]"


def _read_sequence(source: _Source, field: our.SequenceField, given: str) -> str:
    source.doubt_unless(f"type({given}) is list")
    return f"tuple({_read_items(source, field.item, given)})"


def _read_items(source: _Source, item_field: Any, given: str) -> str:
    """Add the loop over a list; return the list of results, the given one if none is changed."""
    item = source.fresh("i")
    made = source.fresh("list")
    at = len(source.lines)
    source.add(f"{made} = []")
    source.add(f"for {item} in {given}:")
    source.indent += 1
    result = _read_field(source, item_field, item)
    if result == item:
        source.indent -= 1
        del source.lines[at]
        return given
    source.add(f"{made}.append({result})")
    source.indent -= 1
    return made


def _read_set(source: _Source, field: our.SetField, given: str) -> str:
    source.doubt_unless(f"type({given}) is list")
    result = source.fresh("r")
    source.add(f"{result} = frozenset({_read_items(source, field.item, given)})")
    source.doubt_unless(f"len({result}) == len({given})")
    return result


def _read_pair(source: _Source, field: our.PairField, given: str) -> str:
    source.doubt_unless(f"type({given}) is list and len({given}) == {len(field.items)}")
    results = []
    for at, item_field in enumerate(field.items):
        item = source.fresh("i")
        source.add(f"{item} = {given}[{at}]")
        results.append(_read_field(source, item_field, item))
    return f"({''.join(f'{result}, ' for result in results)})"


def _read_mapping(source: _Source, field: our.MappingField, given: str) -> str:
    source.doubt_unless(f"type({given}) is dict")
    key, item, made = source.fresh("k"), source.fresh("i"), source.fresh("dict")
    at = len(source.lines)
    source.add(f"{made} = {{}}")
    source.add(f"for {key}, {item} in {given}.items():")
    source.indent += 1
    if type(field.key) is our.TextField:
        read_key = _read_field(source, field.key, key)
    else:
        convert = source.bind(_key_reader(field.key), "key")
        read_key = f"{convert}({key})"
    result = _read_field(source, field.item, item)
    if result == item and read_key == key:
        source.indent -= 1
        del source.lines[at]
        return f"_FrozenDict({given})"
    source.add(f"{made}[{read_key}] = {result}")
    source.indent -= 1
    return f"_FrozenDict({made})"


def _key_reader(field: our.MessageField) -> Callable[[object], object]:
    return lambda text: field.deserialize(our.read_key(field, text))


def _read_json(source: _Source, field: our.JsonField, given: str) -> str:
    return f"{source.bind(field.read, 'json')}({given})"


_DEEPEST, _LONGEST = 8, 400
"""Where the lines of a nested class are no longer put into the function of the outer one: Python
takes twenty blocks within each other, and a function made of everything is slow to compile."""


def _read_class(source: _Source, field: our.ValueField, given: str) -> str:
    schema = cast("MessageSchema", field.schema)
    if schema not in source.within and source.indent < _DEEPEST and len(source.lines) < _LONGEST:
        return _read_object(source, schema, given)
    result = source.fresh("r")
    source.add(f"{result} = {source.bind(compiled_schema(schema), 'compiled')}.read({given})")
    source.doubt_unless(f"{result} is not _DOUBT")
    return result


def _read_union(source: _Source, field: our.UnionField, given: str) -> str:
    """Read the members that are told apart at once; all else is doubt."""
    kind, result = source.fresh("kind"), source.fresh("r")
    source.add(f"{kind} = type({given})")
    tagged = {
        member.tag: compiled_schema(cast("MessageSchema", member.field.schema))
        for member in field.members
        if member.tag is not None and isinstance(member.field, our.ValueField)
    }
    source.add(f"if {kind} is dict and {our.TAG!r} in {given}:")
    source.add(f"    {result} = {source.bind(_TaggedReader(tagged), 'tagged')}({given})")
    source.add(f"    if {result} is _DOUBT: return _DOUBT")
    for cls, name in our.JSON_KIND.items():
        found = field.plain_for(name)
        if len(found) == 1 or (found and type(found[0].field) in (our.TextField, our.IntegerField)):
            source.add(f"elif {kind} is {source.bind(cls, 'kind')}:")
            source.indent += 1
            source.add(f"{result} = {_read_field(source, found[0].field, given)}")
            source.indent -= 1
    source.add("else: return _DOUBT")
    return result


class _TaggedReader:
    """Reads the members of a union that name their class."""

    def __init__(self, tagged: Mapping[str, Compiled]) -> None:
        self._tagged = tagged

    def __call__(self, value: dict[str, Any]) -> Any:
        compiled = self._tagged.get(value[our.TAG])
        if compiled is None:
            return DOUBT
        rest = value.copy()
        del rest[our.TAG]
        return compiled.read(rest)


_READERS: dict[type, Callable[[_Source, Any, str], str]] = {
    our.FloatField: _read_float,
    our.BytesField: _read_bytes,
    our.DatetimeField: _read_datetime,
    our.DateField: _read_and_compare(date.fromisoformat, "{0}.isoformat() == {1}"),
    our.TimeField: _read_and_compare(time.fromisoformat, "{0}.isoformat() == {1}"),
    our.TimedeltaField: _read_timedelta,
    our.DecimalField: _read_and_compare(Decimal, "{0}.is_finite() and str({0}) == {1}"),
    our.UuidField: _read_uuid,
    our.ChoiceField: _read_choice,
    our.SequenceField: _read_sequence,
    our.PairField: _read_pair,
    our.SetField: _read_set,
    our.MappingField: _read_mapping,
    our.JsonField: _read_json,
    our.ValueField: _read_class,
    our.UnionField: _read_union,
}


# -- writing --------------------------------------------------------------------------------------


def _write_source(source: _Source, schema: MessageSchema) -> None:
    source.indent = 0
    source.add("def write(instance):")
    source.indent = 1
    parts = []
    for name, field in schema.fields.items():
        value = source.fresh("v")
        source.add(f"{value} = instance.{name}")
        parts.append(f"{name!r}: {_written(source, field, value)}")
    source.add(f"return {{{', '.join(parts)}}}")


def _text_source(source: _Source, schema: MessageSchema) -> None:
    source.indent = 0
    source.add("def text(instance):")
    source.indent = 1
    parts = []
    before = "{"
    for name in sorted(schema.fields):
        value = source.fresh("v")
        source.add(f"{value} = instance.{name}")
        parts += [repr(f"{before}{quote(name)}:"), _text(source, schema.fields[name], value)]
        before = ","
    parts.append(repr("}" if parts else "{}"))
    source.add(f"return ''.join(({', '.join(parts)},))")


def _written(source: _Source, field: Any, value: str) -> str:
    """Return the expression for the JSON value of a variable."""
    cls = type(field)
    if cls in _SAME:
        return value
    form = _written_value(source, field, value)
    return f"(None if {value} is None else {form})" if field.allow_none else form


_SAME = frozenset({our.NullField, our.TextField, our.IntegerField, our.BooleanField})


def _written_value(source: _Source, field: Any, value: str) -> str:
    match field:
        case our.FloatField(allow_nan=False):
            return value
        case our.DatetimeField() | our.DateField() | our.TimeField():
            return f"{value}.isoformat()"
        case our.DecimalField():
            return f"str({value})"
        case our.UuidField():
            return f"{source.bind(_uuid_text, 'uuid')}({value})"
        case our.BytesField():
            return f"{source.bind(our.write_bytes, 'write')}({value})"
        case our.ChoiceField() if _all_members(field):
            return f"{value}._value_"
        case our.ChoiceField() if all(type(it) is cls for (cls, _), it in field.choices.items()):
            return value
        case our.PairField():
            forms = [
                _written(source, item, f"{value}[{at}]") for at, item in enumerate(field.items)
            ]
            return f"[{', '.join(forms)}]"
        case our.SequenceField():
            item = source.fresh("i")
            form = _written(source, field.item, item)
            return f"list({value})" if form == item else f"[{form} for {item} in {value}]"
        case our.SetField():
            item = source.fresh("i")
            form = _written(source, field.item, item)
            text = "_quote" if _is_text(field.item) else "_canonical"
            return f"sorted([{form} for {item} in {value}], key={text})"
        case our.MappingField():
            key, item = source.fresh("k"), source.fresh("i")
            form = _written(source, field.item, item)
            if form == item and type(field.key) is our.TextField:
                return f"dict({value})"
            return f"{{{_key(source, field, key)}: {form} for {key}, {item} in {value}.items()}}"
        case our.ValueField():
            return _by_class_or_open(source, field, value, "write", "")
        case our.UnionField():
            writers = _UnionWriter(field, "write")
            return f"{source.bind(writers, 'union')}({value})"
        case _:
            return f"{source.bind(field.write, 'write')}({value})"


def _is_text(field: Any) -> bool:
    """Whether all values of a field are written as strings."""
    return type(field) in (our.TextField, our.UuidField) and not field.allow_none


def _uuid_text(value: UUID) -> str:
    """Return what ``str`` returns, in half the time."""
    text = value.int.to_bytes(16, "big").hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _all_members(field: our.ChoiceField) -> bool:
    """Whether all choices are enum members whose values are plain JSON values."""
    return all(
        isinstance(choice, enum.Enum) and type(choice.value) in (str, int, bool)
        for choice in field.choices.values()
    )


def _key(source: _Source, field: our.MappingField, key: str) -> str:
    """Return the expression for the text of a key."""
    if type(field.key) is our.TextField:
        return key
    return f"str({source.bind(field.key.write, 'key')}({key}))"


def _by_class_or_open(
    source: _Source, field: our.ValueField, value: str, form: str, wrap: str
) -> str:
    """Write the class of the annotation at once, and a subclass by the field itself."""
    cls = source.bind(field.cls, "cls")
    compiled = source.bind(compiled_schema(cast("MessageSchema", field.schema)), "compiled")
    other = f"{wrap}({source.bind(_open_writer(field), 'open')}({value}))"
    return f"({compiled}.{form}({value}) if type({value}) is {cls} else {other})"


def _open_writer(field: our.ValueField) -> Callable[[Any], Any]:
    return lambda value: field._serialize(value, None, None)


def _text(source: _Source, field: Any, value: str) -> str:
    """Return the expression for the canonical text of a variable."""
    form = _text_value(source, field, value)
    if field.allow_none and not isinstance(field, our.JsonField):
        return f"('null' if {value} is None else {form})"
    return form


def _text_value(source: _Source, field: Any, value: str) -> str:
    match field:
        case our.TextField():
            return f"_quote({value})"
        case our.IntegerField():
            return f"_int_text({value})"
        case our.BooleanField():
            return f"('true' if {value} else 'false')"
        case our.FloatField(allow_nan=False):
            return f"_float_text({value})"
        case our.NullField():
            return "'null'"
        case our.TimedeltaField():
            return f"_int_text({_written_value(source, field, value)})"
        case our.ConvertedField():
            return f"'\"' + {_written_value(source, field, value)} + '\"'"
        case our.ChoiceField(enum=None):
            return _choice_text(source, field, value)
        case our.SequenceField():
            item = source.fresh("i")
            form = _text(source, field.item, item)
            return f"'[' + ','.join([{form} for {item} in {value}]) + ']'"
        case our.PairField():
            forms = [_text(source, item, f"{value}[{at}]") for at, item in enumerate(field.items)]
            return f"'[' + ','.join([{', '.join(forms)}]) + ']'"
        case our.SetField():
            item = source.fresh("i")
            form = _text(source, field.item, item)
            return f"'[' + ','.join(sorted([{form} for {item} in {value}])) + ']'"
        case our.MappingField():
            return _mapping_text(source, field, value)
        case our.JsonField():
            return f"_canonical({source.bind(field.write, 'json')}({value}))"
        case our.ValueField():
            return _by_class_or_open(source, field, value, "text", "_canonical")
        case our.UnionField():
            return f"{source.bind(_UnionWriter(field, 'text'), 'union')}({value})"
        case _:
            return f"_canonical({source.bind(field.write, 'write')}({value}))"


def _choice_text(source: _Source, field: our.ChoiceField, value: str) -> str:
    values = list(field.choices.values())
    if all(isinstance(choice, enum.Enum) for choice in values):
        texts = {
            cast("enum.Enum", choice).name: canonical_text(field.write(choice)) for choice in values
        }
        return f"{source.bind(texts, 'texts')}[{value}._name_]"
    by_value = {(type(choice), choice): canonical_text(field.write(choice)) for choice in values}
    return f"{source.bind(by_value, 'texts')}[type({value}), {value}]"


def _mapping_text(source: _Source, field: our.MappingField, value: str) -> str:
    key, item = source.fresh("k"), source.fresh("i")
    form = _text(source, field.item, item)
    if type(field.key) is our.TextField:
        pairs = f"sorted({value}.items(), key=_first)"
    else:
        text = _key(source, field, key)
        pairs = f"sorted([({text}, {item}) for {key}, {item} in {value}.items()], key=_first)"
    return f"'{{' + ','.join([_quote({key}) + ':' + {form} for {key}, {item} in {pairs}]) + '}}'"


class _UnionWriter:
    """Writes a value by its class, with the tag its member needs."""

    def __init__(self, field: our.UnionField, form: str) -> None:
        self._field = field
        self._form = form
        self._by_class: dict[type, Callable[[Any], Any]] = {
            cls: _writer_of(member, form, cls) for member in field.members for cls in member.types
        }

    def __call__(self, value: Any) -> Any:
        write = self._by_class.get(type(value))
        if write is not None:
            return write(value)
        made = self._field.write(value)
        return made if self._form == "write" else canonical_text(made)


def _writer_of(member: our.Member, form: str, cls: type) -> Callable[[Any], Any]:
    source = _Source()
    source.indent = 0
    source.add("def write(value):")
    source.indent = 1
    inner = (
        _written(source, member.field, "value")
        if form == "write"
        else _text(source, member.field, "value")
    )
    if member.tag is None:
        source.add(f"return {inner}")
    elif not isinstance(member.field, our.ValueField):
        head = f'{{"{our.TAG}":{canonical_text(member.tag)},"value":'
        if form == "write":
            source.add(f"return {{{our.TAG!r}: {member.tag!r}, 'value': {inner}}}")
        else:
            source.add(f"return {head!r} + {inner} + '}}'")
    else:
        _add_tagged_class(source, inner, form, our.tag_of(cls))
    exec("\n".join(source.lines), source.names)  # noqa: S102  # our own source
    return cast("Callable[[Any], Any]", source.names["write"])


def _add_tagged_class(source: _Source, inner: str, form: str, tag: str) -> None:
    """Put the tag in front: ``$`` sorts before all names of fields."""
    if form == "write":
        source.add(f"return {{{our.TAG!r}: {tag!r}, **{inner}}}")
        return
    head = f'{{"{our.TAG}":{canonical_text(tag)}'
    source.add(f"inner = {inner}")
    source.add(f"return {head!r} + (',' + inner[1:] if len(inner) > 2 else '}}')")

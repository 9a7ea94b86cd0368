"""The reference of all messages, as Markdown: made from the classes, so that it cannot lie."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable

from atlas.core import nodes
from atlas.core.annotations import Description, FieldSpec, description_of
from atlas.core.messages import Command, Message
from atlas.core.nodes import Node
from atlas.core.schema.export import discover
from atlas.core.schema.samples import valid_samples

__all__ = ["reference"]


def reference(messages: Iterable[type[Message]] | None = None) -> str:
    """Return the reference of the messages (by default all of Atlas) as one Markdown page."""
    found = discover() if messages is None else tuple(messages)
    values: dict[type, None] = {}
    for cls in found:
        _collect(description_of(cls).nodes.values(), values)
    introduction = (
        "Every message type of Atlas: its fields, their types and defaults, and a payload as it "
        "is written to a log. The values that fields hold follow at the end."
    )
    parts = [
        "# Messages",
        "<!-- Generated from the classes; change those and run the export again. -->",
        introduction,
    ]
    parts += [_section(cls) for cls in found]
    if values:
        parts += ["# Values", *(_section(cls) for cls in sorted(values, key=_name))]
    return "\n\n".join(parts) + "\n"


def _name(cls: type) -> str:
    return description_of(cls).name


def _collect(found: Iterable[Node], values: dict[type, None]) -> None:
    """Find the declared values that nodes refer to, those inside others included."""
    for node in found:
        if isinstance(node, nodes.ClassNode):
            if node.cls not in values and not issubclass(node.cls, Message):
                values[node.cls] = None
                _collect((inner for _, inner in node.fields()), values)
        else:
            _collect(_inner(node), values)


def _inner(node: Node) -> tuple[Node, ...]:
    match node:
        case nodes.RuleNode():
            return (node.inner,)
        case nodes.SequenceNode() | nodes.SetNode():
            return (node.item,)
        case nodes.MappingNode():
            return (node.key, node.item)
        case nodes.PairNode():
            return node.items
        case nodes.UnionNode():
            return node.members
        case _:
            return ()


def _section(cls: type) -> str:
    described = description_of(cls)
    kind = "command" if issubclass(cls, Command) else "event"
    facts = f"`{cls.__module__}.{cls.__qualname__}`"
    if described.kind == "message":
        facts += f", {kind}, version {described.version}"
    parts = [f"## {described.name}", facts, inspect.cleandoc(cls.__doc__ or "")]
    if described.fields:
        parts.append(_table(described))
    samples = valid_samples(cls)
    if samples:
        text = json.dumps(samples[-1], ensure_ascii=False)
        parts.append(f"```json\n{text}\n```")
    return "\n\n".join(part for part in parts if part)


def _table(described: Description) -> str:
    rows = ["| field | type | default | |", "|---|---|---|---|"]
    for spec in described.fields:
        node = described.nodes[spec.name]
        cells = (f"`{spec.name}`", f"`{_type(node)}`", _default(spec), _words(node))
        escaped = " | ".join(cell.replace("|", r"\|") for cell in cells)
        rows.append(f"| {escaped} |")
    return "\n".join(rows)


def _default(spec: FieldSpec) -> str:
    if spec.factory is not None:
        return f"`{getattr(spec.factory, '__name__', 'made')}()`"
    return "" if spec.default is dataclasses.MISSING else f"`{spec.default!r}`"


def _words(node: Node) -> str:
    if not isinstance(node, nodes.RuleNode):
        return ""
    return " ".join(str(extra) for extra in node.extras if isinstance(extra, str))


def _type(node: Node) -> str:
    """Return a type as it would be written in Python, the same on all Pythons."""
    match node:
        case nodes.RuleNode():
            return _type(node.inner)
        case nodes.ScalarNode():
            return "None" if node.kind == "none" else node.type.__name__
        case nodes.EnumNode() | nodes.ClassNode() | nodes.DataclassNode():
            return node.cls.__name__
        case nodes.LiteralNode():
            return f"Literal[{', '.join(map(repr, node.values))}]"
        case nodes.SequenceNode():
            return f"tuple[{_type(node.item)}, ...]"
        case nodes.PairNode():
            return f"tuple[{', '.join(map(_type, node.items))}]"
        case nodes.SetNode():
            return f"frozenset[{_type(node.item)}]"
        case nodes.MappingNode():
            return f"Mapping[{_type(node.key)}, {_type(node.item)}]"
        case nodes.UnionNode():
            return " | ".join(map(_type, node.members))
        case _:
            return "JSON"

"""Draws what happened in a run for people: what caused what, with the pieces of an answer together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from atlas.core.effects import EffectDelivered, EffectRead, EffectStarted
from atlas.core.message_pages import OUTSIDE
from atlas.core.messages import Message, OriginIndex, causation_in, origin_in
from atlas.core.runs import RunEnded, RunStarted
from atlas.providers.messages import (
    MessageAdded,
    StreamCompleted,
    StreamFailed,
    StreamStarted,
    StreamThinking,
    StreamToken,
    StreamToolCall,
)

__all__ = ["LONGEST", "tree_lines"]

_PIECES = (StreamToken, StreamThinking, EffectDelivered)
LONGEST = 80
"""So many characters of what an event says are shown."""

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a model, or whoever asked it, could do to a terminal, and what no terminal can show."""


@dataclass(slots=True)
class _Node:
    """One event, or several pieces of the same kind below the same cause."""

    number: int
    event: Message
    count: int = 0
    texts: list[str] = field(default_factory=list)
    told: int = 0
    children: list[_Node] = field(default_factory=list)
    latest: dict[type[Message], _Node] = field(default_factory=dict)

    def add(self, piece: Message, longest: int) -> None:
        """Take a piece; of its text, no more is kept than is shown."""
        self.count += 1
        if isinstance(piece, StreamToken | StreamThinking) and self.told <= longest:
            self.texts.append(piece.text)
            self.told += len("".join(piece.text.split()))


def tree_lines(
    events: Iterable[Message],
    *,
    everything: bool = False,
    numbers: bool = True,
    longest: int = LONGEST,
) -> Iterator[str]:
    """Yield one line for each event, below the one that caused it, in the order of happening.

    Args:
        events: Events of a run, in their order.
        everything: Whether pieces (tokens, deliveries of effects) get a line each.
        numbers: Whether lines begin with the numbers of their events.
        longest: How much of what an event says is shown, in characters.
    """
    top: _Node | None = None
    nodes: OriginIndex[_Node] = OriginIndex()
    for number, event in enumerate(events, 1):
        if top is None:
            top = _Node(0, event)  # above all others, and not shown
        known = event._stamp
        assert known is not None  # it was published
        parent = nodes.get(causation_in(known)) or top
        kind = type(event)
        is_piece = not everything and isinstance(event, _PIECES)
        node = parent.latest.get(kind) if is_piece else None
        if node is None:
            node = parent.latest[kind] = _Node(number, event)
            parent.children.append(node)
        node.add(event, longest)
        nodes[origin_in(known)] = node
    if top is not None:
        yield from _drawn(top.children, "", numbers=numbers, top=True, longest=longest)


def _drawn(
    nodes: list[_Node], indent: str, *, numbers: bool, top: bool, longest: int
) -> Iterator[str]:
    for node in nodes:
        is_last = node is nodes[-1]
        branch, below = ("", "") if top else ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        place = f"{node.number:>5}  " if numbers else ""
        yield f"{place}{indent}{branch}{_label(node, longest)}"
        yield from _drawn(
            node.children, indent + below, numbers=numbers, top=False, longest=longest
        )


def _label(node: _Node, longest: int) -> str:
    event = node.event
    name = event.meta.name
    if node.count > 1:
        name += f" ×{node.count}"
    if OUTSIDE in event.meta.headers:
        name += " (outside)"
    said = _UNSEEN.sub(_escaped, " ".join(_said(node).split()))
    if len(said) > longest:
        said = f"{said[:longest]}…"
    return f"{name}  {said}" if said else name


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


def _said(node: _Node) -> str:
    """Return what is worth to be seen of an event at a glance."""
    match node.event:
        case StreamToken() | StreamThinking():
            return "".join(node.texts)
        case StreamStarted(provider=provider, model=model, prompt=prompt):
            return f"{provider} {model}: {prompt}"
        case StreamCompleted(completion=completion):
            return f"{completion.finish_reason}, {completion.usage.output_tokens} tokens"
        case StreamFailed(kind=kind, error=error):
            return f"{kind}: {error}"
        case StreamToolCall(call=call):
            return f"{call.name}({call.arguments})"
        case MessageAdded(message=message):
            return f"{message.role}: {message.text}"
        case EffectStarted(kind=kind, rest=rest):
            return f"{kind} {rest}"
        case EffectRead(kind=kind, value=value):
            return f"{kind} = {value}"
        case EffectDelivered(what=what, value=value):
            return what if node.count > 1 else f"{what} {value}"
        case RunStarted(name=name, parent=parent, at=at):
            return name if parent is None else f"{name}, forked from {parent} at {at}"
        case RunEnded(status=status, error=error):
            return status if error is None else f"{status}: {error}"
        case _:
            return ""

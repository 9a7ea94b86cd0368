"""Draws what happened in a run for people: what caused what, with the pieces of an answer together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from atlas.core.effects import EffectDelivered, EffectRead, EffectStarted
from atlas.core.message_pages import OUTSIDE
from atlas.core.messages import Message
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
    pieces: list[Message]
    last: int
    children: list[_Node] = field(default_factory=list)


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
    roots: list[_Node] = []
    nodes: dict[str | None, _Node] = {}
    for number, event in enumerate(events, 1):
        parent = nodes.get(event.meta.causation)
        siblings = roots if parent is None else parent.children
        before = next(
            (each for each in reversed(siblings) if type(each.event) is type(event)), None
        )
        if not everything and isinstance(event, _PIECES) and before is not None:
            before.pieces.append(event)
            before.last = number
            nodes[event.meta.id] = before
            continue
        node = _Node(number, event, [event], number)
        siblings.append(node)
        nodes[event.meta.id] = node
    yield from _drawn(roots, "", numbers=numbers, top=True, longest=longest)


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
    if len(node.pieces) > 1:
        name += f" ×{len(node.pieces)}"
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
            pieces = [
                each for each in node.pieces if isinstance(each, StreamToken | StreamThinking)
            ]
            return "".join(each.text for each in pieces)
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
            return what if len(node.pieces) > 1 else f"{what} {value}"
        case RunStarted(name=name, parent=parent, at=at):
            return name if parent is None else f"{name}, forked from {parent} at {at}"
        case RunEnded(status=status, error=error):
            return status if error is None else f"{status}: {error}"
        case _:
            return ""

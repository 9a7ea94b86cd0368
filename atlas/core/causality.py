"""Who caused what: the cause that is current in this context, scopes, and the tree of a run.

While a handler runs, the stamp of the message it handles is *current* in its context, so that
whatever it publishes (also from tasks it starts) is linked to it. A scope puts something into the
context for messages that no handler publishes. Stamps hold origins (small tuples), never messages:
a chain of causes keeps nothing alive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypedDict

from atlas.core.messages import FrozenDict, Message, Origin, Place, Stamp, origin_in, spelled_out
from atlas.errors import ValidationError

__all__ = [
    "CURRENT",
    "NO_HEADERS",
    "NO_SCOPE",
    "Links",
    "Scope",
    "causal_tree",
    "cause_of",
    "caused_by",
    "correlation_of",
    "frozen_headers",
    "given",
    "inner_scope",
    "links_of",
    "merged_headers",
    "origin_of",
]

NO_HEADERS: Mapping[str, str] = FrozenDict()


class Links(TypedDict, total=False):
    """What a publisher can say about a message: see `EventBus.publish`."""

    headers: Mapping[str, str] | None
    source: str | None
    run: str | None
    correlation: Message | str | None
    causation: Message | str | None


_NOTHING_SAID: Links = {}


def given(
    headers: Mapping[str, str] | None,
    source: str | None,
    run: str | None,
    correlation: Message | str | None,
    causation: Message | str | None,
) -> Links:
    """Return what a publisher did say about a message."""
    said: Links = _NOTHING_SAID
    if headers is not None:
        said = {**said, "headers": headers}
    if source is not None:
        said = {**said, "source": source}
    if run is not None:
        said = {**said, "run": run}
    if correlation is not None:
        said = {**said, "correlation": correlation}
    if causation is not None:
        said = {**said, "causation": causation}
    return said


class Scope:
    """What `EventBus.scope` adds to the messages published inside it. Immutable."""

    __slots__ = ("cause", "correlation", "headers", "on_stamped", "run", "source")

    def __init__(
        self,
        cause: Stamp | Place | None = None,
        *,
        run: str | None = None,
        correlation: Origin | None = None,
        source: str | None = None,
        headers: Mapping[str, str] = NO_HEADERS,
        on_stamped: Callable[[Origin], object] | None = None,
    ) -> None:
        self.cause: Stamp | Place | None = cause
        self.run: str | None = run
        self.correlation: Origin | None = correlation
        self.source: str | None = source
        self.headers: Mapping[str, str] = headers
        self.on_stamped: Callable[[Origin], object] | None = on_stamped


NO_SCOPE = Scope()

CURRENT: ContextVar[Stamp | Place | Scope | None] = ContextVar("atlas_cause", default=None)
"""The stamp of the message being handled in this context, or a scope, or nothing."""


@contextmanager
def caused_by(message: Message) -> Iterator[None]:
    """Make a published message the cause of what is published inside the ``with`` block.

    As if a handler of ``message`` ran: correlation and run are handed on too. Tasks started inside
    the block stay under it.
    """
    token = CURRENT.set(message._stamp)
    try:
        yield
    finally:
        CURRENT.reset(token)


def cause_of(current: Stamp | Place | Scope | None) -> Stamp | Place | None:
    """Return the stamp of the message being handled, looking through a scope."""
    return current.cause if isinstance(current, Scope) else current


def origin_of(reference: Message | str, argument: str) -> Origin:
    """Return the origin of a published message, or take ``reference`` as an id as it is.

    Raises:
        ValidationError: The message was never published, so it has no id to refer to.
    """
    if isinstance(reference, str):
        return reference
    known = getattr(reference, "_stamp", None)  # of what is no message at all there is none either
    if known is not None:
        return origin_in(known)
    raise ValidationError("publish", argument, reference, "a published message, or its id")


def correlation_of(reference: Message | str) -> Origin:
    """Return what a published message correlates with, or take ``reference`` as an id as it is."""
    if isinstance(reference, Message) and reference._stamp is not None:
        return spelled_out(reference._stamp)[2]
    return origin_of(reference, "correlation")


def frozen_headers(headers: Mapping[str, str]) -> Mapping[str, str]:
    """Return a read-only copy of headers, checked.

    Raises:
        ValidationError: A name or a value is no string.
    """
    if not isinstance(headers, Mapping):
        raise ValidationError("publish", "headers", headers, "strings by strings")
    for name, text in headers.items():
        if not all(isinstance(part, str) for part in (name, text)):
            raise ValidationError("publish", "headers", {name: text}, "strings by strings")
    return FrozenDict(headers)


def _check_words(**words: str | None) -> None:
    for name, word in words.items():
        if not isinstance(word, str | None):
            raise ValidationError("publish", name, word, "a string")


def inner_scope(
    *,
    run: str | None = None,
    correlation: Message | str | None = None,
    source: str | None = None,
    headers: Mapping[str, str] | None = None,
    on_stamped: Callable[[Origin], object] | None = None,
) -> Scope:
    """Return the scope that is current when these are given inside the one that is current now."""
    _check_words(run=run, source=source)
    current = CURRENT.get()
    outer = current if isinstance(current, Scope) else NO_SCOPE
    return Scope(
        cause_of(current),
        run=outer.run if run is None else run,
        correlation=outer.correlation if correlation is None else correlation_of(correlation),
        source=outer.source if source is None else source,
        headers=merged_headers(outer.headers, headers),
        on_stamped=on_stamped,
    )


def merged_headers(
    outer: Mapping[str, str], headers: Mapping[str, str] | None
) -> Mapping[str, str]:
    """Return headers over those of the scope, read-only.

    Raises:
        ValidationError: A name or a value is no string.
    """
    if not headers:
        return outer
    return frozen_headers({**outer, **frozen_headers(headers)})


def links_of(
    current: Stamp | Place | Scope | None,
    *,
    headers: Mapping[str, str] | None = None,
    source: str | None = None,
    run: str | None = None,
    correlation: Message | str | None = None,
    causation: Message | str | None = None,
) -> tuple[Origin | None, Origin | None, str | None, str | None, Mapping[str, str]]:
    """Return causation, correlation, run, source and headers for a message published now.

    What is given goes before what the scope says, and that before what the cause says. Correlation
    None means the message itself.
    """
    _check_words(run=run, source=source)
    scope = current if isinstance(current, Scope) else NO_SCOPE
    carried = cause_of(current)
    cause = None if carried is None else spelled_out(carried)
    by = None if cause is None else cause[0]
    if causation is not None:
        by = origin_of(causation, "causation")
        if isinstance(causation, Message) and causation._stamp is not None:
            cause = spelled_out(causation._stamp)
    together = None if cause is None else cause[2]
    if correlation is not None:
        together = correlation_of(correlation)
    elif scope.correlation is not None:
        together = scope.correlation
    if run is None:
        run = scope.run if scope.run is not None or cause is None else cause[3]
    source = scope.source if source is None else source
    return by, together, run, source, merged_headers(scope.headers, headers)


def causal_tree(messages: Iterable[Message]) -> str:
    """Draw published messages as a tree, each below the one that caused it, in published order.

    A message whose cause is not among ``messages`` starts a tree of its own.

    Args:
        messages: Published messages, in any order.

    Returns:
        One line per message (name, sequence, short id, source), no newline at the end.
    """
    stamped = [item for item in messages if item._stamp is not None]
    stamped.sort(key=_order)
    known = {item.meta.id for item in stamped}
    children: dict[str | None, list[Message]] = {}
    for item in stamped:
        cause = item.meta.causation
        children.setdefault(cause if cause in known else None, []).append(item)
    return "\n".join(_lines(children))


def _lines(children: Mapping[str | None, list[Message]]) -> Iterator[str]:
    # Not recursive: a chain of causes may be longer than the interpreter's stack is deep.
    waiting = [(item, "", "", "") for item in reversed(children.get(None, []))]
    while waiting:
        item, indent, branch, below = waiting.pop()
        yield f"{indent}{branch}{_label(item)}"
        siblings = children.get(item.meta.id, [])
        for each in reversed(siblings):
            shape = ("└─ ", "   ") if each is siblings[-1] else ("├─ ", "│  ")
            waiting.append((each, indent + below, *shape))


def _label(item: Message) -> str:
    meta = item.meta
    text = f"{meta.name} #{meta.sequence}" if meta.sequence is not None else meta.name
    return f"{text} from {meta.source}" if meta.source else text


def _order(item: Message) -> tuple[int, int, str]:
    meta = item.meta
    return meta.time_ns or 0, meta.sequence or 0, meta.id or ""

"""What others than the log get to see of what happens: the view ``public`` of every event.

It keeps names, numbers, ids, kinds and times, and takes out whatever a person or a model wrote, and
texts that may quote it (an error's, say). A log for operators needs one line::

    bus.subscribe("**", log_lines(logging.getLogger("chat").info))

Events of your own need views of their own: define them on what `event_views` returns. None is ever
taken instead, so that a new event is not shown by accident.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from atlas.core.effects import (
    EffectCancelled,
    EffectDelivered,
    EffectNoted,
    EffectRead,
    EffectStarted,
    RunContinued,
    RunSeeded,
)
from atlas.core.event_bus import HandlerFailed
from atlas.core.message_log import LogFailed, LogRecovered
from atlas.core.messages import Message
from atlas.core.perspective import Perspectives
from atlas.core.runs import RunEnded, RunStarted
from atlas.core.schema.canonical import canonical_text
from atlas.core.schema.codec import UnknownMessage, encode
from atlas.providers.messages import (
    MessageAdded,
    ProviderFallbackTaken,
    ProviderTimed,
    StreamCancelled,
    StreamCompleted,
    StreamContextFound,
    StreamFailed,
    StreamPaused,
    StreamResumed,
    StreamRetried,
    StreamStarted,
    StreamThinking,
    StreamToken,
    StreamToolCall,
)

__all__ = ["event_line", "event_views", "log_lines"]


class _Public(NamedTuple):
    redact: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


def _parts(path: str) -> _Public:
    """Redact what is said in the parts of a message; their kinds, names and ids stay."""
    return _Public(
        redact=(f"{path}.text", f"{path}.arguments", f"{path}.content"),
        without=(f"{path}.signature", f"{path}.redacted"),
    )


_PUBLIC: Final[Mapping[type[Message], _Public]] = {
    EffectCancelled: _Public(),
    EffectDelivered: _Public(redact=("value",)),
    EffectNoted: _Public(redact=("text",)),
    EffectRead: _Public(redact=("request", "value")),
    EffectStarted: _Public(redact=("rest",)),
    HandlerFailed: _Public(redact=("error", "traceback")),
    LogFailed: _Public(redact=("problem",)),
    LogRecovered: _Public(),
    MessageAdded: _parts("message.parts"),
    ProviderFallbackTaken: _Public(),
    ProviderTimed: _Public(),
    RunContinued: _Public(),
    RunEnded: _Public(redact=("error",)),
    RunSeeded: _Public(),
    RunStarted: _Public(redact=("arguments",)),
    StreamCancelled: _Public(redact=("partial",)),
    StreamCompleted: _parts("completion.parts"),
    StreamContextFound: _Public(),
    StreamFailed: _Public(redact=("error", "partial")),
    StreamPaused: _Public(),
    StreamResumed: _Public(),
    StreamRetried: _Public(redact=("error",)),
    StreamStarted: _Public(redact=("prompt",)),
    StreamThinking: _Public(redact=("text",)),
    StreamToken: _Public(redact=("text",)),
    StreamToolCall: _Public(redact=("call.arguments",)),
    UnknownMessage: _Public(redact=("fields",)),
}


def event_views(*, marker: str = "[redacted]") -> Perspectives:
    """Return new perspectives that hold the view ``public`` of each event of core and providers.

    Args:
        marker: What stands in the place of what is not shown.
    """
    views = Perspectives(marker=marker)
    for cls, public in _PUBLIC.items():
        views.define(cls, "public", redact=public.redact, without=public.without)
    return views


def event_line(event: Message, view: str = "public", *, views: Perspectives | None = None) -> str:
    """Return an event as a line of JSON like `encode`'s, with the fields that a view shows.

    Args:
        event: An event; its id, time, cause and the rest of its envelope are shown whole.
        view: Name of the view.
        views: Where the view is defined; default: `event_views`.

    Raises:
        UnknownNameError: The class of the event has no view of this name.
    """
    shown = (views or _own_views()).show(event, view)
    return canonical_text({**json.loads(encode(event)), "fields": shown})


def log_lines(
    write: Callable[[str], object], view: str = "public", *, views: Perspectives | None = None
) -> Callable[[Message], None]:
    """Return a handler that writes the line of each event; subscribe it to a bus.

    An event without such a view is not written: it becomes a ``bus.handler_failed`` that says so.

    Args:
        write: Takes a line, without a line end: a logger's method, ``print``, a list's ``append``.
        view: As for `event_line`.
        views: As for `event_line`.
    """

    def write_line(event: Message) -> None:
        write(event_line(event, view, views=views))

    return write_line


@functools.cache
def _own_views() -> Perspectives:
    return event_views()

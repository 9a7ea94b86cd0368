"""The live state of all replies of an application, projected from ``stream.*`` events.

`project_chat` gives the projector that `atlas.Atlas.state` is. The transitions are pure, so the
same state comes of the same events, live or read back from a log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

from atlas.core.persistent import PVector, pvector
from atlas.core.state_projector import StateProjector
from atlas.core.transitions import Transitions
from atlas.providers.messages import (
    Completion,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamPaused,
    StreamResumed,
    StreamRetried,
    StreamStarted,
    StreamThinking,
    StreamToken,
    StreamToolCall,
    Timing,
    ToolCallPart,
)

__all__ = ["ChatState", "ReplyState", "fold_chat", "project_chat"]

FINISHED_KEPT: Final = 64
"""Finished replies that the state remembers; their events are in the bus's history and the log."""


_NO_PIECES: Final[PVector[str]] = pvector()


@dataclass(frozen=True, slots=True)
class ReplyState:
    """Where one reply stands.

    Attributes:
        conversation: Id of its conversation.
        provider: Name of the provider asked.
        model: Name of the model asked.
        prompt: What was asked.
        status: As `atlas.providers.Reply.status`.
        pieces: The pieces of text so far.
        thoughts: The pieces of thinking so far.
        tool_calls: The tools the model asked for.
        attempts: How often the vendor was asked.
        completion: The whole answer, once it is there.
        error: What it failed with, if it did.
        timing: How long it took, once it is finished.
    """

    conversation: str
    provider: str
    model: str
    prompt: str
    status: str = "streaming"
    pieces: PVector[str] = _NO_PIECES
    thoughts: PVector[str] = _NO_PIECES
    tool_calls: tuple[ToolCallPart, ...] = ()
    attempts: int = 1
    completion: Completion | None = None
    error: str | None = None
    timing: Timing | None = None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self.pieces)

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will come."""
        return self.timing is not None


def _filling(cls: type) -> type:
    """Return the subclass of a frozen dataclass whose slots take assignments."""
    # the second of these, too, or assignments would still go the long way
    members = {"__setattr__": object.__setattr__, "__delattr__": object.__delattr__}
    return type(f"{cls.__name__}BeingMade", (cls,), {"__slots__": (), **members})


_ReplyStateBeingMade: Final = _filling(ReplyState)


def _reply_state(  # noqa: PLR0917  in the order of the fields
    conversation: str,
    provider: str,
    model: str,
    prompt: str,
    status: str = "streaming",
    pieces: PVector[str] = _NO_PIECES,
    thoughts: PVector[str] = _NO_PIECES,
    tool_calls: tuple[ToolCallPart, ...] = (),
    attempts: int = 1,
    completion: Completion | None = None,
    error: str | None = None,
    timing: Timing | None = None,
) -> ReplyState:
    """Make a reply's state in a fifth of the time its constructor takes: one is made per token.

    What makes a dataclass frozen lets its own constructor assign by a function call per field only.
    """
    made: Any = object.__new__(
        _ReplyStateBeingMade
    )  # Any: the fields of the class itself are read-only
    made.conversation = conversation
    made.provider = provider
    made.model = model
    made.prompt = prompt
    made.status = status
    made.pieces = pieces
    made.thoughts = thoughts
    made.tool_calls = tool_calls
    made.attempts = attempts
    made.completion = completion
    made.error = error
    made.timing = timing
    made.__class__ = ReplyState
    return made  # type: ignore[no-any-return]  # it is one now


@dataclass(frozen=True, slots=True)
class ChatState:
    """The replies being made and the last finished ones, by id, oldest first.

    Attributes:
        replies: The replies.
        finished: How many of them are finished.
    """

    replies: MappingProxyType[str, ReplyState] = field(default_factory=lambda: MappingProxyType({}))
    finished: int = 0


_ChatStateBeingMade: Final = _filling(ChatState)


def _chat_state(replies: dict[str, ReplyState], finished: int) -> ChatState:
    """Make the state, as `_reply_state` does that of a reply."""
    made: Any = object.__new__(_ChatStateBeingMade)
    made.replies = MappingProxyType(replies)
    made.finished = finished
    made.__class__ = ChatState
    return made  # type: ignore[no-any-return]  # it is one now


transitions: Final[Transitions[ChatState]] = Transitions()

_of_reply: Final[Transitions[ReplyState | None]] = Transitions()
"""What an event does to the state of the one reply that it is about; None: it is not known."""


def project_chat() -> StateProjector[ChatState]:
    """Return a new projector of the replies on a bus; attach it with ``.attach(bus)``."""
    return StateProjector(ChatState(), transitions, fold=fold_chat)


def fold_chat(state: ChatState, events: Sequence[Any]) -> ChatState:  # Any: events of replies
    """Return the state after events; of the dict with all replies it makes one copy, not one each."""
    replies, finished, is_changed = state.replies.copy(), state.finished, False
    for event in events:
        name = event.reply
        before = replies.get(name)
        now = _of_reply(before, event)
        if now is None:
            continue
        is_changed = True
        replies[name] = now
        if now.timing is not None and before is not None and before.timing is None:
            finished += 1
            if finished > FINISHED_KEPT:
                finished -= 1
                for oldest, one in replies.items():  # mostly the first
                    if one.timing is not None:
                        del replies[oldest]
                        break
    return _chat_state(replies, finished) if is_changed else state


@_of_reply.on(StreamStarted)
def _started(before: ReplyState | None, event: StreamStarted) -> ReplyState:
    return _reply_state(event.conversation, event.provider, event.model, event.prompt)


@_of_reply.on(StreamToken)
def _token(before: ReplyState | None, event: StreamToken) -> ReplyState | None:
    if before is None:
        return None
    return _reply_state(
        before.conversation,
        before.provider,
        before.model,
        before.prompt,
        before.status,
        before.pieces.append(event.text),
        before.thoughts,
        before.tool_calls,
        before.attempts,
    )


@_of_reply.on(StreamThinking)
def _thought(before: ReplyState | None, event: StreamThinking) -> ReplyState | None:
    return before and replace(before, thoughts=before.thoughts.append(event.text))


@_of_reply.on(StreamToolCall)
def _asked_for_a_tool(before: ReplyState | None, event: StreamToolCall) -> ReplyState | None:
    return before and replace(before, tool_calls=(*before.tool_calls, event.call))


@_of_reply.on(StreamPaused)
def _paused(before: ReplyState | None, event: StreamPaused) -> ReplyState | None:
    return before and replace(before, status="paused")


@_of_reply.on(StreamResumed)
def _resumed(before: ReplyState | None, event: StreamResumed) -> ReplyState | None:
    return before and replace(before, status="streaming")


@_of_reply.on(StreamRetried)
def _retried(before: ReplyState | None, event: StreamRetried) -> ReplyState | None:
    return before and replace(before, attempts=event.attempt + 1)


@_of_reply.on(StreamCompleted)
def _completed(before: ReplyState | None, event: StreamCompleted) -> ReplyState | None:
    given = event.completion
    return before and _finished(
        before, event.timing, "completed", completion=given, tool_calls=given.tool_calls
    )


@_of_reply.on(StreamCancelled)
def _cancelled(before: ReplyState | None, event: StreamCancelled) -> ReplyState | None:
    return before and _finished(before, event.timing, "cancelled")


@_of_reply.on(StreamFailed)
def _failed(before: ReplyState | None, event: StreamFailed) -> ReplyState | None:
    return before and _finished(before, event.timing, "failed", error=event.error)


def _finished(
    before: ReplyState,
    timing: Timing,
    status: str,
    *,
    tool_calls: tuple[ToolCallPart, ...] | None = None,
    completion: Completion | None = None,
    error: str | None = None,
) -> ReplyState:
    return _reply_state(
        before.conversation,
        before.provider,
        before.model,
        before.prompt,
        status,
        before.pieces,
        before.thoughts,
        before.tool_calls if tool_calls is None else tool_calls,
        before.attempts,
        completion or before.completion,
        error or before.error,
        timing,
    )


@transitions.on(*_of_reply.kinds)
def _after(state: ChatState, event: object) -> ChatState:
    return fold_chat(state, (event,))

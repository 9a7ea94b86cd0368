"""A conversation: what was said so far, and the next question asked with all of it in view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol, TypedDict

from typing_extensions import Unpack

from atlas.core.event_bus import EventBus
from atlas.core.persistent import PVector, pvector
from atlas.core.state import State
from atlas.core.transitions import Transitions
from atlas.errors import ConversationBusyError
from atlas.providers.base import Provider
from atlas.providers.context import ContextSource
from atlas.providers.messages import ChatMessage, MessageAdded, Part, TextPart, ToolSpec
from atlas.providers.reply import OnToken, Reply, SyncReply
from atlas.typing import JSON

__all__ = ["ChatOptions", "Conversation"]


class ChatOptions(TypedDict, total=False):
    """What may be said about one model call; what is not said is left to the vendor.

    Attributes:
        system: Instructions the model is given first.
        provider: Whom to ask: a registered name or an object; default: the application's.
        model: The provider's name of the model; default: the application's, or the provider's.
        context: Where to find passages to answer from, such as a knowledge base: they are given to
            the model with the question, numbered; see `Reply.citations`.
        context_tokens: Most tokens of passages; default: a third of the model's window, as far as the
            provider says how large that is.
        on_token: Called with ``(delta, full_text)`` for each piece of text. What it raises ends
            the reply and is raised to whoever reads it.
        tools: Tools that the model may ask for.
        tool_choice: ``"auto"``, ``"none"`` or ``"required"``.
        max_tokens: Longest answer, in tokens.
        temperature: 0 for the likeliest words, higher for more variety.
        top_p: Share of the probability mass to draw from.
        seed: Makes the same request give the same answer, as far as the vendor can.
        stop: Texts before which the answer ends.
        thinking_tokens: Most tokens to think with.
        json_schema: JSON Schema, as JSON text, that the answer must fit.
        extra: Vendor options, passed on as they are.
    """

    system: str
    provider: str | Provider | None
    model: str | None
    context: ContextSource | None
    context_tokens: int | None
    on_token: OnToken | None
    tools: Sequence[ToolSpec]
    tool_choice: str | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: Sequence[str]
    thinking_tokens: int | None
    json_schema: str | None
    extra: dict[str, JSON]


class Chatter(Protocol):
    """What a conversation needs of the application."""

    bus: EventBus

    def chat(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        conversation: Conversation | None = None,
        **options: Unpack[ChatOptions],
    ) -> Reply:
        """Ask a model; see `atlas.Atlas.chat`."""
        ...

    def chat_sync(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        conversation: Conversation | None = None,
        **options: Unpack[ChatOptions],
    ) -> SyncReply:
        """Ask a model from a plain thread."""
        ...


class Conversation:
    """Turns of one conversation with a model, in order.

    A turn joins the conversation when its answer is complete: the question and the answer
    together, each as a `MessageAdded` event. An answer that was cancelled joins with the text that
    had arrived; one that failed leaves the conversation as it was, so that the question can be
    asked again.

    Conversations are made by `atlas.Atlas.conversation`. One question at a time: the next one
    needs the answer before it.

    Attributes:
        id: The conversation's id, in every event it causes.
        state: The messages as versions: version *n* holds the first *n* of them; see `State`.
    """

    def __init__(self, chatter: Chatter, *, id: str, **options: Unpack[ChatOptions]) -> None:  # noqa: A002
        self.id = id
        self.state: State[PVector[ChatMessage]] = State(pvector(), _transitions)
        self._chatter = chatter
        self._options: ChatOptions = options
        self._asking: Reply | None = None

    def __repr__(self) -> str:
        return f"<Conversation {self.id} with {self.state.version} messages>"

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """What was said so far, without the system's instructions."""
        return tuple(self.state.value)

    def chat(self, prompt: str | Sequence[ChatMessage], **options: Unpack[ChatOptions]) -> Reply:
        """Ask the next question, with all that was said before.

        Args:
            prompt: The question, or several messages (such as tool results).
            **options: For this call, over those the conversation was made with.

        Raises:
            ConversationBusyError: The answer before is still being made.
        """
        return self._chatter.chat(prompt, conversation=self, **self._over_own(options))

    def chat_sync(
        self, prompt: str | Sequence[ChatMessage], **options: Unpack[ChatOptions]
    ) -> SyncReply:
        """Do what `chat` does, from a plain thread."""
        return self._chatter.chat_sync(prompt, conversation=self, **self._over_own(options))

    def _over_own(self, options: ChatOptions) -> ChatOptions:
        merged = self._options.copy()
        merged.update(options)
        return merged

    # -- for the application --

    def begin(self, reply: Reply) -> None:
        """Note that ``reply`` is being made; refuse when another one is."""
        if self._asking is not None:
            raise ConversationBusyError(
                f"Conversation {self.id} is still being answered ({self._asking.prompt!r}). "
                f"Await or cancel that reply before asking the next question, or start another "
                f"conversation."
            )
        self._asking = reply

    def end(self, reply: Reply, asked: Sequence[ChatMessage]) -> None:
        """Let a finished reply's turn join the conversation."""
        self._asking = None
        answer = _answer(reply)
        if answer is None:
            return
        for said in (*asked, answer):
            added = MessageAdded(self.id, said)
            self.state.apply(added)
            self._chatter.bus.publish(added)


_transitions: Final[Transitions[PVector[ChatMessage]]] = Transitions()


@_transitions.on(MessageAdded)
def _added(messages: PVector[ChatMessage], event: MessageAdded) -> PVector[ChatMessage]:
    return messages.append(event.message)


def _answer(reply: Reply) -> ChatMessage | None:
    if reply.completion is None:
        return None
    parts: tuple[Part, ...] = reply.completion.parts
    if reply.finish_reason == "cancelled":
        # Half a tool call or half a thought is nothing that a vendor takes back; text is.
        parts = tuple(part for part in parts if isinstance(part, TextPart))
    return ChatMessage("assistant", parts) if parts else None

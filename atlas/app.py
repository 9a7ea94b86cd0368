"""The application object: starts, wires and stops everything, and answers `Atlas.chat`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar, cast

from typing_extensions import Unpack

from atlas.agents.approval import answer_in, approvals_in, approve, keep_answer, refuse_unasked
from atlas.agents.messages import ApprovalAsked, ApprovalGiven
from atlas.container import Container, check, check_parts
from atlas.core.effects import current_run, effect
from atlas.core.event_bus import EventBus
from atlas.core.log.controller import LOGS
from atlas.core.log.engine import Durability, Engine
from atlas.core.loop_thread import LoopThread
from atlas.core.message_log import MessageLog
from atlas.core.messages import Message
from atlas.core.redaction import SHORTEST, Secrets, secrets_among
from atlas.core.registry import FallbackTaken, Registry
from atlas.core.run_session import RunSession
from atlas.core.state_projector import StateProjector
from atlas.errors import AppNotRunningError, ConfigurationError, nearest_name
from atlas.providers.base import ChatRequest, Provider
from atlas.providers.chat_state import ChatState, project_chat
from atlas.providers.context import ContextSource, PackedContext
from atlas.providers.conversation import ChatOptions, Conversation
from atlas.providers.hosting import offer_host, withdraw_host
from atlas.providers.messages import ChatMessage, ProviderFallbackTaken, TextPart
from atlas.providers.profile import ChatProfile, chat_profile
from atlas.providers.recorded import Deferred, find_context
from atlas.providers.reply import Reply, StreamOptions, SyncReply
from atlas.providers.resilience import Deadlines, RetryPolicy
from atlas.providers.selection import Choice, choose
from atlas.providers.timing import ProviderTimer
from atlas.recording import Recorder

__all__ = ["Atlas"]

_log = logging.getLogger("atlas.app")

T = TypeVar("T")

_SHORTEST_IN_ENVIRONMENT: Final = 16
"""Characters; ``DB_PASSWORD=postgres`` is no reason to hide that word wherever it occurs."""

_PATIENCE: Final = 1.0
"""Seconds for handlers to end in when a program is interrupted: one may wait for a person."""

_NOTHING: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType({})


class Atlas(Recorder):
    """An application on one event bus: conversations with models, and everything they cause.

    Use it as a context manager; ``async with`` on your event loop, or plain ``with`` in a program
    that has none (it then runs its own loop in a thread)::

        async with Atlas() as app:
            async for token in app.chat("Explain event sourcing in one line."):
                print(token, end="")

        with Atlas() as app:
            for token in app.chat_sync("Explain event sourcing in one line."):
                print(token, end="")

    On the way out, unfinished replies are cancelled, providers closed, and the bus is drained and
    closed, unless it was given from outside.

    Args:
        log: Where to keep everything that crosses the bus, run by run: a path such as ``"runs.db"``
            (SQLite), ``"postgresql://user@host/database"``, or an open log of yours. Default: in
            memory, and there only the runs that are recorded.
        durability: What a stored event survives: a power cut (``"power"``, the default), the death
            of the process (``"process"``), or neither for sure (``"lazy"``).
        provider: Whom to ask by default: a registered name or a `Provider` of your own (which you
            close). Default: what the environment suggests, see `atlas.providers.choose`.
        model: The model to ask by default.
        fallback: Providers to build instead, in this order, when the one chosen cannot be built (no
            key, no package, no weights): names, or ``{name: configuration}``. Taking one is told by
            the event ``provider.fallback_taken``. A vendor that fails later is not replaced.
        profile: Settings by default, as a file's path or a `ChatProfile`. Whatever is said here or
            in a call wins over them, and they win over the environment.
        bus: A bus to work on; default: one of the application's own.
        deadlines: How long to wait for a vendor.
        retries: What to do when a call fails before its first token.
        capacity: Pieces of text a reader may lag behind before the vendor is held back.
        rate: Most pieces of text per second that readers get; None: as fast as they come.
        secrets: Texts that must never reach the log, of at least four characters. The keys in the
            profile and in ``fallback``, and environment variables of 16 characters or more whose
            names end in key, token, secret, password or the like, are taken for secrets by themselves.
        container: The parts to build from; override some for tests.

    Attributes:
        bus: The event bus; subscribe to it before or after the start.
        state: The live state of all replies: ``app.state.value.replies[reply.id]``, its earlier
            versions, and patches between them; see `StateProjector` and `ChatState`.
        runs: The runs in the log, by id: ``app.runs[run_id]``; see `Run`.
        container: The parts the application was built from.
        profile: The settings it was given, an empty `ChatProfile` when it was given none.
        secrets: What stands as ``<redacted>`` in the log, in answers of models, and in what effects
            give; ``app.secrets.add(...)`` adds one that became known later.

    Raises:
        ProfileError: The profile cannot be read, or says what makes no sense.
        ConfigurationError: An argument makes no sense.
        LogError: From the start: the log cannot be opened.
    """

    def __init__(
        self,
        log: str | Path | Engine | None = None,
        *,
        durability: Durability | None = None,
        provider: str | Provider | None = None,
        model: str | None = None,
        fallback: Sequence[str] | Mapping[str, Mapping[str, object]] | None = None,
        profile: str | Path | ChatProfile | None = None,
        bus: EventBus | None = None,
        deadlines: Deadlines | None = None,
        retries: RetryPolicy | None = None,
        capacity: int = 256,
        rate: float | None = None,
        secrets: Iterable[str] = (),
        container: Container | None = None,
    ) -> None:
        self.secrets: Secrets = Secrets(secrets)
        self.profile: ChatProfile = chat_profile(profile)
        self._profile_options = self.profile.chat_options()
        self.container = Container() if container is None else container
        check_parts(self.container)
        self.bus: EventBus = bus or self.container.bus()
        self._owns_bus = bus is None and not self.container.bus.overridden
        self._registry: Registry[Provider] = self.container.model_providers()
        self._wanted_provider = provider if isinstance(provider, str | None) else _usable(provider)
        self._wanted_model = model
        self._fallback = _fallbacks(fallback, provider, self.profile)
        self._stream_options = StreamOptions(
            deadlines=deadlines or self.profile.deadlines,
            retries=retries or self.profile.retries,
            capacity=capacity,
            rate=rate,
            secrets=self.secrets,
        )
        for options in (self.profile.provider_options(), *self._fallback.values()):
            self.secrets.add(*secrets_among(options, shortest=SHORTEST))
        self.state: StateProjector[ChatState] = project_chat()
        self._log_given = log
        self._durability = durability
        self._engine: Engine | None = None
        self._log: MessageLog | None = None
        self._sessions: dict[str, RunSession] = {}
        self.questions: dict[str, Message] = {}  # see `ModelHost`
        self._default: Provider | None = None
        self._choice: Choice | None = None
        self._timer: ProviderTimer | None = None
        self._loop: LoopThread | None = None
        self._replies: dict[str, Reply] = {}

    # -- starting and stopping --

    async def start(self) -> None:
        """Choose and build the default provider; ``async with`` does this.

        Raises:
            ConfigurationError: The provider is unknown, or lacks a key, a package or weights.
            AppNotRunningError: The application was started before.
        """
        if self._loop is not None:
            raise AppNotRunningError("This application was started before. Make a new Atlas().")
        loop = asyncio.get_running_loop()
        self._loop = LoopThread.of(loop)
        # In a thread: the import of a vendor's SDK takes up to a second, a probe of Ollama 0.25 s.
        # Not one of the loop's own, which would stay when the application is closed.
        try:
            with ThreadPoolExecutor(1, "atlas-start") as thread:
                await loop.run_in_executor(thread, self._prepare)
        except BaseException:
            # Nobody closes what never ran: leave nothing behind, not on a given bus either.
            await self.aclose()
            raise
        self.state.attach(self.bus)
        assert self._log is not None
        self._log.attach(self.bus)
        offer_host(self.bus, self)

    def _open_log(self) -> None:
        given = self._log_given
        if given is None or isinstance(given, str | Path):
            self._engine = LOGS.open_log(given or ":memory:", durability=self._durability)
        elif self._durability is None:
            self._engine = given
        else:
            raise ConfigurationError(
                f"durability is {self._durability!r}, and the log is open already. Say it where you "
                f"open the log."
            )
        session = None if given is None else f"session-{self.container.identify()}"
        self._log = MessageLog(self._engine, session=session, secrets=self.secrets)

    def _prepare(self) -> None:
        self.secrets.add(*secrets_among(os.environ, shortest=_SHORTEST_IN_ENVIRONMENT))
        self._open_log()
        wanted = self._wanted_provider
        if wanted is not None and not isinstance(wanted, str):
            model = self._wanted_model or self.profile.model_of(wanted.name)
            self._choice = Choice(wanted.name, model, "it was given")
            self._default = wanted
            return
        check(self.container)
        self._choice = choose(wanted, self._wanted_model, profile=self.profile)
        self._registry.on_fallback(self._fell_back)
        try:
            self._default = self._create(self._choice.provider, self._fallback)
        finally:
            self._registry.remove_hook(self._fell_back)

    def _create(
        self, name: str, fallback: Mapping[str, Mapping[str, object]] = _NOTHING
    ) -> Provider:
        others = {
            other: {**self._configuration(other), **config}
            for other, config in fallback.items()
            if other != name
        }
        return self._registry.create(name, fallback=others, **self._configuration(name))

    def _configuration(self, name: str) -> Mapping[str, object]:
        # The key and the address of a profile are those of its provider.
        return self.profile.provider_options() if name == self.profile.provider else {}

    def _fell_back(self, taken: FallbackTaken) -> None:
        # Without the model: it was meant for the provider that could not be built.
        self._choice = Choice(taken.chosen, "", f"{taken.requested} could not be built")
        failures = tuple(f"{name}: {error}" for name, error in taken.failures)
        self.bus.publish(ProviderFallbackTaken(taken.requested, taken.chosen, failures))

    async def aclose(self) -> None:
        """Cancel unfinished replies, close providers and the bus. Idempotent.

        Handlers that run are waited for, as long as they take; but for a moment only when the ``with``
        block is left by a cancellation or an interrupt: somebody wants an end.
        """
        await self._aclose(None)

    async def _aclose(self, patience: float | None) -> None:
        for reply in list(self._replies.values()):
            await reply.cancel()
        self._default = None
        withdraw_host(self.bus, self)
        if self._timer is not None:
            self._timer.close()
        try:
            await self._registry.aclose()
        finally:
            if self._owns_bus:
                await self.bus.aclose(patience)
            self.state.close()
            await self._close_log()

    async def _close_log(self) -> None:
        log, engine = self._log, self._engine
        self._log = None
        if log is None or engine is None:
            return
        loop = asyncio.get_running_loop()
        # In a thread: what waits is written first. Not one of the loop's, as above.
        with ThreadPoolExecutor(1, "atlas-stop") as thread:
            try:
                await loop.run_in_executor(thread, log.close)
            finally:
                if engine is not self._log_given:
                    await loop.run_in_executor(thread, LOGS.close_log, engine)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self._aclose(_patience_after(kind))

    def __enter__(self) -> Self:
        thread = LoopThread.start("atlas")
        try:
            thread.run(self.start())
        except BaseException:
            thread.close()
            raise
        self._loop = thread
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        thread = self._running()
        try:
            thread.run(self._aclose(_patience_after(kind)))
        finally:
            thread.close()

    # -- talking --

    def chat(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        conversation: Conversation | None = None,
        **options: Unpack[ChatOptions],
    ) -> Reply:
        """Ask a model; the answer is made in the background from now on.

        What is not said by ``options`` is taken from the application's profile.

        Args:
            prompt: What to say, or whole messages (an earlier history, tool results).
            conversation: The conversation that the question and its answer join; default: a new
                one, of which you see no more than the answer.
            **options: See `ChatOptions`.

        Returns:
            The `Reply`: iterate it for the text as it comes, await it for the whole answer.

        Raises:
            AppNotRunningError: The application is not started, is closed, or runs on another loop.
            ConfigurationError: An option makes no sense.
            ConversationBusyError: The conversation is still being answered.
        """
        self._refuse_other_loops(
            "chat", "From another thread, or in a program without a loop, use chat_sync()."
        )
        talk = conversation or self.conversation()
        return self._ask(talk, prompt, options)

    def chat_sync(
        self,
        prompt: str | Sequence[ChatMessage],
        *,
        conversation: Conversation | None = None,
        **options: Unpack[ChatOptions],
    ) -> SyncReply:
        """Do what `chat` does, from a plain thread; see `SyncReply`."""
        loop = self._running()
        reply = loop.call(partial(self.chat, prompt, conversation=conversation, **options))
        return SyncReply(reply, loop)

    def conversation(self, **options: Unpack[ChatOptions]) -> Conversation:
        """Return a new, empty conversation.

        Args:
            **options: For each of its calls, such as ``system``; see `ChatOptions`.
        """
        return Conversation(self, id=self.container.identify(), **options)

    def describe(self) -> str:
        """Return which provider and model answer by default, and why, in one line.

        Raises:
            AppNotRunningError: The application is not running.
        """
        self._running()
        assert self._default is not None
        assert self._choice is not None
        model = self._choice.model or _default_model(self._default)
        return f"{self._default.name} · {model} ({self._choice.reason})"

    def time_providers(self) -> ProviderTimer:
        """Publish ``provider.timed`` after each call of a provider that begins from now on.

        Returns:
            The timer, one at a time for an application. Close it, or use it as a context manager,
            to stop; it is closed with the application. It holds on to every provider it has timed.
        """
        if self._timer is None or not self._timer.is_open:
            self._timer = ProviderTimer(self.bus)
        return self._timer

    async def approve(
        self, approval: str, *, approved: bool = True, by: str = "", reason: str = ""
    ) -> ApprovalGiven:
        """Decide on a tool call that waits for a person; see the event ``approval.asked``.

        The run that waits goes on, in this process or in another one on the same log, or when it is
        resumed. The first decision on an approval holds.

        What waits nowhere is refused, since the decision would be lost: a mistyped id, or a call that was
        given up meanwhile. Where nobody in this process waits for it, the runs in the log that have not
        ended are read to find out.

        Args:
            approval: Id of the approval.
            approved: Whether the tool may run.
            by: Who decided.
            reason: Why; the model is told when the call is refused.

        Returns:
            The decision that holds.

        Raises:
            UnknownApprovalError: Nothing waits for it, here or in the log.
        """
        self._running()
        ApprovalGiven(approval, approved, by, reason)  # refuses what is no id, before a look for it
        if approval not in self.questions and await self.stored_answer(approval) is None:
            waiting = (asked.approval for asked in await self.approvals())
            refuse_unasked(approval, waiting, "`await app.approvals()` lists what does.")
        return await approve(self.bus, self, approval, approved=approved, by=by, reason=reason)

    async def approvals(self) -> list[ApprovalAsked]:
        """Return what waits for a person, oldest first: in this process, and in the log's other runs.

        Those of the log are of runs that go on in other processes, or whose process died. A run that is
        damaged is left out, and a warning is logged.
        """
        self._running()
        asked_for, damaged = await asyncio.to_thread(approvals_in, self.runs)
        for name, error in damaged.items():
            _log.warning("%s is damaged, so nobody knows what waits in it: %s", name, error)
        waiting = {asked.approval: asked for _, asked in asked_for}
        for key, asked in list(self.questions.items()):
            if isinstance(asked, ApprovalAsked):
                waiting.setdefault(key, asked)
        return [each for key, each in waiting.items() if await self.stored_answer(key) is None]

    # -- for those who ask models on its bus, such as teams of agents; see `ModelHost` --

    @property
    def stream_options(self) -> StreamOptions:
        """How answers are streamed."""
        return self._stream_options

    def choose_model(
        self, provider: str | Provider | None = None, model: str | None = None
    ) -> tuple[Provider, str]:
        """Return whom to ask and for which model; inside a run, as was recorded.

        Args:
            provider: A registered name or an object; None: the application's.
            model: The provider's name of the model; None: the application's, or the provider's own.
        """
        self._running()
        return self._chosen(_over(self._profile_options, {"provider": provider, "model": model}))

    async def stored_answer(self, approval: str) -> str | None:
        """Return what was decided on an approval, as JSON text, or None."""
        assert self._engine is not None
        return await asyncio.to_thread(answer_in, self._engine, approval)

    async def store_answer(self, approval: str, answer: str) -> None:
        """Keep what was decided on an approval, in the log, where other processes find it."""
        assert self._engine is not None
        await asyncio.to_thread(keep_answer, self._engine, approval, answer)

    @property
    def replies(self) -> tuple[Reply, ...]:
        """The replies being made at this moment, oldest first."""
        return tuple(self._replies.values())

    # -- inside --

    def _running(self) -> LoopThread:
        if self._loop is None or self._default is None:
            raise AppNotRunningError(
                "The application is not running. Use it inside `async with Atlas() as app:`, or "
                "`with Atlas() as app:` in a program without an event loop."
            )
        return self._loop

    def _refuse_other_loops(self, called: str, mend: str = "") -> None:
        loop = self._running().loop
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not loop:
            raise AppNotRunningError(
                f"{called}() was called outside the event loop that this application runs on. "
                + (mend or "Call it there: `asyncio.run_coroutine_threadsafe` does, from a thread.")
            )

    def _ask(
        self, talk: Conversation, prompt: str | Sequence[ChatMessage], options: ChatOptions
    ) -> Reply:
        options = _over(self._profile_options, options)
        provider, model = self._chosen(options)
        if self._timer is not None:
            self._timer.time(provider)
        asked = _messages(prompt)
        request = _request((*talk.messages, *asked), model, options)

        def finished(reply: Reply) -> None:
            del self._replies[reply.id]
            talk.end(reply, asked)

        reply = Reply(
            provider,
            request,
            id=self.container.identify(),
            conversation=talk.id,
            prompt=asked[-1].text,
            bus=self.bus,
            options=self._stream_options,
            on_token=options.get("on_token"),
            on_finished=finished,
            find_context=_finder(provider, asked[-1].text, options),
        )
        talk.begin(reply)
        self._replies[reply.id] = reply
        reply.start()
        return reply

    def _chosen(self, options: ChatOptions) -> tuple[Provider, str]:
        """Return whom to ask and for which model; inside a run, as was recorded."""
        wanted, model = options.get("provider"), options.get("model")
        run = current_run()
        if run is None:
            provider = self._provider(wanted)
            return provider, model or self._model(provider)
        given = None if isinstance(wanted, str | None) else _usable(wanted)
        session = self._sessions.get(run.run_id)
        instead = (None, None) if session is None else session.instead
        asked_for = wanted if isinstance(wanted, str | None) else wanted.name
        name, model = self._named(asked_for, model, given, instead)
        if given is not None and given.name == name:
            return given, model
        if run.is_live:
            return self._by_name(name), model
        # A replay asks nobody, so the provider may be missing here.
        return Deferred(name, None if run.mode == "replay" else self._by_name), model

    # Before a fork whoever was asked is asked, whatever the program says now.
    @effect(
        "model.choice",
        pure=True,
        ignore=("given", "instead"),
        alike=lambda recorded, asked: True,
    )
    def _named(
        self,
        provider: str | None,
        model: str | None,
        given: Provider | None,
        instead: tuple[str | None, str | None],
    ) -> tuple[str, str]:
        """Return the names of whom to ask and of the model, when that is settled now."""
        other, other_model = instead
        if other:
            chosen, model = self._by_name(other), None  # the model named was another one's
        else:
            chosen = self._provider(provider) if given is None else given
        return chosen.name, other_model or model or self._model(chosen)

    def _by_name(self, name: str) -> Provider:
        # one that was given as an object is registered nowhere
        return self._provider(None if self._is_default(name) else name)

    def _refuse_unknown(self, provider: str) -> None:
        if not self._is_default(provider):
            self._registry.source(provider)

    def _is_default(self, name: str) -> bool:
        return self._default is not None and self._default.name == name

    def _provider(self, wanted: str | Provider | None) -> Provider:
        if wanted is None:
            assert self._default is not None
            return self._default
        return self._create(wanted) if isinstance(wanted, str) else _usable(wanted)

    def _model(self, provider: Provider) -> str:
        # The application's model belongs to its default provider.
        if provider is self._default and self._choice is not None and self._choice.model:
            return self._choice.model
        return _default_model(provider)


def _usable(provider: Provider) -> Provider:
    """Return the provider; refuse what cannot be one before anything is asked of it."""
    named = isinstance(getattr(provider, "name", None), str)
    if isinstance(provider, type) or not named or not callable(getattr(provider, "stream", None)):
        raise ConfigurationError(
            f"The provider is {provider!r}. Give a registered name, or an object with `name` (a "
            f"text), `capabilities`, `stream` and `aclose`; see atlas.providers.Provider."
        )
    return provider


def _patience_after(kind: type[BaseException] | None) -> float | None:
    """Return how long handlers are waited for when a block is left by an error of this kind."""
    is_interrupted = kind is not None and not issubclass(kind, Exception)
    return _PATIENCE if is_interrupted else None


def _fallbacks(
    given: Sequence[str] | Mapping[str, Mapping[str, object]] | None,
    provider: str | Provider | None,
    profile: ChatProfile,
) -> Mapping[str, Mapping[str, object]]:
    if isinstance(given, str):
        raise ConfigurationError(f"fallback is {given!r}. Give a list of names: [{given!r}].")
    if given and not isinstance(provider, str | None):
        raise ConfigurationError(
            f"There is a fallback for {provider!r}, which is built already. Give the name of a "
            f"provider, or no fallback."
        )
    named = profile.fallback if given is None else given
    return named if isinstance(named, Mapping) else {name: {} for name in named}


def _over(profile: Mapping[str, object], options: ChatOptions) -> ChatOptions:
    """Return the options of a call over those of the profile; None says nothing."""
    said = {name: value for name, value in options.items() if value is not None}
    return cast("ChatOptions", {**profile, **said})


def _default_model(provider: Provider) -> str:
    # Not isinstance(provider, ModelCatalogue), which costs ten times as much at each call.
    return str(getattr(provider, "default_model", ""))


def _messages(prompt: str | Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise ConfigurationError("The prompt is empty. Say something to the model.")
        return (ChatMessage("user", (TextPart(prompt),)),)
    messages = tuple(prompt)
    if not messages or not all(isinstance(each, ChatMessage) for each in messages):
        raise ConfigurationError(
            f"The prompt is {prompt!r}. Give a text, or a sequence of ChatMessage."
        )
    return messages


_NOT_OF_THE_REQUEST = frozenset(
    {"system", "provider", "model", "on_token", "context", "context_tokens"}
)
_CONTEXT_TOKENS: Final = 2_000
"""Most tokens of passages, where the provider does not say how large its window is; else a third of
that, and never more than four times this."""


def _finder(
    provider: Provider, question: str, options: ChatOptions
) -> Callable[[], Awaitable[PackedContext]] | None:
    """Return what finds the passages of a question; None when there is nowhere to look."""
    source = options.get("context")
    if source is None:
        return None
    if not isinstance(source, ContextSource):
        raise ConfigurationError(
            f"context is {source!r}. Give a knowledge base, or an object with an async method "
            f"`passages(question)`; see atlas.providers.context.ContextSource."
        )
    window = provider.capabilities.context_window
    usual = _CONTEXT_TOKENS if window is None else min(window // 3, 4 * _CONTEXT_TOKENS)
    return partial(find_context, source, question, options.get("context_tokens") or usual)


def _request(messages: tuple[ChatMessage, ...], model: str, options: ChatOptions) -> ChatRequest:
    if system := options.get("system"):
        messages = (ChatMessage("system", (TextPart(system),)), *messages)
    known = ChatOptions.__annotations__
    # Any: a TypedDict without some of its keys has no narrower type.
    chosen: dict[str, Any] = {
        name: value
        for name, value in options.items()
        if name not in _NOT_OF_THE_REQUEST and value is not None
    }
    for name in chosen:
        if name not in known:
            raise ConfigurationError(f"chat() has no option {name!r}{nearest_name(name, known)}.")
    return ChatRequest(messages=messages, model=model, **chosen)

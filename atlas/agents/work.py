"""One agent at work on one task: ask the model, call the tools it wants, until there is an answer.

A loop, not a recursion: the hundredth turn costs what the first did. It runs in the caller's own
context, so that inside a recorded run all of it is part of the run; what touches the world (the
model, the tools, people who approve) are effects.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Final, cast

from atlas.agents.account import Loops, estimated_tokens
from atlas.agents.agent import Agent, History, is_model_name
from atlas.agents.approval import wait_for_approval
from atlas.agents.desk import Desk
from atlas.agents.dialect import Ask, Dialect, dialect_for, misfit, without_fence
from atlas.agents.messages import (
    ApprovalAsked,
    HistorySummarised,
    Task,
    TaskResumed,
    TaskWaiting,
    ToolCalled,
    ToolFinished,
    ToolOutcome,
    ToolProgressed,
    TurnEnded,
    TurnStarted,
)
from atlas.agents.settings import check
from atlas.agents.streaming import Streaming
from atlas.agents.together import gathered
from atlas.agents.tools import Tool
from atlas.core.causality import CURRENT
from atlas.core.effects import current_run, effect, uuid
from atlas.core.effects.codec import plain
from atlas.core.effects.entries import digest_of
from atlas.core.inner_loop import here
from atlas.errors import (
    AgentError,
    AnswerInvalidError,
    BudgetExceededError,
    EffectDeniedError,
    EffectError,
    EffectFailedError,
    LimitReachedError,
    ReplayDiverged,
    ValidationError,
    nearest_name,
)
from atlas.providers.base import ChatRequest, Provider, with_messages
from atlas.providers.messages import (
    ChatMessage,
    Completion,
    Part,
    TextPart,
    ToolCallPart,
    ToolResultPart,
)
from atlas.typing import JSON

__all__ = ["Work", "is_fatal"]


def is_fatal(error: BaseException) -> bool:
    """Return whether an error ends the run and is told to no model: the recording, or the rule, broke."""
    if isinstance(error, EffectError):
        return not isinstance(error, EffectDeniedError | EffectFailedError)
    return not isinstance(error, Exception)


@effect("agent.abilities", pure=True, ignore=("provider",))
def _abilities(name: str, provider: Provider) -> tuple[bool, bool]:
    """Return whether a provider knows tools and JSON Schemas; a replay may not have it to ask."""
    able = provider.capabilities
    return able.tools, able.json_schema


class Work:
    """The loop of one agent on one task. Made for it, and thrown away after it.

    Args:
        agent: Who works.
        task: What is to be done.
        desk: Where.
        history: What was said before; turns join it.
    """

    __slots__ = (
        "_agent",
        "_asked",
        "_bus",
        "_choice_before",
        "_desk",
        "_dialect",
        "_history",
        "_ids",
        "_last_prompt",
        "_left_out",
        "_leg",
        "_loops",
        "_options",
        "_options_before",
        "_provider",
        "_refusals",
        "_repairs",
        "_request_before",
        "_said",
        "_shown",
        "_source",
        "_specs",
        "_system",
        "_task",
        "_told_options",
        "_turn",
    )

    def __init__(self, agent: Agent, task: Task, desk: Desk, history: History) -> None:
        self._agent = agent
        self._task = task
        self._desk = desk
        self._bus = desk.bus
        self._history = history
        self._loops = Loops(desk.account.limits, desk.account.agent)
        self._repairs = desk.account.limits.repairs
        self._specs = tuple(each.spec for each in agent.tools.values())
        self._source: str | Provider | None = None
        # Any: fields of a ChatRequest
        self._options: dict[str, Any] = {}
        self._told_options: dict[str, Any] = {}
        self._request_before: ChatRequest | None = None
        self._options_before: dict[str, Any] = {}
        self._choice_before = ""
        self._asked: tuple[Provider, str] | None = None
        self._leg = 0
        self._provider = ""
        self._dialect: Dialect | None = None
        self._system: ChatMessage | None = None
        self._shown: list[ChatMessage] = []
        self._said = 0
        self._last_prompt = 0
        self._left_out = 0
        self._turn = 0
        self._ids: set[str] = set()
        self._refusals: dict[tuple[str, str], str] = {}

    async def run(self) -> JSON:
        """Work until there is an answer, and return it: text, or the fields of the agent's `output`.

        Raises:
            LimitReachedError: A limit of the task tree is reached.
            AnswerInvalidError: The answer does not fit, after all repairs.
            ProviderError: The model could not be asked.
        """
        self._source = _source(self._agent, self._task)
        self._join(ChatMessage("user", (TextPart(_question(self._task)),)))
        while True:
            given = await self._ask()
            parts, calls = self._told_apart(given)
            if not calls:
                if given.finish_reason == "pause":
                    self._join(_assistant(given))
                    continue
                answer = self._answered(given)
                if answer is not _NOT_YET:
                    return cast("JSON", answer)
                continue
            results = await self._tools(parts, calls)
            if self._desk.handed_over is not None:
                return None
            if self._agent.finish == "tool":
                done = next((each for each in results if not each.is_error), None)
                if done is not None:
                    return done.content

    # -- the model --------------------------------------------------------------------------------

    async def _ask(self) -> Completion:
        self._turn += 1
        run = current_run()
        leg = 0 if run is None else run.leg
        if self._turn % _BREATH == 0 and run is None:
            await asyncio.sleep(0)  # a model that answers at once must not keep the loop to itself
        # Anew where a run goes on as another, which may be with another model; and only there: in a run
        # that is resumed, what is asked for has to have the ids it had before it broke off.
        if self._asked is None or leg != self._leg:
            if self._asked is not None:  # what was said may have been with other instructions
                self._told_options = {}
                self._show_again()
            self._leg = leg
            self._asked = self._desk.host.choose_model(*_split(self._source))
        provider, model = self._asked
        if provider.name != self._provider:
            self._settle_dialect(provider)
        dialect = self._dialect
        assert dialect is not None
        if self._agent.memory is not None:
            await self._forget(provider, model)
        given = await self._call_model(provider, model, recorded=run is not None)
        self._desk.touch()
        return dialect.read(given, self._turn)

    # Any: fields of a ChatRequest
    def _asks_for(self) -> dict[str, Any]:
        """Return the fields of the request that say what this turn may give: mostly as before."""
        choice = self._choice()
        if choice != self._choice_before:
            assert self._dialect is not None
            agent = self._agent
            self._choice_before = choice
            self._options = self._dialect.options(agent, Ask(self._specs, choice))
            if agent.max_tokens is not None:
                self._options["max_tokens"] = agent.max_tokens
            if agent.temperature is not None:
                self._options["temperature"] = agent.temperature
        return self._options

    def _choice(self) -> str:
        choice = self._agent.tool_choice
        if choice == "auto" or not self._specs:
            return "auto"
        if self._turn == 1:
            return "required"
        return "none" if choice == "once" else "auto"

    def _settle_dialect(self, provider: Provider) -> None:
        self._provider = provider.name
        tools, json_schema = _abilities(provider.name, provider)
        dialect = dialect_for(self._agent, tools=tools, json_schema=json_schema)
        self._dialect = dialect
        self._choice_before = ""
        told = dialect.system(self._agent, self._agent.told(self._task))
        self._system = ChatMessage("system", (TextPart(told),)) if told else None
        self._show_again()

    def _show_again(self) -> None:
        assert self._dialect is not None
        shown = map(self._dialect.message, self._history.messages)
        self._shown = [*([self._system] if self._system else []), *shown]
        self._request_before = None  # which has other messages
        self._said = 0
        self._last_prompt = 0

    async def _call_model(self, provider: Provider, model: str, *, recorded: bool) -> Completion:
        agent, desk = self._agent, self._desk
        options = self._asks_for()
        new = self._shown[self._said :]
        request = self._request(model, options)
        prompt = self._last_prompt + estimated_tokens(sum(map(_length, new)))
        reserved = desk.account.reserve(prompt, agent.max_tokens, agent.price)
        reply = f"{desk.task}/{desk.attempt}:{self._turn}"
        self._bus.publish(TurnStarted(desk.task, agent.name, self._turn, reply))
        # What went before was compared when it was said; so each message is written down once.
        said: dict[str, object] | None = None
        if recorded:
            said = {"model": model, "after": self._said, "said": _in_short(new)}
            if options != self._told_options:
                said["options"] = self._told_options = options
        self._said = len(self._shown)
        given: Completion | None = None
        try:
            given = await Streaming(desk, provider, request, reply).complete(said)
        finally:
            desk.account.settle(reserved, given)
        self._last_prompt = given.usage.input_tokens or prompt
        return given

    # Any: fields of a ChatRequest
    def _request(self, model: str, options: dict[str, Any]) -> ChatRequest:
        messages = tuple(self._shown)
        timeout = self._desk.host.stream_options.deadlines.connect
        before = self._request_before
        if before is not None and (
            options is self._options_before
            and before.model == model
            and before.connect_timeout == timeout
        ):
            made = with_messages(before, messages)
        else:
            made = ChatRequest(messages=messages, model=model, connect_timeout=timeout, **options)
        self._request_before, self._options_before = made, options
        return made

    # -- the answer -------------------------------------------------------------------------------

    def _answered(self, given: Completion) -> object:
        """Return the answer, or `_NOT_YET` when the model is asked to mend it."""
        shape, output = self._agent.output_shape, self._agent.output
        text = given.text
        self._join(_assistant(given))
        self._end_turn(0)
        if shape is None or output is None:
            return text
        try:
            output(**shape.parse(without_fence(text) or "null"))
            return json.loads(without_fence(text))
        except Exception as error:  # also what the dataclass itself checks when one is made
            if is_fatal(error):
                raise
            told = str(error) if isinstance(error, ValidationError) else f"{_told(error)}."
            if self._repairs == 0:
                raise AnswerInvalidError(
                    f"Agent {self._agent.name!r} was asked for {shape.name} and gave {text!r:.200}, "
                    f"repairs included: {told} Ask another model, or allow more repairs."
                ) from error
            self._repairs -= 1
            self._join(ChatMessage("user", (TextPart(misfit(told)),)))
            return _NOT_YET

    def _join(self, *messages: ChatMessage) -> None:
        self._history.join(*messages)
        if self._dialect is not None:
            self._shown.extend(map(self._dialect.message, messages))

    def _end_turn(self, calls: int) -> None:
        desk = self._desk
        reply = f"{desk.task}/{desk.attempt}:{self._turn}"
        self._bus.publish(TurnEnded(desk.task, self._agent.name, self._turn, reply, calls))

    # -- tools ------------------------------------------------------------------------------------

    async def _tools(
        self, parts: tuple[Part, ...], calls: Sequence[ToolCallPart]
    ) -> Sequence[ToolResultPart]:
        """Call all tools that the model asked for, side by side; the turn joins the history whole."""
        came: list[ToolResultPart | None] = [None] * len(calls)
        results: tuple[ToolResultPart, ...] = ()
        try:
            if len(calls) == 1:
                await self._call_tool(0, calls[0], came)
            else:
                await gathered(
                    self._call_tool(place, call, came) for place, call in enumerate(calls)
                )
        finally:
            results = tuple(
                [
                    each or ToolResultPart(call.id, _CANCELLED, is_error=True)
                    for call, each in zip(calls, came, strict=True)
                ]
            )
            self._join(ChatMessage("assistant", parts), ChatMessage("tool", results))
            self._end_turn(len(calls))
        for call, result in zip(calls, results, strict=True):
            self._loops.note(
                "Calls with the same result", call.name, call.arguments, result.content
            )
        return results

    def _told_apart(self, given: Completion) -> tuple[tuple[Part, ...], list[ToolCallPart]]:
        """Return the parts of an answer, and the tool calls in it, no two of which, ever, have one id."""
        made: list[Part] = []
        calls: list[ToolCallPart] = []
        for part in given.parts:
            if isinstance(part, ToolCallPart):
                if part.id in self._ids:
                    part = ToolCallPart(f"{part.id}-{len(self._ids)}", part.name, part.arguments)
                self._ids.add(part.id)
                calls.append(part)
            made.append(part)
        return tuple(made), calls

    async def _call_tool(
        self, place: int, part: ToolCallPart, results: list[ToolResultPart | None]
    ) -> None:
        desk, bus = self._desk, self._bus
        key = f"{desk.task}/{desk.attempt}:{self._turn}.{place}"
        name = self._agent.name
        called = ToolCalled(key, desk.task, name, part.name, part.id, part.arguments)
        told = bus.publish(called).message
        token = CURRENT.set(told._stamp)
        desk.account.count_tool()
        outcome: ToolOutcome = "cancelled"
        content = _CANCELLED
        try:
            outcome, content = await self._outcome(key, part)
        except Exception as error:
            outcome, content = "failed", str(error)
            raise
        finally:
            results[place] = ToolResultPart(part.id, content, outcome != "done")
            bus.publish(ToolFinished(key, outcome, content))
            CURRENT.reset(token)
            desk.touch()

    async def _outcome(self, key: str, part: ToolCallPart) -> tuple[ToolOutcome, str]:
        tool = self._agent.tools.get(part.name)
        if tool is None:
            self._check_never_had(part.name)
            names = ", ".join(self._agent.tools) or "none"
            nearest = nearest_name(part.name, self._agent.tools)
            return "unknown", f"There is no tool {part.name!r}{nearest}. There are: {names}."
        try:
            arguments = tool.parse(part.arguments)
        except ValidationError as error:
            return "invalid", f"{error} Correct the arguments and call again."
        if tool.needs_approval and (refused := await self._refused(key, part, tool)):
            return "refused", refused
        try:
            return "done", await tool.perform(
                arguments, lambda text: self._tell_progress(key, text), self._desk.touch
            )
        except EffectDeniedError as error:
            return "refused", str(error)
        except TimeoutError as error:
            return "timeout", _told(error)
        except (LimitReachedError, BudgetExceededError):
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return "failed", "CancelledError: the tool waited for something that was cancelled."
        except Exception as error:
            if is_fatal(error):
                raise
            return "failed", _told(error)

    def _check_never_had(self, name: str) -> None:
        """Refuse to repeat a call of a tool that the agent has no more: nobody knows how it was called."""
        run, place = current_run(), here()
        if run is None or place is None or not run.repeats(place, f"tool.{name}"):
            return
        raise run.abort(
            ReplayDiverged(
                f"In what is repeated of run {run.run_id!r}, agent {self._agent.name!r} called "
                f"{name!r} before, and has no such tool now. Keep it in tools=, or fork before the "
                f"call."
            )
        )

    def _tell_progress(self, key: str, text: str) -> None:
        self._bus.publish(ToolProgressed(key, text))

    async def _refused(self, key: str, part: ToolCallPart, tool: Tool[..., Any]) -> str:
        """Ask a person; return why not, or nothing. Nobody is asked twice about the same call."""
        desk = self._desk
        same = (tool.name, part.arguments)
        if same in self._refusals:
            return f"{self._refusals[same]} Do not call it like this again."
        self._bus.publish(TaskWaiting(desk.task, f"approval of {tool.name}"))
        # Tasks may have the same ids as those of another run: a yes to one is none to the other.
        approval = f"{key}-{uuid().hex[:8]}"
        asked = ApprovalAsked(approval, desk.task, self._agent.name, tool.name, part.arguments, key)
        desk.wait()
        try:
            given = await wait_for_approval(self._bus, desk.host, asked)
        finally:
            desk.waited()
        self._bus.publish(TaskResumed(desk.task))
        if given.approved:
            return ""
        why = f"A person refused this call{f': {given.reason}' if given.reason else '.'}"
        self._refusals[same] = why
        return why

    # -- memory -----------------------------------------------------------------------------------

    async def _forget(self, provider: Provider, model: str) -> None:
        """Keep the history that is shown short, cutting where a turn begins."""
        memory = self._agent.memory
        assert memory is not None
        messages = self._history.messages
        if len(messages) <= memory.window + memory.window // 2:
            return
        count = len(messages) - memory.window
        while count < len(messages) and messages[count].role == "tool":
            count += 1
        if memory.summarise:
            text = await self._summary(provider, model, messages[:count])
        else:
            self._left_out += count - bool(self._left_out)  # without the one that said so before
            text = f"({self._left_out} earlier messages are left out.)"
        # Whatever is forgotten, what is to be done is not.
        task = _question(self._task)
        summary = ChatMessage("user", (TextPart(f"{text}\n\nThe task is still: {task}"),))
        self._history.replace(count, summary)
        self._bus.publish(HistorySummarised(self._desk.task, self._agent.name, count, text))
        self._show_again()

    async def _summary(
        self, provider: Provider, model: str, messages: Sequence[ChatMessage]
    ) -> str:
        assert self._dialect is not None
        shown = tuple(map(self._dialect.message, messages))
        ask = ChatMessage("user", (TextPart(_SUMMARISE),))
        request = ChatRequest(messages=(*shown, ask), model=model)
        prompt = estimated_tokens(sum(map(_length, request.messages)))
        reserved = self._desk.account.reserve(prompt, None, self._agent.price)
        reply = f"{self._desk.task}/{self._desk.attempt}:{self._turn}s"
        given: Completion | None = None
        try:
            given = await Streaming(self._desk, provider, request, reply).complete(None)
        finally:
            self._desk.account.settle(reserved, given)
        return f"What was said before, in short: {given.text}"


class _NotYet:
    """Says that there is no answer yet."""


_NOT_YET: Final = _NotYet()
_CANCELLED: Final = "The call was cancelled."
_SHORT: Final = 64
_BREATH: Final = 16
_SUMMARISE: Final = "Sum up what was said so far in a few sentences: what is wanted, what was found out, what is left."


def _source(agent: Agent, task: Task) -> str | Provider | None:
    """Return whom the agent names for a task."""
    named = agent.model
    if isinstance(named, str | None) or hasattr(named, "stream"):
        return cast("str | Provider | None", named)
    chosen = named(task)
    is_provider = hasattr(chosen, "stream") and not isinstance(chosen, type)
    check(
        f"Agent {agent.name!r}: what model(task) gave",
        chosen,
        chosen is None or is_provider or is_model_name(chosen),
        "'provider' or 'provider/model', a provider (no class), or None for the default",
    )
    return chosen


def _split(source: str | Provider | None) -> tuple[str | Provider | None, str | None]:
    """Return provider and model of what an agent names."""
    if not isinstance(source, str):
        return source, None
    provider, _, model = source.partition("/")
    return provider, model or None


def _question(task: Task) -> str:
    if not task.inputs:
        return task.text
    return f"{task.text}\n\n{json.dumps(plain(dict(task.inputs)), ensure_ascii=False)}"


def _assistant(given: Completion) -> ChatMessage:
    return ChatMessage("assistant", given.parts or (TextPart(""),))


def _in_short(messages: Sequence[ChatMessage]) -> list[list[str]]:
    """Return what tells messages apart from others, for the recording.

    What the model itself said is recorded already, and so is what a tool gave: of a long result the
    digest is enough to find out that it is another.
    """
    told: list[list[str]] = []
    for message in messages:
        if message.role == "assistant":
            continue
        for part in message.parts:
            if isinstance(part, ToolResultPart):
                content = part.content
                long = len(content) > _SHORT
                told.append([part.call_id, digest_of(content) if long else content])
            elif isinstance(part, TextPart):
                told.append([message.role, part.text])
    return told


def _length(message: ChatMessage) -> int:
    total = 0
    for part in message.parts:
        if isinstance(part, ToolCallPart):
            total += len(part.arguments) + len(part.name)
        elif isinstance(part, ToolResultPart):
            total += len(part.content)
        else:
            total += len(part.text)
    return total


def _told(error: BaseException) -> str:
    """Return what a model is told of an error: its type and its words."""
    if isinstance(error, EffectFailedError | AgentError):
        return str(error)
    return f"{type(error).__name__}: {error}"

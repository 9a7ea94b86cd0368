"""How tools and answers are asked for: in the vendor's own way, or as JSON that has to fit a schema.

A small model, or one whose template knows no tools, can still use them when its answer is *constrained*:
the provider lets it say nothing but ``{"tool": ..., "arguments": ...}`` or ``{"answer": ...}``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from atlas.agents.agent import Agent
from atlas.providers.messages import (
    ChatMessage,
    Completion,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    ToolSpec,
)
from atlas.typing import JSON

__all__ = ["Ask", "Dialect", "dialect_for", "without_fence"]


class Ask:
    """What one turn may give.

    Attributes:
        tools: The tools that may be called.
        choice: Whether one may, must, or must not be called.
    """

    __slots__ = ("choice", "tools")

    def __init__(self, tools: Sequence[ToolSpec], choice: str) -> None:
        self.tools: Sequence[ToolSpec] = tools
        self.choice: str = choice


class Dialect(Protocol):
    """How a kind of model is asked for tools and answers."""

    def system(self, agent: Agent, told: str) -> str:
        """Return the system's instructions."""
        ...

    def message(self, said: ChatMessage) -> ChatMessage:
        """Return a message of the history as the model is shown it."""
        ...

    # Any: fields of a ChatRequest
    def options(self, agent: Agent, ask: Ask) -> dict[str, Any]:
        """Return the fields of the request that ask for tools and form."""
        ...

    def read(self, given: Completion, turn: int) -> Completion:
        """Return what the model meant."""
        ...


class _Native:
    """The vendor knows tools."""

    def system(self, agent: Agent, told: str) -> str:
        if agent.output_shape is None:
            return told
        return f"{told}\n\n{_FORM.format(schema=agent.output_shape.text)}".strip()

    def message(self, said: ChatMessage) -> ChatMessage:
        return said

    # Any: see above
    def options(self, agent: Agent, ask: Ask) -> dict[str, Any]:
        made: dict[str, Any] = {}
        if ask.tools:
            made["tools"] = tuple(ask.tools)
            if ask.choice != "auto":
                made["tool_choice"] = ask.choice
        return made

    def read(self, given: Completion, turn: int) -> Completion:
        return given


class _NativeForm(_Native):
    """The vendor knows tools and JSON Schemas."""

    def system(self, agent: Agent, told: str) -> str:
        return told

    # Any: see above
    def options(self, agent: Agent, ask: Ask) -> dict[str, Any]:
        made = super().options(agent, ask)
        if agent.output_shape is not None:
            made["json_schema"] = agent.output_shape.text
        return made


class _Constrained:
    """The vendor knows JSON Schemas, but no tools."""

    def system(self, agent: Agent, told: str) -> str:
        if not agent.tools:
            return told
        tools = "\n".join(f"- {each.name}: {each.description}" for each in agent.tools.values())
        return f"{told}\n\nTools:\n{tools}".strip()

    def message(self, said: ChatMessage) -> ChatMessage:
        calls = [part for part in said.parts if isinstance(part, ToolCallPart)]
        results = [part for part in said.parts if isinstance(part, ToolResultPart)]
        if calls:
            text = "\n".join(f'{{"tool":"{c.name}","arguments":{c.arguments}}}' for c in calls)
            return ChatMessage("assistant", (TextPart(text),))
        if results:
            text = "\n".join(f"Result: {each.content}" for each in results)
            return ChatMessage("user", (TextPart(text),))
        return said

    # Any: see above
    def options(self, agent: Agent, ask: Ask) -> dict[str, Any]:
        kinds: list[JSON] = [] if ask.choice == "none" else [_call_schema(t) for t in ask.tools]
        shape = agent.output_shape
        if not kinds:
            return {} if shape is None else {"json_schema": shape.text}
        if ask.choice != "required":
            form: JSON = {"type": "string"} if shape is None else shape.schema
            kinds.append(_object({"answer": form}))
        schema = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        if isinstance(schema, dict) and "anyOf" in schema:
            schema = {"type": "object", **schema}
        return {"json_schema": json.dumps(schema)}

    def read(self, given: Completion, turn: int) -> Completion:
        try:
            said = json.loads(given.text)
        except (ValueError, RecursionError):  # nested too deeply
            return given
        if not isinstance(said, dict):
            return given
        if set(said) == {"tool", "arguments"}:
            call = ToolCallPart(f"call_{turn}", str(said["tool"]), json.dumps(said["arguments"]))
            return replace(given, parts=(call,), finish_reason="tool_calls")
        if set(said) == {"answer"}:
            answer = said["answer"]
            text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
            return replace(given, parts=(TextPart(text),))
        return given


def _call_schema(tool: ToolSpec) -> JSON:
    return _object({"tool": {"const": tool.name}, "arguments": json.loads(tool.parameters)})


def _object(properties: dict[str, JSON]) -> JSON:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_FORM: Final = "Answer with JSON only, nothing before or after it, that fits this schema: {schema}"
_NATIVE: Final = _Native()
_NATIVE_FORM: Final = _NativeForm()
_CONSTRAINED: Final = _Constrained()


def dialect_for(agent: Agent, *, tools: bool, json_schema: bool) -> Dialect:
    """Return how to ask a model.

    Args:
        agent: Who asks.
        tools: Whether the provider knows tools.
        json_schema: Whether it lets an answer be nothing but what fits a schema.
    """
    if json_schema and not tools:
        return _CONSTRAINED
    # Where both are asked for at once, a schema would forbid the tool calls of some vendors.
    return _NATIVE_FORM if json_schema and not agent.tools else _NATIVE


def without_fence(text: str) -> str:
    """Return an answer without the Markdown fence that some models put around JSON."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].strip()
        text = text.removeprefix("json").strip()
    return text


def misfit(why: str) -> str:
    """Return what a model is told of an answer that does not fit."""
    return f"That does not fit: {why} Answer again, with JSON only."

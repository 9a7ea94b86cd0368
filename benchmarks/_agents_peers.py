"""The same conversation as `benchmarks.agents` holds, in other frameworks: those that are installed."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["PEERS"]

Conversation = Callable[[], Awaitable[object]]


async def add(one: int, other: int) -> int:
    """Add two numbers."""
    return one + other


def arguments(turn: int) -> dict[str, int]:
    """Return what the model calls the tool with."""
    return {"one": turn, "other": 2}


@contextmanager
def _without_this_folder() -> Iterator[None]:
    known = sys.path[:]
    sys.path[:] = [each for each in known if Path(each).resolve() != Path(__file__).parent]
    try:
        yield
    finally:
        sys.path[:] = known


def agent_framework(turns: int) -> Conversation:
    """Microsoft Agent Framework, with the function layer that its own clients have."""
    from agent_framework import (
        Agent,
        BaseChatClient,
        ChatResponse,
        Content,
        FunctionInvocationLayer,
        Message,
    )

    class Client(FunctionInvocationLayer, BaseChatClient):
        # Any: whatever the layer hands in
        async def _inner_get_response(self, *, messages: Any, **rest: Any) -> ChatResponse:
            done = sum(message.role == "tool" for message in messages)
            said: Any = "Done."
            if done < turns - 1:
                said = Content.from_function_call(
                    call_id=f"c{done}", name="add", arguments=json.dumps(arguments(done))
                )
            return ChatResponse(messages=[Message(role="assistant", contents=[said])])

    client = Client(function_invocation_configuration={"max_iterations": turns + 1})
    agent = Agent(client, tools=[add])
    return lambda: agent.run("Go.")


def pydantic_ai(turns: int) -> Conversation:
    """Pydantic AI."""
    from pydantic_ai import Agent, UsageLimits
    from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
    from pydantic_ai.models.function import FunctionModel

    def model(messages: Any, info: object) -> ModelResponse:  # Any: its history
        done = len(messages) // 2
        if done < turns - 1:
            return ModelResponse(parts=[ToolCallPart("add", arguments(done), f"c{done}")])
        return ModelResponse(parts=[TextPart("Done.")])

    agent = Agent(FunctionModel(model), tools=[add])
    limits = UsageLimits(request_limit=None)
    return lambda: agent.run("Go.", usage_limits=limits)


def openai_agents(turns: int) -> Conversation:
    """The OpenAI Agents SDK, without tracing."""
    with _without_this_folder():  # in which there is an agents.py too
        from agents import Agent, Model, ModelResponse, Runner, Usage, function_tool
        from agents import set_tracing_disabled as disable_tracing
    from openai.types.responses import (
        ResponseFunctionToolCall,
        ResponseOutputMessage,
        ResponseOutputText,
    )

    disable_tracing(disabled=True)

    class Instant(Model):
        # Any: whatever the runner hands in
        async def get_response(self, *, input: Any, **rest: Any) -> ModelResponse:  # noqa: A002
            done = 0 if isinstance(input, str) else (len(input) - 1) // 2
            said: Any = ResponseFunctionToolCall(
                call_id=f"c{done}",
                name="add",
                arguments=json.dumps(arguments(done)),
                type="function_call",
            )
            if done >= turns - 1:
                text = ResponseOutputText(text="Done.", annotations=[], type="output_text")
                said = ResponseOutputMessage(
                    id="m", content=[text], role="assistant", status="completed", type="message"
                )
            return ModelResponse(output=[said], usage=Usage(), response_id=None)

        def stream_response(self, *rest: Any, **more: Any) -> Any:
            raise NotImplementedError

    agent = Agent(name="one", model=Instant(), tools=[function_tool(add)])
    return lambda: Runner.run(agent, "Go.", max_turns=turns + 1)


PEERS: dict[str, Callable[[int], Conversation]] = {
    "agent-framework": agent_framework,
    "openai-agents": openai_agents,
    "pydantic-ai": pydantic_ai,
}

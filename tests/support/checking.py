"""Running a provider against a case, and comparing what it came to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from atlas.errors import ProviderError
from atlas.providers.assembler import Assembler
from atlas.providers.base import ChatRequest, Provider
from atlas.providers.messages import ChatMessage, Completion, RefusalPart, TextPart, ThinkingPart
from atlas.providers.resilience import Deadlines, RetryPolicy, resilient_stream

from support.cases import Outcome, Row
from support.wire import WireServer

__all__ = ["ask", "check_row", "request"]


def request(text: str = "Hi", **fields: object) -> ChatRequest:
    """Return a request with one user turn."""
    turns = (ChatMessage("user", (TextPart(text),)),)
    values: dict[str, object] = {"messages": turns, "model": "test-model", **fields}
    # A mapping of field names cannot be typed.
    return ChatRequest(**values)  # type: ignore[arg-type]


async def ask(
    provider: Provider, asked: ChatRequest | None = None, *, attempts: int = 1
) -> Completion:
    """Return the whole answer to one request, tried once unless said otherwise."""
    assembler = Assembler(provider=provider.name, reply="reply")
    deadlines = Deadlines(first_token=20, gap=20, total=30)
    async with resilient_stream(
        provider,
        asked or request(),
        deadlines=deadlines,
        retries=RetryPolicy(attempts=attempts, base_delay=0),
    ) as deltas:
        async for delta in deltas:
            assembler.feed(delta)
    return assembler.completion()


async def check_row(row: Row, provider_at: Callable[[str], Provider]) -> None:
    """Play the row to a provider made for the server's URL, and compare the outcome."""
    with WireServer() as server:
        server.play(row.answer)
        provider = provider_at(server.url)
        try:
            if row.outcome.error is None:
                _compare(await ask(provider), row.outcome)
            else:
                await _expect_error(provider, row.outcome)
        finally:
            await provider.aclose()
        assert not server.unexpected, "more requests than one"
        await server.connections[0].wait_closed()


async def _expect_error(provider: Provider, expected: Outcome) -> None:
    assert expected.error is not None
    with pytest.raises(ProviderError) as caught:
        await ask(provider)
    error = caught.value
    exact = {name: getattr(expected, name) for name in ("retry_after", "request_id", "code")}

    assert type(error) is expected.error, repr(error)
    assert error.partial == expected.text
    assert error.provider == provider.name
    assert error.model == "test-model"
    assert error.status == expected.status
    for name, value in exact.items():
        assert value is None or getattr(error, name) == value
    for fact in expected.facts:
        assert fact in str(error)


def _compare(completion: Completion, expected: Outcome) -> None:
    signatures = [p.signature for p in completion.parts if isinstance(p, ThinkingPart)]
    refusals = [part.text for part in completion.parts if isinstance(part, RefusalPart)]
    calls = completion.tool_calls

    assert completion.text == expected.text
    assert completion.thinking == expected.thinking
    assert "".join(refusals) == expected.refusal
    assert [(c.name, c.arguments) for c in calls] == [call[1:] for call in expected.tool_calls]
    assert len({call.id for call in calls}) == len(calls), "ids must tell calls apart"
    for call, (call_id, _, _) in zip(calls, expected.tool_calls, strict=True):
        assert call.id == call_id or (not call_id and call.id)
    assert completion.finish_reason == expected.finish_reason
    if expected.signature is not None:
        assert expected.signature in signatures
    if expected.input_tokens is not None:
        assert completion.usage.input_tokens == expected.input_tokens
    if expected.output_tokens is not None:
        assert completion.usage.output_tokens == expected.output_tokens

"""An error answer whose body breaks off keeps what its status says, with every adapter."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from atlas.errors import (
    AuthenticationError,
    ConnectionFailedError,
    ProviderError,
    RateLimitedError,
    ServerError,
)
from atlas.providers.anthropic import AnthropicProvider
from atlas.providers.base import Provider
from atlas.providers.ollama import OllamaProvider
from atlas.providers.openai import OpenAIProvider

from support.checking import request
from support.wire import DROP, RESET, Answer, WireServer

MAKERS: dict[str, Callable[[str], Provider]] = {
    "anthropic": lambda url: AnthropicProvider(api_key="key", base_url=url),
    "openai-chat": lambda url: OpenAIProvider(model="m", base_url=f"{url}/v1", api="chat"),
    "openai-responses": lambda url: OpenAIProvider(
        model="m", base_url=f"{url}/v1", api="responses"
    ),
    "ollama": lambda url: OllamaProvider(model="m", base_url=url),
}


@pytest.mark.parametrize("ending", [DROP, RESET])
@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, AuthenticationError), (429, RateLimitedError), (500, ServerError)],
)
@pytest.mark.parametrize("name", MAKERS)
async def test_an_error_answer_with_a_cut_off_body_keeps_its_status(
    name, status, expected, ending
) -> None:
    cut = Answer(
        b'{"error": {"mess',
        ending,
        status=status,
        headers={"retry-after": "7"},
        content_type="application/json",
    )
    with WireServer(always=cut) as server:
        provider = MAKERS[name](server.url)
        with pytest.raises(ProviderError) as caught:
            async for _ in provider.stream(request()):
                pass
        await provider.aclose()

    assert type(caught.value) is expected
    assert (caught.value.status, caught.value.retry_after) == (status, 7.0)


async def test_an_error_answer_of_before_is_not_taken_for_this_one() -> None:
    with WireServer() as server:
        provider = MAKERS["anthropic"](server.url)
        server.play(Answer(b"{}", status=401, content_type="application/json"), Answer(RESET))
        for expected in (AuthenticationError, ConnectionFailedError):
            with pytest.raises(expected):
                async for _ in provider.stream(request()):
                    pass
        await provider.aclose()

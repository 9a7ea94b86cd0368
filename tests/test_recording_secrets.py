"""The key of a provider never reaches the log, whatever a server, or a proxy before it, says of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from atlas import Atlas
from atlas.core.effects import REDACTED
from atlas.errors import AuthenticationError
from atlas.providers import Provider

from support import anthropic_cases, ollama_cases, openai_cases
from support.wire import Answer, WireServer, error_answer

anthropic = pytest.importorskip("atlas.providers.anthropic", reason="anthropic is not installed")
ollama = pytest.importorskip("atlas.providers.ollama", reason="ollama is not installed")
openai = pytest.importorskip("atlas.providers.openai", reason="openai is not installed")

KEY = "sk-live-0123456789abcdefXYZ"


@dataclass(frozen=True)
class Vendor:
    """How a provider is pointed at a server, and what that answers."""

    provider_at: Callable[[str], Provider]
    words: Callable[..., Iterable[bytes]]
    answer: Callable[..., Answer]


VENDORS = {
    "openai": Vendor(
        lambda url: openai.OpenAIProvider(model="m", api_key=KEY, base_url=f"{url}/v1"),
        openai_cases.words,
        openai_cases.chat_answer,
    ),
    "openai-header": Vendor(
        lambda url: openai.OpenAIProvider(
            model="m", base_url=f"{url}/v1", headers={"X-Gateway-Key": KEY}
        ),
        openai_cases.words,
        openai_cases.chat_answer,
    ),
    "anthropic": Vendor(
        lambda url: anthropic.AnthropicProvider(model="m", api_key=KEY, base_url=url),
        anthropic_cases.words,
        anthropic_cases.answer,
    ),
    "ollama": Vendor(
        lambda url: ollama.OllamaProvider(model="m", api_key=KEY, base_url=url),
        ollama_cases.words,
        ollama_cases.answer,
    ),
    "password": Vendor(
        lambda url: openai.OpenAIProvider(
            model="m", base_url=f"{url}/v1".replace("://", f"://me:{KEY}@")
        ),
        openai_cases.words,
        openai_cases.chat_answer,
    ),
}


def everything_in(folder: Path, app: Atlas, run: str) -> str:
    """Return all that a recording holds: the bytes of its files, and what is packed in them."""
    lines = "".join(app.runs[run].lines)
    return lines + b"".join(path.read_bytes() for path in folder.iterdir()).decode("latin-1")


@contextlib.asynccontextmanager
async def app_at(vendor: Vendor, server: WireServer, folder: Path) -> AsyncIterator[Atlas]:
    async with contextlib.aclosing(vendor.provider_at(server.url)) as provider:
        async with Atlas(folder / "runs.db", provider=provider) as app:
            yield app


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return VENDORS[request.param]


async def test_a_key_that_an_error_quotes_is_not_recorded(vendor: Vendor, tmp_path: Path) -> None:
    with WireServer() as server:
        server.play(error_answer(401, {"error": {"message": f"The key {KEY} is wrong."}}))
        async with app_at(vendor, server, tmp_path) as app:
            with pytest.raises(AuthenticationError, match=REDACTED):
                async with app.recording("chat") as run:
                    await app.chat("Hi")
            assert KEY not in everything_in(tmp_path, app, run.id)


@pytest.mark.parametrize("size", [1, 5, 100])
async def test_a_key_that_an_answer_repeats_in_pieces_is_not_recorded(
    vendor: Vendor, size: int, tmp_path: Path
) -> None:
    text = f"Your key is {KEY}, is it not? s"
    said = [text[at : at + size] for at in range(0, len(text), size)]
    with WireServer() as server:
        server.play(vendor.answer(*vendor.words(*said)))
        async with app_at(vendor, server, tmp_path) as app:
            async with app.recording("chat") as run:
                answer = await app.chat("Hi")
            async with app.replaying(run.id):
                again = await app.chat("Hi")
            found = everything_in(tmp_path, app, run.id)

    assert answer.text == again.text == f"Your key is {REDACTED}, is it not? s"
    assert not any(KEY[at : at + 12] in found for at in range(len(KEY) - 12))

"""Reading the body of a streamed HTTP answer: shared by every adapter that decodes it itself.

It knows the shape of a response, not its library, so that httpx and httpx2 both fit.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Final, Protocol, cast

from atlas.errors import ProviderError

__all__ = ["StreamedResponse", "closed_error", "drain", "raw_body"]

DRAIN_SECONDS: Final = 0.25
"""How long to wait for the end of a body after the vendor's end marker; they come together."""


class StreamedResponse(Protocol):
    """What is asked of a response; those of httpx and httpx2 have it."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers, by name in any case."""
        ...

    def aiter_raw(self) -> AsyncIterator[bytes]:
        """Return the bytes as they came."""
        ...

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Return the bytes, decompressed."""
        ...


def raw_body(response: StreamedResponse) -> AsyncGenerator[bytes, None]:
    """Return the body by the shortest way: without a decoder where nothing is encoded."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    body = response.aiter_raw() if encoding == "identity" else response.aiter_bytes()
    # Both libraries promise an iterator and return a generator, whose closing is what counts.
    return cast("AsyncGenerator[bytes, None]", body)


async def drain(body: AsyncIterator[bytes], transport_error: type[Exception]) -> None:
    """Read the little that follows the end marker, so that the connection can be used again.

    What goes wrong here concerns nobody: the answer is whole.

    Args:
        body: The rest of the body.
        transport_error: What the HTTP library raises.
    """
    with contextlib.suppress(TimeoutError, transport_error):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in body:
                pass


def closed_error(provider: str, model: str) -> ProviderError:
    """Return the error for a request to a provider that was closed; asking again is no use."""
    return ProviderError(
        f"The {provider} provider is closed; make a new one.", provider=provider, model=model
    )
